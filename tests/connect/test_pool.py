"""Blocking and asyncio pools: what a connection is, how it is kept, and what is never shown."""

import asyncio
import gc
import inspect
import json
import logging
import socket
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import psycopg
import psycopg_pool
import pytest
from moto import mock_aws
from psycopg_pool.base import AttemptWithBackoff
from psycopg_pool.pool import WaitingClient
from psycopg_pool.pool_async import WaitingClient as AsyncWaitingClient
from psycopg_pool.sched import Scheduler
from psycopg_pool.sched_async import AsyncScheduler

from langgraph_aurora_store.connect.connection import AsyncAuroraConnection, AuroraConnection
from langgraph_aurora_store.connect.connection_factory import connection_factory
from langgraph_aurora_store.connect.credentials import (
    IamCredentials,
    PasswordCredentials,
    SecretsManagerCredentials,
)
from langgraph_aurora_store.connect.pool import AsyncAuroraPool, AuroraPool
from langgraph_aurora_store.connect.pool_settings import PoolSettings
from langgraph_aurora_store.errors import (
    AuthenticationError,
    ConfigurationError,
    DatabaseNotFoundError,
)
from langgraph_aurora_store.local import LocalAurora
from tests.support import pool_cases as pools
from tests.support.forwarder import Forwarder
from tests.support.pool_cases import (
    AT_ONCE_S,
    SETTINGS,
    Clock,
    Listening,
    OnLoop,
    Open,
    by_address,
    connect,
    raised_by,
)
from tests.support.signing_clock import set_signing_clock

clock = pools.clock
cluster = pools.cluster
open_pool = pools.open_pool
stepped_cluster = pools.stepped_cluster
user = pools.user

# what a good connection is


def test_identifier_is_all_it_takes(cluster: LocalAurora, open_pool: Open) -> None:
    """Looked up, signed for, verified, and in the database that the cluster was made with."""
    pool = open_pool(connect(cluster))
    assert pool.fetch() == cluster.user
    assert pool.fetch("SELECT current_database()") == cluster.database
    assert pool.fetch("SELECT current_setting('application_name')") == "langgraph-aurora-store"
    [connection] = pool.hold(1)
    assert connection.pgconn.ssl_in_use
    assert connection.autocommit
    assert connection.prepare_threshold == 1


def test_alias_of_an_endpoint_is_dialled(cluster: LocalAurora, open_pool: Open) -> None:
    """A custom domain: the address is the alias's, certificate and token are the endpoint's."""
    assert open_pool(by_address(cluster)).fetch() == cluster.user


def test_tunnel_is_dialled_with_a_token_for_the_endpoints_own_port(open_pool: Open) -> None:
    """As through SSM: another local port than the endpoint's, which the token is for."""
    with LocalAurora(export=False) as aurora, Forwarder(aurora.port) as tunnel:
        local_port = tunnel.port
        given = {"database": aurora.database, "region": aurora.region, "port": local_port}
        factory = connect(aurora, "127.0.0.1", endpoint=f"localhost:{aurora.port}", **given)
        assert open_pool(factory).fetch() == aurora.user
        assert aurora.refusals.total() == 0
        factory = connect(aurora, "127.0.0.1", endpoint="localhost", **given)
        error, _ = raised_by(open_pool(factory).fetch)
        assert set(aurora.refusals) == {"wrong-port"}
    assert isinstance(error, AuthenticationError)
    assert f"signed for localhost:{local_port}" in str(error)
    assert f"endpoint='localhost:5432' with it and keep port={local_port}" in str(error)


ENDPOINTS = {
    "dual-stack cluster": "m.cluster-c0ffee.us-east-1.rds.amazonaws.com",
    "proxy": "px.proxy-c0ffee.us-east-1.rds.amazonaws.com",
}


@pytest.fixture(scope="module")
def amazons() -> Iterator[LocalAurora]:
    """A local cluster under names of Amazon's, which no DNS here resolves."""
    writer, reader = ENDPOINTS.values()
    with LocalAurora(endpoint=writer, reader_endpoint=reader, export=False) as aurora:
        yield aurora


