"""Operations that callers of one event-loop tick issue, gathered so that they travel together."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

import psycopg
from langgraph.store.base import GetOp, ListNamespacesOp, Op, PutOp, Result, SearchOp

from langgraph_aurora_store.errors import PoolFullError, PoolTimeoutError
from langgraph_aurora_store.execution.write_failures import log_failed_writes

if TYPE_CHECKING:
    from langgraph_aurora_store.sql.batch import Prepared

logger = logging.getLogger(__name__)

Prepare: TypeAlias = Callable[[Sequence[Op]], Awaitable["Sequence[Prepared]"]]
Check: TypeAlias = Callable[[Op], None]
Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]]
ConnectWithin: TypeAlias = Callable[..., AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]]
WriteSlot: TypeAlias = Callable[["Prepared"], AbstractAsyncContextManager[Connect]]
Finish: TypeAlias = Callable[["Prepared", Connect], Awaitable[Sequence[Result]]]
# Errors that psycopg takes for operational and that one operation's rows can bring about.
_OPERATION_ERRORS = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.QueryCanceled,
    psycopg.errors.SerializationFailure,
    psycopg.errors.StatementTooComplex,
)

T = TypeVar("T")
_Waiting: TypeAlias = tuple[Op, "asyncio.Future[Result]"]


class OperationCoalescer:
    """Gathers single operations and runs them together, each with a fate of its own.

    Reads, searches by meaning and writes are a group each, so that what needs no embedding never
    waits for what does. A group shares its requests to the embedding model, and is finished in
    parts side by side. When one fails, those of its members that are wrong in themselves fail, and
    the others begin again; when none is and the reason may lie in one of them, each is run alone,
    those on one key in their order. Cancelling a caller abandons its result and disturbs nobody; a
    write that has not begun by then is given up, and one that has, with its neighbours, is over
    before another of its key begins, which waits for ``key_timeout_s`` seconds at most. Bound to
    the running loop; not thread-safe.
    """

    def __init__(
        self,
        prepare: Prepare,
        finish: Finish,
        check: Check,
        write_slot: WriteSlot,
        *,
        key_timeout_s: float | None,
    ) -> None:
        self._prepare = prepare
        self._finish = finish
        self._check = check
        self._write_slot = write_slot
        self._key_timeout_s = key_timeout_s
        self._writing: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._waiting: list[_Waiting] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._others: set[asyncio.Future[None]] = set()

    async def submit(self, op: Op) -> Result:
        """Run one operation together with the others of this tick."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append((op, future))
        return await future

    async def track(self, work: Awaitable[T]) -> T:
        """The result of work of its caller's own, for which `drain` waits too."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._others.add(ended)
        try:
            return await work
        finally:
            self._others.discard(ended)
            ended.set_result(None)

    async def drain(self) -> None:
        """Wait until everything begun so far has ended."""
        while self._waiting or self._tasks or self._others:
            await asyncio.sleep(0)
            if under_way := {*self._tasks, *self._others}:
                await asyncio.wait(under_way)

    def _flush(self) -> None:
        groups: defaultdict[str, list[_Waiting]] = defaultdict(list)
        for one in self._waiting:
            groups[_kind(one[0])].append(one)
        self._waiting = []
        for group in groups.values():
            self._start(group)

    def _start(self, *groups: list[_Waiting]) -> None:
        task = asyncio.get_running_loop().create_task(self._execute_in_order(groups))
        # The loop keeps weak references only: a task nobody holds may vanish half-way.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        futures = [future for _, future in chain.from_iterable(groups)]

        def abandoned(_: object) -> None:
            # Else a write whose callers have left could overwrite one that came after it.
            if all(future.cancelled() for future in futures):
                task.cancel()

        for future in futures:
            future.add_done_callback(abandoned)

    async def _execute_in_order(self, groups: Sequence[list[_Waiting]]) -> None:
        try:
            for group in groups:
                await self._execute_group(group)
        except asyncio.CancelledError:
            for _, future in chain.from_iterable(groups):
                future.cancel()
            raise

    async def _execute_group(self, group: list[_Waiting]) -> None:
        group = [one for one in group if not one[1].done()]
        if not group:
            return
        try:
            parts = await self._prepare([op for op, _ in group])
        except Exception as exc:
            self._failed(group, exc)
        else:
            await asyncio.gather(*(self._execute_part(part, group) for part in parts))

    async def _execute_part(self, part: Prepared, group: Sequence[_Waiting]) -> None:
        alone = self._exclusive_keys(part) if part.batch.writes.puts else nullcontext()
        try:
            async with alone, self._write_slot(part) as connect:
                await self._execute_now(part, group, connect)
        except psycopg.OperationalError as exc:  # its turn did not come
            self._failed([group[place] for place in part.places], exc)

    @asynccontextmanager
    async def _exclusive_keys(self, part: Prepared) -> AsyncIterator[None]:
        """Whoever waits here writes after those that write the same keys, also abandoned ones."""
        keys = [(put.prefix, put.key) for put in part.batch.writes.puts]
        try:
            async with asyncio.timeout(self._key_timeout_s):
                while before := {self._writing[key] for key in keys if key in self._writing}:
                    await asyncio.wait(before)
        except TimeoutError:
            raise PoolTimeoutError(
                f"an earlier write of the same key has not ended within {self._key_timeout_s:.2f}"
                " s; see in pg_stat_activity what it waits for"
            ) from None
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writing.update(dict.fromkeys(keys, ended))
        try:
            yield
        finally:
            for key in keys:
                del self._writing[key]
            ended.set_result(None)

    async def _execute_now(
        self, part: Prepared, group: Sequence[_Waiting], connect: Connect
    ) -> None:
        # Else a write whose caller has left could overwrite one that came after it.
        if gone := {place for place in part.places if group[place][1].done()}:
            part, anew = part.without(gone)
            if anew:
                self._start([group[place] for place in anew])
        settled = [group[place] for place in part.places]
        if not settled:
            return
        try:
            results = await self._finish(part, connect)
        except Exception as exc:
            self._failed(settled, exc)
        else:
            for (_, future), result in zip(settled, results, strict=True):
                if not future.done():
                    future.set_result(result)

    def _failed(self, group: list[_Waiting], exc: Exception) -> None:
        if len(group) > 1 and not _fails_all(exc):
            if self._fail_invalid(group):
                return
            logger.debug("a group of %d operations failed; running each alone", len(group))
            alone: defaultdict[object, list[list[_Waiting]]] = defaultdict(list)
            for one in group:
                alone[_address(one[0])].append([one])
            for in_turn in alone.values():
                self._start(*in_turn)
            return
        for one in group:
            _fail(one, exc)

    def _fail_invalid(self, group: list[_Waiting]) -> bool:
        """Fail the operations that are wrong in themselves, and begin again with the others."""
        good = []
        for one in group:
            try:
                self._check(one[0])
            except Exception as exc:
                _fail(one, exc)
            else:
                good.append(one)
        if len(good) == len(group):
            return False
        if good:
            self._start(good)
        return True


def _fail(one: _Waiting, exc: Exception) -> None:
    op, future = one
    if not future.done():
        future.set_exception(exc)
    else:  # abandoned: nobody else will tell
        log_failed_writes([op], exc)


def _fails_all(exc: Exception) -> bool:
    """Whether every operation would fail like this, because the server does not serve."""
    return isinstance(exc, psycopg.OperationalError) and not isinstance(exc, _OPERATION_ERRORS)


def _address(op: Op) -> object:
    """What operations have to share for their order to matter."""
    # As text, because nobody has checked yet that these can be hashed.
    return repr((op.namespace, op.key)) if isinstance(op, PutOp) else object()


def _kind(op: Op) -> Literal["read", "search", "write"]:
    if isinstance(op, SearchOp):
        return "search" if op.query else "read"
    return "read" if isinstance(op, (GetOp, ListNamespacesOp)) else "write"


# What a pool without a bound, as psycopg_pool's null pools may be, is taken for.
_UNBOUNDED = 100


class Pool(Protocol):
    """What `WriteLimiter` asks of a pool, by psycopg_pool's names; ``timeout`` is in seconds."""

    timeout: float
    max_waiting: int

    @property
    def max_size(self) -> int:
        """How many connections there may be; 0 for any number."""


