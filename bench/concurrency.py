"""Many callers at once, with an embedding model that takes 50 ms."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

from langgraph.store.postgres.aio import AsyncPostgresStore
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from bench.stores import SlowEmbedder, both, fresh_database
from bench.table import Row
from langgraph_aurora_store import AsyncAuroraStore
from langgraph_aurora_store.local import LocalAurora

DIMS = 128
DELAY_S = 0.05
THREADS, TASKS, POOL = 8, 64, 8


def rows(cluster: LocalAurora) -> list[Row]:
    return [*threads(cluster), *tasks(cluster)]


def threads(cluster: LocalAurora) -> list[Row]:
    ideal = THREADS / DELAY_S
    rates = {}
    for name in ("parent", "ours"):
        index = {"embed": SlowEmbedder(DIMS, DELAY_S), "dims": DIMS, "fields": ["text"]}
        with (
            fresh_database(cluster, f"bench_threads_{name}") as dsn,
            both(dsn, index, size=POOL) as stores,
            ThreadPoolExecutor(THREADS) as workers,
        ):
            store, count = stores[name], 60 if name == "parent" else 480
            begun = perf_counter()
            list(workers.map(lambda i, store=store: visit(store, i), range(count)))
            rates[name] = count / (perf_counter() - begun)
    return [
        Row(
            f"put and search, {THREADS} threads, pool of {POOL}, embedder of 50 ms",
            "calls/s",
            rates["ours"],
            rates["parent"],
            ideal,
            "ideal",
            "≥ 90 % of ideal",
            rates["ours"] >= 0.9 * ideal,
        )
    ]


def visit(store: Any, number: int) -> None:
    if number % 2:
        store.search(("user", str(number % 7)), query=f"question {number}", limit=5)
    else:
        store.put(("user", str(number % 7)), str(number), {"text": f"memory {number}"})


def tasks(cluster: LocalAurora) -> list[Row]:
    rates, requests = {}, {}
    for name, kind in (("parent", AsyncPostgresStore), ("ours", AsyncAuroraStore)):
        embedder = SlowEmbedder(DIMS, DELAY_S)
        with fresh_database(cluster, f"bench_tasks_{name}") as dsn:
            rates[name], requests[name] = asyncio.run(visits(kind, dsn, embedder))
    ideal = TASKS / DELAY_S
    what = f"put and search, {TASKS} asyncio tasks, pool of {POOL}, embedder of 50 ms"
    return [
        Row(
            what,
            "calls/s",
            rates["ours"],
            rates["parent"],
            ideal,
            "ideal",
            "≥ 90 % of ideal",
            rates["ours"] >= 0.9 * ideal,
        ),
        Row(
            "the same: embedding requests for 1,280 calls",
            "requests",
            requests["ours"],
            requests["parent"],
            aim="texts of a tick share requests",
        ),
    ]


async def visits(kind: type, dsn: str, embedder: SlowEmbedder) -> tuple[float, int]:
    index = {"embed": embedder, "dims": DIMS, "fields": ["text"]}
    settings = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(dsn, min_size=POOL, max_size=POOL, kwargs=settings) as pool:
        await pool.wait()
        store = kind(pool, index=index)
        await store.setup()
        embedder.requests = 0
        rounds = 20

        async def task(number: int) -> None:
            for turn in range(rounds):
                if (number + turn) % 2:
                    await store.asearch(("user", str(number)), query=f"q {number} {turn}", limit=5)
                else:
                    await store.aput(
                        ("user", str(number)), str(turn), {"text": f"memory {number} {turn}"}
                    )

        begun = perf_counter()
        await asyncio.gather(*(task(number) for number in range(TASKS)))
        return TASKS * rounds / (perf_counter() - begun), embedder.requests
