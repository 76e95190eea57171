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
        self._left: dict[str, int] = {}

    def is_large(self, prefix: str) -> bool:
        """Whether a search may take the namespace for large without a count."""
        left = self._left.get(prefix, 0)
        if left:
            self._left[prefix] = left - 1
        return left > 0

    def saw(self, prefix: str, *, is_large: bool) -> None:
        """Note what a count said."""
        self._left.pop(prefix, None)
        if is_large:
            if len(self._left) >= _MOST_NAMESPACES:
                self._left.clear()
            self._left[prefix] = _SEARCHES_PER_COUNT
