"""A cluster's endpoints from its identifier: ``rds:DescribeDBClusters``, and what can go wrong."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from langgraph_aurora_store.connect.aws import Aws, hush, sdk_errors
from langgraph_aurora_store.connect.names import ClusterName
from langgraph_aurora_store.errors import (
    AuroraStoreError,
    ClusterAccessDeniedError,
    ClusterError,
    ClusterNotFoundError,
    CredentialsError,
)

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from mypy_boto3_rds.type_defs import DBClusterTypeDef

_NOT_FOUND = {"DBClusterNotFoundFault", "DBClusterNotFound"}
_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "NotAuthorized"}
_BAD_CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidClientTokenId",
    "MissingAuthenticationToken",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
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


def describe(name: ClusterName, region: str, aws: Aws) -> Description:
    """Ask RDS for the cluster. Blocking, one call, given up within seconds.

    Raises:
        ClusterNotFoundError: RDS knows no such cluster in this account and region.
        ClusterAccessDeniedError: the caller may not ask.
        ClusterError: RDS could not be asked, or the cluster is of no use here.
        CredentialsError: there are no AWS credentials, or AWS refused them.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    _obtain_credentials(aws)
    try:
        with hush():
            answer = aws.client("rds", region).describe_db_clusters(
                DBClusterIdentifier=name.identifier
            )
    except ClientError as error:
        raise _explain(error, name, region) from error
    except BotoCoreError as error:
        raise ClusterError(
            f"the RDS API of region {region!r} could not be asked for cluster"
            f" {name.identifier!r}: {error}; check the region and, inside a VPC, the way out (a NAT"
            f" gateway or a VPC endpoint for rds), {_ENDPOINT_INSTEAD}"
        ) from error
    return _read(answer["DBClusters"], name, region)


def _obtain_credentials(aws: Aws) -> None:
    """Have what signs the question: its source may fail in ways that look like an answer's."""
    credentials = aws.credentials()
    with hush(), sdk_errors("AWS credentials could not be obtained"):
        credentials.get_frozen_credentials()


def _read(clusters: list[DBClusterTypeDef], name: ClusterName, region: str) -> Description:
    found = clusters[0] if clusters else None
    if found is None or (name.arn and found.get("DBClusterArn", name.arn) != name.arn):
        raise ClusterNotFoundError(
            f"no cluster {name.arn or name.identifier!r} in region {region!r} of the account whose"
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
        region=region,
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


def _explain(error: ClientError, name: ClusterName, region: str) -> AuroraStoreError:
    code = error.response.get("Error", {}).get("Code", "")
    said = error.response.get("Error", {}).get("Message", "") or code
    if code in _NOT_FOUND:
        return ClusterNotFoundError(
            f"no cluster {name.identifier!r} in region {region!r} of this account: {said}; check"
            " the name, region= and the account of the AWS credentials"
        )
    if code in _DENIED:
        return ClusterAccessDeniedError(
            f"looking up cluster {name.identifier!r} in region {region!r} was denied: {said};"
            f" allow the action rds:DescribeDBClusters, {_ENDPOINT_INSTEAD}"
        )
    if code in _BAD_CREDENTIALS:
        return CredentialsError(
            f"AWS refused the credentials when asked for cluster {name.identifier!r} in region"
            f" {region!r}: {said} ({code}); renew them"
        )
    return ClusterError(
        f"looking up cluster {name.identifier!r} in region {region!r} failed: {said} ({code});"
        f" try again, {_ENDPOINT_INSTEAD}"
    )
