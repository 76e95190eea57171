"""The statements that find the nearest items.

The adaptive search counts the vectors of the namespace, up to the number that is still cheap to
compare one by one; it compares those of a small namespace exactly, and scans the vector index for a
large one. Where the namespace is known to be large, the count is left out. The exact search
compares all vectors of any namespace.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

from langgraph_aurora_store.config import EF_CONSTRUCTION
from langgraph_aurora_store.sql.conditions import ALIVE, NEEDS_REFRESH, below, exactly, under
from langgraph_aurora_store.sql.filters import by_condition
from langgraph_aurora_store.sql.flow import Statement
from langgraph_aurora_store.sql.store_tables import StoreTables

# A scan under relaxed_order meets items nearly in order. They are sorted a chunk at a time and
# pages are cut from that, so that no item is on two pages or on none, whatever the page's size;
# items at the same distance stay together. Behind a filter the order is looser.
_CHUNK, _CHUNK_FILTERED = 10, 20

# pgvector looks at as many in one go, 40 by default and at most 1,000. Measured on 100,000 vectors
# of 128 dimensions in an index that was built with pgvector's default, as the parent's is: a recall
# of .95 for 40, .986 for 120 and .994 for 160, in 0.77, 1.01 and 1.06 ms. Built by this store: 1
# for 40.
_LEAST_EF_SEARCH, _LEAST_EF_SEARCH_OF_DEFAULT, _MOST_EF_SEARCH = 40, 120, 1000
_MOST_SCAN_TUPLES, _ANY_SCAN_TUPLES = 20_000, 2**31 - 1
_IVFFLAT_LISTS = 100  # pgvector's default

# So many vectors are compared one by one. That takes time in proportion to their number, and an
# index scan in inverse proportion to their share of the table: they meet at some root of the
# table's size. Fewer than that among many are also what a scan finds badly: measured as above, a
# recall of .9 where 1,000 of 100,000 count, and .7 where 300 do.
_EXACT_THRESHOLD = "least(greatest(1500, 7::float8 * pg_catalog.sqrt(size)), 30000)"
# A table that was never analyzed says -1; some 20 vectors or pointers to vectors fill a page.
_SIZE = """
CASE WHEN v.reltuples < 0::float4
     THEN (20 * (pg_catalog.pg_relation_size(v.oid) / 8192))::float8
     ELSE v.reltuples::float8 END
"""

# How many vectors an item has, on average and with some to spare.
_VECTORS_PER_ITEM = """
CASE WHEN v.reltuples > s.reltuples AND s.reltuples > 0::float4
     THEN 1.5::float8 * v.reltuples::float8 / s.reltuples::float8 ELSE 1 END
"""

# How many vectors to meet.
_SCAN_WIDTH = """
greatest(
    %(scan_width)s::int8,
    {chunk} * pg_catalog.ceil(%(needed)s::float8 / {chunk}::float8 * {vectors_per_item})::int8
)
"""

# The plan is fixed here: PostgreSQL cannot know how many vectors a namespace holds, nor how many
# rows pass a filter, and a wrong guess takes a hundred times as long. Without sorts, the planner
# uses the vector index; with one plan for all parameters, no call is planned again. The settings
# end with the transaction.
_PLANNER_SETTINGS = {
    "enable_hashjoin": "'off'",
    "enable_mergejoin": "'off'",
    "enable_seqscan": "'off'",
    "enable_sort": "'off'",
    "jit": "'off'",
    "max_parallel_workers_per_gather": "'0'",
    "plan_cache_mode": "'force_generic_plan'",
}

# The columns are those of `FoundRow`.
_ADAPTIVE = """
WITH estimates AS MATERIALIZED ({estimates}),
candidates AS MATERIALIZED ({scans}),
best AS MATERIALIZED (
    SELECT * FROM (
        SELECT DISTINCT ON (prefix, key) * FROM candidates WHERE distance < 'infinity'::float8
        ORDER BY prefix, key, chunk, distance
    ) AS item
    ORDER BY chunk, distance, prefix COLLATE "C", key COLLATE "C"
    LIMIT %(limit)s::int8 OFFSET %(offset)s::int8
)
SELECT s.prefix, s.key, s.value, s.created_at, s.updated_at, {to_refresh},
       CASE WHEN estimates.is_small THEN b.distance ELSE least(b.distance, (
           SELECT pg_catalog.min(v.embedding {operator} %(query)b::{type})
           FROM {vectors} AS v
           WHERE v.prefix = b.prefix AND v.key = b.key AND v.field_name <> b.field_name
             AND {has_direction}
       )) END AS nearest,
       CASE WHEN estimates.is_small THEN NULL
            WHEN (SELECT pg_catalog.count(*) FROM candidates) < estimates.scan_width THEN 0
            ELSE estimates.scan_width END,
       estimates.vectors_per_item
