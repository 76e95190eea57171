"""AsyncAuroraStore: the asyncio store. The same methods in the same order as `store`."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from langgraph.store.base import BaseStore, Op, PutOp, Result, TTLConfig
from langgraph.store.postgres.aio import AsyncPostgresStore
from langgraph.store.postgres.base import PoolConfig, PostgresIndexConfig
from psycopg import AsyncConnection, AsyncPipeline, Capabilities
from psycopg_pool import AsyncConnectionPool
from typing_extensions import override

from langgraph_aurora_store.base import BaseAuroraStore
from langgraph_aurora_store.connect.connection import AsyncConn, AsyncConnect
from langgraph_aurora_store.connect.connection_string import check_connection_string
from langgraph_aurora_store.connect.lazy_pool import AsyncLazyPool
from langgraph_aurora_store.connect.user_pool import aborrowed
from langgraph_aurora_store.execution.blocking_calls import call_from_thread, running_loop
from langgraph_aurora_store.execution.coalescer import OperationCoalescer
from langgraph_aurora_store.execution.executor import AsyncExecutor
from langgraph_aurora_store.execution.lost_write_log import write_failures_logged
from langgraph_aurora_store.execution.read_routing import Readers, ReadSession
from langgraph_aurora_store.execution.retry import DEFAULT_RETRY, RetrySettings
from langgraph_aurora_store.execution.store_flows import Deserializer, Operations
from langgraph_aurora_store.execution.ttl_sweeper import sweep_repeatedly
from langgraph_aurora_store.execution.write_limiter import WriteLimiter
from langgraph_aurora_store.sql.batch import Prepared

if TYPE_CHECKING:
    from langgraph.checkpoint.serde.base import SerializerProtocol

    from langgraph_aurora_store.checkpoint.aio import AsyncAuroraSaver
    from langgraph_aurora_store.checkpoint.base import ConcurrentRuns


class AsyncAuroraStore(BaseAuroraStore, AsyncPostgresStore):
    """LangGraph's `AsyncPostgresStore` on Amazon Aurora PostgreSQL, with a token for a password.

    Make one with `from_cluster`, in or out of an event loop. Safe for any number of tasks, and for
    one event loop after another: each loop gets a pool of its own. Single operations of one
    event-loop iteration share requests to the embedding model and round trips, and each fails or
    succeeds alone; batches run concurrently. A connection is held only around statements.
    ``from_conn_string`` and the constructor work as the parent's do; a connection or pool passed in
    stays its owner's to close.

    ``schema`` places the tables in that schema instead of the search path's first. ``retry`` is as
    in `from_cluster`, for a pool; a single connection that is lost cannot be replaced.
    """

    _pool_class = AsyncLazyPool
    _accepted_types = (AsyncConnection, AsyncConnectionPool)

    def __init__(
        self,
        conn: AsyncConn | AsyncConnectionPool[Any],
        *,
        pipe: AsyncPipeline | None = None,
        deserializer: Deserializer | None = None,
        index: PostgresIndexConfig | None = None,
        ttl: TTLConfig | None = None,
        schema: str | None = None,
        retry: RetrySettings | None = DEFAULT_RETRY,
    ) -> None:
        self._check(conn)
        if isinstance(conn, AsyncConnectionPool) and pipe is not None:
            raise ValueError("a pipeline goes with a single AsyncConnection, not with a pool")
        operations = Operations(
            index=index,
            ttl=ttl,
            schema=schema,
            deserializer=deserializer,
            retry=retry if isinstance(conn, AsyncConnectionPool) else None,
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
        # Not the parent's constructor: it wants a running loop and starts a task on it.
        self.conn = conn
        self.pipe = pipe
        self.lock = asyncio.Lock()
        self.supports_pipeline = Capabilities().has_pipeline()
        self._deserializer = operations.deserializer
        self._task = None
        # The loop that the store was used on last; at first the one that it was made in, if any.
        self._loop = cast("asyncio.AbstractEventLoop", running_loop())
        self._operations = operations
        self.embeddings, self.index_config = operations.embeddings, operations.index_config
        self.ttl_config = operations.ttl_config
        # A loop touches only its own entries, each in a single step, so threads need no lock.
        self._sweepers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]] = (
            weakref.WeakKeyDictionary()
        )
        self._coalescers: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, OperationCoalescer
        ] = weakref.WeakKeyDictionary()
        self._write_limiters: dict[asyncio.AbstractEventLoop, WriteLimiter] = {}
        is_pool = isinstance(conn, (AsyncLazyPool, AsyncConnectionPool))
        reader = conn.reader if isinstance(conn, AsyncLazyPool) else None
        self._readers: AsyncLazyPool | None = readers
        routing = Readers(readers.connection, ReadSession(read_your_writes_s)) if readers else None
        self._executor = AsyncExecutor(
            operations, reader=reader, readers=routing, keeps_connection=not is_pool
        )

    @override
    @classmethod
    @asynccontextmanager
    async def from_conn_string(
        cls,
        conn_string: str,
        *,
        pipeline: bool = False,
        pool_config: PoolConfig | None = None,
        index: PostgresIndexConfig | None = None,
        ttl: TTLConfig | None = None,
        schema: str | None = None,
        retry: RetrySettings | None = DEFAULT_RETRY,
    ) -> AsyncIterator[Self]:
        """As the parent's: a store on a connection string, closed with the block."""
        check_connection_string(conn_string)
        async with (
            super().from_conn_string(
                conn_string, pipeline=pipeline, pool_config=pool_config
            ) as plain,
            cls(
                plain.conn, pipe=plain.pipe, index=index, ttl=ttl, schema=schema, retry=retry
            ) as store,
        ):
            yield store

    # life cycle

    async def open(self, *, timeout_s: float | None = None) -> None:
        """Connect now, so that what is wrong shows now.

        Args:
            timeout_s: seconds to wait for a connection of the pool; by default its own.

        Raises:
            ConnectError: the connection was refused; a leaf says why.
        """
        async with self.connection(timeout_s=timeout_s):
            pass

    async def close(self) -> None:
        """End the running loop's operations, sweeper and pool; a later use opens a new one."""
        if coalescer := self._coalescers.pop(asyncio.get_running_loop(), None):
            await coalescer.drain()
        self._write_limiters.pop(asyncio.get_running_loop(), None)
        await self.stop_ttl_sweeper()
        if isinstance(self.conn, AsyncLazyPool):
            await self.conn.close()
            self._operations.forget()
        if self._readers is not None:
            await self._readers.close()

    @override
    async def __aenter__(self) -> Self:
        if isinstance(self.conn, AsyncLazyPool):
            try:
                await self.open()
            except BaseException:
                await self.close()
                raise
        return self

    @override
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

    @asynccontextmanager
    async def connection(self, *, timeout_s: float | None = None) -> AsyncIterator[AsyncConn]:
        """A connection of the store's for SQL of your own, used by no other caller in the block.

        A pool's connection is waited for as long as the pool says, or for ``timeout_s`` seconds.
        """
        self._loop = asyncio.get_running_loop()  # where `batch` sends what threads ask for
        if isinstance(self.conn, AsyncLazyPool):
            async with self.conn.connection(timeout_s) as pooled:
                yield pooled
        elif isinstance(self.conn, AsyncConnectionPool):
            async with aborrowed(self.conn, timeout_s) as pooled:
                yield pooled
        else:
            async with self.lock:
                yield self.conn

    def checkpointer(
        self,
        *,
        serde: SerializerProtocol | None = None,
        ttl: TTLConfig | None = None,
        concurrent_runs: ConcurrentRuns = "allow",
    ) -> AsyncAuroraSaver:
        """A LangGraph checkpointer on the store's own connection or pool, and in its schema.

        Closing the store closes it. The parameters are those of
        `AsyncAuroraSaver.from_cluster`.
        """
        from langgraph_aurora_store.checkpoint.aio import AsyncAuroraSaver

        return AsyncAuroraSaver.on_pool(
            self.conn,
            lock=self.lock,
            settings=self._operations,
            serde=serde,
            ttl=ttl,
            concurrent_runs=concurrent_runs,
        )

    # operations

    @override
    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations in order; all of their writes take effect, or none.

        A single operation travels with the others of its event-loop iteration and shares only the
        round trip.
        Writes that fail are also logged at ERROR, with namespace and key.
        """
        known = list(ops)
        with write_failures_logged(known):
            return await self._submit(known)

    @override
    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations from a thread other than the event loop's; see `abatch`.

        Raises:
            WrongLoopError: called on a thread that runs a loop, or the store's loop is not running.
        """
        known = list(ops)
        with write_failures_logged(known):
            return call_from_thread(lambda: self._submit(known), self._loop)

    # The parent's queue runs one batch at a time; these go through `batch` and `abatch` instead.
    get, put, delete, search, list_namespaces = (
        BaseStore.get,
        BaseStore.put,
        BaseStore.delete,
        BaseStore.search,
        BaseStore.list_namespaces,
    )
    aget, aput, adelete, asearch, alist_namespaces = (
        BaseStore.aget,
        BaseStore.aput,
        BaseStore.adelete,
        BaseStore.asearch,
        BaseStore.alist_namespaces,
    )

    async def acount(
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
        return await self._executor.run(flow, self.connection, reads_only=True)

    async def adelete_namespace(self, namespace_prefix: tuple[str, ...]) -> int:
        """Delete the items in a namespace and below it, and return how many there were.

        Up to 10,000 items go in one transaction; more in one for every 10,000.

        Raises:
            InvalidNamespaceError: for the empty namespace, which holds everything.
        """
        return await self._executor.run(
            self._operations.delete_namespace(namespace_prefix), self.connection
        )

    @override
    async def setup(self) -> None:
        """Create or complete the tables. Safe from any number of processes at a time.

        Raises:
            SchemaDriftError: what is there differs from the index configuration.
            SchemaError: a right or the vector extension is missing; `ddl` is for who has it.
        """
        async with self.connection() as conn:
            await self._executor.run_on(self._operations.setup(), conn)

    # expiry

    @override
    async def sweep_ttl(self) -> int:
        """Delete expired items, in bounded batches, unless another process is sweeping.

        Returns:
            How many were deleted.
        """
        return await self._executor.run(self._operations.sweep(), self.connection)

    @override
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

    @override
    async def stop_ttl_sweeper(self, timeout: float | None = None) -> bool:
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

    @override
    def __del__(self) -> None:
        """The parent cancels its queue's task here; there is none."""

    # how operations travel

    def _coalescer(self) -> OperationCoalescer:
        loop = asyncio.get_running_loop()
        if (coalescer := self._coalescers.get(loop)) is None:
            limiter = self._write_limiter()
            coalescer = self._coalescers[loop] = OperationCoalescer(
                self._prepare_group,
                self._complete_part,
                self._operations.check,
                self._write_slot,
                key_timeout_s=limiter.timeout_s if limiter else None,
            )
        return coalescer

    def _write_slot(self, part: Prepared) -> AbstractAsyncContextManager[AsyncConnect]:
        """Wait until a part may be completed; yields how it connects then."""
        # Limit writes, or those that wait for a locked row would leave no connection to reads.
        limiter = self._write_limiter() if part.batch.writes.puts else None
        return limiter.slot() if limiter else nullcontext(self.connection)

    def _write_limiter(self) -> WriteLimiter | None:
        """The running loop's limiter; ``None`` without a pool."""
        loop = asyncio.get_running_loop()
        if loop not in self._write_limiters and isinstance(
            self.conn, (AsyncLazyPool, AsyncConnectionPool)
        ):
            # A semaphore that was awaited references its loop: a WeakKeyDictionary would keep it.
            for ended in [known for known in list(self._write_limiters) if known.is_closed()]:
                self._write_limiters.pop(ended, None)
            self._write_limiters[loop] = WriteLimiter(self.conn, self.connection)
        return self._write_limiters.get(loop)

    async def _submit(self, ops: Sequence[Op]) -> list[Result]:
        if len(ops) == 1:
            return [await self._coalescer().submit(ops[0])]
        return await self._coalescer().track(self._batch(ops))

    async def _batch(self, ops: Sequence[Op]) -> list[Result]:
        flow = self._operations.batch(ops)
        return await self._executor.run(flow, self.connection, reads_only=_reads_only(ops))

    async def _prepare_group(self, ops: Sequence[Op]) -> list[Prepared]:
        limiter = self._write_limiter()
        flow = self._operations.prepare(ops, at_most=limiter.size if limiter else 1)
        return await self._executor.run(flow, self.connection, reads_only=_reads_only(ops))

    async def _complete_part(self, part: Prepared, connect: AsyncConnect) -> list[Result]:
        flow = self._operations.complete(part)
        return await self._executor.run(flow, connect, reads_only=not part.batch.writes.puts)


def _reads_only(ops: Sequence[Op]) -> bool:
    return not any(isinstance(op, PutOp) for op in ops)
