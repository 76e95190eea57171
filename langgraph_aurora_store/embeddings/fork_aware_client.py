"""A client made on first use, again in a forked process, and closed with its owner."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar
from weakref import finalize, ref

from langgraph_aurora_store.fork_safety import ForkSafeLock


class Closable(Protocol):
    """A client that holds connections."""

    def close(self) -> object:
        """Let them go."""


C = TypeVar("C", bound=Closable)


class ForkAwareClient(Generic[C]):
    """A client made on first use in each process, and closed with its owner at the latest."""

    def __init__(self, owner: object, make: Callable[[], C]) -> None:
        self._owner = ref(owner)
        self._make = make
        self._lock = ForkSafeLock()
        self._pid = 0
        self.made: C | None = None
        self._closing: Callable[[], object] = bool

    def get(self) -> C:
        """The process's client; sockets are not shared with the process it was forked from."""
        with self._lock:
            if self.made is None or self._pid != os.getpid():
                self._pid, self.made = os.getpid(), self._make()
                self._closing = finalize(self._owner(), self.made.close)
            return self.made

    def close(self) -> None:
        """Close the client, if there is one; the next use makes another."""
        with self._lock:
            self.made = None
            self._closing()
