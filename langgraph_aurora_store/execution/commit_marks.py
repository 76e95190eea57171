"""The numbers that connections mark their writes with; `sql.commit_mark_sql` says why."""

from __future__ import annotations

import secrets
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import psycopg
from psycopg import BaseConnection

from langgraph_aurora_store.sql.flow import Autocommit, Marking, Rows, Statement, Transaction
from langgraph_aurora_store.sql.store_tables import WRITE_MARKS

# Writers have 63 bits, so that no two connections share one; the highest is set, so that all are
# sent as the same type and share a prepared statement.
_LOWEST_WRITER = 2**62


class Mark(NamedTuple):
    """A write's own identity, which its repetitions share."""

    writer: int
    number: int
    is_writers_first: bool
    marking: Marking

    @property
    def params(self) -> dict[str, int]:
        """The parameters of a marked statement."""
        return {"mark_writer": self.writer, "mark_number": self.number}


class _Writer:
    __slots__ = ("id", "last_number")

    def __init__(self) -> None:
        self.id = _LOWEST_WRITER + secrets.randbits(62)
        self.last_number = 0


class WriteMarks:
    """Gives each write a mark; for any number of threads and loops.

    A writer is a connection, so that no fork and no restored snapshot of a process shares one:
    neither can use a connection of the process that it was made of.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns
        self._writers: weakref.WeakKeyDictionary[BaseConnection[Any], _Writer] = (
            weakref.WeakKeyDictionary()
        )

    def next(self, connection: BaseConnection[Any], step: Transaction | Autocommit) -> Mark | None:
        """The mark of a write whose first attempt is on this connection; ``None`` without one."""
        if isinstance(step, Autocommit) or step.marking is None:
            return None
        writer = self._writers.get(connection)
        if writer is None:
            writer = self._writers[connection] = _Writer()
        is_first = not writer.last_number
        writer.last_number = max(self._clock_ns(), writer.last_number + 1)
        return Mark(writer.id, writer.last_number, is_first, step.marking)


def marked(transaction: Transaction, mark: Mark) -> Transaction:
    """The transaction with its mark; a writer's first also deletes old marks."""
    first, *others = transaction.statements
    params = {**cast("dict[str, object]", first.params), **mark.params}
    statements = [Statement(first.sql, params), *others]
    if mark.is_writers_first:
        statements.append(Statement(mark.marking.cleanup, mark.params))
    return Transaction(tuple(statements), writes=True, marking=mark.marking)


def is_mark_used(exc: psycopg.Error) -> bool:
    """Whether a marked write was undone because its mark, or a later one, is there already."""
    is_null = isinstance(exc, psycopg.errors.NotNullViolation)
    return is_null and exc.diag.table_name == WRITE_MARKS


def outcome_of(mark: Mark) -> Transaction:
    """Asks whether a marked write was committed; the reply is for `committed_rows`."""
    return Transaction((Statement(mark.marking.outcome, mark.params),))


def committed_rows(transaction: Transaction, mark: Mark, outcome: Rows) -> list[Rows] | None:
    """The reply of a write that an earlier attempt has committed; ``None`` if none has.

    ``outcome`` is the reply to ``Marking.outcome``.
    """
    if not outcome or outcome[0][0] != mark.number:
        return None
    counts = outcome[0][1]
    return [Rows([tuple(counts)] if counts else ()) for _ in transaction.statements]
