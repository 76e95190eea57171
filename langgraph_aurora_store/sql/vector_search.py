"""Finding the nearest items: every one that matches is found, whatever index there is.

When a scan of the vector index ends with too few items, a wider one follows, and at last an exact
search: an index decides how fast a search is, never how many items it finds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from langgraph_aurora_store.sql.flow import Flow, Rows, Statement, Transaction
from langgraph_aurora_store.sql.search import FoundRow, Search
from langgraph_aurora_store.sql.store_tables import StoreTables
from langgraph_aurora_store.sql.vector_search_sql import adaptive_search, exact, planner_settings

if TYPE_CHECKING:
    from pgvector import HalfVector, Vector


_WIDENING = 8
_WIDEST = 5_000


class Attempt(NamedTuple):
    """One try at a search: an index scan of at least ``scan_width`` vectors, or an exact search.

    ``position`` is that of the search among its batch's. ``vectors_per_item`` is set for a
    namespace that was lately seen to be large.
    """

    position: int
    search: Search
    scan_width: int = 0
    is_exact: bool = False
    vectors_per_item: float | None = None

    @property
    def assume_large(self) -> bool:
        """Whether the namespace is taken for large without a count."""
        return self.vectors_per_item is not None


def nearest(
    searches: Sequence[Search],
    vectors: Mapping[str, Vector | HalfVector],
    tables: StoreTables,
    large_namespaces: LargeNamespaces,
) -> Flow[list[Rows]]:
    """The rows of each search, nearest first."""
    found = [Rows() for _ in searches]
    attempts = [
        _first(n, s, tables, large_namespaces) for n, s in enumerate(searches) if s.op.limit
    ]
    while attempts:
        statements = _statements(attempts, vectors, tables)
        replies = yield Transaction(tuple(statement for _, statement in statements))
        attempts = []
        for (attempt, _), rows in zip(statements, replies, strict=True):
            if attempt is not None:
                items = found[attempt.position] = _found(rows)
                next_attempts = _next_attempt(attempt, rows, len(items))
                _remember_size(attempt, rows, next_attempts, large_namespaces)
                attempts += next_attempts
    return found


def _first(
    position: int, search: Search, tables: StoreTables, large_namespaces: LargeNamespaces
) -> Attempt:
    vectors_per_item = large_namespaces.vectors_per_item(search.prefix)
    return Attempt(
        position,
        search,
        vectors_per_item=vectors_per_item,
        is_exact=vectors_per_item is not None and not tables.has_ann_index,
    )


def _next_attempt(attempt: Attempt, rows: Rows, items: int) -> tuple[Attempt, ...]:
    """What to try next, if there may be items that these rows lack."""
    if attempt.is_exact or items >= attempt.search.op.limit:
        return ()
    scanned = _outcome(rows).scanned
    if scanned is None:
        return ()
    wider = scanned * _WIDENING
    return (attempt._replace(scan_width=wider, is_exact=not 0 < wider <= _WIDEST),)


def _remember_size(
    attempt: Attempt,
    rows: Rows,
    next_attempts: tuple[Attempt, ...],
    large_namespaces: LargeNamespaces,
) -> None:
    if not (attempt.is_exact or attempt.assume_large):
        outcome = _outcome(rows)
        is_small = outcome.scanned is None
        large_namespaces.remember(
            attempt.search.prefix, None if is_small else outcome.vectors_per_item
        )
    elif attempt.assume_large and next_attempts:
        # The namespace may have shrunk: count it at the next search.
        large_namespaces.remember(attempt.search.prefix, None)


def _found(rows: Rows) -> Rows:
    """The rows that hold an item; one without an item only reports on an index scan."""
    return Rows([row for row in rows if row[0] is not None])


def _outcome(rows: Rows) -> FoundRow:
    """How a search went, which each of its rows tells; there is always one."""
    return FoundRow(*rows[0])


def _statements(
    attempts: Sequence[Attempt], vectors: Mapping[str, Vector | HalfVector], tables: StoreTables
) -> list[tuple[Attempt | None, Statement]]:
    """The statements in order, each with its attempt; planner settings come with none.

    Exact searches, which need no settings, go first. Each index scan runs under settings for its
    own limit and filter, so that no search changes what another one finds.
    """
    statements: list[tuple[Attempt | None, Statement]] = [
        (attempt, _statement(attempt, vectors, tables)) for attempt in attempts if attempt.is_exact
    ]
    scans = [attempt for attempt in attempts if not attempt.is_exact]
    last = None
    for limit, is_filtered, scan in sorted(map(_settings_key, scans), key=itemgetter(0, 1)):
        settings = planner_settings(tables, limit, is_filtered=is_filtered)
        if settings != last:
            statements.append((None, settings))
        statements.append((scan, _statement(scan, vectors, tables)))
        last = settings
    return statements


def _settings_key(scan: Attempt) -> tuple[int, bool, Attempt]:
    return scan.search.op.limit, scan.search.condition.sql != "true", scan


def _statement(
    attempt: Attempt, vectors: Mapping[str, Vector | HalfVector], tables: StoreTables
) -> Statement:
    search = attempt.search
    params = search.params | {
        "query": vectors[search.query or ""],
        "needed": search.needed,
        "scan_width": attempt.scan_width,
        "vectors_per_item": attempt.vectors_per_item,
    }
    condition, is_bounded = search.condition.sql, bool(search.prefix)
    if attempt.is_exact:
        return Statement(exact(tables, condition, is_bounded=is_bounded), params)
    text = adaptive_search(
        tables, condition, is_bounded=is_bounded, assume_large=attempt.assume_large
    )
    return Statement(text, params)


# A count costs a quarter of a search. A namespace that has shrunk meanwhile is still searched
# completely, for an index scan that ends with too few items is followed by a wider one.
_SEARCHES_PER_COUNT = 100
_MOST_NAMESPACES = 10_000


class LargeNamespaces:
    """Spares most searches the count of their namespace's vectors, where it is large.

    A namespace seen to be large is taken for large in the next hundred searches of it. Safe for
    any number of threads: a count lost to another thread is one count too many or too few.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int]] = {}

    def vectors_per_item(self, prefix: str) -> float | None:
        """How many vectors an item has, if the namespace may be taken for large without a count."""
        vectors_per_item, left = self._seen.get(prefix, (None, 0))
        if vectors_per_item is None or not left:
            return None
        self._seen[prefix] = (vectors_per_item, left - 1)
        return vectors_per_item

    def remember(self, prefix: str, vectors_per_item: float | None) -> None:
        """Note a count: how many vectors an item has, ``None`` for a small namespace."""
        self._seen.pop(prefix, None)
        if vectors_per_item is not None:
            if len(self._seen) >= _MOST_NAMESPACES:
                self._seen.clear()
            self._seen[prefix] = (vectors_per_item, _SEARCHES_PER_COUNT)
