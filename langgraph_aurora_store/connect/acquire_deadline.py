"""How long one caller waits for a connection, and the error that ends the wait."""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg_pool

from langgraph_aurora_store.connect.connect_errors import (
    copy_for_raise,
)
from langgraph_aurora_store.connect.pool_health import RESUMING, PoolHealth
from langgraph_aurora_store.errors import (
    AuroraStoreError,
    ClusterError,
    CredentialsError,
    PoolClosedError,
    PoolFullError,
    PoolTimeoutError,
)

# How psycopg_pool ends a wait without a connection.
POOL_ERRORS = (psycopg_pool.PoolTimeout, psycopg_pool.PoolClosed, psycopg_pool.TooManyRequests)


class AcquireDeadline:
    """One caller's wait for a connection, failed attempts and pauses included."""

    def __init__(self, timeout_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._begun_at = clock()
        self._deadline = self._begun_at + timeout_s

    def began_after(self, moment: float) -> bool:
        """Whether the caller came after a moment of the same clock."""
        return self._begun_at > moment

    def left_s(self) -> float:
        """How long the caller may still wait; 0 or less when its time is up."""
        return self._deadline - self._clock()

    def backoff_s(self, health: PoolHealth) -> float:
        """How long to pause now, within the caller's time."""
        return max(min(health.backoff_s(), self.left_s()), 0.0)

    def ended_by(
        self, error: Exception, health: PoolHealth, *, size: int, max_size: int, max_waiting: int
    ) -> AuroraStoreError:
        """The error for a wait that psycopg_pool has ended with one of `POOL_ERRORS`."""
        if isinstance(error, psycopg_pool.PoolClosed):
            return PoolClosedError(
                f"the pool of {health.name!r} is closed; ask the store for a connection, which"
                " opens a new pool"
            )
        if isinstance(error, psycopg_pool.TooManyRequests):
            return PoolFullError(
                f"{max_waiting} callers wait already for the {max_size} connections to"
                f" {health.name!r}; ask again later, or raise max_waiting={max_waiting} or"
                f" max_size={max_size} in PoolSettings"
            )
        return self._timed_out(health, size=size, max_size=max_size)

    def _timed_out(self, health: PoolHealth, *, size: int, max_size: int) -> AuroraStoreError:
        last_error = health.last_error
        if isinstance(last_error, ClusterError | CredentialsError):
            # What a connection is made with failed, and not the pool.
            failure = type(last_error)(f"{last_error}; waited for {self._timeout_s:.2f} s")
            failure.is_transient = last_error.is_transient
            failure.__cause__ = last_error.__cause__
            return failure
        unanswered_s = health.unanswered_s()
        if last_error:
            why = f"the last attempt to make one: {last_error}"
        elif not health.is_alive() and unanswered_s:
            why = (
                f"an attempt to make one has waited for {unanswered_s:.2f} s for the cluster to"
                f" answer: {RESUMING}; wait for longer, timeout_s= in PoolSettings"
            )
        else:
            why = (
                f"{size} of at most {max_size} exist and are in use or still being made; raise"
                " max_size, or hold connections for shorter"
            )
        error = PoolTimeoutError(f"no connection within {self._timeout_s:.2f} s; {why}")
        error.__cause__ = last_error and copy_for_raise(last_error)
        return error
