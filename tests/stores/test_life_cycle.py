"""Stores that are closed, forked and shared while others use them, through the public API."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import psycopg_pool
import pytest

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from langgraph_aurora_store.connect.pool_settings import PoolSettings
from langgraph_aurora_store.errors import PoolFullError, PoolTimeoutError
from tests.support.database import Database
from tests.support.pool_cases import AT_ONCE_S, raised_by
from tests.support.store_kinds import CLUSTER_KINDS, in_process, opened
from tests.support.store_kinds import arguments as defaults

SMALL = PoolSettings(min_size=0, max_size=1, timeout_s=20)


def arguments(database: Database, **changes: Any) -> dict[str, Any]:
    return defaults(database, **{"pool": SMALL, **changes})


def ask(store: AuroraStore) -> str:
    with store.connection() as conn:
        return conn.execute("SELECT current_user::text").fetchone()[0]


async def aask(store: AsyncAuroraStore) -> str:
    async with store.connection() as conn:
        return (await (await conn.execute("SELECT current_user::text")).fetchone())[0]


# closed under its callers


def test_closing_fails_no_caller(database: Database) -> None:
    """A caller that asks while another thread closes gets a connection of the next pool."""
    store = AuroraStore.from_cluster(**arguments(database))
    ended = threading.Event()

    def go_on_asking() -> None:
        while not ended.is_set():
            assert ask(store) == database.cluster.user

    with ThreadPoolExecutor(6) as threads:
        asking = [threads.submit(go_on_asking) for _ in range(6)]
        for _ in range(15):
            ask(store)
            store.close()
        ended.set()
        for each in asking:
            each.result()
    store.close()


async def test_closing_fails_no_task(database: Database) -> None:
    """As in the blocking twin."""
    store = AsyncAuroraStore.from_cluster(**arguments(database))
    ended = asyncio.Event()

    async def go_on_asking() -> None:
        while not ended.is_set():
            assert await aask(store) == database.cluster.user

    asking = [asyncio.create_task(go_on_asking()) for _ in range(6)]
    for _ in range(15):
        await aask(store)
        await store.close()
    ended.set()
    await asyncio.gather(*asking)
    await store.close()


async def test_a_caller_that_comes_as_the_pool_closes_is_not_left_waiting(
    database: Database,
) -> None:
    """psycopg_pool would queue it where nothing serves it any more, for the whole timeout."""
    store = AsyncAuroraStore.from_cluster(**arguments(database))
    pool = await store.conn.get()
    async with pool._lock:
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        late = asyncio.create_task(pool.getconn())
        await asyncio.sleep(0)
    await closing
    with pytest.raises(psycopg_pool.PoolClosed, match="is closed"):
        await asyncio.wait_for(late, AT_ONCE_S)


@pytest.mark.parametrize("kind", CLUSTER_KINDS)
async def test_closed_pool_is_an_error_of_ours(database: Database, kind: str) -> None:
    """Told to who still holds on to the pool of a store that was closed."""
    async with opened(kind, database.cluster, database.name, pool=SMALL) as twin:
        pool = await twin.store.conn.get() if twin.is_async else twin.store.conn
        await twin.close()
        with pytest.raises(psycopg_pool.PoolClosed) as caught:
            await pool.getconn() if twin.is_async else pool.getconn()
    assert type(caught.value).__name__ == "PoolClosedError"
    assert repr(database.cluster.identifier) in str(caught.value)


# waiting


def crowd(database: Database) -> dict[str, Any]:
    settings = PoolSettings(min_size=0, max_size=1, max_waiting=1, timeout_s=20)
    return arguments(database, pool=settings)


def test_a_full_queue_is_named(database: Database) -> None:
    """One caller too many hears how many wait, and what to turn."""
    store = AuroraStore.from_cluster(**crowd(database))
    with store, ThreadPoolExecutor(1) as threads:
        with store.connection():
            waiting = threads.submit(ask, store)
            until(lambda: store.conn.get_stats()["requests_waiting"] == 1)
            error, _ = raised_by(lambda: ask(store))
        assert waiting.result() == database.cluster.user
    assert_full(error)


async def test_a_full_queue_is_named_to_a_task(database: Database) -> None:
    """As in the blocking twin."""
    async with AsyncAuroraStore.from_cluster(**crowd(database)) as store:
        async with store.connection():
            waiting = asyncio.create_task(aask(store))
            await asyncio.sleep(0.05)
            with pytest.raises(PoolFullError) as caught:
                await aask(store)
        assert await waiting == database.cluster.user
    assert_full(caught.value)


def assert_full(error: BaseException) -> None:
    assert isinstance(error, PoolFullError)
    assert isinstance(error, psycopg_pool.TooManyRequests)
    assert isinstance(error, psycopg.OperationalError)
    for word in ("max_waiting=1", "max_size=1"):
        assert word in str(error)


def until(is_so: Callable[[], bool]) -> None:
    pause = threading.Event()
    while not is_so():
        pause.wait(0.005)


def test_open_waits_as_long_as_it_is_told(database: Database) -> None:
    """And not as long as the pool would."""
    store = AuroraStore.from_cluster(**arguments(database))
    with store.connection():
        error, after_s = raised_by(lambda: store.open(timeout_s=0.2))
    assert isinstance(error, PoolTimeoutError)
    assert "0.20 s" in str(error)
    assert after_s < AT_ONCE_S
    store.close()


async def test_open_waits_as_long_as_it_is_told_in_a_task(database: Database) -> None:
    """As in the blocking twin."""
    store = AsyncAuroraStore.from_cluster(**arguments(database))
    async with store.connection():
        with pytest.raises(PoolTimeoutError, match=r"0\.20 s"):
            await asyncio.wait_for(store.open(timeout_s=0.2), AT_ONCE_S)
    await store.close()


# forked


IN_A_CHILD = """
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        go_on.set()
        store.open()
        store.close()
        os._exit(0)
    go_on.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join()
    store.open()
    store.close()
