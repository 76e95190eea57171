"""Pools that a store makes for itself: when it is first used, and as often as it has to."""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager

from langgraph_aurora_store.connect.connection import AsyncAuroraConnection, AuroraConnection
from langgraph_aurora_store.connect.conninfo import ConnectionFactory
from langgraph_aurora_store.connect.pool import (
    AsyncAuroraPool,
    AuroraPool,
    make_async_pool,
    make_pool,
)
from langgraph_aurora_store.connect.pool_settings import LONGEST_WAIT_S, PoolSettings
from langgraph_aurora_store.errors import PoolClosedError
from langgraph_aurora_store.fork_safety import ForkSafeLock
from langgraph_aurora_store.validation import within

# Pools of the process that this one was forked from. psycopg_pool would end one that is collected
# by its threads, which are not here, and under locks that one of them may have held.
_inherited: list[object] = []


class LazyPool:
    """A pool made when it is first asked for, again after `close`, and again in a forked child."""

    def __init__(self, factory: ConnectionFactory, settings: PoolSettings) -> None:
        self._factory = factory
        self._settings = settings
        self._lock = ForkSafeLock()
        self._pool: AuroraPool | None = None
        self._made_by = 0

    def get(self) -> AuroraPool:
        """The open pool of this process."""
        with self._lock:
            if self._pool is None or self._made_by != os.getpid():
                if self._pool is not None:
                    _inherited.append(self._pool)
                self._pool = make_pool(self._factory, self._settings)
                self._pool.open()
                self._made_by = os.getpid()
            return self._pool

    @contextmanager
    def connection(self, timeout_s: float | None = None) -> Iterator[AuroraConnection]:
        """A connection; of the next pool, where this one is closed before its caller has one.

        Waited for as long as the settings say, or for ``timeout_s`` seconds.
        """
        deadline = _deadline(self._settings, timeout_s)
        with ExitStack() as stack:
            while True:
                try:
                    pooled = self.get().connection(deadline - time.monotonic())
                    connection = stack.enter_context(pooled)
                    break
                except PoolClosedError:
                    if time.monotonic() >= deadline:
                        raise
            yield connection

    def close(self) -> None:
        """Close the pool, if there is one and it is this process's."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and self._made_by != os.getpid():
            _inherited.append(pool)
        elif pool is not None:
            pool.close()


class AsyncLazyPool:
    """A pool for each event loop, made when one first asks for it, and again after `close`."""

    def __init__(self, factory: ConnectionFactory, settings: PoolSettings) -> None:
        self._factory = factory
        self._settings = settings
        self.max_size, self.max_waiting = settings.max_size, settings.max_waiting
        self.timeout = settings.timeout_s
        self._lock = ForkSafeLock()
        self._pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncAuroraPool] = (
            weakref.WeakKeyDictionary()
        )

    async def get(self) -> AsyncAuroraPool:
        """The open pool of the running loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if pool := self._pools.get(loop):
                return pool
            self._abandon_closed()
            pool = self._pools[loop] = make_async_pool(self._factory, self._settings)
        await pool.open()
        return pool

    @asynccontextmanager
    async def connection(
        self, timeout_s: float | None = None
    ) -> AsyncIterator[AsyncAuroraConnection]:
        """As in the blocking twin."""
        deadline = _deadline(self._settings, timeout_s)
        async with AsyncExitStack() as stack:
            while True:
                try:
                    pooled = (await self.get()).connection(deadline - time.monotonic())
                    connection = await stack.enter_async_context(pooled)
                    break
                except PoolClosedError:
                    if time.monotonic() >= deadline:
                        raise
            yield connection

    async def close(self) -> None:
        """Close the running loop's pool, if there is one."""
        with self._lock:
            pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.close()

    def _abandon_closed(self) -> None:
        """Close the sockets of pools whose loop has ended: nothing can be awaited there again."""
        for loop in [loop for loop in self._pools if loop.is_closed()]:
            # psycopg_pool 3.3 has nothing public that closes without a loop.
            for connection in self._pools.pop(loop)._pool:  # noqa: SLF001
                connection.pgconn.finish()


def _deadline(settings: PoolSettings, timeout_s: float | None) -> float:
    """When a caller has waited for long enough, by the monotonic clock."""
    if timeout_s is None:
        return time.monotonic() + settings.timeout_s
    wait_s: float = within("timeout_s", timeout_s, 0, LONGEST_WAIT_S, whole=False)
    return time.monotonic() + wait_s
