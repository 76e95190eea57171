"""Both stores on the same server, and what they are filled with."""

import asyncio
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import psycopg
from langchain_core.embeddings import Embeddings
from langgraph.store.postgres import PostgresStore
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from langgraph_aurora_store import AuroraStore
from langgraph_aurora_store.local import LocalAurora

SEED = 20261120


class SlowEmbedder(Embeddings):
    """Answers each request after ``delay_s``, whatever it holds; counts its requests."""

    def __init__(self, dims: int, delay_s: float = 0.05) -> None:
        self.dims, self.delay_s, self.requests = dims, delay_s, 0

    def vector(self, text: str) -> list[float]:
        # Cheap, or the two cores would be busy with the model's part.
        return np.random.default_rng(zlib.crc32(text.encode())).standard_normal(self.dims).tolist()

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        self.requests += 1
        time.sleep(self.delay_s)
        return [self.vector(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    async def aembed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        self.requests += 1
        await asyncio.sleep(self.delay_s)
        return [self.vector(text) for text in texts]

    async def aembed_query(self, text: str) -> list[float]:
        return (await self.aembed_documents([text]))[0]

    def embed_queries(self, texts: list[str]) -> list[list[float]]:
        return self.embed_documents(texts)

    async def aembed_queries(self, texts: list[str]) -> list[list[float]]:
        return await self.aembed_documents(texts)


class Given(Embeddings):
    """Knows the vectors of its texts beforehand: embedding costs nothing."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.vectors = vectors

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        return [self.vectors[text] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.vectors[text]


@contextmanager
def fresh_database(cluster: LocalAurora, name: str) -> Iterator[str]:
    """A connection string, past the proxy, to a database that lasts as long as the block."""
    cluster.create_database(name)
    try:
        yield psycopg.conninfo.make_conninfo(cluster.admin_dsn_for(name), user=cluster.user)
    finally:
        cluster.drop_database(name)


@contextmanager
def pool(dsn: str, size: int) -> Iterator[ConnectionPool[Any]]:
    """A pool as `PostgresStore.from_conn_string` makes it."""
    settings = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    with ConnectionPool(dsn, min_size=size, max_size=size, kwargs=settings) as made:
        made.wait()
        yield made


@contextmanager
def both(
    dsn: str, index: dict[str, Any] | None = None, *, size: int = 1
) -> Iterator[dict[str, Any]]:
    """The parent's store and ours on a pool each, set up on the same tables."""
    with pool(dsn, size) as theirs, pool(dsn, size) as own:
        ours = AuroraStore(own, index=index)
        ours.setup()
        yield {"parent": PostgresStore(theirs, index=index), "ours": ours}
