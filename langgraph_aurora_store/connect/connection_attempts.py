"""Connections that a pool makes: signed for, tried once more after a refusal, and accounted for."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Self

from typing_extensions import override

from langgraph_aurora_store.aws.single_flight import wait_at_most
from langgraph_aurora_store.connect.connection import AsyncAuroraConnection, AuroraConnection
from langgraph_aurora_store.connect.connection_factory import ConnectionFactory
from langgraph_aurora_store.connect.pool_health import PoolHealth
from langgraph_aurora_store.connect.pool_settings import PoolSettings
from langgraph_aurora_store.errors import AuthenticationError, ConnectError

# Applications filter by the name of 0.1.0.
logger = logging.getLogger("langgraph_aurora_store.connect.pool")

_LONGEST_SOURCE_WAIT_S = 1.0
_BACKEND = "SELECT pg_catalog.pg_backend_pid()"


class PooledConnection(AuroraConnection):
    """What the ``connection_class`` hook of psycopg_pool makes; `PoolHealth` learns of each."""

    @override
    @classmethod
    def connect(  # type: ignore[override]  # a pool passes these in place of psycopg's parameters
        cls,
        conninfo: str = "",
        *,
        factory: ConnectionFactory,
        settings: PoolSettings,
        health: PoolHealth,
    ) -> Self:
        """Make a connection with a login of its own.

        Raises:
            AuroraStoreError: the attempt failed, as `health` has been told.
        """
        begun_at = time.monotonic()
        try:
            connection = cls._connect_or_retry(factory, settings, health)
        except Exception as error:
            factory.refused(error)
            health.failed(error, begun_at=begun_at)
            raise
        health.succeeded(connection)
        return connection

    @classmethod
    def _connect_or_retry(
        cls, factory: ConnectionFactory, settings: PoolSettings, health: PoolHealth
    ) -> Self:
        try:
            return cls._attempt(factory, settings, health)
        except AuthenticationError as error:
            # RDS refuses a valid token now and then, and a password may have been rotated.
            factory.refused(error)
            logger.info("pool %r tries again with fresh credentials: %s", factory.name, error)
        return cls._attempt(factory, settings, health)

    @classmethod
    def _attempt(
        cls, factory: ConnectionFactory, settings: PoolSettings, health: PoolHealth
    ) -> Self:
        time.sleep(health.throttle_s())
        with wait_at_most(_source_wait_s(settings)):
            kwargs: dict[str, Any] = {**settings.kwargs(), **factory.kwargs()}
        with health.unanswered_attempt():
            connection = super().connect(**kwargs)
            try:
                health.refuse_former_writer(connection)
            except ConnectError:
                connection.close()
                raise
            if health.looks_for_pooler(connection):
                cursor = connection.execute(_BACKEND, prepare=False)
                health.answered(connection, *(cursor.fetchone() or (0,)))
        if health.is_pooled:
            connection.prepare_threshold = None
        return connection


class AsyncPooledConnection(AsyncAuroraConnection):
    """The asyncio twin of `PooledConnection`; looks up, refreshes and signs off the loop."""

    @override
    @classmethod
    async def connect(  # type: ignore[override]  # as in the blocking twin
        cls,
        conninfo: str = "",
        *,
        factory: ConnectionFactory,
        settings: PoolSettings,
        health: PoolHealth,
    ) -> Self:
        """Make a connection with a login of its own.

        Raises:
            AuroraStoreError: the attempt failed, as `health` has been told.
        """
        begun_at = time.monotonic()
        try:
            connection = await cls._connect_or_retry(factory, settings, health)
        except Exception as error:
            factory.refused(error)
            health.failed(error, begun_at=begun_at)
            raise
        health.succeeded(connection)
        return connection

    @classmethod
    async def _connect_or_retry(
        cls, factory: ConnectionFactory, settings: PoolSettings, health: PoolHealth
    ) -> Self:
        try:
            return await cls._attempt(factory, settings, health)
        except AuthenticationError as error:
            # As in the blocking twin.
            factory.refused(error)
            logger.info("pool %r tries again with fresh credentials: %s", factory.name, error)
        return await cls._attempt(factory, settings, health)

    @classmethod
    async def _attempt(
        cls, factory: ConnectionFactory, settings: PoolSettings, health: PoolHealth
    ) -> Self:
        await asyncio.sleep(health.throttle_s())
        with wait_at_most(_source_wait_s(settings)):
            own = await asyncio.to_thread(factory.kwargs)
        kwargs: dict[str, Any] = {**settings.kwargs(), **own}
        with health.unanswered_attempt():
            connection = await super().connect(**kwargs)
            try:
                health.refuse_former_writer(connection)
            except ConnectError:
                await connection.close()
                raise
            if health.looks_for_pooler(connection):
                cursor = await connection.execute(_BACKEND, prepare=False)
                health.answered(connection, *(await cursor.fetchone() or (0,)))
        if health.is_pooled:
            connection.prepare_threshold = None
        return connection


def _source_wait_s(settings: PoolSettings) -> float:
    """How long one attempt waits for credentials, a secret and a lookup in all.

    Short, so that a caller learns of what hangs within its time, and that closing does not wait;
    the call itself goes on, and the next attempt waits for the same one.
    """
    return min(_LONGEST_SOURCE_WAIT_S, settings.timeout_s / 2)
