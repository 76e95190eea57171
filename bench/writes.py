"""Writing vectors: what it costs the caller."""

import random
from itertools import count
from time import process_time
from typing import Any

import psycopg
from langgraph.store.base import PutOp
from pgvector import Vector
from pgvector.psycopg import register_vector

from bench.stores import SEED, Given, both, fresh_database
from bench.table import Row, timed_ms
from langgraph_aurora_store.local import LocalAurora

DIMS, BATCH = 1536, 100
RUNS = 40

RAW_ITEM = """
INSERT INTO store (prefix, key, value) VALUES (%s, %s, '{"text": "x"}') ON CONFLICT DO NOTHING
"""
RAW_VECTOR = """
INSERT INTO store_vectors (prefix, key, field_name, embedding) VALUES (%s, %s, 'text', %s)
"""


class Distinct(Given):
    """A vector of its own for every text, known beforehand."""

    def __init__(self, dims: int) -> None:
        generator = random.Random(SEED)
        base = [[generator.gauss(0, 1) for _ in range(dims)] for _ in range(256)]
        super().__init__({f"memory {n}": vector for n, vector in enumerate(base)})

    def embed_documents(self, texts: Any) -> list[list[float]]:
        return [self.vectors[f"memory {int(text.split()[1]) % 256}"] for text in texts]


def rows(cluster: LocalAurora) -> list[Row]:
    long, short = writes(cluster, DIMS), writes(cluster, 2)
    return [
        *both_times(f"one put of {DIMS:,} dims", long["one"], short["one"]),
        *both_times(f"{BATCH} puts in a batch", long["many"], short["many"]),
    ]


def writes(cluster: LocalAurora, dims: int) -> dict[str, dict[str, tuple[float, float]]]:
    """For one put and for a batch: elapsed and computed milliseconds of each store, and of psycopg."""
    index = {
        "embed": Distinct(dims),
        "dims": dims,
        "fields": ["text"],
        "ann_index_config": {"kind": "flat"},
    }
    numbers = count()
    with fresh_database(cluster, f"bench_writes_{dims}") as dsn, both(dsn, index) as stores:
        one = {
            name: measured(lambda s=store: s.put(("u",), *fresh(numbers)))
            for name, store in stores.items()
        }
        many = {
            name: measured(
                lambda s=store: s.batch([PutOp(("u",), *fresh(numbers)) for _ in range(BATCH)])
            )
            for name, store in stores.items()
        }
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as conn:
            register_vector(conn)
            one["psycopg"] = measured(lambda: raw(conn, numbers, 1, dims))
            many["psycopg"] = measured(lambda: raw(conn, numbers, BATCH, dims))
    return {"one": one, "many": many}


def both_times(
    what: str, long: dict[str, tuple[float, float]], short: dict[str, tuple[float, float]]
) -> list[Row]:
    """What passes, and what the length of the vectors adds to the work of the client."""
    added = {name: max(0.0, long[name][1] - short[name][1]) for name in long}
    return [
        Row(
            f"{what}: elapsed",
            "ms",
            long["ours"][0],
            long["parent"][0],
            long["psycopg"][0],
            "psycopg",
        ),
        Row(
            f"{what}: parameter work (what {DIMS:,} dims take more of the client than 2)",
            "ms",
            added["ours"],
            added["parent"],
            added["psycopg"],
            "psycopg",
            "≤ 1/10",
            added["ours"] <= added["parent"] / 10,
        ),
    ]


def measured(action: Any) -> tuple[float, float]:
    """Milliseconds that pass, and those that this process computes."""
    begun = process_time()
    wall = timed_ms(action, runs=RUNS, warm_up=3)
    return wall, (process_time() - begun) * 1000 / (RUNS + 3)


def fresh(numbers: Any) -> tuple[str, dict[str, str]]:
    number = next(numbers)
    return f"key{number}", {"text": f"memory {number}"}


def raw(conn: Any, numbers: Any, size: int, dims: int) -> None:
    keys = [f"key{next(numbers)}" for _ in range(size)]
    vector = Vector(RAW_VALUES[:dims])
    with conn.pipeline():
        cursor = conn.cursor()
        cursor.executemany(RAW_ITEM, [("raw", key) for key in keys])
        cursor.executemany(RAW_VECTOR, [("raw", key, vector) for key in keys])


RAW_VALUES = [random.Random(SEED).gauss(0, 1) for _ in range(DIMS)]
