"""The pools of a store: made on first use, after `close`, in a forked child, for each loop."""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager

import psycopg

from langgraph_aurora_store.connect.connection import (
    AsyncAuroraConnection,
    AuroraConnection,
    note_statement_error,
)
from langgraph_aurora_store.connect.connection_factory import ConnectionFactory
from langgraph_aurora_store.connect.pool import (
    AsyncAuroraPool,
    AuroraPool,
)
from langgraph_aurora_store.connect.pool_settings import LONGEST_WAIT_S, PoolSettings
from langgraph_aurora_store.errors import PoolClosedError
from langgraph_aurora_store.fork_safety import ForkSafeLock
from langgraph_aurora_store.validation import within

# Pools of the parent process, never collected: psycopg_pool would stop one by its threads, which a
# fork leaves behind, and under locks that one of them may have held.
_inherited: list[object] = []


class LazyPool:
    """A pool made when it is first asked for, again after `close`, and again in a forked child."""

    def __init__(self, factory: ConnectionFactory, settings: PoolSettings) -> None:
        self._factory = factory
        self._settings = settings
        self.reader = factory.reader
        self._lock = ForkSafeLock()
        self._pool: AuroraPool | None = None
        self._made_by = 0

    def get(self) -> AuroraPool:
        """The open pool of this process."""
        with self._lock:
            if self._pool is None or self._made_by != os.getpid():
                if self._pool is not None:
                    _inherited.append(self._pool)
                self._pool = AuroraPool(self._factory, self._settings)
                self._pool.open()
                self._made_by = os.getpid()
            return self._pool

    @contextmanager
    def connection(self, timeout_s: float | None = None) -> Iterator[AuroraConnection]:
        """A connection, from a new pool if this one is closed while its caller waits.

        It is waited for as long as the settings say, or for ``timeout_s`` seconds.
        """
        deadline = _deadline(self._settings, timeout_s)
        with ExitStack() as stack:
            while True:
                try:
                    pool = self.get()
                    pooled = pool.connection(deadline - time.monotonic())
                    connection = stack.enter_context(pooled)
                    break
                except PoolClosedError:
                    if time.monotonic() >= deadline:
                        raise
            try:
                yield connection
            except psycopg.Error as exc:
                note_statement_error(connection, exc)
                raise
            finally:
                pool.heal(connection)

    def close(self) -> None:
        """Close this process's pool, if there is one."""
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
        self.reader = factory.reader
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
            pool = self._pools[loop] = AsyncAuroraPool(self._factory, self._settings)
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
                    pool = await self.get()
                    pooled = pool.connection(deadline - time.monotonic())
                    connection = await stack.enter_async_context(pooled)
                    break
                except PoolClosedError:
                    if time.monotonic() >= deadline:
                        raise
            try:
                yield connection
            except psycopg.Error as exc:
                note_statement_error(connection, exc)
                raise
            finally:
                await pool.heal(connection)

    async def close(self) -> None:
        """Close the running loop's pool, if there is one."""
        with self._lock:
            pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.close()

    def _abandon_closed(self) -> None:
        """Let go of pools whose loop has ended, as nothing can be awaited there again."""
        for loop in [loop for loop in self._pools if loop.is_closed()]:
            for connection in list(self._pools.pop(loop).health.connections):
                connection.pgconn.finish()


def _deadline(settings: PoolSettings, timeout_s: float | None) -> float:
    """The end of a caller's wait, by the monotonic clock."""
    if timeout_s is None:
        return time.monotonic() + settings.timeout_s
    wait_s: float = within("timeout_s", timeout_s, 0, LONGEST_WAIT_S, whole=False)
    return time.monotonic() + wait_s
