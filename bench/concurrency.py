"""Many callers at once, with an embedding model that takes 50 ms."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

from langgraph.store.postgres.aio import AsyncPostgresStore
from pgvector import Vector
from pgvector.psycopg import register_vector_async
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from bench.stores import SlowEmbedder, both, fresh_database
from bench.table import Row
from langgraph_aurora_store import AsyncAuroraStore
from langgraph_aurora_store.local import LocalAurora

DIMS = 128
DELAY_S = 0.05
THREADS, TASKS, POOL, ROUNDS = 8, 64, 8, 60

SEARCH = """
SELECT s.prefix, s.key, s.value, v.embedding <=> %(query)s AS distance
FROM store_vectors AS v JOIN store AS s ON s.prefix = v.prefix AND s.key = v.key
WHERE v.prefix = %(prefix)s ORDER BY distance LIMIT 5
"""
PUT = """
INSERT INTO store (prefix, key, value) VALUES (%(prefix)s, %(key)s, %(value)s)
ON CONFLICT (prefix, key) DO UPDATE SET value = excluded.value, updated_at = now()
"""
PUT_VECTOR = """
INSERT INTO store_vectors (prefix, key, field_name, embedding)
VALUES (%(prefix)s, %(key)s, 'text', %(vector)s)
ON CONFLICT (prefix, key, field_name) DO UPDATE SET embedding = excluded.embedding
"""


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
    with fresh_database(cluster, "bench_tasks_plain") as dsn:
        floor = asyncio.run(plain_visits(dsn, SlowEmbedder(DIMS, DELAY_S)))
    ideal = TASKS / DELAY_S
    what = f"put and search, {TASKS} asyncio tasks, pool of {POOL}, embedder of 50 ms"
    return [
        Row(
            what,
            "calls/s",
            rates["ours"],
            rates["parent"],
            floor,
            "psycopg, a request to the model for each call",
            f"≥ 90 % of the ideal {ideal:,.0f}",
            rates["ours"] >= 0.9 * ideal,
        ),
        Row(
            f"the same: embedding requests for {TASKS * ROUNDS:,} calls",
            "requests",
            requests["ours"],
            requests["parent"],
            aim="texts of one loop iteration share requests",
        ),
    ]


async def visits(kind: type, dsn: str, embedder: SlowEmbedder) -> tuple[float, int]:
    index = {"embed": embedder, "dims": DIMS, "fields": ["text"]}
    async with async_pool(dsn) as pool:
        store = kind(pool, index=index)
        await store.setup()
        embedder.requests = 0

        async def search(namespace: tuple[str, ...], query: str) -> None:
            await store.asearch(namespace, query=query, limit=5)

        async def put(namespace: tuple[str, ...], key: str, text: str) -> None:
            await store.aput(namespace, key, {"text": text})

        return await rate(search, put), embedder.requests


async def plain_visits(dsn: str, embedder: SlowEmbedder) -> float:
    """The same by hand: what embedding, the server and the driver take by themselves."""
    async with async_pool(dsn) as pool:
        await AsyncAuroraStore(pool, index={"embed": embedder, "dims": DIMS}).setup()
        taught = [await pool.getconn() for _ in range(POOL)]
        for conn in taught:
            await register_vector_async(conn)
            await pool.putconn(conn)

        async def search(namespace: tuple[str, ...], query: str) -> None:
            vector = Vector(await embedder.aembed_query(query))
            async with pool.connection() as conn:
                cursor = await conn.execute(
                    SEARCH, {"prefix": ".".join(namespace), "query": vector}, binary=True
                )
                await cursor.fetchall()

        async def put(namespace: tuple[str, ...], key: str, text: str) -> None:
            vector = Vector(await embedder.aembed_query(text))
            async with pool.connection() as conn, conn.transaction(), conn.pipeline():
                address = {"prefix": ".".join(namespace), "key": key}
                await conn.execute(PUT, address | {"value": Jsonb({"text": text})})
                await conn.execute(PUT_VECTOR, address | {"vector": vector})

        return await rate(search, put)


async def rate(
    search: Callable[..., Awaitable[None]], put: Callable[..., Awaitable[None]]
) -> float:
    """Calls a second of tasks that put and search in turn."""

    async def task(number: int) -> None:
        for turn in range(ROUNDS):
            if (number + turn) % 2:
                await search(("user", str(number)), f"q {number} {turn}")
            else:
                await put(("user", str(number)), str(turn), f"memory {number} {turn}")

    begun = perf_counter()
    await asyncio.gather(*(task(number) for number in range(TASKS)))
    return TASKS * ROUNDS / (perf_counter() - begun)


@asynccontextmanager
async def async_pool(dsn: str) -> AsyncIterator[AsyncConnectionPool[Any]]:
    settings = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(dsn, min_size=POOL, max_size=POOL, kwargs=settings) as pool:
        await pool.wait()
        yield pool
