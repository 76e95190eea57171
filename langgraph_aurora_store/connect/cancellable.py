"""An asyncio pool whose workers can be cancelled, so that an event loop can end with it open."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import psycopg_pool
from psycopg_pool._acompat import AQueue
from psycopg_pool.pool_async import MaintenanceTask, StopWorker
from typing_extensions import override

from langgraph_aurora_store.connect.connection import AsyncAuroraConnection


class CancellablePool(psycopg_pool.AsyncConnectionPool[AsyncAuroraConnection]):
    """Ends a worker that is cancelled while it connects.

    psycopg_pool 3.3 takes the cancellation for an attempt that failed and lets the worker go on:
    ``asyncio.run()`` would wait for it for ever.
    """

    @override
    @classmethod
    async def worker(cls, q: AQueue[MaintenanceTask]) -> None:
        """Run the pool's tasks one after another until told to stop, or cancelled."""
        me = asyncio.current_task()
        while not (me and me.cancelling()) and not isinstance(task := await q.get(), StopWorker):
            with suppress(Exception, asyncio.CancelledError):  # told to who waits, and logged
                await task.run()
