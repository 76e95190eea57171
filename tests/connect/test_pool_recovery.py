"""Pools whose connections are lost, fall silent, or lead to a writer that is one no more."""

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, closing, suppress
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from langgraph_aurora_store.connect.connection_factory import ConnectionFactory
from langgraph_aurora_store.connect.lazy_pool import AsyncLazyPool, LazyPool
from langgraph_aurora_store.connect.pool import AsyncAuroraPool
from langgraph_aurora_store.connect.pool_health import PoolHealth
from langgraph_aurora_store.connect.pool_settings import PoolSettings
from langgraph_aurora_store.errors import PoolTimeoutError
from langgraph_aurora_store.local import LocalAurora
from tests.support import pool_cases as pools
from tests.support.forwarder import Forwarder
from tests.support.pool_cases import AT_ONCE_S, SETTINGS, Open, by_address, connect, raised_by

clock = pools.clock
cluster = pools.cluster
open_pool = pools.open_pool
stepped_cluster = pools.stepped_cluster

UNCHECKED = replace(SETTINGS, check_after_idle_s=60.0)
PID = "SELECT pg_backend_pid()"


@pytest.fixture
def forwarder(cluster: LocalAurora) -> Iterator[Forwarder]:
    with Forwarder(cluster.port) as found:
        yield found


def through(cluster: LocalAurora, forwarder: Forwarder) -> ConnectionFactory:
    return by_address(cluster, endpoint=f"localhost:{cluster.port}", port=forwarder.port)


# links that fall silent


def test_silent_links_cost_the_first_caller_three_seconds_and_the_others_nothing(
    cluster: LocalAurora, open_pool: Open, forwarder: Forwarder
) -> None:
    """Nothing is closed and nothing answers; the kernel in between acknowledges all the while."""
    settings = replace(SETTINGS, check_after_idle_s=0.0)
    pool = open_pool(through(cluster, forwarder), settings)
    pool.hold(4)
    assert forwarder.silence() == 4
    start = time.monotonic()
    assert pool.fetch() == cluster.user
    assert time.monotonic() - start < 3
    start = time.monotonic()
    assert pool.together(8) == [cluster.user] * 8
    assert time.monotonic() - start < AT_ONCE_S / 2


def test_lost_connection_makes_the_others_suspect(
    cluster: LocalAurora, open_pool: Open, forwarder: Forwarder
) -> None:
    """A statement that fails by its link has the rest checked, however short they idled."""
    pool = open_pool(through(cluster, forwarder), UNCHECKED)
    pool.hold(3)
    with suppress(psycopg.OperationalError):
        pool.fetch("SELECT pg_terminate_backend(pg_backend_pid())")
    forwarder.silence()
    start = time.monotonic()
    assert pool.fetch() == cluster.user
    assert time.monotonic() - start < 3


def test_connections_made_after_the_loss_are_not_suspect(
    cluster: LocalAurora, open_pool: Open
) -> None:
    """One round trip for each that idled then, and none for those that were used since."""
    pool = open_pool(connect(cluster), UNCHECKED)
    pool.hold(2)
    with suppress(psycopg.OperationalError):
        pool.fetch("SELECT pg_terminate_backend(pg_backend_pid())")
    pool.hold(2)
    cluster.stalled = True  # a check would hang
    pool.hold(2)


def test_keepalives_and_the_users_timeout_end_a_silent_link_within_three_seconds() -> None:
    """Where packets vanish, the kernel ends a statement that waits: 3 s unacknowledged."""
    for settings in (PoolSettings.service(), PoolSettings.for_lambda()):
        assert settings.kwargs()["tcp_user_timeout"] == 3000
        assert settings.keepalives_idle_s + settings.keepalives_interval_s < 3


# a writer that is one no more


@pytest.mark.parametrize("lazy", [LazyPool, AsyncLazyPool])
def test_demoted_writers_links_are_let_go(
    cluster: LocalAurora, lazy: type[LazyPool | AsyncLazyPool]
) -> None:
    """On 25006 that link and all older ones go, in use or idle; the next caller has a new one."""
    before, refused, held, after = run(lazy, connect(cluster))
    assert refused == "ReadOnlySqlTransaction"
    assert len(before) == 3
    assert held in before
    assert not before & after


def run(
    lazy: type[LazyPool | AsyncLazyPool], factory: ConnectionFactory
) -> tuple[set[int], str, int, set[int]]:
    """The backends before a write is refused, its error, one held meanwhile, and those after."""
    if lazy is AsyncLazyPool:
        return asyncio.run(_arun(AsyncLazyPool(factory, UNCHECKED)))
    return _run(LazyPool(factory, UNCHECKED))


