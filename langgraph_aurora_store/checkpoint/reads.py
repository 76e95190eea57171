"""Reading checkpoints: rows as the parent's class takes them apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import get_checkpoint_id

from langgraph_aurora_store.checkpoint import statements
from langgraph_aurora_store.checkpoint.statements import in_schema
from langgraph_aurora_store.sql.flow import Flow, Statement, Transaction

Row = dict[str, Any]
# Adds the sends that were pending in a row's parent: (sends, checkpoint, channel values).
Migrate = Callable[[Any, Any, Any], None]

# The first page answers most questions in one round trip; who reads on reads in larger ones.
_FIRST_PAGE, _LARGEST_PAGE = 64, 1024
# Since this version of a checkpoint's format, its pending sends are values of its own.
_SENDS_ARE_VALUES = 4


def get(config: RunnableConfig, schema: str | None, migrate: Migrate) -> Flow[Row | None]:
    """A checkpoint by its id, else the latest of its thread and namespace."""
    configurable = config["configurable"]
    place = [str(configurable["thread_id"]), configurable.get("checkpoint_ns", "")]
    if checkpoint_id := get_checkpoint_id(config):
        statement = Statement(statements.SELECT_ONE, (*place, checkpoint_id))
    else:
        statement = Statement(statements.SELECT_LATEST, place)
    rows = yield from _rows(statement, schema, migrate)
    return rows[0] if rows else None


class Listing:
    """Checkpoints from the newest on, page by page; no connection is held between two."""

    def __init__(
        self,
        where: str,
        params: Sequence[Any],
        limit: int | None,
        schema: str | None,
        migrate: Migrate,
    ) -> None:
        self._where, self._params = where, list(params)
        self._left = limit
        self._schema, self._migrate = schema, migrate
        self._size = _FIRST_PAGE
        self._after: tuple[Any, ...] = ()
        self.has_ended = limit is not None and limit <= 0

    def page(self) -> Flow[list[Row]]:
        """The next page; `has_ended` after the last one."""
        size = self._size if self._left is None else min(self._size, self._left)
        where = self._where
        if self._after:
            where += f"{' AND' if where else 'WHERE'} {statements.AFTER}"
        query = statements.SELECT + where + statements.ORDER
        rows = yield from _rows(
            Statement(query, (*self._params, *self._after, size)), self._schema, self._migrate
        )
        if self._left is not None:
            self._left -= len(rows)
        self.has_ended = len(rows) < size or self._left == 0
        if rows:
            last = rows[-1]
            self._after = (last["checkpoint_id"], last["thread_id"], last["checkpoint_ns"])
        self._size = min(4 * self._size, _LARGEST_PAGE)
        return rows


def _rows(statement: Statement, schema: str | None, migrate: Migrate) -> Flow[list[Row]]:
    query = in_schema(statement.sql, schema)
    (found,) = yield Transaction((Statement(query, statement.params),))
    rows = [dict(zip(statements.COLUMNS, row, strict=True)) for row in found]
    yield from _add_pending_sends(rows, schema, migrate)
    return rows


def _add_pending_sends(rows: list[Row], schema: str | None, migrate: Migrate) -> Flow[None]:
    children: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["checkpoint"]["v"] < _SENDS_ARE_VALUES and row["parent_checkpoint_id"]:
            children[row["thread_id"]][row["parent_checkpoint_id"]].append(row)
    if not children:
        return
    query = in_schema(statements.SELECT_SENDS, schema)
    asked = [Statement(query, (thread, list(of))) for thread, of in children.items()]
    replies = yield Transaction(tuple(asked))
    for of, reply in zip(children.values(), replies, strict=True):
        for parent, sends in reply:
            for row in of[parent]:
                row["channel_values"] = row["channel_values"] or []
                migrate(sends, row["checkpoint"], row["channel_values"])
