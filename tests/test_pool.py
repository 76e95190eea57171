"""Blocking and asyncio pools against a cluster that refuses, falters and recovers."""

import asyncio
import gc
import inspect
import itertools
import json
import logging
import socket
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import boto3
import psycopg
import psycopg_pool
import pytest
from moto import mock_aws
from psycopg_pool.base import AttemptWithBackoff
from psycopg_pool.pool import WaitingClient
from psycopg_pool.pool_async import WaitingClient as AsyncWaitingClient

from langgraph_aurora_store.connect.cluster import Endpoint
from langgraph_aurora_store.connect.connector import Connector, make_connector
from langgraph_aurora_store.connect.credentials import (
    Credentials,
    IamCredentials,
    Login,
    PasswordCredentials,
    SecretsManagerCredentials,
)
from langgraph_aurora_store.connect.pool import make_async_pool, make_pool
from langgraph_aurora_store.connect.settings import PoolSettings
from langgraph_aurora_store.connect.tls import BUNDLED, InsecureTlsWarning
from langgraph_aurora_store.errors import (
    AuthenticationError,
    CertificateError,
    ClusterNotFoundError,
    ConfigurationError,
    ConnectError,
    ConnectTimeoutError,
    DatabaseNotFoundError,
    HostNotFoundError,
    PoolTimeoutError,
)
from langgraph_aurora_store.local import LocalAurora

SETTINGS = PoolSettings(min_size=0, max_size=4, timeout_s=20, connect_timeout_s=2)
WHO = "SELECT current_user"


class Clock:
    """Seconds since the epoch, to be stepped."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def module_cluster(clock: Clock) -> Iterator[LocalAurora]:
    with LocalAurora(clock=clock, session_token="session token ?&=%/:@'", export=False) as found:
        yield found


@pytest.fixture
def cluster(module_cluster: LocalAurora, clock: Clock) -> Iterator[LocalAurora]:
    """A cluster with a clock and temporary keys, as it was before each test."""
    clock.ahead_s = 0.0
    yield module_cluster
    module_cluster.reset()


class Blocking:
    """A blocking pool, driven by threads."""

    def __init__(self, connector: Connector, settings: PoolSettings) -> None:
        self.pool = make_pool(connector, settings)
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

    def close(self) -> None:
        self.pool.close()


class OnLoop:
    """An asyncio pool, driven from a loop in a thread of its own."""

    def __init__(self, connector: Connector, settings: PoolSettings) -> None:
        self.pool = make_async_pool(connector, settings)
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

        def open_(connector: Connector, settings: PoolSettings = SETTINGS) -> Pool:
            return stack.enter_context(closing(request.param(connector, settings)))

        yield open_


_numbers = itertools.count(1)


@pytest.fixture
def user() -> str:
    """The name of a role that does not exist yet."""
    return f"o'brien {next(_numbers)} ?&=%/:@"


def connect(cluster: LocalAurora, name: str | None = None, **given: Any) -> Connector:
    defaults: dict[str, Any] = {
        "user": cluster.user,
        "session": cluster.session,
        "sslrootcert": cluster.sslrootcert,
        "environ": {},
    }
    return make_connector(name or cluster.identifier, **{**defaults, **given})


def by_address(cluster: LocalAurora, **given: Any) -> Connector:
    """By the address of the gate, as with a custom domain."""
    defaults = {"endpoint": "localhost", "port": cluster.port, "region": cluster.region}
    return connect(cluster, "127.0.0.1", **{"database": cluster.database, **defaults, **given})


def raised_by(call: Callable[[], object]) -> tuple[Exception, float]:
    """What a call raises, and after how many seconds."""
    start = time.monotonic()
    with pytest.raises(Exception) as caught:
        call()
    return caught.value, time.monotonic() - start


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
    assert connection.prepare_threshold == 0


def test_alias_of_an_endpoint_is_dialled(cluster: LocalAurora, open_pool: Open) -> None:
    """A custom domain: the address is the alias's, certificate and token are the endpoint's."""
    assert open_pool(by_address(cluster)).fetch() == cluster.user


def test_proxy_gets_no_prepared_statements_and_nobody_start_up_options() -> None:
    """A pooler hands a client's statements to many servers, and refuses start-up options."""

    def parameters(name: str) -> dict[str, Any]:
        host = f"m.{name}.us-east-1.rds.amazonaws.com"
        credentials = PasswordCredentials("p")
        return make_connector(host, user="u", database="d", credentials=credentials).parameters()

    assert parameters("proxy-c0ffee")["prepare_threshold"] is None
    assert parameters("cluster-c0ffee")["prepare_threshold"] == 0
    assert "options" not in parameters("proxy-c0ffee")