READ_ONLY = "SET TRANSACTION READ ONLY"
WRITE = "CREATE TABLE refused (id int)"


def _run(pool: LazyPool) -> tuple[set[int], str, int, set[int]]:
    def pids(count: int) -> set[int]:
        found = [pool.connection() for _ in range(count)]
        pids = {context.__enter__().info.backend_pid for context in found}
        for context in found:
            context.__exit__(None, None, None)
        return pids

    with closing(pool):
        before = pids(3)
        with pool.connection() as held:
            refused = ""
            try:
                with pool.connection() as conn, conn.transaction():
                    conn.execute(READ_ONLY)
                    conn.execute(WRITE)
            except psycopg.Error as error:
                refused = type(error).__name__
            pid = held.info.backend_pid
        return before, refused, pid, pids(3)


async def _arun(pool: AsyncLazyPool) -> tuple[set[int], str, int, set[int]]:
    async def pids(count: int) -> set[int]:
        found = [pool.connection() for _ in range(count)]
        pids = {(await context.__aenter__()).info.backend_pid for context in found}
        for context in found:
            await context.__aexit__(None, None, None)
        return pids

    before = await pids(3)
    async with pool.connection() as held:
        refused = ""
        try:
            async with pool.connection() as conn, conn.transaction():
                await conn.execute(READ_ONLY)
                await conn.execute(WRITE)
        except psycopg.Error as error:
            refused = type(error).__name__
        pid = held.info.backend_pid
    after = await pids(3)
    await pool.close()
    return before, refused, pid, after


def test_readers_links_are_kept(cluster: LocalAurora) -> None:
    """A reader refuses every write; its connections are as good as before."""
    before, refused, _, after = run(LazyPool, connect(cluster)._replace(role="reader"))
    assert refused == "ReadOnlySqlTransaction"
    assert before == after


# storms


class Steps:
    """A clock that is stepped."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("max_size", "rate", "most"), [(20, 40.0, 60), (4, 10.0, 14)])
def test_new_connections_are_bounded_in_any_second(max_size: int, rate: float, most: int) -> None:
    """A burst of the pool's size, then the settings' rate: 60 a second for a pool of 20."""
    settings = PoolSettings(max_size=max_size, max_connects_per_s=rate)
    clock = Steps()
    health = PoolHealth("p", settings, clock=clock)
    begun = [clock.now + health.throttle_s() for _ in range(200)]
    assert begun == sorted(begun)
    for start in begun:
        assert sum(start <= moment < start + 1 for moment in begun) <= most
    clock.now += 1000
    assert health.throttle_s() == 0


def test_storm_of_refused_callers_is_bounded(
    cluster: LocalAurora, open_pool: Open, forwarder: Forwarder
) -> None:
    """Callers that ask again and again of a server that closes each connection."""
    pool = open_pool(through(cluster, forwarder), replace(SETTINGS, max_size=20, timeout_s=0.3))
    forwarder.refuses = True
    until = time.monotonic() + 2
    while time.monotonic() < until:
        pool.together(20)
    assert 0 < forwarder.accepted <= 20 + 2.5 * 40


# outages and pauses


def test_first_call_that_can_succeed_does_within_a_second(
    cluster: LocalAurora, open_pool: Open, forwarder: Forwarder
) -> None:
    """However long nothing was there: pauses between attempts are short."""
    pool = open_pool(through(cluster, forwarder), SETTINGS)
    pool.fetch()
    forwarder.refuses = True
    for link in forwarder.links:
        link.close()
    found: list[Any] = []
    caller = threading.Thread(target=lambda: found.append((pool.fetch(), time.monotonic())))
    caller.start()
    caller.join(3)
    assert caller.is_alive(), "served by a server that refuses"
    forwarder.refuses = False
    back_at = time.monotonic()
    caller.join(5)
    [(user, served_at)] = found
    assert user == cluster.user
    assert served_at - back_at < 1


def test_resume_is_waited_for_with_one_line(
    cluster: LocalAurora, open_pool: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """At INFO, that the cluster is waited for; no warning, whatever the attempts in between met."""
    caplog.set_level(logging.INFO, "langgraph_aurora_store")
    cluster.pause(resume_s=SETTINGS.connect_timeout_s * 2 + 0.5)
    assert open_pool(connect(cluster)).fetch() == cluster.user
    waits = [r for r in caplog.records if "waits for the cluster" in r.getMessage()]
    assert [record.levelname for record in waits] == ["INFO"]
    assert "resuming from a pause" in waits[0].getMessage()
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("timeout_s", [1.0, 3.0])
def test_short_deadline_says_that_the_cluster_may_be_resuming(
    cluster: LocalAurora, open_pool: Open, timeout_s: float
) -> None:
    """Whether or not the first attempt has ended; the pool's size is not blamed."""
    cluster.pause(resume_s=60)
    error, after_s = raised_by(
        open_pool(connect(cluster), replace(SETTINGS, timeout_s=timeout_s)).fetch
    )
    assert isinstance(error, PoolTimeoutError)
    assert after_s < timeout_s + 1
    assert "resum" in str(error)
    assert "max_size" not in str(error)


