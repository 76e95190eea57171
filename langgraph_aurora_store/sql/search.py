"""Finding items: by recency, or by meaning among vectors, in one statement as a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from langgraph.store.base import SearchItem, SearchOp

from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.sql.filters import Condition, compile_filter
from langgraph_aurora_store.sql.get import Address
from langgraph_aurora_store.sql.items import (
    ALIVE,
    DUE,
    namespace_of,
    prefix_of,
    span_of,
    under,
)
from langgraph_aurora_store.sql.layout import Layout
from langgraph_aurora_store.sql.namespaces import check_page
from langgraph_aurora_store.sql.steps import Conversation, Rows, Run, Statement

if TYPE_CHECKING:
    from pgvector import HalfVector, Vector

_RECENT = """
SELECT s.prefix, s.key, s.value, s.created_at, s.updated_at, {due}, NULL::float8
FROM {store} AS s
WHERE {within} AND {alive} AND {condition}
ORDER BY s.updated_at DESC, s.prefix COLLATE "C", s.key COLLATE "C"
LIMIT %(limit)s::int8 OFFSET %(offset)s::int8
"""

_EXACT = """
WITH best AS MATERIALIZED (
    SELECT v.prefix, v.key, min(v.embedding {operator} %(query)b::{type}) AS distance
    FROM {vectors} AS v JOIN {store} AS s ON s.prefix = v.prefix AND s.key = v.key
    WHERE {within} AND {alive} AND {condition}
    GROUP BY v.prefix, v.key
)
SELECT s.prefix, s.key, s.value, s.created_at, s.updated_at, {due}, b.distance
FROM best AS b JOIN {store} AS s ON s.prefix = b.prefix AND s.key = b.key
WHERE b.distance < 'infinity'
ORDER BY b.distance, s.prefix COLLATE "C", s.key COLLATE "C"
LIMIT %(limit)s::int8 OFFSET %(offset)s::int8
"""

_OPERATORS = {"cosine": "<=>", "l2": "<->", "inner_product": "<#>"}


class Search(NamedTuple):
    """A ``SearchOp``, checked, and its place in the batch."""

    place: int
    op: SearchOp
    prefix: str
    condition: Condition
    query: str | None
    renews: bool


def plan(place: int, op: SearchOp, layout: Layout) -> Search:
    """Check one operation.

    Raises:
        ConfigurationError: for a query in a store without an index, or a page below 0.
        InvalidFilterError: for a filter that means nothing.
    """
    check_page(op.limit, op.offset)
    query = op.query if op.query and not op.query.isspace() else None
    if query is not None and layout.index is None:
        raise ConfigurationError(
            "query= searches by meaning, and this store has no index: make it with"
            " index={'embed': ..., 'dims': ...}, or search without query="
        )
    renews = layout.ttl.refresh_on_read if op.refresh_ttl is None else op.refresh_ttl
    prefix = prefix_of(op.namespace_prefix)
    return Search(place, op, prefix, compile_filter(op.filter), query, renews)


def recent(search: Search, layout: Layout) -> Statement:
    """The newest items of a namespace."""
    return _statement(_RECENT, search, layout, "s.prefix")


def nearest(
    searches: Sequence[Search], vectors: Mapping[str, Vector | HalfVector], layout: Layout
) -> Conversation[list[Rows]]:
    """The rows of each search, nearest first."""
    reply = yield Run(
        tuple(
            _statement(_EXACT, search, layout, "v.prefix", vectors[search.query or ""])
            for search in searches
        )
    )
    return list(reply)


def items(search: Search, rows: Rows, layout: Layout) -> tuple[list[SearchItem], list[Address]]:
    """The items found, and the addresses of those due for renewal."""
    found = [
        SearchItem(
            namespace=namespace_of(prefix),
            key=key,
            value=value,
            created_at=created_at,
            updated_at=updated_at,
            score=None if distance is None else _score(distance, layout),
        )
        for prefix, key, value, created_at, updated_at, _, distance in rows
    ]
    return found, [(row[0], row[1]) for row in rows if row[5]] if search.renews else []


def _statement(
    template: str,
    search: Search,
    layout: Layout,
    column: str,
    query: Vector | HalfVector | None = None,
) -> Statement:
    index = layout.index
    text = template.format(
        store=layout.store,
        vectors=layout.vectors,
        within=under(column) if search.prefix else "true",
        alive=ALIVE,
        due=DUE,
        condition=search.condition.sql,
        operator=_OPERATORS[index.distance] if index else "",
        type=index.vector_type if index else "",
    )
    params = search.condition.params | span_of(search.prefix)
    params |= {"limit": search.op.limit, "offset": search.op.offset}
    if query is not None:
        params["query"] = query
    return Statement(text.encode(), params)


def _score(distance: float, layout: Layout) -> float:
    """Higher is nearer: cosine similarity, negative Euclidean distance, or inner product."""
    if layout.index is not None and layout.index.distance == "cosine":
        return 1.0 - distance
    return -distance
