"""Executors perform the steps of flows: one blocking, one for asyncio.

They throw what a step raised into the flow, which may choose another way.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    nullcontext,
    suppress,
)
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncCursor, BaseConnection, Cursor
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import TupleRow, tuple_row

from langgraph_aurora_store.connect.cancel_safety import run_shielded
from langgraph_aurora_store.connect.connection import (
    AsyncConn,
    AsyncConnect,
    Conn,
    Connect,
    is_demoted,
    note_statement_error,
)
from langgraph_aurora_store.connect.error_redaction import without_values
from langgraph_aurora_store.connect.redacting_cursor import hide_values
from langgraph_aurora_store.embeddings.base import EmbedsQueries
from langgraph_aurora_store.embeddings.text_labels import text_labels
from langgraph_aurora_store.errors import AuroraStoreError
from langgraph_aurora_store.execution import pgvector_types
from langgraph_aurora_store.execution.commit_marks import (
    Mark,
    WriteMarks,
    committed_rows,
    is_mark_used,
    marked,
    outcome_of,
)
from langgraph_aurora_store.execution.read_routing import (
    READER_TIMEOUT_S,
    WRITTEN,
    Readers,
    ReadSession,
    may_be_old,
    positioned,
)
from langgraph_aurora_store.execution.retry import (
    READ_ONLY_CAUSE,
    Attempts,
    Failure,
    costs_connection,
    demoted,
    is_optional,
    is_read_only,
    read_only_endpoint,
    read_only_role,
)
from langgraph_aurora_store.execution.store_flows import Operations, labels_of
from langgraph_aurora_store.sql.flow import (
    Autocommit,
    Embed,
    Flow,
    Rows,
    Sleep,
    Statement,
    Step,
    Transaction,
    Vectors,
)

T = TypeVar("T")

# How many queries are embedded at a time by a model that takes them one by one.
_QUERIES_AT_ONCE = 16


# A pipeline is one transaction without them, which is enough for reads. But when a transaction
# fails at its end, psycopg 3.3 loses the reason and then the connection.
_BEGIN, _COMMIT = Statement("BEGIN"), Statement("COMMIT")
_TYPES = Transaction((Statement(pgvector_types.TYPES),))


class Executor:
    """Performs flows by blocking; any number of threads at a time.

    ``reader`` is the endpoint's name, where the name says that it serves reads only.
    """

    def __init__(
        self,
        operations: Operations,
        *,
        reader: str | None = None,
        readers: Readers | None = None,
    ) -> None:
        self._operations = operations
        self._retry = operations.retry
        self._reader = reader
        self._readers = readers
        self._marks = WriteMarks()

    def run(self, flow: Flow[T], connect: Connect, *, reads_only: bool = False) -> T:
        """The flow's result; each `Transaction` has a connection, held for it only.

        ``reads_only``: a reader may serve it.
        """
        attempts = Attempts(self._retry, reads_only=reads_only)
        return self._run_flow(flow, connect, attempts, prepare=None)

    def run_on(self, flow: Flow[T], conn: Conn) -> T:
        """The flow's result, all of it on one connection."""
        # psycopg 3.3 loses count of prepared statements when a pipeline drops something.
        return self._run_flow(flow, lambda: nullcontext(conn), None, prepare=False)

    def _run_flow(
        self, flow: Flow[T], connect: Connect, attempts: Attempts | None, *, prepare: bool | None
    ) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    reply = self._perform(step, connect, attempts, prepare=prepare)
                except BaseException as exc:
                    step = flow.throw(exc)
                else:
                    step = flow.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _perform(
        self, step: Step, connect: Connect, attempts: Attempts | None, *, prepare: bool | None
    ) -> object:
        if isinstance(step, Embed):
            return self._embed(step)
        if isinstance(step, Sleep):
            time.sleep(step.seconds)
            return None
        if attempts is not None:
            return self._perform_repeatedly(step, connect, attempts)
        with connect() as conn:
            return self._perform_on(conn, step, prepare=prepare)

    def _perform_repeatedly(
        self, step: Transaction | Autocommit, connect: Connect, attempts: Attempts
    ) -> object:
        if attempts.reads_only and (rows := self._read(step)) is not None:
            return rows
        mark: Mark | None = None
        while True:
            try:
                with connect(**attempts.left()) as conn:
                    mark = mark or self._marks.next(conn, step)
                    reply = self._attempt(conn, step, mark)
                    if self._readers is not None and not isinstance(reply, Failure):
                        self._observe(conn, self._readers.session)
            except psycopg.Error as exc:
                reply = attempts.without_connection(exc)
            if not isinstance(reply, Failure):
                return reply
            mark = None if reply.is_superseded else mark
            time.sleep(attempts.retry_after_s(reply, step))

    def _read(self, step: Transaction | Autocommit) -> Any:
        """What a reader answers; ``None`` where the writer has to be asked."""
        readers = self._readers
        if readers is None or not may_be_old(step):
            return None
        if not readers.session.may_ask_reader():
            return None
        try:
            with readers.connect(READER_TIMEOUT_S) as conn:
                ((position,), *rows) = self._perform_on(conn, positioned(step), prepare=None)
        except (psycopg.Error, AuroraStoreError) as exc:
            readers.session.failed(exc)
            return None
        is_standby, replayed = position
        return rows if readers.session.accepts(is_standby=is_standby, replayed=replayed) else None

    def _observe(self, conn: Conn, session: ReadSession) -> None:
        """Note how new what the writer has written or read may be."""
        position = None
        with suppress(psycopg.Error):
            (((position,),),) = self._execute(conn, WRITTEN, prepare=None)
        session.observed(position)

    def _attempt(
        self, conn: Conn, step: Transaction | Autocommit, mark: Mark | None
    ) -> Any | Failure:
        try:
            if mark is None or isinstance(step, Autocommit):
                rows = self._perform_on(conn, step, prepare=None)
                if is_demoted(conn):
                    raise demoted()  # what it has read may be older than what was acknowledged
                return rows
            try:
                rows = self._perform_on(conn, marked(step, mark), prepare=None)
                return rows[: len(step.statements)]
            except psycopg.errors.NotNullViolation as exc:
                if not is_mark_used(exc):
                    raise
                (outcome,) = self._execute(conn, outcome_of(mark), prepare=False)
                if (rows := committed_rows(step, mark, outcome)) is None:
                    raise
                return rows
        except psycopg.Error as exc:
            return self._failure(conn, exc, step)

    def _failure(self, conn: Conn, exc: psycopg.Error, step: Transaction | Autocommit) -> Failure:
        """What an attempt failed of; closes a connection that cannot be used again."""
        is_closed = conn.closed
        if is_read_only(exc) and self._reader is not None:
            return Failure(read_only_endpoint(self._reader), is_closed)
        if self._retry is None:
            note_statement_error(conn, exc)
        if self._retry is None or is_optional(step):
            return Failure(exc, is_closed)
        if is_read_only(exc) and not is_closed:
            (((is_final,),),) = self._execute(conn, READ_ONLY_CAUSE, prepare=False)
            exc = read_only_role() if is_final else exc
        note_statement_error(conn, exc)
        if costs_connection(exc):
            conn.close()
        return Failure(exc, is_closed)

    def _perform_on(
        self, conn: Conn, step: Transaction | Autocommit, *, prepare: bool | None
    ) -> Any:
        try:
            self._register(conn)
            return self._execute(conn, step, prepare=prepare)
        except psycopg.Error as exc:
            error = without_values(exc)
        raise error  # here, as an error chained to it would be shown with it

    def _execute(self, conn: Conn, step: Transaction | Autocommit, *, prepare: bool | None) -> Any:
        if isinstance(step, Autocommit):
            with conn.pipeline() if _is_in_pipeline(conn) else nullcontext():
                cursor = _send(conn, step.statement, prepare=prepare)
            return _rows(cursor)
        if len(step.statements) == 1 and _is_plain(conn):
            return [_rows(_send(conn, step.statements[0], prepare=prepare))]
        return [_rows(cursor) for cursor in _run(conn, step, prepare=prepare)]

    def _embed(self, step: Embed) -> Vectors:
        return Vectors(self._documents(step), self._queries(step.queries))

    def _documents(self, step: Embed) -> list[list[float]]:
        if not step.documents:
            return []
        with text_labels(labels_of(step.labels)):
            return self._operations.embedder.embed_documents(list(step.documents))

    def _queries(self, queries: Sequence[str]) -> list[list[float]]:
        if not queries:
            return []
        embedder = self._operations.embedder
        if len(queries) == 1:
            return [embedder.embed_query(queries[0])]
        if isinstance(embedder, EmbedsQueries):
            return embedder.embed_queries(list(queries))
        with ThreadPoolExecutor(_QUERIES_AT_ONCE) as threads:
            context = contextvars.copy_context
            futures = [threads.submit(context().run, embedder.embed_query, q) for q in queries]
            return [future.result() for future in futures]

    def _register(self, conn: Conn) -> None:
        """Register pgvector's types with a connection, once the database has them."""
        pgvector = self._operations.pgvector
        if self._operations.embeddings is None or pgvector.is_registered(conn):
            return
        if not pgvector.types:
            (types,) = _run(conn, _TYPES, prepare=False)
            pgvector.types = _rows(types)
        pgvector.register(conn)


