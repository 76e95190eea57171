"""The last query vectors, so that the same question is paid for once."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence

from langgraph_aurora_store.fork_safety import ForkSafeLock


class QueryCache:
    """The ``size`` most recently used query vectors, in memory; thread-safe; 0 keeps none."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = ForkSafeLock()
        # Eight bytes a number instead of a float object of 24 and a pointer to it.
        self._vectors: OrderedDict[str, array[float]] = OrderedDict()

    def get(self, text: str) -> list[float] | None:
        """The vector of ``text``, as a list of the caller's own, or None."""
        with self._lock:
            if text not in self._vectors:
                return None
            self._vectors.move_to_end(text)
            return self._vectors[text].tolist()

    def put(self, text: str, vector: Sequence[float]) -> None:
        """Remember the vector of ``text`` and forget the one unused for longest."""
        if not self._size:
            return
        with self._lock:
            self._vectors[text] = array("d", vector)
            self._vectors.move_to_end(text)
            while len(self._vectors) > self._size:
                self._vectors.popitem(last=False)
