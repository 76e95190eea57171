"""AsyncAuroraStore: the asyncio store. The same methods in the same order as `store`."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

from langgraph.store.base import BaseStore, Op, Result, TTLConfig
from langgraph.store.postgres.base import PoolConfig, PostgresIndexConfig
from langgraph.store.postgres.aio import AsyncPostgresStore
from psycopg import AsyncConnection, AsyncCursor, AsyncPipeline, Capabilities
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import AsyncConnectionPool
from typing_extensions import override

from langgraph_aurora_store import vectors
from langgraph_aurora_store.base import BaseAuroraStore, Deserializer
from langgraph_aurora_store.connect.connector import Connector
from langgraph_aurora_store.connect.pool import AsyncAuroraPool, make_async_pool
from langgraph_aurora_store.connect.settings import PoolSettings
from langgraph_aurora_store.embeddings.labels import text_labels
from langgraph_aurora_store.engine import Engine, labels_of
from langgraph_aurora_store.loops import call_from_thread
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
from langgraph_aurora_store.sweeper import sweep_for_ever
from langgraph_aurora_store.tick import Tick

T = TypeVar("T")
Conn: TypeAlias = AsyncConnection[Any]


class AsyncOwnPool:
    """A pool for each event loop, made when one first asks for it, and again after `close`."""

    def __init__(self, connector: Connector, settings: PoolSettings) -> None:
        self._connector = connector
        self._settings = settings
        self._pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncAuroraPool] = (
            weakref.WeakKeyDictionary()
        )

    async def get(self) -> AsyncAuroraPool:
        """The open pool of the running loop."""
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            self._abandon_closed()
            pool = self._pools[loop] = make_async_pool(self._connector, self._settings)
        await pool.open()
        return pool

    async def close(self) -> None:
        """Close the running loop's pool, if there is one."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.close()

    def _abandon_closed(self) -> None:
        """Close the sockets of pools whose loop has ended: nothing can be awaited there again."""
        for loop in [loop for loop in self._pools if loop.is_closed()]:
            # psycopg_pool 3.3 has nothing public that closes without a loop.
            for connection in self._pools.pop(loop)._pool:  # noqa: SLF001
                connection.pgconn.finish()


