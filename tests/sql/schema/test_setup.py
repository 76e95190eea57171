"""setup(): what it makes, with which rights, and what the parent makes of it."""

import hashlib
import logging

import psycopg
import pytest
from langgraph.store.postgres import base as upstream
from psycopg import errors, sql

from langgraph_aurora_store.config import IndexSettings
from langgraph_aurora_store.errors import SchemaError, SchemaMissingError
from langgraph_aurora_store.sql.flow import Transaction
from langgraph_aurora_store.sql.schema.drift import check
from langgraph_aurora_store.sql.schema.setup import setup
from langgraph_aurora_store.sql.store_tables import EXTRA_COLUMNS, StoreTables
from tests.support.flow_runner import drive
from tests.support.relations import (
    PARENT_INDEX,
    THREE,
    WITH_VECTORS,
    connect,
    index_definition,
    names,
    parent,
    relations,
    versions,
)

ODD_SCHEMA = 'agents\' "memory" 100%'


@pytest.fixture
def owner(database):
    """A connection of the role that owns the database."""
    with connect(database.owner_dsn) as conn:
        yield conn


@pytest.fixture
def admin(database):
    """A connection of the superuser."""
    with connect(database.admin_dsn) as conn:
        yield conn


@pytest.fixture
def plain_role(database, admin):
    """A DSN under which one may read and write rows and nothing else."""
    admin.execute("CREATE ROLE plain")
    yield psycopg.conninfo.make_conninfo(database.admin_dsn, options="-c role=plain")
    admin.execute("DROP OWNED BY plain")
    admin.execute("DROP ROLE plain")


def test_what_the_parent_does_is_what_we_know_of_it():
    """An upgrade of the parent that adds or changes a migration has to be looked at here."""
    texts = [*upstream.MIGRATIONS, *(it.sql for it in upstream.VECTOR_MIGRATIONS)]
    known = "42636d1ef1dee6aa"
    assert (len(upstream.MIGRATIONS), len(upstream.VECTOR_MIGRATIONS)) == (4, 3)
    assert hashlib.sha256("".join(texts).encode()).hexdigest().startswith(known)


def test_the_parent_opens_what_we_made(database, owner):
    """Its setup() makes nothing, and it reads and writes as on its own tables."""
    drive(setup(WITH_VECTORS), owner)
    made = relations(owner)
    with parent(database.owner_dsn) as store:
        store.setup()
        store.put(("a",), "k", {"text": "hello"})
        assert [item.key for item in store.search(("a",), query="hello")] == ["k"]
    assert relations(owner) == made
    assert versions(owner, "store_migrations") == [0, 1, 2, 3]
    assert versions(owner, "vector_migrations") == [0, 1, 2]


def test_we_complete_what_the_parent_made(database, owner):
    """Its tables and rows stay what they are, ours is added, and the parent still runs."""
    with parent(database.owner_dsn) as store:
        store.setup()
        store.put(("a",), "k", {"text": "hello"})
        made = {row[3] for row in relations(owner)}
        drive(setup(WITH_VECTORS), owner)
        drive(check(WITH_VECTORS), owner)
        assert made <= {row[3] for row in relations(owner)}
        assert store.get(("a",), "k").value == {"text": "hello"}
        store.setup()
        store.put(("a",), "k", {"text": "again"})
        assert store.search(("a",), query="again")[0].value == {"text": "again"}


def test_a_database_of_the_parent_alone_asks_for_setup(database, owner):
    """The columns we add are missing there, and the error says which and what to run."""
    with parent(database.owner_dsn) as store:
        store.setup()
    with pytest.raises(SchemaMissingError, match=r"store \(lifetime\).*run setup\(\) once"):
        drive(check(WITH_VECTORS), owner)


def test_an_empty_database_asks_for_setup(owner):
    """The first use of a store says what is missing instead of 'relation does not exist'."""
    with pytest.raises(SchemaMissingError, match=r"store, .*run setup\(\) once") as caught:
        drive(check(StoreTables()), owner)
    assert isinstance(caught.value, psycopg.ProgrammingError)


