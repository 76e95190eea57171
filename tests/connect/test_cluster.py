"""From any name of a cluster to its endpoints."""

import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.awsrequest import AWSResponse
from botocore.credentials import DeferredRefreshableCredentials
from botocore.exceptions import ClientError
from moto import mock_aws

from langgraph_aurora_store.connect.cluster_lookup import Cluster, Endpoint
from langgraph_aurora_store.connect.connection_factory import connection_factory
from langgraph_aurora_store.connect.credentials import PasswordCredentials
from langgraph_aurora_store.errors import (
    ClusterAccessDeniedError,
    ClusterError,
    ClusterNotFoundError,
    ConfigurationError,
    CredentialsError,
    HostNotFoundError,
    IamAuthenticationDisabledError,
)
from langgraph_aurora_store.local import LocalAurora

ID = "c0ffee123456"


class Redirected(boto3.Session):
    """The local cluster's session, with its region or the way to its API changed."""

    def __init__(
        self,
        aurora: LocalAurora,
        *,
        region_name: str = "us-east-1",
        endpoint_url: str | None = None,
    ) -> None:
        keys = aurora.session.get_credentials()
        super().__init__(keys.access_key, keys.secret_key, keys.token, region_name=region_name)
        self._aurora = aurora
        self._url = {"endpoint_url": endpoint_url} if endpoint_url else {}

    def client(self, *args: Any, **kwargs: Any) -> Any:
        return self._aurora.session.client(*args, **{**kwargs, **self._url})


NAMES = [
    (f"mem.cluster-{ID}.eu-west-1.rds.amazonaws.com", "writer", "eu-west-1"),
    (f"mem.cluster-ro-{ID}.eu-west-1.rds.amazonaws.com", "reader", "eu-west-1"),
    (f"mem.cluster-custom-{ID}.ap-southeast-2.rds.amazonaws.com", "custom", "ap-southeast-2"),
    (f"mem-1.{ID}.us-east-1.rds.amazonaws.com", "instance", "us-east-1"),
    (f"px.proxy-{ID}.us-east-1.rds.amazonaws.com", "proxy", "us-east-1"),
    (f"ro.endpoint.proxy-{ID}.us-east-1.rds.amazonaws.com", "proxy", "us-east-1"),
    (f"mem.global-{ID}.global.rds.amazonaws.com", "global", None),
    (f"mem.cluster-{ID}.rds.cn-north-1.amazonaws.com.cn", "writer", "cn-north-1"),
    (f"mem.cluster-ro-{ID}.rds.cn-northwest-1.amazonaws.com.cn", "reader", "cn-northwest-1"),
    (f"mem.cluster-{ID}.cn-north-1.rds.amazonaws.com.cn", "writer", "cn-north-1"),
    (f"mem-1.{ID}.rds.cn-north-1.amazonaws.com.cn", "instance", "cn-north-1"),
    (f"px.proxy-{ID}.rds.cn-north-1.amazonaws.com.cn", "proxy", "cn-north-1"),
    (f"mem.cluster-{ID}.us-gov-west-1.rds.amazonaws.com", "writer", "us-gov-west-1"),
    (f"mem.cluster-{ID}.rds.us-gov-east-1.amazonaws.com", "writer", "us-gov-east-1"),
    (f"mem.cluster-{ID}.eusc-de-east-1.rds.amazonaws.eu", "writer", "eusc-de-east-1"),
    (f"mem.cluster-{ID}.us-iso-east-1.rds.c2s.ic.gov", "writer", "us-iso-east-1"),
    (f"mem.cluster-{ID}.us-isob-east-1.rds.sc2s.sgov.gov", "writer", "us-isob-east-1"),
    (f"mem.cluster-{ID}.eu-isoe-west-1.rds.cloud.adc-e.uk", "writer", "eu-isoe-west-1"),
    (f"mem.cluster-{ID}.us-isof-south-1.rds.csp.hci.ic.gov", "writer", "us-isof-south-1"),
    (f"MEM.cluster-{ID}.eu-west-1.rds.amazonaws.com.", "writer", "eu-west-1"),
]