class WriteLimiter:
    """Turns to use a pool's connections, half of them at a time; for one event loop.

    What holds connections for long, such as writes that wait for a row which somebody else has
    locked, then leaves some to what does not. A caller waits in all as long as the pool says.
    """

    def __init__(self, pool: Pool, connect: ConnectWithin) -> None:
        self.size = max((pool.max_size or _UNBOUNDED) // 2, 1)
        self.timeout_s = pool.timeout
        self._pool = pool
        self._connect = connect
        self._slots = asyncio.Semaphore(self.size)
        self._waiting = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Connect]:
        """A turn, as soon as there is one, and how to connect in it, within the time that is left.

        Raises:
            PoolTimeoutError: there was none in the pool's ``timeout``.
            PoolFullError: as many callers wait as the pool's ``max_waiting``.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout_s
        await self._acquire(deadline)
        try:
            yield partial(self._connect, timeout_s=max(deadline - loop.time(), 0))
        finally:
            self._slots.release()

    async def _acquire(self, deadline: float) -> None:
        if self._slots.locked() and 0 < self._pool.max_waiting <= self._waiting:
            raise PoolFullError(
                f"{self._waiting} callers wait already to write; ask again later, or raise"
                f" max_waiting={self._pool.max_waiting} or max_size={self._pool.max_size}"
            )
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
        except TimeoutError:
            raise PoolTimeoutError(
                f"no connection to write within {self.timeout_s:.2f} s: other writes held all"
                f" {self.size} that may write at a time, half of the pool; see in pg_stat_activity"
                " what they wait for, or raise max_size"
            ) from None
        finally:
            self._waiting -= 1
