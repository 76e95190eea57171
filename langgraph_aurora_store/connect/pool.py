"""Blocking and asyncio pools that say at once why a connection was refused.

psycopg_pool connects in background workers and keeps the reason to itself: its callers see a
timeout, and its workers back off for up to 16 s even when the server is well again. Here a pool
connects when a caller asks. The sequence on a refusal:

1. A worker runs ``_add_connection``; its attempt is the only one (`OnlyAttempt`).
2. `PooledConnection.connect` signs, connects, and tries a refused login once more with fresh
   credentials. It tells `PoolHealth` the reason, which after a transient one sets a pause.
3. psycopg_pool gives the attempt up and calls ``reconnect_failed``, which fails every waiting
   caller with a `ConnectFailure`: at once, or half a second later where an open connection may
   still come free for them.
4. ``getconn`` of each caller raises the reason. Where that is transient, or older than the caller,
   it pauses and asks again instead, until the caller's `AcquireDeadline`; so no caller pauses once
   the cause is mended.
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

from langgraph_aurora_store.connect.acquire_deadline import POOL_ERRORS, AcquireDeadline
from langgraph_aurora_store.connect.cancel_safety import CancellablePool
from langgraph_aurora_store.connect.connection import (
    CHECK_TIMEOUT_S,
    AsyncAuroraConnection,
    AuroraConnection,
    has_pending_input,
    round_trip,
)
from langgraph_aurora_store.connect.connection_attempts import (
    AsyncPooledConnection,
    PooledConnection,
)
from langgraph_aurora_store.connect.connection_factory import ConnectionFactory
from langgraph_aurora_store.connect.pool_health import (
    UNANSWERED_S,
    ConnectFailure,
    OnlyAttempt,
    PoolHealth,
)
from langgraph_aurora_store.connect.pool_settings import PoolSettings

# What psycopg_pool 3.3 has no public hook for. tests/connect/test_pool.py pins it.
#
# | overridden or used of psycopg_pool | because it | without it |
# |---|---|---|
# | `_add_connection` | backs off for one more attempt at least | callers wait long for a reason |
# | `_add_connection` | replaces a dead connection that no caller needs | spares are opened |
# | `_get_ready_connection` | looks for `closed` before it locks only | a late caller times out |
# | `_putconn` (asyncio) | loses a connection cancelled between its steps | the pool shrinks |
# | `worker` (asyncio) | takes a cancellation for a failure | `asyncio.run` does not end |
# | `_waiting`, `_lock`, `WaitingClient.fail` | fails callers in `close` only | they time out |
# | `_nconns`, `_growing` | has no public count of what is being made | spares are opened |
# | `_sched.enter` | has no public timer | callers are failed too early |

# How long `close` takes at most by default, also where nothing answers.
CLOSE_S = 3.0
# How long callers wait for another connection of the pool after one more was refused.
_GRACE_S = 0.5


class AuroraPool(psycopg_pool.ConnectionPool[AuroraConnection]):
    """A pool of verified, authenticated connections to one Aurora endpoint; not opened when made.

    `getconn` and `connection` raise what refused the connection (`ConnectError`, `ClusterError`,
    `CredentialsError`), or `PoolTimeoutError` with the last error in it. Thread-safe; the one who
    opens it closes it.
    """

    def __init__(self, factory: ConnectionFactory, settings: PoolSettings) -> None:
        self.health = PoolHealth(factory.name, settings)
        me = weakref.ref(self)  # a pool that referred to itself would outlive its last user

        def check(connection: AuroraConnection) -> None:
            if pool := me():
                pool.ping(connection)

        super().__init__(
            kwargs={"factory": factory, "settings": settings, "health": self.health},
            connection_class=PooledConnection,
            check=check,
            open=False,
            **_arguments(factory, settings),
        )

    @override
    def getconn(self, timeout: float | None = None) -> AuroraConnection:
        deadline = AcquireDeadline(self.timeout if timeout is None else timeout)
        while True:
            if backoff_s := deadline.backoff_s(self.health):
                time.sleep(backoff_s)
            try:
                return super().getconn(deadline.left_s())
            except ConnectFailure as refused:
                if deadline.began_after(refused.begun_at):
                    continue  # what refused an earlier caller may have been mended since
                refusal = refused.error
                if self.health.is_retryable(refusal):
                    continue
            except POOL_ERRORS as error:
                refusal = deadline.ended_by(error, self.health, **_limits(self))
            raise refusal  # here, so that its cause is what refused, and not psycopg_pool's error

    @override
    def putconn(self, conn: AuroraConnection) -> None:
        self.health.returned(conn)
        super().putconn(conn)

    def heal(self, conn: AuroraConnection) -> None:
        """Close a connection whose failure the older ones share, and let go of those."""
        error, conn.statement_error = conn.statement_error, None
        if not self.health.is_shared(error, conn):
            return
        conn.close()
        if self.health.should_renew(conn):
            self.drain()

    @override
    def close(self, timeout: float = CLOSE_S) -> None:
        """Close within ``timeout`` seconds in all, whatever its workers wait for."""
        super().close(timeout / (self.num_workers + 1))  # psycopg_pool waits for each thread

    @override
    def wait(self, timeout: float = 30.0) -> None:
        """Wait for the first connection, not for ``min_size``; raises what `getconn` raises."""
        self.putconn(self.getconn(timeout))

    def ping(self, conn: AuroraConnection) -> None:
        """Check a connection that idled for long or has input; if dead, renew those that idled too.

        Raises:
            psycopg.Error: it is dead.
        """
        if not (self.health.needs_check(conn) or has_pending_input(conn)):
            return
        try:
            conn.wait(round_trip(conn), CHECK_TIMEOUT_S)
        except psycopg.Error:
            conn.close()
            # Found one by one, its dead neighbours would cost the caller seconds of pauses.
            if self.health.should_renew(conn):
                self.drain()
            raise

    @override
    def reconnect_failed(self) -> None:
        """Fail the waiting callers; psycopg_pool calls this when it has given a connection up."""
        self._fail_waiting()
        super().reconnect_failed()

    @override
    def _add_connection(self, attempt: AttemptWithBackoff | None, growing: bool = False) -> None:
        if not growing:
            with self._lock:
                if _is_spare(self):
                    self._nconns -= 1
                    return

        health = self.health  # the timer keeps what it calls

        def note() -> None:
            health.note_unanswered()

        self._sched.enter(UNANSWERED_S, note)
        super()._add_connection(OnlyAttempt(), growing)

    @override
    def _get_ready_connection(self, timeout: float | None) -> AuroraConnection | None:
        if self.closed:
            raise psycopg_pool.PoolClosed(self.name)
        return super()._get_ready_connection(timeout)

    def _fail_waiting(self) -> None:
        last_error = self.health.last_error
        if last_error is None:
            return
        with self._lock:
            failing = set(self._waiting)

        def fail() -> None:
            with self._lock:
                self._waiting = deque(w for w in self._waiting if w not in failing)
            for position in failing:
                position.fail(ConnectFailure(last_error, begun_at=self.health.last_error_begun_at))

        if self.health.is_alive():
            self._sched.enter(_GRACE_S, fail)
        else:
            fail()


class AsyncAuroraPool(CancellablePool):
    """The asyncio twin of `AuroraPool`, bound to the event loop it is opened in."""

    def __init__(self, factory: ConnectionFactory, settings: PoolSettings) -> None:
        self.health = PoolHealth(factory.name, settings)
        me = weakref.ref(self)

        async def check(connection: AsyncAuroraConnection) -> None:
            if pool := me():
                await pool.ping(connection)

        super().__init__(
            kwargs={"factory": factory, "settings": settings, "health": self.health},
            connection_class=AsyncPooledConnection,
            check=check,
            open=False,
            **_arguments(factory, settings),
        )

    @override
    async def getconn(self, timeout: float | None = None) -> AsyncAuroraConnection:
        deadline = AcquireDeadline(self.timeout if timeout is None else timeout)
        while True:
            if backoff_s := deadline.backoff_s(self.health):
                await asyncio.sleep(backoff_s)
            try:
                return await super().getconn(deadline.left_s())
            except ConnectFailure as refused:
                if deadline.began_after(refused.begun_at):
                    continue  # what refused an earlier caller may have been mended since
                refusal = refused.error
                if self.health.is_retryable(refusal):
                    continue
            except POOL_ERRORS as error:
                refusal = deadline.ended_by(error, self.health, **_limits(self))
            raise refusal  # here, so that its cause is what refused, and not psycopg_pool's error

    @override
    async def putconn(self, conn: AsyncAuroraConnection) -> None:
        self.health.returned(conn)
        await super().putconn(conn)

    async def heal(self, conn: AsyncAuroraConnection) -> None:
        """Close a connection whose failure the older ones share, and let go of those."""
        error, conn.statement_error = conn.statement_error, None
        if not self.health.is_shared(error, conn):
            return
        await conn.close()
        if self.health.should_renew(conn):
            await self.drain()

    @override
    async def close(self, timeout: float = CLOSE_S) -> None:
        """Close within ``timeout`` seconds in all, whatever its workers wait for."""
        await super().close(timeout)

    @override
    async def wait(self, timeout: float = 30.0) -> None:
        """Wait for the first connection, not for ``min_size``; raises what `getconn` raises."""
        await self.putconn(await self.getconn(timeout))

    async def ping(self, conn: AsyncAuroraConnection) -> None:
        """Check a connection that idled for long or has input; if dead, renew those that idled too.

        Raises:
            psycopg.Error: it is dead.
        """
        if not (self.health.needs_check(conn) or has_pending_input(conn)):
            return
        try:
            await conn.wait(round_trip(conn), CHECK_TIMEOUT_S)
        except psycopg.Error:
            await conn.close()
            if self.health.should_renew(conn):
                await self.drain()
            raise

    @override
    async def reconnect_failed(self) -> None:
        """Fail the waiting callers; psycopg_pool calls this when it has given a connection up."""
        await self._fail_waiting()
        await super().reconnect_failed()

    @override
    async def _add_connection(
        self, attempt: AttemptWithBackoff | None, growing: bool = False
    ) -> None:
        if not growing:
            async with self._lock:
                if _is_spare(self):
                    self._nconns -= 1
                    return

        health = self.health  # the timer keeps what it calls

        async def note() -> None:
            health.note_unanswered()

        await self._sched.enter(UNANSWERED_S, note)
        await super()._add_connection(OnlyAttempt(), growing)

    @override
    async def _get_ready_connection(self, timeout: float | None) -> AsyncAuroraConnection | None:
        if self.closed:
            raise psycopg_pool.PoolClosed(self.name)
        return await super()._get_ready_connection(timeout)

    async def _fail_waiting(self) -> None:
        last_error = self.health.last_error
        if last_error is None:
            return
        async with self._lock:
            failing = set(self._waiting)

        async def fail() -> None:
            async with self._lock:
                self._waiting = deque(w for w in self._waiting if w not in failing)
            for position in failing:
                await position.fail(
                    ConnectFailure(last_error, begun_at=self.health.last_error_begun_at)
                )

        if self.health.is_alive():
            await self._sched.enter(_GRACE_S, fail)
        else:
            await fail()


def _arguments(factory: ConnectionFactory, settings: PoolSettings) -> dict[str, Any]:
    logging.getLogger("psycopg.pool").addFilter(_is_no_repetition)  # a second time does nothing
    return {
        "name": _PoolName(factory.name),
        "min_size": settings.min_size,
        "max_size": settings.max_size,
        "timeout": settings.timeout_s,
        "max_waiting": settings.max_waiting,
        "max_idle": settings.max_idle_s,
        "max_lifetime": settings.max_lifetime_s,
        "num_workers": min(3, settings.max_size),
    }


def _is_spare(pool: AuroraPool | AsyncAuroraPool) -> bool:
    """Whether no caller needs a connection in the place of a dead one.

    psycopg_pool replaces each, and also grows for the caller that found it dead.
    """
    is_served = pool._growing or not pool._waiting  # noqa: SLF001 - as the methods above
    return pool._nconns > pool.min_size and is_served  # noqa: SLF001


def _limits(pool: AuroraPool | AsyncAuroraPool) -> dict[str, int]:
    return {
        "size": pool.get_stats()["pool_size"],
        "max_size": pool.max_size,
        "max_waiting": pool.max_waiting,
    }


class _PoolName(str):
    """The name of an Aurora pool, which tells its lines in the log of psycopg_pool from others."""

    __slots__ = ()


def _is_no_repetition(record: logging.LogRecord) -> bool:
    # psycopg_pool repeats with every attempt the error that `PoolHealth` warns of once.
    is_ours = isinstance(record.args, tuple) and any(isinstance(a, _PoolName) for a in record.args)
    return not (is_ours and record.msg.startswith(("error connecting", "reconnection attempt")))
