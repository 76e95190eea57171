"""Stores for tests: the twins under one set of names, and embedders that need no network."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import psycopg
from langchain_core.embeddings import Embeddings
from langgraph.store.postgres import AsyncPostgresStore
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from langgraph_aurora_store.local import LocalAurora
from tests.support.database import Database

DIMS = 8


class Letters(Embeddings):
    """Counts the letters of a text, folded into a few dimensions: alike texts are near.

    Every component is positive, so no two texts are orthogonal and none has a zero vector.
    """

    def __init__(self, dims: int = DIMS) -> None:
        self.dims = dims
        self.documents: list[list[str]] = []
        """The texts of each request, in order."""
        self.queries: list[str] = []
        self._lock = threading.Lock()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        with self._lock:
            self.documents.append(list(texts))
        return [self.vector(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        with self._lock:
            self.queries.append(text)
        return self.vector(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        return self.embed_query(text)

    def vector(self, text: str) -> list[float]:
        vector = [0.1] * self.dims
        for letter in text:
            vector[ord(letter) % self.dims] += 1
        return vector


class Table(Embeddings):
    """Knows the vector of every text beforehand."""

    def __init__(self, vectors: dict[str, Sequence[float]]) -> None:
        self._vectors = vectors

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [list(self._vectors[text]) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return list(self._vectors[text])

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        return self.embed_query(text)


class Twin:
    """A store of either kind, awaited by the names of the blocking one."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.is_async = isinstance(store, AsyncPostgresStore)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        if self.is_async:
            return getattr(self.store, f"a{name}", None) or getattr(self.store, name)
        method = getattr(self.store, name)

        async def call(*args: object, **kwargs: object) -> object:
            return method(*args, **kwargs)

        return call


KINDS = ("blocking-connection", "blocking-pool", "asyncio-connection", "asyncio-pool")
CLUSTER_KINDS = ("blocking-cluster", "asyncio-cluster")
PIPELINE_KINDS = ("blocking-pipeline", "asyncio-pipeline")


def owner_dsn(aurora: LocalAurora, database: str) -> str:
    """As the application's role, past the proxy."""
    return make_conninfo(aurora.admin_dsn_for(database), user=aurora.user)


@contextmanager
def set_up(aurora: LocalAurora, database: str, **settings: Any) -> Iterator[psycopg.Connection]:
    """A database with a store's tables, and the superuser's connection to it."""
    aurora.create_database(database)
    with AuroraStore.from_conn_string(owner_dsn(aurora, database), **settings) as store:
        store.setup()
    with psycopg.connect(aurora.admin_dsn_for(database), autocommit=True) as conn:
        yield conn
    aurora.drop_database(database)


@asynccontextmanager
async def opened(
    kind: str, aurora: LocalAurora, database: str, **settings: Any
) -> AsyncIterator[Twin]:
    """A store of one of the kinds; of ``CLUSTER_KINDS``, from the name and through the proxy."""
    flavour, _, way = kind.partition("-")
    cls: Any = AuroraStore if flavour == "blocking" else AsyncAuroraStore
    if way == "cluster":
        manager = cls.from_cluster(**arguments(Database(aurora, database), **settings))
    else:
        manager = cls.from_conn_string(
            owner_dsn(aurora, database),
            pipeline=way == "pipeline",
            pool_config={"min_size": 1, "max_size": 4} if way == "pool" else None,
            **settings,
        )
    async with AsyncExitStack() as stack:
        if flavour == "blocking":
            yield Twin(stack.enter_context(manager))
        else:
            yield Twin(await stack.enter_async_context(manager))


def pool_of(store: Any) -> ConnectionPool | AsyncConnectionPool:
    """The pool a store was made on."""
    pool = store.conn
    assert isinstance(pool, ConnectionPool | AsyncConnectionPool)
    return pool


def arguments(database: Database, **changes: Any) -> dict[str, Any]:
    """What `from_cluster` is called with to reach a test's database."""
    cluster = database.cluster
    return {
        "cluster": cluster.identifier,
        "user": cluster.user,
        "database": database.name,
        "session": cluster.session,
        "sslrootcert": cluster.sslrootcert,
        **changes,
    }


def in_process(database: Database, code: str) -> str:
    """Run code in a process of its own, which knows the cluster by its environment only."""
    environment = {**os.environ, **database.cluster.environment, "AURORA_DATABASE": database.name}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
