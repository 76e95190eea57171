"""Reading items by namespace and key: any number of them, in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from langgraph.store.base import GetOp, Item

from langgraph_aurora_store.sql.conditions import (
    ADDRESSES,
    ALIVE,
    DUE,
    LIFETIME,
    checked_key,
    prefix_of,
    value_of,
)
from langgraph_aurora_store.sql.flow import Rows, Statement
from langgraph_aurora_store.sql.tables import StoreTables

Address = tuple[str, str]
"""A row's primary key: prefix and key."""

_GET = """
SELECT w.position, s.value, s.created_at, s.updated_at, {due}
FROM {addresses} WITH ORDINALITY AS w (prefix, key, position)
JOIN {store} AS s ON s.prefix = w.prefix AND s.key = w.key
WHERE {alive}
"""

# A row that someone else holds is being written or renewed anyway. So a renewal waits for nobody,
# and in whatever order it locks, it is part of no circle.
_RENEW = """
WITH due AS MATERIALIZED (
    SELECT s.prefix, s.key
    FROM {addresses} AS w (prefix, key)
    JOIN {store} AS s ON s.prefix = w.prefix AND s.key = w.key
    WHERE {due} AND s.expires_at > now()
    FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE {store} AS s SET expires_at = now() + ({lifetime})
FROM due WHERE s.prefix = due.prefix AND s.key = due.key
"""


class Get(NamedTuple):
    """A ``GetOp``, checked, and its place in the batch."""

    place: int
    op: GetOp
    prefix: str
    key: str


def plan(place: int, op: GetOp) -> Get:
    """Check one operation."""
    key = checked_key(op.namespace, op.key)
    return Get(place, op, prefix_of(op.namespace), key)


def statement(gets: Sequence[Get], layout: StoreTables) -> Statement:
    """All gets of a batch."""
    addresses = {"prefixes": [g.prefix for g in gets], "keys": [g.key for g in gets]}
    return Statement(_texts(layout).get, addresses)


def items(
    gets: Sequence[Get], rows: Rows, layout: StoreTables
) -> tuple[dict[int, Item], list[Address]]:
    """The items found by their place in the batch, and the addresses of those due for renewal."""
    found: dict[int, Item] = {}
    due: list[Address] = []
    for position, value, created_at, updated_at, is_due in rows:
        get = gets[position - 1]
        found[get.place] = Item(
            value=value_of(value, layout),
            key=get.key,
            namespace=tuple(get.op.namespace),
            created_at=created_at,
            updated_at=updated_at,
        )
        if is_due and get.op.refresh_ttl:
            due.append((get.prefix, get.key))
    return found, due


def renewal(due: Sequence[Address], layout: StoreTables) -> Statement:
    """Start the lives of these items anew."""
    addresses = dict.fromkeys(due)
    prefixes, keys = [a[0] for a in addresses], [a[1] for a in addresses]
    return Statement(_texts(layout).renew, {"prefixes": prefixes, "keys": keys})


class _Texts(NamedTuple):
    get: bytes
    renew: bytes


@lru_cache
def _texts(layout: StoreTables) -> _Texts:
    names = {"store": layout.store, "alive": ALIVE, "due": DUE, "lifetime": LIFETIME}
    names["addresses"] = ADDRESSES
    return _Texts(_GET.format(**names).encode(), _RENEW.format(**names).encode())