def test_our_columns_stay_empty_where_the_parent_writes(database, owner):
    """Each column we add is nullable: the parent does not know it."""
    drive(setup(WITH_VECTORS), owner)
    with parent(database.owner_dsn) as store:
        store.put(("a",), "k", {"text": "hello"})
    for added in EXTRA_COLUMNS:
        column = sql.Identifier(added.name)
        query = sql.SQL("SELECT {} FROM {}").format(column, sql.Identifier(added.table))
        assert owner.execute(query).fetchall() == [(None,)]


def test_a_second_setup_writes_nothing(owner):
    """It passes in a session that may only read, as on a replica."""
    drive(setup(WITH_VECTORS), owner)
    owner.execute("SET default_transaction_read_only = on")
    drive(setup(WITH_VECTORS), owner)


def test_first_setup_on_a_reader_names_the_writer(owner):
    """What is missing cannot be made there, and the server's reason is in the message."""
    owner.execute("SET default_transaction_read_only = on")
    with pytest.raises(SchemaError, match="read-only transaction; connect to the cluster's writer"):
        drive(setup(WITH_VECTORS), owner)


def test_setup_needs_no_right_to_create_when_all_is_there(owner, plain_role):
    """A role that may only read and write rows can run the same code as the owner."""
    drive(setup(WITH_VECTORS), owner)
    owner.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO plain")
    with connect(plain_role) as conn:
        drive(setup(WITH_VECTORS), conn)
        drive(check(WITH_VECTORS), conn)


def test_a_missing_right_is_named_with_what_an_administrator_runs(plain_role):
    """The server's reason, and ddl() as the way out."""
    with (
        connect(plain_role) as conn,
        pytest.raises(SchemaError, match=r"permission denied for schema public.*ddl\(\)") as caught,
    ):
        drive(setup(StoreTables()), conn)
    assert isinstance(caught.value.__cause__, errors.InsufficientPrivilege)


def test_a_missing_extension_is_installed_or_asked_for(admin, owner):
    """Who may not install it is told the one statement that an administrator runs."""
    admin.execute("DROP EXTENSION vector")
    with pytest.raises(SchemaError, match=r"administrator runs.*CREATE EXTENSION vector"):
        drive(setup(WITH_VECTORS), owner)
    drive(setup(WITH_VECTORS), admin)
    assert index_definition(admin, "store_vectors_embedding_idx")


def test_pgvector_may_live_off_the_search_path(admin, owner):
    """Its types are found in whatever schema the extension was installed."""
    admin.execute("CREATE SCHEMA extensions; GRANT USAGE ON SCHEMA extensions TO PUBLIC")
    admin.execute("ALTER EXTENSION vector SET SCHEMA extensions")
    drive(setup(WITH_VECTORS), owner)
    assert "extensions.vector_cosine_ops" in index_definition(owner, "store_vectors_embedding_idx")


@pytest.mark.parametrize(
    ("version", "iterative"),
    [("0.5.1", False), ("0.7.4", False), ("0.8.0", True), ("0.10.1", True)],
)
def test_the_installed_version_decides_on_iterative_scans(admin, owner, version, iterative):
    """The extension is not upgraded with the engine, so what counts is this database's."""
    drive(setup(WITH_VECTORS), owner)
    admin.execute("UPDATE pg_extension SET extversion = %s WHERE extname = 'vector'", (version,))
    assert drive(check(WITH_VECTORS), owner).iterative_scan is iterative


def test_a_pgvector_without_halfvec_is_named(admin, owner):
    """The upgrade is a statement that the message holds."""
    admin.execute("UPDATE pg_extension SET extversion = '0.6.2' WHERE extname = 'vector'")
    halves = StoreTables(index=IndexSettings(dims=3, vector_type="halfvec"))
    with pytest.raises(SchemaError, match=r"pgvector is 0.6.2.*ALTER EXTENSION vector UPDATE"):
        drive(setup(halves), owner)


