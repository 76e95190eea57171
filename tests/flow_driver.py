"""The smallest blocking driver of the SQL flows, for tests that need no store around them."""

import time
from typing import Any, TypeVar

import psycopg

from langgraph_aurora_store.sql.steps import (
    Conversation,
    Execute,
    Pause,
    Rows,
    Run,
    Statement,
    Step,
)

T = TypeVar("T")


def drive(flow: Conversation[T], conn: psycopg.Connection[Any]) -> T:
    """Run a flow to its end on one connection in autocommit mode."""
    try:
        step = next(flow)
        while True:
            try:
                reply = perform(step, conn)
            except BaseException as exc:
                step = flow.throw(exc)
            else:
                step = flow.send(reply)
    except StopIteration as stop:
        return stop.value


def perform(step: Step, conn: psycopg.Connection[Any]) -> Any:
    """Do what one step asks, and return its reply."""
    match step:
        case Run(statements):
            with conn.pipeline(), conn.transaction():
                cursors = [_execute(conn, statement) for statement in statements]
            return [_rows(cursor) for cursor in cursors]
        case Execute(statement):
            return _rows(_execute(conn, statement))
        case Pause(seconds):
            return time.sleep(seconds)
    raise NotImplementedError(step)


def _execute(conn: psycopg.Connection[Any], statement: Statement) -> psycopg.Cursor[Any]:
    return conn.cursor(row_factory=psycopg.rows.tuple_row).execute(*statement)


def _rows(cursor: psycopg.Cursor[Any]) -> Rows:
    return Rows(cursor.fetchall() if cursor.description else (), max(cursor.rowcount, 0))
