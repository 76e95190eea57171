"""Semantic search: how many of the nearest it finds, and how fast."""

from collections.abc import Callable
from itertools import cycle, permutations
from statistics import mean, median
from time import perf_counter
from typing import Any

import numpy as np
import psycopg
from pgvector import Vector
from pgvector.psycopg import register_vector

from bench.data import SKEWED, embeddings, load, tenants
from bench.stores import SEED, Given, both, fresh_database
from bench.table import Row
from langgraph_aurora_store.local import LocalAurora

DIMS, QUERIES, ROUNDS = 128, 40, 7

EXACT = """
SELECT prefix, key FROM store_vectors WHERE prefix LIKE %s
GROUP BY prefix, key ORDER BY min(embedding <=> %s), prefix, key LIMIT %s OFFSET %s
"""
RAW = """
SELECT s.prefix, s.key, s.value, s.created_at, s.updated_at, v.embedding <=> %(query)s AS distance
FROM store_vectors AS v JOIN store AS s ON s.prefix = v.prefix AND s.key = v.key
WHERE v.prefix = %(prefix)s ORDER BY distance LIMIT 10
"""

Found = list[tuple[str, str]]


def rows(cluster: LocalAurora) -> list[Row]:
    vectors = embeddings(sum(SKEWED), DIMS)
    asked = {f"q{i}": v.tolist() for i, v in enumerate(embeddings(QUERIES, DIMS, seed=7))}
    strange = np.random.default_rng(SEED).normal(size=(QUERIES, DIMS))
    foreign = {f"u{i}": v.tolist() for i, v in enumerate(strange)}
    index = {"embed": Given(asked | foreign), "dims": DIMS, "fields": ["text"]}
    with fresh_database(cluster, "bench_search") as dsn, both(dsn, index) as stores:
        load(dsn, tenants(), vectors)
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as raw:
            register_vector(raw)
            return [
                *namespaces(stores, raw, asked),
                *unlike(stores, raw, foreign),
                *pages(stores, raw, asked),
                *chunked(cluster),
            ]


def namespaces(stores: dict[str, Any], raw: Any, asked: dict[str, Any]) -> list[Row]:
    raw.execute("SET hnsw.iterative_scan = relaxed_order")
    found = []
    for number, size in enumerate(SKEWED):
        if size not in (40_000, 6_000, 2_800, 800, 150):
            continue
        searches = {
            name: lambda query, store=store, number=number: addresses(
                store.search(("tenant", str(number)), query=query, limit=10)
            )
            for name, store in stores.items()
        }
        searches["floor"] = lambda query, number=number: plain(
            raw, f"tenant.{number}", asked[query]
        )
        times = side_by_side(searches, asked)
        truth = {query: exact(raw, f"tenant.{number}", v, 10) for query, v in asked.items()}
        counts = {name: mean(len(search(q)) for q in asked) for name, search in searches.items()}
        recalls = {name: recall(search, truth) for name, search in searches.items()}
        what = f"search, 100k × {DIMS}, limit 10, namespace of {size:,}"
        found += [
            Row(
                f"{what}: rows",
                "rows",
                counts["ours"],
                counts["parent"],
                counts["floor"],
                "psycopg",
                "always 10",
                counts["ours"] == 10,
            ),
            Row(
                f"{what}: recall",
                "",
                recalls["ours"],
                recalls["parent"],
                recalls["floor"],
                "psycopg",
                "≥ .95",
                recalls["ours"] >= 0.95,
            ),
            Row(
                f"{what}: p50",
                "ms",
                times["ours"],
                times["parent"],
                times["floor"],
                "psycopg",
                "≤ 1.5 × psycopg",
                times["ours"] <= 1.5 * times["floor"],
            ),
        ]
    return found


def unlike(stores: dict[str, Any], raw: Any, asked: dict[str, Any]) -> list[Row]:
    """Queries about nothing that is stored: all items are nearly equally far."""
    searches = {
        name: lambda query, store=store: addresses(store.search(("tenant", "0"), query=query))
        for name, store in stores.items()
    }
    searches["floor"] = lambda query: plain(raw, "tenant.0", asked[query])
    truth = {query: exact(raw, "tenant.0", v, 10) for query, v in asked.items()}
    recalls = {name: recall(search, truth) for name, search in searches.items()}
    return [
        Row(
            "queries unlike anything stored, namespace of 40,000: recall",
            "",
            recalls["ours"],
            recalls["parent"],
            recalls["floor"],
            "psycopg",
        )
    ]