def test_reader_is_asked_for_by_role(cluster: LocalAurora) -> None:
    """The same connector, for the other endpoint."""
    reader = replace(connect(cluster), role="reader")
    assert reader.parameters()["target"].kind == "reader"


def test_each_new_connection_has_a_fresh_token(
    cluster: LocalAurora, clock: Clock, open_pool: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty minutes on, the first token is past its age and a new connection is let in."""
    shown = len(cluster.tokens)
    pool = open_pool(connect(cluster))
    assert pool.fetch() == cluster.user
    clock.ahead_s = 20 * 60
    later = datetime.now(UTC).replace(tzinfo=None) + timedelta(minutes=20)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: later)
    expired = cluster.refusals["expired"]
    pool.hold(2)
    first, second = cluster.tokens[shown:]
    assert first != second
    assert cluster.refusals["expired"] == expired


# refusals

USER = "o'brien ?&=%/:@"


@dataclass
class Case:
    """How to be refused, and what is to be heard."""

    error: type[Exception]
    words: list[str]
    given: dict[str, Any] = field(default_factory=dict)
    by_address: bool = True
    reason: str | None = None
    prepare: Callable[[LocalAurora, Clock], object] = lambda cluster, clock: None


def other_key(cluster: LocalAurora) -> boto3.Session:
    keys = cluster.session.get_credentials()
    return boto3.Session(keys.access_key, "another", keys.token, region_name=cluster.region)


def expire(cluster: LocalAurora, clock: Clock) -> None:
    clock.ahead_s = 16 * 60


IAM_ADVICE = ["GRANT rds_iam TO", "rds-db:connect", "900 s", "CNAME"]
REFUSALS = {
    "expired token": Case(
        AuthenticationError,
        ['PAM authentication failed for user "langmem"', *IAM_ADVICE],
        reason="expired",
        prepare=expire,
    ),
    "wrong secret key": Case(
        AuthenticationError,
        ["PAM authentication failed", *IAM_ADVICE],
        given={"session": other_key},
        reason="bad-signature",
    ),
    "wrong user": Case(
        AuthenticationError,
        [f'authentication failed for user "{USER}"', f'GRANT rds_iam TO "{USER}"', f"/{USER}"],
        given={"user": USER},
        by_address=False,
    ),
    "token for another host": Case(
        AuthenticationError,
        ["PAM authentication failed", "elsewhere.internal", "127.0.0.1", "CNAME"],
        given={"endpoint": "elsewhere.internal"},
        reason="wrong-host",
        prepare=lambda cluster, clock: cluster.present("elsewhere.internal"),
    ),
    "token for another region": Case(
        AuthenticationError,
        ["PAM authentication failed", "region eu-west-9", *IAM_ADVICE],
        given={"region": "eu-west-9"},
        reason="wrong-region",
    ),
    "plain text": Case(
        AuthenticationError,
        ["no pg_hba.conf entry", "no encryption", "sslmode", "verify-full"],
        given={"sslmode": "disable"},
        reason="plain-text",
    ),
    "certificate of another authority": Case(
        CertificateError,
        [
            "certificate verify failed",
            "sslrootcert=",
            "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem",
        ],
        prepare=lambda cluster, clock: cluster.present(trusted=False),
    ),
    "authority of the local cluster against Amazon's": Case(
        CertificateError,
        ["certificate verify failed", str(BUNDLED)],
        given={"sslrootcert": None},
    ),
    "certificate for another host": Case(
        CertificateError,
        ['"other.internal" does not match host name "localhost"', "endpoint="],
        prepare=lambda cluster, clock: cluster.present("other.internal"),
    ),
    "unknown database": Case(
        DatabaseNotFoundError,
        ['database "nowhere" does not exist', "database="],
        given={"database": "nowhere"},
    ),
    "unknown host": Case(
        HostNotFoundError,
        ["m.cluster-c0ffee.us-east-1.rds.amazonaws.com:5432", "resolve", "VPC"],
        given={"name": "m.cluster-c0ffee.us-east-1.rds.amazonaws.com", "database": "d"},
        by_address=False,
    ),
    "unknown cluster": Case(
        ClusterNotFoundError,
        ["'nowhere'", "us-east-1"],
        given={"name": "nowhere"},
        by_address=False,
    ),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
@pytest.mark.filterwarnings("ignore::langgraph_aurora_store.connect.tls.InsecureTlsWarning")
def test_refusal_is_told_at_once_in_the_servers_words(
    cluster: LocalAurora, clock: Clock, open_pool: Open, case: Case
) -> None:
    """Within a second, not after the pool's 20; a psycopg error too; with what to do."""
    given = {k: v(cluster) if callable(v) else v for k, v in case.given.items()}
    connector = (by_address if case.by_address else connect)(cluster, **given)
    case.prepare(cluster, clock)
    refusals = cluster.refusals
    error, after_s = raised_by(open_pool(connector).fetch)
    assert type(error) is case.error
    for word in case.words:
        assert word in str(error)
    assert after_s < 1
    if issubclass(case.error, ConnectError):
        assert isinstance(error, psycopg.OperationalError)
        assert "user" in str(error)
    if case.reason:
        assert set(cluster.refusals - refusals) == {case.reason}


def test_iam_refusal_names_the_policys_resource(cluster: LocalAurora, open_pool: Open) -> None:
    """The ARN is there to copy, with the cluster's resource id and the user."""
    cluster.refuse_next(2)
    error, _ = raised_by(open_pool(connect(cluster)).fetch)
    arn = f"arn:aws:rds-db:us-east-1:123456789012:dbuser:{cluster.resource_id}/{cluster.user}"
    assert arn in str(error)


def test_intermittent_refusal_is_not_noticed(
    cluster: LocalAurora, open_pool: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """A valid token is refused now and then: tried once more, and not warned of."""
    pool = open_pool(connect(cluster))
    cluster.refuse_next(1)
    before = cluster.refusals["intermittent"]
    assert pool.fetch() == cluster.user
    assert cluster.refusals["intermittent"] - before == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_pool_serves_at_once_when_what_refused_it_is_mended(
    cluster: LocalAurora, open_pool: Open, user: str
) -> None:
    """A role made and granted after the refusal is let in by the same pool, without a wait."""
    pool = open_pool(connect(cluster, user=user))
    for _ in range(3):
        assert type(raised_by(pool.fetch)[0]) is AuthenticationError
    cluster.create_user(user)
    start = time.monotonic()
    assert pool.fetch() == user
    assert time.monotonic() - start < 1


def test_every_waiting_caller_is_told(cluster: LocalAurora, open_pool: Open) -> None:
    """Twenty callers, four connections at most: all hear the reason, none waits for a timeout."""
    pool = open_pool(connect(cluster, user="nobody"))
    start = time.monotonic()
    found = pool.together(20)
    assert {type(error) for error in found} == {AuthenticationError}
    assert len({id(error) for error in found}) == 20, "an error was raised by two callers"
    assert time.monotonic() - start < 2


def test_refused_growth_does_not_fail_those_whom_others_can_serve(
    cluster: LocalAurora, open_pool: Open
) -> None:
    """While one connection works, a refusal of a second makes callers share the first."""
    pool = open_pool(connect(cluster))
    pool.fetch()
    cluster.refuse_next(1000)
    assert pool.together(8, "SELECT current_user FROM pg_sleep(0.05)") == [cluster.user] * 8


def test_trouble_is_warned_of_once(
    cluster: LocalAurora, open_pool: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it is met; psycopg_pool's own lines, one for each attempt, are left out."""
    caplog.set_level(logging.INFO)
    pool = open_pool(connect(cluster, database="nowhere"))
    for _ in range(3):
        raised_by(pool.fetch)
    [warning] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.name.startswith("langgraph_aurora_store.")
    assert 'database "nowhere" does not exist' in warning.getMessage()


# trouble that passes


class Unready:
    """A PostgreSQL that says for so many attempts that it starts up, and then lets in."""

    def __init__(self, *, unready_for: float) -> None:
        self.left = unready_for
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._links: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            link, _ = self._listener.accept()
            start_up = link.recv(10_000)
            if not start_up:
                link.close()
                return
            if self.left > 0:
                fields = b"SFATAL\0C57P03\0Mthe database system is starting up\0\0"
                link.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
                link.close()
            else:
                link.sendall(b"R\0\0\0\x08\0\0\0\0" + b"Z\0\0\0\x05I")
                self._links.append(link)
            self.left -= 1

    def close(self) -> None:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join()
        for link in [self._listener, *self._links]:
            link.close()


def plain(port: int) -> Connector:
    """To a server of this test's own, which speaks no TLS."""
    with pytest.warns(InsecureTlsWarning):
        return make_connector(
            "127.0.0.1",
            user="u",
            database="d",
            port=port,
            credentials=PasswordCredentials("p"),
            sslmode="disable",
            environ={},
        )


def test_server_that_starts_up_is_waited_for(open_pool: Open) -> None:
    """The callers of a pool wait within its timeout, and are served when the server is ready."""
    with closing(Unready(unready_for=4)) as server:
        pool = open_pool(plain(server.port))
        [connection] = pool.hold(1)
        assert connection.info.user == "u"
        assert server.left < 0


def test_server_that_does_not_come_back_is_named_in_the_timeout(open_pool: Open) -> None:
    """The wait ends with the pool's timeout, and says what the last attempt met."""
    with closing(Unready(unready_for=float("inf"))) as server:
        pool = open_pool(plain(server.port), replace(SETTINGS, timeout_s=0.7))
        error, after_s = raised_by(lambda: pool.hold(1))
    assert isinstance(error, PoolTimeoutError)
    assert isinstance(error, psycopg_pool.PoolTimeout)
    assert "no connection within 0.70 s" in str(error)
    assert "the database system is starting up" in str(error)
    assert 0.6 < after_s < 1.7


def test_rests_between_attempts_are_shared_by_all_callers(open_pool: Open) -> None:
    """Twenty callers of a troubled server make it as few attempts as one."""
    with closing(Unready(unready_for=float("inf"))) as server:
        pool = open_pool(plain(server.port), replace(SETTINGS, timeout_s=1.0))
        counted, server.left = 10_000, 10_000
        pool.together(20)
        assert counted - server.left < 20


def test_closed_port_is_waited_for(open_pool: Open) -> None:
    """During a failover nothing listens for a while."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    pool = open_pool(plain(port), replace(SETTINGS, timeout_s=0.5))
    error, _ = raised_by(pool.fetch)
    assert isinstance(error, PoolTimeoutError)
    assert "Connection refused" in str(error)


def test_paused_cluster_is_waited_for(cluster: LocalAurora, open_pool: Open) -> None:
    """Serverless v2 answers late when it resumes: longer than one attempt may take."""
    cluster.pause(resume_s=SETTINGS.connect_timeout_s + 0.5)
    assert open_pool(connect(cluster)).fetch() == cluster.user


def test_way_in_that_is_closed_is_told_after_one_attempt(open_pool: Open) -> None:
    """A security group lets packets vanish: the commonest first mistake costs one timeout."""
    with socket.socket() as deaf, ExitStack() as stack:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address = deaf.getsockname()
        for _ in range(4):  # fills the queue, so that the kernel drops whoever comes next
            dial = stack.enter_context(socket.socket())
            dial.setblocking(False)
            dial.connect_ex(address)
        error, after_s = raised_by(open_pool(plain(address[1])).fetch)
    assert type(error) is ConnectTimeoutError
    assert "security group" in str(error)
    assert after_s < SETTINGS.connect_timeout_s + 1


def test_exhausted_pool_names_its_size(cluster: LocalAurora, open_pool: Open) -> None:
    """A timeout without any trouble is too small a pool, or one held for too long."""
    pool = open_pool(connect(cluster), replace(SETTINGS, max_size=1, timeout_s=0.4))
    pool.fetch()
    found = pool.together(2, "SELECT current_user FROM pg_sleep(1.2)")
    [error] = [item for item in found if isinstance(item, Exception)]
    assert isinstance(error, PoolTimeoutError)
    assert "1 of at most 1 exist" in str(error)
    assert "max_size" in str(error)


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
    assert pool.together(count) == [cluster.user] * count
    assert time.monotonic() - start < 1


def test_connection_in_use_is_not_checked(cluster: LocalAurora, open_pool: Open) -> None:
    """A round trip is spent on what has idled for longer than the settings say, only."""
    pool = open_pool(connect(cluster), replace(SETTINGS, check_after_idle_s=60.0))
    pool.hold(1)
    cluster.cut_connections()
    with pytest.raises(psycopg.OperationalError):
        pool.fetch()
    assert pool.fetch() == cluster.user


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
        assert after_s < 1


# secrets


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


def test_no_secret_is_logged_shown_or_carried_by_an_error(
    cluster: LocalAurora, open_pool: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """Every logger at DEBUG, every repr, every traceback with its locals."""
    caplog.set_level(logging.DEBUG)
    listening = Listening(IamCredentials(cluster.session))
    connector = connect(cluster, credentials=listening)
    pool = open_pool(connector)
    pool.fetch()
    cluster.refuse_next(2)
    cluster.cut_connections()
    error, _ = raised_by(lambda: pool.hold(4))
    assert isinstance(error, AuthenticationError)
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    shown = [
        caplog.text,
        "".join(told.format()),
        repr([connector, connector.tls, pool.pool, pool.pool.kwargs, error, error.__cause__]),
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
        pool = make_pool(connect(cluster), SETTINGS)
        dropped = weakref.ref(pool)
        del pool
        assert dropped() is None
    finally:
        gc.enable()


def test_wait_is_over_with_the_first_connection_or_its_refusal(cluster: LocalAurora) -> None:
    """`open(wait=True)` says why there is no connection, and leaves the pool open."""
    settings = replace(SETTINGS, min_size=2)
    with make_pool(connect(cluster), settings) as pool:
        pool.wait()
        assert pool.get_stats()["pool_available"] >= 1
    with closing(make_pool(connect(cluster, database="nowhere"), settings)) as pool:
        with pytest.raises(DatabaseNotFoundError):
            pool.open(wait=True)
        assert not pool.closed


async def test_async_wait_is_over_with_the_first_connection_or_its_refusal(
    cluster: LocalAurora,
) -> None:
    """As in the blocking twin."""
    settings = replace(SETTINGS, min_size=2)
    async with make_async_pool(connect(cluster), settings) as pool:
        await pool.wait()
        assert pool.get_stats()["pool_available"] >= 1
    async with make_async_pool(connect(cluster, database="nowhere"), settings) as pool:
        with pytest.raises(DatabaseNotFoundError):
            await pool.wait()
        assert not pool.closed


def test_pool_that_is_closed_says_so(cluster: LocalAurora) -> None:
    """psycopg_pool's own error, not taken for trouble that passes."""
    pool = make_pool(connect(cluster), SETTINGS)
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
    with pytest.raises(ConfigurationError, match="max_size >= 1"):
        PoolSettings(min_size=0, max_size=0)
    with pytest.raises(ConfigurationError, match="timeout_s must be more than 0"):
        PoolSettings(timeout_s=0)
    with pytest.raises(ConfigurationError, match="'serverless' is unknown"):
        PoolSettings.chosen("serverless", on_lambda=False)  # type: ignore[arg-type]  # the point


@pytest.mark.parametrize(
    ("owner", "hook", "signature"),
    [
        ("ConnectionPool", "_connect", "(self, timeout: 'float | None' = None) -> 'CT'"),
        ("AsyncConnectionPool", "_connect", "(self, timeout: 'float | None' = None) -> 'ACT'"),
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
    """The queue of waiting callers, and how one of them is failed."""
    assert str(inspect.signature(WaitingClient.fail)) == "(self, error: 'Exception') -> 'bool'"
    assert inspect.iscoroutinefunction(AsyncWaitingClient.fail)
    assert "time_to_give_up" in vars(AttemptWithBackoff)
    pool = make_pool(connect(cluster), SETTINGS)
    assert len(pool._waiting) == 0
    with pool._lock:
        pool._waiting.clear()
