"""Writers and readers while links are cut and backends killed: callers see none of it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from tests.support.database import Database
from tests.support.store_kinds import Letters, arguments

NS = ("load",)
WRITERS, READERS, FAULTS = 4, 4, 12
EVERY_S = 0.15


class Record:
    """What callers were told: the number each key was last acknowledged with, and how often."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, int] = {}
        self.reads = 0


@contextmanager
def faults(database: Database) -> Iterator[threading.Event]:
    """Cuts every link, then kills every backend, in turn; the event is set at the end."""
    ended = threading.Event()
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"

    def disturb() -> None:
        with psycopg.connect(database.admin_dsn, autocommit=True) as conn:
            for turn in range(FAULTS):
                ended.wait(EVERY_S)
                if turn % 2:
                    database.cluster.cut_connections()
                else:
                    conn.execute(kill, (database.cluster.user,))
        ended.set()

    thread = threading.Thread(target=disturb)
    thread.start()
    yield ended
    thread.join()


def settings(database: Database, model: Letters) -> dict[str, Any]:
    index = {"dims": model.dims, "embed": model, "fields": ["text"]}
    return arguments(database, index=index)


def value(writer: int, number: int) -> dict[str, Any]:
    return {"text": f"{writer} wrote {number}", "number": number}


def check(record: Record, stored: dict[str, int], model: Letters) -> None:
    """Every acknowledged write is there, and was embedded once."""
    assert stored == record.acknowledged
    assert record.reads > FAULTS
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

        with faults(database) as ended:
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

        with faults(database) as ended:
            await asyncio.gather(
                *(write(n, ended) for n in range(WRITERS)),
                *(read(n, ended) for n in range(READERS)),
            )
        check(record, {i.key: i.value["number"] for i in await store.asearch(NS)}, model)
