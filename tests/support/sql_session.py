"""The flows of ``sql/`` on one connection: batches go in, and what they did can be seen."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
from langgraph.store.base import GetOp, Item, Op, PutOp, Result, SearchItem, SearchOp
from psycopg.conninfo import make_conninfo

from langgraph_aurora_store.config import IndexSettings
from langgraph_aurora_store.execution import pgvector_types
from langgraph_aurora_store.local import LocalAurora
from langgraph_aurora_store.sql.batch import run
from langgraph_aurora_store.sql.flow import Embed, Step, Transaction
from langgraph_aurora_store.sql.schema.setup import setup
from langgraph_aurora_store.sql.store_tables import StoreTables
from langgraph_aurora_store.sql.vector_search import LargeNamespaces
from tests.support.flow_runner import drive

DIMS = 4
INDEX = IndexSettings(dims=DIMS, fields=("text",))


class SqlSession:
    """Tables on a connection; ``steps`` holds what the last batch yielded."""

    def __init__(self, connection: psycopg.Connection, tables: StoreTables) -> None:
        self.connection = connection
        self.tables = tables
        self.sizes = LargeNamespaces()
        self.steps: list[Step] = []

    def run(self, *ops: Op) -> list[Result]:
        self.steps = []
        return drive(run(ops, self.tables, self.sizes), self.connection, embed, self.steps)

    def set_up(self) -> None:
        """Unprepared: psycopg 3.3 loses count of its statements when a pipeline alters a table."""
        self.connection.prepare_threshold = None
        drive(setup(self.tables), self.connection)
        self.connection.prepare_threshold = 0

    def put(self, key: str, value: dict[str, Any] | None, **options: Any) -> None:
        self.run(PutOp(("n",), key, value, **options))

    def get(self, key: str) -> Item | None:
        return self.run(GetOp(("n",), key))[0]

    def search(self, *namespace: str, **options: Any) -> list[SearchItem]:
        return self.run(SearchOp(namespace, **options))[0]

    def sql(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        """Rows of a statement of the test's own."""
        cursor = self.connection.execute(query, params or None)
        return cursor.fetchall() if cursor.description else []

    @property
    def runs(self) -> list[Transaction]:
        return [step for step in self.steps if isinstance(step, Transaction)]

    @property
    def embedded(self) -> list[str]:
        """The documents the last batch asked to embed."""
        return [text for step in self.steps if isinstance(step, Embed) for text in step.documents]

    def with_tables(self, **changes: Any) -> SqlSession:
        return SqlSession(self.connection, replace(self.tables, **changes))


def embed(texts: Sequence[str]) -> list[list[float]]:
    """A text that is a JSON array is its own vector; any other has a random one of its own."""
    return [json.loads(t) if t.startswith("[") else _random(t) for t in texts]


def _random(text: str) -> list[float]:
    generator = random.Random(text)
    return [generator.gauss(0, 1) for _ in range(DIMS)]


@contextmanager
def made(
    aurora: LocalAurora, name: str, index: IndexSettings | None = INDEX
) -> Iterator[SqlSession]:
    """A session on a database of its own, dropped afterwards."""
    aurora.create_database(name)
    try:
        with connected(aurora, name) as connection:
            session = SqlSession(connection, StoreTables(index=index))
            session.set_up()
            pgvector_types.register(connection, connection.execute(pgvector_types.TYPES).fetchall())
            yield session
    finally:
        aurora.drop_database(name)


@contextmanager
def connected(aurora: LocalAurora, name: str) -> Iterator[psycopg.Connection]:
    """The owner's connection to a database, as a store's are."""
    dsn = make_conninfo(aurora.admin_dsn_for(name), user=aurora.user)
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as connection:
        yield connection
