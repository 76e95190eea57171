"""The local Aurora refuses and answers as documented, seen by plain psycopg and boto3."""

import datetime
import hashlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import boto3
import psycopg
import pytest
from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from langgraph_aurora_store.local import LocalAurora
from langgraph_aurora_store.local.tokens import Keys, TokenScope, reason_to_refuse
from tests.support.database import Database

HOSTILE = "pa?ss&=%/:@' wörd"
ENDPOINT = "memory.cluster-abc123.us-east-1.rds.amazonaws.com"
PAM = 'PAM authentication failed for user "{}"'


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def named(clock: Clock) -> Iterator[LocalAurora]:
    """A cluster with an endpoint like a real one, temporary keys and a clock of its own."""
    with LocalAurora(
        "agent-memory",
        endpoint=ENDPOINT,
        session_token="of an assumed role",
        clock=clock,
        export=False,
    ) as cluster:
        yield cluster


def make_token(cluster: LocalAurora, **changes: str | None) -> str:
    """Sign a token as botocore does for ``generate_db_auth_token``, with something changed."""
    keys = cluster.session.get_credentials().get_frozen_credentials()
    credentials = Credentials(
        changes.get("access_key") or keys.access_key,
        changes.get("secret_key") or keys.secret_key,
        changes.get("session_token", keys.token),
    )
    host, port = changes.get("host") or cluster.endpoint, changes.get("port") or cluster.port
    query = {
        "Action": changes.get("action") or "connect",
        "DBUser": changes.get("user") or cluster.user,
    }
    request = AWSRequest("GET", f"https://{host}:{port}/", params=query)
    service, region = changes.get("service") or "rds-db", changes.get("region") or cluster.region
    SigV4QueryAuth(credentials, service, region, expires=900).add_auth(request)
    return request.url.removeprefix("https://")


def connect(cluster: LocalAurora, **parameters: object) -> psycopg.Connection:
    """Connect through the proxy, by default with a good token and full verification."""
    parameters.setdefault("user", cluster.user)
    if "password" not in parameters:
        parameters["password"] = make_token(cluster)
    return psycopg.connect(
        **{
            "host": cluster.endpoint,
            "hostaddr": "127.0.0.1",
            "port": cluster.port,
            "dbname": cluster.database,
            "sslmode": "verify-full",
            "sslrootcert": cluster.sslrootcert,
            "autocommit": True,
            **parameters,
        }
    )


def assert_refused(cluster: LocalAurora, words: str, reason: str, **parameters: object) -> None:
    """The client reads the words, and exactly this reason is counted."""
    before = cluster.refusals
    with pytest.raises(psycopg.OperationalError) as refusal:
        connect(cluster, **parameters)
    assert words in str(refusal.value)
    assert cluster.refusals - before == {reason: 1}


