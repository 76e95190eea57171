"""What the database must hold, as data: the parent's tables and indexes, and what we add to them.

Each definition can be run any number of times. The parent's are those of
``langgraph.store.postgres.base`` 3.2 (``MIGRATIONS``, ``VECTOR_MIGRATIONS``), recorded under the
parent's numbers, so that its own ``setup()`` finds nothing to do. Ours only add: nullable columns
that the parent never reads, indexes, a table of our own for their record, and one for write marks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from psycopg import sql

from langgraph_aurora_store.config import EF_CONSTRUCTION, Distance, IndexSettings
from langgraph_aurora_store.sql.schema.introspection import (
    OUR_VERSIONS,
    STORE,
    STORE_VERSIONS,
    VECTOR_VERSIONS,
    VECTORS,
    DatabaseState,
)
from langgraph_aurora_store.sql.store_tables import EXTRA_COLUMNS, WRITE_MARKS

EMBEDDING_INDEX = "store_vectors_embedding_idx"

# pgvector, ivfbuild.c: k-means looks at 50 vectors for each list; from fewer come poor lists.
VECTORS_PER_LIST = 50
FEWEST_LISTS = 10

# pgvector README, "HNSW" and "Half-Precision Indexing": one operator class per type and metric.
_OPCLASS_SUFFIX: dict[Distance, str] = {
    "cosine": "cosine_ops",
    "l2": "l2_ops",
    "inner_product": "ip_ops",
}


class Names(NamedTuple):
    """Where tables and pgvector's types live; ``None`` leaves it to the search path."""

    schema: str | None
    pgvector_schema: str | None

    def table(self, name: str) -> sql.Identifier:
        """The identifier of a table or an index."""
        return _identifier(self.schema, name)

    def of_pgvector(self, name: str) -> sql.Identifier:
        """The identifier of one of the extension's types or operator classes."""
        return _identifier(self.pgvector_schema, name)


class SchemaObject(NamedTuple):
    """One table, group of columns or index, and how it is made.

    ``body`` follows ``CREATE TABLE``, ``ALTER TABLE`` or ``CREATE INDEX ... ON``; ``columns`` are
    what a table or a group of columns has to hold.
    """

    kind: Literal["table", "columns", "index"]
    name: str
    table: str
    body: sql.Composable
    columns: tuple[str, ...] = ()

    def is_in(self, found: DatabaseState) -> bool:
        """Whether the database holds it, an index being there only when it can be used."""
        if self.kind != "index":
            return all((self.table, column) in found.columns for column in self.columns)
        if self.name == EMBEDDING_INDEX:
            return bool(found.embedding_indexes)
        return self.name in found.indexes and found.indexes[self.name].valid

    def create(self, names: Names, *, concurrently: bool = False) -> sql.Composed:
        """The statement that makes it, and that does nothing where it exists."""
        table = names.table(self.table)
        if self.kind == "table":
            return sql.SQL("CREATE TABLE IF NOT EXISTS {} {}").format(table, self.body)
        if self.kind == "columns":
            return sql.SQL("ALTER TABLE {} {}").format(table, self.body)
        return sql.SQL("CREATE INDEX {}IF NOT EXISTS {} ON {} {}").format(
            sql.SQL("CONCURRENTLY " if concurrently else ""),
            sql.Identifier(self.name),
            table,
            self.body,
        )


def parts(index: IndexSettings | None, names: Names, *, vectors: int = 0) -> list[SchemaObject]:
    """Everything the store needs, in the order in which it can be made.

    ``vectors`` counts the embeddings there are, from which an ``ivfflat`` index takes its lists.
    """
    of_items = [OUR_TABLE, versions_table(STORE_VERSIONS), STORE_TABLE, EXPIRY_COLUMNS]
    of_items += [additions(STORE), WRITE_MARKS_TABLE, *STORE_INDEXES]
    if index is None:
        return of_items
    of_vectors = [versions_table(VECTOR_VERSIONS), vectors_table(index, names), additions(VECTORS)]
    of_vectors += [VECTORS_PREFIX_INDEX]
    if index.kind != "flat":
        of_vectors += [embedding_index(index, names, vectors)]
    return of_items + of_vectors


class Record(NamedTuple):
    """A row of a table of versions that says that something has been done."""

    table: str
    version: int | str


def version_column(table: str) -> str:
    """The column that tells what has been done: the parent's numbers, or our names."""
    return "name" if table == OUR_VERSIONS else "v"


def recording(names: Names, done: Sequence[Record]) -> list[sql.Composed]:
    """The statements that say what has been done, one for each table of versions."""
    insert = sql.SQL("INSERT INTO {} ({}) VALUES {} ON CONFLICT DO NOTHING")
    return [
        insert.format(
            names.table(table),
            sql.Identifier(version_column(table)),
            sql.SQL(", ").join(
                sql.SQL("({})").format(it.version) for it in done if it.table == table
            ),
        )
        for table in dict.fromkeys(it.table for it in done)
    ]


def as_text(statement: sql.Composable) -> str:
    """The statement as text to execute with parameters, of which it has none."""
    return statement.as_string().replace("%", "%%")


def records(index: IndexSettings | None, *, indexed: bool) -> list[Record]:
    """What the tables of versions say when everything is made.

    ``indexed`` is whether the approximate index exists: the parent leaves its number out for
    ``flat``, so that a later change of the kind still builds it.
    """
    done = [Record(STORE_VERSIONS, version) for version in range(4)]
    done += [Record(OUR_VERSIONS, column) for column in additions(STORE).columns]
    done += [Record(OUR_VERSIONS, WRITE_MARKS)]
    if index is None:
        return done
    done += [Record(VECTOR_VERSIONS, version) for version in range(3 if indexed else 2)]
    done += [Record(OUR_VERSIONS, column) for column in additions(VECTORS).columns]
    return [*done, Record(OUR_VERSIONS, VECTORS_PREFIX_INDEX.name)]