@pytest.mark.parametrize("schema", ["memories", ODD_SCHEMA])
def test_schema_places_everything(owner, schema):
    """The schema is created, and the search path's stays empty."""
    before = names(owner)
    tables = StoreTables(schema=schema, index=THREE)
    drive(setup(tables), owner)
    drive(check(tables), owner)
    drive(setup(tables), owner)
    assert names(owner) == before
    assert {"store", "store_vectors", "store_vectors_prefix_idx"} <= names(owner, schema)


def test_schemas_of_one_database_do_not_know_each_other(owner):
    """Each has its own tables, with vectors of its own length."""
    for schema, dims in (("one", 3), ("two", 4)):
        drive(setup(StoreTables(schema=schema, index=IndexSettings(dims=dims))), owner)
    drive(check(StoreTables(schema="one", index=THREE)), owner)


def test_a_store_on_the_search_path_is_completed_where_it_is(database, owner):
    """The parent's tables in a later schema of the search path get ours beside them."""
    with parent(database.owner_dsn) as store:
        store.setup()
    owner.execute("CREATE SCHEMA app")
    with connect(database.owner_dsn, options="-c search_path=app,public") as conn:
        drive(setup(WITH_VECTORS), conn)
        drive(check(WITH_VECTORS), conn)
    assert names(owner, "app") == set()


def test_no_schema_to_be_in_is_an_error(owner):
    """A search path that leads nowhere is told apart from missing tables."""
    owner.execute("SET search_path = nowhere")
    with pytest.raises(SchemaError, match="search path; pass schema="):
        drive(setup(StoreTables()), owner)


def test_another_programs_store_table_is_left_alone(owner):
    """A table of that name that is not LangGraph's is not touched, but named."""
    owner.execute("CREATE TABLE store (id int, address text)")
    before = relations(owner)
    for flow in (setup, check):
        with pytest.raises(SchemaError, match=r"not a LangGraph store's; pass schema="):
            drive(flow(StoreTables()), owner)
    assert relations(owner) == before


def test_3072_dims_are_halves_with_an_index(owner):
    """What is too long for an index on vector is stored as halfvec and indexed."""
    tables = StoreTables(index=IndexSettings.from_config({"dims": 3072}))
    drive(setup(tables), owner)
    drive(check(tables), owner)
    assert "halfvec_cosine_ops" in index_definition(owner, "store_vectors_embedding_idx")


def test_build_parameters_reach_the_index(owner):
    """m and ef_construction are pgvector's."""
    index = IndexSettings(dims=3, m=8, ef_construction=32, distance="inner_product")
    drive(setup(StoreTables(index=index)), owner)
    definition = index_definition(owner, "store_vectors_embedding_idx")
    assert "hnsw (embedding vector_ip_ops) WITH (m='8', ef_construction='32')" in definition


def test_an_index_is_built_with_care_unless_told_otherwise(owner):
    """With pgvector's 64, one in twenty items unlike all others has no way to it."""
    drive(setup(StoreTables(index=IndexSettings(dims=3, m=40))), owner)
    definition = index_definition(owner, "store_vectors_embedding_idx")
    assert "hnsw (embedding vector_cosine_ops) WITH (m='40', ef_construction='200')" in definition
    found = drive(check(StoreTables(index=IndexSettings(dims=3))), owner)
    assert (found.built_with("ef_construction"), found.built_with("lists")) == (200, None)


def test_flat_builds_no_approximate_index(database, owner):
    """Nor does it keep a later change of mind from building one, in the parent's record too."""
    flat = StoreTables(index=IndexSettings(dims=3, kind="flat"))
    drive(setup(flat), owner)
    drive(check(flat), owner)
    assert index_definition(owner, "store_vectors_embedding_idx") is None
    with parent(database.owner_dsn, ann_index_config={"kind": "flat"}) as store:
        store.setup()
    drive(setup(WITH_VECTORS), owner)
    assert index_definition(owner, "store_vectors_embedding_idx")