"""
FORK = """
    import os, signal, threading
    from langgraph_aurora_store import AuroraStore
    import boto3
    held, go_on = threading.Event(), threading.Event()

    class Slow(boto3.Session):
        # Asked in another thread while this one forks; at once in the child.
        def client(self, *args, **kwargs):
            held.set()
            go_on.wait()
            return super().client(*args, **kwargs)

    store = AuroraStore.from_cluster(session=Slow())
    {hold}
"""
LOOKED_UP = """thread = threading.Thread(target=store.open, daemon=True); thread.start()"""
MADE = """
    def hold():
        with store._conn._lock:
            held.set()
            go_on.wait()
    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
"""


@pytest.mark.parametrize("hold", [LOOKED_UP, MADE], ids=["looked up", "made"])
def test_a_child_forked_while_a_thread_connects_can_connect(database: Database, hold: str) -> None:
    """The locks that the thread held are free in the child."""
    in_process(database, FORK.format(hold=hold.strip()) + IN_A_CHILD)


REFRESHING = """
    import os, signal, threading
    from datetime import UTC, datetime, timedelta
    import boto3, botocore.session
    from botocore.credentials import RefreshableCredentials
    from langgraph_aurora_store import AuroraStore

    held, go_on = threading.Event(), threading.Event()
    found = botocore.session.Session().get_credentials()

    def refresh():
        held.set()
        go_on.wait()
        return {{
            "access_key": found.access_key,
            "secret_key": found.secret_key,
            "token": found.token,
            "expiry_time": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
        }}

    class Slow(RefreshableCredentials):
        def __init__(self):
            expired = datetime.now(UTC) - timedelta(1)
            super().__init__("AKIAOLD", "s", "t", expired, refresh, "test")

    {session}
    thread = threading.Thread(target=store.open, daemon=True)
    thread.start()
"""
SESSIONS = {
    "given": """
    session = botocore.session.Session()
    session._credentials = Slow()
    store = AuroraStore.from_cluster(session=session)
    """,
    "boto3's": """
    session = botocore.session.Session()
    session._credentials = Slow()
    store = AuroraStore.from_cluster(session=boto3.Session(botocore_session=session))
    """,
    "default": """
    from langgraph_aurora_store.aws.session import default_session
    session = default_session()
    session._credentials = Slow()
    store = AuroraStore.from_cluster()
    """,
}


@pytest.mark.parametrize("session", SESSIONS)
def test_a_child_forked_while_a_thread_refreshes_credentials_can_connect(
    database: Database, session: str
) -> None:
    """botocore's lock that the thread held is free in the child."""
    in_process(database, REFRESHING.format(session=SESSIONS[session].strip()) + IN_A_CHILD)


@pytest.mark.parametrize("first", ["close", "open"])
def test_a_child_lets_its_parents_pool_be(database: Database, first: str) -> None:
    """Collecting it would wait for locks that the parent's workers may have held."""
    in_process(
        database,
        f"""
        import gc, os, signal, threading
        from langgraph_aurora_store import AuroraStore
        store = AuroraStore.from_cluster()
        store.open()
        held, go_on = threading.Event(), threading.Event()
        queue = store.conn._tasks
        def hold():
            with queue.mutex:
                held.set()
                go_on.wait()
        thread = threading.Thread(target=hold, daemon=True)
        thread.start()
        held.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            store.{first}()
            gc.collect()
            store.open()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        go_on.set()
        thread.join()
        store.open()
        store.close()
        """,
    )


def test_loops_in_many_threads_share_a_store(database: Database) -> None:
    """Each with a pool of its own, while others' come and go."""
    settings = PoolSettings(min_size=0, max_size=1)
    store = AsyncAuroraStore.from_cluster(**arguments(database, pool=settings))

    async def use() -> None:
        await aask(store)
        await store.start_ttl_sweeper()
        await store.close()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: asyncio.run(use()), range(40)))
