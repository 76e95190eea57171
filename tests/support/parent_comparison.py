"""Both sides of a claim about the parent: a property holds on our class and fails on its own.

A test states the property once, in ``with side.only_ours(...)``: on our store the block must pass,
on the parent's it must fail in the way that is named. So a claim that has become untrue, because
the parent mended it, fails as loudly as one that we break.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.store.postgres import AsyncPostgresStore, PostgresStore

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from tests.support.database import Database

Vector = Sequence[float]
Document = tuple[tuple[str, ...], str, dict[str, Any], list[Vector]]


@dataclass(frozen=True)
class Side:
    """Our classes or the parent's, on a database of its own."""

    is_ours: bool
    database: Database

    @property
    def blocking_class(self) -> type[PostgresStore]:
        return AuroraStore if self.is_ours else PostgresStore

    @property
    def asyncio_class(self) -> type[AsyncPostgresStore]:
        return AsyncAuroraStore if self.is_ours else AsyncPostgresStore

    def only_ours(
        self, *errors: type[BaseException], match: str | None = None
    ) -> AbstractContextManager[object]:
        """The block holds on ours, and fails on the parent's: by an assertion if none is named."""
        if self.is_ours:
            return nullcontext()
        return pytest.raises(errors or AssertionError, match=match)

    @contextmanager
    def store(
        self, *, pool: dict[str, Any] | None = None, is_set_up: bool = False, **settings: Any
    ) -> Iterator[Any]:
        """A blocking store on one connection, or on a pool; with its tables."""
        with self.blocking_class.from_conn_string(
            self.database.owner_dsn, pool_config=pool, **settings
        ) as store:
            if not is_set_up:
                store.setup()
            yield store

    @asynccontextmanager
    async def async_store(
        self, *, pool: dict[str, Any] | None = None, is_set_up: bool = False, **settings: Any
    ) -> AsyncIterator[Any]:
        """Its asyncio twin."""
        async with self.asyncio_class.from_conn_string(
            self.database.owner_dsn, pool_config=pool, **settings
        ) as store:
            if not is_set_up:
                await store.setup()
            yield store

    def sql(self, statement: str, *params: object) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser."""
        with psycopg.connect(self.database.admin_dsn, autocommit=True) as conn:
            cursor = conn.execute(statement, params or None)
            return cursor.fetchall() if cursor.description else []

    def configure(self, **settings: str) -> None:
        """Settings of the database's sessions to come."""
        for name, value in settings.items():
            self.sql(f"ALTER DATABASE {self.database.name} SET {name} = '{value}'")

    def fill(self, documents: Iterable[Document]) -> None:
        """Store items with their vectors past the store's class, and analyse the tables."""
        items = list(documents)
        with psycopg.connect(self.database.owner_dsn, autocommit=True) as conn:
            with conn.cursor().copy("COPY store (prefix, key, value) FROM STDIN") as copy:
                for namespace, key, value, _ in items:
                    copy.write_row((".".join(namespace), key, json.dumps(value)))
            columns = "prefix, key, field_name, embedding"
            with conn.cursor().copy(f"COPY store_vectors ({columns}) FROM STDIN") as copy:
                for namespace, key, _, vectors in items:
                    for i, vector in enumerate(vectors):
                        copy.write_row((".".join(namespace), key, f"text.{i}", str(list(vector))))
            conn.execute("ANALYZE store, store_vectors")


@pytest.fixture(params=["ours", "parent"])
def side(request: pytest.FixtureRequest, database: Database) -> Side:
    return Side(request.param == "ours", database)


@dataclass(frozen=True)
class Traffic:
    """What a connection carried."""

    bytes_sent: int
    round_trips: int


def traffic(conn: psycopg.Connection[Any], path: Path, work: Callable[[], object]) -> Traffic:
    """What libpq's own trace of the connection shows while something is done."""
    with path.open("wb") as file:
        conn.pgconn.trace(file.fileno())
        try:
            work()
        finally:
            conn.pgconn.untrace()
    # Each message is a line: when, F for what the front end sends or B for back, length, and what.
    messages = [line.split("\t") for line in path.read_text(errors="replace").splitlines()]
    messages = [message for message in messages if len(message) > 2 and message[1] in "FB"]
    turns = [a[1] + b[1] for a, b in pairwise(messages)]
    sent = sum(int(message[2]) for message in messages if message[1] == "F")
    return Traffic(sent, turns.count("FB"))
