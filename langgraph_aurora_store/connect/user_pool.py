"""Connections of a psycopg_pool that a user made: none that the server has closed is handed out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from langgraph_aurora_store.connect.cancel_safety import finish_uninterrupted
from langgraph_aurora_store.connect.connection import has_pending_input


@contextmanager
def borrowed(
    pool: ConnectionPool[Any], timeout_s: float | None = None
) -> Iterator[psycopg.Connection[Any]]:
    """A live connection of a pool, waited for as long as the pool says or ``timeout_s`` seconds."""
    conn = _live(pool, pool.timeout if timeout_s is None else timeout_s)
    try:
        with conn:
            yield conn
    finally:
        pool.putconn(conn)


def _live(pool: ConnectionPool[Any], timeout_s: float) -> psycopg.Connection[Any]:
    deadline = time.monotonic() + timeout_s
    while True:
        conn: psycopg.Connection[Any] = pool.getconn(max(deadline - time.monotonic(), 0))
        try:
            if has_pending_input(conn):
                pool.check_connection(conn)
        except psycopg.Error:
            pool.putconn(conn)  # closed, so the pool replaces it
        else:
            return conn


@asynccontextmanager
async def aborrowed(
    pool: AsyncConnectionPool[Any], timeout_s: float | None = None
) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """The asyncio twin of `borrowed`; the pool gets its connection back if the task is cancelled.

    psycopg_pool 3.3 takes a connection back in steps, and a cancellation between two of them loses
    it: the pool has one less for ever.
    """
    conn = await _alive(pool, pool.timeout if timeout_s is None else timeout_s)
    try:
        async with conn:
            yield conn
    finally:
        await finish_uninterrupted(pool.putconn(conn))


async def _alive(pool: AsyncConnectionPool[Any], timeout_s: float) -> psycopg.AsyncConnection[Any]:
    deadline = time.monotonic() + timeout_s
    while True:
        conn: psycopg.AsyncConnection[Any] = await pool.getconn(max(deadline - time.monotonic(), 0))
        try:
            if has_pending_input(conn):
                await pool.check_connection(conn)
        except psycopg.Error:
            await finish_uninterrupted(pool.putconn(conn))  # closed, so the pool replaces it
        except BaseException:
            await finish_uninterrupted(pool.putconn(conn))
            raise
        else:
            return conn
