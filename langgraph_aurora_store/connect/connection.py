"""psycopg connections whose failures to connect name cause and remedy."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from typing import Any, Self, TypeAlias

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import ExecStatus
from psycopg.rows import TupleRow
from psycopg.waiting import READY_NONE, READY_R, WAIT_R, WAIT_RW
from typing_extensions import override

from langgraph_aurora_store.connect.connect_errors import Target, is_timeout, translate
from langgraph_aurora_store.connect.redacting_cursor import AsyncRedactingCursor, RedactingCursor


class AuroraConnection(psycopg.Connection[TupleRow]):
    """A psycopg connection that remembers when it was last of use.

    ``AuroraConnection.connect(**factory.kwargs())`` makes one without a pool.
    """

    # By the wall clock: a monotonic one may stand still with a frozen sandbox.
    idle_since: float | None = None
    target: Target | None = None
    statement_error: psycopg.Error | None = None
    made_on_standby: bool = False

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
            connection = super().connect(conninfo, **{"cursor_factory": RedactingCursor, **kwargs})
        except psycopg.OperationalError as error:
            if target is None:
                raise
            port_is_open = is_timeout(error) and _is_open(target)
            refusal = translate(error, target, port_is_open=port_is_open)
        else:
            connection.target = target
            connection.made_on_standby = is_on_standby(connection)
            return connection
        del kwargs  # a traceback printed with its locals would show the password
        raise refusal


class AsyncAuroraConnection(psycopg.AsyncConnection[TupleRow]):
    """The asyncio twin of `AuroraConnection`."""

    idle_since: float | None = None
    target: Target | None = None
    statement_error: psycopg.Error | None = None
    made_on_standby: bool = False

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
            connection = await super().connect(
                conninfo, **{"cursor_factory": AsyncRedactingCursor, **kwargs}
            )
        except psycopg.OperationalError as error:
            if target is None:
                raise
            port_is_open = is_timeout(error) and await _is_open_async(target)
            refusal = translate(error, target, port_is_open=port_is_open)
        else:
            connection.target = target
            connection.made_on_standby = is_on_standby(connection)
            return connection
        del kwargs  # a traceback printed with its locals would show the password
        raise refusal


AnyConnection: TypeAlias = AuroraConnection | AsyncAuroraConnection
Conn: TypeAlias = psycopg.Connection[Any]
AsyncConn: TypeAlias = psycopg.AsyncConnection[Any]
# How code gets a connection for a block: from a pool, or the only one of a store.
Connect: TypeAlias = Callable[[], AbstractContextManager[Conn]]
AsyncConnect: TypeAlias = Callable[[], AbstractAsyncContextManager[AsyncConn]]


def note_statement_error(connection: psycopg.BaseConnection[Any], error: psycopg.Error) -> None:
    """Tell the pool that a statement failed so, when the connection is given back to it."""
    if isinstance(connection, AuroraConnection | AsyncAuroraConnection):
        connection.statement_error = error


def is_on_standby(connection: psycopg.BaseConnection[Any]) -> bool:
    """Whether the server has reported itself a standby by now; no round trip.

    PostgreSQL 14 and later report ``in_hot_standby`` with an answer, when it has changed.
    """
    return connection.pgconn.parameter_status(b"in_hot_standby") == b"on"


def is_demoted(connection: psycopg.BaseConnection[Any]) -> bool:
    """Whether a connection was made to a writer that has become a standby since."""
    if not isinstance(connection, AuroraConnection | AsyncAuroraConnection):
        return False
    return not connection.made_on_standby and is_on_standby(connection)


def serves_reads_only(connection: AnyConnection) -> bool:
    """Whether a connection was made to an endpoint that is a reader by its name."""
    return connection.target is not None and connection.target.kind == "reader"


def has_pending_input(connection: psycopg.BaseConnection[Any]) -> bool:
    """Whether unread bytes or the end of the stream wait on the socket; no round trip.

    A server that stops or fails over closes its sockets, so this finds most dead connections. It
    does not find a link that fell silent.
    """
    if connection.closed:
        return True
    listener = select.poll()
    listener.register(connection.fileno(), select.POLLIN)
    return bool(listener.poll(0))


# How long a connection may take to answer a check: hundreds of round trips within a region. So a
# silent link is found also where a kernel on the way still acknowledges what is sent.
CHECK_TIMEOUT_S = 2.0


def round_trip(connection: psycopg.BaseConnection[Any]) -> PQGen[None]:
    """Send an empty query and read its answer, for ``connection.wait(..., CHECK_TIMEOUT_S)``.

    Not ``execute("")``, which psycopg would prepare first and wait for without a bound.

    Raises:
        psycopg.OperationalError: the connection is lost, or silent.
    """
    pgconn = connection.pgconn
    pgconn.send_query(b"")
    while True:
        ready = yield WAIT_RW if pgconn.flush() else WAIT_R
        if ready == READY_NONE:
            raise psycopg.OperationalError(f"no answer within {CHECK_TIMEOUT_S:.0f} s")
        if ready & READY_R:
            pgconn.consume_input()
        while not pgconn.is_busy():
            if (result := pgconn.get_result()) is None:
                return
            if result.status != ExecStatus.EMPTY_QUERY:
                raise psycopg.OperationalError(result.get_error_message())


# A dial that is not answered within this is not answered within a region.
_DIAL_TIMEOUT_S = 0.8


def _is_open(target: Target) -> bool:
    # Tells a cluster that resumes or is overrun from a security group that drops packets.
    for host in target.addresses or (target.host,):
        with suppress(OSError):
            socket.create_connection((host, target.port), timeout=_DIAL_TIMEOUT_S).close()
            return True
    return False


async def _is_open_async(target: Target) -> bool:
    for host in target.addresses or (target.host,):
        with suppress(OSError, TimeoutError):
            dial = asyncio.open_connection(host, target.port)
            _, writer = await asyncio.wait_for(dial, _DIAL_TIMEOUT_S)
            writer.transport.abort()
            return True
    return False
