"""Through poolers that give each transaction another of the server's sessions."""

import asyncio
import logging
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from langgraph_aurora_store.connect.connection import AuroraConnection
from langgraph_aurora_store.connect.connection_factory import connection_factory
from langgraph_aurora_store.connect.credentials import PasswordCredentials
from langgraph_aurora_store.connect.pool_health import PoolHealth
from langgraph_aurora_store.connect.pool_settings import PoolSettings
from langgraph_aurora_store.connect.tls import InsecureTlsWarning
from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.local import LocalAurora
from tests.support.database import Database
from tests.support.pgbouncer import pgbouncer
from tests.support.store_kinds import DIMS, Letters

HOST = "m.{}c0ffee.us-east-1.rds.amazonaws.com"
SESSION = """
SELECT (SELECT count(*) FROM pg_prepared_statements),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    (SELECT count(*) FROM pg_settings WHERE source = 'session'
        AND name NOT IN ('application_name', 'client_encoding'))
"""


@pytest.fixture(scope="module")
def pooler(aurora: LocalAurora) -> Iterator[int]:
    with pgbouncer(aurora) as port:
        yield port


def given(database: Database, port: int, **more: Any) -> dict[str, Any]:
    return {
        "cluster": "127.0.0.1",
        "port": port,
        "user": database.cluster.user,
        "database": database.name,
        "credentials": PasswordCredentials("p"),
        "sslmode": "disable",
        "index": {"embed": Letters(), "dims": DIMS, "fields": ["text"]},
        "pool": PoolSettings(max_size=8),
        **more,
    }


def operations(store: AuroraStore, worker: int) -> list[str]:
    """Thirty operations; the errors of those that failed, or were answered wrongly."""
    failed = []
    namespace = ("users", f"u{worker}")
    for number in range(10):
        try:
            store.put(namespace, f"k{number}", {"text": f"word {number}", "n": number})
            item = store.get(namespace, f"k{number}")
            assert item is not None, "not found"
            assert item.value["n"] == number, "another's item"
            found = store.search(namespace, query=f"word {number}", filter={"n": number})
            assert [each.key for each in found] == [f"k{number}"], "not what was searched for"
        except Exception as error:
            failed.append(repr(error))
    return failed


async def aoperations(store: AsyncAuroraStore, worker: int) -> list[str]:
    failed = []
    namespace = ("users", f"u{worker}")
    for number in range(10):
        try:
            await store.aput(namespace, f"k{number}", {"text": f"word {number}", "n": number})
            item = await store.aget(namespace, f"k{number}")
            assert item is not None, "not found"
            assert item.value["n"] == number, "another's item"
            found = await store.asearch(namespace, query=f"word {number}", filter={"n": number})
            assert [each.key for each in found] == [f"k{number}"], "not what was searched for"
        except Exception as error:
            failed.append(repr(error))
    return failed


def run(database: Database, port: int, **more: Any) -> list[str]:
    """480 operations of 16 threads, eight connections of each of two stores."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureTlsWarning)
        stores = [AuroraStore.from_cluster(**given(database, port, **more)) for _ in range(2)]
    with stores[0] as one, stores[1] as two, ThreadPoolExecutor(16) as threads:
        calls = [threads.submit(operations, (one, two)[n % 2], n) for n in range(16)]
        return [failure for call in calls for failure in call.result()]


async def arun(database: Database, port: int, **more: Any) -> list[str]:
    """The same of 16 tasks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureTlsWarning)
        stores = [AsyncAuroraStore.from_cluster(**given(database, port, **more)) for _ in range(2)]
    async with stores[0] as one, stores[1] as two:
        done = await asyncio.gather(*[aoperations((one, two)[n % 2], n) for n in range(16)])
        return [failure for failures in done for failure in failures]


def _arun(database: Database, port: int, **more: Any) -> list[str]:
    return asyncio.run(arun(database, port, **more))


@pytest.mark.parametrize("declared", [True, None], ids=["declared", "undeclared"])
@pytest.mark.parametrize("is_asyncio", [False, True], ids=["blocking", "asyncio"])
def test_every_operation_succeeds_through_a_transaction_pooler(
    database: Database, pooler: int, declared: bool | None, is_asyncio: bool
) -> None:
    """480 of 480, at an ordinary address; nothing is left in the server's sessions."""
    set_up(database)
    more: Any = {"pooler": declared}
    failed = (_arun if is_asyncio else run)(database, pooler, **more)
    assert failed == []
    with psycopg.connect(
        host="127.0.0.1", port=pooler, user="u", dbname=database.name, prepare_threshold=None
    ) as conn:
        for _ in range(8):
            assert conn.execute(SESSION).fetchone() == (0, 0, 0)
            conn.commit()


