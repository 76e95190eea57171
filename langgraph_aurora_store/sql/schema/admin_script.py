"""The same schema as a script, for an administrator to run where the store's role may not."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence

from psycopg import sql

from langgraph_aurora_store.sql.schema.definitions import (
    EMBEDDING_INDEX,
    Names,
    SchemaObject,
    fewest_vectors,
    parts,
    recording,
    records,
)
from langgraph_aurora_store.sql.schema.introspection import STORE, VERSIONS, regclass_name
from langgraph_aurora_store.sql.store_tables import StoreTables

HEADER = """\
-- The tables of langgraph-aurora-store. Run it with psql, as the role that shall own them:
--   psql -v ON_ERROR_STOP=1 -f this-file
-- It may be run again at any time. Afterwards setup() has nothing to do, under any role."""

# Wherever the extension was installed, its types are found from here on, in this session.
_SEE_PGVECTOR = """\
DO $do$ BEGIN
    PERFORM pg_catalog.set_config(
        'search_path',
        pg_catalog.concat_ws(
            ', ',
            nullif(pg_catalog.current_setting('search_path'), ''::text),
            pg_catalog.quote_ident(n.nspname)
        ),
        false
    )
    FROM pg_catalog.pg_extension e
    JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
    WHERE e.extname = 'vector'::name;
END $do$;"""

_LATER = """\
-- Its lists are made from the vectors it finds: run this once there are about {}."""

_DROP_INVALID = """\
-- An index that was left invalid by an interrupted build is made again below.
DO $do$ DECLARE broken regclass; BEGIN
    FOR broken IN
        SELECT x.indexrelid
        FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
        WHERE NOT x.indisvalid AND x.indrelid IN ({tables}) AND i.relname IN ({indexes})
    LOOP
        EXECUTE pg_catalog.format('DROP INDEX %s', broken);
    END LOOP;
END $do$"""

# Measured on 200,000 items of 400 bytes, PostgreSQL 18: 8 MB and 20 % more WAL for an insert, and
# no update is heap-only any more; GIN 25 MB, 25 % and likewise.
_OPTIONAL = """\
-- Optional, each at the price of about a quarter more WAL for an insert and costlier updates:
-- the newest items of all namespaces or of a large share of them (0.2 ms instead of 20 among
-- 200,000), but up to 80 ms instead of 1 for a namespace whose items are among the oldest;
--   CREATE INDEX CONCURRENTLY store_updated_at_idx ON {store} (updated_at DESC, prefix, key);
-- a filter that few items match, across many namespaces (0.2 ms instead of 28).
--   CREATE INDEX CONCURRENTLY store_value_idx ON {store} USING gin (value jsonb_path_ops);"""


def ddl(tables: StoreTables, *, role: str | None = None, concurrently: bool = True) -> str:
    """The script that makes, or completes, what the tables needs.

    It can be run any number of times, and also records the versions, so that afterwards neither
    our ``setup()`` nor the parent's finds anything to do.

    Args:
        tables: the tables and their settings; without a ``schema`` the script makes them in the
            first schema of the search path it is run under.
        role: the store's role, which is granted what it needs; ``None`` leaves the grants as
            comments.
        concurrently: builds indexes while the tables are in use, which cannot be done inside a
            transaction: pass ``False`` for a tool that runs the script as one.
    """
    names = Names(tables.schema, None)
    wanted = parts(tables.index, names)
    indexes = [part for part in wanted if part.kind == "index"]
    blocks = [
        HEADER,
        *_prerequisites(tables),
        *(ended(part.create(names)) for part in wanted if part.kind != "index"),
        *_indexes(tables, indexes, names, concurrently=concurrently),
        grants(tables, [part.table for part in wanted if part.kind == "table"], names, role),
        _commented(_OPTIONAL.format(store=names.table(STORE).as_string())),
    ]
    return "\n\n".join(blocks) + "\n"


def _prerequisites(tables: StoreTables) -> Iterator[str]:
    if tables.schema is not None:
        schema = sql.Identifier(tables.schema)
        yield ended(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(schema))
    if tables.index:
        yield "CREATE EXTENSION IF NOT EXISTS vector;"
        yield _SEE_PGVECTOR


def _indexes(
    tables: StoreTables, indexes: list[SchemaObject], names: Names, *, concurrently: bool
) -> Iterator[str]:
    """The indexes, and then the record of all that is made."""
    yield drop_invalid(tables, indexes)
    index = tables.index
    indexed = index is not None and index.kind == "hnsw"
    for part in indexes:
        statement = ended(part.create(names, concurrently=concurrently))
        if index and part.name == EMBEDDING_INDEX and not indexed:
            statement = f"{_LATER.format(fewest_vectors(index, 0))}\n{_commented(statement)}"
        yield statement
    yield from map(ended, recording(names, records(index, indexed=indexed)))


def drop_invalid(tables: StoreTables, indexes: Sequence[SchemaObject]) -> str:
    """Drop those of the indexes that an interrupted build has left."""
    named_tables = dict.fromkeys(regclass_name(tables, part.table) for part in indexes)
    located = sql.SQL(", ").join(
        sql.SQL("pg_catalog.to_regclass({})").format(it) for it in named_tables
    )
    named = sql.SQL(", ").join(part.name for part in indexes)
    return ended(sql.SQL(_DROP_INVALID).format(tables=located, indexes=named))


def grants(
    tables: StoreTables,
    table_names: list[str],
    names: Names,
    role: str | None,
    *,
    read_only: Container[str] = VERSIONS,
) -> str:
    """What the store's role needs: to read and write, and to see what was recorded."""
    granted: list[sql.Composable] = []
    if tables.schema is not None:
        granted.append(sql.SQL("USAGE ON SCHEMA {}").format(sql.Identifier(tables.schema)))
    for table in table_names:
        rights = "SELECT" if table in read_only else "SELECT, INSERT, UPDATE, DELETE"
        granted.append(sql.SQL(rights + " ON {}").format(names.table(table)))
    if role is None:
        lines = [_commented(f"GRANT {it.as_string()} TO the_store_s_role;") for it in granted]
        return "\n".join(["-- What the store's role needs, unless it owns the tables:", *lines])
    grantee = sql.Identifier(role).as_string()
    return "\n".join(f"GRANT {grant.as_string()} TO {grantee};" for grant in granted)


def _commented(text: str) -> str:
    """Text as comments, each line of it: a line break in a name would end a comment of one line."""
    lines = re.split(r"\r\n|\r|\n", text)
    return "\n".join(line if line.startswith("--") else f"-- {line}" for line in lines)


def ended(statement: sql.Composable) -> str:
    """The statement's text as a script has it."""
    return statement.as_string() + ";"
