"""`setup()` of the savers: the rows S1 to S3, the parent's tables, and a schema of one's own."""

import subprocess
import sys
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.base import MIGRATIONS
from psycopg import Connection, sql

from langgraph_aurora_store import AsyncAuroraSaver, AuroraSaver
from langgraph_aurora_store.errors import SchemaError, SchemaMissingError
from tests.support.database import Database
from tests.support.saver_comparison import SaverSide, put, saver_side, thread, values_of

__all__ = ["saver_side"]

PROCESSES = 8
INVALID = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass"
INDEXES = """
SELECT indexrelid::regclass::text FROM pg_index
WHERE indisvalid AND NOT indisprimary AND indrelid::regclass::text LIKE 'checkpoint%'
"""


def dump(side: SaverSide) -> list[tuple[Any, ...]]:
    """Columns with their types and defaults, constraints and indexes of the database."""
    return sorted(
        side.sql("""
        SELECT table_name::text, column_name::text, data_type::text, is_nullable::text,
               column_default::text
        FROM information_schema.columns WHERE table_schema = 'public'
        UNION ALL SELECT tablename::text, indexname::text, indexdef::text, '', ''
        FROM pg_indexes WHERE schemaname = 'public'
    """),
        key=str,
    )


def test_the_tables_are_the_parents(saver_side: SaverSide, aurora: Any) -> None:
    """To the last default, whichever makes them; and the other side then finds nothing to do."""
    with saver_side.saver() as saver:
        made = dump(saver_side)
        SaverSide(not saver_side.is_ours, saver_side.database).saver_class(saver.conn).setup()
        saver.setup()
        assert dump(saver_side) == made
        assert saver_side.sql("SELECT count(*), max(v) FROM checkpoint_migrations") == [
            (len(MIGRATIONS), len(MIGRATIONS) - 1)
        ]
        assert len(saver_side.sql(INDEXES)) == 3
        saver_side.sql("DROP TABLE checkpoints, checkpoint_blobs, checkpoint_writes")
        saver_side.sql("DROP TABLE checkpoint_migrations")
        PostgresSaver(saver.conn).setup()
        assert dump(saver_side) == made


@pytest.mark.parametrize("version", range(len(MIGRATIONS)))
def test_tables_of_any_version_are_completed(database: Database, version: int) -> None:
    side = SaverSide(True, database)
    with Connection.connect(database.owner_dsn, autocommit=True) as conn:
        for v, migration in enumerate(MIGRATIONS[: version + 1]):
            conn.execute(migration)
            conn.execute("INSERT INTO checkpoint_migrations VALUES (%s)", [v])
    with side.saver() as saver:
        assert len(side.sql(INDEXES)) == 3
        nullable = (
            "SELECT is_nullable FROM information_schema.columns"
            " WHERE table_name = 'checkpoint_blobs' AND column_name = 'blob'"
        )
        assert side.sql(nullable) == [("YES",)]
        put(saver, thread("t"), {"a": [1]})
        assert values_of(saver, thread("t")) == {"a": [1]}


SETUP = """
import sys
from {module} import {cls}
with {cls}.from_conn_string(sys.argv[1]) as saver:
    print("connected", flush=True)
    sys.stdin.readline()
    saver.setup()
"""


