"""What the database holds: one read-only look at the system catalogs, which any role may take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from psycopg import sql

from langgraph_aurora_store.sql.flow import Flow, Row, Rows, Statement, Transaction
from langgraph_aurora_store.sql.store_tables import WRITE_MARKS, StoreTables

STORE = "store"
VECTORS = "store_vectors"
STORE_VERSIONS = "store_migrations"
VECTOR_VERSIONS = "vector_migrations"
OUR_VERSIONS = "aurora_store_migrations"
TABLES = (STORE, VECTORS, STORE_VERSIONS, VECTOR_VERSIONS, OUR_VERSIONS, WRITE_MARKS)
VERSIONS = (STORE_VERSIONS, VECTOR_VERSIONS, OUR_VERSIONS)

# Without a schema of its own the store lives where the search path finds its table, or else
# where the search path would create it.
_PLACE = """
SELECT pg_catalog.current_database()::text, current_user::text,
       home.name, pg_catalog.to_regnamespace(pg_catalog.quote_ident(home.name)) IS NOT NULL,
       (SELECT coalesce(pg_catalog.bool_and(pg_catalog.pg_has_role(relowner, 'USAGE')), true)
        FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass(%s)::oid),
       (SELECT coalesce(pg_catalog.has_table_privilege(oid, 'SELECT')
                        AND pg_catalog.has_table_privilege(oid, 'DELETE'), false)
        FROM pg_catalog.to_regclass(%s) AS embeddings (oid)),
       (SELECT coalesce(pg_catalog.bool_and(pg_catalog.has_table_privilege(oid, needed)), false)
        FROM pg_catalog.to_regclass(%s) AS marks (oid),
             pg_catalog.unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS needed),
       e.extversion, n.nspname::text
FROM coalesce(
    %s::text,
    (SELECT s.nspname::text
     FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace
     WHERE c.oid = pg_catalog.to_regclass(%s)::oid),
    pg_catalog.current_schema()::text
) AS home (name)
LEFT JOIN pg_catalog.pg_extension e ON e.extname = 'vector'::name
LEFT JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
"""

_COLUMNS = """
SELECT c.relname::text, a.attname::text, t.typname::text, a.atttypmod
FROM pg_catalog.unnest(%s::text[]) AS asked (name)
JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(asked.name)::oid
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
"""

_INDEXES = """
SELECT i.relname::text, x.indisvalid AND x.indisready, m.amname::text, o.opcname::text,
       t.relname::text, a.attname::text, i.reloptions::text[]
FROM pg_catalog.unnest(%s::text[]) AS asked (name)
JOIN pg_catalog.pg_class t ON t.oid = pg_catalog.to_regclass(asked.name)::oid
JOIN pg_catalog.pg_index x ON x.indrelid = t.oid
JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
JOIN pg_catalog.pg_am m ON m.oid = i.relam
JOIN pg_catalog.pg_opclass o ON o.oid = x.indclass[0]
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum = x.indkey[0]
"""


# A superuser, or the owner of the schema or the database, could change the tables in any case.
_FOREIGN_OWNERS = """
SELECT c.relname::text, r.rolname::text
FROM pg_catalog.unnest(%s::text[]) AS asked (name)
JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(asked.name)::oid
JOIN pg_catalog.pg_roles r ON r.oid = c.relowner
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
WHERE NOT (r.rolsuper OR r.oid = n.nspowner OR r.oid = d.datdba
           OR pg_catalog.pg_has_role(r.oid, 'MEMBER'))
