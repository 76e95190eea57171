"""Which namespaces were last seen to be large."""

from __future__ import annotations

# A count costs a quarter of a search. A namespace that has shrunk meanwhile is still searched
# completely, for a walk that ends with too few items is followed by a wider one.
_SEARCHES_PER_COUNT = 100
_MOST_NAMESPACES = 10_000


class Sizes:
    """Spares most searches the count of their namespace's vectors, where it is large.

    A namespace seen to be large is taken for large in the next hundred searches of it. Safe for
    any number of threads: a count lost to another thread is a count too many or too few.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int]] = {}

    def each(self, prefix: str) -> float | None:
        """How many vectors an item has, if the namespace may be taken for large without a count."""
        each, left = self._seen.get(prefix, (None, 0))
        if each is None or not left:
            return None
        self._seen[prefix] = (each, left - 1)
        return each

    def saw(self, prefix: str, each: float | None) -> None:
        """Note what a count said: how many vectors an item has, ``None`` if there are few."""
        self._seen.pop(prefix, None)
        if each is not None:
            if len(self._seen) >= _MOST_NAMESPACES:
                self._seen.clear()
            self._seen[prefix] = (each, _SEARCHES_PER_COUNT)