def test_s1_eight_processes_set_up_at_a_time(saver_side: SaverSide) -> None:
    """Each of them succeeds; of the parent's most find each other's half-made tables."""
    cls = saver_side.saver_class
    code = SETUP.format(module=cls.__module__, cls=cls.__name__)
    with saver_side.only_ours():
        for _ in range(1 if saver_side.is_ours else 3):
            processes = [
                subprocess.Popen(
                    [sys.executable, "-c", code, saver_side.database.owner_dsn],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for _ in range(PROCESSES)
            ]
            for process in processes:
                assert process.stdout
                assert process.stdout.readline() == "connected\n"
            for process in processes:
                assert process.stdin
                process.stdin.write("\n")
                process.stdin.flush()
            results = [process.communicate()[1] for process in processes]
            failures = [error for error in results if error]
            saver_side.sql("DROP TABLE IF EXISTS checkpoint_migrations")
            saver_side.sql("DROP TABLE IF EXISTS checkpoints, checkpoint_blobs, checkpoint_writes")
            assert failures == []


def test_s2_an_invalid_index_is_built_again(saver_side: SaverSide) -> None:
    """As an interrupted build leaves it; the parent counts it as done."""
    with saver_side.saver() as saver:
        saver_side.sql(INVALID, "checkpoints_thread_id_idx")
        saver.setup()
        with saver_side.only_ours():
            assert len(saver_side.sql(INDEXES)) == 3


def test_s3_with_nothing_to_do_it_works_read_only(saver_side: SaverSide) -> None:
    """On a reader, or in a session that is read-only."""
    with saver_side.saver():
        pass
    dsn = psycopg.conninfo.make_conninfo(
        saver_side.database.owner_dsn, options="-c default_transaction_read_only=on"
    )
    with (
        Connection.connect(dsn, autocommit=True) as conn,
        saver_side.only_ours(psycopg.errors.ReadOnlySqlTransaction),
    ):
        saver_side.saver_class(conn).setup()


def test_s3_with_nothing_to_do_it_needs_no_right(database: Database) -> None:
    """Of creating anything; where there is something to do, the error says so."""
    with Connection.connect(database.admin_dsn, autocommit=True) as conn:
        conn.execute("CREATE ROLE plain")
        try:
            conn.execute("SET ROLE plain")
            saver = AuroraSaver(conn)
            with pytest.raises(SchemaError, match="permission denied"):
                saver.setup()
            with SaverSide(True, database).saver():
                pass
            conn.execute("RESET ROLE")
            conn.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain")
            conn.execute("SET ROLE plain")
            saver.setup()
        finally:
            conn.execute("RESET ROLE")
            conn.execute("DROP OWNED BY plain; DROP ROLE plain")


@pytest.mark.parametrize("schema", [None, 'a "schema" 100%'])
def test_an_administrator_runs_the_ddl(database: Database, schema: str | None) -> None:
    """Any number of times; then a role that may create nothing sets up and works."""
    with Connection.connect(database.admin_dsn, autocommit=True) as conn:
        conn.execute("CREATE ROLE plain")
        try:
            saver = AuroraSaver(conn, schema=schema)
            for _ in range(2):
                conn.execute(saver.ddl(role="plain", concurrently=False))
            conn.execute("SET ROLE plain")
            saver.setup()
            config = put(saver, thread("t"), {"a": [1]})
            saver.put_writes(config, [("a", 1)], "task")
            assert values_of(saver, config) == {"a": [1]}
            saver.prune()
            saver.delete_thread("t")
        finally:
            conn.execute("RESET ROLE")
            conn.execute("DROP OWNED BY plain; DROP ROLE plain")


def test_the_ddl_builds_concurrently_by_default(database: Database) -> None:
    """Statement by statement, as psql runs it; without a role the grants are comments."""
    with Connection.connect(database.admin_dsn, autocommit=True) as conn:
        saver = AuroraSaver(conn)
        for statement in saver.ddl().split(";\n\n"):
            conn.execute(statement)
        assert len(SaverSide(True, database).sql(INDEXES)) == 3
        assert saver.ddl().count("INDEX CONCURRENTLY") == 3


def test_s3_without_autocommit_it_is_committed(saver_side: SaverSide) -> None:
    """The parent fails, half-way; and the connection stays as its owner made it."""
    with Connection.connect(saver_side.database.owner_dsn) as conn:
        saver: Any = saver_side.saver_class(conn)
        with saver_side.only_ours(psycopg.errors.ActiveSqlTransaction):
            saver.setup()
            assert not conn.autocommit
            assert len(saver_side.sql(INDEXES)) == 3
        conn.rollback()


def test_indexes_are_built_while_a_snapshot_is_open(saver_side: SaverSide) -> None:
    """New tables get theirs at once; the parent waits for those that have looked before."""
    with psycopg.connect(saver_side.database.admin_dsn) as snapshot:
        snapshot.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        snapshot.execute("SELECT 1 FROM pg_class")
        dsn = psycopg.conninfo.make_conninfo(
            saver_side.database.owner_dsn, options="-c statement_timeout=3000"
        )
        with (
            Connection.connect(dsn, autocommit=True) as conn,
            saver_side.only_ours(psycopg.errors.QueryCanceled),
        ):
            saver_side.saver_class(conn).setup()


def test_a_schema_of_its_own(database: Database) -> None:
    """Every statement speaks to it, whatever its name holds."""
    schema = 'a "schema" 100% \\1'
    with Connection.connect(database.owner_dsn, autocommit=True) as conn:
        saver = AuroraSaver(conn, schema=schema)
        saver.setup()
        config = put(saver, thread("t"), {"a": [1]}, v=2, metadata={"run_id": "run"})
        saver.put_writes(config, [("__pregel_tasks", "send"), ("a", [2])], "task")
        child = put(saver, config, {"a": [3]}, versions={"a": "2"}, v=2)
        assert values_of(saver, child) == {"a": [3], "__pregel_tasks": ["send"]}
        assert len(list(saver.list(None))) == 2
        history = saver.get_delta_channel_history(config=child, channels=["a"])
        assert history == {"a": {"seed": [1], "writes": [("task", "a", [2])]}}
        saver.copy_thread("t", "u")
        saver.delete_for_runs(["run"])
        saver.prune(["t"])
        saver.prune()
        saver.prune(["t"], strategy="delete")
        assert [it.config["configurable"]["thread_id"] for it in saver.list(None)] == ["u"]
        saver.delete_thread("u")
        names = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, "checkpoints"))
        assert conn.execute(names).fetchone() == (0,)
        assert conn.execute("SELECT to_regclass('public.checkpoints')").fetchone() == (None,)


def test_the_metadata_is_indexed_on_request(database: Database) -> None:
    side = SaverSide(True, database)
    with side.saver() as saver:
        saver.setup(metadata_index=True)
        assert ("checkpoints_metadata_idx",) in side.sql(INDEXES)
        put(saver, thread("t"), metadata={"run_id": "run"})
        assert len(list(saver.list(None, filter={"run_id": "run"}))) == 1


async def test_missing_tables_are_said_to_be_missing(database: Database) -> None:
    with (
        AuroraSaver.from_conn_string(database.owner_dsn) as saver,
        pytest.raises(SchemaMissingError, match=r"run setup\(\)"),
    ):
        saver.get_tuple(thread("t"))
    async with AsyncAuroraSaver.from_conn_string(database.owner_dsn) as asyncio_saver:
        with pytest.raises(SchemaMissingError, match=r"run setup\(\)"):
            await asyncio_saver.aget_tuple(thread("t"))
