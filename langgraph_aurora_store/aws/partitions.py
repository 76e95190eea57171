"""AWS's partitions: which region is in which, how its host names end, where its roots are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class Partition(NamedTuple):
    """A part of AWS with accounts, ARNs and host names of its own.

    ``regions`` is the pattern of its regions' names. ``trust_store`` is the URL of the bundle that
    Amazon publishes for RDS there; ``None`` where none is documented in public.
    """

    name: str
    regions: str
    dns_suffix: str
    dual_stack_suffix: str
    trust_store: str | None = None


# botocore's partitions.json, with which a test compares this table. Trust stores: Aurora user
# guide, "Using SSL/TLS to encrypt a connection".
PARTITIONS: tuple[Partition, ...] = (
    Partition(
        "aws",
        r"(us|eu|ap|sa|ca|me|af|il|mx)\-\w+\-\d+",
        "amazonaws.com",
        "api.aws",
        "https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem",
    ),
    Partition(
        "aws-cn",
        r"cn\-\w+\-\d+",
        "amazonaws.com.cn",
        "api.amazonwebservices.com.cn",
        "https://rds-truststore.s3.cn-north-1.amazonaws.com.cn/global/global-bundle.pem",
    ),
    Partition(
        "aws-us-gov",
        r"us\-gov\-\w+\-\d+",
        "amazonaws.com",
        "api.aws",
        "https://truststore.pki.us-gov-west-1.rds.amazonaws.com/global/global-bundle.pem",
    ),
    Partition("aws-eusc", r"eusc\-(de)\-\w+\-\d+", "amazonaws.eu", "api.amazonwebservices.eu"),
    Partition("aws-iso", r"us\-iso\-\w+\-\d+", "c2s.ic.gov", "api.aws.ic.gov"),
    Partition("aws-iso-b", r"us\-isob\-\w+\-\d+", "sc2s.sgov.gov", "api.aws.scloud"),
    Partition("aws-iso-e", r"eu\-isoe\-\w+\-\d+", "cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"),
    Partition("aws-iso-f", r"us\-isof\-\w+\-\d+", "csp.hci.ic.gov", "api.aws.hci.ic.gov"),
)
BY_NAME: Mapping[str, Partition] = {partition.name: partition for partition in PARTITIONS}


def partition_of(region: str) -> Partition:
    """The partition of a region; ``aws`` for a region that none knows, as botocore has it."""
    found = (partition for partition in PARTITIONS if re.fullmatch(partition.regions, region))
    return next(found, PARTITIONS[0])
