"""Cursors that raise errors of the server without the rows that they quote.

The class is a cursor's, not the caller's of it: a tracer's instrumentor subclasses the cursor and
writes the error that ``execute`` raises into its span, before any caller could change it.
"""

from __future__ import annotations

from typing import Any, Self

import psycopg
from psycopg.abc import Params
from psycopg.rows import TupleRow
from typing_extensions import override

from langgraph_aurora_store.connect.error_redaction import without_values


class RedactingCursor(psycopg.Cursor[TupleRow]):
    """A psycopg cursor whose errors quote no values while ``hides_values`` is set."""

    hides_values = False

    @override
    def execute(self, query: Any, params: Params | None = None, **kwargs: Any) -> Self:
        """Execute as psycopg does."""
        try:
            return super().execute(query, params, **kwargs)
        except psycopg.Error as exc:
            error = without_values(exc) if self.hides_values else exc
        raise error


class AsyncRedactingCursor(psycopg.AsyncCursor[TupleRow]):
    """The asyncio twin of `RedactingCursor`."""

    hides_values = False

    @override
    async def execute(self, query: Any, params: Params | None = None, **kwargs: Any) -> Self:
        """Execute as psycopg does."""
        try:
            return await super().execute(query, params, **kwargs)
        except psycopg.Error as exc:
            error = without_values(exc) if self.hides_values else exc
        raise error


def hide_values(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> None:
    """Let no error of the cursor quote values, where its connection is one of the store's own."""
    if isinstance(cursor, RedactingCursor | AsyncRedactingCursor):
        cursor.hides_values = True
