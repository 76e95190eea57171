"""Pools of either kind for tests, and the cluster they connect to."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import psycopg_pool
import pytest

from langgraph_aurora_store.connect.cluster_lookup import Endpoint
from langgraph_aurora_store.connect.connection_factory import ConnectionFactory, connection_factory
from langgraph_aurora_store.connect.credentials import Credentials, Login
from langgraph_aurora_store.connect.pool import AsyncAuroraPool, AuroraPool
from langgraph_aurora_store.connect.pool_settings import PoolSettings
from langgraph_aurora_store.local import LocalAurora

SETTINGS = PoolSettings(min_size=0, max_size=4, timeout_s=20, connect_timeout_s=2)
# Well below the 20 s of a pool's timeout, on a machine that is busy with other things.
AT_ONCE_S = 2
WHO = "SELECT current_user"


class Clock:
    """Seconds since the epoch, to be stepped."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture(scope="session")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def stepped_cluster(clock: Clock) -> Iterator[LocalAurora]:
    with LocalAurora(clock=clock, session_token="session token ?&=%/:@'", export=False) as found:
        yield found


@pytest.fixture
def cluster(stepped_cluster: LocalAurora, clock: Clock) -> Iterator[LocalAurora]:
    """A cluster with a clock and temporary keys, as it was before each test."""
    clock.ahead_s = 0.0
    yield stepped_cluster
    stepped_cluster.reset()


class Blocking:
    """A blocking pool, driven by threads."""

    def __init__(self, factory: ConnectionFactory, settings: PoolSettings) -> None:
        self.pool = AuroraPool(factory, settings)
        self.pool.open()

    def fetch(self, statement: str = WHO) -> Any:
        with self.pool.connection() as connection:
            return connection.execute(statement).fetchone()[0]

    def together(self, count: int, statement: str = WHO) -> list[Any]:
        """So many at once; an error in place of a result."""
        with ThreadPoolExecutor(count) as threads:
            found = [threads.submit(self.fetch, statement) for _ in range(count)]
        return [call.exception() or call.result() for call in found]

    def hold(self, count: int) -> list[Any]:
        """So many connections held at once, and given back."""
        with ExitStack() as stack:
            return [stack.enter_context(self.pool.connection()) for _ in range(count)]

    def ask_for_one_more(self, *, timeout_s: float) -> None:
        """Ask for another while all are held."""
        with ExitStack() as stack:
            for _ in range(self.pool.max_size):
                stack.enter_context(self.pool.connection())
            stack.enter_context(self.pool.connection(timeout_s))

    def fill(self) -> None:
        """Wait until the pool holds `min_size` connections; none is handed out."""
        psycopg_pool.ConnectionPool.wait(self.pool)

    def close(self) -> None:
        self.pool.close()


class OnLoop:
    """An asyncio pool, driven from a loop in a thread of its own."""

    def __init__(self, factory: ConnectionFactory, settings: PoolSettings) -> None:
        self.pool = AsyncAuroraPool(factory, settings)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="the event loop")
        self.thread.start()
        self._run(self.pool.open())

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    async def _fetch(self, statement: str = WHO) -> Any:
        async with self.pool.connection() as connection:
            return (await (await connection.execute(statement)).fetchone())[0]

    def fetch(self, statement: str = WHO) -> Any:
        return self._run(self._fetch(statement))

    def together(self, count: int, statement: str = WHO) -> list[Any]:
        async def gather() -> list[Any]:
            calls = [self._fetch(statement) for _ in range(count)]
            return await asyncio.gather(*calls, return_exceptions=True)

        return self._run(gather())

    def hold(self, count: int) -> list[Any]:
        async def hold() -> list[Any]:
            async with AsyncExitStack() as stack:
                return [
                    await stack.enter_async_context(self.pool.connection()) for _ in range(count)
                ]

        return self._run(hold())

    def ask_for_one_more(self, *, timeout_s: float) -> None:
        async def ask() -> None:
            async with AsyncExitStack() as stack:
                for _ in range(self.pool.max_size):
                    await stack.enter_async_context(self.pool.connection())
                await stack.enter_async_context(self.pool.connection(timeout_s))

        self._run(ask())

    def fill(self) -> None:
        self._run(psycopg_pool.AsyncConnectionPool.wait(self.pool))

    def close(self) -> None:
        self._run(self.pool.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


Pool: TypeAlias = Blocking | OnLoop
Open: TypeAlias = Callable[..., Pool]


@pytest.fixture(params=[Blocking, OnLoop], ids=["blocking", "asyncio"])
def open_pool(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Make and open a pool of either kind; closed after the test."""
    with ExitStack() as stack:

        def open_(factory: ConnectionFactory, settings: PoolSettings = SETTINGS) -> Pool:
            return stack.enter_context(closing(request.param(factory, settings)))

        yield open_


_numbers = itertools.count(1)


@pytest.fixture
def user() -> str:
    """The name of a role that does not exist yet."""
    return f"o'brien {next(_numbers)} ?&=%/:@"


def connect(cluster: LocalAurora, name: str | None = None, **given: Any) -> ConnectionFactory:
    defaults: dict[str, Any] = {
        "user": cluster.user,
        "session": cluster.session,
        "sslrootcert": cluster.sslrootcert,
        "environ": {},
    }
    return connection_factory(name or cluster.identifier, **{**defaults, **given})


def by_address(cluster: LocalAurora, **given: Any) -> ConnectionFactory:
    """By the address of the proxy, as with a custom domain."""
    defaults = {"endpoint": "localhost", "port": cluster.port, "region": cluster.region}
    return connect(cluster, "127.0.0.1", **{"database": cluster.database, **defaults, **given})


def raised_by(call: Callable[[], object]) -> tuple[Exception, float]:
    """What a call raises, and after how many seconds."""
    start = time.monotonic()
    with pytest.raises(Exception) as caught:
        call()
    return caught.value, time.monotonic() - start


@dataclass
class Listening:
    """Credentials that keep what they hand out, for a test to look for."""

    inner: Credentials
    heard: list[str] = field(default_factory=list, repr=False)
    threads: set[str] = field(default_factory=set)

    @property
    def method(self) -> Any:
        return self.inner.method

    def login(self, endpoint: Endpoint, user: str | None) -> Login:
        login = self.inner.login(endpoint, user)
        self.heard.append(login.password)
        self.threads.add(threading.current_thread().name)
        return login

    def refused(self) -> None:
        self.inner.refused()