@pytest.mark.parametrize(("name", "kind", "region"), NAMES)
def test_endpoint_name_tells_kind_and_region(name: str, kind: str, region: str | None) -> None:
    """Nothing is looked up for a host name: it says kind and region itself, in each partition."""
    endpoint = Cluster(name, database="memory").writer()
    assert endpoint == Endpoint(
        host=name.lower().rstrip("."), port=5432, kind=kind, region=region, database="memory"
    )


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        (NAMES[0][0], NAMES[1][0]),
        (
            f"mem.cluster-{ID}.rds.cn-north-1.amazonaws.com.cn",
            f"mem.cluster-ro-{ID}.rds.cn-north-1.amazonaws.com.cn",
        ),
        *[(name, name) for name, kind, _ in NAMES if kind in {"reader", "instance", "proxy"}],
    ],
)
def test_reader_is_the_readers_endpoint_of_a_writer_and_else_the_same(
    writer: str, reader: str
) -> None:
    """A writer's name gives the reader's; an instance, a proxy and a reader serve reads too."""
    assert Cluster(writer).reader().host == reader


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "-memory",
        "memory-",
        "a--b",
        "m" * 64,
        "postgresql://db.internal/memory",
        "db.internal:5432",
        "db internal.example",
        "arn:aws:rds:us-east-1:123456789012:db:memory-1",
        "arn:aws:rds::123456789012:global-cluster:memory",
        "arn:aws:s3:::bucket",
    ],
)
def test_what_is_no_cluster_name_is_refused_when_made(name: str) -> None:
    """The caller's mistake is told before anything is contacted."""
    with pytest.raises(ConfigurationError, match=r"pass|is not"):
        Cluster(name)


def test_region_that_contradicts_the_name_is_refused() -> None:
    """A token for another region would be refused later with less to go on."""
    with pytest.raises(ConfigurationError, match=r"region='us-east-1' contradicts .*eu-west-1"):
        Cluster(NAMES[0][0], region="us-east-1")


def test_alias_is_dialled_under_the_name_it_stands_for() -> None:
    """The certificate and the token are the endpoint's; only the address is the alias's."""
    endpoint = Cluster("127.0.0.1", endpoint=NAMES[0][0]).writer()
    assert (endpoint.host, endpoint.addresses) == (NAMES[0][0], ("127.0.0.1",))
    assert (endpoint.kind, endpoint.region) == ("writer", "eu-west-1")
    reader = Cluster("127.0.0.1", endpoint=NAMES[0][0]).reader()
    assert (reader.host, reader.addresses) == (NAMES[1][0], ())


def test_alias_is_resolved_at_each_use() -> None:
    """A custom domain moves with a failover: its address is not remembered."""
    cluster = Cluster("localhost", endpoint=NAMES[0][0])
    assert set(cluster.writer().addresses) & {"127.0.0.1", "::1"}
    assert cluster.writer() is not cluster.writer()


def test_tunnels_port_is_dialled_and_the_endpoints_is_signed_for() -> None:
    """`endpoint="HOST:PORT"` tells them apart; a reader's endpoint is not behind the tunnel."""
    cluster = Cluster("127.0.0.1", endpoint=f"{NAMES[0][0]}:5433", port=15432)
    writer = cluster.writer()
    assert (writer.host, writer.port, writer.dialled_port) == (NAMES[0][0], 5433, 15432)
    assert (cluster.reader().port, cluster.reader().dialled_port) == (5433, None)
    alone = Cluster("127.0.0.1", endpoint=f"{NAMES[0][0]}:5433").writer()
    assert (alone.port, alone.dialled_port) == (5433, 5433)
    same = Cluster("127.0.0.1", endpoint=NAMES[0][0], port=15432).writer()
    assert (same.port, same.dialled_port) == (15432, None)


@pytest.mark.parametrize("port", ["0", "65536", "99999", "x", ""])
def test_port_of_an_endpoint_that_is_none_is_refused(port: str) -> None:
    """As a name with a colon."""
    with pytest.raises(ConfigurationError, match="is not a host name"):
        Cluster("127.0.0.1", endpoint=f"{NAMES[0][0]}:{port}")