FROM estimates
LEFT JOIN (best AS b JOIN {store} AS s ON s.prefix = b.prefix AND s.key = b.key) ON true
ORDER BY nearest, b.prefix COLLATE "C", b.key COLLATE "C"
"""

_ESTIMATES = """
SELECT {is_small} AS is_small, vectors_per_item, scan_width, scan_limit
FROM (
    SELECT exact_threshold::int8, {assume_large} AS assume_large, vectors_per_item, scan_width,
           least(1.5::float8 * scan_width::float8
                 * greatest(size / exact_threshold, 1::float8), 9e18::float8)::int8 AS scan_limit
    FROM pg_catalog.pg_class AS v CROSS JOIN pg_catalog.pg_class AS s
    CROSS JOIN LATERAL (SELECT {size} AS size) AS estimated
    CROSS JOIN LATERAL (
        SELECT {exact_threshold} AS exact_threshold,
               ({vectors_per_item})::float8 AS vectors_per_item
    ) AS decided
    CROSS JOIN LATERAL (SELECT {scan_width} AS scan_width) AS needed
    WHERE v.oid = '{vectors_name}'::regclass::oid
      AND s.oid = '{store_name}'::regclass::oid
    OFFSET 0
) AS sizes
"""

# Only a scan behind a filter needs the tables' sizes; any other does with what was learned when its
# namespace was counted.
_KNOWN_ESTIMATES = """
SELECT false AS is_small, %(vectors_per_item)s::float8 AS vectors_per_item,
       {scan_width} AS scan_width