class AsyncExecutor:
    """The asyncio twin of `Executor`; any number of tasks at a time, in one event loop or several.

    ``keeps_connection`` is for a store on one connection, which nothing would replace.
    """

    def __init__(
        self,
        operations: Operations,
        *,
        reader: str | None = None,
        readers: Readers | None = None,
        keeps_connection: bool,
    ) -> None:
        self._operations = operations
        self._retry = operations.retry
        self._reader = reader
        self._readers = readers
        self._marks = WriteMarks()
        self._keeps_connection = keeps_connection

    async def run(self, flow: Flow[T], connect: AsyncConnect, *, reads_only: bool = False) -> T:
        """The flow's result; each `Transaction` has a connection, held for it only.

        ``reads_only``: a reader may serve it.
        """
        attempts = Attempts(self._retry, reads_only=reads_only)
        return await self._run_flow(flow, connect, attempts, prepare=None)

    async def run_on(self, flow: Flow[T], conn: AsyncConn) -> T:
        """The flow's result, all of it on one connection."""
        # As in the blocking twin.
        return await self._run_flow(flow, lambda: nullcontext(conn), None, prepare=False)

    async def _run_flow(
        self,
        flow: Flow[T],
        connect: AsyncConnect,
        attempts: Attempts | None,
        *,
        prepare: bool | None,
    ) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    reply = await self._perform(step, connect, attempts, prepare=prepare)
                except BaseException as exc:
                    step = flow.throw(exc)
                else:
                    step = flow.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _perform(
        self, step: Step, connect: AsyncConnect, attempts: Attempts | None, *, prepare: bool | None
    ) -> object:
        seen = _cancellations()
        reply = await self._perform_step(step, connect, attempts, prepare=prepare)
        _raise_if_cancelled(seen)
        return reply

    async def _perform_step(
        self, step: Step, connect: AsyncConnect, attempts: Attempts | None, *, prepare: bool | None
    ) -> object:
        if isinstance(step, Embed):
            return await self._embed(step)
        if isinstance(step, Sleep):
            await asyncio.sleep(step.seconds)
            return None
        if self._keeps_connection:
            return await run_shielded(
                connect, lambda conn: self._perform_on(conn, step, prepare=prepare)
            )
        if attempts is not None:
            return await self._perform_repeatedly(step, connect, attempts)
        async with connect() as conn:
            return await self._perform_on(conn, step, prepare=prepare)

    async def _perform_repeatedly(
        self, step: Transaction | Autocommit, connect: AsyncConnect, attempts: Attempts
    ) -> object:
        if attempts.reads_only and (rows := await self._read(step)) is not None:
            return rows
        mark: Mark | None = None
        while True:
            try:
                async with connect(**attempts.left()) as conn:
                    mark = mark or self._marks.next(conn, step)
                    reply = await self._attempt(conn, step, mark)
                    if self._readers is not None and not isinstance(reply, Failure):
                        await self._observe(conn, self._readers.session)
            except psycopg.Error as exc:
                reply = attempts.without_connection(exc)
            if not isinstance(reply, Failure):
                return reply
            mark = None if reply.is_superseded else mark
            await asyncio.sleep(attempts.retry_after_s(reply, step))

    async def _read(self, step: Transaction | Autocommit) -> Any:
        """What a reader answers; ``None`` where the writer has to be asked."""
        readers = self._readers
        if readers is None or not may_be_old(step):
            return None
        if not readers.session.may_ask_reader():
            return None
        try:
            async with readers.connect(READER_TIMEOUT_S) as conn:
                ((position,), *rows) = await self._perform_on(conn, positioned(step), prepare=None)
        except (psycopg.Error, AuroraStoreError) as exc:
            readers.session.failed(exc)
            return None
        is_standby, replayed = position
        return rows if readers.session.accepts(is_standby=is_standby, replayed=replayed) else None

    async def _observe(self, conn: AsyncConn, session: ReadSession) -> None:
        """Note how new what the writer has written or read may be."""
        position = None
        with suppress(psycopg.Error):
            (((position,),),) = await self._execute(conn, WRITTEN, prepare=None)
        session.observed(position)

    async def _attempt(
        self, conn: AsyncConn, step: Transaction | Autocommit, mark: Mark | None
    ) -> Any | Failure:
        try:
            if mark is None or isinstance(step, Autocommit):
                rows = await self._perform_on(conn, step, prepare=None)
                if is_demoted(conn):
                    raise demoted()  # what it has read may be older than what was acknowledged
                return rows
            try:
                rows = await self._perform_on(conn, marked(step, mark), prepare=None)
                return rows[: len(step.statements)]
            except psycopg.errors.NotNullViolation as exc:
                if not is_mark_used(exc):
                    raise
                (outcome,) = await self._execute(conn, outcome_of(mark), prepare=False)
                if (rows := committed_rows(step, mark, outcome)) is None:
                    raise
                return rows
        except psycopg.Error as exc:
            return await self._failure(conn, exc, step)

    async def _failure(
        self, conn: AsyncConn, exc: psycopg.Error, step: Transaction | Autocommit
    ) -> Failure:
        """What an attempt failed of; closes a connection that cannot be used again."""
        is_closed = conn.closed
        if is_read_only(exc) and self._reader is not None:
            return Failure(read_only_endpoint(self._reader), is_closed)
        if self._retry is None:
            note_statement_error(conn, exc)
        if self._retry is None or is_optional(step):
            return Failure(exc, is_closed)
        if is_read_only(exc) and not is_closed:
            (((is_final,),),) = await self._execute(conn, READ_ONLY_CAUSE, prepare=False)
            exc = read_only_role() if is_final else exc
        note_statement_error(conn, exc)
        if costs_connection(exc):
            await conn.close()
        return Failure(exc, is_closed)

    async def _perform_on(
        self, conn: AsyncConn, step: Transaction | Autocommit, *, prepare: bool | None
    ) -> Any:
        try:
            await self._register(conn)
            return await self._execute(conn, step, prepare=prepare)
        except psycopg.Error as exc:
            error = without_values(exc)
        raise error  # here, as an error chained to it would be shown with it

    async def _execute(
        self, conn: AsyncConn, step: Transaction | Autocommit, *, prepare: bool | None
    ) -> Any:
        if isinstance(step, Autocommit):
            async with conn.pipeline() if _is_in_pipeline(conn) else nullcontext():
                cursor = await _asend(conn, step.statement, prepare=prepare)
            return await _arows(cursor)
        if len(step.statements) == 1 and _is_plain(conn):
            return [await _arows(await _asend(conn, step.statements[0], prepare=prepare))]
        return [await _arows(cursor) for cursor in await _arun(conn, step, prepare=prepare)]

    async def _embed(self, step: Embed) -> Vectors:
        return Vectors(*await asyncio.gather(self._documents(step), self._queries(step.queries)))

    async def _documents(self, step: Embed) -> list[list[float]]:
        if not step.documents:
            return []
        with text_labels(labels_of(step.labels)):
            return await self._operations.embedder.aembed_documents(list(step.documents))

    async def _queries(self, queries: Sequence[str]) -> list[list[float]]:
        if not queries:
            return []
        embedder = self._operations.embedder
        if len(queries) > 1 and isinstance(embedder, EmbedsQueries):
            return await embedder.aembed_queries(list(queries))
        return await asyncio.gather(*map(embedder.aembed_query, queries))

    async def _register(self, conn: AsyncConn) -> None:
        """Register pgvector's types with a connection, once the database has them."""
        pgvector = self._operations.pgvector
        if self._operations.embeddings is None or pgvector.is_registered(conn):
            return
        if not pgvector.types:
            (types,) = await _arun(conn, _TYPES, prepare=False)
            pgvector.types = await _arows(types)
        pgvector.register(conn)