def test_a_good_token_lets_its_role_in(database: Database):
    """The role named in the token gets a session of its own, encrypted, with pgvector there."""
    cluster = database.cluster
    token, accepted = make_token(cluster), cluster.accepted
    with connect(cluster, dbname=database.name, password=token) as connection:
        assert connection.pgconn.ssl_in_use
        connection.execute("CREATE TABLE t (v vector(3))")
        assert connection.execute("SELECT current_user, session_user").fetchone() == (
            cluster.user,
            cluster.user,
        )
    assert cluster.accepted == accepted + 1
    assert cluster.tokens[-1] == hashlib.sha256(token.encode()).hexdigest()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"secret_key": "another key"}, "bad-signature"),
        ({"access_key": "AKIAIOSFODNN7EXAMPLE"}, "wrong-access-key"),
        ({"user": "somebody"}, "wrong-user"),
        ({"host": "127.0.0.1"}, "wrong-host"),
        ({"port": "5432"}, "wrong-port"),
        ({"region": "eu-west-1"}, "wrong-region"),
        ({"service": "rds"}, "wrong-service"),
        ({"action": "disconnect"}, "wrong-action"),
        ({"session_token": "of somebody else"}, "wrong-session-token"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_token_signed_for_something_else_is_refused(database: Database, change, reason):
    """Each thing a token is bound to is checked, and the count says which was wrong."""
    cluster = database.cluster
    token = make_token(cluster, **change)
    assert_refused(cluster, PAM.format(cluster.user), reason, password=token)


@pytest.mark.parametrize("token", ["garbage", HOSTILE, "localhost:5432/?Action=connect"])
def test_what_is_no_token_is_refused(database: Database, token):
    """A password or half a token is an authentication failure like any other."""
    cluster = database.cluster
    assert_refused(cluster, PAM.format(cluster.user), "garbage", password=token)


def test_a_token_with_any_one_character_changed_is_refused():
    """The signature covers all of the token; tried on the verdict itself, without connecting."""
    keys = Keys("AKIAIOSFODNN7EXAMPLE", "secret", "session/token+with=signs")
    scope = TokenScope(frozenset({"localhost"}), 5432, "us-east-1")
    session = boto3.Session(keys.access_key, keys.secret_key, keys.session_token, "us-east-1")
    token = session.client("rds").generate_db_auth_token("localhost", 5432, "a b&c")
    now = datetime.datetime.now(datetime.UTC).timestamp()

    def judge(candidate: str) -> str | None:
        return reason_to_refuse(candidate, user="a b&c", scope=scope, keys=keys, now=now)

    assert judge(token) is None
    let_in = [
        token[:at] + other + token[at + 1 :]
        for at, character in enumerate(token)
        if not judge(token[:at] + (other := "x" if character != "x" else "y") + token[at + 1 :])
    ]
    assert let_in == []


def test_a_token_is_good_for_fifteen_minutes(named: LocalAurora, clock: Clock):
    """Until then it opens a connection, after that none; one from the future neither."""
    token = make_token(named)
    clock.ahead_s = 880
    connect(named, password=token).close()
    clock.ahead_s = 910
    assert_refused(named, PAM.format(named.user), "expired", password=token)
    clock.ahead_s = -1000
    assert_refused(named, PAM.format(named.user), "not-yet-valid", password=token)
    clock.ahead_s = 0


def test_an_endpoint_can_have_a_name_like_a_real_one(named: LocalAurora):
    """Its certificate and its tokens are for that name, and not for localhost."""
    with connect(named) as connection:
        assert connection.info.host == ENDPOINT
    token = make_token(named, host="localhost")
    assert_refused(named, PAM.format(named.user), "wrong-host", password=token)
    with pytest.raises(psycopg.OperationalError, match="does not match host name"):
        connect(named, host="localhost")


def test_temporary_keys_need_their_session_token(named: LocalAurora):
    """A token signed with the right keys but without the session's token is refused."""
    token = make_token(named, session_token=None)
    assert_refused(named, PAM.format(named.user), "wrong-session-token", password=token)


def test_plain_text_is_refused_in_postgresqls_words(database: Database):
    """Before any password is asked for, with SQLSTATE 28000."""
    cluster = database.cluster
    words = (
        f'no pg_hba.conf entry for host "127.0.0.1", user "{cluster.user}", '
        f'database "{cluster.database}", no encryption'
    )
    assert_refused(cluster, words, "plain-text", sslmode="disable")
    with socket.create_connection(("127.0.0.1", cluster.port)) as client:
        client.sendall(startup(user="nobody"))
        assert b"C28000\0" in client.makefile("rb").read()


def test_a_certificate_for_another_host_fails_verification(database: Database):
    """The authority is right, the name is not."""
    database.cluster.present("elsewhere.example.com")
    with pytest.raises(psycopg.OperationalError, match=r"certificate for \"elsewhere.example.com"):
        connect(database.cluster)


def test_a_certificate_of_another_authority_fails_verification(database: Database):
    """The name is right, the authority is not; ``reset`` brings back the right one."""
    database.cluster.present(trusted=False)
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        connect(database.cluster)
    database.cluster.reset()
    connect(database.cluster).close()


def test_a_password_opens_for_a_role_without_rds_iam_only(database: Database):
    """The server checks it, so a rotation counts; a role granted rds_iam needs a token."""
    cluster, user = database.cluster, f"{database.name} user@home"
    cluster.create_user(user, password=HOSTILE)
    connect(cluster, user=user, password=HOSTILE).close()
    cluster.set_password(user, "rotated")
    words = f'password authentication failed for user "{user}"'
    assert_refused(cluster, words, "28P01", user=user, password=HOSTILE)
    connect(cluster, user=user, password="rotated").close()
    with psycopg.connect(cluster.admin_dsn, autocommit=True) as admin:
        admin.execute(f'GRANT rds_iam TO "{user}"')
    assert_refused(cluster, PAM.format(user), "garbage", user=user, password="rotated")
    connect(cluster, user=user, password=make_token(cluster, user=user)).close()


def test_rds_iam_may_be_inherited_from_another_role(database: Database):
    """A role granted a role granted rds_iam signs in by token."""
    cluster, user = database.cluster, f"{database.name}_member"
    with psycopg.connect(cluster.admin_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {user} LOGIN IN ROLE {cluster.user}")
    connect(cluster, user=user, password=make_token(cluster, user=user)).close()


def test_an_unknown_role_is_an_authentication_failure(database: Database):
    """Whether a role exists is not to be learned from the proxy."""
    cluster = database.cluster
    words = 'password authentication failed for user "nobody"'
    token = make_token(cluster, user="nobody")
    assert_refused(cluster, words, "28P01", user="nobody", password=token)


def test_nobody_enters_as_the_superuser(database: Database):
    """RDS keeps rdsadmin to itself; here it would need no password behind the proxy."""
    words = 'pg_hba.conf rejects connection for host "127.0.0.1", user "rdsadmin"'
    assert_refused(database.cluster, words, "reserved-user", user="rdsadmin")


def test_the_servers_own_refusal_passes_through(database: Database):
    """After a good token an unknown database is the server's business."""
    with pytest.raises(psycopg.OperationalError, match='database "nowhere" does not exist'):
        connect(database.cluster, dbname="nowhere")


def test_the_cluster_is_described_as_rds_does(database: Database):
    """By identifier and by ARN, through a real boto3 client of the cluster's session."""
    cluster = database.cluster
    client = cluster.session.client("rds")
    for name in (cluster.identifier, cluster.arn):
        [found] = client.describe_db_clusters(DBClusterIdentifier=name)["DBClusters"]
        assert (found["Endpoint"], found["Port"]) == (cluster.endpoint, cluster.port)
        assert found["ReaderEndpoint"] == cluster.reader_endpoint
        assert found["DatabaseName"] == cluster.database
        assert found["DBClusterArn"] == cluster.arn
        assert found["DbClusterResourceId"] == cluster.resource_id
        assert found["Engine"] == "aurora-postgresql"
        assert found["Status"] == "available"
        assert found["IAMDatabaseAuthenticationEnabled"] is True


def test_another_cluster_is_not_found(database: Database):
    """The modelled fault, so that ``except client.exceptions…`` works."""
    client = database.cluster.session.client("rds")
    with pytest.raises(client.exceptions.DBClusterNotFoundFault, match="nowhere not found"):
        client.describe_db_clusters(DBClusterIdentifier="nowhere")


def test_describing_can_be_denied(database: Database):
    """As for a caller whose policy lacks rds:DescribeDBClusters."""
    database.cluster.describe_denied = True
    client = database.cluster.session.client("rds")
    with pytest.raises(ClientError, match=r"AccessDenied.*rds:DescribeDBClusters"):
        client.describe_db_clusters(DBClusterIdentifier=database.cluster.identifier)


def test_iam_authentication_can_be_switched_off(database: Database):
    """The API reports it and no token is accepted any more."""
    cluster = database.cluster
    cluster.iam_enabled = False
    [found] = cluster.session.client("rds").describe_db_clusters()["DBClusters"]
    assert found["IAMDatabaseAuthenticationEnabled"] is False
    assert_refused(cluster, PAM.format(cluster.user), "iam-disabled")


def test_the_session_ignores_the_machines_own_settings(database: Database, monkeypatch):
    """A profile that does not exist and another RDS in the environment change nothing."""
    monkeypatch.setenv("AWS_PROFILE", "nowhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL_RDS", "http://127.0.0.1:1")
    with LocalAurora(export=False) as cluster:
        client = cluster.session.client("rds")
        assert client.describe_db_clusters()["DBClusters"][0]["Port"] == cluster.port


def test_another_process_finds_it_by_environment(database: Database):
    """``environment`` holds all that plain boto3 and libpq need."""
    script = """if True:
        import boto3, os, psycopg
        rds = boto3.client("rds")
        name, user = os.environ["AURORA_CLUSTER"], os.environ["AURORA_USER"]
        [c] = rds.describe_db_clusters(DBClusterIdentifier=name)["DBClusters"]
        token = rds.generate_db_auth_token(c["Endpoint"], c["Port"], user)
        with psycopg.connect(host=c["Endpoint"], port=c["Port"], user=user, password=token,
                             dbname=os.environ["AURORA_DATABASE"], sslmode="verify-full") as conn:
            print(*conn.execute("SELECT current_user, current_database()").fetchone())
    """
    cluster = database.cluster
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **cluster.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == [cluster.user, cluster.database]


def test_open_connections_can_be_cut(database: Database):
    """Every one is dead when the call returns; the next client is let in."""
    cluster = database.cluster
    connections = [connect(cluster) for _ in range(3)]
    assert cluster.cut_connections() >= 3
    assert cluster.open_connections == 0
    for connection in connections:
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
        connection.close()
    connect(cluster).close()


def test_good_tokens_can_be_refused_for_a_while(database: Database):
    """As many as asked for, then no more."""
    cluster = database.cluster
    cluster.refuse_next(2)
    for _ in range(2):
        assert_refused(cluster, PAM.format(cluster.user), "intermittent")
    connect(cluster).close()


def test_a_paused_cluster_wakes_for_the_next_client(database: Database):
    """Who is connected is cut; the next client waits for the resume and is then served."""
    cluster = database.cluster
    with connect(cluster) as connection:
        cluster.pause(resume_s=0.3)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    began = time.monotonic()
    connect(cluster).close()
    assert time.monotonic() - began >= 0.3


def test_a_delay_is_paid_once_per_round_trip(database: Database):
    """A statement pays it, twenty in a pipeline together do not pay it twenty times."""
    with connect(database.cluster) as connection:
        database.cluster.delay_s = 0.1
        began = time.monotonic()
        connection.execute("SELECT 1")
        assert time.monotonic() - began >= 0.1
        began = time.monotonic()
        with connection.pipeline():
            cursors = [connection.execute("SELECT %s::int", [n]) for n in range(20)]
        assert time.monotonic() - began < 20 * 0.1
        assert [cursor.fetchone() for cursor in cursors] == [(n,) for n in range(20)]


def test_a_stalled_link_passes_nothing_and_stays_open(database: Database):
    """A black hole: no error and no answer, until it is lifted."""
    with connect(database.cluster) as connection:
        database.cluster.stalled = True
        answered = threading.Event()

        def ask() -> None:
            connection.execute("SELECT 1")
            answered.set()

        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask)
            assert not answered.wait(0.2)
            database.cluster.stalled = False
            asking.result(timeout=30)


def test_a_statement_can_be_cancelled_through_the_proxy(database: Database):
    """libpq's cancel request travels on a connection of its own."""
    with (
        connect(database.cluster) as connection,
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(database.admin_dsn, autocommit=True) as admin,
    ):
        sleeping = pool.submit(connection.execute, "SELECT pg_sleep(60)")
        active = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
        while not admin.execute(active, [connection.info.backend_pid]).fetchone():
            pass
        connection.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            sleeping.result(timeout=30)


def test_much_data_both_ways_at_once_does_not_block(database: Database):
    """A pipeline that sends before it reads fills both directions of the proxy process."""
    text = "x" * 1_000_000
    with connect(database.cluster) as connection, connection.pipeline():
        cursors = [connection.execute("SELECT %s || %s", [text, str(n)]) for n in range(30)]
        assert [c.fetchone() for c in cursors] == [(text + str(n),) for n in range(30)]


def test_many_clients_connect_at_once(database: Database):
    """Each gets a session of its own."""
    accepted = database.cluster.accepted
    with ThreadPoolExecutor(40) as pool:
        connections = list(pool.map(lambda _: connect(database.cluster), range(40)))
    assert len({connection.info.backend_pid for connection in connections}) == 40
    assert database.cluster.accepted == accepted + 40
    for connection in connections:
        connection.close()


def test_tls_may_be_negotiated_directly(database: Database):
    """``sslnegotiation=direct`` spares a round trip, as with PostgreSQL 17 and later."""
    connect(database.cluster, sslnegotiation="direct").close()


def test_gss_encryption_is_declined(database: Database):
    """A client that asks for it first goes on with TLS."""
    with socket.create_connection(("127.0.0.1", database.cluster.port)) as client:
        for request, answer in ((80877104, b"N"), (80877103, b"S")):
            client.sendall(struct.pack("!ii", 8, request))
            assert client.recv(1) == answer


def test_noise_on_the_port_harms_nobody(database: Database):
    """What does not speak the protocol is hung up on."""
    with socket.create_connection(("127.0.0.1", database.cluster.port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
    connect(database.cluster).close()


def test_databases_share_nothing(database: Database):
    """A database of one test has none of the tables of another."""
    with psycopg.connect(database.owner_dsn) as connection:
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert connection.execute(tables).fetchone() == (0,)
        connection.execute("CREATE TABLE left_over ()")
    database.cluster.create_database(f"{database.name}_2", template="template0")
    with psycopg.connect(database.cluster.admin_dsn_for(f"{database.name}_2")) as connection:
        assert connection.execute(tables).fetchone() == (0,)
        extension = "SELECT 1 FROM pg_extension WHERE extname = 'vector'"
        assert connection.execute(extension).fetchone() is None
    database.cluster.drop_database(f"{database.name}_2")


def test_no_secret_is_in_a_repr(named: LocalAurora):
    """Neither key nor session token, whatever is printed of the parts."""
    keys = named.session.get_credentials().get_frozen_credentials()
    shown = " ".join(map(repr, (named, vars(named), named.session)))
    assert ENDPOINT in shown
    assert keys.secret_key not in shown
    assert keys.token not in shown


def startup(**parameters: str) -> bytes:
    """A StartupMessage of protocol 3.0."""
    body = b"".join(f"{name}\0{value}\0".encode() for name, value in parameters.items())
    return struct.pack("!ii", len(body) + 9, 196608) + body + b"\0"
