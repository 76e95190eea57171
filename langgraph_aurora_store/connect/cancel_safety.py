"""Connections of asyncio programs that are not lost when their users are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
import psycopg_pool
from psycopg.pq import TransactionStatus
from psycopg_pool._acompat import AQueue
from psycopg_pool.pool_async import MaintenanceTask, StopWorker
from typing_extensions import override

from langgraph_aurora_store.connect.connection import AsyncAuroraConnection, AsyncConn, AsyncConnect

T = TypeVar("T")
IDLE, INERROR = TransactionStatus.IDLE, TransactionStatus.INERROR

# How long the server may take to hear of a cancellation, and again to end the statement.
_CANCEL_S = 5.0

# The loop keeps weak references only.
_under_way: set[asyncio.Task[None]] = set()


async def finish_uninterrupted(work: Coroutine[Any, Any, None]) -> None:
    """Wait for work, which goes on when the waiting is cancelled."""
    task = asyncio.ensure_future(work)
    _under_way.add(task)
    task.add_done_callback(_under_way.discard)
    await asyncio.shield(task)


async def run_shielded(
    connect: AsyncConnect,
    work: Callable[[AsyncConn], Awaitable[T]],
) -> T:
    """Run work on the only connection of a store, so that a cancellation does not close it.

    psycopg 3.3 closes a connection whose wait is cancelled while the server reports an error. This
    asks the server to end the statement instead, and waits for its answer.
    """
    used: list[AsyncConn] = []
    no_cancel_pending = asyncio.Event()
    no_cancel_pending.set()

    async def run() -> T:
        async with connect() as conn:
            used.append(conn)
            was_idle = conn.info.transaction_status is IDLE
            try:
                return await work(conn)
            finally:
                # Wait, or the request could end the next user's statement. It may also have ended
                # the one that would have ended the transaction.
                await no_cancel_pending.wait()
                if was_idle and conn.info.transaction_status is INERROR:
                    await conn.rollback()

    async def end() -> None:
        if used and not task.done():
            no_cancel_pending.clear()
            with suppress(psycopg.Error):
                await used[0].cancel_safe(timeout=_CANCEL_S)
            no_cancel_pending.set()
            await asyncio.wait({task}, timeout=_CANCEL_S)
        task.cancel()
        await asyncio.wait({task})

    task = asyncio.ensure_future(run())
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await finish_uninterrupted(end())
        raise


def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


class CancellablePool(psycopg_pool.AsyncConnectionPool[AsyncAuroraConnection]):
    """An asyncio pool whose workers end when cancelled, and which loses no connection to it.

    psycopg_pool 3.3 takes the cancellation for an attempt that failed, so ``asyncio.run()`` would
    wait for the worker for ever. It also takes a connection back in steps; see `user_pool`.
    """

    def __del__(self) -> None:
        # psycopg_pool 3.3 leaves the tasks of a collected asyncio pool to its loop.
        if not getattr(self, "_closed", True):
            tasks = [*self._workers, *([self._sched_runner] if self._sched_runner else [])]
            with suppress(RuntimeError):  # the loop is closed, and has ended them
                tasks[0].get_loop().call_soon_threadsafe(_cancel, tasks)

    @override
    async def _putconn(self, conn: AsyncAuroraConnection, from_getconn: bool) -> None:
        await finish_uninterrupted(super()._putconn(conn, from_getconn))

    @override
    @classmethod
    async def worker(cls, q: AQueue[MaintenanceTask]) -> None:
        """Run the pool's tasks one after another until told to stop, or cancelled."""
        me = asyncio.current_task()
        while not (me and me.cancelling()) and not isinstance(task := await q.get(), StopWorker):
            with suppress(Exception, asyncio.CancelledError):  # a caller is told, or it is logged
                await task.run()
