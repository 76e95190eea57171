"""ddl(): the script for an administrator, run by psql as an administrator would."""

import re
import shutil
import subprocess

import psycopg
import pytest

from langgraph_aurora_store.config import IndexSettings
from langgraph_aurora_store.local.server import find_binaries
from langgraph_aurora_store.sql.schema.admin_script import ddl
from langgraph_aurora_store.sql.schema.drift import check
from langgraph_aurora_store.sql.schema.setup import setup
from langgraph_aurora_store.sql.store_tables import StoreTables
from tests.support.flow_runner import drive
from tests.support.relations import (
    THREE,
    WITH_VECTORS,
    connect,
    index_definition,
    names,
    parent,
    relations,
    versions,
)

ODD = 'agents\' "memory" 100%'
TABLES = [
    StoreTables(),
    WITH_VECTORS,
    StoreTables(schema="memories", index=THREE),
    StoreTables(schema=ODD, index=THREE),
    StoreTables(index=IndexSettings(dims=3072, vector_type="halfvec", distance="l2", m=8)),
    StoreTables(index=IndexSettings(dims=3, kind="flat")),
    StoreTables(index=IndexSettings(dims=3, kind="ivfflat")),
]


@pytest.fixture
def admin(database):
    """A connection of the superuser, to a database that lacks the extension."""
    with connect(database.admin_dsn) as conn:
        conn.execute("DROP EXTENSION vector")
        yield conn


@pytest.fixture
def role(admin):
    """A role that may do nothing but connect."""
    name = 'o\'plain "role"'
    quoted = psycopg.sql.Identifier(name)
    admin.execute(psycopg.sql.SQL("CREATE ROLE {}").format(quoted))
    yield name
    admin.execute("RESET ROLE")
    admin.execute(psycopg.sql.SQL("DROP OWNED BY {}").format(quoted))
    admin.execute(psycopg.sql.SQL("DROP ROLE {}").format(quoted))


def become(conn, role):
    conn.execute(psycopg.sql.SQL("SET ROLE {}").format(psycopg.sql.Identifier(role)))


def psql(database, script):
    """Run a script as a file would be run, and stop at the first error."""
    binary = shutil.which("psql", path=str(find_binaries(16)))
    assert binary
    subprocess.run(
        [binary, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.admin_dsn],
        input=script,
        text=True,
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize("tables", TABLES, ids=range(len(TABLES)))
def test_after_the_script_setup_needs_no_rights(database, admin, role, tables):
    """Run twice, it leaves what setup() under a plain role finds complete."""
    script = ddl(tables, role=role)
    psql(database, script)
    made = relations(admin)
    psql(database, script)
    assert relations(admin) == made
    become(admin, role)
    drive(setup(tables), admin)
    drive(check(tables), admin)
    assert relations(admin) == made


def test_the_script_makes_what_setup_makes(database, admin, aurora):
    """The same tables, columns and indexes, down to their definitions."""
    psql(database, ddl(WITH_VECTORS))
    by_script = definitions(admin)
    aurora.create_database("by_setup")
    try:
        with connect(aurora.admin_dsn_for("by_setup")) as conn:
            drive(setup(WITH_VECTORS), conn)
            assert definitions(conn) == by_script
    finally:
        aurora.drop_database("by_setup")


def definitions(conn):
    columns = conn.execute("""
        SELECT table_name, column_name, data_type, udt_name, column_default, is_nullable
        FROM information_schema.columns WHERE table_schema = 'public'
    """).fetchall()
    indexes = conn.execute("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'").fetchall()
    recorded = [versions(conn, "store_migrations"), versions(conn, "vector_migrations")]
    return set(columns), set(indexes), recorded


def test_the_parent_finds_nothing_to_do_either(database, admin):
    """Its versions are recorded too."""
    psql(database, ddl(WITH_VECTORS))
    made = relations(admin)
    with parent(database.admin_dsn) as store:
        store.setup()
    assert relations(admin) == made


def test_grants_are_comments_without_a_role():
    """A script cannot know the role, but says what it needs."""
    script = ddl(WITH_VECTORS)
    assert "\n-- GRANT SELECT, INSERT, UPDATE, DELETE ON" in script
    assert "\nGRANT" not in script


def test_the_role_can_read_and_write_and_no_more(database, admin, role):
    """It gets what a store does: rows, not tables, and the record of versions to read."""
    psql(database, ddl(WITH_VECTORS, role=role))
    become(admin, role)
    admin.execute("INSERT INTO store (prefix, key, value) VALUES ('a', 'k', '{}')")
    admin.execute("INSERT INTO store_vectors (prefix, key, field_name) VALUES ('a', 'k', '$')")
    admin.execute("DELETE FROM store")
    for refused in ("DELETE FROM store_migrations", "DROP TABLE store", "CREATE TABLE t ()"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            admin.execute(refused)


def test_one_transaction_is_enough_without_concurrency(admin):
    """For a migration tool that runs a script as one."""
    with admin.transaction():
        admin.execute(ddl(WITH_VECTORS, concurrently=False))
    drive(check(WITH_VECTORS), admin)


def test_the_script_completes_the_parents_tables_and_repairs(database, admin):
    """It starts from whatever is there, invalid indexes included."""
    with parent(database.admin_dsn) as store:
        store.setup()
    admin.execute(
        "UPDATE pg_index SET indisvalid = false"
        " WHERE indexrelid = 'store_vectors_embedding_idx'::regclass"
    )
    psql(database, ddl(WITH_VECTORS))
    assert index_definition(admin, "store_vectors_embedding_idx")
    drive(check(WITH_VECTORS), admin)


def test_pgvector_may_live_off_the_search_path(database, admin):
    """The script finds the extension where an administrator put it."""
    admin.execute("CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions")
    psql(database, ddl(WITH_VECTORS))
    drive(check(WITH_VECTORS), admin)


def test_everything_is_in_the_schema(database, admin):
    """Nothing is left to the search path but pgvector."""
    before = {name for name in names(admin) if not name.startswith("pg_")}
    psql(database, ddl(StoreTables(schema=ODD, index=THREE)))
    assert names(admin) == before


def test_the_statement_of_a_deferred_index_can_be_run(database, admin):
    """An ivfflat index waits for vectors, as a comment."""
    tables = StoreTables(index=IndexSettings(dims=3, kind="ivfflat", lists=7))
    script = ddl(tables)
    psql(database, script)
    (line,) = [it for it in script.splitlines() if it.startswith("-- CREATE INDEX")]
    admin.execute(line.removeprefix("-- "))
    assert "lists='7'" in index_definition(admin, "store_vectors_embedding_idx")


@pytest.mark.parametrize("break_", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("kind", ["hnsw", "ivfflat"])
def test_a_line_break_in_a_name_leaves_no_comment(break_: str, kind: str) -> None:
    """A comment of one line would end at it, and an administrator would run what follows."""
    evil = f"a{break_}DROP TABLE audit;"
    tables = StoreTables(schema=evil, index=IndexSettings(dims=3, kind=kind))
    for role in (None, evil):
        script = ddl(tables, role=role)
        outside = re.sub(
            r'"(?:[^"]|"")*"',
            "",
            "\n".join(line for line in re.split(r"[\r\n]", script) if not line.startswith("--")),
        )
        assert "audit" not in re.sub(r"'[^']*'", "", outside)
        assert "CREATE SCHEMA IF NOT EXISTS" in outside