@pytest.mark.parametrize("host", ENDPOINTS.values(), ids=ENDPOINTS)
@pytest.mark.parametrize("alias", ["nlb.internal", None], ids=["alias", "own name"])
def test_each_address_of_a_name_is_tried(
    amazons: LocalAurora,
    open_pool: Open,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    alias: str | None,
) -> None:
    """IPv6 first, as of a dual-stack endpoint, an NLB or PrivateLink; verified by its own name."""
    real = socket.getaddrinfo

    def look_up(name: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if name != (alias or host):
            return real(name, port, *args, **kwargs)
        found = [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.2"), (socket.AF_INET, LAST)]
        return [(f, socket.SOCK_STREAM, 6, "", (address, port)) for f, address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    given: Any = {"port": amazons.port, "database": amazons.database}
    factory = connect(amazons, alias or host, endpoint=host if alias else None, **given)
    pool = open_pool(factory)
    assert pool.fetch() == amazons.user
    [connection] = pool.hold(1)
    assert (connection.info.host, connection.info.hostaddr) == (host, LAST)
    assert connection.pgconn.ssl_in_use


def test_refusal_by_several_addresses_is_told_once(
    amazons: LocalAurora, open_pool: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once for each address in psycopg's words."""
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *_, **__: [(socket.AF_INET, 1, 6, "", (a, 1)) for a in ("127.0.0.2", "127.0.0.3")],
    )
    host = ENDPOINTS["proxy"]
    factory = connect(amazons, "nlb.internal", endpoint=host, port=1, database="d")
    error, _ = raised_by(open_pool(factory).fetch)
    assert "dialled at 127.0.0.2, 127.0.0.3" in str(error)
    assert str(error).count("Connection refused") == 1


LAST = "127.0.0.1"


def test_proxy_gets_no_prepared_statements_and_nobody_start_up_options() -> None:
    """A pooler hands a client's statements to many servers, and refuses start-up options."""

    def parameters(name: str) -> dict[str, Any]:
        host = f"m.{name}.us-east-1.rds.amazonaws.com"
        credentials = PasswordCredentials("p")
        return connection_factory(host, user="u", database="d", credentials=credentials).kwargs()

    assert parameters("proxy-c0ffee")["prepare_threshold"] is None
    assert parameters("cluster-c0ffee")["prepare_threshold"] == 1
    assert parameters("proxy-c0ffee")["options"] == ""


def test_reader_is_asked_for_by_role(cluster: LocalAurora) -> None:
    """The same factory, for the other endpoint."""
    reader = connect(cluster)._replace(role="reader")
    assert reader.kwargs()["target"].kind == "reader"


def test_each_new_connection_has_a_fresh_token(
    cluster: LocalAurora, clock: Clock, open_pool: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty minutes on, the first token is past its age and a new connection is let in."""
    shown = len(cluster.tokens)
    pool = open_pool(connect(cluster))
    assert pool.fetch() == cluster.user
    clock.ahead_s = 20 * 60
    later = datetime.now(UTC).replace(tzinfo=None) + timedelta(minutes=20)
    set_signing_clock(monkeypatch, later)
    expired = cluster.refusals["expired"]
    pool.hold(2)
    first, second = cluster.tokens[shown:]
    assert first != second
    assert cluster.refusals["expired"] == expired


# connections that idled


@pytest.mark.parametrize("count", [1, 4])
def test_connections_that_died_while_idle_are_not_noticed(
    cluster: LocalAurora, open_pool: Open, count: int
) -> None:
    """As after a freeze of the sandbox: no error, and no pause for each dead one."""
    pool = open_pool(connect(cluster), replace(SETTINGS, check_after_idle_s=0.0))
    pool.hold(count)
    assert cluster.cut_connections() >= count
    start = time.monotonic()
    assert pool.fetch() == cluster.user
    assert time.monotonic() - start < AT_ONCE_S
    assert pool.together(count) == [cluster.user] * count


def test_connection_that_died_before_its_first_use_is_not_noticed(
    cluster: LocalAurora, open_pool: Open
) -> None:
    """One of `min_size` may idle for hours before anybody asks for it."""
    pool = open_pool(connect(cluster), replace(SETTINGS, min_size=1, check_after_idle_s=0.0))
    pool.fill()
    assert cluster.cut_connections() >= 1
    assert pool.fetch() == cluster.user


def test_connections_the_server_closed_cost_no_operation(
    cluster: LocalAurora, open_pool: Open
) -> None:
    """That a socket was closed is seen without a round trip, however short a connection idled."""
    pool = open_pool(connect(cluster), replace(SETTINGS, check_after_idle_s=60.0))
    pool.hold(3)
    assert cluster.cut_connections() >= 3
    assert pool.together(3) == [cluster.user] * 3


def test_connection_in_use_is_not_checked(cluster: LocalAurora, open_pool: Open) -> None:
    """A round trip is spent on what has idled for longer than the settings say, only."""
    pool = open_pool(connect(cluster), replace(SETTINGS, check_after_idle_s=60.0))
    pool.hold(1)
    cluster.stalled = True
    pool.hold(1)


@pytest.mark.parametrize("count", [1, 3])
def test_dead_connections_are_not_replaced_beyond_what_is_asked_for(
    cluster: LocalAurora, open_pool: Open, count: int
) -> None:
    """A sandbox that is thawed connects once, and a service no faster than it has callers."""
    pool = open_pool(connect(cluster), replace(SETTINGS, check_after_idle_s=0.0))
    pool.hold(count)
    for _ in range(3):
        cluster.cut_connections()
        accepted = cluster.accepted
        assert pool.fetch() == cluster.user
        assert pool.pool.get_stats()["pool_size"] == 1
        assert cluster.accepted - accepted == 1


def test_dead_connections_are_replaced_up_to_the_least(
    cluster: LocalAurora, open_pool: Open
) -> None:
    """Those of ``min_size`` are kept warm."""
    pool = open_pool(connect(cluster), replace(SETTINGS, min_size=2, check_after_idle_s=0.0))
    pool.fill()
    cluster.cut_connections()
    assert pool.fetch() == cluster.user
    pool.fill()
    assert pool.pool.get_stats()["pool_size"] >= 2


def test_connections_that_die_in_use_are_replaced_for_those_who_wait(
    cluster: LocalAurora, open_pool: Open
) -> None:
    """Also where the pool can grow no further."""
    pool = open_pool(connect(cluster), replace(SETTINGS, max_size=1))
    pool.fetch()  # so that none of the time goes into connecting
    sleeping = "SELECT current_user FROM pg_sleep(0.3)"
    cutting = threading.Timer(0.15, cluster.cut_connections)
    cutting.start()
    found = pool.together(4, sleeping)
    cutting.join()
    assert found.count(cluster.user) == 3


# rotation

PASSWORD = "p ?&=%/:@'\\"


def test_rotation_of_a_secret_is_survived(cluster: LocalAurora, open_pool: Open, user: str) -> None:
    """The old password is refused, the secret read again, and the caller notices nothing."""
    cluster.create_user(user, password=PASSWORD)
    with mock_aws():
        session = boto3.Session("AKIATEST", "s", region_name="us-east-1")
        client = session.client("secretsmanager")

        def secret(password: str) -> str:
            return json.dumps({"username": user, "password": password, "dbname": "memory"})

        client.create_secret(Name="db", SecretString=secret(PASSWORD))
        credentials = SecretsManagerCredentials("db", session=session)
        pool = open_pool(by_address(cluster, user=None, credentials=credentials))
        assert pool.fetch() == user
        cluster.set_password(user, "rotated")
        client.put_secret_value(SecretId="db", SecretString=secret("rotated"))
        assert len(pool.hold(3)) == 3
        cluster.set_password(user, "rotated again")
        assert len(pool.hold(3)) == 3, "open connections need no password"
        error, after_s = raised_by(lambda: pool.hold(4))
        assert type(error) is AuthenticationError
        assert after_s < AT_ONCE_S


# secrets


def test_no_secret_is_logged_shown_or_carried_by_an_error(
    cluster: LocalAurora, open_pool: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """Every logger at DEBUG, every repr, every traceback with its locals."""
    caplog.set_level(logging.DEBUG)
    listening = Listening(IamCredentials(cluster.session))
    factory = connect(cluster, credentials=listening)
    pool = open_pool(factory)
    pool.fetch()
    cluster.refuse_next(20)
    cluster.cut_connections()
    error, _ = raised_by(lambda: pool.hold(4))
    assert isinstance(error, AuthenticationError)
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    shown = [
        caplog.text,
        "".join(told.format()),
        repr([factory, factory.tls, pool.pool, pool.pool.kwargs, error, error.__cause__]),
    ]
    keys = cluster.session.get_credentials()
    secrets = [keys.secret_key, keys.token, "session%20token", *listening.heard]
    secrets += [token.partition("X-Amz-Signature=")[2] for token in listening.heard]
    assert len(listening.heard) >= 3
    for secret in secrets:
        assert secret
        for text in shown:
            assert secret not in text
    assert "PAM authentication failed" in caplog.text, "the logs were not listened to"


@pytest.mark.parametrize(
    "make",
    [
        AuroraConnection.connect,
        lambda **parameters: asyncio.run(AsyncAuroraConnection.connect(**parameters)),
    ],
    ids=["blocking", "asyncio"],
)
def test_connection_made_without_a_pool_hides_its_password_too(
    cluster: LocalAurora, make: Callable[..., object]
) -> None:
    """Neither our lines of a traceback with locals nor what its error holds on to show it."""
    cluster.refuse_next(1)
    parameters = connect(cluster).kwargs()
    with pytest.raises(AuthenticationError) as caught:
        make(**parameters)
    told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    ours = [frame for frame in told.stack if frame.filename.endswith("connect/connection.py")]
    assert ours
    assert parameters["password"] not in repr([frame.locals for frame in ours])
    for error in (caught.value, caught.value.__cause__):
        assert isinstance(error, psycopg.OperationalError)
        assert error.pgconn is None, "libpq's connection holds the password"
    assert caught.value.__context__ is None


def test_asyncio_pool_signs_off_the_loop(cluster: LocalAurora) -> None:
    """Refreshing credentials blocks for as long as AWS takes: never the event loop."""
    listening = Listening(IamCredentials(cluster.session))
    with closing(OnLoop(connect(cluster, credentials=listening), SETTINGS)) as pool:
        pool.fetch()
    assert listening.threads
    assert "the event loop" not in listening.threads


# the pool as an object


def test_dropped_pool_is_gone_without_a_collection(cluster: LocalAurora) -> None:
    """A pool is not referred to by itself, so psycopg_pool's own clean-up happens at once."""
    gc.disable()
    try:
        pool = AuroraPool(connect(cluster), SETTINGS)
        dropped = weakref.ref(pool)
        del pool
        assert dropped() is None
    finally:
        gc.enable()


def test_wait_is_over_with_the_first_connection_or_its_refusal(cluster: LocalAurora) -> None:
    """`open(wait=True)` says why there is no connection, and leaves the pool open."""
    settings = replace(SETTINGS, min_size=2)
    with AuroraPool(connect(cluster), settings) as pool:
        pool.wait()
        assert pool.get_stats()["pool_available"] >= 1
    with closing(AuroraPool(connect(cluster, database="nowhere"), settings)) as pool:
        with pytest.raises(DatabaseNotFoundError):
            pool.open(wait=True)
        assert not pool.closed


async def test_async_wait_is_over_with_the_first_connection_or_its_refusal(
    cluster: LocalAurora,
) -> None:
    """As in the blocking twin."""
    settings = replace(SETTINGS, min_size=2)
    async with AsyncAuroraPool(connect(cluster), settings) as pool:
        await pool.wait()
        assert pool.get_stats()["pool_available"] >= 1
    async with AsyncAuroraPool(connect(cluster, database="nowhere"), settings) as pool:
        with pytest.raises(DatabaseNotFoundError):
            await pool.wait()
        assert not pool.closed


def test_pool_that_is_closed_says_so(cluster: LocalAurora) -> None:
    """psycopg_pool's own error, not taken for trouble that passes."""
    pool = AuroraPool(connect(cluster), SETTINGS)
    with pytest.raises(psycopg_pool.PoolClosed):
        pool.getconn()


@pytest.mark.parametrize(
    ("pool", "profile", "on_lambda"),
    [
        ("service", PoolSettings.service(), True),
        ("lambda", PoolSettings.for_lambda(), False),
        (None, PoolSettings.service(), False),
        (None, PoolSettings.for_lambda(), True),
        (SETTINGS, SETTINGS, True),
    ],
)
def test_settings_are_chosen_by_name_or_by_where_the_process_runs(
    pool: Any, profile: PoolSettings, on_lambda: bool
) -> None:
    """On Lambda, Lambda's unless told otherwise."""
    assert PoolSettings.chosen(pool, on_lambda=on_lambda) == profile


def test_settings_that_make_no_sense_are_refused() -> None:
    """When made, naming what is wrong."""
    with pytest.raises(ConfigurationError, match=r"min_size=3, max_size=2"):
        PoolSettings(min_size=3, max_size=2)
    with pytest.raises(ConfigurationError, match="max_size is a whole number from 1"):
        PoolSettings(min_size=0, max_size=0)
    with pytest.raises(ConfigurationError, match=r"timeout_s is a number from 0\.001"):
        PoolSettings(timeout_s=0)
    with pytest.raises(ConfigurationError, match="'serverless' is unknown"):
        PoolSettings.chosen("serverless", on_lambda=False)  # type: ignore[arg-type]  # the point


@pytest.mark.parametrize(
    ("owner", "hook", "signature"),
    [
        (
            "ConnectionPool",
            "_add_connection",
            "(self, attempt: 'AttemptWithBackoff | None', growing: 'bool' = False) -> 'None'",
        ),
        (
            "AsyncConnectionPool",
            "_add_connection",
            "(self, attempt: 'AttemptWithBackoff | None', growing: 'bool' = False) -> 'None'",
        ),
        (
            "ConnectionPool",
            "_get_ready_connection",
            "(self, timeout: 'float | None') -> 'CT | None'",
        ),
        (
            "AsyncConnectionPool",
            "_get_ready_connection",
            "(self, timeout: 'float | None') -> 'ACT | None'",
        ),
        (
            "AsyncConnectionPool",
            "_putconn",
            "(self, conn: 'ACT', from_getconn: 'bool') -> 'None'",
        ),
        ("AsyncConnectionPool", "worker", "(q: 'AQueue[MaintenanceTask]') -> 'None'"),
    ],
)
def test_private_hooks_of_psycopg_pool_are_as_we_override_them(
    owner: str, hook: str, signature: str
) -> None:
    """psycopg_pool 3.3: an upgrade that changes them fails here first."""
    function = getattr(getattr(psycopg_pool, owner), hook)
    assert str(inspect.signature(function)) == signature
    assert inspect.iscoroutinefunction(function) == owner.startswith("Async")


def test_private_state_of_psycopg_pool_is_as_we_use_it(cluster: LocalAurora) -> None:
    """The queue of waiting callers, how one of them is failed, the counts, and the timer."""
    assert str(inspect.signature(WaitingClient.fail)) == "(self, error: 'Exception') -> 'bool'"
    assert inspect.iscoroutinefunction(AsyncWaitingClient.fail)
    assert "time_to_give_up" in vars(AttemptWithBackoff)
    pool = AuroraPool(connect(cluster), SETTINGS)
    assert (len(pool._waiting), pool._nconns, pool._growing) == (0, 0, False)
    for scheduler in (Scheduler, AsyncScheduler):
        assert list(inspect.signature(scheduler.enter).parameters) == ["self", "delay", "action"]
    with pool._lock:
        pool._waiting.clear()
