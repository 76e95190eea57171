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
RUNS = 15

RAW_ITEM = """
INSERT INTO store (prefix, key, value) VALUES (%s, %s, '{"text": "x"}') ON CONFLICT DO NOTHING
"""
RAW_VECTOR = """
INSERT INTO store_vectors (prefix, key, field_name, embedding) VALUES (%s, %s, 'text', %s)
"""


class Distinct(Given):
    """A vector of its own for every text, known beforehand."""

    def __init__(self) -> None:
        generator = random.Random(SEED)
        base = [[generator.gauss(0, 1) for _ in range(DIMS)] for _ in range(256)]
        super().__init__({f"memory {n}": vector for n, vector in enumerate(base)})

    def embed_documents(self, texts: Any) -> list[list[float]]:
        return [self.vectors[f"memory {int(text.split()[1]) % 256}"] for text in texts]


def rows(cluster: LocalAurora) -> list[Row]:
    index = {
        "embed": Distinct(),
        "dims": DIMS,
        "fields": ["text"],
        "ann_index_config": {"kind": "flat"},
    }
    numbers = count()
    with fresh_database(cluster, "bench_writes") as dsn, both(dsn, index) as stores:
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
            raw_one = measured(lambda: raw(conn, numbers, 1))
            raw_many = measured(lambda: raw(conn, numbers, BATCH))
    return [
        *both_times(f"one put of {DIMS:,} dims", one, raw_one),
        *both_times(f"{BATCH} puts in a batch", many, raw_many),
    ]


def both_times(
    what: str, found: dict[str, tuple[float, float]], floor: tuple[float, float]
) -> list[Row]:
    (wall, client), (parent_wall, parent_client) = found["ours"], found["parent"]
    return [
        Row(f"{what}: elapsed", "ms", wall, parent_wall, floor[0], "psycopg"),
        Row(
            f"{what}: work of the client",
            "ms",
            client,
            parent_client,
            floor[1],
            "psycopg",
            "≤ 1/10",
            client <= parent_client / 10,
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


def raw(conn: Any, numbers: Any, size: int) -> None:
    keys = [f"key{next(numbers)}" for _ in range(size)]
    vector = Vector(RAW_VALUES)
    with conn.pipeline():
        cursor = conn.cursor()
        cursor.executemany(RAW_ITEM, [("raw", key) for key in keys])
        cursor.executemany(RAW_VECTOR, [("raw", key, vector) for key in keys])


RAW_VALUES = [random.Random(SEED).gauss(0, 1) for _ in range(DIMS)]
