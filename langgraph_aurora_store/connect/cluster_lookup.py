"""From a cluster's name to the endpoints that a connection is made to."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from langgraph_aurora_store.aws.credential_failures import Session
from langgraph_aurora_store.aws.error_codes import (
    DENIED,
    REFUSED_CREDENTIALS,
    code_and_status,
    is_passing,
    is_passing_answer,
)
from langgraph_aurora_store.aws.partitions import partition_of
from langgraph_aurora_store.aws.session import REGION_ORDER, AwsSession, Region
from langgraph_aurora_store.aws.single_flight import SingleFlight
from langgraph_aurora_store.connect.cluster_names import (
    ClusterName,
    EndpointName,
    Kind,
    parse_host,
    parse_name,
    reader_host,
    split_port,
)
from langgraph_aurora_store.errors import (
    AuroraStoreError,
    ClusterAccessDeniedError,
    ClusterError,
    ClusterNotFoundError,
    ConfigurationError,
    CredentialsError,
    HostNotFoundError,
)
from langgraph_aurora_store.sdk_log_redaction import redact_sdk_logs

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from mypy_boto3_rds.type_defs import DBClusterTypeDef

# The port of Aurora PostgreSQL unless it was made with another; RDS Proxy has no other.
DEFAULT_PORT = 5432


class Endpoint(NamedTuple):
    """Where to connect, and what is known of the place without connecting.

    ``port`` is the endpoint's own, which a token is signed for. ``addresses`` and ``dialled_port``
    are dialled in place of ``host`` and ``port``: those of an alias or a tunnel, all in turn.
    ``region``, ``database`` and ``iam_enabled`` are ``None`` where neither the name nor a lookup
    tells.
    ``connect_resource`` is the ARN, up to the user, of an IAM policy for ``rds-db:connect``.
    """

    host: str
    port: int
    kind: Kind
    region: str | None = None
    database: str | None = None
    addresses: tuple[str, ...] = ()
    dialled_port: int | None = None
    iam_enabled: bool | None = None
    connect_resource: str | None = None


class Cluster:
    """A cluster by any of its names; resolved on first use, once, by any number of threads.

    ``name`` is a cluster identifier or ARN (looked up with ``rds:DescribeDBClusters``), the host
    name of a writer, reader, instance, custom or RDS Proxy endpoint (nothing is looked up), or an
    alias such as a CNAME or a tunnel's address, with the endpoint it stands for in ``endpoint``.
    ``endpoint`` may end in ``:PORT``, the endpoint's own; ``port`` is then dialled only.
    The region is the name's own, else ``region``; what needs one and finds neither takes the one
    that `AwsSession.region` finds. Making one does no I/O and imports no SDK.

    Raises:
        ConfigurationError: the name is malformed, or contradicts ``region`` or ``endpoint``.
    """

    def __init__(
        self,
        name: str,
        *,
        region: str | None = None,
        port: int | None = None,
        database: str | None = None,
        endpoint: str | None = None,
        session: Session | AwsSession | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        host, self._endpoint_port = split_port(endpoint or "")
        self._alias = parse_host(name).host if endpoint else None
        self._parsed = _with_region(parse_host(host) if endpoint else parse_name(name), region)
        self._port = port
        self._database = database
        self._aws = session if isinstance(session, AwsSession) else AwsSession(session)
        self._environ = environ
        self._description: Description | None = None
        self._lookup: SingleFlight[Description] = SingleFlight("langgraph-aurora-store lookup")

    def __repr__(self) -> str:
        return f"Cluster({self.name!r})"

    @property
    def kind(self) -> Kind:
        """What the name stands for; an identifier or ARN stands for the writer."""
        return self._parsed.kind if isinstance(self._parsed, EndpointName) else "writer"

    @property
    def can_be_signed_for(self) -> bool:
        """Whether RDS accepts a token for the host: not for an alias, nor a custom endpoint."""
        return self.kind != "custom" and (self.kind != "alias" or self._alias is not None)

    @property
    def needs_lookup(self) -> bool:
        """Whether the name is an identifier or ARN, which RDS is asked about."""
        return isinstance(self._parsed, ClusterName)

    def writer(self) -> Endpoint:
        """The endpoint given, or the writer of the cluster named. Blocking.

        Raises:
            ClusterError: the cluster could not be looked up; a leaf says why.
            ConfigurationError: no region is known to look it up in.
            CredentialsError: there are no AWS credentials to look it up with.
            HostNotFoundError: the alias does not resolve.
        """
        if isinstance(self._parsed, ClusterName):
            found = self._describe(self._parsed)
            return self._described(found, found.writer, "writer")
        alias = self._alias if self._alias != self._parsed.host else None
        named = self._named(self._parsed.host, self._parsed.kind)
        port = named.dialled_port or named.port
        return named._replace(addresses=resolve(alias, port) if alias else ())

    def reader(self) -> Endpoint:
        """The cluster's reader endpoint; of an instance or a proxy, that endpoint. Blocking.

        A writer's host name gives the reader's by itself; an alias is not dialled for it. Raises
        what `writer` raises.
        """
        if isinstance(self._parsed, ClusterName):
            found = self._describe(self._parsed)
            return self._described(found, found.reader, "reader")
        if self._parsed.kind != "writer":
            return self.writer()
        return self._named(reader_host(self._parsed), "reader")._replace(dialled_port=None)

    def forget(self) -> None:
        """Look the cluster up again on next use: what was found did not serve."""
        self._description = None

    def _named(self, host: str, kind: Kind) -> Endpoint:
        if self._endpoint_port is None:
            port, dialled_port = self._port or DEFAULT_PORT, None
        else:
            port, dialled_port = self._endpoint_port, self._port or self._endpoint_port
        return Endpoint(
            host, port, kind, self._parsed.region, self._database, dialled_port=dialled_port
        )

    def _described(self, found: Description, host: str, kind: Kind) -> Endpoint:
        return Endpoint(
            host=host,
            port=self._port or found.port,
            kind=kind,
            region=found.region,
            database=self._database or found.database,
            iam_enabled=found.iam_enabled,
            connect_resource=found.connect_resource,
        )

    def _describe(self, name: ClusterName) -> Description:
        found = self._description
        if found is not None:
            return found
        region = self._find_region(name)
        self._aws.credentials()  # a source that hangs is named here, and not in the lookup
        return self._lookup.call(
            lambda: self._look_up(name, region),
            late=lambda: _unanswered(name, region, "no answer yet"),
        )

    def _look_up(self, name: ClusterName, region: Region) -> Description:
        found = self._description  # of a call that ended just now
        if found is None:
            self._description = found = describe_cluster(name, region, self._aws)
        return found

    def _find_region(self, name: ClusterName) -> Region:
        if name.region:
            return Region(name.region, "region=" if name.arn is None else "the ARN")
        found = self._aws.region(self._environ)
        if found is None:
            raise ConfigurationError(
                f"no region to look cluster {self.name!r} up in; pass region= or set AWS_REGION, or"
                f" pass the host name of its endpoint ({REGION_ORDER})"
            )
        return found


def _with_region(
    parsed: ClusterName | EndpointName, region: str | None
) -> ClusterName | EndpointName:
    if region and parsed.region and parsed.region != region:
        name = parsed.host if isinstance(parsed, EndpointName) else parsed.arn
        raise ConfigurationError(
            f"region={region!r} contradicts {name!r}, which is in {parsed.region!r}; leave region="
            " out"
        )
    return parsed._replace(region=parsed.region or region)


def resolve(alias: str, port: int) -> tuple[str, ...]:
    """The addresses of a host name, IPv4 and IPv6, in the order to dial them in. Blocking.

    Raises:
        HostNotFoundError: the name does not resolve.
    """
    try:
        found = socket.getaddrinfo(alias, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise HostNotFoundError(f"host name {alias!r} does not resolve: {error}") from error
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


_NOT_FOUND = {"DBClusterNotFoundFault", "DBClusterNotFound"}
_ENDPOINT_INSTEAD = (
    "or pass the host name of the cluster's endpoint instead of its identifier, which needs no call"
)


class Description(NamedTuple):
    """What RDS says of a cluster.

    ``iam_enabled``: whether it accepts IAM tokens. ``connect_resource``: the ARN, up to the user,
    that an IAM policy for ``rds-db:connect`` names.
    """

    writer: str
    reader: str
    port: int
    database: str | None
    iam_enabled: bool
    region: str
    connect_resource: str | None


def describe_cluster(name: ClusterName, region: Region, aws: AwsSession) -> Description:
    """Ask RDS for the cluster. Blocking, one call, given up within seconds.

    Raises:
        ClusterNotFoundError: RDS knows no such cluster in this account and region.
        ClusterAccessDeniedError: the caller may not ask.
        ClusterError: RDS could not be asked, or the cluster is of no use here.
        CredentialsError: there are no AWS credentials, or AWS refused them.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        with redact_sdk_logs():
            client = aws.client("rds", region.name)
            answer = client.describe_db_clusters(DBClusterIdentifier=name.identifier)
    except ClientError as error:
        raise _explain(error, name, region) from error
    except BotoCoreError as error:
        failure = _unanswered(name, region, str(error))
        failure.is_transient = is_passing(error)
        raise failure from None  # the SDK's error holds the signed request
    found = _read(answer["DBClusters"], name, region)
    if _is_amazons(client.meta.endpoint_url, region.name):
        for host in (found.writer, found.reader):
            _check_host(host, name, region)
    return found


