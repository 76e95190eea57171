"""Locks that a forked child finds free, whoever held them in its parent."""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType
from typing import Protocol


class ForkAware(Protocol):
    """What a forked child has to put right before it can use it."""

    def renew(self) -> None:
        """Put it right; only the forking thread is there."""
        ...


class ForkSafeLock:
    """A lock that its holder may take again, renewed in a forked child.

    The child has the forking thread only: a lock that another one held would never be released.
    What such a lock guards must be well at every moment, as a thread may be cut off half-way.
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

    def renew(self) -> None:
        """Be free, whoever holds it."""
        self._lock = threading.RLock()


_fork_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def reinit_after_fork(one: ForkAware) -> None:
    """Have a forked child renew this, for as long as it is in use."""
    _fork_aware.add(one)


def _reinit_all() -> None:
    for one in _fork_aware:
        one.renew()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_reinit_all)
