"""Blocking and asyncio pools that sign for each connection and say at once why one was refused.

psycopg_pool connects in background workers and keeps the reason to itself: a caller sees a timeout,
and the workers back off for up to 16 s even when the server is well again. These pools try when
somebody asks, once more after a refusal, and hand every waiting caller the reason; the caller asks
again while the error is transient and its time lasts. So no caller backs off once a refusal is
mended.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections import deque
from typing import Any

import psycopg
import psycopg_pool
from psycopg_pool.base import AttemptWithBackoff
from typing_extensions import override

from langgraph_aurora_store.connect.cancellation import CancellablePool
from langgraph_aurora_store.connect.connection import (
    AsyncAuroraConnection,
    AuroraConnection,
    has_pending_input,
)
from langgraph_aurora_store.connect.conninfo import ConnectionFactory
from langgraph_aurora_store.connect.pool_health import (
    POOL_ERRORS,
    AcquireDeadline,
    ConnectFailure,
    OnlyAttempt,
    PoolHealth,
)
from langgraph_aurora_store.connect.pool_settings import PoolSettings
from langgraph_aurora_store.errors import AuthenticationError

logger = logging.getLogger(__name__)

# How long callers wait for another connection of the pool after one more was refused.
_GRACE_S = 0.5


class AuroraPool(psycopg_pool.ConnectionPool[AuroraConnection]):
    """A pool of verified, authenticated connections to one Aurora endpoint; not opened when made.

    `getconn` and `connection` raise what refused the connection (`ConnectError`, `ClusterError`,
    `CredentialsError`), or `PoolTimeoutError` with the last error in it. Thread-safe; whoever
    opens it closes it.
    """

    def __init__(self, factory: ConnectionFactory, settings: PoolSettings) -> None:
        self._factory = factory
        self._health = PoolHealth(factory.name, check_after_idle_s=settings.check_after_idle_s)
        me = weakref.ref(self)  # a pool that referred to itself would outlive its last user
        super().__init__(
            kwargs=lambda: {**settings.parameters(), **factory.parameters()},
            connection_class=AuroraConnection,
            check=lambda connection: pool.ping(connection) if (pool := me()) else None,
            open=False,
            **_arguments(factory, settings),
        )

    @override
    def getconn(self, timeout: float | None = None) -> AuroraConnection:
        patience = AcquireDeadline(self.timeout if timeout is None else timeout)
        while True:
            if backoff_s := patience.backoff_s(self._health):
                time.sleep(backoff_s)
            try:
                return super().getconn(patience.left_s())
            except ConnectFailure as refused:
                if patience.began_after(refused.begun_at):
                    continue  # what refused an earlier caller may have been mended since
                refusal = refused.error
            except POOL_ERRORS as error:
                raise patience.ended_by(error, self._health, **_limits(self)) from None
            if not self._health.is_retryable(refusal):
                raise refusal

    @override
    def putconn(self, conn: AuroraConnection) -> None:
        self._health.returned(conn)
        super().putconn(conn)

    @override
    def wait(self, timeout: float = 30.0) -> None:
        """Wait for the first connection, not for ``min_size``; raises what `getconn` raises."""
        self.putconn(self.getconn(timeout))

    def ping(self, conn: AuroraConnection) -> None:
        """Try a connection that has idled or heard; when dead, renew those that idled with it.

        Raises:
            psycopg.Error: it is dead.
        """
        if not (self._health.is_idle_too_long(conn) or has_pending_input(conn)):
            return
        try:
            # Not check_connection(): psycopg would prepare it first, at a round trip each time.
            conn.execute("", prepare=False)
        except psycopg.Error:
            # Found one by one, its dead neighbours would cost the caller seconds of pauses.
            if self._health.should_renew(conn):
                self.drain()
            raise

    @override
    def reconnect_failed(self) -> None:
        """Called by the pool when it has given a connection up; hands out the reason."""
        self._tell_waiting()
        super().reconnect_failed()

    # psycopg_pool 3.3 has no hook that is given the error of an attempt: it is logged, and dropped.
    @override
    def _connect(self, timeout: float | None = None) -> AuroraConnection:
        begun_at = time.monotonic()
        try:
            connection = self._connect_or_again(timeout)
        except Exception as error:
            self._factory.refused(error)
            self._health.failed(error, begun_at=begun_at)
            raise
        self._health.succeeded(connection)
        return connection

    def _connect_or_again(self, within_s: float | None) -> AuroraConnection:
        try:
            return super()._connect(within_s)
        except AuthenticationError as error:
            # A valid token is refused now and then, and a password may have been rotated.
            self._factory.refused(error)
            logger.info("pool %r tries again with fresh credentials: %s", self.name, error)
        return super()._connect(within_s)

    # psycopg_pool 3.3 backs off for at least one further attempt, whatever the settings.
    @override
    def _add_connection(self, attempt: AttemptWithBackoff | None, growing: bool = False) -> None:
        if not growing:
            with self._lock:
                if _is_spare(self):
                    self._nconns -= 1
                    return
        super()._add_connection(OnlyAttempt(), growing)

    # psycopg_pool 3.3 looks whether it is closed before it has its lock only: whoever came in
    # between would wait where nobody is served any more.
    @override
    def _get_ready_connection(self, timeout: float | None) -> AuroraConnection | None:
        if self.closed:
            raise psycopg_pool.PoolClosed(self.name)
        return super()._get_ready_connection(timeout)

    # As `ConnectionPool.close` of psycopg_pool 3.3 does: nothing public fails a waiting caller.
    def _tell_waiting(self) -> None:
        last_error = self._health.last_error
        if last_error is None:
            return
        with self._lock:
            told = set(self._waiting)

        def tell() -> None:
            with self._lock:
                self._waiting = deque(who for who in self._waiting if who not in told)
            for position in told:
                position.fail(ConnectFailure(last_error, begun_at=self._health.last_error_begun_at))

        if self._health.is_alive():
            self._sched.enter(_GRACE_S, tell)
        else:
            tell()


class AsyncAuroraPool(CancellablePool):
    """The asyncio twin of `AuroraPool`: bound to the event loop it is opened in.

    Looking up, refreshing and signing run in a thread, off the loop.
    """

    def __init__(self, factory: ConnectionFactory, settings: PoolSettings) -> None:
        self._factory = factory
        self._health = PoolHealth(factory.name, check_after_idle_s=settings.check_after_idle_s)
        me = weakref.ref(self)

        async def parameters() -> dict[str, Any]:
            return {**settings.parameters(), **await asyncio.to_thread(factory.parameters)}

        async def check(connection: AsyncAuroraConnection) -> None:
            if pool := me():
                await pool.ping(connection)

        super().__init__(
            kwargs=parameters,
            connection_class=AsyncAuroraConnection,
            check=check,
            open=False,
            **_arguments(factory, settings),
        )

    @override
    async def getconn(self, timeout: float | None = None) -> AsyncAuroraConnection:
        patience = AcquireDeadline(self.timeout if timeout is None else timeout)
        while True:
            if backoff_s := patience.backoff_s(self._health):
                await asyncio.sleep(backoff_s)
            try:
                return await super().getconn(patience.left_s())
            except ConnectFailure as refused:
                if patience.began_after(refused.begun_at):
                    continue  # what refused an earlier caller may have been mended since
                refusal = refused.error
            except POOL_ERRORS as error:
                raise patience.ended_by(error, self._health, **_limits(self)) from None
            if not self._health.is_retryable(refusal):
                raise refusal

    @override
    async def putconn(self, conn: AsyncAuroraConnection) -> None:
        self._health.returned(conn)
        await super().putconn(conn)

    @override
    async def wait(self, timeout: float = 30.0) -> None:
        """Wait for the first connection, not for ``min_size``; raises what `getconn` raises."""
        await self.putconn(await self.getconn(timeout))

    async def ping(self, conn: AsyncAuroraConnection) -> None:
        """Try a connection that has idled or heard; when dead, renew those that idled with it.

        Raises:
            psycopg.Error: it is dead.
        """
        if not (self._health.is_idle_too_long(conn) or has_pending_input(conn)):
            return
        try:
            # Not check_connection(): psycopg would prepare it first, at a round trip each time.
            await conn.execute("", prepare=False)
        except psycopg.Error:
            if self._health.should_renew(conn):
                await self.drain()
            raise

    @override
    async def reconnect_failed(self) -> None:
        """Called by the pool when it has given a connection up; hands out the reason."""
        await self._tell_waiting()
        await super().reconnect_failed()

    # As in the blocking twin.
    @override
    async def _connect(self, timeout: float | None = None) -> AsyncAuroraConnection:
        begun_at = time.monotonic()
        try:
            connection = await self._connect_or_again(timeout)
        except Exception as error:
            self._factory.refused(error)
            self._health.failed(error, begun_at=begun_at)
            raise
        self._health.succeeded(connection)
        return connection

    async def _connect_or_again(self, within_s: float | None) -> AsyncAuroraConnection:
        try:
            return await super()._connect(within_s)
        except AuthenticationError as error:
            self._factory.refused(error)
            logger.info("pool %r tries again with fresh credentials: %s", self.name, error)
        return await super()._connect(within_s)

    # As in the blocking twin.
    @override
    async def _add_connection(
        self, attempt: AttemptWithBackoff | None, growing: bool = False
    ) -> None:
        if not growing:
            async with self._lock:
                if _is_spare(self):
                    self._nconns -= 1
                    return
        await super()._add_connection(OnlyAttempt(), growing)

    # As in the blocking twin.
    @override
    async def _get_ready_connection(self, timeout: float | None) -> AsyncAuroraConnection | None:
        if self.closed:
            raise psycopg_pool.PoolClosed(self.name)
        return await super()._get_ready_connection(timeout)

    # As in the blocking twin.
    async def _tell_waiting(self) -> None:
        last_error = self._health.last_error
        if last_error is None:
            return
        async with self._lock:
            told = set(self._waiting)

        async def tell() -> None:
            async with self._lock:
                self._waiting = deque(who for who in self._waiting if who not in told)
            for position in told:
                await position.fail(
                    ConnectFailure(last_error, begun_at=self._health.last_error_begun_at)
                )

        if self._health.is_alive():
            await self._sched.enter(_GRACE_S, tell)
        else:
            await tell()


def make_pool(factory: ConnectionFactory, settings: PoolSettings) -> AuroraPool:
    """A blocking pool, to be opened and closed by the caller; nothing is contacted yet."""
    return AuroraPool(factory, settings)


def make_async_pool(factory: ConnectionFactory, settings: PoolSettings) -> AsyncAuroraPool:
    """An asyncio pool, to be opened and closed in one event loop; nothing is contacted yet."""
    return AsyncAuroraPool(factory, settings)


def _arguments(factory: ConnectionFactory, settings: PoolSettings) -> dict[str, Any]:
    return {
        "name": PoolName.noted(factory.name),
        "min_size": settings.min_size,
        "max_size": settings.max_size,
        "timeout": settings.timeout_s,
        "max_waiting": settings.max_waiting,
        "max_idle": settings.max_idle_s,
        "max_lifetime": settings.max_lifetime_s,
        "num_workers": min(3, settings.max_size),
    }


def _is_spare(pool: AuroraPool | AsyncAuroraPool) -> bool:
    """Whether nobody needs a connection in the place of a dead one.

    psycopg_pool replaces each, and grows for the caller who found it dead as well.
    """
    is_served = pool._growing or not pool._waiting  # noqa: SLF001 - as the methods above
    return pool._nconns > pool.min_size and is_served  # noqa: SLF001


def _limits(pool: AuroraPool | AsyncAuroraPool) -> dict[str, int]:
    return {
        "size": pool.get_stats()["pool_size"],
        "max_size": pool.max_size,
        "max_waiting": pool.max_waiting,
    }


class PoolName(str):
    """A pool's name, by which its lines in the log of psycopg_pool are told from others'."""

    __slots__ = ()

    @classmethod
    def noted(cls, name: str) -> PoolName:
        """The name, for a pool whose repeated lines are left out from now on."""
        logging.getLogger("psycopg.pool").addFilter(_is_news)  # adding it again does nothing
        return cls(name)


def _is_news(record: logging.LogRecord) -> bool:
    # psycopg_pool would repeat with every attempt the error that `PoolHealth` warns of.
    is_ours = isinstance(record.args, tuple) and any(isinstance(a, PoolName) for a in record.args)
    return not (is_ours and record.msg.startswith(("error connecting", "reconnection attempt")))
