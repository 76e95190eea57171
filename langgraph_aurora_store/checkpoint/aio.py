"""AsyncAuroraSaver: the asyncio checkpointer. The same methods in the same order as `saver`."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, nullcontext
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
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.store.base import TTLConfig
from psycopg import AsyncConnection, AsyncCursor, AsyncPipeline, Capabilities
from psycopg.abc import Params, Query
from psycopg.pq import Format
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool
from typing_extensions import override

from langgraph_aurora_store.checkpoint import serialization
from langgraph_aurora_store.checkpoint import single_statements as prepared
from langgraph_aurora_store.checkpoint.base import (
    BaseAuroraSaver,
    ConcurrentRuns,
    blob_sizes,
    named_missing,
    refuses_runs,
    with_text_id,
)
from langgraph_aurora_store.checkpoint.deletion import delete_for_runs
from langgraph_aurora_store.checkpoint.statements import in_schema
from langgraph_aurora_store.connect.connection import AsyncConn
from langgraph_aurora_store.connect.connection_string import check_connection_string
from langgraph_aurora_store.connect.lazy_pool import AsyncLazyPool
from langgraph_aurora_store.connect.user_pool import aborrowed
from langgraph_aurora_store.execution.blocking_calls import call_from_thread, running_loop
from langgraph_aurora_store.execution.executor import AsyncExecutor
from langgraph_aurora_store.execution.retry import DEFAULT_RETRY, RetrySettings
from langgraph_aurora_store.execution.store_flows import Operations
from langgraph_aurora_store.execution.ttl_sweeper import sweep_repeatedly
from langgraph_aurora_store.sql.flow import Flow

T = TypeVar("T")


class AsyncSchemaCursor(AsyncCursor[DictRow]):
    """A cursor for the parent's statements, on the tables of one schema."""

    schema: str | None = None

    @override
    async def execute(self, query: Query, params: Params | None = None, **kwargs: Any) -> Self:
        statement = in_schema(query, self.schema) if isinstance(query, str) else query
        return await super().execute(cast("str", statement), params, **kwargs)


