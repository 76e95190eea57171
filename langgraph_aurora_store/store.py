"""AuroraStore: the blocking store."""

from __future__ import annotations

import concurrent.futures
import contextvars
import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

from langgraph.store.base import Op, Result, TTLConfig
from langgraph.store.postgres import PostgresStore
from langgraph.store.postgres.base import PoolConfig, PostgresIndexConfig
from psycopg import Connection, Cursor, Pipeline
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import ConnectionPool
from typing_extensions import override

from langgraph_aurora_store import vectors
from langgraph_aurora_store.base import BaseAuroraStore, Deserializer
from langgraph_aurora_store.connect.connector import Connector
from langgraph_aurora_store.connect.pool import AuroraPool, make_pool
from langgraph_aurora_store.connect.settings import PoolSettings
from langgraph_aurora_store.embeddings.labels import text_labels
from langgraph_aurora_store.engine import Engine, labels_of
from langgraph_aurora_store.lost_writes import lost_writes_logged
from langgraph_aurora_store.sql.steps import (
    Conversation,
    Embed,
    Execute,
    Pause,
    Rows,
    Run,
    Statement,
    Step,
    Vectors,
)
from langgraph_aurora_store.sweeper import SweeperThread

T = TypeVar("T")
Conn: TypeAlias = Connection[Any]

# Queries of one batch that are embedded at a time: each is a request of its own.
_QUERIES_AT_ONCE = 16


