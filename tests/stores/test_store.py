"""The whole path, from a cluster's name to a memory recalled, through IAM and verified TLS."""

import asyncio
import logging
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import boto3
import orjson
import psycopg
import pytest
from langgraph.store.base import GetOp, InvalidNamespaceError
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from langgraph_aurora_store.connect.credentials import IamCredentials
from langgraph_aurora_store.connect.pool_settings import PoolSettings
from langgraph_aurora_store.errors import (
    AuroraStoreError,
    AuthenticationError,
    CertificateError,
    ConfigurationError,
    ConnectError,
    DatabaseNotFoundError,
    SchemaMissingError,
)
from langgraph_aurora_store.local import LocalAurora
from local_services.openai_service import embed
from tests.support.database import Database
from tests.support.store_kinds import arguments, in_process

NS = ("chat", "ada")
INDEX = {"embed": lambda texts: [embed(text, 16) for text in texts], "dims": 16}

Visit = Callable[..., None]


def run_blocking(changed: dict[str, Any]) -> None:
    with AuroraStore.from_cluster(**changed) as store:
        store.get(NS, "k")


def run_asyncio(changed: dict[str, Any]) -> None:
    async def use() -> None:
        async with AsyncAuroraStore.from_cluster(**changed) as store:
            await store.aget(NS, "k")

    asyncio.run(use())


@pytest.fixture(params=[run_blocking, run_asyncio], ids=["blocking", "asyncio"])
def visit(request: pytest.FixtureRequest) -> Visit:
    """Make a store with some arguments changed, and use it for the first time."""
    return lambda database, **changes: request.param(arguments(database, **changes))


# the path


def test_memory_outlives_the_process_that_made_it(database: Database) -> None:
    """What one process puts, another finds by meaning, each knowing only its environment."""
    common = """
        from langgraph_aurora_store import AuroraStore
        from tests.support.text_vectors import vector_of
        index = {"embed": lambda texts: [list(vector_of(t, 16)) for t in texts], "dims": 16}
        with AuroraStore.from_cluster(index=index) as store:
    """
    in_process(
        database,
        common
        + """
            store.setup()
            store.put(("chat", "ada"), "likes", {"content": "cloud services"})
            store.put(("chat", "ada"), "has", {"content": "two cats"})
        """,
    )
    found = in_process(
        database,
        common
        + "            print(store.search(('chat',), query='cloud services', limit=1)[0].key)",
    )
    assert found.strip() == "likes"


def test_from_cluster_contacts_nothing(database: Database) -> None:
    """Making either store opens no socket and asks AWS nothing, with embeddings configured too."""
    asked = database.cluster.describe_calls
    in_process(
        database,
        """
        import sys
        from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
        seen = []
        sys.addaudithook(lambda event, _: "socket." in event and seen.append(event))
        for embed in ("bedrock:amazon.titan-embed-text-v2:0", "openai:text-embedding-3-small"):
            AuroraStore.from_cluster(index={"embed": embed})
            AsyncAuroraStore.from_cluster(index={"embed": embed})
        assert seen == [], seen
        """,
    )
    assert database.cluster.describe_calls == asked


def test_each_new_connection_shows_a_token_of_its_own(database: Database) -> None:
    """No token is shown twice, and the cluster is looked up once."""
    cluster = database.cluster
    asked, shown = cluster.describe_calls, len(cluster.tokens)
    with (
        AuroraStore.from_cluster(**arguments(database, pool=PoolSettings(min_size=0))) as store,
        store.connection(),
    ):
        second = int(time.time())
        while int(time.time()) == second:  # a signature is of a second
            time.sleep(0.01)
        with store.connection():
            tokens = cluster.tokens[shown:]
    assert len(tokens) == len(set(tokens)) == 2
    assert cluster.describe_calls == asked + 1


def test_store_works_before_and_after_a_fork(database: Database) -> None:
    """A store made and used before a fork serves parent and child, each on its own connections."""
    out = in_process(
        database,
        """
        import os
        from langgraph_aurora_store import AuroraStore
        store = AuroraStore.from_cluster()
        store.setup()
        store.put(("a",), "k", {"by": "parent"})
        child = os.fork()
        if child == 0:
            store.put(("a",), "c", {"by": store.get(("a",), "k").value["by"] + "'s child"})
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        print(store.get(("a",), "c").value["by"], store.get(("a",), "k").value["by"])
        store.close()
        """,
    )
    assert out.strip() == "parent's child parent"


def test_a_closed_store_connects_again_when_used(database: Database) -> None:
    """close() ends the pool and not the store."""
    store = AuroraStore.from_cluster(**arguments(database))
    store.setup()
    for attempt in range(2):
        with store:
            store.put(NS, "k", {"attempt": attempt})
            assert store.get(NS, "k").value == {"attempt": attempt}


