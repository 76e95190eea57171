"""Connections of asyncio programs that are not lost when their users are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, TypeVar

import psycopg
import psycopg_pool
from psycopg.pq import TransactionStatus
from psycopg_pool._acompat import AQueue
from psycopg_pool.pool_async import MaintenanceTask, StopWorker
from typing_extensions import override

from langgraph_aurora_store.connect.connection import AsyncAuroraConnection

T = TypeVar("T")
IDLE, INERROR = TransactionStatus.IDLE, TransactionStatus.INERROR

# How long the server may take to end a statement, twice: to hear of it, and to do it.
_CANCEL_S = 5.0

# The loop keeps weak references only.
_under_way: set[asyncio.Task[None]] = set()


async def finish_uninterrupted(work: Coroutine[Any, Any, None]) -> None:
    """Wait for work that goes on when the waiting is cancelled."""
    task = asyncio.ensure_future(work)
    _under_way.add(task)
    task.add_done_callback(_under_way.discard)
    await asyncio.shield(task)


async def run_shielded(
    connect: Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]],
    work: Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]],
) -> T:
    """The result of work on a connection that there is only one of; it outlives a cancellation.

    psycopg 3.3 closes a connection whose wait is cancelled while the server reports an error. So
    the server is asked to end the statement, and its answer is waited for.
    """
    used: list[psycopg.AsyncConnection[Any]] = []
    asked = asyncio.Event()  # whether nothing that could end a statement is under way
    asked.set()

    async def connected() -> T:
        async with connect() as conn:
            used.append(conn)
            was_idle = conn.info.transaction_status is IDLE
            try:
                return await work(conn)
            finally:
                # Else what ends could be the next user's statement, or was the end of this one's
                # transaction.
                await asked.wait()
                if was_idle and conn.info.transaction_status is INERROR:
                    await conn.rollback()

    async def ended() -> None:
        if used and not task.done():
            asked.clear()
            with suppress(psycopg.Error):
                await used[0].cancel_safe(timeout=_CANCEL_S)
            asked.set()
            await asyncio.wait({task}, timeout=_CANCEL_S)
        task.cancel()
        await asyncio.wait({task})

    task = asyncio.ensure_future(connected())
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await finish_uninterrupted(ended())
        raise


class CancellablePool(psycopg_pool.AsyncConnectionPool[AsyncAuroraConnection]):
    """Ends a worker that is cancelled while it connects, and gets every connection back.

    psycopg_pool 3.3 takes the cancellation for an attempt that failed and lets the worker go on:
    ``asyncio.run()`` would wait for it for ever. For the rest see `plain_pool`.
    """

    @override
    async def _putconn(self, conn: AsyncAuroraConnection, from_getconn: bool) -> None:
        await finish_uninterrupted(super()._putconn(conn, from_getconn))

    @override
    @classmethod
    async def worker(cls, q: AQueue[MaintenanceTask]) -> None:
        """Run the pool's tasks one after another until told to stop, or cancelled."""
        me = asyncio.current_task()
        while not (me and me.cancelling()) and not isinstance(task := await q.get(), StopWorker):
            with suppress(Exception, asyncio.CancelledError):  # told to who waits, and logged
                await task.run()