def test_alias_that_does_not_resolve_is_named() -> None:
    """The error holds the alias, not the endpoint, which may well resolve."""
    with pytest.raises(HostNotFoundError, match=r"'memory\.invalid' does not resolve"):
        Cluster("memory.invalid", endpoint=NAMES[0][0]).writer()


@pytest.mark.parametrize("name", ["db.internal", "10.0.0.7"])
def test_alias_alone_cannot_be_signed_for(name: str) -> None:
    """RDS accepts no token for a CNAME; the error says what to pass as well."""
    with pytest.raises(ConfigurationError, match=r"alias.*endpoint='NAME\.cluster-ID"):
        connection_factory(name, user="u", database="d", region="us-east-1")


def test_custom_endpoint_cannot_be_signed_for() -> None:
    """RDS accepts no token for an Aurora custom endpoint; the error names those it accepts."""
    with pytest.raises(ConfigurationError, match=r"custom endpoint.*writer or reader endpoint"):
        connection_factory(NAMES[2][0], user="u", database="d")
    connection_factory(NAMES[2][0], user="u", database="d", credentials=PasswordCredentials("p"))


def test_looked_up_cluster_has_all_that_rds_says(aurora: LocalAurora) -> None:
    """One DescribeDBClusters gives endpoints, port, region, database name and policy resource."""
    cluster = Cluster(aurora.identifier, session=aurora.session)
    writer = cluster.writer()
    assert writer == Endpoint(
        host="localhost",
        port=aurora.port,
        kind="writer",
        region="us-east-1",
        database="memory",
        iam_enabled=True,
        connect_resource=(f"arn:aws:rds-db:us-east-1:123456789012:dbuser:{aurora.resource_id}"),
    )
    assert cluster.reader().kind == "reader"


def test_arn_is_looked_up_in_its_own_region(aurora: LocalAurora) -> None:
    """The ARN's region wins over the session's."""
    session = Redirected(aurora, region_name="eu-west-3")
    assert Cluster(aurora.arn, session=session).writer().region == "us-east-1"


def test_arn_of_another_account_is_not_confused_with_a_namesake(aurora: LocalAurora) -> None:
    """The API is asked by name, so the answer's ARN must be the one that was meant."""
    arn = aurora.arn.replace("123456789012", "210987654321")
    with pytest.raises(ClusterNotFoundError, match=r"210987654321.*account"):
        Cluster(arn, session=aurora.session).writer()


def test_what_is_given_wins_over_what_is_looked_up(aurora: LocalAurora) -> None:
    """Port and database of the caller are kept."""
    cluster = Cluster(aurora.identifier, port=6543, database="other", session=aurora.session)
    assert (cluster.writer().port, cluster.writer().database) == (6543, "other")


def test_sixteen_threads_look_a_cluster_up_once(aurora: LocalAurora) -> None:
    """The first use is shared: one call, one answer."""
    cluster = Cluster(aurora.identifier, session=aurora.session)
    before = aurora.describe_calls
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda _: cluster.writer(), range(16)))
    assert len(set(found)) == 1
    assert aurora.describe_calls - before == 1


HIJACKED = "<DBCluster><Engine>aurora-postgresql</Engine>{}</DBCluster>"


def answering(*, writer: str, reader: str) -> boto3.Session:
    """A session whose RDS API, at Amazon's own address, is answered by the network in between."""
    fields = f"<Endpoint>{writer}</Endpoint><ReaderEndpoint>{reader}</ReaderEndpoint>"
    body = (
        "<DescribeDBClustersResponse><DescribeDBClustersResult><DBClusters>"
        f"{HIJACKED.format(fields)}"
        "</DBClusters></DescribeDBClustersResult></DescribeDBClustersResponse>"
    )

    class Raw:
        def stream(self) -> Iterator[bytes]:
            yield body.encode()

    session = boto3.Session("AKIATEST", "s", region_name="eu-west-1")
    session.events.register(
        "before-send.rds.DescribeDBClusters",
        lambda request, **_: AWSResponse(request.url, 200, {}, Raw()),
    )
    return session