def _is_amazons(url: str, region: str) -> bool:
    """Whether a URL is that of the RDS API of a region, and not one that was configured instead."""
    partition = partition_of(region)
    suffixes = (partition.dns_suffix, partition.dual_stack_suffix)
    names = (f"rds.{region}", f"rds-fips.{region}", "rds")  # GovCloud has one without a region
    return urlsplit(url).hostname in {f"{name}.{suffix}" for name in names for suffix in suffixes}


def _check_host(host: str, name: ClusterName, region: Region) -> None:
    """Refuse to make a login for a host that is not one of RDS in the region that was asked."""
    endpoint = parse_host(host)
    if endpoint.kind == "alias" or endpoint.region != region.name:
        raise ClusterError(
            f"RDS in region {region} names {host!r} as an endpoint of cluster"
            f" {name.identifier!r}, which is no endpoint of RDS in that region; no token or"
            f" password is made for it. Check what answers for the RDS API, {_ENDPOINT_INSTEAD}"
        )


def _unanswered(name: ClusterName, region: Region, why: str) -> ClusterError:
    failure = ClusterError(
        f"the RDS API of region {region} could not be asked for cluster {name.identifier!r}: {why};"
        " check the region and, inside a VPC, the way out (a NAT gateway or a VPC endpoint for"
        f" rds), {_ENDPOINT_INSTEAD}"
    )
    failure.is_transient = True
    return failure