"""

_IS_SMALL = (
    "CASE WHEN assume_large THEN false ELSE NOT EXISTS ({probe} OFFSET exact_threshold LIMIT 1) END"
)

_EXACT_SCAN = """
(
    SELECT n.prefix, n.key, NULL AS field_name, n.distance, 0::int8 AS chunk
    FROM (
        SELECT v.prefix, v.key, pg_catalog.min(v.embedding {operator} %(query)b::{type}) AS distance
        FROM {vectors} AS v
        WHERE (SELECT is_small FROM estimates) AND {within} AND {has_direction}
        GROUP BY v.prefix, v.key ORDER BY 3 OFFSET 0
    ) AS n JOIN {store} AS s ON s.prefix = n.prefix AND s.key = n.key
    WHERE n.distance < 'infinity'::float8 AND {alive} AND {condition}
    ORDER BY n.distance, n.prefix COLLATE "C", n.key COLLATE "C"
    LIMIT %(needed)s::int8
)
"""

_INDEX_SCAN = """
(
    SELECT w.*, (pg_catalog.rank() OVER (ORDER BY w.distance) - 1) / {chunk} AS chunk
    FROM (
        SELECT v.*
        FROM (
            SELECT v.prefix, v.key, v.field_name,
                   v.embedding {operator} %(query)b::{type} AS distance
            FROM {vectors} AS v
            WHERE {is_scanned} AND {within_scan} AND {has_direction}
            ORDER BY v.embedding {operator} %(query)b::{type}
            {end_of_scan}
        ) AS v JOIN {store} AS s ON s.prefix = v.prefix AND s.key = v.key
        WHERE {within_candidates} AND {alive} AND {condition}
        ORDER BY v.distance
        FETCH FIRST (SELECT scan_width FROM estimates) ROWS WITH TIES
    ) AS w
)
"""

# Behind a filter a scan ends where it would have met enough items, if just as many vectors as the
# exact threshold passed the filter. When it has not, fewer pass, and comparing those is faster and
# more exact. Without a filter more than the threshold count, and vectors of other namespaces are
# passed by without a look at their distance.
_FILTERED_SCAN_LIMIT = "LIMIT (SELECT scan_limit FROM estimates)"

# A vector of zeros is near to nothing. Its cosine distance, even to itself, is NaN, which counts as
# greater than infinity; the other distances would rank it.
_HAS_DIRECTION = "v.embedding {cosine} v.embedding < 'infinity'::float8"

_PROBE = "SELECT FROM {vectors} AS v WHERE {within}"

# The namespace is asked of both tables, for the planner does not conclude from one to the other.
_EXACT = """
SELECT s.prefix, s.key, s.value, s.created_at, s.updated_at, {to_refresh}, b.distance, NULL
FROM (
    SELECT v.prefix, v.key, pg_catalog.min(v.embedding {operator} %(query)b::{type}) AS distance
    FROM {vectors} AS v JOIN {store} AS s ON s.prefix = v.prefix AND s.key = v.key
    WHERE {within} AND {within_store} AND {has_direction} AND {alive} AND {condition}
    GROUP BY v.prefix, v.key
    HAVING pg_catalog.min(v.embedding {operator} %(query)b::{type}) < 'infinity'::float8
    ORDER BY 3, v.prefix COLLATE "C", v.key COLLATE "C"
    LIMIT %(limit)s::int8 OFFSET %(offset)s::int8
) AS b JOIN {store} AS s ON s.prefix = b.prefix AND s.key = b.key
ORDER BY b.distance, s.prefix COLLATE "C", s.key COLLATE "C"
"""


def planner_settings(tables: StoreTables, limit: int, *, is_filtered: bool) -> Statement:
    """The settings of the index scans that follow in the transaction, up to the next settings."""
    is_built_with_care = (tables.ef_construction or 0) >= EF_CONSTRUCTION
    least = _LEAST_EF_SEARCH if is_built_with_care else _LEAST_EF_SEARCH_OF_DEFAULT
    ef_search = min(max(2 * limit, least), _MOST_EF_SEARCH)
    # A filtered scan ends at its own limit; ended by this one, it would go on over what it holds.
    scan_tuples = _ANY_SCAN_TUPLES if is_filtered else _MOST_SCAN_TUPLES
    params = {"ef_search": str(ef_search), "scan_tuples": str(scan_tuples)}
    return Statement(_planner_settings_text(tables), params)


@lru_cache
def _planner_settings_text(tables: StoreTables) -> str:
    settings, index = dict(_PLANNER_SETTINGS), tables.indexed
    if index.kind == "hnsw":
        settings["hnsw.ef_search"] = "%(ef_search)s"
    if index.kind == "ivfflat":
        # pgvector README, "IVFFlat": the square root of the lists is a good start; here twice it.
        settings["ivfflat.probes"] = f"'{2 * isqrt(tables.lists or _IVFFLAT_LISTS)}'"
    if index.kind != "flat" and tables.iterative_scan:
        settings[f"{index.kind}.iterative_scan"] = "'relaxed_order'"
    if index.kind == "hnsw" and tables.iterative_scan:
        settings["hnsw.max_scan_tuples"] = "%(scan_tuples)s"
        settings["hnsw.scan_mem_multiplier"] = "'8'"
    calls = (f"pg_catalog.set_config('{name}', {value}, true)" for name, value in settings.items())
    # The settings' values are of no use to the caller, so no row is sent.
    return f"SELECT WHERE pg_catalog.concat({', '.join(calls)}) IS NULL"


@by_condition
def adaptive_search(
    tables: StoreTables, condition: str, *, is_bounded: bool, assume_large: bool
) -> str:
    """Compare all of a small namespace, or scan the index; ``assume_large`` scans at once."""
    is_filtered = condition != "true"
    names = _names(tables, condition, is_bounded=is_bounded)
    names["chunk"] = str(_CHUNK_FILTERED if is_filtered else _CHUNK)
    names["within_scan"] = "true" if is_filtered else names["within"]
    names["within_candidates"] = names["within"] if is_filtered else "true"
    names["end_of_scan"] = _FILTERED_SCAN_LIMIT if is_filtered else ""
    names["is_small"] = "false" if assume_large else _is_small(tables, is_bounded=is_bounded)
    is_seen = assume_large and not is_filtered
    names["estimates"] = _estimates(tables, names, is_bounded=is_bounded, is_seen=is_seen)
    names["is_scanned"] = "true" if assume_large else "(SELECT NOT is_small FROM estimates)"
    scans = [
        *([] if assume_large else [_EXACT_SCAN]),
        *([_INDEX_SCAN] if tables.has_ann_index else []),
    ]
    names["scans"] = " UNION ALL ".join(scan.format(**names) for scan in scans)
    return _ADAPTIVE.format(**names)


def _estimates(
    tables: StoreTables, names: dict[str, str], *, is_bounded: bool, is_seen: bool
) -> str:
    if is_seen:
        return _KNOWN_ESTIMATES.format(
            scan_width=_SCAN_WIDTH.format(vectors_per_item="%(vectors_per_item)s::float8", **names)
        )
    return _ESTIMATES.format(
        # Of the whole table the server knows the size, roughly; of a namespace it does not.
        assume_large="false" if is_bounded else "size > exact_threshold",
        size=_SIZE,
        exact_threshold=_EXACT_THRESHOLD,
        vectors_per_item=_VECTORS_PER_ITEM,
        scan_width=_SCAN_WIDTH.format(vectors_per_item="vectors_per_item", **names),
        vectors_name=tables.vectors.replace("'", "''"),
        store_name=tables.store.replace("'", "''"),
        **names,
    )


def _is_small(tables: StoreTables, *, is_bounded: bool) -> str:
    scopes = [exactly("v.prefix"), below("v.prefix")] if is_bounded else ["true"]
    probes = (_PROBE.format(vectors=tables.vectors, within=scope) for scope in scopes)
    return _IS_SMALL.format(probe=" UNION ALL ".join(probes))


@by_condition
def exact(tables: StoreTables, condition: str, *, is_bounded: bool) -> str:
    """Compare all vectors."""
    return _EXACT.format(**_names(tables, condition, is_bounded=is_bounded))


def _names(tables: StoreTables, condition: str, *, is_bounded: bool) -> dict[str, str]:
    is_cosine = tables.indexed.distance == "cosine"
    has_direction = _HAS_DIRECTION.format(cosine=tables.operator("cosine"))
    return {
        "has_direction": "true" if is_cosine else has_direction,
        "store": tables.store,
        "vectors": tables.vectors,
        "operator": tables.operator(tables.indexed.distance),
        "type": tables.embedding_type,
        "within": under("v.prefix") if is_bounded else "true",
        "within_store": under("s.prefix") if is_bounded else "true",
        "alive": ALIVE,
        "to_refresh": NEEDS_REFRESH,
        "condition": condition,
    }