def fill(conn, count):
    """Rows with vectors, as the parent writes them."""
    conn.execute(
        """
        WITH items AS (
            INSERT INTO store (prefix, key, value) SELECT 'a', i::text, '{}'
            FROM generate_series(1, %s) AS i RETURNING prefix, key
        )
        INSERT INTO store_vectors (prefix, key, field_name, embedding)
        SELECT prefix, key, '$', ARRAY[random(), random(), random()]::real[]::vector FROM items
        """,
        (count,),
    )


def test_ivfflat_waits_for_vectors(owner, caplog):
    """Lists made of nothing find nothing: the build is put off, with a warning that says so."""
    tables = StoreTables(index=IndexSettings(dims=3, kind="ivfflat"))
    drive(setup(tables), owner)
    assert "not built yet" in caplog.text
    assert "500 vectors" in caplog.text
    assert index_definition(owner, "store_vectors_embedding_idx") is None
    fill(owner, 500)
    caplog.clear()
    drive(setup(tables), owner)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "WITH (lists='10')" in index_definition(owner, "store_vectors_embedding_idx")
    assert versions(owner, "vector_migrations") == [0, 1, 2]


def test_ivfflat_grown_large_is_no_duty_of_a_plain_role(owner, plain_role, caplog):
    """A role that may not build the index still starts, and the log holds the statement."""
    tables = StoreTables(index=IndexSettings(dims=3, kind="ivfflat", lists=2))
    drive(setup(tables), owner)
    fill(owner, 100)
    owner.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain")
    caplog.clear()
    with connect(plain_role) as conn:
        drive(setup(tables), conn)
    (warning,) = [it for it in caplog.records if it.levelno == logging.WARNING]
    owner.execute(warning.getMessage().partition("run: ")[2].partition(";")[0])
    drive(check(tables), owner)
    assert index_definition(owner, "store_vectors_embedding_idx")


def test_a_store_without_index_makes_no_vectors(admin):
    """Nor does it need pgvector."""
    admin.execute("DROP EXTENSION vector")
    drive(setup(StoreTables()), admin)
    drive(check(StoreTables()), admin)
    assert "store_vectors" not in names(admin)


def test_vectors_come_later(owner):
    """A store that gets an index configuration later is completed by the next setup()."""
    drive(setup(StoreTables()), owner)
    drive(setup(WITH_VECTORS), owner)
    drive(check(WITH_VECTORS), owner)


def test_first_use_costs_one_round_trip(owner):
    """All that has to be known is asked at once."""
    drive(setup(WITH_VECTORS), owner)
    steps = []
    drive(check(WITH_VECTORS), owner, seen=steps)
    assert [type(step) for step in steps] == [Transaction]


def test_a_missing_index_is_a_warning_at_first_use(owner, caplog):
    """The store works without it, so it is not refused, but warned of."""
    drive(setup(WITH_VECTORS), owner)
    owner.execute("DROP INDEX store_vectors_prefix_idx")
    drive(check(WITH_VECTORS), owner)
    assert "store_vectors_prefix_idx is missing or invalid" in caplog.text


def test_autocommit_is_asked_for(database):
    """An index cannot be built concurrently inside the caller's transaction."""
    with parent(database.owner_dsn, ann_index_config={"kind": "flat"}) as store:
        store.setup()
    with (
        psycopg.connect(database.owner_dsn) as conn,
        pytest.raises(SchemaError, match="autocommit=True"),
    ):
        drive(setup(WITH_VECTORS), conn)


def test_parent_index_configuration_is_ours():
    """The mapping the parent takes is read as it is."""
    assert IndexSettings.from_config(PARENT_INDEX).fields == ("text",)
