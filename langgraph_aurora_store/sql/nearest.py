"""Finding the nearest items: every one that matches is found, whatever index there is.

One statement counts the vectors of the namespace, up to a number that is still cheap to compare
one by one, and either does so or walks the vector index. When a walk ends with too few items, a
wider one follows, and at last a comparison with all: an index decides how fast, never how many.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import isqrt
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from langgraph_aurora_store.sql.items import ALIVE, DUE, below, exactly, under
from langgraph_aurora_store.sql.layout import Layout
from langgraph_aurora_store.sql.steps import Conversation, Rows, Run, Statement

if TYPE_CHECKING:
    from pgvector import HalfVector, Vector

    from langgraph_aurora_store.sql.search import Search
    from langgraph_aurora_store.sql.sizes import Sizes

logger = logging.getLogger(__name__)

# A walk under relaxed_order meets items nearly in order. They are put in order a few at a time and
# pages are cut from that, so that no item is on two pages or on none, whatever the page's size;
# what is equally near is kept together. Behind a filter the order is looser.
_CHUNK, _CHUNK_FILTERED = 10, 20
_WIDENING = 8
_WIDEST = 5_000

# pgvector's limits: as many are looked at in one go, at most 1,000. Measured on 100,000 clustered
# vectors of 128 dimensions: a recall of .95 for 40, the default, .986 for 120 and .994 for 160, in
# 0.77, 1.01 and 1.06 ms.
_LEAST_EF_SEARCH, _MOST_EF_SEARCH = 120, 1000
_MOST_SCAN_TUPLES, _ANY_SCAN_TUPLES = 20_000, 2**31 - 1
_IVFFLAT_LISTS = 100

# So many vectors are compared one by one. That takes time in proportion to their number, and a
# walk in inverse proportion to their share of the table: they meet at some root of the table's
# size. Fewer than that among many are also what a walk finds badly: measured as above, a recall of
# .9 where 1,000 of 100,000 count, and .7 where 300 do.
_FEW = "least(greatest(1500, 7 * sqrt(size)), 30000)"
# A table that was never analyzed says -1; some 20 vectors or pointers to vectors fill a page.
_SIZE = """
CASE WHEN v.reltuples < 0 THEN 20 * (pg_relation_size(v.oid) / 8192) ELSE v.reltuples END
"""

# How many vectors to meet, when items have so many each on average.
_BREADTH = """
greatest(%(breadth)s::int8, {chunk} * ceil(
    %(needed)s::int8 / {chunk}.0
    * CASE WHEN v.reltuples > s.reltuples AND s.reltuples > 0
      THEN 1.5 * v.reltuples / s.reltuples ELSE 1 END
)::int8)
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

_GUIDED = """
WITH sizes AS MATERIALIZED (
    SELECT few::int8, {is_large} AS is_large, breadth,
           (1.5 * breadth * greatest(size / few, 1))::int8 AS reach
    FROM pg_class AS v CROSS JOIN pg_class AS s
    CROSS JOIN LATERAL (SELECT {size} AS size) AS estimated
    CROSS JOIN LATERAL (SELECT {few} AS few, {breadth} AS breadth) AS decided
    WHERE v.oid = '{vectors_name}'::regclass AND s.oid = '{store_name}'::regclass
),
span AS MATERIALIZED (
    SELECT CASE WHEN is_large OR %(is_large)s THEN false
                ELSE NOT EXISTS ({probe} OFFSET sizes.few LIMIT 1) END AS is_small,
           breadth, reach
    FROM sizes
),
met AS MATERIALIZED (
    (
        SELECT n.prefix, n.key, n.distance, 0::int8 AS chunk
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
    {walk}
),
best AS MATERIALIZED (
    SELECT * FROM (
        SELECT DISTINCT ON (prefix, key) * FROM met WHERE distance < 'infinity'
        ORDER BY prefix, key, chunk, distance
    ) AS item
    ORDER BY chunk, distance, prefix COLLATE "C", key COLLATE "C"
    LIMIT %(limit)s::int8 OFFSET %(offset)s::int8
)
SELECT s.prefix, s.key, s.value, s.created_at, s.updated_at, {due},
       CASE WHEN span.is_small THEN b.distance ELSE (
           SELECT min(v.embedding {operator} %(query)b::{type})
           FROM {vectors} AS v WHERE v.prefix = b.prefix AND v.key = b.key AND {has_direction}
       ) END AS nearest,
       CASE WHEN span.is_small THEN NULL
            WHEN (SELECT count(*) FROM met) < span.breadth THEN 0 ELSE span.breadth END
FROM span LEFT JOIN (best AS b JOIN {store} AS s ON s.prefix = b.prefix AND s.key = b.key) ON true
ORDER BY nearest, b.prefix COLLATE "C", b.key COLLATE "C"
"""