class AsyncAuroraStore(BaseAuroraStore, AsyncPostgresStore):
    """LangGraph's `AsyncPostgresStore` on Amazon Aurora PostgreSQL, with a token for a password.

    Make one with `from_cluster`, in or out of an event loop. Safe for any number of tasks, and for
    one event loop after another: each loop gets a pool of its own. Operations that the tasks of
    one tick issue share requests to the embedding model and round trips, and each fails or
    succeeds alone; batches run concurrently. A connection is held only around statements.
    ``from_conn_string`` and the constructor work as the parent's do; a connection or pool passed in
    stays its owner's to close.

    ``schema`` places the tables in that schema instead of the search path's first.
    """

    _own_pool = AsyncOwnPool

    def __init__(
        self,
        conn: Conn | AsyncConnectionPool[Any],
        *,
        pipe: AsyncPipeline | None = None,
        deserializer: Deserializer | None = None,
        index: PostgresIndexConfig | None = None,
        ttl: TTLConfig | None = None,
        schema: str | None = None,
    ) -> None:
        if isinstance(conn, AsyncConnectionPool) and pipe is not None:
            raise ValueError("a pipeline goes with a single AsyncConnection, not with a pool")
        engine = Engine(index=index, ttl=ttl, schema=schema)
        self._begin(conn, engine, pipe=pipe, deserializer=deserializer)

    @override
    def _begin(
        self,
        conn: Any,
        engine: Engine,
        *,
        pipe: AsyncPipeline | None = None,
        deserializer: Deserializer | None = None,
    ) -> None:
        # Not the parent's constructor: it wants a running loop and starts a task on it.
        self.conn = conn
        self.pipe = pipe
        self.lock = asyncio.Lock()
        self.supports_pipeline = Capabilities().has_pipeline()
        self._deserializer = deserializer
        self._task = None
        self._loop = None  # that the store was used on last
        self._engine = engine
        self.embeddings, self.index_config = engine.embeddings, engine.index_config
        self.ttl_config = engine.ttl_config
        self._sweepers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]] = (
            weakref.WeakKeyDictionary()
        )
        self._ticks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Tick] = (
            weakref.WeakKeyDictionary()
        )
        self._registered: weakref.WeakSet[Conn] = weakref.WeakSet()
        self._vector_types: list[TupleRow] = []

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
    ) -> AsyncIterator[Self]:
        """As the parent's: a store on a connection string, closed with the block."""
        async with (
            super().from_conn_string(
                conn_string, pipeline=pipeline, pool_config=pool_config
            ) as plain,
            cls(plain.conn, pipe=plain.pipe, index=index, ttl=ttl, schema=schema) as store,
        ):
            yield store

    # life cycle

    async def open(self) -> None:
        """Connect now, so that what is wrong shows now.

        Raises:
            ConnectError: the connection was refused; a leaf says why.
        """
        async with self.connection():
            pass

    async def close(self) -> None:
        """End the running loop's operations, sweeper and pool; a later use opens a new one."""
        if tick := self._ticks.pop(asyncio.get_running_loop(), None):
            await tick.drain()
        await self.stop_ttl_sweeper()
        if isinstance(self.conn, AsyncOwnPool):
            await self.conn.close()

    @override
    async def __aenter__(self) -> Self:
        if isinstance(self.conn, AsyncOwnPool):
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
    async def connection(self) -> AsyncIterator[Conn]:
        """A connection of the store's, for SQL of your own; nobody else uses it in the block."""
        conn = await self.conn.get() if isinstance(self.conn, AsyncOwnPool) else self.conn
        if isinstance(conn, AsyncConnectionPool):
            async with conn.connection() as pooled:
                yield pooled
        else:
            async with self.lock:
                yield conn

    # operations

    @override
    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations in order; all of their writes take effect, or none.

        A single operation travels with the others of its tick and shares nothing but the trip.
        Writes that fail are also logged at ERROR, with namespace and key.
        """
        known = list(ops)
        with lost_writes_logged(known):
            return await self._submit(known)

    @override
    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations from a thread other than the event loop's; see `abatch`.

        Raises:
            WrongLoopError: called on a thread that runs a loop, or the store's loop is not running.
        """
        known = list(ops)
        with lost_writes_logged(known):
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
        return await self._drive(self._engine.count(namespace_prefix, filter))

    async def adelete_namespace(self, namespace_prefix: tuple[str, ...]) -> int:
        """Delete the items in a namespace and below it, and return how many there were.

        Up to 10,000 items go in one transaction; more in one for every 10,000.

        Raises:
            InvalidNamespaceError: for the empty namespace, which holds everything.
        """
        return await self._drive(self._engine.delete_namespace(namespace_prefix))

    @override
    async def setup(self) -> None:
        """Create or complete the tables. Safe from any number of processes at a time.

        Raises:
            SchemaDriftError: what is there differs from the index configuration.
            SchemaError: a right or the vector extension is missing; `ddl` is for who has it.
        """
        async with self.connection() as conn:
            await self._drive(self._engine.setup(), conn)

    # expiry

    @override
    async def sweep_ttl(self) -> int:
        """Delete expired items, in bounded batches, unless another process is at it.

        Returns:
            How many were deleted.
        """
        return await self._drive(self._engine.sweep())

    @override
    async def start_ttl_sweeper(
        self, sweep_interval_minutes: float | None = None
    ) -> asyncio.Task[None]:
        """Sweep every so many minutes until stopped, closed or collected.

        Returns:
            The sweeper's task, which ends it when cancelled.
        """
        interval = self._engine.sweep_interval_s(sweep_interval_minutes)
        if interval is None:
            return asyncio.create_task(asyncio.sleep(0))
        loop = asyncio.get_running_loop()
        task = self._sweepers.get(loop)
        if task is None or task.done():
            task = loop.create_task(sweep_for_ever(weakref.ref(self), interval))
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

    # the driver

    def _tick(self) -> Tick:
        loop = self._loop = asyncio.get_running_loop()
        if (tick := self._ticks.get(loop)) is None:
            tick = self._ticks[loop] = Tick(self._batch)
        return tick

    async def _submit(self, ops: Sequence[Op]) -> list[Result]:
        if len(ops) == 1:
            return [await self._tick().submit(ops[0])]
        return await self._batch(ops)

    async def _batch(self, ops: Iterable[Op]) -> list[Result]:
        return await self._drive(self._engine.batch(ops))

    async def _drive(self, flow: Conversation[T], conn: Conn | None = None) -> T:
        """Perform a flow's steps; on ``conn`` where given, else on a connection for each `Run`."""
        try:
            step = next(flow)
            while True:
                try:
                    reply = await self._perform(step, conn)
                except Exception as exc:  # noqa: BLE001 - the flow decides what to make of it
                    step = flow.throw(exc)
                else:
                    step = flow.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _perform(self, step: Step, conn: Conn | None) -> object:
        if isinstance(step, Embed):
            return await self._embed(step)
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if conn is None:
            async with self.connection() as own:
                return await self._on(own, step)
        # psycopg 3.3 loses count of prepared statements when a pipeline drops something.
        return await self._on(conn, step, prepare=False)

    async def _embed(self, step: Embed) -> Vectors:
        assert self.embeddings is not None  # noqa: S101 - no flow embeds without an index
        documents: list[list[float]] = []
        if step.documents:
            with text_labels(labels_of(step.labels)):
                documents = await self.embeddings.aembed_documents(list(step.documents))
        return Vectors(
            documents,
            await asyncio.gather(*(self.embeddings.aembed_query(q) for q in step.queries)),
        )

    async def _on(self, conn: Conn, step: Run | Execute, *, prepare: bool | None = None) -> object:
        await self._register(conn)
        if isinstance(step, Execute):
            return await _rows(await _send(conn, step.statement, prepare=prepare))
        # Without BEGIN a pipeline is one transaction up to its end, and costs one round trip.
        async with nullcontext() if conn.autocommit else conn.transaction(), conn.pipeline():
            cursors = [
                await _send(conn, statement, prepare=prepare) for statement in step.statements
            ]
        return [await _rows(cursor) for cursor in cursors]

    async def _register(self, conn: Conn) -> None:
        """Teach a connection pgvector's types, once the database has them."""
        if self.embeddings is None or conn in self._registered:
            return
        if not self._vector_types:
            self._vector_types = await _rows(await _send(conn, Statement(vectors.TYPES)))
        if self._vector_types:
            vectors.register(conn, self._vector_types)
            self._registered.add(conn)


async def _send(
    conn: Conn, statement: Statement, *, prepare: bool | None = None
) -> AsyncCursor[TupleRow]:
    cursor = conn.cursor(binary=True, row_factory=tuple_row)
    return await cursor.execute(statement.sql, statement.params or None, prepare=prepare)


async def _rows(cursor: AsyncCursor[TupleRow]) -> Rows:
    return Rows(await cursor.fetchall() if cursor.description else (), cursor.rowcount)
