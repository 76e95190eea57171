"""Partitions: the table here and botocore's own say the same."""

import json
from pathlib import Path
from typing import Any

import botocore
import pytest

from langgraph_aurora_store.aws.partitions import PARTITIONS, partition_of

PARTITIONS_OF_BOTOCORE: list[dict[str, Any]] = json.loads(
    (Path(botocore.__file__).parent / "data" / "partitions.json").read_text()
)["partitions"]


def test_partitions_are_those_of_botocore() -> None:
    """Names, patterns of regions and both suffixes: a partition that is added shows here."""
    expected = {
        one["id"]: (
            one["regionRegex"].removeprefix("^").removesuffix("$"),
            one["outputs"]["dnsSuffix"],
            one["outputs"]["dualStackDnsSuffix"],
        )
        for one in PARTITIONS_OF_BOTOCORE
    }
    assert {p.name: (p.regions, p.dns_suffix, p.dual_stack_suffix) for p in PARTITIONS} == expected


@pytest.mark.parametrize(
    ("region", "partition"),
    [
        (region, one["id"])
        for one in PARTITIONS_OF_BOTOCORE
        for region in one["regions"]
        if not region.endswith("-global")
    ],
)
def test_a_region_is_in_the_partition_that_botocore_says(region: str, partition: str) -> None:
    """Each region that botocore lists, and no prefix of another partition's."""
    assert partition_of(region).name == partition


def test_an_unknown_region_is_taken_for_one_of_the_commercial_partition() -> None:
    """A region newer than this package."""
    assert partition_of("mars-north-1").name == "aws"