def set_up(database: Database) -> None:
    """By the server's own address."""
    index: Any = {"embed": Letters(), "dims": DIMS, "fields": ["text"]}
    with AuroraStore.from_conn_string(database.owner_dsn, index=index) as store:
        store.setup()


def test_setup_through_a_pooler_leaves_no_lock(database: Database, pooler: int) -> None:
    """So a later one on the cluster's own address has its turn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureTlsWarning)
        store = AuroraStore.from_cluster(**given(database, pooler, pooler=True))
    with store, ThreadPoolExecutor(8) as threads:
        # Other clients in between, so that setup's statements meet different sessions.
        busy = [threads.submit(_ping, pooler, database.name) for _ in range(7)]
        store.setup()
        assert all(call.result() for call in busy)
    with psycopg.connect(database.admin_dsn) as conn:
        locks = conn.execute(
            "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid"
            " WHERE l.locktype = 'advisory' AND a.datname = current_database()"
        ).fetchone()
    assert locks == (0,)
    set_up(database)


def _ping(port: int, name: str) -> bool:
    with psycopg.connect(
        host="127.0.0.1", port=port, user="u", dbname=name, prepare_threshold=None, autocommit=True
    ) as conn:
        return all(conn.execute("SELECT pg_sleep(0.002)") for _ in range(300))


def test_undeclared_pooler_is_told_of_once(
    database: Database, pooler: int, caplog: pytest.LogCaptureFixture
) -> None:
    """By the process that answers, before a statement could meet another client's; one line."""
    set_up(database)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureTlsWarning)
        store = AuroraStore.from_cluster(**given(database, pooler))
    with store, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: operations(store, n), range(8)))
    told = [r for r in caplog.records if r.levelno >= logging.WARNING]
    [warning] = [record.getMessage() for record in told]
    assert re.search(r"a pooler stands before the server.*pooler=True", warning)


def test_pooler_that_is_declared_is_not_told_of(
    database: Database, pooler: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is it looked for."""
    set_up(database)
    assert run(database, pooler, pooler=True) == []
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("is_asyncio", [False, True], ids=["blocking", "asyncio"])
def test_pooler_that_was_denied_is_recognised_by_its_first_error(
    database: Database, pooler: int, caplog: pytest.LogCaptureFixture, is_asyncio: bool
) -> None:
    """As behind an endpoint's own name: that call is tried again, and later ones are served."""
    set_up(database)
    more: Any = {"pooler": False, "pool": PoolSettings(max_size=1)}
    for _ in range(2):
        failed = (
            asyncio.run(arun(database, pooler, **more))
            if is_asyncio
            else run(database, pooler, **more)
        )
        assert failed == []
    told = [r.getMessage() for r in caplog.records if "a pooler stands before" in r.getMessage()]
    assert told


@pytest.mark.parametrize(
    ("host", "pooler", "threshold"),
    [
        (HOST.format("cluster-"), None, 1),
        (HOST.format("cluster-"), True, None),
        (HOST.format("proxy-"), None, None),
        (HOST.format("proxy-"), False, 1),
    ],
)
def test_setting_wins_over_the_endpoints_name(
    host: str, pooler: bool | None, threshold: int | None
) -> None:
    """A proxy prepares nothing by its name; what is said counts."""
    factory = connection_factory(
        host, user="u", database="d", credentials=PasswordCredentials("p"), pooler=pooler
    )
    assert factory.kwargs()["prepare_threshold"] == threshold
    assert not factory.kwargs()["target"].may_be_pooled


@pytest.mark.parametrize("cls", [AuroraStore, AsyncAuroraStore])
def test_pooler_is_a_truth(cls: type[AuroraStore | AsyncAuroraStore]) -> None:
    """Refused when made."""
    with pytest.raises(ConfigurationError, match="pooler='yes' is wrong: pass True, False"):
        cls.from_cluster("127.0.0.1", pooler="yes")  # type: ignore[arg-type]  # the point


def test_server_is_not_taken_for_a_pooler(database: Database) -> None:
    """The process that is connected to is the one that answers."""
    health = PoolHealth("p", PoolSettings())
    with AuroraConnection.connect(database.owner_dsn) as conn:
        (pid,) = conn.execute("SELECT pg_backend_pid()").fetchone() or (0,)
        health.answered(conn, pid)
    assert not health.is_pooled
