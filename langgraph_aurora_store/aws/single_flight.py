"""One call to a service at a time, which any number of callers wait for, each as long as it may."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Generic, TypeVar

from langgraph_aurora_store.errors import AuroraStoreError
from langgraph_aurora_store.fork_safety import ForkSafeLock, reinit_after_fork

T = TypeVar("T")

# Of a caller that says nothing of its time: longer than any source takes that answers at all.
_UNBOUNDED_CALLERS_WAIT_S = 30.0
_deadline: ContextVar[float | None] = ContextVar("langgraph_aurora_store_deadline", default=None)


@contextmanager
def wait_at_most(seconds: float) -> Iterator[None]:
    """Have the `SingleFlight.call`s of this block give up after so many seconds in all."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def _left_s() -> float:
    deadline = _deadline.get()
    if deadline is None:
        return _UNBOUNDED_CALLERS_WAIT_S
    return max(deadline - time.monotonic(), 0.0)


class SingleFlight(Generic[T]):
    """A call that may hang, in a thread that neither its callers nor the process's end wait for.

    While one is under way, further callers wait for its outcome and start none of their own: a
    source that never answers costs one thread. Thread-safe; a forked child starts with none.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = ForkSafeLock()
        self._outcome: Future[T] | None = None
        self._thread: threading.Thread | None = None
        self._begun_at = 0.0
        reinit_after_fork(self)

    def reinit(self) -> None:
        """In a forked child: forget the call of the parent's thread, which is not there."""
        self._outcome = self._thread = None

    @property
    def thread_id(self) -> int | None:
        """The thread of the call under way, for telling where it hangs."""
        thread = self._thread
        return thread.ident if thread is not None and thread.is_alive() else None

    def call(
        self,
        work: Callable[[], T],
        *,
        late: Callable[[], AuroraStoreError],
        wait_s: float | None = None,
    ) -> T:
        """The outcome of the call under way, or of ``work``, called now. Blocking.

        ``late`` makes the error to raise when there is none in time; the call then goes on.
        ``wait_s``: how long to wait, counted from when the call began; `wait_at_most` bounds it.
        """
        with self._lock:
            outcome = self._outcome
            if outcome is None or outcome.done():
                outcome = self._start(work)
            age_s = time.monotonic() - self._begun_at
        left_s = _left_s()
        if wait_s is not None:
            left_s = min(left_s, max(wait_s - age_s, 0.0))
        if not wait([outcome], left_s).done:
            raise late()
        error = outcome.exception()
        if error is None:
            return outcome.result()
        # Raised outside of any handler: the original's frames may hold what a source answered.
        raise _copy(error) from _without_frames(error.__cause__)

    def _start(self, work: Callable[[], T]) -> Future[T]:
        outcome: Future[T] = Future()
        context = copy_context()  # a tracer's spans, and the time that the first caller has

        def run() -> None:
            try:
                outcome.set_result(context.run(work))
            except BaseException as error:  # an outcome is always told
                outcome.set_exception(error)

        self._outcome, self._begun_at = outcome, time.monotonic()
        # A daemon: what hangs in a source of credentials must not hold up the process's end.
        self._thread = threading.Thread(target=run, name=self._name, daemon=True)
        self._thread.start()
        return outcome


def _copy(error: BaseException) -> BaseException:
    """The same error for another thread, so that tracebacks do not mix."""
    if not isinstance(error, AuroraStoreError):
        return error
    twin = type(error)(*error.args)
    twin.__dict__.update(error.__dict__)
    return twin


def _without_frames(cause: BaseException | None) -> BaseException | None:
    """A cause whose frames, with the request that was signed in their locals, are dropped."""
    if cause is not None:
        cause.__traceback__ = cause.__context__ = None
    return cause
