"""A cluster that RDS is asked about and does not tell at once."""

import asyncio
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore, PoolSettings
from langgraph_aurora_store.errors import ClusterError
from tests.support.credential_sources import HANG, StandIn, http, sts_error
from tests.support.database import Database


def get(given: dict[str, Any]) -> None:
    with AuroraStore.from_cluster(**given) as store:
        store.setup()
        store.get(("a",), "k")


async def aget(given: dict[str, Any]) -> None:
    async with AsyncAuroraStore.from_cluster(**given) as store:
        await store.setup()
        await store.aget(("a",), "k")


CALLS: dict[str, Callable[[dict[str, Any]], None]] = {
    "sync": get,
    "async": lambda given: asyncio.run(aget(given)),
}


@pytest.fixture
def given(database: Database, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name, value in database.cluster.environment.items():
        monkeypatch.setenv(name, value)
    return {"database": database.name, "pool": PoolSettings(min_size=0, timeout_s=20)}


@pytest.mark.parametrize("mode", CALLS)
def test_a_throttled_lookup_is_tried_again_within_the_callers_time(
    database: Database, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Nine answers that throttle, more than botocore tries by itself; then the cluster's."""
    asked: list[str] = []
    url = database.cluster.environment["AWS_ENDPOINT_URL_RDS"]

    def answer(request: str) -> str:
        asked.append(request)
        if len(asked) < 10:
            return sts_error(400, "Throttling")
        body = request.partition("\r\n\r\n")[2].encode()
        with urllib.request.urlopen(url, body) as found:
            return http(200, found.read().decode())

    with StandIn(answer) as rds:
        monkeypatch.setenv("AWS_ENDPOINT_URL_RDS", rds.url)
        CALLS[mode](given)
    assert len(asked) == 10


@pytest.mark.parametrize("mode", CALLS)
@pytest.mark.parametrize(
    ("reply", "says"),
    [(HANG, "no answer yet"), (http(503), "503"), (sts_error(400, "Throttling"), "Throttling")],
    ids=["hangs", "503", "throttles"],
)
def test_a_lookup_that_stays_away_ends_in_time(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, mode: str, reply: str, says: str
) -> None:
    """With the reason, and what needs no lookup."""
    given["pool"] = PoolSettings(min_size=0, timeout_s=3)
    with StandIn(lambda _: reply) as rds:
        monkeypatch.setenv("AWS_ENDPOINT_URL_RDS", rds.url)
        begun = time.monotonic()
        with pytest.raises(ClusterError, match=f"({says}|no answer yet).*host name") as caught:
            CALLS[mode](given)
        assert time.monotonic() - begun < 5.5
    assert caught.value.is_transient
    # What waits is no thread that the process's end would wait for.
    assert all(thread.daemon for thread in threading.enumerate() if "lookup" in thread.name)
