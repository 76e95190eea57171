"""AuroraStore: the blocking store."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from langgraph.store.base import Op, PutOp, Result, TTLConfig
from langgraph.store.postgres import PostgresStore
from langgraph.store.postgres.base import PoolConfig, PostgresIndexConfig
from psycopg import Connection, Pipeline
from psycopg_pool import ConnectionPool
from typing_extensions import override

from langgraph_aurora_store.base import BaseAuroraStore
from langgraph_aurora_store.connect.connection import Conn
from langgraph_aurora_store.connect.connection_string import check_connection_string
from langgraph_aurora_store.connect.lazy_pool import LazyPool
from langgraph_aurora_store.connect.user_pool import borrowed
from langgraph_aurora_store.execution.executor import Executor
from langgraph_aurora_store.execution.lost_write_log import write_failures_logged
from langgraph_aurora_store.execution.read_routing import Readers, ReadSession
from langgraph_aurora_store.execution.retry import DEFAULT_RETRY, RetrySettings
from langgraph_aurora_store.execution.store_flows import Deserializer, Operations
from langgraph_aurora_store.execution.ttl_sweeper import SweeperThread

if TYPE_CHECKING:
    from langgraph.checkpoint.serde.base import SerializerProtocol

    from langgraph_aurora_store.checkpoint.base import ConcurrentRuns
    from langgraph_aurora_store.checkpoint.saver import AuroraSaver


class AuroraStore(BaseAuroraStore, PostgresStore):
    """LangGraph's `PostgresStore` on Amazon Aurora PostgreSQL, with a token for a password.

    Make one with `from_cluster`. Safe for any number of threads: a call holds a connection only
    around its statements, never while texts are embedded. `from_conn_string` and the constructor
    work as the parent's do; a connection or pool passed in stays its owner's to close.

    ``schema`` places the tables in that schema instead of the search path's first. ``retry`` is as
    in `from_cluster`, for a pool; a single connection that is lost cannot be replaced.
    """

    _pool_class = LazyPool
    _accepted_types = (Connection, ConnectionPool)

    def __init__(
        self,
        conn: Conn | ConnectionPool[Any],
        *,
        pipe: Pipeline | None = None,
        deserializer: Deserializer | None = None,
        index: PostgresIndexConfig | None = None,
        ttl: TTLConfig | None = None,
        schema: str | None = None,
        retry: RetrySettings | None = DEFAULT_RETRY,
    ) -> None:
        self._check(conn)
        operations = Operations(
            index=index,
            ttl=ttl,
            schema=schema,
            deserializer=deserializer,
            retry=retry if isinstance(conn, ConnectionPool) else None,
        )
        self._initialize(conn, operations, pipe=pipe)

    @override
    def _initialize(
        self,
        conn: Any,
        operations: Operations,
        *,
        pipe: Any = None,
        readers: Any = None,
        read_your_writes_s: float = 0.0,
    ) -> None:
        PostgresStore.__init__(
            self, conn, pipe=pipe, deserializer=operations.deserializer, ttl=operations.ttl_config
        )
        self._operations = operations
        self.embeddings, self.index_config = operations.embeddings, operations.index_config
        self._sweeper: SweeperThread | None = None
        reader = conn.reader if isinstance(conn, LazyPool) else None
        self._readers: LazyPool | None = readers
        routing = Readers(readers.connection, ReadSession(read_your_writes_s)) if readers else None
        self._executor = Executor(operations, reader=reader, readers=routing)

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
        retry: RetrySettings | None = DEFAULT_RETRY,
    ) -> Iterator[Self]:
        """As the parent's: a store on a connection string, closed with the block."""
        check_connection_string(conn_string)
        with (
            super().from_conn_string(
                conn_string, pipeline=pipeline, pool_config=pool_config
            ) as plain,
            cls(
                plain.conn, pipe=plain.pipe, index=index, ttl=ttl, schema=schema, retry=retry
            ) as store,
        ):
            yield store

    @property
    def conn(self) -> Conn | ConnectionPool[Any]:
        """The connection or pool; of `from_cluster`, its pool, opened on first use."""
        return self._conn.get() if isinstance(self._conn, LazyPool) else self._conn

    @conn.setter
    def conn(self, conn: Conn | ConnectionPool[Any] | LazyPool) -> None:
        self._conn = conn

    # life cycle

    def open(self, *, timeout_s: float | None = None) -> None:
        """Connect now, so that what is wrong shows now. Blocking, for ``timeout_s`` at most.

        Args:
            timeout_s: seconds to wait for a connection of the pool; by default its own.

        Raises:
            ConnectError: the connection was refused; a leaf says why.
        """
        with self.connection(timeout_s=timeout_s):
            pass

    def close(self) -> None:
        """End the sweeper and the pool of `from_cluster`; a later use opens a new one."""
        self.stop_ttl_sweeper()
        if isinstance(self._conn, LazyPool):
            self._conn.close()
            self._operations.forget()
        if self._readers is not None:
            self._readers.close()

    def __enter__(self) -> Self:
        if isinstance(self._conn, LazyPool):
            try:
                self.open()
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def connection(self, *, timeout_s: float | None = None) -> Iterator[Conn]:
        """A connection of the store's for SQL of your own, used by no other caller in the block.

        A pool's connection is waited for as long as the pool says, or for ``timeout_s`` seconds.
        """
        if isinstance(self._conn, LazyPool):
            with self._conn.connection(timeout_s) as pooled:
                yield pooled
        elif isinstance(self._conn, ConnectionPool):
            with borrowed(self._conn, timeout_s) as pooled:
                yield pooled
        else:
            with self.lock:
                yield self._conn

    def checkpointer(
        self,
        *,
        serde: SerializerProtocol | None = None,
        ttl: TTLConfig | None = None,
        concurrent_runs: ConcurrentRuns = "allow",
    ) -> AuroraSaver:
        """A LangGraph checkpointer on the store's own connection or pool, and in its schema.

        Closing the store closes it. The parameters are those of `AuroraSaver.from_cluster`.
        """
        from langgraph_aurora_store.checkpoint.saver import AuroraSaver

        return AuroraSaver.on_pool(
            self._conn,
            lock=self.lock,
            settings=self._operations,
            serde=serde,
            ttl=ttl,
            concurrent_runs=concurrent_runs,
        )

    # operations

    @override
    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations in order; all of their writes take effect, or none.

        Writes that fail are also logged at ERROR, with namespace and key.
        """
        known = list(ops)
        with write_failures_logged(known):
            reads_only = not any(isinstance(op, PutOp) for op in known)
            flow = self._operations.batch(known)
            return self._executor.run(flow, self.connection, reads_only=reads_only)

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
        flow = self._operations.count(namespace_prefix, filter)
        return self._executor.run(flow, self.connection, reads_only=True)

    def delete_namespace(self, namespace_prefix: tuple[str, ...]) -> int:
        """Delete the items in a namespace and below it, and return how many there were.

        Up to 10,000 items go in one transaction; more in one for every 10,000.

        Raises:
            InvalidNamespaceError: for the empty namespace, which holds everything.
        """
        return self._executor.run(
            self._operations.delete_namespace(namespace_prefix), self.connection
        )

    @override
    def setup(self) -> None:
        """Create or complete the tables. Safe from any number of processes at a time.

        Raises:
            SchemaDriftError: what is there differs from the index configuration.
            SchemaError: a right or the vector extension is missing; `ddl` is for who has it.
        """
        with self.connection() as conn:
            self._executor.run_on(self._operations.setup(), conn)

    # expiry

    @override
    def sweep_ttl(self) -> int:
        """Delete expired items, in bounded batches, unless another process is sweeping.

        Returns:
            How many were deleted.
        """
        return self._executor.run(self._operations.sweep(), self.connection)

    @override
    def start_ttl_sweeper(
        self, sweep_interval_minutes: float | None = None
    ) -> concurrent.futures.Future[None]:
        """Sweep at this interval, in minutes, until stopped, closed or collected.

        Returns:
            A future that ends with the sweeper, and that ends it when cancelled.
        """
        interval = self._operations.sweep_interval_s(sweep_interval_minutes)
        if interval is None:
            idle: concurrent.futures.Future[None] = concurrent.futures.Future()
            idle.set_result(None)
            return idle
        if self._sweeper is None or not self._sweeper.is_alive():
            self._sweeper = SweeperThread(self, interval)
        return self._sweeper.future

    @override
    def stop_ttl_sweeper(self, timeout: float | None = None) -> bool:
        """Stop the sweeper, waiting up to ``timeout`` seconds for a sweep in progress.

        Returns:
            Whether it has ended.
        """
        sweeper, self._sweeper = self._sweeper, None
        return sweeper is None or sweeper.stop(timeout)

    @override
    def __del__(self) -> None:
        # The attribute is missing where the constructor raised.
        if sweeper := getattr(self, "_sweeper", None):
            sweeper.stop(timeout_s=0.1)
