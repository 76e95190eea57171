"""Both sides of a claim about the parent's savers, as `parent_comparison` has for its stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from langgraph_aurora_store import AsyncAuroraSaver, AuroraSaver
from langgraph_aurora_store.checkpoint.deletion import first_id_at
from tests.support.database import Database
from tests.support.parent_comparison import Side

POOL = {"autocommit": True, "prepare_threshold": None}
Config = dict[str, Any]


@dataclass(frozen=True)
class SaverSide(Side):
    """Our savers or the parent's, on a database of its own."""

    @property
    def saver_class(self) -> type[PostgresSaver]:
        return AuroraSaver if self.is_ours else PostgresSaver

    @property
    def async_saver_class(self) -> type[AsyncPostgresSaver]:
        return AsyncAuroraSaver if self.is_ours else AsyncPostgresSaver

    @contextmanager
    def saver(self, *, size: int = 4, **settings: Any) -> Iterator[Any]:
        """A blocking saver on a pool, with its tables."""
        with ConnectionPool(
            self.database.owner_dsn, min_size=size, max_size=size, kwargs=POOL
        ) as pool:
            pool.wait()
            saver = self.saver_class(pool, **settings)
            saver.setup()
            yield saver

    @asynccontextmanager
    async def async_saver(self, *, size: int = 4, **settings: Any) -> AsyncIterator[Any]:
        """Its asyncio twin."""
        async with AsyncConnectionPool(
            self.database.owner_dsn, min_size=size, max_size=size, kwargs=POOL
        ) as pool:
            await pool.wait()
            saver = self.async_saver_class(pool, **settings)
            await saver.setup()
            yield saver

    def kill_backends(self, *, who_wait: bool = False) -> None:
        """As a failover does: all connections to the database, or those that wait for a lock."""
        self.sql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND (wait_event_type = 'Lock' OR NOT %s)",
            who_wait,
        )


@pytest.fixture(params=["ours", "parent"])
def saver_side(request: pytest.FixtureRequest, database: Database) -> SaverSide:
    return SaverSide(request.param == "ours", database)


@pytest.fixture
def ours(database: Database) -> SaverSide:
    """For what the parent has no counterpart of."""
    return SaverSide(True, database)


def thread(name: object, **configurable: Any) -> Config:
    """The configuration of a thread."""
    return {"configurable": {"thread_id": name, "checkpoint_ns": "", **configurable}}


def checkpoint(
    values: dict[str, Any] | None = None,
    versions: dict[str, Any] | None = None,
    *,
    checkpoint_id: str | None = None,
    v: int = 4,
) -> dict[str, Any]:
    """A checkpoint of these values, each at version 1 unless said otherwise."""
    values = values or {}
    return {
        "v": v,
        "id": checkpoint_id or str(uuid6()),
        "ts": datetime.now(UTC).isoformat(),
        "channel_values": values,
        "channel_versions": dict.fromkeys(values, "1") if versions is None else versions,
        "versions_seen": {},
        "updated_channels": None,
    }


def put(
    saver: Any,
    config: Config,
    values: dict[str, Any] | None = None,
    *,
    metadata: dict[str, Any] | None = None,
    **given: Any,
) -> Config:
    """Store a checkpoint whose values are all new."""
    made = checkpoint(values, **given)
    return saver.put(config, made, metadata or {}, made["channel_versions"])


async def aput(
    saver: Any,
    config: Config,
    values: dict[str, Any] | None = None,
    *,
    metadata: dict[str, Any] | None = None,
    **given: Any,
) -> Config:
    """The asyncio twin of `put`."""
    made = checkpoint(values, **given)
    return await saver.aput(config, made, metadata or {}, made["channel_versions"])


def chain(saver: Any, config: Config, count: int, **given: Any) -> list[Config]:
    """So many checkpoints of a thread, each the parent of the next."""
    made = []
    for number in range(count):
        versions = {"items": str(number)}
        config = put(saver, config, {"items": [number]}, versions=versions, **given)
        made.append(config)
    return made


def id_of_age(age: timedelta) -> str:
    """A checkpoint's id as it was made this long ago."""
    return first_id_at(datetime.now(UTC) - age)[:19] + str(uuid6())[19:]


def values_of(saver: Any, config: Config) -> dict[str, Any]:
    """The channels of a checkpoint."""
    found = saver.get_tuple(config)
    assert found is not None
    values: dict[str, Any] = found.checkpoint["channel_values"]
    return values
