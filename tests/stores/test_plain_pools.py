"""Stores on a pool of psycopg_pool's own, the parent's way."""

import time
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolClosed

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from tests.support.database import Database
from tests.support.store_kinds import Twin

NS = ("notes",)
SIZE = 8


def kill_all(database: Database, user: str) -> int:
    """End every backend of a user, and wait until they have ended; how many there were."""
    with psycopg.connect(database.admin_dsn, autocommit=True) as conn:
        backends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"
        killed = conn.execute(backends, (user,)).rowcount
        while conn.execute(backends, (user,)).rowcount:
            pass
        return killed


async def made(kind: str, database: Database, stack: AsyncExitStack) -> Twin:
    """A store on eight connections, of its own pool or of one that is passed in."""
    flavour, _, way = kind.partition("-")
    is_async = flavour == "asyncio"
    cls: Any = AsyncAuroraStore if is_async else AuroraStore
    sizes: Any = {"min_size": SIZE, "max_size": SIZE}
    if way == "passed":
        pool_class: Any = AsyncConnectionPool if is_async else ConnectionPool
        manager = pool_class(
            database.owner_dsn, kwargs={"autocommit": True}, open=False, timeout=10, **sizes
        )
    else:
        manager = cls.from_conn_string(database.owner_dsn, pool_config=sizes)
    entered = await stack.enter_async_context(manager) if is_async else stack.enter_context(manager)
    twin = Twin(cls(entered) if way == "passed" else entered)
    pool = twin.store.conn
    waited = pool.wait()
    if is_async:
        await waited
    return twin


@pytest.mark.parametrize("kind", ["blocking-passed", "asyncio-passed"])
async def test_plain_pool_that_is_closed_is_an_error_at_once(kind: str, database: Database) -> None:
    """Its owner closed it: no retry would open it."""
    async with AsyncExitStack() as stack:
        twin = await made(kind, database, stack)
        closed = twin.store.conn.close()
        if twin.is_async:
            await closed
        began = time.monotonic()
        with pytest.raises(PoolClosed):
            await twin.get(NS, "k")
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "kind", ["blocking-passed", "blocking-string", "asyncio-passed", "asyncio-string"]
)
async def test_no_call_fails_after_all_backends_of_a_plain_pool_were_killed(
    kind: str, database: Database
) -> None:
    """The server is up; each of 24 calls gets a connection that works, three times over."""
    async with AsyncExitStack() as stack:
        twin = await made(kind, database, stack)
        await twin.setup()
        for turn in range(3):
            assert kill_all(database, database.cluster.user) == SIZE
            for n in range(12):
                await twin.put(NS, f"{turn}-{n}", {"n": n})
                assert (await twin.get(NS, f"{turn}-{n}")).value == {"n": n}
            waited = twin.store.conn.wait()
            if twin.is_async:
                await waited
