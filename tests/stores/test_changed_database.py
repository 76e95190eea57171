"""A database that changes under a store that has looked at it: tables, extension, all of it."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest

from langgraph_aurora_store import AuroraStore
from langgraph_aurora_store.connect.pool_settings import PoolSettings
from langgraph_aurora_store.errors import SchemaError, SchemaMissingError
from tests.support.database import Database
from tests.support.store_kinds import CLUSTER_KINDS, DIMS, KINDS, Letters, Twin, opened

NS = ("chat", "ada")
TABLES = "store_vectors, store, store_migrations, vector_migrations, aurora_store_migrations"
RECREATED = f"DROP TABLE {TABLES}; DROP EXTENSION vector; CREATE EXTENSION vector"

Settings = dict[str, Any]


def settings() -> Settings:
    return {"index": {"embed": Letters(), "dims": DIMS, "fields": ["text"]}}


def change(database: Database, statements: str) -> None:
    with psycopg.connect(database.admin_dsn, autocommit=True) as admin:
        admin.execute(statements)


def set_up_by_another(database: Database) -> None:
    with AuroraStore.from_conn_string(database.owner_dsn, **settings()) as other:
        other.setup()


@pytest.fixture(params=KINDS + CLUSTER_KINDS)
async def twin(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[Twin]:
    """A store of each kind that has written, read and searched."""
    async with opened(request.param, database.cluster, database.name, **settings()) as twin:
        await twin.setup()
        await used(twin)
        yield twin


async def used(twin: Twin) -> None:
    """Fails unless each kind of operation works."""
    await twin.put(NS, "k", {"text": "likes cats"})
    assert (await twin.get(NS, "k")).key == "k"
    assert [item.key for item in await twin.search(NS, query="cats")] == ["k"]


async def test_an_older_pgvector_is_asked_for_what_it_knows(
    twin: Twin, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says once how to get what it lacks."""
    change(database, "UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    await twin.setup()
    for i in range(5):
        await twin.put(NS, f"k{i}", {"text": f"likes cats {i}"})
    assert len(await twin.search(NS, query="cats", limit=5)) == 5
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    (told,) = [record.getMessage() for record in warnings if "pgvector" in record.name + record.msg]
    assert "pgvector 0.7.4" in told
    assert "ALTER EXTENSION vector UPDATE" in told
    tables = twin.store._operations._ready
    assert tables is not None
    assert tables.iterative_scan is False


@pytest.mark.parametrize("kind", KINDS)
async def test_a_role_without_rights_to_vectors_writes_items(kind: str, database: Database) -> None:
    """A store without an index needs none to put, also beside vectors of another store."""
    set_up_by_another(database)
    change(database, f'REVOKE ALL ON store_vectors FROM "{database.cluster.user}"')
    async with opened(kind, database.cluster, database.name) as plain:
        for value in ("one", "two"):
            await plain.put(NS, "k", {"text": value})
        assert (await plain.get(NS, "k")).value == {"text": "two"}


OPERATIONS: dict[str, Callable[[Twin], Any]] = {
    "get": lambda twin: twin.get(NS, "k"),
    "put": lambda twin: twin.put(NS, "k", {"text": "other"}),
    "search": lambda twin: twin.search(NS, query="cats"),
    "list": lambda twin: twin.list_namespaces(),
    "count": lambda twin: twin.count(NS),
    "delete": lambda twin: twin.delete_namespace(NS),
    "sweep": lambda twin: twin.sweep_ttl(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_tables_that_went_are_named(twin: Twin, database: Database, operation: str) -> None:
    """As by a store that finds none at its first use; which database, and what to run."""
    change(database, f"DROP TABLE {TABLES}")
    with pytest.raises(SchemaMissingError, match=r"setup\(\)") as caught:
        await OPERATIONS[operation](twin)
    assert repr(database.name) in str(caught.value)


async def test_tables_made_again_serve_the_same_store(twin: Twin, database: Database) -> None:
    """Also by another process, whose pgvector has other OIDs."""
    change(database, RECREATED)
    with pytest.raises(SchemaMissingError):
        await twin.get(NS, "k")
    set_up_by_another(database)
    await used(twin)


async def test_setup_of_the_same_store_mends_it(twin: Twin, database: Database) -> None:
    """Without a first failure to learn from."""
    change(database, RECREATED)
    await twin.setup()
    await used(twin)


async def test_types_that_changed_cost_one_call(twin: Twin, database: Database) -> None:
    """Tables and types were replaced before anybody asked: told so once, and well again."""
    change(database, RECREATED)
    set_up_by_another(database)
    with pytest.raises(SchemaError, match="once more"):
        await twin.put(NS, "k", {"text": "likes cats"})
    await used(twin)


@pytest.mark.parametrize("kind", CLUSTER_KINDS)
async def test_a_closed_store_inspects_again(database: Database, kind: str) -> None:
    """What it connects to next may be another cluster of the same name."""
    async with opened(
        kind, database.cluster, database.name, pool=PoolSettings(min_size=0), **settings()
    ) as twin:
        await twin.setup()
        await used(twin)
        await twin.close()
        change(database, RECREATED)
        set_up_by_another(database)
        await used(twin)
