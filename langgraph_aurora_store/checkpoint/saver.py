"""AuroraSaver: the blocking checkpointer."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.store.base import TTLConfig
from psycopg import Connection, Cursor, Pipeline
from psycopg.abc import Params, Query
from psycopg.pq import Format
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool
from typing_extensions import override

from langgraph_aurora_store.checkpoint import single_statements as prepared
from langgraph_aurora_store.checkpoint.base import (
    BaseAuroraSaver,
    ConcurrentRuns,
    named_missing,
    refuses_runs,
    with_text_id,
)
from langgraph_aurora_store.checkpoint.deletion import delete_for_runs
from langgraph_aurora_store.checkpoint.statements import in_schema
from langgraph_aurora_store.connect.connection import Conn
from langgraph_aurora_store.connect.connection_string import check_connection_string
from langgraph_aurora_store.connect.lazy_pool import LazyPool
from langgraph_aurora_store.connect.user_pool import borrowed
from langgraph_aurora_store.execution.executor import Executor
from langgraph_aurora_store.execution.retry import DEFAULT_RETRY, RetrySettings
from langgraph_aurora_store.execution.store_flows import Operations
from langgraph_aurora_store.execution.ttl_sweeper import SweeperThread
from langgraph_aurora_store.sql.flow import Flow

T = TypeVar("T")


class SchemaCursor(Cursor[DictRow]):
    """A cursor for the parent's statements, on the tables of one schema."""

    schema: str | None = None

    @override
    def execute(self, query: Query, params: Params | None = None, **kwargs: Any) -> Self:
        statement = in_schema(query, self.schema) if isinstance(query, str) else query
        return super().execute(cast("str", statement), params, **kwargs)


