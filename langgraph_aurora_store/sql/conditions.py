"""Namespaces as text, and the conditions that every statement on items shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langgraph_aurora_store.sql.store_tables import StoreTables


ALIVE = "(s.expires_at IS NULL OR s.expires_at > pg_catalog.now())"
"""Expired items count for nothing from that moment on, swept or not."""

# How long an item lives after a write or a read. The added column counts only for the write
# that set it, see store_tables.py.
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


def value_of(value: Any, tables: StoreTables) -> dict[str, Any]:
    """A value as it came: read already, unless the connection's owner has put off the reading."""
    return value if isinstance(value, dict) else tables.deserializer(value)


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