ORDER BY c.relname
"""


class Column(NamedTuple):
    """A column's type by name, and its modifier: a vector's dimensions, or -1 for none."""

    type: str
    modifier: int


class Index(NamedTuple):
    """An index by its method and the operator class and table column it begins with.

    ``options`` are those it was built with, as ``name=value``; ``None`` for none.
    """

    name: str
    valid: bool
    method: str
    opclass: str
    table: str
    column: str | None
    options: Sequence[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseState:
    """What is in the database; ``None`` for what is not there.

    ``schema`` is where the tables are, or where they would go; ``None`` when the search path
    names no schema that exists. ``may_index`` is whether the role owns the embeddings, or would;
    ``may_forget`` whether they are there and it may delete them, and ``may_mark`` whether the table
    of write marks is there and it may write it.
    ``pgvector`` is the extension's version as installed in this database, which an upgrade of the
    engine does not change. ``foreign_owners`` are tables, each with its owner, of a role that the
    current one is not a member of and that has no power over the schema in any case.
    """

    database: str
    user: str
    schema: str | None
    schema_exists: bool
    may_index: bool
    may_forget: bool
    may_mark: bool
    pgvector: str | None
    pgvector_schema: str | None
    columns: dict[tuple[str, str], Column]
    indexes: dict[str, Index]
    foreign_owners: tuple[tuple[str, str], ...] = ()

    @property
    def tables(self) -> frozenset[str]:
        """Those of the store's tables that exist."""
        return frozenset(table for table, _ in self.columns)

    @property
    def iterative_scan(self) -> bool:
        """Whether pgvector can go on searching where a filter left too few rows."""
        return self.has_pgvector(0, 8)

    def has_pgvector(self, *version: int) -> bool:
        """Whether the installed extension is of this version or a later one."""
        installed = re.findall(r"\d+", self.pgvector or "")
        return tuple(map(int, installed)) >= version

    @property
    def embedding_indexes(self) -> list[Index]:
        """The approximate indexes on the embeddings that can be used, whatever their names."""
        return [
            index
            for index in self.indexes.values()
            if index.valid
            and (index.table, index.column) == (VECTORS, "embedding")
            and index.method in ("hnsw", "ivfflat")
        ]

    def built_with(self, name: str) -> int | None:
        """A build parameter of the approximate index on the embeddings, where it was given."""
        options = (option for index in self.embedding_indexes for option in index.options or ())
        given = dict(option.split("=", 1) for option in options)
        return int(given[name]) if name in given else None


def regclass_name(tables: StoreTables, table: str) -> str:
    """The table's name as ``to_regclass`` reads it, to be passed as a parameter."""
    return sql.Identifier(*filter(None, (tables.schema, table))).as_string()


def inspect(
    tables: StoreTables,
    *,
    table_names: Sequence[str] = TABLES,
    main_table: str = STORE,
    large_table: str = VECTORS,
) -> Flow[DatabaseState]:
    """Read what is there, in one round trip that writes nothing and needs no privilege.

    ``main_table`` tells which schema of the search path holds the ``table_names``, and the rights
    to
    ``large_table`` are read too.
    """
    names = [regclass_name(tables, table) for table in table_names]
    large, main = regclass_name(tables, large_table), regclass_name(tables, main_table)
    marks = regclass_name(tables, WRITE_MARKS)
    place_of = (large, large, marks, tables.schema, main)
    (place,), columns, indexes, owners = yield Transaction(
        (
            Statement(_PLACE, place_of),
            Statement(_COLUMNS, (names,)),
            Statement(_INDEXES, (names,)),
            Statement(_FOREIGN_OWNERS, (names,)),
        ),
        needs_writer=True,
    )
    return _state(place, columns, indexes, owners)


def _state(place: Row, columns: Rows, indexes: Rows, owners: Rows) -> DatabaseState:
    database, user, schema, schema_exists, may_index, may_forget, may_mark, *pgvector = place
    return DatabaseState(
        database=database,
        user=user,
        schema=schema,
        schema_exists=schema_exists,
        may_index=may_index,
        may_forget=may_forget,
        may_mark=may_mark,
        pgvector=pgvector[0],
        pgvector_schema=pgvector[1],
        columns={(table, name): Column(*kind) for table, name, *kind in columns},
        indexes={row[0]: Index(*row) for row in indexes},
        foreign_owners=tuple((table, owner) for table, owner in owners),
    )