def pages(stores: dict[str, Any], raw: Any, asked: dict[str, Any]) -> list[Row]:
    def page(name: str, **arguments: int) -> float:
        return mean(len(stores[name].search((), query=q, **arguments)) for q in asked)

    def overlap(name: str) -> float:
        """What share of the exact fourth page is on the store's pages up to the fourth."""
        return mean(
            len(
                set(exact(raw, "", v, 40))
                & {
                    a
                    for n in range(4)
                    for a in addresses(stores[name].search((), query=q, limit=10, offset=10 * n))
                }
            )
            / 40
            for q, v in list(asked.items())[:10]
        )

    wide = {name: page(name, limit=100) for name in stores}
    deep = {name: page(name, limit=10, offset=50) for name in stores}
    paged = {name: overlap(name) for name in stores}
    return [
        Row(
            "limit 100, from the root",
            "rows",
            wide["ours"],
            wide["parent"],
            100,
            "limit",
            "100",
            wide["ours"] == 100,
        ),
        Row(
            "limit 10, offset 50",
            "rows",
            deep["ours"],
            deep["parent"],
            10,
            "limit",
            "a full page",
            deep["ours"] == 10,
        ),
        Row(
            "four pages of 10: recall of the nearest 40",
            "",
            paged["ours"],
            paged["parent"],
            1,
            "exact scan",
            "≥ .95",
            paged["ours"] >= 0.95,
        ),
    ]


def chunked(cluster: LocalAurora) -> list[Row]:
    documents, chunks = 250, 40
    vectors = embeddings(documents, 32).repeat(chunks, axis=0)
    vectors += 0.05 * np.random.default_rng(3).normal(size=vectors.shape).astype(np.float32)
    asked = {f"q{i}": v.tolist() for i, v in enumerate(embeddings(QUERIES, 32, seed=7))}
    index = {"embed": Given(asked), "dims": 32, "fields": ["text"]}
    with fresh_database(cluster, "bench_chunks") as dsn, both(dsn, index) as stores:
        load(dsn, ["docs"] * documents * chunks, vectors, chunks=chunks)
        count = {
            name: mean(len(store.search(("docs",), query=q, limit=10)) for q in asked)
            for name, store in stores.items()
        }
    what = f"{chunks} chunks a document, limit 10"
    return [
        Row(
            what,
            "documents",
            count["ours"],
            count["parent"],
            10,
            "limit",
            "10",
            count["ours"] == 10,
        )
    ]


def side_by_side(
    searches: dict[str, Callable[[str], Found]], asked: dict[str, Any]
) -> dict[str, float]:
    """Median milliseconds of each search.

    A query is asked in one order after another: a question that was just asked is cached.
    """
    times: dict[str, list[float]] = {name: [] for name in searches}
    for query, turns in zip([*asked] * ROUNDS, cycle(permutations(searches.items()))):
        for name, search in turns:
            begun = perf_counter()
            search(query)
            times[name].append((perf_counter() - begun) * 1000)
    # The first round warms the caches and the plans.
    return {name: median(each[len(asked) :]) for name, each in times.items()}


def recall(search: Callable[[str], Found], truth: dict[str, Found]) -> float:
    return mean(len(set(search(query)) & set(true)) / len(true) for query, true in truth.items())


def plain(conn: Any, prefix: str, vector: list[float]) -> Found:
    """What a hand-written query finds, with iterative scans and the default ``ef_search`` of 40."""
    rows = conn.execute(RAW, {"query": Vector(vector), "prefix": prefix}, binary=True).fetchall()
    return [(row[0], row[1]) for row in rows]


def addresses(items: list[Any]) -> Found:
    return [(".".join(item.namespace), item.key) for item in items]


def exact(conn: Any, prefix: str, vector: list[float], limit: int, offset: int = 0) -> Found:
    with conn.transaction():
        conn.execute("SET LOCAL enable_indexscan = off")
        return conn.execute(EXACT, (prefix or "%", Vector(vector), limit, offset)).fetchall()
