"""Namespaces as text, and the conditions that every statement on items shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from langgraph.store.base import InvalidNamespaceError, ListNamespacesOp, SearchOp

from langgraph_aurora_store.errors import ConfigurationError, InvalidItemError
from langgraph_aurora_store.sql.json_values import at, is_storable
from langgraph_aurora_store.validation import brief

if TYPE_CHECKING:
    from langgraph_aurora_store.sql.tables import StoreTables

Namespace: TypeAlias = tuple[str, ...]
Paged = TypeVar("Paged", SearchOp, ListNamespacesOp)

MOST = 2**31 - 1
"""More than any table has rows or any namespace has labels, and sums of it are still an int8."""

ALIVE = "(s.expires_at IS NULL OR s.expires_at > pg_catalog.now())"
"""Expired items count for nothing from that moment on, swept or not."""

# How long an item lives after a write or a read. The added column counts only for the write
# that set it, see tables.py.
LIFETIME = """
    CASE WHEN pg_catalog.lower(s.lifetime) = s.updated_at
         THEN pg_catalog.upper(s.lifetime) - pg_catalog.lower(s.lifetime)
         ELSE pg_catalog.make_interval(mins => s.ttl_minutes) END
"""

NEEDS_REFRESH = f"""
    coalesce(
        s.expires_at < pg_catalog.now() + ({LIFETIME})
            - least(({LIFETIME}) / 20::float8, interval '1 hour')
        AND pg_catalog.current_setting('transaction_read_only') = 'off'::text,
        false)
"""
"""Whether a read should refresh an item's life: when 5 % of its ttl, or an hour, have passed since
the last refresh. So a memory read all the time is written at most twenty times per ttl, and lives
at least 95 % of its ttl after it was last read. Never where the server takes no writes."""


def given(**types: str) -> str:
    """Arrays passed as parameters, side by side as the columns of rows.

    Each stands in a sub-select, so that no plan depends on its length: one plan serves all, and
    none is made per call, which takes as long as a small read.
    """
    return f"unnest({', '.join(f'(SELECT %({name})b::{of}[])' for name, of in types.items())})"


ADDRESSES = given(prefixes="text", keys="text")


def prefix_of(namespace: Namespace) -> str:
    """The text the tables hold for a namespace: its labels, joined by dots.

    Raises:
        InvalidNamespaceError: for a label that PostgreSQL cannot hold, or a text in place of a
            tuple, which would be one of its letters.
    """
    if isinstance(namespace, str):
        raise InvalidNamespaceError(f"a namespace is a tuple of labels, not {brief(namespace)}")
    prefix = ".".join(namespace)
    if not is_storable(prefix):
        raise InvalidNamespaceError(
            "Namespace labels cannot contain NUL characters or lone surrogates. Got"
            f" {brief(namespace)}"
        )
    return prefix


def value_of(value: Any, tables: StoreTables) -> dict[str, Any]:
    """A value as it came: read already, unless the connection's owner has put off the reading."""
    return value if isinstance(value, dict) else tables.deserializer(value)


def namespace_of(prefix: str) -> Namespace:
    """The namespace a text of the tables stands for."""
    return tuple(prefix.split(".")) if prefix else ()


def checked_key(namespace: Namespace, key: object) -> str:
    """A key as given, if the tables can hold it.

    Raises:
        InvalidItemError: for a key that is not text, or text that cannot be stored.
    """
    if not isinstance(key, str):
        raise InvalidItemError(f"{at(namespace, key)}: the key must be text")
    if not is_storable(key):
        raise InvalidItemError(
            f"{at(namespace, key)}: the key holds a NUL character or a lone surrogate"
        )
    return key


def check_page(limit: object, offset: object) -> None:
    """Refuse a page that no list has.

    Raises:
        ConfigurationError: unless both are whole numbers from 0.
    """
    for name, value in (("limit", limit), ("offset", offset)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigurationError(f"{name} must be a whole number from 0, not {brief(value)}")


def paged(op: Paged) -> Paged:
    """An operation with a page that the server can count: more than there is means all of it.

    Raises:
        ConfigurationError: for a page that no list has.
    """
    check_page(op.limit, op.offset)
    return op._replace(limit=min(op.limit, MOST), offset=min(op.offset, MOST))


def under(column: str) -> str:
    """The condition that a row is in a namespace or below it; `span_of` has its parameters.

    A range under ``text_pattern_ops`` rather than ``LIKE``: an index serves it whatever the
    parameter, and no character of a label means anything.
    """
    return f"({exactly(column)} OR ({below(column)}))"


def exactly(column: str) -> str:
    """The condition that a row is in a namespace itself."""
    return f"{column} = %(prefix)s::text"


def below(column: str) -> str:
    """The condition that a row is below a namespace."""
    return f"{column} ~>=~ %(first)s::text AND {column} ~<~ %(beyond)s::text"


def span_of(prefix: str) -> dict[str, str]:
    """The parameters of `under`: what is below begins with a dot, and ends where / would begin."""
    return {"prefix": prefix, "first": f"{prefix}.", "beyond": f"{prefix}/"}
