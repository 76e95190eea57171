"""Operations that callers of one event-loop tick issue, gathered so that they travel together."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import psycopg
from langgraph.store.base import GetOp, ListNamespacesOp, Op, PutOp, Result, SearchOp

from langgraph_aurora_store.errors import PoolTimeoutError
from langgraph_aurora_store.lost_writes import log_lost_writes

if TYPE_CHECKING:
    from langgraph_aurora_store.sql.plan import Prepared

logger = logging.getLogger(__name__)

Prepare: TypeAlias = Callable[[Sequence[Op]], Awaitable["Sequence[Prepared]"]]
Check: TypeAlias = Callable[[Op], None]
Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]]
Turn: TypeAlias = Callable[["Prepared"], AbstractAsyncContextManager[Connect]]
Finish: TypeAlias = Callable[["Prepared", Connect], Awaitable[Sequence[Result]]]
# Errors that psycopg takes for operational and that one operation's rows can bring about.
_OF_ONE = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.QueryCanceled,
    psycopg.errors.SerializationFailure,
    psycopg.errors.StatementTooComplex,
)

T = TypeVar("T")
_Waiting: TypeAlias = tuple[Op, "asyncio.Future[Result]"]


class Tick:
    """Gathers single operations and runs them together, each with a fate of its own.

    Reads, searches by meaning and writes are a group each, so that what needs no embedding never
    waits for what does. A group shares its requests to the embedding model, and is finished in
    parts side by side. When one fails, those of its members that are wrong in themselves fail, and
    the others begin again; when none is and the reason may lie in one of them, each is run alone,
    those on one key in their order. Cancelling a caller abandons its result and disturbs nobody; a
    write that has not begun by then is given up, and one that has, with its neighbours, is over
    before another of its key begins, which waits for ``patience_s`` seconds at most. Bound to the
    running loop; not thread-safe.
    """

    def __init__(
        self,
        prepare: Prepare,
        finish: Finish,
        check: Check,
        turn: Turn,
        *,
        patience_s: float | None,
    ) -> None:
        self._prepare = prepare
        self._finish = finish
        self._check = check
        self._turn = turn
        self._patience_s = patience_s
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

    async def alongside(self, work: Awaitable[T]) -> T:
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
        task = asyncio.get_running_loop().create_task(self._settle_in_turn(groups))
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

    async def _settle_in_turn(self, groups: Sequence[list[_Waiting]]) -> None:
        try:
            for group in groups:
                await self._settle(group)
        except asyncio.CancelledError:
            for _, future in chain.from_iterable(groups):
                future.cancel()
            raise

    async def _settle(self, group: list[_Waiting]) -> None:
        group = [one for one in group if not one[1].done()]
        if not group:
            return
        try:
            parts = await self._prepare([op for op, _ in group])
        except Exception as exc:
            self._failed(group, exc)
        else:
            await asyncio.gather(*(self._settle_part(part, group) for part in parts))

    async def _settle_part(self, part: Prepared, group: Sequence[_Waiting]) -> None:
        alone = self._alone_on_keys(part) if part.batch.writes.puts else nullcontext()
        try:
            async with alone, self._turn(part) as connect:
                await self._settle_now(part, group, connect)
        except psycopg.OperationalError as exc:  # its turn did not come
            self._failed([group[place] for place in part.places], exc)

    @asynccontextmanager
    async def _alone_on_keys(self, part: Prepared) -> AsyncIterator[None]:
        """Whoever waits here writes after those that write the same keys, also abandoned ones."""
        keys = [(put.prefix, put.key) for put in part.batch.writes.puts]
        try:
            async with asyncio.timeout(self._patience_s):
                while before := {self._writing[key] for key in keys if key in self._writing}:
                    await asyncio.wait(before)
        except TimeoutError:
            raise PoolTimeoutError(
                f"an earlier write of the same key has not ended within {self._patience_s:.2f} s;"
                " see in pg_stat_activity what it waits for"
            ) from None
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writing.update(dict.fromkeys(keys, ended))
        try:
            yield
        finally:
            for key in keys:
                del self._writing[key]
            ended.set_result(None)

    async def _settle_now(
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
        if len(group) > 1 and not _is_common(exc):
            if self._sorted_out(group):
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

    def _sorted_out(self, group: list[_Waiting]) -> bool:
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
        log_lost_writes([op], exc)


def _is_common(exc: Exception) -> bool:
    """Whether every operation would fail like this, because the server does not serve."""
    return isinstance(exc, psycopg.OperationalError) and not isinstance(exc, _OF_ONE)


def _address(op: Op) -> object:
    """What operations have to share for their order to matter."""
    # As text, because nobody has checked yet that these can be hashed.
    return repr((op.namespace, op.key)) if isinstance(op, PutOp) else object()


def _kind(op: Op) -> Literal["read", "search", "write"]:
    if isinstance(op, SearchOp):
        return "search" if op.query else "read"
    return "read" if isinstance(op, (GetOp, ListNamespacesOp)) else "write"
