"""Whether the database is what the configuration describes, and what to do where it is not."""

from __future__ import annotations

import logging

from langgraph_aurora_store.config import IndexSettings
from langgraph_aurora_store.errors import SchemaDriftError, SchemaError, SchemaMissingError
from langgraph_aurora_store.sql.flow import Flow
from langgraph_aurora_store.sql.schema.definitions import (
    Names,
    metric_of,
    opclass,
    parts,
)
from langgraph_aurora_store.sql.schema.introspection import (
    STORE,
    VECTORS,
    DatabaseState,
    inspect,
)
from langgraph_aurora_store.sql.store_tables import StoreTables

# Applications filter by the name of 0.1.0.
logger = logging.getLogger("langgraph_aurora_store.sql.drift")


_EXPECTED = {
    STORE: ("prefix", "key", "value", "created_at", "updated_at"),
    VECTORS: ("prefix", "key", "field_name", "embedding"),
}


def check(tables: StoreTables) -> Flow[DatabaseState]:
    """Make sure, at first use, that the store can work on this database.

    One round trip, which only reads the catalogs. A missing index is a warning in the log: the
    store works without it, only slower.

    Raises:
        SchemaMissingError: a table or a column is missing; where only the parent has set up the
            database, those that this store adds are.
        SchemaDriftError: the vectors are of another shape than the index configuration says.
        SchemaError: a table of that name is not a LangGraph store's.
    """
    found = yield from inspect(tables)
    refuse_drift(tables.index, found)
    wanted = parts(tables.index, Names(found.schema, found.pgvector_schema))
    missing = [part for part in wanted if not part.is_in(found)]
    if absent := [it for it in missing if it.table in _EXPECTED and it.kind != "index"]:
        raise SchemaMissingError(
            f"{', '.join(it.name for it in absent)}: not in schema {found.schema!r} of database"
            f" {found.database!r}; run setup() once, or have an administrator run the SQL of ddl()"
        )
    for part in missing:
        if part.kind == "index":
            logger.warning("index %s is missing or invalid: setup() builds it", part.name)
    return found


def refuse_drift(index: IndexSettings | None, found: DatabaseState) -> None:
    """Compare the configuration with what is in the database, as far as it is there.

    Raises:
        SchemaDriftError: they differ in dimensions, vector type, metric or kind of index.
        SchemaError: a table of that name is not a LangGraph store's.
    """
    for table in _EXPECTED.keys() & found.tables:
        _refuse_other_table(table, index, found)
    if index and VECTORS in found.tables:
        _refuse_other_vectors(index, found)
        _refuse_other_index(index, found)


def _refuse_other_table(table: str, index: IndexSettings | None, found: DatabaseState) -> None:
    missing = [name for name in _EXPECTED[table] if (table, name) not in found.columns]
    if missing == ["embedding"]:
        if index is None:
            return
        name = Names(found.schema, None).table(table).as_string()
        raise SchemaError(
            f"{name} of database {found.database!r} has lost its column 'embedding', as when the"
            f" extension vector was dropped; DROP TABLE {name}; then setup(), and put every item"
            " again"
        )
    if missing:
        raise SchemaError(
            f"table {table!r} in schema {found.schema!r} of database {found.database!r} is"
            " not a LangGraph store's; pass schema= to keep the store's tables apart"
        )


def _refuse_other_vectors(index: IndexSettings, found: DatabaseState) -> None:
    held = found.columns[VECTORS, "embedding"]
    if held == (index.vector_type, index.dims):
        return
    table = Names(found.schema, None).table(VECTORS).as_string()
    wanted = f"{index.vector_type}({index.dims})"
    change = f"ALTER TABLE {table} ALTER COLUMN embedding TYPE {wanted}; then setup()"
    if held.modifier != index.dims:
        change = f"TRUNCATE {table}; {change} and every item put again"
    raise SchemaDriftError(
        f"index= means embeddings of {wanted}, but {table} of database {found.database!r} holds"
        f" {held.type}({held.modifier}): configure dims={held.modifier} and"
        f" vector_type={held.type!r}, or change the table: {_drops(found)}{change}"
    )


def _refuse_other_index(index: IndexSettings, found: DatabaseState) -> None:
    built = found.embedding_indexes
    if not built or (index.kind, opclass(index)) in {(it.method, it.opclass) for it in built}:
        return
    held = built[0]
    raise SchemaDriftError(
        f"index= means kind {index.kind!r} and distance_type {index.distance!r}, but index"
        f" {held.name!r} of database {found.database!r} is of kind {held.method!r} for"
        f" {metric_of(held.opclass) or held.opclass!r}: configure these, or change the index:"
        f" {_drops(found)}then setup()"
    )


def _drops(found: DatabaseState) -> str:
    """The statements that drop the approximate indexes."""
    names = Names(found.schema, None)
    return "".join(
        f"DROP INDEX {names.table(index.name).as_string()}; " for index in found.embedding_indexes
    )
