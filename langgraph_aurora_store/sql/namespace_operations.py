"""Listing namespaces, counting what is in one, and deleting it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import takewhile

from langgraph.store.base import (
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    SearchOp,
)

from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.sql.addresses import Namespace, check_labels, prefix_of
from langgraph_aurora_store.sql.commit_mark_sql import counting_mark, marking
from langgraph_aurora_store.sql.conditions import ALIVE, span_of, under
from langgraph_aurora_store.sql.filters import compile_filter
from langgraph_aurora_store.sql.flow import Flow, Rows, Statement, Transaction
from langgraph_aurora_store.sql.pages import MOST, paged
from langgraph_aurora_store.sql.store_tables import StoreTables
from langgraph_aurora_store.validation import brief

# Beyond this many namespaces, reading every row once is cheaper than one index probe for each.
_MOST_PROBES = 20_000
_ROWS_PER_DELETE = 10_000

# From each namespace found the skip scan jumps to the next, by the text_pattern_ops index on
# prefix: past everything that truncates to the same, if the one found matches. E'\\x01' ends the
# smallest text above a prefix; a slash is the character after the dot, and so above all that lies
# below. The order is InMemoryStore's, label by label in code points, whatever the database's
# collation.
_LIST = """
WITH RECURSIVE skip_scan (prefix, beginning, steps) AS (
    SELECT NULL::text, %(first)s::text, 0
    UNION ALL
    SELECT n.prefix,
           CASE WHEN pg_catalog.cardinality(n.labels) > %(depth)s::int AND {matches}
                THEN pg_catalog.array_to_string(n.labels[:%(depth)s::int], '.') || '/'::text
                ELSE n.prefix || E'\\x01'::text END,
           w.steps + 1
    FROM skip_scan AS w CROSS JOIN LATERAL (
        SELECT s.prefix, pg_catalog.string_to_array(s.prefix, '.') AS labels FROM {store} AS s
        WHERE s.prefix ~>=~ w.beginning AND {within} AND {alive}
        ORDER BY s.prefix USING ~<~ LIMIT 1
    ) AS n
    WHERE w.steps <= %(most)s::int
),
found AS (
    SELECT prefix FROM skip_scan
    WHERE (SELECT pg_catalog.max(steps) FROM skip_scan) <= %(most)s::int
    UNION ALL
    SELECT s.prefix FROM {store} AS s
    WHERE (SELECT pg_catalog.max(steps) FROM skip_scan) > %(most)s::int
      AND s.prefix ~>=~ %(first)s::text AND {within} AND {alive}
    {itself}
)
SELECT labels FROM (
    SELECT DISTINCT (pg_catalog.string_to_array(n.prefix, '.'))[:%(depth)s::int] AS labels
    FROM found AS n WHERE n.prefix IS NOT NULL AND {matches}
) AS truncated
ORDER BY labels COLLATE "C" LIMIT %(limit)s::int8 OFFSET %(offset)s::int8
"""

# The planner's estimate is of the whole table, which is seldom read: compiling code is wasted.
PLANNER_SETTINGS = Statement("SELECT pg_catalog.set_config('jit', 'off', true)")

_ITSELF = """
UNION ALL (SELECT s.prefix FROM {store} AS s WHERE s.prefix = %(prefix)s::text AND {alive} LIMIT 1)
"""

_COUNT = """
SELECT pg_catalog.count(*) FROM {store} AS s WHERE {under} AND {alive} AND {condition}
"""

_COUNTS = "pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE counts)"

_DELETE = """
WITH doomed AS MATERIALIZED (
    SELECT s.prefix, s.key FROM {store} AS s WHERE {under}
    ORDER BY s.prefix COLLATE "C", s.key COLLATE "C" LIMIT {most}
    FOR UPDATE
),
deleted AS (
    DELETE FROM {store} AS s USING doomed
    WHERE s.prefix = doomed.prefix AND s.key = doomed.key
    RETURNING {alive} AS counts
){mark}
SELECT {counts} FROM deleted
"""


def parse(op: ListNamespacesOp, tables: StoreTables) -> Statement:
    """Check one operation and state it.

    Raises:
        ConfigurationError: for a negative limit or offset, a depth below 1 or an unknown match.
    """
    op, depth = paged(op), _depth(op.max_depth)
    conditions = [condition for condition in op.match_conditions or () if condition.path]
    head = max((_literal_head(condition) for condition in conditions), key=len, default=())
    prefix = prefix_of(head)
    params = {
        **(span_of(prefix) if head else {"first": ""}),
        "patterns": [
            _pattern(c) for c in conditions if (c.match_type, tuple(c.path)) != ("prefix", head)
        ],
        "depth": depth,
        "most": _MOST_PROBES,
        "limit": op.limit,
        "offset": op.offset,
    }
    return Statement(_list(tables, is_bounded=bool(head), matches=bool(params["patterns"])), params)


def listed(rows: Rows) -> list[Namespace]:
    """The namespaces of a reply."""
    return [tuple(labels) for (labels,) in rows]


def count_under(
    prefix: Namespace, tables: StoreTables, filter_: Mapping[str, object] | None = None
) -> Flow[int]:
    """Count the items in a namespace and below it that are not expired and match a filter."""
    _check(prefix)
    condition = compile_filter(filter_)
    names = {"store": tables.store, "alive": ALIVE, "condition": condition.sql}
    text = _COUNT.format(under=under("s.prefix") if prefix else "true", **names)
    params = condition.params | (span_of(prefix_of(prefix)) if prefix else {})
    ((row,),) = yield Transaction((Statement(text, params),))
    return int(row[0])


def delete_under(prefix: Namespace, tables: StoreTables) -> Flow[int]:
    """Delete the items in a namespace and below it, and return how many were not expired.

    Up to 10,000 items go in one transaction, more in one transaction for every 10,000: if that is
    interrupted, what is deleted stays deleted and the rest stays.

    Raises:
        InvalidNamespaceError: for the empty namespace, which holds everything.
    """
    if not prefix:
        raise InvalidNamespaceError("Namespace cannot be empty.")
    _check(prefix)
    text, params = _delete(tables), span_of(prefix_of(prefix))
    total, rows = 0, _ROWS_PER_DELETE
    while rows == _ROWS_PER_DELETE:
        (((rows, living),),) = yield Transaction(
            (Statement(text, params),), writes=True, marking=marking(tables)
        )
        total += living
    return total


def _check(prefix: Namespace) -> None:
    """Refuse what no namespace is, as other operations do."""
    check_labels(SearchOp(prefix))
    prefix_of(prefix)


def _depth(depth: object) -> int:
    if depth is None:
        return MOST
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise ConfigurationError(f"max_depth counts labels from 1, not {brief(depth)}")
    return min(depth, MOST)


def _literal_head(condition: MatchCondition) -> Namespace:
    if condition.match_type != "prefix":
        return ()
    return tuple(takewhile(lambda label: label != "*", condition.path))


def _pattern(condition: MatchCondition) -> str:
    """A POSIX regular expression on whole labels; ``*`` stands for any one of them."""
    if condition.match_type not in ("prefix", "suffix"):
        raise ConfigurationError(f"unknown match type {brief(condition.match_type)}")
    prefix_of(tuple(condition.path))  # which checks the labels
    body = r"\.".join("[^.]+" if label == "*" else re.escape(label) for label in condition.path)
    return rf"^{body}(\.|\Z)" if condition.match_type == "prefix" else rf"(^|\.){body}\Z"


@lru_cache
def _list(tables: StoreTables, *, is_bounded: bool, matches: bool) -> str:
    names = {"store": tables.store, "alive": ALIVE}
    return _LIST.format(
        within="s.prefix ~<~ %(beyond)s::text" if is_bounded else "true",
        itself=_ITSELF.format(**names) if is_bounded else "",
        matches="n.prefix ~ ALL (%(patterns)b::text[])" if matches else "true",
        **names,
    )


@lru_cache
def _delete(tables: StoreTables) -> str:
    names = {"store": tables.store, "under": under("s.prefix"), "alive": ALIVE}
    marks = counting_mark(tables, counts=_COUNTS, rows="deleted")
    names |= {"mark": f",\n{marks}" if marks else "", "counts": _COUNTS}
    return _DELETE.format(most=_ROWS_PER_DELETE, **names)
