"""What a cluster's name says by itself: identifier, ARN, endpoint host name or alias. No I/O."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, TypeAlias

from langgraph_aurora_store.aws.partitions import PARTITIONS
from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.validation import (
    IDENTIFIER_RULE,
    is_cluster_identifier,
    may_hold_password,
)

Kind: TypeAlias = Literal["writer", "reader", "custom", "instance", "proxy", "global", "alias"]

_KINDS: dict[str, Kind] = {
    "cluster-": "writer",
    "cluster-ro-": "reader",
    "cluster-custom-": "custom",
    "proxy-": "proxy",
    "global-": "global",
    "": "instance",
}
# Aurora user guide, "Aurora endpoint connections"; China and newer GovCloud names put "rds" before
# the region: https://docs.amazonaws.cn/en_us/aws/latest/userguide/endpoints-Beijing.html
_SUFFIXES = sorted({partition.dns_suffix for partition in PARTITIONS})
_ENDPOINT = (
    r"(?P<name>[a-z0-9-]+(?:\.endpoint)?)"
    r"\.(?P<kind>cluster-ro-|cluster-custom-|cluster-|proxy-|global-|)(?P<id>[a-z0-9]+)"
    r"\.(?:(?P<region>[a-z0-9-]+)\.rds|rds\.(?P<region_last>[a-z0-9-]+))"
    rf"\.(?:{'|'.join(re.escape(suffix) for suffix in _SUFFIXES)})"
)
_ARN = (
    r"arn:(?P<partition>aws[a-z-]*):rds:(?P<region>[a-z0-9-]*):(?P<account>\d*)"
    r":(?P<type>[a-z-]+):(?P<name>[A-Za-z0-9-]+)"
)
_LONGEST_LABEL = 63  # RFC 1035
_LONGEST_SHOWN = 100
_HIGHEST_PORT = 65_535
_HOST = r"[A-Za-z0-9_:](?:[A-Za-z0-9_.:-]*[A-Za-z0-9_:])?"


class EndpointName(NamedTuple):
    """A host name, and what it says of itself; ``region`` is ``None`` where it says nothing."""

    host: str
    kind: Kind
    region: str | None


class ClusterName(NamedTuple):
    """A cluster identifier to look up; an ARN also names its region."""

    identifier: str
    region: str | None = None
    arn: str | None = None


def parse_name(name: str) -> ClusterName | EndpointName:
    """Tell an identifier, an ARN, an endpoint and an alias apart.

    Raises:
        ConfigurationError: the name is none of them.
    """
    if name.startswith("arn:"):
        return _parse_arn(name)
    if "." in name or ":" in name:
        return parse_host(name)
    if not is_cluster_identifier(name):
        raise ConfigurationError(
            f"{_shown(name)} is not a cluster name; pass a cluster identifier ({IDENTIFIER_RULE}),"
            " its ARN or the host name of an endpoint"
        )
    return ClusterName(name.lower())


def parse_host(host: str) -> EndpointName:
    """Read kind and region from an endpoint's host name; a name not of Amazon's is an alias.

    Raises:
        ConfigurationError: not a host name, for instance a URL or a host with its port.
    """
    name = host.lower().removesuffix(".")
    if any(len(label) > _LONGEST_LABEL for label in name.split(".")):
        raise ConfigurationError(
            f"{_shown(host)} is not a host name: a part between its dots is longer than"
            f" {_LONGEST_LABEL} characters"
        )
    if not re.fullmatch(_HOST, name) or name.count(":") == 1:
        raise ConfigurationError(
            f"{_shown(host)} is not a host name; pass the bare name, and the port as port="
        )
    found = re.fullmatch(_ENDPOINT, name)
    if not found:
        return EndpointName(name, "alias", None)
    region = found["region"] or found["region_last"]
    return EndpointName(name, _KINDS[found["kind"]], None if region == "global" else region)


def split_port(host: str) -> tuple[str, int | None]:
    """A host name and the port after it, if there is one."""
    found = re.fullmatch(r"([^:]+):(\d{1,5})", host)
    if not found or not 1 <= int(found[2]) <= _HIGHEST_PORT:
        return host, None
    return found[1], int(found[2])


def reader_host(writer: EndpointName) -> str:
    """The host that serves reads: the ``-ro-`` name of a writer, for any other kind the same."""
    if writer.kind != "writer":
        return writer.host
    return writer.host.replace(".cluster-", ".cluster-ro-", 1)


def _parse_arn(arn: str) -> ClusterName:
    found = re.fullmatch(_ARN, arn)
    if not found:
        raise ConfigurationError(
            f"{_shown(arn)} is not the ARN of a cluster: arn:aws:rds:REGION:ACCOUNT:cluster:NAME"
        )
    if found["type"] != "cluster":
        raise ConfigurationError(
            f"{_shown(arn)} names a {found['type']}; pass the ARN of a cluster, or the host name of"
            " an endpoint"
        )
    return ClusterName(found["name"].lower(), found["region"] or None, arn)


def _shown(name: str) -> str:
    """A name for a message, cut to its first characters; a connection string holds a password."""
    if may_hold_password(name) or "@" in name:
        return "a URL or connection string (from_conn_string() takes those)"
    return repr(name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}...")
