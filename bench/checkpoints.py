"""Checkpoints of many tasks at once, over a link of a round trip of 1 ms."""

import asyncio
from datetime import UTC, datetime
from statistics import median
from time import perf_counter
from typing import Any

from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

from bench.stores import fresh_database
from bench.table import Row
from langgraph_aurora_store import AsyncAuroraSaver, PoolSettings
from langgraph_aurora_store.connect.connection_factory import ConnectionFactory, connection_factory
from langgraph_aurora_store.connect.pool import AsyncAuroraPool
from langgraph_aurora_store.local import LocalAurora

TASKS, POOL, STEPS, RUNS = 64, 8, 10, 3
ROUND_TRIP_S = 0.001
DATABASE = "bench_checkpoints"
SETTINGS = PoolSettings(min_size=POOL, max_size=POOL)
VALUES = {"messages": ["hello"] * 5, "topic": "a text", "step": 1}


def rows(cluster: LocalAurora) -> list[Row]:
    with fresh_database(cluster, DATABASE):
        rates = asyncio.run(both(cluster))
    return [
        Row(
            f"checkpoints of {TASKS} asyncio tasks, pool of {POOL}, 1 ms away",
            "puts/s",
            rates["ours"],
            rates["parent"],
            aim="≥ 3 × the parent's",
            holds=rates["ours"] >= 3 * rates["parent"],
        )
    ]


async def both(cluster: LocalAurora) -> dict[str, float]:
    """The median rate of each saver on one pool, in turn."""
    found: dict[str, list[float]] = {"parent": [], "ours": []}
    async with AsyncAuroraPool(factory(cluster), SETTINGS) as pool:
        savers: dict[str, Any] = {
            "parent": AsyncPostgresSaver(pool),
            "ours": AsyncAuroraSaver(pool),
        }
        await savers["ours"].setup()
        cluster.delay_s = ROUND_TRIP_S
        try:
            for _ in range(RUNS):
                for name, saver in savers.items():
                    found[name].append(await rate(saver))
        finally:
            cluster.delay_s = 0
    return {name: median(rates) for name, rates in found.items()}


def factory(cluster: LocalAurora) -> ConnectionFactory:
    return connection_factory(
        cluster.identifier,
        user=cluster.user,
        database=DATABASE,
        session=cluster.session,
        sslrootcert=cluster.sslrootcert,
    )


async def rate(saver: Any) -> float:
    """Checkpoints a second, each of a new value for every channel."""

    async def task(number: int) -> None:
        place = {"thread_id": f"{number} {perf_counter()}", "checkpoint_ns": ""}
        config: Any = {"configurable": place}
        for step in range(STEPS):
            versions = dict.fromkeys(VALUES, f"{step:032}.0")
            checkpoint = {
                "v": 4,
                "id": str(uuid6()),
                "ts": datetime.now(UTC).isoformat(),
                "channel_values": VALUES,
                "channel_versions": versions,
                "versions_seen": {},
                "updated_channels": None,
            }
            metadata = {"source": "loop", "step": step, "parents": {}}
            config = await saver.aput(config, checkpoint, metadata, versions)

    begun = perf_counter()
    await asyncio.gather(*map(task, range(TASKS)))
    return TASKS * STEPS / (perf_counter() - begun)
