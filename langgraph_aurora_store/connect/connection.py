"""psycopg connections whose failures to connect are errors of ours."""

from __future__ import annotations

from typing import Any, Self, TypeAlias

import psycopg
from psycopg.rows import TupleRow
from typing_extensions import override

from langgraph_aurora_store.connect.refusal import Target, explain


class AuroraConnection(psycopg.Connection[TupleRow]):
    """A psycopg connection that remembers when it was last of use.

    ``AuroraConnection.connect(**connector.parameters())`` makes one without a pool.
    """

    # By the wall clock: a monotonic one may stand still with a frozen sandbox.
    idle_since: float | None = None

    @override
    @classmethod
    def connect(  # type: ignore[override]  # psycopg's own parameters pass through in kwargs
        cls, conninfo: str = "", *, target: Target | None = None, **kwargs: Any
    ) -> Self:
        """Connect as psycopg does, with errors that name cause and remedy.

        Raises:
            ConnectError: the attempt failed; a leaf says why.
        """
        try:
            return super().connect(conninfo, **kwargs)
        except psycopg.OperationalError as error:
            if target is None:
                raise
            refusal = explain(error, target)
        del kwargs  # a traceback printed with its locals would show the password
        raise refusal


class AsyncAuroraConnection(psycopg.AsyncConnection[TupleRow]):
    """The asyncio twin of `AuroraConnection`."""

    idle_since: float | None = None

    @override
    @classmethod
    async def connect(  # type: ignore[override]  # as in the blocking twin
        cls, conninfo: str = "", *, target: Target | None = None, **kwargs: Any
    ) -> Self:
        """Connect as psycopg does, with errors that name cause and remedy.

        Raises:
            ConnectError: the attempt failed; a leaf says why.
        """
        try:
            return await super().connect(conninfo, **kwargs)
        except psycopg.OperationalError as error:
            if target is None:
                raise
            refusal = explain(error, target)
        del kwargs  # a traceback printed with its locals would show the password
        raise refusal


AnyConnection: TypeAlias = AuroraConnection | AsyncAuroraConnection
