"""When a transaction is run again after the server or the link failed, and when it is given up.

Pure: the executors ask and sleep. A retry needs three things: the failure is transient; a
repetition is harmless (a read, an idempotent write, one that was surely rolled back, or one whose
mark tells whether it was committed); and time is left.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import psycopg
import psycopg_pool

from langgraph_aurora_store.connect.acquire_deadline import POOL_ERRORS
from langgraph_aurora_store.errors import (
    AuroraStoreError,
    ReadOnlyEndpointError,
    RetriesExhaustedError,
)
from langgraph_aurora_store.execution.commit_marks import is_mark_used
from langgraph_aurora_store.sql.flow import Autocommit, Statement, Transaction
from langgraph_aurora_store.validation import within

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.5
_LONGEST_DEADLINE_S = 86_400

# https://www.postgresql.org/docs/current/errcodes-appendix.html: connection exceptions; shutdown,
# crash, starting up; ended by a time limit of the session.
_LOST_LINK = re.compile("08|57P0[1235]|25P0[34]")
# A prepared statement that a pooler has lost, or that another of its clients has made.
_POOLED = re.compile("26000|42P05")
# Rolled back for the sake of another transaction, or by a standby's replay.
_ROLLED_BACK = re.compile("40(001|P01)")


# Who set default_transaction_read_only: what belongs to the role or the session stays, while a
# standby, or a server that was made read-only, may be replaced by its cluster.
READ_ONLY_CAUSE = Transaction(
    (
        Statement(
            "SELECT NOT pg_catalog.pg_is_in_recovery() AND s.source <> ALL"
            " ('{default,configuration file,command line,override}'::text[])"
            " FROM pg_catalog.pg_settings AS s WHERE s.name = 'default_transaction_read_only'"
        ),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySettings:
    """How long a call goes on after a lost connection, a failover, a deadlock or the like.

    ``deadline_s``: seconds from the call's first such failure to its last attempt. A failover of
    Aurora typically ends within 30 s. Pauses between attempts grow from 50 ms to half a second,
    with jitter.

    Raises:
        ConfigurationError: a deadline that is no number from 0.001 to 86,400.
    """

    deadline_s: float = 30.0

    def __post_init__(self) -> None:
        within("deadline_s", self.deadline_s, 0.001, _LONGEST_DEADLINE_S, whole=False)


DEFAULT_RETRY = RetrySettings()


def is_read_only(exc: BaseException) -> bool:
    """Whether a write was refused by a reader, or by a writer that was demoted."""
    return isinstance(exc, psycopg.errors.ReadOnlySqlTransaction)


class Failure(NamedTuple):
    """Why an attempt failed, and whether that has cost the connection."""

    error: psycopg.Error
    is_closed: bool

    @property
    def is_transient(self) -> bool:
        """Whether the same transaction may succeed on another connection."""
        sqlstate = self.error.sqlstate
        if isinstance(self.error, AuroraStoreError):
            return False
        if sqlstate is None:
            return self.is_closed or is_of_libpq(self.error)
        known = is_read_only(self.error) or self.is_superseded or _LOST_LINK.match(sqlstate)
        return bool(known or _ROLLED_BACK.match(sqlstate) or _POOLED.match(sqlstate))

    @property
    def is_superseded(self) -> bool:
        """Whether another write has used the mark, so that this one needs another."""
        return is_mark_used(self.error)

    @property
    def is_uncertain(self) -> bool:
        """Whether the transaction may have taken effect nevertheless."""
        sqlstate = self.error.sqlstate or ""
        was_rolled_back = _ROLLED_BACK.match(sqlstate) and not self.is_closed
        is_rolled_back = was_rolled_back or _POOLED.match(sqlstate)
        return not (is_read_only(self.error) or self.is_superseded or is_rolled_back)


def is_of_libpq(exc: psycopg.Error) -> bool:
    """Whether libpq reports a failure of the link, and no server an error.

    psycopg may take the connection for open nevertheless: one that is lost while a pipeline ends
    stays "busy", and fails every later statement.
    """
    is_of_pool = isinstance(exc, POOL_ERRORS)
    return isinstance(exc, psycopg.OperationalError) and exc.sqlstate is None and not is_of_pool


def may_have_written(exc: BaseException) -> bool:
    """Whether a write that a caller sees fail so may have taken effect nevertheless."""
    if isinstance(exc, RetriesExhaustedError):
        return exc.may_have_written
    if isinstance(exc, AuroraStoreError) or not isinstance(exc, psycopg.Error):
        return False
    return is_of_libpq(exc) or bool(_LOST_LINK.match(exc.sqlstate or ""))


def costs_connection(exc: psycopg.Error) -> bool:
    """Whether a connection cannot be used again after this error."""
    sqlstate = exc.sqlstate or ""
    is_fatal = _LOST_LINK.match(sqlstate) or _POOLED.match(sqlstate)
    return is_read_only(exc) or is_of_libpq(exc) or bool(is_fatal)


def is_read(step: Transaction | Autocommit) -> bool:
    """Whether a step has no effect."""
    return isinstance(step, Transaction) and not step.writes


def is_optional(step: Transaction | Autocommit) -> bool:
    """Whether a read-only server may refuse a step."""
    return isinstance(step, Transaction) and step.is_optional


def demoted() -> psycopg.errors.ReadOnlySqlTransaction:
    """The error of a read that a former writer has answered."""
    return psycopg.errors.ReadOnlySqlTransaction("the server is no longer the writer")


def read_only_endpoint(endpoint: str) -> ReadOnlyEndpointError:
    """The error for a write to an endpoint whose name says that it serves reads only."""
    return ReadOnlyEndpointError(
        f"{endpoint!r} serves reads only, nothing was written; pass the cluster's identifier or its"
        " writer endpoint to write"
    )


def read_only_role() -> ReadOnlyEndpointError:
    """The error for a write of a role, or in a database, that is set to read only."""
    return ReadOnlyEndpointError(
        "default_transaction_read_only is set for this role, database or session, nothing was"
        " written; connect as a role that may write, or ALTER ROLE ... RESET it"
    )


def may_repeat(step: Transaction | Autocommit) -> bool:
    """Whether a step may run again although it may have taken effect."""
    if isinstance(step, Autocommit):
        return False
    return not step.writes or step.is_idempotent or step.marking is not None


class Attempts:
    """The attempts of one call, which share a deadline; not thread-safe."""

    def __init__(
        self,
        settings: RetrySettings | None,
        *,
        reads_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.reads_only = reads_only
        self._settings = settings
        self._clock = clock
        self._spread = spread
        self._failures = 0
        self._deadline_s = self._deadline = 0.0
        self._is_uncertain = False
        self._tried = "a call"
        self._last_error: psycopg.Error | None = None

    def left(self) -> dict[str, float]:
        """How long to wait for a connection, as the arguments of ``connection``."""
        if not self._failures:
            return {}
        return {"timeout_s": max(self._deadline - self._clock(), 0.0)}

    def retry_after_s(self, failure: Failure, step: Transaction | Autocommit) -> float:
        """Seconds to pause before the next attempt.

        Raises:
            RetriesExhaustedError: the deadline leaves no time for another attempt.
            psycopg.Error: the failure, if another attempt would not help, or could do harm.
        """
        is_safe = may_repeat(step) or not failure.is_uncertain
        if self._settings is None or not (failure.is_transient and is_safe):
            raise failure.error
        if is_optional(step) and is_read_only(failure.error):
            raise failure.error
        self._is_uncertain |= failure.is_uncertain and not is_read(step)
        if not self._failures:
            self._deadline_s = self._settings.deadline_s
            self._deadline = self._clock() + self._deadline_s
        self._failures += 1
        self._last_error = failure.error
        self._tried = "a read" if is_read(step) else "a write"
        longest = min(_FIRST_PAUSE_S * 2 ** min(self._failures - 1, 10), _LONGEST_PAUSE_S)
        pause_s = self._spread(longest / 2, longest)
        if self._clock() + pause_s >= self._deadline:
            raise self._exhausted(failure.error)
        return pause_s

    def without_connection(self, error: psycopg.Error) -> Failure:
        """The failure of an attempt that got no connection, or lost it on the way back."""
        if self._last_error is not None and isinstance(error, psycopg_pool.PoolTimeout):
            error = self._exhausted(error)
        is_closed = not isinstance(error, (AuroraStoreError, *POOL_ERRORS))
        return Failure(error, is_closed=is_closed)

    def _exhausted(self, error: psycopg.Error) -> RetriesExhaustedError:
        last = self._last_error or error
        reason = last.diag.message_primary or str(last)
        also = f"; then no connection: {error}" if error is not last else ""
        outcome = (
            "; the reply of an attempt was lost, so the write may have taken effect"
            if self._is_uncertain
            else ""
        )
        exhausted = RetriesExhaustedError(
            f"gave up {self._tried} after {self._failures} attempts within"
            f" {self._deadline_s:g} s, the deadline_s of retry={outcome}; the last"
            f" reason: {type(last).__name__}: {reason}{also}"
        )
        exhausted.sqlstate = last.sqlstate
        exhausted.may_have_written = self._is_uncertain
        exhausted.__cause__ = error
        return exhausted