_WALK = """
UNION ALL
SELECT w.prefix, w.key, w.distance, (rank() OVER (ORDER BY w.distance) - 1) / {chunk}
FROM (
    SELECT v.prefix, v.key, v.distance
    FROM (
        SELECT v.prefix, v.key, v.embedding {operator} %(query)b::{type} AS distance
        FROM {vectors} AS v
        WHERE (SELECT NOT is_small FROM span) AND {within_walk} AND {has_direction}
        ORDER BY v.embedding {operator} %(query)b::{type}
        {end_of_walk}
    ) AS v JOIN {store} AS s ON s.prefix = v.prefix AND s.key = v.key
    WHERE {within_met} AND {alive} AND {condition}
    ORDER BY v.distance
    FETCH FIRST (SELECT breadth FROM span) ROWS WITH TIES
) AS w
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


class Attempt(NamedTuple):
    """One try at a search: a walk over at least so many vectors, or a comparison with all."""

    number: int
    search: Search
    breadth: int = 0
    is_exact: bool = False
    is_large: bool = False


def nearest(
    searches: Sequence[Search],
    vectors: Mapping[str, Vector | HalfVector],
    layout: Layout,
    sizes: Sizes,
) -> Conversation[list[Rows]]:
    """The rows of each search, nearest first."""
    found = [Rows() for _ in searches]
    attempts = [
        Attempt(n, search, is_large=sizes.is_large(search.prefix))
        for n, search in enumerate(searches)
        if search.op.limit
    ]
    while attempts:
        # What is not steered goes first, in the same round trip; the steering has a reply too.
        attempts.sort(key=lambda attempt: not attempt.is_exact)
        exact = sum(attempt.is_exact for attempt in attempts)
        try:
            replies = yield Run(_statements(attempts, exact, vectors, layout))
        except psycopg.errors.InvalidName as exc:
            if not layout.iterative_scan:
                raise
            logger.warning("pgvector is older than 0.8, so filtered searches are slow: %s", exc)
            layout = replace(layout, iterative_scan=False)
            continue
        tried = list(zip(attempts, [*replies[:exact], *replies[exact + 1 :]], strict=True))
        for attempt, rows in tried:
            found[attempt.number] = _found(rows)
            _note(attempt, rows, sizes)
        attempts = [again for attempt, rows in tried for again in _again(attempt, rows)]
    return found


def score(distance: float, layout: Layout) -> float:
    """Higher is nearer: cosine similarity, negative Euclidean distance, or inner product."""
    return 1.0 - distance if layout.indexed.distance == "cosine" else -distance


def _again(attempt: Attempt, rows: Rows) -> tuple[Attempt, ...]:
    """What to try next, if there may be items that these rows lack."""
    if attempt.is_exact or len(_found(rows)) >= attempt.search.op.limit:
        return ()
    walked = _walked(rows)
    if walked is None:
        return ()
    wider = walked * _WIDENING
    return (attempt._replace(breadth=wider, is_exact=not 0 < wider <= _WIDEST),)


def _note(attempt: Attempt, rows: Rows, sizes: Sizes) -> None:
    if not (attempt.is_exact or attempt.is_large):
        sizes.saw(attempt.search.prefix, is_large=_walked(rows) is not None)
    elif attempt.is_large and _again(attempt, rows):
        # It may have shrunk.
        sizes.saw(attempt.search.prefix, is_large=False)


def _found(rows: Rows) -> Rows:
    """Those that hold an item: there is always one that says how the search went."""
    return Rows([row for row in rows if row[0] is not None])


def _walked(rows: Rows) -> int | None:
    """How many vectors a walk met, 0 for all it can reach; ``None`` after a comparison of few."""
    walked: int | None = rows[0][-1]
    return walked


def _statements(
    attempts: Sequence[Attempt],
    exact: int,
    vectors: Mapping[str, Vector | HalfVector],
    layout: Layout,
) -> tuple[Statement, ...]:
    statements = [_statement(attempt, vectors, layout) for attempt in attempts]
    if walks := attempts[exact:]:
        statements.insert(exact, _steering(walks, layout))
    return tuple(statements)


def _statement(
    attempt: Attempt, vectors: Mapping[str, Vector | HalfVector], layout: Layout
) -> Statement:
    search = attempt.search
    params = search.params | {
        "query": vectors[search.query or ""],
        "needed": search.needed,
        "breadth": attempt.breadth,
        "is_large": attempt.is_large,
    }
    build = _exact if attempt.is_exact else _guided
    return Statement(build(layout, search.condition.sql, is_bounded=bool(search.prefix)), params)


def _steering(walks: Sequence[Attempt], layout: Layout) -> Statement:
    limit = max(walk.search.op.limit for walk in walks)
    ef_search = min(max(2 * limit, _LEAST_EF_SEARCH), _MOST_EF_SEARCH)
    # A filtered walk ends at its reach; ended by this, it would go on over what it has in hand.
    is_filtered = any(walk.search.condition.sql != "true" for walk in walks)
    scan_tuples = _ANY_SCAN_TUPLES if is_filtered else _MOST_SCAN_TUPLES
    params = {"ef_search": str(ef_search), "scan_tuples": str(scan_tuples)}
    return Statement(_steering_text(layout), params)


@lru_cache
def _steering_text(layout: Layout) -> bytes:
    settings, index = dict(_STEERED), layout.indexed
    if index.kind == "hnsw":
        settings["hnsw.ef_search"] = "%(ef_search)s"
    if index.kind == "ivfflat":
        # pgvector README, "IVFFlat": the square root of the lists is a good start; here twice it.
        settings["ivfflat.probes"] = f"'{2 * isqrt(index.lists or _IVFFLAT_LISTS)}'"
    if index.kind != "flat" and layout.iterative_scan:
        settings[f"{index.kind}.iterative_scan"] = "'relaxed_order'"
    if index.kind == "hnsw" and layout.iterative_scan:
        settings["hnsw.max_scan_tuples"] = "%(scan_tuples)s"
        settings["hnsw.scan_mem_multiplier"] = "'8'"
    calls = (f"set_config('{name}', {value}, true)" for name, value in settings.items())
    # No row comes back: nobody reads one.
    return f"SELECT WHERE concat({', '.join(calls)}) IS NULL".encode()


@lru_cache(maxsize=256)
def _guided(layout: Layout, condition: str, *, is_bounded: bool) -> bytes:
    index = layout.indexed
    names = _names(layout, condition, is_bounded=is_bounded)
    chunk = str(_CHUNK if condition == "true" else _CHUNK_FILTERED)
    names |= {"few": _FEW, "size": _SIZE, "chunk": chunk}
    names["breadth"] = _BREADTH.format(chunk=chunk)
    names["vectors_name"] = layout.vectors.replace("'", "''")
    names["store_name"] = layout.store.replace("'", "''")
    scopes = [exactly("v.prefix"), below("v.prefix")] if is_bounded else ["true"]
    names["probe"] = " UNION ALL ".join(
        _PROBE.format(vectors=layout.vectors, within=scope) for scope in scopes
    )
    # Of the whole table the server knows the size, roughly; of a namespace it does not.
    names["is_large"] = "false" if is_bounded else "size > few"
    is_filtered = condition != "true"
    names["within_walk"] = "true" if is_filtered else names["within"]
    names["within_met"] = names["within"] if is_filtered else "true"
    names["end_of_walk"] = _END_OF_FILTERED_WALK if is_filtered else ""
    names["walk"] = _WALK.format(**names) if index.kind != "flat" else ""
    return _GUIDED.format(**names).encode()


@lru_cache(maxsize=256)
def _exact(layout: Layout, condition: str, *, is_bounded: bool) -> bytes:
    return _EXACT.format(**_names(layout, condition, is_bounded=is_bounded)).encode()


def _names(layout: Layout, condition: str, *, is_bounded: bool) -> dict[str, str]:
    cosine = layout.operator("cosine")
    return {
        "has_direction": _HAS_DIRECTION.format(cosine=cosine)
        if layout.indexed.distance != "cosine"
        else "true",
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
