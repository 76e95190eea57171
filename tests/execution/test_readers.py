"""Reads served by a reader: what a store has seen is never unseen, and no reader costs no error."""

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from langgraph.store.base import GetOp, PutOp

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.execution.read_routing import ReadSession
from langgraph_aurora_store.local import LocalAurora
from tests.support.database import Database
from tests.support.store_kinds import CLUSTER_KINDS, Letters, Twin, opened

NS = ("notes",)
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalAurora]:
    """A cluster of its own, with a reader."""
    version = request.config.getoption("--server")
    with LocalAurora(readers=1, version=version, export=False) as cluster:
        yield cluster


@pytest.fixture
def database(cluster: LocalAurora) -> Iterator[Database]:
    if not cluster.has_reader:
        cluster.add_reader()
    name = f"readers_{next(NUMBERS)}"
    cluster.create_database(name)
    yield Database(cluster, name)
    cluster.reset()
    cluster.reader_lag_s = 0


@pytest.fixture(params=CLUSTER_KINDS)
async def store(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[Twin]:
    """A store that is set up, and reads from the reader."""
    index = {"dims": 8, "embed": Letters(), "fields": ["text"]}
    settings: Any = {"index": index, **reading(database)}
    async with opened(request.param, database.cluster, database.name, **settings) as twin:
        await twin.setup()
        yield twin


def reading(database: Database) -> dict[str, Any]:
    return {"read_from": "reader", "reader_port": database.cluster.reader_port}


def sessions(database: Database) -> int:
    """How many of the store's sessions the reader has."""
    with psycopg.connect(database.cluster.reader_admin_dsn, autocommit=True) as conn:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        ((count,),) = conn.execute(query, (database.name,))
        return int(count)


async def test_memory_is_found_by_the_search_after_its_put_whatever_the_lag(
    store: Twin, database: Database
) -> None:
    """A reader of half a second behind: 40 of 40, by get and by both kinds of search."""
    database.cluster.reader_lag_s = 0.5
    for n in range(40):
        await store.put(NS, f"k{n}", {"text": f"note {n}", "n": n})
        assert (await store.get(NS, f"k{n}")).value["n"] == n
        assert (await store.search(NS, filter={"n": n}))[0].key == f"k{n}"
        found = await store.search(NS, query=f"note {n}", limit=40)
        assert f"k{n}" in {item.key for item in found}
        assert await store.count(NS) == n + 1


async def test_reads_go_to_the_reader_once_it_has_caught_up(
    store: Twin, database: Database
) -> None:
    """A hundred reads run no statement on the writer."""
    for n in range(5):
        await store.put(NS, f"k{n}", {"text": "likes tea"})
    while not sessions(database):
        await store.search(NS)
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    last = last_statement_on_writer(database)
    for _ in range(50):
        assert len(await store.search(NS, query="tea")) == 5
        assert (await store.get(NS, "k1")).value == {"text": "likes tea"}
    assert last_statement_on_writer(database) == last


def last_statement_on_writer(database: Database) -> object:
    """When the store's sessions on the writer last began a statement."""
    query = "SELECT max(query_start) FROM pg_stat_activity WHERE datname = %s AND usename = %s"
    with psycopg.connect(database.cluster.admin_dsn, autocommit=True) as conn:
        return conn.execute(query, (database.name, database.cluster.user)).fetchone()


async def test_no_reader_is_no_error(store: Twin, database: Database) -> None:
    """It is removed while reads go on, and its endpoint leads to the writer."""
    await store.put(NS, "k", {"text": "likes tea"})
    for turn in range(30):
        if turn == 5:
            database.cluster.remove_reader()
        if turn == 20:
            database.cluster.add_reader()
        assert (await store.get(NS, "k")).value == {"text": "likes tea"}
        assert len(await store.search(NS)) == 1


@pytest.mark.parametrize("kind", CLUSTER_KINDS)
async def test_reader_that_nothing_listens_for_costs_one_call_a_moment(
    kind: str, database: Database
) -> None:
    """The writer serves the read, and for a while is asked first."""
    with socket.create_server(("localhost", 0)) as closed:
        port = closed.getsockname()[1]
    settings: Any = {"read_from": "reader", "reader_port": port}
    async with opened(kind, database.cluster, database.name, **settings) as twin:
        await twin.setup()
        began = time.monotonic()
        for n in range(20):
            await twin.put(NS, "k", {"n": n})
            assert (await twin.get(NS, "k")).value == {"n": n}
        assert time.monotonic() - began < 4


async def test_failover_with_a_reader_is_no_error(store: Twin, database: Database) -> None:
    """The reader becomes the writer, and the old writer the reader."""
    for n in range(30):
        if n == 10:
            database.cluster.failover(demoted="read-only")
        await store.put(NS, "k", {"text": f"note {n}"})
        assert (await store.get(NS, "k")).value == {"text": f"note {n}"}


async def test_a_batch_that_writes_reads_from_the_writer(store: Twin, database: Database) -> None:
    """Its reads see what was before it, and nothing older."""
    database.cluster.reader_lag_s = 0.5
    await store.put(NS, "k", {"text": "one"})
    for text in ("two", "three"):
        before = (await store.get(NS, "k")).value
        found, _ = await store.batch([GetOp(NS, "k"), PutOp(NS, "k", {"text": text})])
        assert found.value == before
    assert (await store.get(NS, "k")).value == {"text": "three"}


def test_session_accepts_what_is_as_new_as_what_it_has_seen() -> None:
    """Positions never go back; without any, the window decides."""
    now = [100.0]
    session = ReadSession(5.0, clock=lambda: now[0])
    assert session.may_ask_reader()
    assert session.accepts(is_standby=True, replayed=None)
    session.observed(70)
    assert not session.accepts(is_standby=True, replayed=69)
    assert not session.may_ask_reader()
    now[0] += 0.1
    assert session.may_ask_reader()
    assert session.accepts(is_standby=True, replayed=80)
    assert not session.accepts(is_standby=True, replayed=79)  # another reader, further behind
    assert session.accepts(is_standby=False, replayed=None)
    assert not session.accepts(is_standby=True, replayed=None)
    now[0] += 5
    assert session.accepts(is_standby=True, replayed=None)
    session.observed(None)
    assert not session.may_ask_reader()
    now[0] += 5
    assert session.may_ask_reader()
    session.failed(psycopg.OperationalError("gone"))
    assert not session.may_ask_reader()


@pytest.mark.parametrize("cls", [AuroraStore, AsyncAuroraStore])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"read_from": "replica"}, "read_from='replica'"),
        ({"reader_port": 5433}, "read_from='reader'"),
        ({"reader_endpoint": "x.y"}, "read_from='reader'"),
        ({"read_from": "reader", "reader_port": 0}, "port"),
        ({"read_from": "reader", "read_your_writes_s": -1}, "read_your_writes_s"),
    ],
)
def test_what_cannot_be_meant_is_refused(cls: Any, wrong: dict[str, Any], message: str) -> None:
    """When the store is made, naming the parameter."""
    with pytest.raises(ConfigurationError, match=message):
        cls.from_cluster("db", user="u", database="d", region="us-east-1", **wrong)