class AuroraSaver(BaseAuroraSaver, PostgresSaver):
    """LangGraph's `PostgresSaver` on Amazon Aurora PostgreSQL, with a token for a password.

    Make one with `from_cluster`, or on a store's pool with ``store.checkpointer()``. The tables are
    the parent's, and either class reads and continues what the other has stored. Safe for any
    number of threads: a call holds a connection only around its one statement, never while values
    are serialised nor while a caller reads through `list`. ``schema`` places the tables in that
    schema instead of the search path's first; ``ttl`` is that of `from_cluster`.
    """

    _pool_class = LazyPool
    _accepted_types = (Connection, ConnectionPool)

    def __init__(
        self,
        conn: Conn | ConnectionPool[Any],
        pipe: Pipeline | None = None,
        serde: SerializerProtocol | None = None,
        *,
        schema: str | None = None,
        ttl: TTLConfig | None = None,
        concurrent_runs: ConcurrentRuns = "allow",
        retry: RetrySettings | None = DEFAULT_RETRY,
    ) -> None:
        self._check(conn, pipe)
        operations = Operations(
            index=None,
            ttl=ttl,
            schema=schema,
            retry=retry if isinstance(conn, ConnectionPool) else None,
        )
        self._initialize(conn, operations, serde, concurrent_runs=concurrent_runs, pipe=pipe)

    @override
    def _initialize(
        self,
        conn: Any,
        operations: Operations,
        serde: SerializerProtocol | None,
        *,
        concurrent_runs: ConcurrentRuns,
        pipe: Any = None,
        owns_pool: bool = False,
    ) -> None:
        PostgresSaver.__init__(self, conn, pipe, serde)
        self._operations = operations
        self._owns_pool = owns_pool
        self._refuses_runs = refuses_runs(concurrent_runs)
        reader = conn.reader if isinstance(conn, LazyPool) else None
        self._executor = Executor(operations, reader=reader)
        self._sweeper: SweeperThread | None = None

    @override
    @classmethod
    @contextmanager
    def from_conn_string(
        cls,
        conn_string: str,
        *,
        pipeline: bool = False,
        serde: SerializerProtocol | None = None,
        max_size: int = 1,
        schema: str | None = None,
        ttl: TTLConfig | None = None,
        concurrent_runs: ConcurrentRuns = "allow",
        retry: RetrySettings | None = DEFAULT_RETRY,
    ) -> Iterator[Self]:
        """A saver on a connection string, closed with the block.

        Its connection is a pool's, of ``max_size`` at most, which replaces it when it is lost.
        ``pipeline`` is accepted for the parent's sake: each call is one round trip anyway.
        """
        check_connection_string(conn_string)
        # A pool keeps to itself why it cannot connect, and its caller waits.
        Connection.connect(conn_string).close()
        with ConnectionPool(
            conn_string,
            min_size=1,
            max_size=max_size,
            kwargs={"autocommit": True, "prepare_threshold": None},
        ) as pool:
            saver = cls(
                pool,
                serde=serde,
                schema=schema,
                ttl=ttl,
                concurrent_runs=concurrent_runs,
                retry=retry,
            )
            try:
                yield saver
            finally:
                saver.close()

    # life cycle

    def open(self, *, timeout_s: float | None = None) -> None:
        """Connect now, so that what is wrong shows now. Blocking, for ``timeout_s`` at most.

        Raises:
            ConnectError: the connection was refused; a leaf says why.
        """
        with self.connection(timeout_s=timeout_s):
            pass

    def close(self) -> None:
        """End the sweeper and the pool of `from_cluster`; a later use opens a new one."""
        self.stop_ttl_sweeper()
        if self._owns_pool:
            self.conn.close()

    def __enter__(self) -> Self:
        if self._owns_pool:
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
        """A connection of the saver's for SQL of your own, used by no other caller in the block.

        A pool's connection is waited for as long as the pool says, or for ``timeout_s`` seconds.
        """
        conn: Any = self.conn
        if isinstance(conn, LazyPool):
            with conn.connection(timeout_s) as pooled:
                yield pooled
        elif isinstance(conn, ConnectionPool):
            with borrowed(conn, timeout_s) as pooled:
                yield pooled
        else:
            with self.lock:
                yield conn

    @override
    def setup(self, *, metadata_index: bool = False) -> None:
        """Create or complete the tables. Safe from any number of processes at a time.

        Looks first: where there is nothing to do, it needs no rights and writes nothing.

        Args:
            metadata_index: also index the metadata, for `list` with a ``filter`` over all threads
                and `delete_for_runs` among very many checkpoints.

        Raises:
            SchemaError: a right is missing; `ddl` is for who has it.
        """
        with self.connection() as conn:
            commits = conn.autocommit
            if not commits:
                conn.set_autocommit(True)
            try:
                self._executor.run_on(self._setup(metadata_index=metadata_index), conn)
            finally:
                if not commits:
                    conn.set_autocommit(False)

    # checkpoints

    @override
    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that the configuration names, else the latest of its thread."""
        row = self._run(self._get(config))
        return None if row is None else self._load_checkpoint_tuple(row)

    @override
    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints from the newest on, read page by page as they are asked for.

        No connection is held between two of them. ``filter`` is compared with the metadata.
        """
        listing = self._listing(config, filter, before, limit)
        while not listing.has_ended:
            for row in self._run(listing.page()):
                yield self._load_checkpoint_tuple(row)

    @override
    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint; the same one again changes nothing.

        Raises:
            InvalidCheckpointError: a value cannot be stored; the message names channel or key.
            ConcurrentRunError: with ``concurrent_runs="refuse"``, another run has stored one.
        """
        put = prepared.put(config, checkpoint, metadata, new_versions, self.serde)
        self._run(self._storing(put))
        return put.config

    @override
    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store what a task has written since a checkpoint.

        Raises:
            InvalidCheckpointError: a value cannot be stored; the message names its channel.
        """
        statement = prepared.put_writes(config, writes, task_id, task_path, self.serde)
        self._run(self._execution(statement))

    @override
    def delete_thread(self, thread_id: str) -> None:
        """Delete everything of a thread."""
        self._run(self._execution(prepared.delete_threads([thread_id])))

    @override
    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete what these runs have stored, found by ``run_id`` in the metadata.

        In batches of 1,000 checkpoints. A thread that uses a DeltaChannel may lose what later
        checkpoints of other runs are rebuilt from.
        """
        self._run(delete_for_runs(run_ids, self._schema))

    @override
    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy everything of a thread to another, under the same checkpoint ids.

        One statement, which reads one snapshot. What the target has already stays.
        """
        copy = prepared.copy_thread(source_thread_id, target_thread_id)
        self._run(self._execution(copy))

    @override
    def prune(
        self,
        thread_ids: Sequence[str] | None = None,
        *,
        strategy: str = "keep_latest",
        keep_last: int = 1,
        older_than: timedelta | None = None,
    ) -> None:
        """Delete old checkpoints, and what only they refer to, in batches of 1,000.

        Of each thread and namespace the newest ``keep_last`` stay, and with ``older_than`` those
        that are younger. What else is kept or goes with them, the parent's ``prune`` describes. A
        run that appends to a thread meanwhile is safe; one that forks from a checkpoint that is
        being deleted is not.

        Args:
            thread_ids: the threads; all of them by default, where those that use a DeltaChannel
                are left whole.
            strategy: ``"keep_latest"``, or ``"delete"`` for everything of these threads.
            keep_last: how many checkpoints stay, at least 1.
            older_than: the age from which on a checkpoint may go, by the time in its id.

        Raises:
            ConfigurationError: values that make no sense.
            NotImplementedError: a thread named in ``thread_ids`` uses a DeltaChannel.
        """
        self._run(self._pruning(thread_ids, strategy, keep_last, older_than))

    @override
    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """As the parent's."""
        return super().get_delta_channel_history(config=with_text_id(config), channels=channels)

    # expiry

    def delete_idle_threads(self, idle_for: timedelta) -> int:
        """Delete threads without a checkpoint for this long, in batches of 100.

        The age is that of the newest checkpoint's id; a thread with an id that is not LangGraph's
        stays. Let ``idle_for`` be longer than any run takes: a run that began before and stores its
        next checkpoint after its thread was deleted has lost what came before.

        Returns:
            How many threads there were.
        """
        return self._run(self._idle_deletion(idle_for))

    def sweep_ttl(self) -> int:
        """Delete threads that have been idle for ``default_ttl``; see `delete_idle_threads`.

        Returns:
            How many were deleted; 0 without a TTL configuration.
        """
        return 0 if self._ttl is None else self.delete_idle_threads(self._ttl)

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

    def stop_ttl_sweeper(self, timeout: float | None = None) -> bool:
        """Stop the sweeper, waiting up to ``timeout`` seconds for a sweep in progress.

        Returns:
            Whether it has ended.
        """
        sweeper, self._sweeper = self._sweeper, None
        return sweeper is None or sweeper.stop(timeout)

    # how statements travel

    def _run(self, flow: Flow[T]) -> T:
        try:
            return self._executor.run(flow, self.connection)
        except psycopg.errors.UndefinedTable as error:
            raise named_missing(error) from error

    # langgraph-checkpoint-postgres 3.2: what is inherited runs its statements by this.
    @override
    @contextmanager
    def _cursor(self, *, pipeline: bool = False) -> Iterator[Cursor[DictRow]]:
        with (
            self.connection() as conn,
            conn.pipeline() if pipeline else nullcontext(),
            SchemaCursor(conn, row_factory=dict_row) as cursor,
        ):
            cursor.format = Format.BINARY
            cursor.schema = self._schema
            yield cursor