OUR_TABLE = SchemaObject(
    "table",
    OUR_VERSIONS,
    OUR_VERSIONS,
    sql.SQL("""(
    name text PRIMARY KEY,
    applied_at timestamp with time zone NOT NULL DEFAULT CURRENT_TIMESTAMP
)"""),
    ("name",),
)

# Rows are updated in place: room on each page keeps the updates heap-only.
WRITE_MARKS_TABLE = SchemaObject(
    "table",
    WRITE_MARKS,
    WRITE_MARKS,
    sql.SQL("""(
    writer bigint PRIMARY KEY,
    number bigint NOT NULL,
    outcome bigint[]
) WITH (fillfactor = 50)"""),
    ("writer", "number", "outcome"),
)

STORE_TABLE = SchemaObject(
    "table",
    STORE,
    STORE,
    sql.SQL("""(
    prefix text NOT NULL,
    key text NOT NULL,
    value jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (prefix, key)
)"""),
    ("prefix", "key", "value", "created_at", "updated_at"),
)

EXPIRY_COLUMNS = SchemaObject(
    "columns",
    "store (expires_at, ttl_minutes)",
    STORE,
    sql.SQL("""ADD COLUMN IF NOT EXISTS expires_at timestamp with time zone,
    ADD COLUMN IF NOT EXISTS ttl_minutes integer"""),
    ("expires_at", "ttl_minutes"),
)

STORE_INDEXES = (
    SchemaObject(
        "index", "store_prefix_idx", STORE, sql.SQL("USING btree (prefix text_pattern_ops)")
    ),
    SchemaObject(
        "index",
        "idx_store_expires_at",
        STORE,
        sql.SQL("(expires_at) WHERE expires_at IS NOT NULL"),
    ),
)

# A small namespace is searched exactly through this one: without it a semantic search of 200 rows
# out of 100,000 took 78 ms instead of under 1.
VECTORS_PREFIX_INDEX = SchemaObject(
    "index", "store_vectors_prefix_idx", VECTORS, sql.SQL("USING btree (prefix text_pattern_ops)")
)


def additions(table: str) -> SchemaObject:
    """Our own columns in one of the parent's tables."""
    extra = [column for column in EXTRA_COLUMNS if column.table == table]
    clauses = [
        sql.SQL("ADD COLUMN IF NOT EXISTS {} " + added.type).format(sql.Identifier(added.name))
        for added in extra
    ]
    names = tuple(added.name for added in extra)
    return SchemaObject(
        "columns", f"{table} ({', '.join(names)})", table, sql.SQL(", ").join(clauses), names
    )


def versions_table(name: str) -> SchemaObject:
    """One of the parent's two tables of versions."""
    return SchemaObject("table", name, name, sql.SQL("(v integer PRIMARY KEY)"), ("v",))


def vectors_table(index: IndexSettings, names: Names) -> SchemaObject:
    """The table of embeddings, whose rows go when their item goes."""
    body = sql.SQL("""(
    prefix text NOT NULL,
    key text NOT NULL,
    field_name text NOT NULL,
    embedding {vector}({dims}),
    created_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp with time zone DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (prefix, key, field_name),
    FOREIGN KEY (prefix, key) REFERENCES {store} (prefix, key) ON DELETE CASCADE
)""").format(
        vector=names.of_pgvector(index.vector_type),
        dims=sql.Literal(index.dims),
        store=names.table(STORE),
    )
    return SchemaObject(
        "table", VECTORS, VECTORS, body, ("prefix", "key", "field_name", "embedding", "updated_at")
    )


def embedding_index(index: IndexSettings, names: Names, vectors: int) -> SchemaObject:
    """The approximate index on the embeddings."""
    lists = lists_for(index, vectors) if index.kind == "ivfflat" else None
    ef_construction = index.ef_construction or EF_CONSTRUCTION if index.kind == "hnsw" else None
    given = {"m": index.m, "ef_construction": ef_construction, "lists": lists}
    options = [f"{name} = {value}" for name, value in given.items() if value is not None]
    body = sql.SQL("USING {kind} (embedding {opclass}){options}").format(
        kind=sql.SQL(index.kind),
        opclass=names.of_pgvector(opclass(index)),
        options=sql.SQL(f" WITH ({', '.join(options)})" if options else ""),
    )
    return SchemaObject("index", EMBEDDING_INDEX, VECTORS, body)


def lists_for(index: IndexSettings, vectors: int) -> int:
    """How many lists an ``ivfflat`` index gets that is built from so many vectors."""
    # pgvector README, "IVFFlat": rows / 1000 up to 1M rows, sqrt(rows) over 1M rows.
    advised = vectors // 1000 if vectors <= 1_000_000 else math.isqrt(vectors)
    return index.lists or max(FEWEST_LISTS, advised)


def fewest_vectors(index: IndexSettings, vectors: int) -> int:
    """From how many vectors on the lists of an ``ivfflat`` index are worth building."""
    return VECTORS_PER_LIST * lists_for(index, vectors)


def opclass(index: IndexSettings) -> str:
    """The pgvector operator class that serves the configured type and metric."""
    return f"{index.vector_type}_{_OPCLASS_SUFFIX[index.distance]}"


def metric_of(opclass: str) -> Distance | None:
    """The metric an operator class serves, or ``None`` for one that is not pgvector's."""
    suffix = opclass.partition("_")[2]
    return next((name for name, known in _OPCLASS_SUFFIX.items() if known == suffix), None)


def _identifier(schema: str | None, name: str) -> sql.Identifier:
    return sql.Identifier(name) if schema is None else sql.Identifier(schema, name)
