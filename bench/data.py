"""Seeded rows for both stores' tables, copied in without going through either store."""

import json
from collections.abc import Iterator, Sequence

import numpy as np
import psycopg

from bench.stores import SEED

# A few large tenants, many small ones: rows below ("tenant", number).
SKEWED = (40_000, 25_000, 15_000, 8_000, 6_000, 2_800, 1_500, 800, 500, 200, 150, 50)


def embeddings(rows: int, dims: int, *, subjects: int = 100, seed: int = SEED) -> np.ndarray:
    """Vectors as a model gives: about some subjects, of far fewer dimensions than they have.

    The same ``dims`` and ``subjects`` give the same space, so that other seeds can ask in it.
    """
    space = np.random.default_rng(SEED)
    latent = min(24, dims)
    about = space.normal(size=(subjects, latent))
    spread = space.normal(size=(latent, dims)) / np.sqrt(latent)
    random = np.random.default_rng(seed)
    points = about[random.integers(0, subjects, size=rows)]
    points = points + 0.5 * random.normal(size=points.shape)
    return (points @ spread + 0.1 * random.normal(size=(rows, dims))).astype(np.float32)


def tenants(sizes: Sequence[int] = SKEWED, *, seed: int = SEED) -> list[str]:
    """The prefix of each row, shuffled."""
    prefixes = np.repeat([f"tenant.{number}" for number in range(len(sizes))], sizes)
    np.random.default_rng(seed).shuffle(prefixes)
    return [str(prefix) for prefix in prefixes]


def load(dsn: str, prefixes: Sequence[str], vectors: np.ndarray, *, chunks: int = 1) -> None:
    """Fill ``store`` and ``store_vectors``; ``chunks`` vectors for each document in turn."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SET maintenance_work_mem = '1GB'")
        [(definition,)] = conn.execute(
            "SELECT indexdef FROM pg_indexes WHERE indexname = 'store_vectors_embedding_idx'"
        ).fetchall()
        # Built once over everything, the index takes a tenth of the time.
        conn.execute("DROP INDEX store_vectors_embedding_idx")
        with conn.cursor() as cursor:
            with cursor.copy("COPY store (prefix, key, value) FROM STDIN") as copy:
                for row in _documents(prefixes, chunks):
                    copy.write_row(row)
            with cursor.copy(
                "COPY store_vectors (prefix, key, field_name, embedding) FROM STDIN"
            ) as copy:
                for number, (prefix, vector) in enumerate(zip(prefixes, vectors, strict=True)):
                    text = "[" + ",".join(map(str, vector.tolist())) + "]"
                    copy.write_row(
                        (prefix, _key(number // chunks), f"text.{number % chunks}", text)
                    )
        conn.execute(definition)
        conn.execute("ANALYZE store")
        conn.execute("ANALYZE store_vectors")


def _documents(prefixes: Sequence[str], chunks: int) -> Iterator[tuple[str, str, str]]:
    for number, prefix in enumerate(prefixes[::chunks]):
        yield prefix, _key(number), json.dumps({"text": f"memory {number}", "n": number})


def _key(number: int) -> str:
    return f"key{number:07}"