@pytest.mark.parametrize(
    "host",
    [
        "db.attacker.example",
        "203.0.113.9",
        f"mem.cluster-{ID}.eu-west-1.rds.amazonaws.com.attacker.example",
        f"mem.cluster-{ID}.us-east-1.rds.amazonaws.com",
        f"mem.cluster-{ID}.rds.cn-north-1.amazonaws.com.cn",
    ],
)
@pytest.mark.parametrize("role", ["writer", "reader"])
def test_host_that_is_not_of_rds_in_the_region_is_not_believed(host: str, role: str) -> None:
    """A token or password would be made for it; only an API of the user's own may name any host."""
    hosts = {"writer": NAMES[0][0], "reader": NAMES[1][0], role: host}
    with pytest.raises(ClusterError, match=rf"names '{host}'.*no token or password"):
        Cluster("mem", session=answering(**hosts)).writer()


def test_host_of_rds_in_the_region_is_believed() -> None:
    """As in a real answer."""
    session = answering(writer=NAMES[0][0], reader=NAMES[1][0])
    assert Cluster("mem", session=session).writer().host == NAMES[0][0]
    assert Cluster("mem", session=session).reader().host == NAMES[1][0]


SECRET = "s3cret-of-a-user"


@pytest.mark.parametrize(
    "text",
    [
        f"host=db.internal password={SECRET} user=u",
        f"host = db.internal password = {SECRET}",
        f"password='{SECRET}'",
        f"postgresql://u:{SECRET}@db.internal/memory",
        f"u:{SECRET}@db.internal",
        f"arn:aws:rds:password={SECRET}",
        f"host=db.internal\npassword={SECRET}",
    ],
)
@pytest.mark.parametrize("parameter", ["cluster", "endpoint", "AURORA_CLUSTER"])
def test_password_in_a_connection_string_is_not_repeated(text: str, parameter: str) -> None:
    """A string of libpq's in place of a name is the commonest confusion, and errors are logged."""
    given: Any = {parameter: text}
    if parameter == "endpoint":
        given["cluster"] = "db.internal"
    environ = {parameter: given.pop(parameter)} if parameter.isupper() else {}
    with pytest.raises(ConfigurationError) as caught:
        connection_factory(user="u", database="d", environ=environ, **given)
    told = traceback.TracebackException.from_exception(caught.value)
    assert SECRET not in "".join(told.format())


def test_name_in_an_error_is_cut() -> None:
    """A document in place of a name is told by its beginning."""
    with pytest.raises(ConfigurationError) as caught:
        Cluster("x y" * 10_000)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("key", ["credential_process", "sso_session", "role_arn"])
def test_credentials_that_cannot_be_had_are_not_the_networks_fault(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing helper, a login that has ended or a role that may not be assumed is named so."""
    profile = {
        "credential_process": "credential_process = false",
        "sso_session": (
            "sso_session = corp\nsso_account_id = 1\nsso_role_name = r\n"
            "[sso-session corp]\nsso_region = us-east-1\nsso_start_url = https://x.invalid/start"
        ),
        "role_arn": (
            "role_arn = arn:aws:iam::123456789012:role/r\nweb_identity_token_file = /nowhere"
        ),
    }[key]
    config = tmp_path / "config"
    config.write_text(f"[default]\nregion = us-east-1\n{profile}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CredentialsError) as caught:
        Cluster("mine").writer()
    assert "credentials" in str(caught.value)
    assert "NAT gateway" not in str(caught.value)
    assert "DescribeDBClusters" not in str(caught.value)


def test_role_that_may_not_be_assumed_is_not_a_denied_lookup(
    aurora: LocalAurora,
) -> None:
    """The refusal is STS's, and no right to look clusters up mends it."""
    session = botocore.session.Session()
    denied = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "AssumeRole")

    def refresh() -> dict[str, str]:
        raise denied

    session._credentials = DeferredRefreshableCredentials(refresh, "assume-role")
    with pytest.raises(CredentialsError, match="AssumeRole") as caught:
        Cluster("mine", region="us-east-1", session=session).writer()
    assert "rds:DescribeDBClusters" not in str(caught.value)


