"""The last query vectors, so that the same question is paid for once."""

from __future__ import annotations

import secrets
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from langgraph_aurora_store.fork_safety import ForkSafeLock

# The bound on all vectors of one cache: 2,730 of 1,536 numbers.
LARGEST_CACHE_BYTES = 32 * 1024 * 1024


class QueryCache:
    """The ``size`` most recently used query vectors, in memory; thread-safe; 0 keeps none.

    They take ``max_bytes`` at most, without what Python adds to each. A query's text is not kept:
    its vector is found by a digest, with a key that each cache makes for itself.
    """

    def __init__(self, size: int, *, max_bytes: int = LARGEST_CACHE_BYTES) -> None:
        self._size = size
        self._max_bytes = max_bytes
        self._bytes = 0
        self._key = secrets.token_bytes(32)
        self._lock = ForkSafeLock()
        # Eight bytes a number instead of a float object of 24 and a pointer to it.
        self._vectors: OrderedDict[bytes, array[float]] = OrderedDict()

    def get(self, text: str) -> list[float] | None:
        """The vector of ``text``, as a list of the caller's own, or None."""
        if not self._size:
            return None
        digest = self._digest(text)
        with self._lock:
            if digest not in self._vectors:
                return None
            self._vectors.move_to_end(digest)
            return self._vectors[digest].tolist()

    def put(self, text: str, vector: Sequence[float]) -> None:
        """Remember the vector of ``text`` and forget those unused for longest."""
        if not self._size:
            return
        digest, kept = self._digest(text), array("d", vector)
        with self._lock:
            self._drop(self._vectors.pop(digest, None))
            self._vectors[digest] = kept
            self._bytes += _size_of(kept)
            while len(self._vectors) > self._size or self._bytes > self._max_bytes:
                self._drop(self._vectors.popitem(last=False)[1])

    def _drop(self, vector: array[float] | None) -> None:
        self._bytes -= _size_of(vector) if vector is not None else 0

    def _digest(self, text: str) -> bytes:
        encoded = text.encode("utf-8", "surrogatepass")
        return blake2b(encoded, key=self._key, digest_size=32).digest()


def _size_of(vector: array[float]) -> int:
    return len(vector) * vector.itemsize
