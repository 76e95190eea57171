"""The statements that find the nearest items.

One counts the vectors of the namespace, up to a number that is still cheap to compare one by one,
and either does so or walks the vector index; where the namespace is known to be large, it walks.
Another compares all.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

from langgraph_aurora_store.config import EF_CONSTRUCTION
from langgraph_aurora_store.sql.conditions import ALIVE, DUE, below, exactly, under
from langgraph_aurora_store.sql.filters import by_condition
from langgraph_aurora_store.sql.flow import Statement
from langgraph_aurora_store.sql.tables import StoreTables

# A walk under relaxed_order meets items nearly in order. They are put in order a few at a time and
# pages are cut from that, so that no item is on two pages or on none, whatever the page's size;
# what is equally near is kept together. Behind a filter the order is looser.
_CHUNK, _CHUNK_FILTERED = 10, 20

# pgvector looks at as many in one go, 40 by default and at most 1,000. Measured on 100,000 vectors
# of 128 dimensions in an index that was built with pgvector's default, as the parent's is: a recall
# of .95 for 40, .986 for 120 and .994 for 160, in 0.77, 1.01 and 1.06 ms. Built as ours: 1 for 40.
_LEAST_EF_SEARCH, _LEAST_EF_SEARCH_OF_DEFAULT, _MOST_EF_SEARCH = 40, 120, 1000
_MOST_SCAN_TUPLES, _ANY_SCAN_TUPLES = 20_000, 2**31 - 1
_IVFFLAT_LISTS = 100  # pgvector's default

# So many vectors are compared one by one. That takes time in proportion to their number, and a
# walk in inverse proportion to their share of the table: they meet at some root of the table's
# size. Fewer than that among many are also what a walk finds badly: measured as above, a recall of
# .9 where 1,000 of 100,000 count, and .7 where 300 do.
_FEW = "least(greatest(1500, 7 * sqrt(size)), 30000)"
# A table that was never analyzed says -1; some 20 vectors or pointers to vectors fill a page.
_SIZE = """
CASE WHEN v.reltuples < 0 THEN 20 * (pg_relation_size(v.oid) / 8192) ELSE v.reltuples END
"""

# How many vectors an item has, on average and with some to spare.
_EACH = """
CASE WHEN v.reltuples > s.reltuples AND s.reltuples > 0
     THEN 1.5 * v.reltuples / s.reltuples ELSE 1 END
"""

# How many vectors to meet.
_BREADTH = """
greatest(%(breadth)s::int8, {chunk} * ceil(%(needed)s::int8 / {chunk}.0 * {each})::int8)
"""

# The plan is ours: PostgreSQL cannot know how many vectors a namespace holds, nor what comes of a
# filter, and a guess costs a hundred times what the right plan takes. Without sorts, the walk goes
# by the vector index; with one plan for all parameters, none is made per call. The settings end
# with the transaction.
_STEERED = {
    "enable_hashjoin": "'off'",
    "enable_mergejoin": "'off'",
    "enable_seqscan": "'off'",
    "enable_sort": "'off'",
    "jit": "'off'",
    "max_parallel_workers_per_gather": "'0'",
    "plan_cache_mode": "'force_generic_plan'",
}

# After an item's own columns there is, for vector_search.py to read, how the search went.
_GUIDED = """
WITH span AS MATERIALIZED ({span}),
met AS MATERIALIZED ({ways}),
best AS MATERIALIZED (
    SELECT * FROM (
        SELECT DISTINCT ON (prefix, key) * FROM met WHERE distance < 'infinity'
        ORDER BY prefix, key, chunk, distance
    ) AS item
    ORDER BY chunk, distance, prefix COLLATE "C", key COLLATE "C"
    LIMIT %(limit)s::int8 OFFSET %(offset)s::int8
)
SELECT s.prefix, s.key, s.value, s.created_at, s.updated_at, {due},
       CASE WHEN span.is_small THEN b.distance ELSE least(b.distance, (
           SELECT min(v.embedding {operator} %(query)b::{type})
           FROM {vectors} AS v
           WHERE v.prefix = b.prefix AND v.key = b.key AND v.field_name <> b.field_name
             AND {has_direction}
       )) END AS nearest,
       CASE WHEN span.is_small THEN NULL
            WHEN (SELECT count(*) FROM met) < span.breadth THEN 0 ELSE span.breadth END,
       span.each