def _read(clusters: list[DBClusterTypeDef], name: ClusterName, region: Region) -> Description:
    found = clusters[0] if clusters else None
    if found is None or (name.arn and found.get("DBClusterArn", name.arn) != name.arn):
        raise ClusterNotFoundError(
            f"no cluster {name.arn or name.identifier!r} in region {region} of the account whose"
            " credentials are used"
        )
    if "mysql" in found.get("Engine", ""):
        raise ClusterError(
            f"cluster {name.identifier!r} runs {found['Engine']}; this store needs Aurora"
            " PostgreSQL with pgvector"
        )
    writer = found.get("Endpoint")
    if not writer:
        raise ClusterError(
            f"cluster {name.identifier!r} has no endpoint yet (its status is"
            f" {found.get('Status', 'unknown')!r}); wait until it is available"
        )
    return Description(
        writer=writer,
        reader=found.get("ReaderEndpoint") or writer,
        port=found.get("Port") or 5432,
        database=found.get("DatabaseName") or None,
        iam_enabled=bool(found.get("IAMDatabaseAuthenticationEnabled")),
        region=region.name,
        connect_resource=_connect_resource(
            found.get("DBClusterArn", ""), found.get("DbClusterResourceId", "")
        ),
    )


def _connect_resource(arn: str, resource_id: str) -> str | None:
    found = re.fullmatch(r"arn:([^:]+):rds:([^:]+):(\d+):cluster:.+", arn)
    if not found or not resource_id:
        return None
    partition, region, account = found.groups()
    return f"arn:{partition}:rds-db:{region}:{account}:dbuser:{resource_id}"


def _explain(error: ClientError, name: ClusterName, region: Region) -> AuroraStoreError:
    code, status = code_and_status(error)
    said = error.response.get("Error", {}).get("Message", "") or code
    if code in _NOT_FOUND:
        return ClusterNotFoundError(
            f"no cluster {name.identifier!r} in region {region} of this account: {said}; check"
            " the name, region= and the account of the AWS credentials"
        )
    if code in DENIED:
        return ClusterAccessDeniedError(
            f"looking up cluster {name.identifier!r} in region {region} was denied: {said};"
            f" allow the action rds:DescribeDBClusters, {_ENDPOINT_INSTEAD}"
        )
    if code in REFUSED_CREDENTIALS:
        return CredentialsError(
            f"AWS refused the credentials when asked for cluster {name.identifier!r} in region"
            f" {region!r}: {said} ({code}); renew them"
        )
    failure = ClusterError(
        f"looking up cluster {name.identifier!r} in region {region} failed: {said} ({code});"
        f" try again, {_ENDPOINT_INSTEAD}"
    )
    failure.is_transient = is_passing_answer(code, status)
    return failure
