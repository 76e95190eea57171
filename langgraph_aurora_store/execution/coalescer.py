"""Single operations of one event-loop iteration, run together.

- Groups: reads, searches by meaning and writes are one each, so that what needs no embedding never
  waits for what does. A group shares its requests to the embedding model, and is completed in
  parts side by side.
- Order: writes of one key begin one after another (`KeyLocks`).
- Failure: an operation that is invalid by itself fails alone, and its group is run again without
  it. Where none is, and one of them may be the cause, each is run alone, those on one key in order.
- Cancellation: a caller that is cancelled abandons its result and disturbs no other. A write that
  has not begun by then is dropped; one that has, together with others, runs to its end.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, TypeVar

import psycopg
from langgraph.store.base import GetOp, ListNamespacesOp, Op, PutOp, Result, SearchOp

from langgraph_aurora_store.connect.connection import AsyncConnect
from langgraph_aurora_store.errors import ClusterError, CredentialsError, EmbeddingError
from langgraph_aurora_store.execution.key_locks import KeyLocks
from langgraph_aurora_store.execution.lost_write_log import log_failed_writes

if TYPE_CHECKING:
    from langgraph_aurora_store.sql.batch import Prepared

logger = logging.getLogger(__name__)

Prepare: TypeAlias = Callable[[Sequence[Op]], Awaitable["Sequence[Prepared]"]]
Complete: TypeAlias = Callable[["Prepared", AsyncConnect], Awaitable[Sequence[Result]]]
Check: TypeAlias = Callable[[Op], None]
WriteSlot: TypeAlias = Callable[["Prepared"], AbstractAsyncContextManager[AsyncConnect]]

# Errors that psycopg calls operational and that the rows of a single operation can cause.
_OPERATION_ERRORS = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.QueryCanceled,
    psycopg.errors.SerializationFailure,
    psycopg.errors.StatementTooComplex,
)

T = TypeVar("T")


class _Pending(NamedTuple):
    """An operation and the future of its caller."""

    op: Op
    future: asyncio.Future[Result]

    def succeed(self, result: Result) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, exc: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(exc)
        else:  # abandoned: no caller sees the error
            log_failed_writes([self.op], exc)


_Group: TypeAlias = list[_Pending]


class OperationCoalescer:
    """Runs the single operations of one event-loop iteration together, each with its own outcome.

    A write waits ``key_timeout_s`` seconds at most for an earlier one of its key. Bound to the
    running loop; not thread-safe.
    """

    def __init__(
        self,
        prepare: Prepare,
        complete: Complete,
        check: Check,
        write_slot: WriteSlot,
        *,
        key_timeout_s: float | None,
    ) -> None:
        self._prepare = prepare
        self._complete = complete
        self._check = check
        self._write_slot = write_slot
        self._key_locks = KeyLocks(key_timeout_s)
        self._pending: _Group = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._tracked: set[asyncio.Future[None]] = set()

    async def submit(self, op: Op) -> Result:
        """Run one operation together with the others of this iteration of the loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        if not self._pending:
            loop.call_soon(self._flush)
        self._pending.append(_Pending(op, future))
        return await future

    async def track(self, work: Awaitable[T]) -> T:
        """The result of its caller's own work, for which `drain` waits too."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tracked.add(ended)
        try:
            return await work
        finally:
            self._tracked.discard(ended)
            ended.set_result(None)

    async def drain(self) -> None:
        """Wait until everything begun so far has ended."""
        while self._pending or self._tasks or self._tracked:
            await asyncio.sleep(0)
            if unfinished := {*self._tasks, *self._tracked}:
                await asyncio.wait(unfinished)

    def _flush(self) -> None:
        groups: defaultdict[str, _Group] = defaultdict(list)
        for pending in self._pending:
            groups[_kind(pending.op)].append(pending)
        self._pending = []
        for group in groups.values():
            self._start(group)

    def _start(self, *groups: _Group) -> None:
        """Run groups one after another, in a task that ends when all its callers have left."""
        task = asyncio.get_running_loop().create_task(self._execute_in_order(groups))
        # The loop references tasks weakly only: without this one could vanish half-way.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        futures = [pending.future for pending in chain.from_iterable(groups)]

        def cancel_if_abandoned(_: object) -> None:
            # Cancel the task, or an abandoned write could overwrite a newer one.
            if all(future.cancelled() for future in futures):
                task.cancel()

        for future in futures:
            future.add_done_callback(cancel_if_abandoned)

    async def _execute_in_order(self, groups: Sequence[_Group]) -> None:
        try:
            for group in groups:
                await self._execute_group(group)
        except asyncio.CancelledError:
            for pending in chain.from_iterable(groups):
                pending.future.cancel()
            raise

    async def _execute_group(self, group: _Group) -> None:
        group = [pending for pending in group if not pending.future.done()]
        if not group:
            return
        try:
            parts = await self._prepare([pending.op for pending in group])
        except Exception as exc:
            self._fail_or_split(group, exc)
        else:
            await asyncio.gather(*(self._execute_part(part, group) for part in parts))

    async def _execute_part(self, part: Prepared, group: _Group) -> None:
        keys = [(put.prefix, put.key) for put in part.batch.writes.puts]
        try:
            async with (
                self._key_locks.holding(keys) if keys else nullcontext(),
                self._write_slot(part) as connect,
            ):
                await self._complete_part(part, group, connect)
        except psycopg.OperationalError as exc:  # no lock or no slot in time
            self._fail_or_split([group[position] for position in part.positions], exc)

    async def _complete_part(self, part: Prepared, group: _Group, connect: AsyncConnect) -> None:
        # Drop what was abandoned, or it could overwrite a newer write.
        if gone := {position for position in part.positions if group[position].future.done()}:
            part, again = part.drop(gone)
            if again:
                self._start([group[position] for position in again])
        remaining = [group[position] for position in part.positions]
        if not remaining:
            return
        try:
            results = await self._complete(part, connect)
        except Exception as exc:
            self._fail_or_split(remaining, exc)
        else:
            for pending, result in zip(remaining, results, strict=True):
                pending.succeed(result)

    def _fail_or_split(self, group: _Group, exc: Exception) -> None:
        """Give the error to all of a group, or run again those that may not be its cause."""
        if len(group) == 1 or _fails_all(exc):
            for pending in group:
                pending.fail(exc)
        elif not self._fail_invalid(group):
            logger.debug("a group of %d operations failed; running each alone", len(group))
            self._start_alone(group)

    def _fail_invalid(self, group: _Group) -> bool:
        """Fail the operations that are invalid by themselves, and run the others again."""
        valid = []
        for pending in group:
            try:
                self._check(pending.op)
            except Exception as exc:
                pending.fail(exc)
            else:
                valid.append(pending)
        if len(valid) == len(group):
            return False
        if valid:
            self._start(valid)
        return True

    def _start_alone(self, group: _Group) -> None:
        """Run each operation alone, those on one key in their order."""
        by_key: defaultdict[object, list[_Group]] = defaultdict(list)
        for pending in group:
            by_key[_key(pending.op)].append([pending])
        for in_order in by_key.values():
            self._start(*in_order)


def _fails_all(exc: Exception) -> bool:
    """Whether every operation would fail like this, for want of a connection or of a writer."""
    if isinstance(exc, psycopg.errors.ReadOnlySqlTransaction | ClusterError):
        return True
    if isinstance(exc, CredentialsError):  # a model's leave alone what is not embedded
        return not isinstance(exc, EmbeddingError)
    return isinstance(exc, psycopg.OperationalError) and not isinstance(exc, _OPERATION_ERRORS)


def _key(op: Op) -> object:
    """What operations share whose order matters."""
    # As text, because these may not be hashable: they are not checked yet.
    return repr((op.namespace, op.key)) if isinstance(op, PutOp) else object()


def _kind(op: Op) -> Literal["read", "search", "write"]:
    if isinstance(op, SearchOp):
        return "search" if op.query else "read"
    return "read" if isinstance(op, (GetOp, ListNamespacesOp)) else "write"