def test_unknown_cluster_is_named(aurora: LocalAurora) -> None:
    """The error names cluster and region, and what to check."""
    with pytest.raises(ClusterNotFoundError, match=r"'nowhere' in region 'us-east-1'.*region="):
        Cluster("nowhere", session=aurora.session).writer()


def test_denied_lookup_says_what_to_allow_or_pass(database: Any, aurora: LocalAurora) -> None:
    """The error has the exact action, and the way around it; it is not remembered."""
    aurora.describe_denied = True
    cluster = Cluster(aurora.identifier, session=aurora.session)
    with pytest.raises(ClusterAccessDeniedError, match=r"action rds:DescribeDBClusters.*endpoint"):
        cluster.writer()
    aurora.describe_denied = False
    assert cluster.writer().host == "localhost"


def test_iam_authentication_off_says_how_to_turn_it_on(database: Any, aurora: LocalAurora) -> None:
    """The command is there to copy; once it ran, the same factory serves."""
    aurora.iam_enabled = False
    factory = connection_factory(
        user="langmem", session=aurora.session, environ={"AURORA_CLUSTER": aurora.identifier}
    )
    with pytest.raises(
        IamAuthenticationDisabledError,
        match=r"aws rds modify-db-cluster .*--enable-iam-database-authentication",
    ) as caught:
        factory.kwargs()
    factory.refused(caught.value)
    aurora.iam_enabled = True
    assert factory.kwargs()["host"] == "localhost"


def test_password_does_not_need_iam_authentication(database: Any, aurora: LocalAurora) -> None:
    """The switch matters to tokens only."""
    aurora.iam_enabled = False
    factory = connection_factory(
        aurora.identifier, user="u", session=aurora.session, credentials=PasswordCredentials("p")
    )
    assert factory.kwargs()["password"] == "p"


@dataclass
class Aws:
    """What moto plays: an account of its own."""

    session: boto3.Session

    def make(self, name: str, **parameters: Any) -> None:
        self.session.client("rds").create_db_cluster(
            DBClusterIdentifier=name,
            MasterUsername="root",
            MasterUserPassword="password",
            **{"Engine": "aurora-postgresql", **parameters},
        )


@pytest.fixture
def aws() -> Iterator[Aws]:
    with mock_aws():
        yield Aws(
            boto3.Session(
                aws_access_key_id="AKIATEST", aws_secret_access_key="s", region_name="us-west-2"
            )
        )


def test_mysql_cluster_is_refused(aws: Aws) -> None:
    """The engine is named before a connection to it fails in a riddle."""
    aws.make("orders", Engine="aurora-mysql")
    with pytest.raises(ClusterError, match=r"runs aurora-mysql"):
        Cluster("orders", session=aws.session).writer()


def test_cluster_without_a_database_asks_for_one(aws: Aws) -> None:
    """RDS names no database where none was made with the cluster."""
    aws.make("plain", EnableIAMDatabaseAuthentication=True)
    factory = connection_factory("plain", user="u", session=aws.session)
    with pytest.raises(ConfigurationError, match=r"database= or set AURORA_DATABASE"):
        factory.kwargs()


def test_region_is_given_then_the_sessions_then_the_environments(aws: Aws) -> None:
    """Region order: the name's own (see above), region=, the session's, AWS_REGION."""
    aws.make("memory", DatabaseName="memory")
    environ = {"AWS_REGION": "us-west-2", "AWS_DEFAULT_REGION": "eu-west-2"}
    bare = botocore.session.Session()
    bare.set_credentials("AKIATEST", "s")
    elsewhere = boto3.Session("AKIATEST", "s", region_name="eu-north-1")

    def region(**given: Any) -> str | None:
        return Cluster("memory", **given).writer().region

    assert region(session=aws.session, environ={}) == "us-west-2"
    assert region(session=elsewhere, region="us-west-2", environ={}) == "us-west-2"
    assert region(session=bare, environ=environ) == "us-west-2"
    with pytest.raises(ClusterNotFoundError, match=r"eu-north-1"):
        region(session=elsewhere, environ=environ)
    with pytest.raises(ConfigurationError, match=r"no region.*region= or set AWS_REGION"):
        region(session=bare, environ={})


