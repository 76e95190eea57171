"""Finding items by namespace and filter: the newest first, or the nearest to a query."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from langgraph.store.base import SearchItem, SearchOp

from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.sql.addresses import namespace_of, prefix_of
from langgraph_aurora_store.sql.conditions import ALIVE, NEEDS_REFRESH, span_of, under, value_of
from langgraph_aurora_store.sql.filters import Condition, by_condition, compile_filter
from langgraph_aurora_store.sql.flow import Rows, Statement
from langgraph_aurora_store.sql.get import Address
from langgraph_aurora_store.sql.store_tables import StoreTables

_RECENT = """
SELECT s.prefix, s.key, s.value, s.created_at, s.updated_at, {to_refresh}, NULL::float8
FROM {store} AS s
WHERE {within} AND {alive} AND {condition}
ORDER BY s.updated_at DESC, s.prefix COLLATE "C", s.key COLLATE "C"
LIMIT %(limit)s::int8 OFFSET %(offset)s::int8
"""


# The one plan for all namespaces is the right one for all but the largest: an index on the prefix,
# a sort, and no worker processes, whose start takes longer than most searches.
_PLANNER_SETTINGS = """
SELECT pg_catalog.set_config('plan_cache_mode', 'force_generic_plan', true),
       pg_catalog.set_config('jit', 'off', true),
       pg_catalog.set_config('max_parallel_workers_per_gather', '0', true)
"""


class Search(NamedTuple):
    """A ``SearchOp``, checked, and its place in the batch; a blank ``query`` is ``None``."""

    position: int
    op: SearchOp
    prefix: str
    condition: Condition
    query: str | None

    @property
    def needed(self) -> int:
        """How many items there are up to the end of the page."""
        return self.op.limit + self.op.offset

    @property
    def params(self) -> dict[str, object]:
        """The parameters of its namespace, filter and page."""
        page = {"limit": self.op.limit, "offset": self.op.offset}
        return self.condition.params | span_of(self.prefix) | page


class FoundRow(NamedTuple):
    """A row of a search: an item with its distance, and how an index scan went.

    ``prefix`` is ``None`` in the one row of an index scan that found no item. ``scanned`` counts
    the vectors that an index scan met: 0 says that it met all within its reach, ``None`` that all
    were compared. ``vectors_per_item`` is the server's estimate.
    """

    prefix: str
    key: str
    value: Any
    created_at: datetime
    updated_at: datetime
    needs_refresh: bool
    distance: float | None
    scanned: int | None = None
    vectors_per_item: float = 1.0


def parse(position: int, op: SearchOp, tables: StoreTables) -> Search:
    """Check one operation, whose page is one.

    Raises:
        ConfigurationError: for a query that is no text.
        InvalidFilterError: for a filter that means nothing.
    """
    if not isinstance(op.query, str | None):
        raise ConfigurationError(f"query= is a text, not one of type {type(op.query).__name__}")
    query = op.query if op.query and not op.query.isspace() and op.limit else None
    if tables.index is None:
        query = None  # LangMem and LangGraph Server always send one, which the parent ignores
    prefix = prefix_of(op.namespace_prefix)
    return Search(position, op, prefix, compile_filter(op.filter), query)


def recent(searches: Sequence[Search], tables: StoreTables) -> list[Statement]:
    """The newest items of each search's namespace; replies to other statements may come first."""
    bounded = any(search.prefix for search in searches)
    return [
        *([Statement(_PLANNER_SETTINGS)] if bounded else []),
        *(
            Statement(
                _recent(tables, search.condition.sql, is_bounded=bool(search.prefix)), search.params
            )
            for search in searches
        ),
    ]


def items(
    search: Search, rows: Rows, tables: StoreTables
) -> tuple[list[SearchItem], list[Address]]:
    """The items found, and the addresses of those whose TTL is to be refreshed."""
    best = _best_score(tables)
    found = [FoundRow(*row) for row in rows]
    items_found = [
        SearchItem(
            namespace_of(row.prefix),
            row.key,
            value_of(row.value, tables),
            row.created_at,
            row.updated_at,
            None if row.distance is None else best - row.distance,
        )
        for row in found
    ]
    if not search.op.refresh_ttl:
        return items_found, []
    return items_found, [(row.prefix, row.key) for row in found if row.needs_refresh]


def _best_score(tables: StoreTables) -> float:
    """The score at no distance; less the distance, it is the score.

    That is the cosine similarity, the negative Euclidean distance or the inner product.
    """
    return 1.0 if tables.index is not None and tables.index.distance == "cosine" else 0.0


@by_condition
def _recent(tables: StoreTables, condition: str, *, is_bounded: bool) -> str:
    within = under("s.prefix") if is_bounded else "true"
    names = {"store": tables.store, "to_refresh": NEEDS_REFRESH, "alive": ALIVE}
    return _RECENT.format(within=within, condition=condition, **names)