class OwnPool:
    """A pool made when it is first asked for, again after `close`, and again in a forked child."""

    def __init__(self, connector: Connector, settings: PoolSettings) -> None:
        self._connector = connector
        self._settings = settings
        self._lock = threading.Lock()
        self._pool: AuroraPool | None = None
        self._made_by = 0

    def get(self) -> AuroraPool:
        """The open pool of this process."""
        with self._lock:
            if self._pool is None or self._made_by != os.getpid():
                self._pool = make_pool(self._connector, self._settings)
                self._pool.open()
                self._made_by = os.getpid()
            return self._pool

    def close(self) -> None:
        """Close the pool, if there is one and it is this process's."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and self._made_by == os.getpid():
            pool.close()


class AuroraStore(BaseAuroraStore, PostgresStore):
    """LangGraph's `PostgresStore` on Amazon Aurora PostgreSQL, with a token for a password.

    Make one with `from_cluster`. Safe for any number of threads: a call holds a connection only
    around its statements, never while texts are embedded. `from_conn_string` and the constructor
    work as the parent's do; a connection or pool passed in stays its owner's to close.

    ``schema`` places the tables in that schema instead of the search path's first.
    """

    _own_pool = OwnPool

    def __init__(
        self,
        conn: Conn | ConnectionPool[Any],
        *,
        pipe: Pipeline | None = None,
        deserializer: Deserializer | None = None,
        index: PostgresIndexConfig | None = None,
        ttl: TTLConfig | None = None,
        schema: str | None = None,
    ) -> None:
        engine = Engine(index=index, ttl=ttl, schema=schema)
        self._begin(conn, engine, pipe=pipe, deserializer=deserializer)

    @override
    def _begin(self, conn: Any, engine: Engine, **rest: Any) -> None:
        PostgresStore.__init__(self, conn, ttl=engine.ttl_config, **rest)
        self._engine = engine
        self.embeddings, self.index_config = engine.embeddings, engine.index_config
        self._sweeper: SweeperThread | None = None
        self._registered: weakref.WeakSet[Conn] = weakref.WeakSet()
        self._vector_types: list[TupleRow] = []

    @override
    @classmethod
    @contextmanager
    def from_conn_string(
        cls,
        conn_string: str,
        *,
        pipeline: bool = False,
        pool_config: PoolConfig | None = None,
        index: PostgresIndexConfig | None = None,
        ttl: TTLConfig | None = None,
        schema: str | None = None,
    ) -> Iterator[Self]:
        """As the parent's: a store on a connection string, closed with the block."""
        with (
            super().from_conn_string(
                conn_string, pipeline=pipeline, pool_config=pool_config
            ) as plain,
            cls(plain.conn, pipe=plain.pipe, index=index, ttl=ttl, schema=schema) as store,
        ):
            yield store

    @property
    def conn(self) -> Conn | ConnectionPool[Any]:  # type: ignore[override]  # upstream: a variable
        """The connection or pool; of `from_cluster`, its pool, opened on first use."""
        return self._conn.get() if isinstance(self._conn, OwnPool) else self._conn

    @conn.setter
    def conn(self, conn: Conn | ConnectionPool[Any] | OwnPool) -> None:
        self._conn = conn

    # life cycle

    def open(self) -> None:
        """Connect now, so that what is wrong shows now. Blocking.

        Raises:
            ConnectError: the connection was refused; a leaf says why.
        """
        with self.connection():
            pass

    def close(self) -> None:
        """End the sweeper and the pool of `from_cluster`; a later use opens a new one."""
        self.stop_ttl_sweeper()
        if isinstance(self._conn, OwnPool):
            self._conn.close()

    def __enter__(self) -> Self:
        if isinstance(self._conn, OwnPool):
            try:
                self.open()
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def connection(self) -> Iterator[Conn]:
        """A connection of the store's, for SQL of your own; nobody else uses it in the block."""
        conn = self.conn
        if isinstance(conn, ConnectionPool):
            with conn.connection() as pooled:
                yield pooled
        else:
            with self.lock:
                yield conn

    # operations

    @override
    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations in order; all of their writes take effect, or none.

        Writes that fail are also logged at ERROR, with namespace and key.
        """
        known = list(ops)
        with lost_writes_logged(known):
            return self._drive(self._engine.batch(known))

    def count(
        self,
        namespace_prefix: tuple[str, ...],
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - as in search()
    ) -> int:
        """Count the items in a namespace and below it, expired ones left out.

        Raises:
            InvalidFilterError: the filter means nothing.
        """
        return self._drive(self._engine.count(namespace_prefix, filter))

    def delete_namespace(self, namespace_prefix: tuple[str, ...]) -> int:
        """Delete the items in a namespace and below it, and return how many there were.

        Up to 10,000 items go in one transaction; more in one for every 10,000.

        Raises:
            InvalidNamespaceError: for the empty namespace, which holds everything.
        """
        return self._drive(self._engine.delete_namespace(namespace_prefix))

    @override
    def setup(self) -> None:
        """Create or complete the tables. Safe from any number of processes at a time.

        Raises:
            SchemaDriftError: what is there differs from the index configuration.
            SchemaError: a right or the vector extension is missing; `ddl` is for who has it.
        """
        with self.connection() as conn:
            self._drive(self._engine.setup(), conn)

    # expiry

    @override
    def sweep_ttl(self) -> int:
        """Delete expired items, in bounded batches, unless another process is at it.

        Returns:
            How many were deleted.
        """
        return self._drive(self._engine.sweep())

    @override
    def start_ttl_sweeper(
        self, sweep_interval_minutes: float | None = None
    ) -> concurrent.futures.Future[None]:
        """Sweep every so many minutes until stopped, closed or collected.

        Returns:
            A future that ends with the sweeper, and that ends it when cancelled.
        """
        interval = self._engine.sweep_interval_s(sweep_interval_minutes)
        if interval is None:
            idle: concurrent.futures.Future[None] = concurrent.futures.Future()
            idle.set_result(None)
            return idle
        if self._sweeper is None or not self._sweeper.is_alive():
            self._sweeper = SweeperThread(self, interval)
        return self._sweeper.future

    @override
    def stop_ttl_sweeper(self, timeout: float | None = None) -> bool:
        """Stop the sweeper, waiting up to ``timeout`` seconds for a sweep under way.

        Returns:
            Whether it has ended.
        """
        sweeper, self._sweeper = self._sweeper, None
        return sweeper is None or sweeper.stop(timeout)

    @override
    def __del__(self) -> None:
        # Half-made where the constructor raised.
        if sweeper := getattr(self, "_sweeper", None):
            sweeper.stop(timeout_s=0.1)

    # the driver

    def _drive(self, flow: Conversation[T], conn: Conn | None = None) -> T:
        """Perform a flow's steps; on ``conn`` where given, else on a connection for each `Run`."""
        try:
            step = next(flow)
            while True:
                try:
                    reply = self._perform(step, conn)
                except Exception as exc:  # noqa: BLE001 - the flow decides what to make of it
                    step = flow.throw(exc)
                else:
                    step = flow.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _perform(self, step: Step, conn: Conn | None) -> object:
        if isinstance(step, Embed):
            return self._embed(step)
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        if conn is None:
            with self.connection() as own:
                return self._on(own, step)
        # psycopg 3.3 loses count of prepared statements when a pipeline drops something.
        return self._on(conn, step, prepare=False)

    def _embed(self, step: Embed) -> Vectors:
        assert self.embeddings is not None  # noqa: S101 - no flow embeds without an index
        documents: list[list[float]] = []
        if step.documents:
            with text_labels(labels_of(step.labels)):
                documents = self.embeddings.embed_documents(list(step.documents))
        if len(step.queries) < 2:  # noqa: PLR2004
            return Vectors(documents, [self.embeddings.embed_query(q) for q in step.queries])
        with concurrent.futures.ThreadPoolExecutor(
            min(_QUERIES_AT_ONCE, len(step.queries))
        ) as threads:
            queries = [
                threads.submit(contextvars.copy_context().run, self.embeddings.embed_query, query)
                for query in step.queries
            ]
            return Vectors(documents, [query.result() for query in queries])

    def _on(self, conn: Conn, step: Run | Execute, *, prepare: bool | None = None) -> object:
        self._register(conn)
        if isinstance(step, Execute):
            return _rows(_send(conn, step.statement, prepare=prepare))
        # Without BEGIN a pipeline is one transaction up to its end, and costs one round trip.
        with nullcontext() if conn.autocommit else conn.transaction(), conn.pipeline():
            cursors = [_send(conn, statement, prepare=prepare) for statement in step.statements]
        return [_rows(cursor) for cursor in cursors]

    def _register(self, conn: Conn) -> None:
        """Teach a connection pgvector's types, once the database has them."""
        if self.embeddings is None or conn in self._registered:
            return
        if not self._vector_types:
            self._vector_types = _rows(_send(conn, Statement(vectors.TYPES)))
        if self._vector_types:
            vectors.register(conn, self._vector_types)
            self._registered.add(conn)


def _send(conn: Conn, statement: Statement, *, prepare: bool | None = None) -> Cursor[TupleRow]:
    cursor = conn.cursor(binary=True, row_factory=tuple_row)
    return cursor.execute(statement.sql, statement.params or None, prepare=prepare)


def _rows(cursor: Cursor[TupleRow]) -> Rows:
    return Rows(cursor.fetchall() if cursor.description else (), cursor.rowcount)
