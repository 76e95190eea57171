"""What a test sees of a database's schema, read past the store."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from langgraph.store.postgres import PostgresStore
from langgraph.store.postgres.base import PostgresIndexConfig

from langgraph_aurora_store.config import IndexSettings
from langgraph_aurora_store.sql.store_tables import StoreTables

THREE = IndexSettings(dims=3)
WITH_VECTORS = StoreTables(index=THREE)


def embed(texts: list[str]) -> list[list[float]]:
    """Three numbers for a text: enough to be found by."""
    return [[float(len(text)), 1.0, 2.0] for text in texts]


PARENT_INDEX: PostgresIndexConfig = {"dims": 3, "embed": embed, "fields": ["text"]}


@contextmanager
def connect(dsn: str, **params: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection in autocommit mode, closed with the block."""
    with psycopg.connect(dsn, autocommit=True, **params) as conn:
        yield conn


@contextmanager
def parent(dsn: str, **index: Any) -> Iterator[PostgresStore]:
    """The parent's own store, with vectors of three dimensions."""
    with PostgresStore.from_conn_string(dsn, index={**PARENT_INDEX, **index}) as store:
        yield store


def relations(conn: psycopg.Connection[Any]) -> set[tuple[Any, ...]]:
    """Tables and indexes with their schema, identity and storage: equal where nothing was made."""
    return set(
        conn.execute("""
            SELECT n.nspname, c.relname, c.relkind, c.oid, c.relfilenode, c.relnatts, x.indisvalid
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN pg_index x ON x.indexrelid = c.oid
            WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
        """).fetchall()
    )


def names(conn: psycopg.Connection[Any], schema: str = "public") -> set[str]:
    """The names of a schema's tables and indexes."""
    return {name for nsp, name, *_ in relations(conn) if nsp == schema}


def index_definition(conn: psycopg.Connection[Any], index: str) -> str | None:
    """How PostgreSQL describes an index, if it can be used."""
    row = conn.execute(
        "SELECT pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indexrelid = to_regclass(%s) AND indisvalid",
        (index,),
    ).fetchone()
    return row and row[0]


def versions(conn: psycopg.Connection[Any], table: str) -> list[int]:
    """What one of the parent's tables of versions says."""
    return [row[0] for row in conn.execute(f"SELECT v FROM {table} ORDER BY v")]


def advisory_locks(conn: psycopg.Connection[Any]) -> int:
    """How many advisory locks any session of this database holds."""
    row = conn.execute("""
        SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
        WHERE locktype = 'advisory' AND d.datname = current_database()
    """).fetchone()
    assert row
    return row[0]
