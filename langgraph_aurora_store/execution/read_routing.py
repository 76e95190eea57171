"""Which reads a reader may serve, so that a caller never sees an older state than before. No I/O.

What a store has written, or read, is at some position of the write-ahead log. A reader serves a
read if it has replayed that position, which it tells in the same round trip; else the writer does.
So a store reads its own writes, and reads of one after another never go back in time, whatever the
readers lag. No snapshot across a reader and the writer is promised.

Whether an Aurora reader tells its position as a streaming replica of PostgreSQL does was not
checked against AWS. One that tells none serves reads from ``window_s`` seconds after the store's
last write, or read by the writer; before that the writer does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import psycopg
from typing_extensions import TypeIs

from langgraph_aurora_store.connect.connection_factory import ConnectionFactory
from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.sql.flow import Autocommit, Statement, Transaction
from langgraph_aurora_store.validation import brief, check, within

# A reader without an answer costs one call so long, and the next ones nothing for a while.
READER_TIMEOUT_S = 2.0
_LEFT_ALONE_S = 5.0
# How long a reader that lags is not asked again.
_LAGGING_S = 0.02

_REPLAYED = Statement(
    "SELECT pg_catalog.pg_is_in_recovery(), (pg_catalog.pg_last_wal_replay_lsn()"
    " OPERATOR(pg_catalog.-) '0/0'::pg_catalog.pg_lsn)::bigint"
)
# After a commit the insert position, as the flushed one may still be older than the commit.
WRITTEN = Transaction(
    (
        Statement(
            "SELECT (pg_catalog.pg_current_wal_insert_lsn()"
            " OPERATOR(pg_catalog.-) '0/0'::pg_catalog.pg_lsn)::bigint"
        ),
    )
)


def may_be_old(step: Transaction | Autocommit) -> TypeIs[Transaction]:
    """Whether a reader may serve a step, as far as the step tells."""
    return isinstance(step, Transaction) and not (step.writes or step.needs_writer)


def positioned(step: Transaction) -> Transaction:
    """A read that first asks a reader what it has replayed."""
    return step._replace(statements=(_REPLAYED, *step.statements))


class ReadSession:
    """What one store has seen, and what its readers are good for. Thread-safe."""

    def __init__(self, window_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._clock = clock
        self._lock = threading.Lock()
        self._required = 0
        self._observed_at = -window_s
        self._writer_until = 0.0

    def may_ask_reader(self) -> bool:
        """Whether a reader is worth a round trip now."""
        return self._clock() >= self._writer_until

    def observed(self, position: int | None) -> None:
        """The writer was written or read, and is at ``position``; ``None`` if it did not tell."""
        with self._lock:
            self._observed_at = self._clock()
            if position is None:
                self._writer_until = max(self._writer_until, self._observed_at + self._window_s)
            else:
                self._required = max(self._required, position)

    def accepts(self, *, is_standby: bool, replayed: int | None) -> bool:
        """Whether what a reader has answered is new enough."""
        if not is_standby:  # an endpoint without readers leads to the writer
            return True
        with self._lock:
            if replayed is None:
                return self._clock() >= self._observed_at + self._window_s
            if replayed < self._required:
                self._writer_until = max(self._writer_until, self._clock() + _LAGGING_S)
                return False
            self._required = replayed
            return True

    def failed(self, error: Exception) -> None:
        """A reader did not serve a read; one that is not there is left alone for a while."""
        if isinstance(error, psycopg.Error) and error.sqlstate is not None:
            return
        with self._lock:
            self._writer_until = self._clock() + _LEFT_ALONE_S


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What `from_cluster` is told about readers.

    Raises:
        ConfigurationError: naming the parameter.
    """

    read_from: Literal["writer", "reader"]
    endpoint: str | None
    port: int | None
    read_your_writes_s: float

    def __post_init__(self) -> None:
        if self.read_from not in ("writer", "reader"):
            raise ConfigurationError(
                f"read_from={brief(self.read_from)}: pass 'writer' or 'reader'"
            )
        if self.read_from == "writer" and not (self.endpoint is None and self.port is None):
            raise ConfigurationError(
                "reader_endpoint= and reader_port= are for read_from='reader': pass that too"
            )
        check(endpoint=self.endpoint, port=self.port)
        within("read_your_writes_s", self.read_your_writes_s, 0, 86_400, whole=False)

    def factory(
        self,
        connect: Callable[..., ConnectionFactory],
        cluster: str | None,
        port: int | None,
        endpoint: str | None,
    ) -> ConnectionFactory | None:
        """How to connect to a reader; ``None`` where the writer serves all reads."""
        if self.read_from == "writer":
            return None
        if self.endpoint is not None:
            return connect(self.endpoint, port=self.port or port)._replace(role="reader")
        factory = connect(cluster, port=self.port or port, endpoint=endpoint)
        return factory._replace(role="reader")


class Readers(NamedTuple):
    """How to connect to a reader, and the session that decides when."""

    connect: Callable[..., Any]
    session: ReadSession