class AsyncAuroraSaver(BaseAuroraSaver, AsyncPostgresSaver):
    """LangGraph's `AsyncPostgresSaver` on Amazon Aurora PostgreSQL, with a token for a password.

    Make one with `from_cluster`, in or out of an event loop, or on a store's pools with
    ``store.checkpointer()``. Safe for any number of tasks, and for one event loop after another:
    each loop gets a pool of its own. The tables are the parent's, and either class reads and
    continues what the other has stored. Large values are serialised and read off the event loop,
    while no connection is held. ``schema`` and ``ttl`` are as for the blocking twin.
    """

    _pool_class = AsyncLazyPool
    _accepted_types = (AsyncConnection, AsyncConnectionPool)

    def __init__(
        self,
        conn: AsyncConn | AsyncConnectionPool[Any],
        pipe: AsyncPipeline | None = None,
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
            retry=retry if isinstance(conn, AsyncConnectionPool) else None,
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
        # Not the parent's constructor: it wants a running loop.
        super(AsyncPostgresSaver, self).__init__(serde=serde)
        self.conn = conn
        self.pipe = pipe
        self.lock = asyncio.Lock()
        # The loop that the saver was used on last, at first that of its making, if there is one.
        self.loop = cast("asyncio.AbstractEventLoop", running_loop())
        self.supports_pipeline = Capabilities().has_pipeline()
        self._operations = operations
        self._owns_pool = owns_pool
        self._refuses_runs = refuses_runs(concurrent_runs)
        is_pool = isinstance(conn, (AsyncLazyPool, AsyncConnectionPool))
        reader = conn.reader if isinstance(conn, AsyncLazyPool) else None
        self._executor = AsyncExecutor(operations, reader=reader, keeps_connection=not is_pool)
        # A loop touches its own entry only.
        self._sweepers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]] = (
            weakref.WeakKeyDictionary()
        )

    @override
    @classmethod
    @asynccontextmanager
    async def from_conn_string(
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
    ) -> AsyncIterator[Self]:
        """As the blocking twin's."""
        check_connection_string(conn_string)
        await (await AsyncConnection.connect(conn_string)).close()
        async with AsyncConnectionPool(
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
                await saver.close()

    # life cycle

    async def open(self, *, timeout_s: float | None = None) -> None:
        """Connect now, so that what is wrong shows now, within ``timeout_s``.

        Raises:
            ConnectError: the connection was refused; a leaf says why.
        """
        async with self.connection(timeout_s=timeout_s):
            pass

    async def close(self) -> None:
        """End the running loop's sweeper and pool; a later use opens a new one."""
        await self.stop_ttl_sweeper()
        if self._owns_pool:
            await self.conn.close()

    async def __aenter__(self) -> Self:
        if self._owns_pool:
            try:
                await self.open()
            except BaseException:
                await self.close()
                raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

    @asynccontextmanager
    async def connection(self, *, timeout_s: float | None = None) -> AsyncIterator[AsyncConn]:
        """A connection of the saver's for SQL of your own, used by no other caller in the block.

        A pool's connection is waited for as long as the pool says, or for ``timeout_s`` seconds.
        """
        self.loop = asyncio.get_running_loop()  # where the blocking methods go
        conn: Any = self.conn
        if isinstance(conn, AsyncLazyPool):
            async with conn.connection(timeout_s) as pooled:
                yield pooled
        elif isinstance(conn, AsyncConnectionPool):
            async with aborrowed(conn, timeout_s) as pooled:
                yield pooled
        else:
            async with self.lock:
                yield conn

    @override
    async def setup(self, *, metadata_index: bool = False) -> None:
        """As the blocking twin's."""
        async with self.connection() as conn:
            commits = conn.autocommit
            if not commits:
                await conn.set_autocommit(True)
            try:
                await self._executor.run_on(self._setup(metadata_index=metadata_index), conn)
            finally:
                if not commits:
                    await conn.set_autocommit(False)

    # checkpoints

    @override
    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that the configuration names, else the latest of its thread."""
        row = await self._run(self._get(config))
        return None if row is None else await self._load_checkpoint_tuple(row)

    @override
    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Checkpoints from the newest on, read page by page as they are asked for.

        No connection is held between two of them. ``filter`` is compared with the metadata.
        """
        listing = self._listing(config, filter, before, limit)
        while not listing.has_ended:
            for row in await self._run(listing.page()):
                yield await self._load_checkpoint_tuple(row)

    @override
    async def aput(
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
        put = await _serialised(
            checkpoint["channel_values"].values(),
            lambda: prepared.put(config, checkpoint, metadata, new_versions, self.serde),
        )
        await self._run(self._storing(put))
        return put.config

    @override
    async def aput_writes(
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
        statement = await _serialised(
            (value for _, value in writes),
            lambda: prepared.put_writes(config, writes, task_id, task_path, self.serde),
        )
        await self._run(self._execution(statement))

    @override
    async def adelete_thread(self, thread_id: str) -> None:
        """Delete everything of a thread."""
        await self._run(self._execution(prepared.delete_threads([thread_id])))

    @override
    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """As the blocking twin's ``delete_for_runs``."""
        await self._run(delete_for_runs(run_ids, self._schema))

    @override
    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """As the blocking twin's ``copy_thread``."""
        copy = prepared.copy_thread(source_thread_id, target_thread_id)
        await self._run(self._execution(copy))

    @override
    async def aprune(
        self,
        thread_ids: Sequence[str] | None = None,
        *,
        strategy: str = "keep_latest",
        keep_last: int = 1,
        older_than: timedelta | None = None,
    ) -> None:
        """As the blocking twin's ``prune``."""
        await self._run(self._pruning(thread_ids, strategy, keep_last, older_than))

    @override
    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """As the parent's."""
        return await super().aget_delta_channel_history(
            config=with_text_id(config), channels=channels
        )

    # expiry

    async def adelete_idle_threads(self, idle_for: timedelta) -> int:
        """As the blocking twin's ``delete_idle_threads``."""
        return await self._run(self._idle_deletion(idle_for))

    async def sweep_ttl(self) -> int:
        """Delete threads that have been idle for ``default_ttl``; see `adelete_idle_threads`.

        Returns:
            How many were deleted; 0 without a TTL configuration.
        """
        return 0 if self._ttl is None else await self.adelete_idle_threads(self._ttl)

    async def start_ttl_sweeper(
        self, sweep_interval_minutes: float | None = None
    ) -> asyncio.Task[None]:
        """Sweep at this interval, in minutes, until stopped, closed or collected.

        Returns:
            The sweeper's task, which ends it when cancelled.
        """
        interval = self._operations.sweep_interval_s(sweep_interval_minutes)
        if interval is None:
            return asyncio.create_task(asyncio.sleep(0))
        loop = asyncio.get_running_loop()
        task = self._sweepers.get(loop)
        if task is None or task.done():
            task = loop.create_task(sweep_repeatedly(weakref.ref(self), interval))
            self._sweepers[loop] = task
        return task

    async def stop_ttl_sweeper(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as the store's
        """Stop the running loop's sweeper, waiting up to ``timeout`` seconds for it to end.

        Returns:
            Whether it has ended.
        """
        task = self._sweepers.pop(asyncio.get_running_loop(), None)
        if task is None:
            return True
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=timeout)
        return bool(done)

    # how statements travel

    async def _run(self, flow: Flow[T]) -> T:
        try:
            return await self._executor.run(flow, self.connection)
        except psycopg.errors.UndefinedTable as error:
            raise named_missing(error) from error

    # langgraph-checkpoint-postgres 3.2: what is inherited runs its statements by this.
    @override
    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[AsyncCursor[DictRow]]:
        async with (
            self.connection() as conn,
            conn.pipeline() if pipeline else nullcontext(),
            AsyncSchemaCursor(conn, row_factory=dict_row) as cursor,
        ):
            cursor.format = Format.BINARY
            cursor.schema = self._schema
            yield cursor

    # The parent decodes on the loop. The blocking parent's is the same code without a wait.
    @override
    async def _load_checkpoint_tuple(self, value: DictRow) -> CheckpointTuple:
        decode = PostgresSaver._load_checkpoint_tuple  # noqa: SLF001 - see above
        if sum(blob_sizes(value)) > serialization.LARGE:
            return await asyncio.to_thread(decode, cast("PostgresSaver", self), value)
        return decode(cast("PostgresSaver", self), value)

    # blocking calls, from threads other than the loop's

    def _call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return call_from_thread(make, self.loop, type(self).__name__)

    @override
    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """`aget_tuple` from another thread than the event loop's.

        Raises:
            WrongLoopError: called on a thread that runs a loop, or the saver's does not run.
        """
        return self._call(lambda: self.aget_tuple(config))

    @override
    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """`alist` from another thread than the event loop's."""
        listing = self._listing(config, filter, before, limit)

        async def page() -> tuple[CheckpointTuple, ...]:
            rows = await self._run(listing.page())
            return tuple([await self._load_checkpoint_tuple(row) for row in rows])

        while not listing.has_ended:
            yield from self._call(page)

    @override
    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """`aput` from another thread than the event loop's."""
        return self._call(lambda: self.aput(config, checkpoint, metadata, new_versions))

    @override
    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """`aput_writes` from another thread than the event loop's."""
        self._call(lambda: self.aput_writes(config, writes, task_id, task_path))

    @override
    def delete_thread(self, thread_id: str) -> None:
        """`adelete_thread` from another thread than the event loop's."""
        self._call(lambda: self.adelete_thread(thread_id))

    @override
    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """`adelete_for_runs` from another thread than the event loop's."""
        self._call(lambda: self.adelete_for_runs(run_ids))

    @override
    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """`acopy_thread` from another thread than the event loop's."""
        self._call(lambda: self.acopy_thread(source_thread_id, target_thread_id))

    @override
    def prune(
        self,
        thread_ids: Sequence[str] | None = None,
        *,
        strategy: str = "keep_latest",
        keep_last: int = 1,
        older_than: timedelta | None = None,
    ) -> None:
        """`aprune` from another thread than the event loop's."""
        self._call(
            lambda: self.aprune(
                thread_ids, strategy=strategy, keep_last=keep_last, older_than=older_than
            )
        )

    @override
    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """`aget_delta_channel_history` from another thread than the event loop's."""
        return self._call(lambda: self.aget_delta_channel_history(config=config, channels=channels))


async def _serialised(values: Iterable[Any], serialise: Callable[[], T]) -> T:
    """What serialising gives, off the event loop where there is much of it."""
    if serialization.is_large(values):
        return await asyncio.to_thread(serialise)
    return serialise()
