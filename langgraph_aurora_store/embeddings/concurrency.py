"""Many requests at a time and never more than the bound, over threads and event loops alike."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Generic, TypeVar

from langgraph_aurora_store.fork_safety import ForkSafeLock

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """At most ``limit`` threads, made on first use, and again in a forked process."""

    def __init__(self, limit: int, name: str) -> None:
        self.limit = limit
        self._name = name
        self._lock = ForkSafeLock()
        self._pid = 0
        self._executor: ThreadPoolExecutor | None = None

    def submit(self, work: Callable[[], object]) -> None:
        """Run ``work`` after everything submitted before it."""
        with self._lock:  # an executor that `close` has taken away takes no work
            self._threads().submit(work)

    def close(self) -> None:
        """Let the threads go; the next use makes new ones."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None and self._pid == os.getpid():
            executor.shutdown(wait=False)

    def _threads(self) -> ThreadPoolExecutor:
        # A forked child inherits the executor without its threads and would wait for ever.
        if self._executor is None or self._pid != os.getpid():
            self._pid = os.getpid()
            self._executor = ThreadPoolExecutor(self.limit, thread_name_prefix=self._name)
        return self._executor


class RequestFanOut(Generic[T, R]):
    """The requests of one call, performed by the workers; the first failure ends it.

    Each worker performs one request and then goes to the back of the workers' queue, so that a call
    with one request waits for one round and not for another call's thousands.
    """

    def __init__(
        self, workers: Workers, requests: Sequence[T], perform: Callable[[T, threading.Event], R]
    ) -> None:
        self.answers: Future[list[R]] = Future()
        self._workers = workers
        self._perform = perform
        self._requests: Iterator[tuple[int, T]] = iter(list(enumerate(requests)))
        self._found: dict[int, R] = {}
        self._count = len(requests)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._context = copy_context()
        self.answers.add_done_callback(lambda _: self._stop.set())

    def start(self) -> Future[list[R]]:
        """Begin, and return the answers to come, in the order of the requests."""
        if not self._count:
            self.answers.set_result([])
        for _ in range(min(self._workers.limit, self._count)):
            self._workers.submit(self._work)
        return self.answers

    def _work(self) -> None:
        with self._lock:
            position, request = next(self._requests, (-1, None))
        if request is None or self._stop.is_set():
            return
        try:
            answer = self._context.copy().run(self._perform, request, self._stop)
            self._keep(position, answer)
            if not self._stop.is_set():
                self._workers.submit(self._work)
        except BaseException as error:
            self._end(partial(self.answers.set_exception, error))

    def _keep(self, position: int, answer: R) -> None:
        with self._lock:
            self._found[position] = answer
            complete = len(self._found) == self._count
        if complete:
            found = [self._found[position] for position in range(self._count)]
            self._end(partial(self.answers.set_result, found))

    @staticmethod
    def _end(outcome: Callable[[], None]) -> None:
        # Another worker, or the caller's cancellation, may have ended it first.
        with suppress(InvalidStateError):
            outcome()


class FairSemaphore:
    """At most ``limit`` holders at a time, first come first served, in any thread or event loop."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._free = limit
        self._waiting: deque[Future[None]] = deque()

    def acquire(self) -> None:
        """Take a slot, blocking until there is one."""
        if (place := self._queue()) is not None:
            place.result()

    async def aacquire(self) -> None:
        """Take a slot without blocking the event loop."""
        place = self._queue()
        if place is None:
            return
        try:
            await asyncio.wrap_future(place)
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Hand the slot to the caller that has waited longest."""
        with self._lock:
            while self._waiting:
                place = self._waiting.popleft()
                if place.set_running_or_notify_cancel():
                    place.set_result(None)
                    return
            self._free += 1

    def _queue(self) -> Future[None] | None:
        with self._lock:
            if self._free:
                self._free -= 1
                return None
            place: Future[None] = Future()
            self._waiting.append(place)
            return place