def test_async_store_serves_one_event_loop_after_another(database: Database) -> None:
    """Made outside of a loop, used under two asyncio.run() without being closed in between."""
    before = database.cluster.open_connections
    store = AsyncAuroraStore.from_cluster(**arguments(database, index=INDEX))

    async def remember(key: str) -> list[str]:
        await store.setup()
        await store.aput(NS, key, {"text": key})
        return sorted(item.key for item in await store.asearch(NS, query=key))

    async def close() -> None:
        await remember("third")
        await store.close()

    assert asyncio.run(remember("first")) == ["first"]
    assert asyncio.run(remember("second")) == ["first", "second"]
    asyncio.run(close())
    for _ in range(100):
        if database.cluster.open_connections == before:
            return
        time.sleep(0.02)  # the proxy hears of a closed socket on its own thread
    assert database.cluster.open_connections == before


def test_sixteen_processes_set_up_at_once(database: Database) -> None:
    """setup() from sixteen processes at a time succeeds in each, and the store works."""
    code = """
        from langgraph_aurora_store import AuroraStore
        index = {"embed": lambda texts: [[1.0] * 8 for _ in texts], "dims": 8}
        with AuroraStore.from_cluster(index=index) as store:
            store.setup()
            store.put(("a",), "k", {"text": "x"})
    """
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: in_process(database, code), range(16)))
    index = {"embed": lambda texts: [[1.0] * 8 for _ in texts], "dims": 8}
    with AuroraStore.from_cluster(**arguments(database, index=index)) as store:
        assert [item.key for item in store.search(("a",), query="x")] == ["k"]


# what is refused


def test_an_expired_token_is_named(visit: Visit) -> None:
    """A token that is too old fails with the server's own words, and with what to look at."""
    with (
        LocalAurora(export=False, clock=lambda: time.time() + 3600) as late,
        pytest.raises(AuthenticationError, match="PAM authentication failed") as caught,
    ):
        visit(Database(late, late.database))
    assert "clock" in str(caught.value)
    assert late.user in str(caught.value)


def test_a_wrong_secret_key_is_named(database: Database, visit: Visit) -> None:
    """A token that another key signed is refused, and the message holds no part of either."""
    keys = boto3.Session("AKIAIOSFODNN7EXAMPLE", "no-such-secret", region_name="us-east-1")
    with pytest.raises(AuthenticationError, match="rds-db:connect"):
        visit(database, credentials=IamCredentials(keys))


def test_an_unknown_user_is_named(database: Database, visit: Visit) -> None:
    """A user the cluster does not have is in the message, with the GRANT to run."""
    with pytest.raises(AuthenticationError, match=r'(?s)"nobody".*GRANT rds_iam'):
        visit(database, user="nobody")


def test_an_unknown_database_is_named(database: Database, visit: Visit) -> None:
    """The server's own reason reaches the caller."""
    with pytest.raises(DatabaseNotFoundError, match='database "nowhere" does not exist'):
        visit(replace(database, name="nowhere"))


def test_a_certificate_of_another_authority_is_refused(database: Database, visit: Visit) -> None:
    """An unknown issuer is an error that says where the current roots are published."""
    database.cluster.present(trusted=False)
    with pytest.raises(CertificateError, match="global-bundle"):
        visit(database)


def test_a_certificate_for_another_host_is_refused(database: Database, visit: Visit) -> None:
    """verify-full holds the certificate's name against the endpoint's."""
    database.cluster.present("elsewhere.example.com")
    with pytest.raises(CertificateError, match="localhost"):
        visit(database)


def test_plain_text_is_refused(database: Database, visit: Visit) -> None:
    """Switching TLS off is warned of, and the server's refusal is passed on."""
    with pytest.warns(UserWarning, match="disable"), pytest.raises(ConnectError, match="encrypt"):
        visit(database, sslmode="disable")


def test_tables_that_are_missing_are_named(database: Database, visit: Visit) -> None:
    """A store that was not set up says so, and what to run."""
    with pytest.raises(SchemaMissingError, match=r"setup\(\)"):
        visit(database)


def test_a_missing_setting_is_named_before_anything_is_contacted() -> None:
    """Parameter and variable are both in the message."""
    with pytest.raises(ConfigurationError, match="AURORA_CLUSTER"):
        AuroraStore.from_cluster(user="u", database="d")
    with pytest.raises(ConfigurationError, match="AURORA_USER"):
        AsyncAuroraStore.from_cluster("c", region="us-east-1", database="d")


def test_errors_are_the_drivers_too(database: Database, visit: Visit) -> None:
    """Code that catches psycopg.OperationalError goes on working."""
    with pytest.raises(psycopg.OperationalError) as caught:
        visit(database, user="nobody")
    assert isinstance(caught.value, AuroraStoreError)


