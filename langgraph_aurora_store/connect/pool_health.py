"""What a pool learns of its connections, and how long a caller keeps asking for one. No I/O."""

from __future__ import annotations

import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg_pool.base import AttemptWithBackoff
from typing_extensions import override

from langgraph_aurora_store.connect.connect_errors import (
    copy_for_raise,
    is_port_closed,
    is_resuming,
    is_transient,
    is_unreachable,
)
from langgraph_aurora_store.connect.connection import AnyConnection, serves_reads_only
from langgraph_aurora_store.connect.pool_settings import PoolSettings
from langgraph_aurora_store.errors import ConnectError

# Applications filter by the name of 0.1.0.
logger = logging.getLogger("langgraph_aurora_store.connect.patience")

# How many connections a pool may begin to make at once; after these its rate counts.
_LARGEST_BURST = 20
_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 0.5
# How long a port is tried that was never open: a wrong one, or a server that is about to listen.
_GRACE_S = 0.4
# What comes of statements prepared through a pooler that gives each transaction another server.
POOLER_ERRORS = (
    psycopg.errors.InvalidSqlStatementName,
    psycopg.errors.DuplicatePreparedStatement,
)
# How long an attempt waits before that is said.
UNANSWERED_S = 2.0
# "Scaling to Zero ACUs with automatic pause and resume" in the Aurora user guide.
RESUMING = "it may be resuming from a pause, which takes 15 s and, after a day, 30 s and more"


class OnlyAttempt(AttemptWithBackoff):
    """An attempt after which psycopg_pool calls `reconnect_failed` and schedules no other."""

    def __init__(self) -> None:
        super().__init__(timeout=0.0)

    @override
    def time_to_give_up(self, now: float) -> bool:
        return True


class ConnectFailure(Exception):  # noqa: N818 - a message to a waiting caller, which never leaves here
    """Carries what refused a connection to a caller that waits for it."""

    def __init__(self, error: Exception, *, begun_at: float) -> None:
        super().__init__(str(error))
        self.error = copy_for_raise(error)
        self.begun_at = begun_at


