"""Half of an asyncio pool, so that the other half is left to others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import psycopg

from langgraph_aurora_store.errors import PoolFullError, PoolTimeoutError


class Pool(Protocol):
    """What `Half` asks of a pool, by psycopg_pool's names; ``timeout`` is in seconds."""

    timeout: float
    max_waiting: int

    @property
    def max_size(self) -> int:
        """How many connections there may be."""


class Half:
    """Lends connections of a pool, half of them at a time; for one event loop.

    What holds connections for long, such as writes that wait for a row which somebody else has
    locked, then leaves some to what does not. A caller waits in all as long as the pool says.
    """

    def __init__(
        self,
        pool: Pool,
        connection: Callable[..., AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]],
    ) -> None:
        self.size = max(pool.max_size // 2, 1)
        self._pool = pool
        self._connection = connection
        self._turns = asyncio.Semaphore(self.size)
        self._waiting = 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """One of them, as soon as there is one.

        Raises:
            PoolTimeoutError: there was none in the pool's ``timeout``.
            PoolFullError: as many callers wait as the pool's ``max_waiting``.
            ConnectError: the connection was refused.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._pool.timeout
        await self._turn(deadline)
        try:
            async with self._connection(timeout_s=max(deadline - loop.time(), 0)) as conn:
                yield conn
        finally:
            self._turns.release()

    async def _turn(self, deadline: float) -> None:
        if self._turns.locked() and 0 < self._pool.max_waiting <= self._waiting:
            raise PoolFullError(
                f"{self._waiting} callers wait already to write; ask again later, or raise"
                f" max_waiting={self._pool.max_waiting} or max_size={self._pool.max_size}"
            )
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._turns.acquire()
        except TimeoutError:
            raise PoolTimeoutError(
                f"no connection to write within {self._pool.timeout:.2f} s: other writes held"
                f" {self.size} of the pool's {self._pool.max_size}, the part for writes, all the"
                " time; see in pg_stat_activity what they wait for, or raise max_size"
            ) from None
        finally:
            self._waiting -= 1
