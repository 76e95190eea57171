"""Finding the nearest items: every one that matches is found, whatever index there is.

When a walk over the vector index ends with too few items, a wider one follows, and at last a
comparison with all: an index decides how fast, never how many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from langgraph_aurora_store.sql.layout import Layout
from langgraph_aurora_store.sql.steps import Conversation, Rows, Run, Statement
from langgraph_aurora_store.sql.walks import exact, guided, steering

if TYPE_CHECKING:
    from pgvector import HalfVector, Vector

    from langgraph_aurora_store.sql.search import Search
    from langgraph_aurora_store.sql.sizes import Sizes

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
    layout: Layout,
    sizes: Sizes,
) -> Conversation[list[Rows]]:
    """The rows of each search, nearest first."""
    found = [Rows() for _ in searches]
    attempts = [_first(n, s, layout, sizes) for n, s in enumerate(searches) if s.op.limit]
    while attempts:
        sent = _sent(attempts, vectors, layout)
        replies = yield Run(tuple(statement for _, statement in sent))
        attempts = []
        for (attempt, _), rows in zip(sent, replies, strict=True):
            if attempt is not None:
                items = found[attempt.number] = _found(rows)
                again = _again(attempt, rows, len(items))
                _note(attempt, rows, again, sizes)
                attempts += again
    return found


def best_score(layout: Layout) -> float:
    """The score at no distance; less the distance, it is the score.

    That is the cosine similarity, the negative Euclidean distance or the inner product.
    """
    return 1.0 if layout.index is not None and layout.index.distance == "cosine" else 0.0


def _first(number: int, search: Search, layout: Layout, sizes: Sizes) -> Attempt:
    each = sizes.each(search.prefix)
    return Attempt(number, search, each=each, is_exact=each is not None and not layout.has_walks)


def _again(attempt: Attempt, rows: Rows, items: int) -> tuple[Attempt, ...]:
    """What to try next, if there may be items that these rows lack."""
    if attempt.is_exact or items >= attempt.search.op.limit:
        return ()
    walked = _walked(rows)
    if walked is None:
        return ()
    wider = walked * _WIDENING
    return (attempt._replace(breadth=wider, is_exact=not 0 < wider <= _WIDEST),)


def _note(attempt: Attempt, rows: Rows, again: tuple[Attempt, ...], sizes: Sizes) -> None:
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
    attempts: Sequence[Attempt], vectors: Mapping[str, Vector | HalfVector], layout: Layout
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
    attempt: Attempt, vectors: Mapping[str, Vector | HalfVector], layout: Layout
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
