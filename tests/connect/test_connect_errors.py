"""Pools of a cluster that refuses, falters and recovers: who is told what, and when."""

import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import boto3
import psycopg
import psycopg_pool
import pytest

from langgraph_aurora_store.connect.connect_errors import Target, is_transient, translate
from langgraph_aurora_store.connect.connection_factory import ConnectionFactory, connection_factory
from langgraph_aurora_store.connect.credentials import (
    PasswordCredentials,
)
from langgraph_aurora_store.connect.tls import BUNDLED, InsecureTlsWarning
from langgraph_aurora_store.errors import (
    AuthenticationError,
    CertificateError,
    ClusterNotFoundError,
    ConnectError,
    ConnectTimeoutError,
    DatabaseNotFoundError,
    HostNotFoundError,
    PoolTimeoutError,
)
from langgraph_aurora_store.local import LocalAurora
from tests.support import pool_cases as pools
from tests.support.pool_cases import (
    AT_ONCE_S,
    SETTINGS,
    Clock,
    Open,
    by_address,
    connect,
    raised_by,
)

clock = pools.clock
cluster = pools.cluster
open_pool = pools.open_pool
stepped_cluster = pools.stepped_cluster
user = pools.user

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
    "certificate that has expired": Case(
        CertificateError,
        ["certificate verify failed", "expired", "clock", "openssl s_client -starttls postgres"],
        prepare=lambda cluster, clock: cluster.present(expired=True),
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
    factory = (by_address if case.by_address else connect)(cluster, **given)
    case.prepare(cluster, clock)
    refusals = cluster.refusals
    error, after_s = raised_by(open_pool(factory).fetch)
    assert type(error) is case.error
    for word in case.words:
        assert word in str(error)
    assert after_s < AT_ONCE_S
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
    assert time.monotonic() - start < AT_ONCE_S


def test_every_waiting_caller_is_told(cluster: LocalAurora, open_pool: Open) -> None:
    """Twenty callers, four connections at most: all hear the reason, none waits for a timeout."""
    pool = open_pool(connect(cluster, user="nobody"))
    start = time.monotonic()
    found = pool.together(20)
    assert {type(error) for error in found} == {AuthenticationError}
    assert len({id(error) for error in found}) == 20, "an error was raised by two callers"
    assert time.monotonic() - start < AT_ONCE_S


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

    def __init__(self, *, unready_for: float, port: int = 0) -> None:
        self.left = unready_for
        self._listener = socket.create_server(("127.0.0.1", port))
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
            self.left -= 1
            if self.left >= 0:
                fields = b"SFATAL\0C57P03\0Mthe database system is starting up\0\0"
                link.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
                link.close()
            else:
                link.sendall(b"R\0\0\0\x08\0\0\0\0" + b"Z\0\0\0\x05I")
                self._links.append(link)

    def close(self) -> None:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join()
        for link in [self._listener, *self._links]:
            link.close()


def plain(port: int) -> ConnectionFactory:
    """To a server of this test's own, which speaks no TLS."""
    with pytest.warns(InsecureTlsWarning):
        return connection_factory(
            "127.0.0.1",
            user="u",
            database="d",
            port=port,
            credentials=PasswordCredentials("a-password-of-its-own"),
            sslmode="disable",
            pooler=False,  # these servers answer no query
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
    assert 0.6 < after_s < 5


def test_timeout_keeps_its_cause_and_no_frame_of_it(open_pool: Open) -> None:
    """`__cause__` is the last refusal, whose own frames, which hold the password, are not."""
    with closing(Unready(unready_for=float("inf"))) as server:
        pool = open_pool(plain(server.port), replace(SETTINGS, timeout_s=0.5))
        error, _ = raised_by(lambda: pool.hold(1))
    assert isinstance(error, PoolTimeoutError)
    assert isinstance(error.__cause__, ConnectError)
    assert "the database system is starting up" in str(error.__cause__)
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    assert "the direct cause" in "".join(told.format())
    assert "a-password-of-its-own" not in "".join(told.format())
    reason: BaseException | None = error.__cause__
    while reason:
        assert reason.__traceback__ is None
        reason = reason.__cause__ or reason.__context__


def test_rests_between_attempts_are_shared_by_all_callers(open_pool: Open) -> None:
    """Twenty callers of a troubled server make it as few attempts as one."""
    with closing(Unready(unready_for=float("inf"))) as server:
        pool = open_pool(plain(server.port), replace(SETTINGS, timeout_s=1.0))
        counted, server.left = 10_000, 10_000
        pool.together(20)
        assert counted - server.left < 20


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return unused.getsockname()[1]


def test_closed_port_is_told_within_a_second_where_it_was_never_open(open_pool: Open) -> None:
    """A wrong port costs no timeout; the next caller is told by the next attempt."""
    pool = open_pool(plain(port := closed_port()))
    for longest_s in (1.5, 1.0):
        error, after_s = raised_by(pool.fetch)
        assert type(error) is ConnectError
        assert after_s < longest_s
        for word in (f"127.0.0.1:{port}", "refused", "port=", "stopped", "security group"):
            assert word in str(error)


def test_closed_port_is_tried_more_than_once(open_pool: Open) -> None:
    """A server that is about to listen, as when everything is started at once, is found."""
    pool = open_pool(plain(port := closed_port()))
    with ExitStack() as stack:
        opening = threading.Timer(
            0.15, lambda: stack.enter_context(closing(Unready(unready_for=0, port=port)))
        )
        opening.start()
        try:
            assert pool.hold(1)[0].info.user == "u"
        finally:
            opening.join()


def test_port_that_was_open_is_waited_for(open_pool: Open) -> None:
    """During a failover nothing listens for a while."""
    server = Unready(unready_for=0)
    with closing(server):
        pool = open_pool(plain(server.port))
        pool.hold(1)
    found: list[Any] = []
    caller = threading.Thread(target=lambda: found.extend(pool.hold(1)))
    caller.start()
    caller.join(1.5)
    assert caller.is_alive(), "given up, though the port had been open"
    with closing(Unready(unready_for=0, port=server.port)):
        caller.join(5)
        assert len(found) == 1


def test_port_that_was_open_and_stays_closed_is_named_in_the_timeout(open_pool: Open) -> None:
    """With the same advice."""
    server = Unready(unready_for=0)
    with closing(server):
        settings = replace(SETTINGS, timeout_s=0.7)
        pool = open_pool(plain(server.port), settings)
        pool.hold(1)
    error, after_s = raised_by(lambda: pool.hold(1))
    assert isinstance(error, PoolTimeoutError)
    assert after_s > 0.6
    assert "refused" in str(error)
    assert "stopped" in str(error)


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
        for _ in range(4):  # fills the queue, so that the kernel drops the next
            dial = stack.enter_context(socket.socket())
            dial.setblocking(False)
            dial.connect_ex(address)
        error, after_s = raised_by(open_pool(plain(address[1])).fetch)
    assert type(error) is ConnectTimeoutError
    assert "security group" in str(error)
    assert after_s < SETTINGS.connect_timeout_s + AT_ONCE_S


def test_exhausted_pool_names_its_size(cluster: LocalAurora, open_pool: Open) -> None:
    """A timeout without any trouble is too small a pool, or one held for too long."""
    pool = open_pool(connect(cluster), replace(SETTINGS, max_size=2))
    error, _ = raised_by(lambda: pool.ask_for_one_more(timeout_s=0.1))
    assert isinstance(error, PoolTimeoutError)
    assert "no connection within 0.10 s; 2 of at most 2 exist" in str(error)
    assert "max_size" in str(error)


# what is read from the server's words


TARGET = Target(
    "langmem",
    "px.proxy-c0ffee.us-east-1.rds.amazonaws.com",
    5432,
    "memory",
    "us-east-1",
    "proxy",
    "IAM token",
)
AT = 'connection failed: connection to server at "10.0.0.1", port 5432 failed: '


@pytest.mark.parametrize(
    ("words", "error", "advice", "transient"),
    [
        ("FATAL:  the database system is starting up", ConnectError, "", True),
        ("FATAL:  the database system is in recovery mode", ConnectError, "", True),
        ("FATAL:  sorry, too many clients already", ConnectError, "", True),
        ("FATAL:  remaining connection slots are reserved for x", ConnectError, "", True),
        ("FATAL:  terminating connection due to administrator command", ConnectError, "", True),
        (
            "server closed the connection unexpectedly\n\tThis probably means",
            ConnectError,
            "",
            True,
        ),
        ("SSL SYSCALL error: EOF detected", ConnectError, "", True),
        ("SSL error: unexpected eof while reading", ConnectError, "", True),
        ("FATAL:  Timed-out waiting to acquire database connection", ConnectError, "", True),
        (
            "FATAL:  This RDS proxy has no credentials for the role langmem. Check the credentials"
            " for this role and try again.",
            AuthenticationError,
            "aws rds modify-db-proxy",
            False,
        ),
        (
            "FATAL:  The IAM authentication failed for the role langmem. Check the IAM token for"
            " this role and try again.",
            AuthenticationError,
            "rds-db:connect",
            False,
        ),
        ("This RDS Proxy requires TLS connections", AuthenticationError, "sslmode", False),
        ('FATAL:  role "langmem" is not permitted to log in', AuthenticationError, "", False),
        (
            'FATAL:  permission denied for database "memory"\nDETAIL:  User does not have CONNECT',
            AuthenticationError,
            'GRANT CONNECT ON DATABASE "memory" TO "langmem"',
            False,
        ),
        ('FATAL:  database "memory" does not exist', DatabaseNotFoundError, "database=", False),
        ("server does not support SSL, but SSL was required", ConnectError, "speaks no TLS", False),
        (
            "Multiple connection attempts failed. All failures were:\n- Connection refused\n"
            '- FATAL:  PAM authentication failed for user "langmem"',
            AuthenticationError,
            "GRANT rds_iam",
            False,
        ),
    ],
)
def test_words_of_server_and_proxy_are_understood(
    words: str, error: type[Exception], advice: str, transient: bool
) -> None:
    """libpq gives no SQLSTATE for a failed attempt: the words decide on class and patience."""
    found = translate(psycopg.OperationalError(AT + words), TARGET)
    assert type(found) is error
    assert is_transient(found) is transient
    assert words.partition("\n")[0] in str(found)
    assert advice in str(found)
    assert "10.0.0.1" not in str(found)
    assert "This probably means" not in str(found)


@pytest.mark.parametrize(
    ("sqlstate", "transient"), [("57P01", True), ("53300", True), ("42501", False)]
)
def test_sqlstate_decides_where_there_is_one(sqlstate: str, transient: bool) -> None:
    """Errors after connecting carry one, whatever their words."""
    error = psycopg.errors.lookup(sqlstate)("worte")
    assert is_transient(error) is transient


def test_password_of_a_role_with_rds_iam_is_explained() -> None:
    """A password that is right may be refused for the grant."""
    error = translate(
        psycopg.OperationalError('FATAL:  PAM authentication failed for user "u"'),
        TARGET._replace(method="password"),
    )
    assert "granted rds_iam, which takes precedence" in str(error)


REFUSED = psycopg.OperationalError('FATAL:  PAM authentication failed for user "langmem"')


@pytest.mark.parametrize(
    ("region", "kind", "resource"),
    [
        ("us-east-1", "writer", "arn:aws:rds-db:us-east-1:ACCOUNT:dbuser:CLUSTER_RESOURCE_ID/"),
        ("cn-north-1", "writer", "arn:aws-cn:rds-db:cn-north-1:"),
        ("us-gov-west-1", "instance", "arn:aws-us-gov:rds-db:us-gov-west-1:"),
        ("eusc-de-east-1", "writer", "arn:aws-eusc:rds-db:eusc-de-east-1:"),
        (None, "writer", "arn:aws:rds-db:REGION:ACCOUNT:"),
        ("us-east-1", "proxy", ":dbuser:prx-RESOURCE_ID/langmem"),
    ],
)
def test_policys_resource_is_of_the_right_partition(
    region: str | None, kind: Any, resource: str
) -> None:
    """What is not known stands there to be filled in, and never as None."""
    error = translate(REFUSED, TARGET._replace(region=region, kind=kind))
    assert resource in str(error)
    assert "None" not in str(error)


def test_iam_may_be_off_where_nobody_has_looked(cluster: LocalAurora, open_pool: Open) -> None:
    """Nothing tells for an endpoint's name whether the cluster takes tokens at all."""
    cluster.iam_enabled = False
    error, _ = raised_by(open_pool(by_address(cluster)).fetch)
    assert type(error) is AuthenticationError
    assert "modify-db-cluster --enable-iam-database-authentication" in str(error)
    found = translate(REFUSED, TARGET._replace(kind="writer", connect_resource="arn:x"))
    assert "modify-db-cluster" not in str(found)