class PoolHealth:
    """What a pool has learned of its connections and of its server. Thread-safe.

    After a transient error the pool waits before the next attempt: 50 ms, doubled up to half a
    second, with jitter, so that a server that is back serves within that and is not overrun.
    """

    def __init__(
        self,
        name: str,
        settings: PoolSettings,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.name = name
        self._check_after_idle_s = settings.check_after_idle_s
        self._burst = min(settings.max_size, _LARGEST_BURST)
        self._interval_s = 1 / settings.max_connects_per_s
        self._attempt_due_at = 0.0
        self._wall_clock = wall_clock
        self._clock = clock
        self._spread = spread
        self._lock = threading.Lock()
        self.connections: weakref.WeakSet[AnyConnection] = weakref.WeakSet()
        self._had_writer = False
        self._was_reached = False
        self._last_error: Exception | None = None
        self.last_error_begun_at = 0.0
        self._failures = 0
        self._failing_since = 0.0
        self._backoff_until = 0.0
        self.is_pooled = False
        self._renewed_at = 0.0
        self._suspected_at = 0.0
        self._unanswered: dict[object, float] = {}
        self._waits_for_cluster = False

    @property
    def last_error(self) -> Exception | None:
        """Why the last attempt failed; ``None`` when it succeeded."""
        return self._last_error

    def is_alive(self) -> bool:
        """Whether a connection is open, as far as is known: waiting callers can hope for it."""
        with self._lock:
            return any(not connection.closed for connection in self.connections)

    def is_retryable(self, error: Exception) -> bool:
        """Whether trying again may help, with nothing changed by the user.

        At first, no answer means a wrong name or a closed way in; once the server has answered, it
        is transient. So is a closed port, for a moment in which a server that starts may open it.
        """
        if is_transient(error) or (self._was_reached and is_unreachable(error)):
            return True
        return is_port_closed(error) and self._clock() - self._failing_since < _GRACE_S

    def throttle_s(self) -> float:
        """How long to wait before the next attempt, so that a burst and a rate are kept."""
        with self._lock:
            now = self._clock()
            due_at = max(self._attempt_due_at, now)
            self._attempt_due_at = due_at + self._interval_s
            return max(due_at - now - (self._burst - 1) * self._interval_s, 0.0)

    @contextmanager
    def unanswered_attempt(self) -> Iterator[None]:
        """An attempt to connect, until it is answered or given up."""
        attempt = object()
        self._unanswered[attempt] = self._clock()
        try:
            yield
        finally:
            del self._unanswered[attempt]

    def unanswered_s(self) -> float:
        """For how long the oldest attempt under way has waited; 0 where there is none."""
        begun_at = min(list(self._unanswered.values()), default=None)
        return 0.0 if begun_at is None else self._clock() - begun_at

    def note_unanswered(self) -> None:
        """Say once that the cluster is waited for, where an attempt has waited for long."""
        if self.unanswered_s() < UNANSWERED_S * 0.9 or self._waits_for_cluster:
            return
        self._waits_for_cluster = True
        logger.info("pool %r waits for the cluster to answer: %s", self.name, RESUMING)

    def succeeded(self, connection: AnyConnection) -> None:
        """A connection was made, and idles until a caller asks for it."""
        connection.idle_since = self._wall_clock()
        with self._lock:
            self._had_writer = self._had_writer or not connection.made_on_standby
            self.connections.add(connection)
            was_troubled = self._last_error is not None
            self._was_reached = True
            self._waits_for_cluster = False
            self._last_error = None
            self._failures = 0
            self._backoff_until = 0.0
        if was_troubled:
            logger.info("pool %r connects again", self.name)

    def refuse_former_writer(self, connection: AnyConnection) -> None:
        """Refuse a standby behind a writer endpoint that has led to a writer before.

        After a failover the endpoint's name leads to the former writer until the DNS has followed;
        what it reads may be old.

        Raises:
            ConnectError: of the transient kind.
        """
        target = connection.target
        is_writers = target is not None and target.kind == "writer"
        if self._had_writer and is_writers and connection.made_on_standby:
            cause = psycopg.OperationalError("the database system is a standby")
            raise ConnectError(
                f"{target}: the endpoint leads to a former writer still; after a failover its name"
                " follows within seconds"
            ) from cause

    def failed(self, error: Exception, *, begun_at: float) -> None:
        """An attempt failed that began at this time of the monotonic clock; warns of news."""
        with self._lock:
            self.last_error_begun_at = begun_at
            if not self._failures:
                self._failing_since = self._clock()
            is_news = str(error) != str(self._last_error)
            self._last_error = copy_for_raise(error)
            self._failures += 1
            if self.is_retryable(error):
                longest = min(_FIRST_BACKOFF_S * 2 ** min(self._failures, 10), _LONGEST_BACKOFF_S)
                self._backoff_until = self._clock() + self._spread(longest / 2, longest)
        is_said = self._waits_for_cluster and is_resuming(error)
        level = logging.WARNING if is_news and not is_said else logging.DEBUG
        logger.log(level, "pool %r: %s", self.name, error)

    def backoff_s(self) -> float:
        """How long to leave the server alone; 0 when it is well or a connection is open."""
        left_s = self._backoff_until - self._clock()
        return left_s if left_s > 0 and not self.is_alive() else 0.0

    def is_shared(self, error: psycopg.Error | None, connection: AnyConnection) -> bool:
        """Whether a statement failed of what holds for the connections made before as well.

        A demoted writer does, and a pooler that mixes prepared statements.
        """
        if isinstance(error, POOLER_ERRORS):
            self.found_pooler(f"{type(error).__name__} of a statement that was prepared")
            return True
        is_read_only = isinstance(error, psycopg.errors.ReadOnlySqlTransaction)
        return is_read_only and not serves_reads_only(connection)

    def found_pooler(self, why: str) -> None:
        """Have no statement prepared from now on; says so once."""
        if not self.is_pooled:
            logger.warning(
                "pool %r: a pooler stands before the server (%s); statements are not prepared any"
                " more. Pass pooler=True to say so from the start",
                self.name,
                why,
            )
        self.is_pooled = True

    def looks_for_pooler(self, connection: AnyConnection) -> bool:
        """Whether a new connection may be one to a pooler, as far as name and setting tell."""
        target = connection.target
        return bool(target and target.may_be_pooled and not self.is_pooled)

    def answered(self, connection: AnyConnection, pid: int) -> None:
        """The process that answered on a new connection: a pooler names another when connecting."""
        named = connection.info.backend_pid
        if named not in (0, pid):
            self.found_pooler("another process answers than the one that was connected to")

    def returned(self, connection: AnyConnection) -> None:
        """A connection was given back, and idles from now on; a lost one makes others suspect."""
        with self._lock:
            if connection.closed and (connection.idle_since or 0.0) >= self._suspected_at:
                self._suspected_at = self._wall_clock()
            else:
                connection.idle_since = self._wall_clock()

    def needs_check(self, connection: AnyConnection) -> bool:
        """Whether to check a connection before use: it idled for long, or another was lost since.

        So it is also when the clock was set back.
        """
        if connection.idle_since is None:
            return False
        if connection.idle_since <= self._suspected_at:
            return True
        if self._check_after_idle_s is None:
            return False
        return not 0 <= self._wall_clock() - connection.idle_since <= self._check_after_idle_s

    def should_renew(self, dead: AnyConnection) -> bool:
        """Whether a dead connection is news, so that those that idled with it are suspect."""
        with self._lock:
            is_news = dead.idle_since is not None and dead.idle_since >= self._renewed_at
            if is_news:
                self._renewed_at = self._wall_clock()
            return is_news
