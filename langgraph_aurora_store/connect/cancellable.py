"""An asyncio pool that loses nothing when its users or its workers are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import psycopg_pool
from psycopg_pool._acompat import AQueue
from psycopg_pool.pool_async import MaintenanceTask, StopWorker
from typing_extensions import override

from langgraph_aurora_store.connect.connection import AsyncAuroraConnection

# The loop keeps weak references only.
_under_way: set[asyncio.Task[None]] = set()


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Wait for work that goes on when the waiting is cancelled."""
    task = asyncio.ensure_future(work)
    _under_way.add(task)
    task.add_done_callback(_under_way.discard)
    await asyncio.shield(task)


@asynccontextmanager
async def held(
    pool: psycopg_pool.AsyncConnectionPool[Any], timeout_s: float | None = None
) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection of a pool of any kind, which gets it back whatever becomes of the task.

    psycopg_pool 3.3 gives a connection back in steps, and a cancellation between two of them loses
    it: the pool has one less for ever.
    """
    conn = await pool.getconn(timeout_s)
    try:
        async with conn:
            yield conn
    finally:
        await to_the_end(pool.putconn(conn))


class CancellablePool(psycopg_pool.AsyncConnectionPool[AsyncAuroraConnection]):
    """Ends a worker that is cancelled while it connects, and gets every connection back.

    psycopg_pool 3.3 takes the cancellation for an attempt that failed and lets the worker go on:
    ``asyncio.run()`` would wait for it for ever. For the rest see `held`.
    """

    @override
    async def _putconn(self, conn: AsyncAuroraConnection, from_getconn: bool) -> None:
        await to_the_end(super()._putconn(conn, from_getconn))

    @override
    @classmethod
    async def worker(cls, q: AQueue[MaintenanceTask]) -> None:
        """Run the pool's tasks one after another until told to stop, or cancelled."""
        me = asyncio.current_task()
        while not (me and me.cancelling()) and not isinstance(task := await q.get(), StopWorker):
            with suppress(Exception, asyncio.CancelledError):  # told to who waits, and logged
                await task.run()