def _run(conn: Conn, transaction: Transaction, *, prepare: bool | None) -> list[Cursor[TupleRow]]:
    if not conn.autocommit:
        with conn.transaction():
            return _send_all(conn, transaction.statements, prepare=prepare)
    begin, commit = _frame(conn, transaction)
    try:
        cursors = _send_all(conn, (*begin, *transaction.statements, *commit), prepare=prepare)
    except BaseException:
        if begin:
            with suppress(psycopg.Error):
                conn.rollback()
        raise
    return cursors[len(begin) : len(cursors) - len(commit)]


def _cancellations() -> int:
    """How often the running task was cancelled."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0


def _raise_if_cancelled(seen: int) -> None:
    """Raise a cancellation that psycopg swallowed: its ``asyncio.wait_for`` may, before 3.12."""
    if _cancellations() > seen:
        raise asyncio.CancelledError


def _is_plain(conn: Conn | AsyncConn) -> bool:
    """Whether a single statement is a transaction of its own, answered at once."""
    return conn.autocommit and not _is_in_pipeline(conn)


def _is_in_pipeline(conn: Conn | AsyncConn) -> bool:
    return conn.pgconn.pipeline_status != PipelineStatus.OFF


def _send_all(
    conn: Conn, statements: Sequence[Statement], *, prepare: bool | None
) -> list[Cursor[TupleRow]]:
    """Send all statements, then read; raise the first error when the pipeline has ended.

    Raise it outside of the block: inside, psycopg logs a warning for each error that follows.
    """
    errors: list[psycopg.Error] = []
    try:
        with conn.pipeline():
            try:
                return [_send(conn, statement, prepare=prepare) for statement in statements]
            except psycopg.Error as exc:
                errors.append(exc)
    except psycopg.Error as exc:
        errors.append(exc)
    raise errors[0]


def _send(conn: Conn, statement: Statement, *, prepare: bool | None) -> Cursor[TupleRow]:
    cursor = conn.cursor(binary=True, row_factory=tuple_row)
    hide_values(cursor)
    return cursor.execute(statement.sql, statement.params, prepare=prepare)


def _rows(cursor: Cursor[TupleRow]) -> Rows:
    return Rows(() if cursor.rownumber is None else cursor.fetchall(), cursor.rowcount)


async def _arun(
    conn: AsyncConn, transaction: Transaction, *, prepare: bool | None
) -> list[AsyncCursor[TupleRow]]:
    if not conn.autocommit:
        async with conn.transaction():
            return await _asend_all(conn, transaction.statements, prepare=prepare)
    begin, commit = _frame(conn, transaction)
    try:
        cursors = await _asend_all(
            conn, (*begin, *transaction.statements, *commit), prepare=prepare
        )
    except BaseException:
        if begin:
            with suppress(psycopg.Error):
                await conn.rollback()
        raise
    return cursors[len(begin) : len(cursors) - len(commit)]


async def _asend_all(
    conn: AsyncConn, statements: Sequence[Statement], *, prepare: bool | None
) -> list[AsyncCursor[TupleRow]]:
    """As the blocking twin."""
    errors: list[psycopg.Error] = []
    try:
        async with conn.pipeline():
            try:
                return [await _asend(conn, statement, prepare=prepare) for statement in statements]
            except psycopg.Error as exc:
                errors.append(exc)
    except psycopg.Error as exc:
        errors.append(exc)
    raise errors[0]


async def _asend(
    conn: AsyncConn, statement: Statement, *, prepare: bool | None
) -> AsyncCursor[TupleRow]:
    cursor = conn.cursor(binary=True, row_factory=tuple_row)
    hide_values(cursor)
    return await cursor.execute(statement.sql, statement.params, prepare=prepare)


def _frame(
    conn: BaseConnection[Any], transaction: Transaction
) -> tuple[tuple[Statement, ...], tuple[Statement, ...]]:
    """What goes before and after the statements, unless the connection's owner began one."""
    is_idle = conn.info.transaction_status is TransactionStatus.IDLE
    return ((_BEGIN,), (_COMMIT,)) if transaction.writes and is_idle else ((), ())


async def _arows(cursor: AsyncCursor[TupleRow]) -> Rows:
    return Rows(() if cursor.rownumber is None else await cursor.fetchall(), cursor.rowcount)