FROM span LEFT JOIN (best AS b JOIN {store} AS s ON s.prefix = b.prefix AND s.key = b.key) ON true
ORDER BY nearest, b.prefix COLLATE "C", b.key COLLATE "C"
"""

_SPAN = """
SELECT {is_small} AS is_small, each, breadth, reach
FROM (
    SELECT few::int8, {is_large} AS is_large, each, breadth,
           least(1.5 * breadth * greatest(size / few, 1), 9e18)::int8 AS reach
    FROM pg_class AS v CROSS JOIN pg_class AS s
    CROSS JOIN LATERAL (SELECT {size} AS size) AS estimated
    CROSS JOIN LATERAL (SELECT {few} AS few, ({each})::float8 AS each) AS decided
    CROSS JOIN LATERAL (SELECT {breadth} AS breadth) AS needed
    WHERE v.oid = '{vectors_name}'::regclass AND s.oid = '{store_name}'::regclass
    OFFSET 0
) AS sizes
"""

# The tables' sizes matter to a walk behind a filter; any other needs to know of them no more than
# what was seen when its namespace was counted.
_SPAN_SEEN = "SELECT false AS is_small, %(each)s::float8 AS each, {breadth} AS breadth"

_COUNTED = "CASE WHEN is_large THEN false ELSE NOT EXISTS ({probe} OFFSET few LIMIT 1) END"

_FEW_COMPARED = """
(
    SELECT n.prefix, n.key, NULL AS field_name, n.distance, 0::int8 AS chunk
    FROM (
        SELECT v.prefix, v.key, min(v.embedding {operator} %(query)b::{type}) AS distance
        FROM {vectors} AS v
        WHERE (SELECT is_small FROM span) AND {within} AND {has_direction}
        GROUP BY v.prefix, v.key ORDER BY 3 OFFSET 0
    ) AS n JOIN {store} AS s ON s.prefix = n.prefix AND s.key = n.key
    WHERE n.distance < 'infinity' AND {alive} AND {condition}
    ORDER BY n.distance, n.prefix COLLATE "C", n.key COLLATE "C"
    LIMIT %(needed)s::int8
)
"""

_WALK = """
(
    SELECT w.*, (rank() OVER (ORDER BY w.distance) - 1) / {chunk} AS chunk
    FROM (
        SELECT v.*
        FROM (
            SELECT v.prefix, v.key, v.field_name,
                   v.embedding {operator} %(query)b::{type} AS distance
            FROM {vectors} AS v
            WHERE {is_walked} AND {within_walk} AND {has_direction}
            ORDER BY v.embedding {operator} %(query)b::{type}
            {end_of_walk}
        ) AS v JOIN {store} AS s ON s.prefix = v.prefix AND s.key = v.key
        WHERE {within_met} AND {alive} AND {condition}
        ORDER BY v.distance
        FETCH FIRST (SELECT breadth FROM span) ROWS WITH TIES
    ) AS w
)
"""

# Behind a filter a walk ends where it would have met enough, did a few of all vectors count. When
# it did not, fewer count, and comparing those finds them faster and better. Without a filter there
# are more than a few, and those of other namespaces are passed by without a look at their distance.
_END_OF_FILTERED_WALK = "LIMIT (SELECT reach FROM span)"

# A vector of zeros is near to nothing. Its cosine distance, even to itself, is NaN, which counts as
# greater than infinity; the other distances would rank it.
_HAS_DIRECTION = "v.embedding {cosine} v.embedding < 'infinity'"

_PROBE = "SELECT FROM {vectors} AS v WHERE {within}"

# The namespace is asked of both tables, for the planner does not conclude from one to the other.
_EXACT = """
SELECT s.prefix, s.key, s.value, s.created_at, s.updated_at, {due}, b.distance, NULL
FROM (
    SELECT v.prefix, v.key, min(v.embedding {operator} %(query)b::{type}) AS distance
    FROM {vectors} AS v JOIN {store} AS s ON s.prefix = v.prefix AND s.key = v.key
    WHERE {within} AND {within_store} AND {has_direction} AND {alive} AND {condition}
    GROUP BY v.prefix, v.key
    HAVING min(v.embedding {operator} %(query)b::{type}) < 'infinity'
    ORDER BY 3, v.prefix COLLATE "C", v.key COLLATE "C"
    LIMIT %(limit)s::int8 OFFSET %(offset)s::int8
) AS b JOIN {store} AS s ON s.prefix = b.prefix AND s.key = b.key
ORDER BY b.distance, s.prefix COLLATE "C", s.key COLLATE "C"
"""


def steering(layout: StoreTables, limit: int, *, is_filtered: bool) -> Statement:
    """Goes before walks in their transaction; holds for all that follow, up to the next."""
    is_built_with_care = (layout.ef_construction or 0) >= EF_CONSTRUCTION
    least = _LEAST_EF_SEARCH if is_built_with_care else _LEAST_EF_SEARCH_OF_DEFAULT
    ef_search = min(max(2 * limit, least), _MOST_EF_SEARCH)
    # A filtered walk ends at its reach; ended by this, it would go on over what it has in hand.
    scan_tuples = _ANY_SCAN_TUPLES if is_filtered else _MOST_SCAN_TUPLES
    params = {"ef_search": str(ef_search), "scan_tuples": str(scan_tuples)}
    return Statement(_steering_text(layout), params)


@lru_cache
def _steering_text(layout: StoreTables) -> bytes:
    settings, index = dict(_STEERED), layout.indexed
    if index.kind == "hnsw":
        settings["hnsw.ef_search"] = "%(ef_search)s"
    if index.kind == "ivfflat":
        # pgvector README, "IVFFlat": the square root of the lists is a good start; here twice it.
        settings["ivfflat.probes"] = f"'{2 * isqrt(layout.lists or _IVFFLAT_LISTS)}'"
    if index.kind != "flat" and layout.iterative_scan:
        settings[f"{index.kind}.iterative_scan"] = "'relaxed_order'"
    if index.kind == "hnsw" and layout.iterative_scan:
        settings["hnsw.max_scan_tuples"] = "%(scan_tuples)s"
        settings["hnsw.scan_mem_multiplier"] = "'8'"
    calls = (f"set_config('{name}', {value}, true)" for name, value in settings.items())
    # No row comes back: nobody reads one.
    return f"SELECT WHERE concat({', '.join(calls)}) IS NULL".encode()


@by_condition
def guided(layout: StoreTables, condition: str, *, is_bounded: bool, is_large: bool) -> bytes:
    """Compares few or walks among many; ``is_large`` spares the count."""
    is_filtered = condition != "true"
    names = _names(layout, condition, is_bounded=is_bounded)
    names["chunk"] = str(_CHUNK_FILTERED if is_filtered else _CHUNK)
    names["within_walk"] = "true" if is_filtered else names["within"]
    names["within_met"] = names["within"] if is_filtered else "true"
    names["end_of_walk"] = _END_OF_FILTERED_WALK if is_filtered else ""
    names["is_small"] = "false" if is_large else _counted(layout, is_bounded=is_bounded)
    is_seen = is_large and not is_filtered
    names["span"] = _span(layout, names, is_bounded=is_bounded, is_seen=is_seen)
    names["is_walked"] = "true" if is_large else "(SELECT NOT is_small FROM span)"
    ways = [*([] if is_large else [_FEW_COMPARED]), *([_WALK] if layout.has_ann_index else [])]
    names["ways"] = " UNION ALL ".join(way.format(**names) for way in ways)
    return _GUIDED.format(**names).encode()


def _span(layout: StoreTables, names: dict[str, str], *, is_bounded: bool, is_seen: bool) -> str:
    if is_seen:
        return _SPAN_SEEN.format(breadth=_BREADTH.format(each="%(each)s::float8", **names))
    return _SPAN.format(
        # Of the whole table the server knows the size, roughly; of a namespace it does not.
        is_large="false" if is_bounded else "size > few",
        size=_SIZE,
        few=_FEW,
        each=_EACH,
        breadth=_BREADTH.format(each="each", **names),
        vectors_name=layout.vectors.replace("'", "''"),
        store_name=layout.store.replace("'", "''"),
        **names,
    )


def _counted(layout: StoreTables, *, is_bounded: bool) -> str:
    scopes = [exactly("v.prefix"), below("v.prefix")] if is_bounded else ["true"]
    probes = (_PROBE.format(vectors=layout.vectors, within=scope) for scope in scopes)
    return _COUNTED.format(probe=" UNION ALL ".join(probes))


@by_condition
def exact(layout: StoreTables, condition: str, *, is_bounded: bool) -> bytes:
    """Compares all."""
    return _EXACT.format(**_names(layout, condition, is_bounded=is_bounded)).encode()


def _names(layout: StoreTables, condition: str, *, is_bounded: bool) -> dict[str, str]:
    is_cosine = layout.indexed.distance == "cosine"
    has_direction = _HAS_DIRECTION.format(cosine=layout.operator("cosine"))
    return {
        "has_direction": "true" if is_cosine else has_direction,
        "store": layout.store,
        "vectors": layout.vectors,
        "operator": layout.operator(layout.indexed.distance),
        "type": layout.embedding_type,
        "within": under("v.prefix") if is_bounded else "true",
        "within_store": under("s.prefix") if is_bounded else "true",
        "alive": ALIVE,
        "due": DUE,
        "condition": condition,
    }
