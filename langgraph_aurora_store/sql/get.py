"""Reading items by namespace and key: any number of them, in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from langgraph.store.base import GetOp, Item

from langgraph_aurora_store.sql.addresses import checked_key, prefix_of
from langgraph_aurora_store.sql.conditions import (
    ADDRESSES,
    ALIVE,
    LIFETIME,
    NEEDS_REFRESH,
    value_of,
)
from langgraph_aurora_store.sql.flow import Rows, Statement
from langgraph_aurora_store.sql.store_tables import StoreTables

Address = tuple[str, str]
"""A row's primary key: prefix and key."""

_GET = """
SELECT w.position, s.value, s.created_at, s.updated_at, {to_refresh}
FROM {addresses} WITH ORDINALITY AS w (prefix, key, position)
JOIN {store} AS s ON s.prefix = w.prefix AND s.key = w.key
WHERE {alive}
"""

# A row that another transaction has locked is being written or refreshed anyway. So a refresh never
# waits, and in whatever order it locks, it is part of no circle.
_REFRESH = """
WITH to_refresh AS MATERIALIZED (
    SELECT s.prefix, s.key
    FROM {addresses} AS w (prefix, key)
    JOIN {store} AS s ON s.prefix = w.prefix AND s.key = w.key
    WHERE {to_refresh} AND s.expires_at > pg_catalog.now()
    FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE {store} AS s SET expires_at = pg_catalog.now() + ({lifetime})
FROM to_refresh WHERE s.prefix = to_refresh.prefix AND s.key = to_refresh.key
"""


class Get(NamedTuple):
    """A ``GetOp``, checked, and its place in the batch."""

    position: int
    op: GetOp
    prefix: str
    key: str


def parse(position: int, op: GetOp) -> Get:
    """Check one operation."""
    key = checked_key(op.namespace, op.key)
    return Get(position, op, prefix_of(op.namespace), key)


def statement(gets: Sequence[Get], tables: StoreTables) -> Statement:
    """All gets of a batch."""
    addresses = {"prefixes": [g.prefix for g in gets], "keys": [g.key for g in gets]}
    return Statement(_texts(tables).get, addresses)


def items(
    gets: Sequence[Get], rows: Rows, tables: StoreTables
) -> tuple[dict[int, Item], list[Address]]:
    """The items found by position in the batch, and the addresses whose TTL is to be refreshed."""
    found: dict[int, Item] = {}
    to_refresh: list[Address] = []
    for ordinal, value, created_at, updated_at, needs_refresh in rows:
        get = gets[ordinal - 1]
        found[get.position] = Item(
            value=value_of(value, tables),
            key=get.key,
            namespace=tuple(get.op.namespace),
            created_at=created_at,
            updated_at=updated_at,
        )
        if needs_refresh and get.op.refresh_ttl:
            to_refresh.append((get.prefix, get.key))
    return found, to_refresh


def refresh(to_refresh: Sequence[Address], tables: StoreTables) -> Statement:
    """Set the TTL of these items back to its start."""
    addresses = dict.fromkeys(to_refresh)
    prefixes, keys = [a[0] for a in addresses], [a[1] for a in addresses]
    return Statement(_texts(tables).refresh, {"prefixes": prefixes, "keys": keys})


class _Texts(NamedTuple):
    get: str
    refresh: str


@lru_cache
def _texts(tables: StoreTables) -> _Texts:
    names = {
        "store": tables.store,
        "alive": ALIVE,
        "to_refresh": NEEDS_REFRESH,
        "lifetime": LIFETIME,
    }
    names["addresses"] = ADDRESSES
    return _Texts(_GET.format(**names), _REFRESH.format(**names))