def test_defaults_outlast_a_resume_of_thirty_seconds() -> None:
    """And an attempt that began just before its end."""
    for settings in (PoolSettings.service(), PoolSettings.for_lambda()):
        assert settings.timeout_s >= 30 + settings.connect_timeout_s


# ends


@pytest.mark.parametrize("kind", [pools.Blocking, pools.OnLoop])
def test_close_is_bounded_where_nothing_answers(
    cluster: LocalAurora, forwarder: Forwarder, kind: type[pools.Blocking | pools.OnLoop]
) -> None:
    """Idle links that are silent, and attempts that are never answered."""
    settings = replace(SETTINGS, connect_timeout_s=30, timeout_s=0.5)
    pool = kind(through(cluster, forwarder), settings)
    pool.hold(2)
    forwarder.silence()
    forwarder.is_deaf = True
    assert isinstance(raised_by(lambda: pool.hold(4))[0], PoolTimeoutError)
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 3.5


async def test_collected_asyncio_pool_leaves_no_task_and_no_message(
    cluster: LocalAurora, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that is dropped without close() takes its pool's tasks and sockets with it."""
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    before, links = asyncio.all_tasks(), cluster.open_connections
    pool = AsyncLazyPool(connect(cluster), SETTINGS)
    async with pool.connection():
        pass
    dropped = weakref.ref(await pool.get())
    assert asyncio.all_tasks() > before
    del pool
    gc.collect()
    await until(lambda: asyncio.all_tasks() <= before)
    await until(lambda: cluster.open_connections <= links)
    assert dropped() is None
    assert told == []
    assert caplog.records == []


def test_asyncio_pool_collected_after_its_loop_says_nothing(
    cluster: LocalAurora, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a program ends."""

    async def use() -> AsyncAuroraPool:
        pool = AsyncAuroraPool(connect(cluster), SETTINGS)
        await pool.open()
        async with pool.connection():
            return pool

    pool: Any = asyncio.run(use())
    del pool
    gc.collect()
    assert caplog.records == []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("is_asyncio", [False, True], ids=["blocking", "asyncio"])
def test_one_refused_write_rids_the_pool_of_the_demoted_writer(is_asyncio: bool) -> None:
    """The write is tried again, and the older links, in use meanwhile, do not come back."""
    with LocalAurora(readers=1, export=False) as aurora:
        given: dict[str, Any] = {
            "user": aurora.user,
            "session": aurora.session,
            "sslrootcert": aurora.sslrootcert,
            "pool": UNCHECKED,
        }
        if is_asyncio:
            assert asyncio.run(_atriage(aurora, given)) == [False] * 4
        else:
            assert _triage(aurora, given) == [False] * 4


IN_RECOVERY = "SELECT pg_is_in_recovery()"


def _triage(aurora: LocalAurora, given: dict[str, Any]) -> list[bool]:
    with AuroraStore.from_cluster(aurora.identifier, **given) as store, ExitStack() as stack:
        store.setup()
        with ExitStack() as opened:
            with store.connection():
                for _ in range(3):
                    opened.enter_context(store.connection())
            aurora.failover(demoted="read-only")
            store.put(("a",), "k", {"x": 1})  # by the one that is free, and then by a new one
        links = [stack.enter_context(store.connection()) for _ in range(4)]
        return [bool((link.execute(IN_RECOVERY).fetchone() or (None,))[0]) for link in links]


async def _atriage(aurora: LocalAurora, given: dict[str, Any]) -> list[bool]:
    store = AsyncAuroraStore.from_cluster(aurora.identifier, **given)
    async with store, AsyncExitStack() as stack:
        await store.setup()
        async with AsyncExitStack() as opened:
            async with store.connection():
                for _ in range(3):
                    await opened.enter_async_context(store.connection())
            await asyncio.to_thread(aurora.failover, demoted="read-only")
            await store.aput(("a",), "k", {"x": 1})
        links = [await stack.enter_async_context(store.connection()) for _ in range(4)]
        return [await _in_recovery(link) for link in links]


async def _in_recovery(link: psycopg.AsyncConnection[Any]) -> bool:
    row = await (await link.execute(IN_RECOVERY)).fetchone()
    return bool((row or (None,))[0])
