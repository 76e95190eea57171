"""Pages of results: limit and offset, checked."""

from __future__ import annotations

from typing import TypeVar

from langgraph.store.base import ListNamespacesOp, SearchOp

from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.validation import brief

Paged = TypeVar("Paged", SearchOp, ListNamespacesOp)


MOST = 2**31 - 1
"""More than any table has rows or any namespace has labels, and sums of it are still an int8."""


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
