"""The tables of checkpoints as data, and their `setup`: the store's, on other tables.

The tables are those of ``langgraph.checkpoint.postgres.base`` 3.2 (``MIGRATIONS``), recorded under
the parent's numbers, so that its own ``setup()`` finds nothing to do.
"""

from __future__ import annotations

from psycopg import sql

from langgraph_aurora_store.checkpoint.statements import (
    BLOBS,
    CHECKPOINTS,
    TABLES,
    VERSIONS,
    WRITES,
)
from langgraph_aurora_store.errors import SchemaError
from langgraph_aurora_store.sql.flow import Flow, Statement, Transaction
from langgraph_aurora_store.sql.schema.admin_script import HEADER, drop_invalid, ended, grants
from langgraph_aurora_store.sql.schema.definitions import (
    Names,
    Record,
    SchemaObject,
    as_text,
    recording,
    versions_table,
)
from langgraph_aurora_store.sql.schema.diff import SchemaDiff
from langgraph_aurora_store.sql.schema.introspection import inspect
from langgraph_aurora_store.sql.schema.setup import converge
from langgraph_aurora_store.sql.store_tables import StoreTables

# The parent's migrations, by their places in its list.
_LATEST = 9
_NULLABLE_BLOBS = 4

_TABLES = (
    versions_table(VERSIONS),
    SchemaObject(
        "table",
        CHECKPOINTS,
        CHECKPOINTS,
        sql.SQL("""(
    thread_id text NOT NULL,
    checkpoint_ns text NOT NULL DEFAULT '',
    checkpoint_id text NOT NULL,
    parent_checkpoint_id text,
    type text,
    checkpoint jsonb NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id)
)"""),
        ("thread_id", "checkpoint_ns", "checkpoint_id", "checkpoint", "metadata"),
    ),
    SchemaObject(
        "table",
        BLOBS,
        BLOBS,
        sql.SQL("""(
    thread_id text NOT NULL,
    checkpoint_ns text NOT NULL DEFAULT '',
    channel text NOT NULL,
    version text NOT NULL,
    type text NOT NULL,
    blob bytea,
    PRIMARY KEY (thread_id, checkpoint_ns, channel, version)
)"""),
        ("thread_id", "checkpoint_ns", "channel", "version", "type", "blob"),
    ),
    SchemaObject(
        "table",
        WRITES,
        WRITES,
        sql.SQL("""(
    thread_id text NOT NULL,
    checkpoint_ns text NOT NULL DEFAULT '',
    checkpoint_id text NOT NULL,
    task_id text NOT NULL,
    idx integer NOT NULL,
    channel text NOT NULL,
    type text,
    blob bytea NOT NULL,
    task_path text NOT NULL DEFAULT '',
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
)"""),
        ("thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "idx", "channel", "blob"),
    ),
    SchemaObject(
        "columns",
        f"{WRITES} (task_path)",
        WRITES,
        sql.SQL("ADD COLUMN IF NOT EXISTS task_path text NOT NULL DEFAULT ''"),
        ("task_path",),
    ),
)
# Of the parent's versions before its fourth migration.
_NULLABLE = SchemaObject(
    "columns", f"{BLOBS} (blob)", BLOBS, sql.SQL("ALTER COLUMN blob DROP NOT NULL"), ("blob",)
)
_INDEXES = tuple(
    SchemaObject("index", f"{table}_thread_id_idx", table, sql.SQL("(thread_id)"))
    for table in (CHECKPOINTS, BLOBS, WRITES)
)
# Among 100,000 checkpoints a filter by metadata takes 44 ms without it, and 1.2 with it.
_METADATA_INDEX = SchemaObject(
    "index",
    "checkpoints_metadata_idx",
    CHECKPOINTS,
    sql.SQL("USING gin (metadata jsonb_path_ops)"),
)


def setup(tables: StoreTables, *, metadata_index: bool) -> Flow[None]:
    """Make what is missing; see `langgraph_aurora_store.sql.schema.setup`."""
    yield from converge(lambda: _inspect_diff(tables, metadata_index=metadata_index))


def ddl(tables: StoreTables, *, role: str | None, concurrently: bool) -> str:
    """The same as a script; see `langgraph_aurora_store.sql.schema.admin_script`."""
    names = Names(tables.schema, None)
    records = [Record(VERSIONS, v) for v in range(_LATEST + 1)]
    schema = sql.Identifier(tables.schema or "")
    blocks = [
        HEADER,
        *([ended(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(schema))] * bool(tables.schema)),
        *(ended(part.create(names)) for part in (*_TABLES, _NULLABLE)),
        drop_invalid(tables, _INDEXES),
        *(ended(part.create(names, concurrently=concurrently)) for part in _INDEXES),
        *map(ended, recording(names, records)),
        grants(tables, list(TABLES), names, role, read_only={VERSIONS}),
    ]
    return "\n\n".join(blocks) + "\n"


def _inspect_diff(tables: StoreTables, *, metadata_index: bool) -> Flow[SchemaDiff]:
    found = yield from inspect(
        tables, table_names=TABLES, main_table=CHECKPOINTS, large_table=BLOBS
    )
    if found.schema is None:
        raise SchemaError(
            f"no schema of database {found.database!r} is on the search path; pass schema="
        )
    names = Names(found.schema, None)
    recorded: set[int] = set()
    if VERSIONS in found.tables:
        query = sql.SQL("SELECT v FROM {}").format(names.table(VERSIONS))
        (rows,) = yield Transaction((Statement(as_text(query)),))
        recorded = {row[0] for row in rows}
    wanted = [*_TABLES, *_INDEXES, *([_METADATA_INDEX] if metadata_index else [])]
    missing = [part for part in wanted if not part.is_in(found)]
    if BLOBS in found.tables and _NULLABLE_BLOBS not in recorded:
        missing.append(_NULLABLE)
    return SchemaDiff(
        found=found,
        names=names,
        parts=tuple(missing),
        records=tuple(Record(VERSIONS, v) for v in range(_LATEST + 1) if v not in recorded),
    )
