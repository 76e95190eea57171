"""The smallest executor of a flow: one psycopg connection and an embedding function."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import psycopg

from langgraph_aurora_store.sql.flow import (
    Autocommit,
    Embed,
    Flow,
    Rows,
    Sleep,
    Step,
    Transaction,
    Vectors,
)

T = TypeVar("T")
Embedder = Callable[[Sequence[str]], list[list[float]]]


def drive(
    flow: Flow[T],
    connection: psycopg.Connection,
    embed: Embedder | None = None,
    seen: list[Step] | None = None,
) -> T:
    """Perform each step and answer it, until the flow returns; ``seen`` collects the steps."""
    reply: object = None
    error: BaseException | None = None
    while True:
        try:
            step = flow.throw(error) if error else flow.send(reply)
        except StopIteration as stop:
            return stop.value
        if seen is not None:
            seen.append(step)
        try:
            reply, error = _perform(step, connection, embed), None
        except Exception as exc:  # the flow decides what it means
            error = exc


def _perform(step: Step, connection: psycopg.Connection, embed: Embedder | None) -> object:
    if isinstance(step, Embed):
        assert embed is not None
        documents = embed(step.documents) if step.documents else []
        return Vectors(documents, [embed([query])[0] for query in step.queries])
    if isinstance(step, Sleep):
        return time.sleep(step.seconds)
    if isinstance(step, Autocommit):
        return _rows(connection.execute(step.statement.sql, step.statement.params))
    assert isinstance(step, Transaction)
    with connection.pipeline(), connection.transaction():
        cursors = [connection.execute(s.sql, s.params) for s in step.statements]
    return [_rows(cursor) for cursor in cursors]


def _rows(cursor: psycopg.Cursor) -> Rows:
    return Rows(cursor.fetchall() if cursor.description else [], cursor.rowcount)
