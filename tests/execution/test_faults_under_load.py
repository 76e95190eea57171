"""Writers and readers while the cluster fails over, loses replies and links: callers see none."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from langgraph_aurora_store.errors import ReadOnlyEndpointError, SchemaMissingError
from langgraph_aurora_store.local import LocalAurora
from tests.support.database import Database
from tests.support.store_kinds import CLUSTER_KINDS, Letters, Twin, arguments, opened

NS = ("load",)
WRITERS, READERS = 4, 4
EVERY_S = 0.25
READER = "memory.cluster-ro-abc123.us-east-1.rds.amazonaws.com"
NUMBERS = itertools.count()


class Record:
    """What callers were told: the number each key was last acknowledged with, and how often."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, int] = {}
        self.reads = 0


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalAurora]:
    """A cluster of its own, as its writer changes."""
    version = request.config.getoption("--server")
    with LocalAurora(readers=1, reader_endpoint=READER, version=version, export=False) as cluster:
        yield cluster


@pytest.fixture
def database(cluster: LocalAurora) -> Iterator[Database]:
    name = f"load_{next(NUMBERS)}"
    cluster.create_database(name)
    yield Database(cluster, name)
    cluster.reset()


def kill_backends(cluster: LocalAurora) -> None:
    with psycopg.connect(cluster.admin_dsn, autocommit=True) as conn:
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"
        conn.execute(kill, (cluster.user,))


def fail_over(cluster: LocalAurora, demoted: Any) -> None:
    if not cluster.has_reader:
        cluster.add_reader()
    cluster.failover(demoted=demoted, endpoint_delay_s=0.2)


KINDS: list[Callable[[LocalAurora], object]] = [
    lambda cluster: cluster.cut_connections(),
    kill_backends,
    lambda cluster: cluster.drop_reply_of_commit(2),
    lambda cluster: fail_over(cluster, "read-only"),
    lambda cluster: cluster.cut_connections("close"),
    lambda cluster: cluster.restart("fast"),
    lambda cluster: fail_over(cluster, "gone"),
]


@contextmanager
def faults(cluster: LocalAurora) -> Iterator[threading.Event]:
    """One fault of each kind in turn; the event is set at the end."""
    ended = threading.Event()

    def disturb() -> None:
        try:
            for fault in KINDS:
                ended.wait(EVERY_S)
                fault(cluster)
            ended.wait(EVERY_S)
        finally:
            ended.set()

    dropped = cluster.replies_dropped
    thread = threading.Thread(target=disturb)
    thread.start()
    yield ended
    thread.join()
    assert cluster.replies_dropped > dropped


def settings(database: Database, model: Letters) -> dict[str, Any]:
    index = {"dims": model.dims, "embed": model, "fields": ["text"]}
    return arguments(database, index=index)


def value(writer: int, number: int) -> dict[str, Any]:
    return {"text": f"{writer} wrote {number}", "number": number}


def check(record: Record, stored: dict[str, int], model: Letters) -> None:
    """Every acknowledged write is there, and was embedded once."""
    assert stored == record.acknowledged
    assert record.reads > len(KINDS)
    texts = [text for request in model.documents for text in request]
    assert len(texts) == len(set(texts)) >= sum(record.acknowledged.values())


def test_threads_see_no_fault(database: Database) -> None:
    """A thread that raised would leave its failure in the list."""
    model, record, failures = Letters(), Record(), list[BaseException]()

    with AuroraStore.from_cluster(**settings(database, model)) as store:
        store.setup()

        def write(writer: int, ended: threading.Event) -> None:
            number = 0
            while not ended.is_set():
                number += 1
                store.put(NS, f"k{writer}", value(writer, number))
                record.acknowledged[f"k{writer}"] = number

        def read(_: int, ended: threading.Event) -> None:
            while not ended.is_set():
                store.search(NS, limit=5)
                record.reads += 1

        def noted(work: Any, *args: Any) -> None:
            try:
                work(*args)
            except BaseException as exc:
                failures.append(exc)

        with faults(database.cluster) as ended:
            works = [(write, n) for n in range(WRITERS)] + [(read, n) for n in range(READERS)]
            threads = [threading.Thread(target=noted, args=(*work, ended)) for work in works]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert failures == []
        check(record, {i.key: i.value["number"] for i in store.search(NS)}, model)


async def test_tasks_see_no_fault(database: Database) -> None:
    """Also those whose operations travel together."""
    model, record = Letters(), Record()
    async with AsyncAuroraStore.from_cluster(**settings(database, model)) as store:
        await store.setup()

        async def write(writer: int, ended: threading.Event) -> None:
            number = 0
            while not ended.is_set():
                number += 1
                await store.aput(NS, f"k{writer}", value(writer, number))
                record.acknowledged[f"k{writer}"] = number

        async def read(_: int, ended: threading.Event) -> None:
            while not ended.is_set():
                await store.asearch(NS, limit=5)
                record.reads += 1

        with faults(database.cluster) as ended:
            await asyncio.gather(
                *(write(n, ended) for n in range(WRITERS)),
                *(read(n, ended) for n in range(READERS)),
            )
        check(record, {i.key: i.value["number"] for i in await store.asearch(NS)}, model)


async def replicated(store: Twin) -> None:
    """Wait until the reader has the tables and the item."""
    while True:
        with suppress(SchemaMissingError):
            if await store.get(NS, "k") is not None:
                return
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", CLUSTER_KINDS)
async def test_put_by_a_readers_own_name_is_refused_at_once(kind: str, database: Database) -> None:
    """In milliseconds, with what to pass; reads are served, with and without a TTL."""
    cluster = database.cluster
    if not cluster.has_reader:
        cluster.add_reader()
    async with opened(kind, cluster, database.name) as store:
        await store.setup()
        await store.put(NS, "k", value(1, 1), ttl=60)
    at_reader = {"endpoint": READER, "port": cluster.reader_port}
    async with opened(kind, cluster, database.name, cluster="localhost", **at_reader) as store:
        await replicated(store)
        began = time.monotonic()
        with pytest.raises(ReadOnlyEndpointError, match="serves reads only"):
            await store.put(NS, "other", value(1, 2))
        assert time.monotonic() - began < 1
        assert [item.key for item in await store.search(NS)] == ["k"]
