"""What separates a database from what the store needs: found by reading, decided without I/O."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from psycopg import sql

from langgraph_aurora_store.config import IndexSettings
from langgraph_aurora_store.errors import SchemaError
from langgraph_aurora_store.sql.flow import Flow, Statement, Transaction
from langgraph_aurora_store.sql.schema.definitions import (
    EMBEDDING_INDEX,
    Names,
    Record,
    SchemaObject,
    as_text,
    fewest_vectors,
    parts,
    recording,
    records,
    version_column,
)
from langgraph_aurora_store.sql.schema.drift import refuse_drift
from langgraph_aurora_store.sql.schema.introspection import (
    VECTORS,
    VERSIONS,
    DatabaseState,
    inspect,
)
from langgraph_aurora_store.sql.store_tables import StoreTables


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaDiff:
    """What is to be done, empty where everything is there.

    ``deferred`` is the approximate index that waits for more vectors.
    """

    found: DatabaseState
    names: Names
    extension: bool = False
    parts: tuple[SchemaObject, ...] = ()
    records: tuple[Record, ...] = ()
    deferred: SchemaObject | None = None

    def __bool__(self) -> bool:
        return bool(self.extension or self.parts or self.records)

    @property
    def made(self) -> list[SchemaObject]:
        """The parts that are new as a whole, and so can be made in one transaction."""
        return [part for part in self.parts if part not in self.built]

    @property
    def built(self) -> list[SchemaObject]:
        """The indexes on tables that are in use, to be built while reads and writes go on."""
        return [it for it in self.parts if it.kind == "index" and it.table in self.found.tables]

    @property
    def recording(self) -> list[sql.Composed]:
        """The statements that record what has been done."""
        return recording(self.names, self.records)


def inspect_diff(tables: StoreTables) -> Flow[SchemaDiff]:
    """Compare the database with the tables, reading only.

    Raises:
        SchemaDriftError: the vectors are of another shape than the index configuration says.
        SchemaError: there is no schema to put tables in, or pgvector is too old.
    """
    found = yield from inspect(tables)
    if found.schema is None:
        raise SchemaError(
            f"no schema of database {found.database!r} is on the search path; pass schema="
        )
    refuse_drift(tables.index, found)
    if tables.index and found.pgvector:
        _refuse_old_pgvector(tables.index, found)
    recorded, vectors = yield from _contents(tables.index, found)
    return compute_diff(tables.index, found, recorded=recorded, vectors=vectors)


def compute_diff(
    index: IndexSettings | None, found: DatabaseState, *, recorded: Container[Record], vectors: int
) -> SchemaDiff:
    """What to do about what was found; ``vectors`` counts the embeddings that are stored."""
    names = Names(found.schema, found.pgvector_schema)
    if index and found.pgvector is None:
        return SchemaDiff(found=found, names=names, extension=True)
    missing = [it for it in parts(index, names, vectors=vectors) if not it.is_in(found)]
    waiting = _waiting(index, found, missing, vectors)
    indexed = index is not None and index.kind != "flat" and waiting is None
    return SchemaDiff(
        found=found,
        names=names,
        parts=tuple(part for part in missing if part is not waiting),
        records=tuple(it for it in records(index, indexed=indexed) if it not in recorded),
        deferred=waiting,
    )


def _contents(index: IndexSettings | None, found: DatabaseState) -> Flow[tuple[set[Record], int]]:
    """The versions recorded so far and, where it matters, the number of embeddings."""
    names = Names(found.schema, None)
    version_tables = [table for table in VERSIONS if table in found.tables]
    queries = [
        sql.SQL("SELECT {} FROM {}").format(sql.Identifier(version_column(it)), names.table(it))
        for it in version_tables
    ]
    counts = index is not None and index.kind == "ivfflat" and not found.embedding_indexes
    if counts and VECTORS in found.tables:
        queries.append(sql.SQL("SELECT pg_catalog.count(*) FROM {}").format(names.table(VECTORS)))
    if not queries:
        return set(), 0
    replies = yield Transaction(tuple(Statement(as_text(query)) for query in queries))
    rows = [
        (table, row) for table, reply in zip(version_tables, replies, strict=False) for row in reply
    ]
    vectors = replies[-1][0][0] if len(replies) > len(version_tables) else 0
    return {Record(table, row[0]) for table, row in rows}, vectors


def _waiting(
    index: IndexSettings | None, found: DatabaseState, missing: list[SchemaObject], vectors: int
) -> SchemaObject | None:
    """The ``ivfflat`` index when its lists would be made of too little, or by the wrong role."""
    if index is None or index.kind != "ivfflat":
        return None
    if vectors >= fewest_vectors(index, vectors) and found.may_index:
        return None
    return next((part for part in missing if part.name == EMBEDDING_INDEX), None)


def _refuse_old_pgvector(index: IndexSettings, found: DatabaseState) -> None:
    needed = (0, 7) if index.vector_type == "halfvec" else (0, 5)
    if not found.has_pgvector(*needed):
        raise SchemaError(
            f"pgvector is {found.pgvector} in database {found.database!r}, but"
            f" {index.vector_type} with {index.kind} needs {'.'.join(map(str, needed))}:"
            " an administrator runs ALTER EXTENSION vector UPDATE"
        )
