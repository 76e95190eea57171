"""Finding the nearest items: every one that matches is found, whatever index there is.

When a walk over the vector index ends with too few items, a wider one follows, and at last a
comparison with all: an index decides how fast, never how many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from langgraph_aurora_store.sql.flow import Flow, Rows, Statement, Transaction
from langgraph_aurora_store.sql.search import Search
from langgraph_aurora_store.sql.tables import StoreTables
from langgraph_aurora_store.sql.vector_search_sql import exact, guided, steering

if TYPE_CHECKING:
    from pgvector import HalfVector, Vector


_WIDENING = 8
_WIDEST = 5_000


class Attempt(NamedTuple):
    """One try at a search: a walk over at least so many vectors, or a comparison with all.

    ``each`` is how many vectors an item has, of a namespace that was lately seen to be large.
    """

    number: int
    search: Search
    breadth: int = 0
    is_exact: bool = False
    each: float | None = None

    @property
    def is_large(self) -> bool:
        """Whether the namespace is taken for large without a count."""
        return self.each is not None


def nearest(
    searches: Sequence[Search],
    vectors: Mapping[str, Vector | HalfVector],
    layout: StoreTables,
    sizes: LargeNamespaces,
) -> Flow[list[Rows]]:
    """The rows of each search, nearest first."""
    found = [Rows() for _ in searches]
    attempts = [_first(n, s, layout, sizes) for n, s in enumerate(searches) if s.op.limit]
    while attempts:
        sent = _sent(attempts, vectors, layout)
        replies = yield Transaction(tuple(statement for _, statement in sent))
        attempts = []
        for (attempt, _), rows in zip(sent, replies, strict=True):
            if attempt is not None:
                items = found[attempt.number] = _found(rows)
                again = _again(attempt, rows, len(items))
                _note(attempt, rows, again, sizes)
                attempts += again
    return found


def _first(number: int, search: Search, layout: StoreTables, sizes: LargeNamespaces) -> Attempt:
    each = sizes.each(search.prefix)
    return Attempt(
        number, search, each=each, is_exact=each is not None and not layout.has_ann_index
    )


def _again(attempt: Attempt, rows: Rows, items: int) -> tuple[Attempt, ...]:
    """What to try next, if there may be items that these rows lack."""
    if attempt.is_exact or items >= attempt.search.op.limit:
        return ()
    walked = _walked(rows)
    if walked is None:
        return ()
    wider = walked * _WIDENING
    return (attempt._replace(breadth=wider, is_exact=not 0 < wider <= _WIDEST),)


def _note(attempt: Attempt, rows: Rows, again: tuple[Attempt, ...], sizes: LargeNamespaces) -> None:
    if not (attempt.is_exact or attempt.is_large):
        sizes.saw(attempt.search.prefix, None if _walked(rows) is None else _each(rows))
    elif attempt.is_large and again:
        # It may have shrunk.
        sizes.saw(attempt.search.prefix, None)


def _found(rows: Rows) -> Rows:
    """Those that hold an item: there is always one that says how the search went."""
    return Rows([row for row in rows if row[0] is not None])


def _walked(rows: Rows) -> int | None:
    """How many vectors a walk met, 0 for all it can reach; ``None`` after a comparison of few."""
    walked: int | None = rows[0][7]
    return walked


def _each(rows: Rows) -> float:
    """How many vectors an item has, as the server thinks."""
    each: float = rows[0][8]
    return each


def _sent(
    attempts: Sequence[Attempt], vectors: Mapping[str, Vector | HalfVector], layout: StoreTables
) -> list[tuple[Attempt | None, Statement]]:
    """The statements, in order, with the attempt that each makes; what steers makes none.

    What is not steered goes first. Each walk is steered by its own limit and filter: what it meets,
    and in which order, is nobody else's business.
    """
    sent: list[tuple[Attempt | None, Statement]] = [
        (attempt, _statement(attempt, vectors, layout)) for attempt in attempts if attempt.is_exact
    ]
    walks = [attempt for attempt in attempts if not attempt.is_exact]
    last = None
    for limit, is_filtered, walk in sorted(map(_paced, walks), key=itemgetter(0, 1)):
        steered = steering(layout, limit, is_filtered=is_filtered)
        if steered != last:
            sent.append((None, steered))
        sent.append((walk, _statement(walk, vectors, layout)))
        last = steered
    return sent


def _paced(walk: Attempt) -> tuple[int, bool, Attempt]:
    return walk.search.op.limit, walk.search.condition.sql != "true", walk


def _statement(
    attempt: Attempt, vectors: Mapping[str, Vector | HalfVector], layout: StoreTables
) -> Statement:
    search = attempt.search
    params = search.params | {
        "query": vectors[search.query or ""],
        "needed": search.needed,
        "breadth": attempt.breadth,
        "each": attempt.each,
    }
    condition, is_bounded = search.condition.sql, bool(search.prefix)
    if attempt.is_exact:
        return Statement(exact(layout, condition, is_bounded=is_bounded), params)
    text = guided(layout, condition, is_bounded=is_bounded, is_large=attempt.is_large)
    return Statement(text, params)


# A count costs a quarter of a search. A namespace that has shrunk meanwhile is still searched
# completely, for a walk that ends with too few items is followed by a wider one.
_SEARCHES_PER_COUNT = 100
_MOST_NAMESPACES = 10_000


class LargeNamespaces:
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
