"""A bound on the connections of an asyncio pool that write at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Protocol, TypeAlias

from langgraph_aurora_store.connect.connection import AsyncConn, AsyncConnect
from langgraph_aurora_store.errors import PoolFullError, PoolTimeoutError

ConnectWithin: TypeAlias = Callable[..., AbstractAsyncContextManager[AsyncConn]]

# The size assumed of a pool without a bound, as psycopg_pool's null pools may be.
_UNBOUNDED = 100


class Pool(Protocol):
    """What `WriteLimiter` asks of a pool, by psycopg_pool's names; ``timeout`` is in seconds."""

    timeout: float
    max_waiting: int

    @property
    def max_size(self) -> int:
        """How many connections there may be; 0 for any number."""


class WriteLimiter:
    """Limits writes to half of a pool's connections; for one event loop.

    Writes that wait for a row which another session has locked then leave connections to reads. A
    caller waits for a slot and a connection as long as the pool's ``timeout`` in all.
    """

    def __init__(self, pool: Pool, connect: ConnectWithin) -> None:
        self.size = max((pool.max_size or _UNBOUNDED) // 2, 1)
        self.timeout_s = pool.timeout
        self._pool = pool
        self._connect = connect
        self._slots = asyncio.Semaphore(self.size)
        self._waiting = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[AsyncConnect]:
        """Wait for a slot; yields how to connect in it, within the time that is left.

        Raises:
            PoolTimeoutError: no slot came free within the pool's ``timeout``.
            PoolFullError: as many callers wait as the pool's ``max_waiting``.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout_s
        await self._acquire(deadline)
        try:
            yield partial(self._connect, timeout_s=max(deadline - loop.time(), 0))
        finally:
            self._slots.release()

    async def _acquire(self, deadline: float) -> None:
        if self._slots.locked() and 0 < self._pool.max_waiting <= self._waiting:
            raise PoolFullError(
                f"{self._waiting} callers wait already to write; ask again later, or raise"
                f" max_waiting={self._pool.max_waiting} or max_size={self._pool.max_size}"
            )
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
        except TimeoutError:
            raise PoolTimeoutError(
                f"no connection to write within {self.timeout_s:.2f} s: other writes held all"
                f" {self.size} that may write at a time, half of the pool; see in pg_stat_activity"
                " what they wait for, or raise max_size"
            ) from None
        finally:
            self._waiting -= 1