def test_no_credentials_says_where_they_may_come_from() -> None:
    """The message is ours: botocore's says only that it could not locate any."""
    cluster = Cluster("memory", region="us-east-1", session=botocore.session.Session())
    with pytest.raises(CredentialsError, match=r"AWS_PROFILE.*role"):
        cluster.writer()


def test_unreachable_rds_api_points_to_the_way_out(aurora: LocalAurora) -> None:
    """A Lambda in a VPC without a way to the API is told so, and the way around."""
    session = Redirected(aurora, endpoint_url="http://127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"NAT gateway.*host name of the cluster's endpoint"):
        Cluster("memory", region="us-east-1", session=session).writer()


def test_expired_aws_credentials_are_told_from_missing_permissions(aurora: LocalAurora) -> None:
    """Renewing credentials and granting a permission are different things to do."""

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = b"<ErrorResponse><Error><Code>ExpiredToken</Code><Message>The security token"
            body += b" included in the request is expired</Message></Error></ErrorResponse>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        session = Redirected(aurora, endpoint_url=f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(CredentialsError, match=r"ExpiredToken.*renew"):
            Cluster("memory", region="us-east-1", session=session).writer()
        server.shutdown()


@pytest.mark.parametrize(
    ("missing", "given", "message"),
    [
        ("cluster", {"user": "u", "database": "d"}, "cluster=.*AURORA_CLUSTER"),
        ("user", {"cluster": "memory", "database": "d"}, "user=.*AURORA_USER"),
        ("database", {"cluster": NAMES[0][0], "user": "u"}, "database=.*AURORA_DATABASE"),
    ],
)
def test_missing_parameter_is_named_with_its_variable(
    missing: str, given: dict[str, str], message: str
) -> None:
    """What can be known without I/O is told at once."""
    with pytest.raises(ConfigurationError, match=message):
        connection_factory(**given, environ={})


def test_environment_stands_in_for_parameters() -> None:
    """AURORA_CLUSTER, AURORA_USER, AURORA_DATABASE; empty ones are absent; parameters win."""
    environ = {"AURORA_CLUSTER": NAMES[0][0], "AURORA_USER": "env", "AURORA_DATABASE": "mem"}
    factory = connection_factory(credentials=PasswordCredentials("p"), environ=environ)
    parameters = factory.kwargs()
    assert (parameters["host"], parameters["user"], parameters["dbname"]) == (
        NAMES[0][0],
        "env",
        "mem",
    )
    given = connection_factory(
        NAMES[1][0], user="u", credentials=PasswordCredentials("p"), environ=environ
    ).kwargs()
    assert (given["host"], given["user"]) == (NAMES[1][0], "u")
    connection_factory(
        "mine", region="ap-south-1", user="u", environ=environ
    )  # not the other's region
    with pytest.raises(ConfigurationError, match=r"AURORA_CLUSTER"):
        connection_factory(environ={**environ, "AURORA_CLUSTER": ""})


def test_making_a_connector_opens_no_socket_and_imports_no_sdk() -> None:
    """Safe at import time, in a Lambda module and before a fork."""
    code = """
import socket, sys
from langgraph_aurora_store.connect.connection_factory import connection_factory
from langgraph_aurora_store.connect.pool import AsyncAuroraPool, AuroraPool
from langgraph_aurora_store.connect.pool_settings import PoolSettings
def refuse(*args, **kwargs): raise AssertionError("a socket was opened")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
factory = connection_factory("agent-memory", user="langmem", database="memory")
AuroraPool(factory, PoolSettings.service()), AsyncAuroraPool(factory, PoolSettings.service())
assert not {"boto3", "botocore", "cryptography"} & set(sys.modules), "an SDK was imported"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
