"""State that a forked child can use, whatever the threads of its parent held at the fork."""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType
from typing import Protocol


class ForkAware(Protocol):
    """State that a forked child has to reset before it can use it."""

    def reinit(self) -> None:
        """Reset it; the child has the forking thread only."""
        ...


class ForkSafeLock:
    """A lock that its holder may take again, and that a forked child finds free.

    The child has the forking thread only: a lock that another thread held would never be released.
    What such a lock guards must be valid at every moment, as a thread may be cut off half-way.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        reinit_after_fork(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()

    def reinit(self) -> None:
        """Be free, whichever thread holds it."""
        self._lock = threading.RLock()


_fork_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def reinit_after_fork(state: ForkAware) -> None:
    """Have each forked child call ``state.reinit()``, for as long as ``state`` is in use."""
    _fork_aware.add(state)


def _reinit_all() -> None:
    for state in _fork_aware:
        state.reinit()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_reinit_all)