def test_a_store_that_was_refused_serves_once_the_cause_is_mended(database: Database) -> None:
    """The same object works as soon as the role exists; nothing backs off."""
    cluster = database.cluster
    store = AuroraStore.from_cluster(**arguments(database, user="late comer"))
    with pytest.raises(AuthenticationError):
        store.open()
    cluster.create_user("late comer")
    with store, store.connection() as conn:
        assert conn.execute("SELECT current_user::text").fetchone() == ("late comer",)


# what is kept quiet


def test_no_secret_is_logged_shown_or_raised(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither logs at DEBUG, nor a repr, nor a traceback with its locals holds a secret."""
    caplog.set_level(logging.DEBUG)
    cluster = database.cluster
    spoken: list[object] = []
    with AuroraStore.from_cluster(**arguments(database, index=INDEX)) as store:
        store.setup()
        store.put(NS, "k", {"text": "a very private memory"})
        store.search(NS, query="a very private memory")
        spoken += [store, store.conn, store._operations, vars(store)]
    try:
        AuroraStore.from_cluster(**arguments(database, user="nobody")).open()
    except AuthenticationError as exc:
        spoken.append(exc)
        spoken.append(
            "".join(traceback.TracebackException.from_exception(exc, capture_locals=True).format())
        )
    heard = "\n".join([caplog.text, *map(repr, spoken), *map(str, spoken)])
    shown = {cluster.environment["AWS_SECRET_ACCESS_KEY"], "X-Amz-Signature", "very private"}
    assert [secret for secret in shown if secret in heard] == []


def test_setup_works_in_a_schema_of_any_name(database: Database) -> None:
    """A schema's name may hold what means something to SQL or to the driver."""
    with AuroraStore.from_cluster(
        **arguments(database, schema='a 100% "b" %s', index=INDEX)
    ) as store:
        store.setup()
        store.put(NS, "k", {"text": "x"})
        assert [item.key for item in store.search(NS, query="x")] == ["k"]


async def test_a_cancelled_setup_leaves_no_lock(database: Database) -> None:
    """Cancelling setup() while another waits for its turn lets that one go on."""
    store = AsyncAuroraStore.from_cluster(**arguments(database, index=INDEX))
    await store.open()
    with psycopg.connect(database.owner_dsn, autocommit=True) as other:
        first = asyncio.create_task(store.setup())
        while not advisory_locks(other):
            await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await store.setup()
        assert advisory_locks(other) == 0
    await store.close()


def advisory_locks(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
    return row[0] if row else 0


def test_loops_end_while_a_store_still_connects(database: Database) -> None:
    """asyncio.run() ends also when the pool it leaves behind was about to grow."""
    store = AsyncAuroraStore.from_cluster(**arguments(database))
    asyncio.run(store.setup())
    database.cluster.delay_s = 0.02

    async def use() -> None:
        await asyncio.gather(*(store.abatch([GetOp(NS, "k"), GetOp(NS, "l")]) for _ in range(3)))

    for _ in range(3):
        asyncio.run(use())
    database.cluster.delay_s = 0.0
    asyncio.run(store.close())


@pytest.mark.parametrize("minutes", [-1, float("nan"), float("inf"), "5"])
def test_a_sweeper_without_a_sensible_interval_is_refused(database: Database, minutes: Any) -> None:
    """Neither a busy loop nor a thread that died unheard."""
    store = AuroraStore.from_cluster(**arguments(database, ttl={"default_ttl": 1}))
    with pytest.raises(ConfigurationError, match="sweep_interval_minutes"):
        store.start_ttl_sweeper(minutes)


def test_a_url_in_place_of_a_name_is_not_repeated() -> None:
    """It may hold a password."""
    with pytest.raises(ConfigurationError) as caught:
        AuroraStore.from_cluster("postgresql://u:a-secret@h/d", user="u", database="d")
    assert "a-secret" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["chat", ("a.b",), ("",), (1,)])
def test_what_is_no_namespace_is_neither_counted_nor_deleted(
    database: Database, prefix: Any
) -> None:
    """A text is not taken for its letters, nor a label with a dot for two."""
    with AuroraStore.from_cluster(**arguments(database)) as store:
        store.setup()
        store.put(("a", "b"), "k", {"v": 1})
        for call in (store.count, store.delete_namespace):
            with pytest.raises(InvalidNamespaceError):
                call(prefix)
        assert store.count(("a",)) == 1


@pytest.mark.parametrize("reader", [None, lambda json: {"seen": True, **orjson.loads(json)}])
def test_a_connection_that_hands_out_json_is_read_by_the_deserializer(
    database: Database, reader: Any
) -> None:
    """As in the parent; without one by orjson."""
    with psycopg.connect(database.owner_dsn, autocommit=True, row_factory=dict_row) as conn:
        set_json_loads(lambda json: json, conn)
        store = AuroraStore(conn, deserializer=reader)
        store.setup()
        store.put(("a",), "k", {"v": 1})
        item = store.get(("a",), "k")
        assert item is not None
        assert item.value == store.search(("a",))[0].value
        assert item.value == {"v": 1} | ({"seen": True} if reader else {})
