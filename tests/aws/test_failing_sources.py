"""Sources of credentials that fail, each asked for by the database and for embeddings."""

import asyncio
import getpass
import logging
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore, PoolSettings
from langgraph_aurora_store.embeddings import BedrockEmbeddings
from langgraph_aurora_store.errors import (
    ClusterError,
    CredentialsError,
    EmbeddingCredentialsError,
)
from tests.support.credential_sources import (
    HANG,
    SECRET,
    SOURCES,
    Source,
    StandIn,
    Surroundings,
    set_up,
)

WRITER = "x.cluster-abcdefghijkl.us-east-1.rds.amazonaws.com"
TITAN = "amazon.titan-embed-text-v2:0"
# Where waiting may help it is waited for, else the error comes at once.
TRANSIENT_S, FINAL_S = 1.0, 20.0
# What an attempt that began in time may take, and a machine that is busy.
GRACE_S = 1.5


def database(deadline_s: float) -> None:
    store = AuroraStore.from_cluster(
        WRITER, user="u", database="d", pool=PoolSettings(timeout_s=deadline_s, min_size=0)
    )
    try:
        store.get(("a",), "k")
    finally:
        store.close()


async def database_async(deadline_s: float) -> None:
    store = AsyncAuroraStore.from_cluster(
        WRITER, user="u", database="d", pool=PoolSettings(timeout_s=deadline_s, min_size=0)
    )
    try:
        await store.aget(("a",), "k")
    finally:
        await store.close()


def bedrock(deadline_s: float) -> None:
    embeddings = BedrockEmbeddings(TITAN, endpoint_url="http://127.0.0.1:9", deadline_s=deadline_s)
    try:
        embeddings.embed_query("tea")
    finally:
        embeddings.close()


async def bedrock_async(deadline_s: float) -> None:
    embeddings = BedrockEmbeddings(TITAN, endpoint_url="http://127.0.0.1:9", deadline_s=deadline_s)
    try:
        await embeddings.aembed_query("tea")
    finally:
        embeddings.close()


CALLS: dict[str, Callable[[float], None]] = {
    "database": database,
    "database, asyncio": lambda deadline_s: asyncio.run(database_async(deadline_s)),
    "embeddings": bedrock,
    "embeddings, asyncio": lambda deadline_s: asyncio.run(bedrock_async(deadline_s)),
}


def outcome(call: Callable[[float], None], deadline_s: float) -> tuple[Exception | None, float]:
    """What a call raised, and after how many seconds."""
    begun = time.monotonic()
    try:
        call(deadline_s)
    except Exception as error:
        return error, time.monotonic() - begun
    return None, time.monotonic() - begun


@pytest.fixture(scope="module", autouse=True)
def _no_thread_outlives_its_source() -> Iterator[None]:
    """Once the stand-ins are gone, so is every thread that waited for one."""
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + 30
    for thread in set(threading.enumerate()) - before:
        thread.join(max(until - time.monotonic(), 0))
    assert set(threading.enumerate()) - before == set()


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with Path("/dev/null").open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield


@pytest.mark.filterwarnings(f"ignore::{getpass.__name__}.GetPassWarning")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_a_failing_source_is_named_in_time_and_in_no_word_of_a_secret(
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Database and embeddings, blocking and asyncio: all four get an error of one kind."""
    caplog.set_level(logging.DEBUG)
    before = set(threading.enumerate())
    deadline_s = TRANSIENT_S if source.is_transient else FINAL_S
    with set_up(source, Surroundings(tmp_path, monkeypatch)):
        known = set(threading.enumerate())
        with ThreadPoolExecutor(len(CALLS)) as threads:
            found = threads.map(outcome, CALLS.values(), [deadline_s] * len(CALLS))
            outcomes = dict(zip(CALLS, found, strict=True))
        left = [one for one in set(threading.enumerate()) - known if not is_waiting(one, before)]
        for thread in left:
            thread.join(5)  # the threads of embeddings that were closed just now
    for name, (error, took_s) in outcomes.items():
        assert isinstance(error, CredentialsError), (name, error)
        assert isinstance(error, EmbeddingCredentialsError) == name.startswith("embeddings")
        assert_that_it_says(error, source)
        assert took_s < deadline_s + GRACE_S, name
        assert SECRET not in shown(error)
    assert SECRET not in caplog.text
    assert [thread for thread in left if thread.is_alive()] == []


async def together(cluster: str, deadline_s: float) -> list[tuple[object, float]]:
    """What twenty calls of one moment raised, each after how many seconds."""
    pool = PoolSettings(timeout_s=deadline_s, min_size=0)
    store = AsyncAuroraStore.from_cluster(cluster, user="u", database="d", pool=pool)

    async def one() -> tuple[object, float]:
        begun = time.monotonic()
        [error] = await asyncio.gather(store.aget(("a",), "k"), return_exceptions=True)
        return error, time.monotonic() - begun

    try:
        return await asyncio.gather(*(one() for _ in range(20)))
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("cluster", "source", "kind"),
    [(WRITER, "agent: hangs", CredentialsError), ("mem", None, ClusterError)],
    ids=["credentials", "lookup"],
)
def test_calls_that_run_together_end_in_the_time_of_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cluster: str,
    source: str | None,
    kind: type[Exception],
) -> None:
    """What all of them would meet with is not waited for again by each alone."""
    around = Surroundings(tmp_path, monkeypatch)
    hanging = next((one for one in SOURCES if one.name == source), NO_SOURCE)
    with set_up(hanging, around), StandIn(lambda _: HANG) as rds:
        around.set(AWS_ENDPOINT_URL_RDS=rds.url)
        outcomes = asyncio.run(together(cluster, 3.0))
    for error, took_s in outcomes:
        assert isinstance(error, kind)
        assert took_s < 3.0 + GRACE_S


def test_a_session_of_a_subclass_keeps_the_deadline_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the class makes its clients and finds its credentials as boto3's does."""

    class Mine(boto3.Session):
        pass

    [hangs] = [source for source in SOURCES if source.name == "agent: hangs"]
    with set_up(hangs, Surroundings(tmp_path, monkeypatch)):
        model = BedrockEmbeddings(
            TITAN, session=Mine(), endpoint_url="http://127.0.0.1:9", deadline_s=TRANSIENT_S
        )

        def embed(_: float) -> None:
            model.embed_query("tea")

        error, took_s = outcome(embed, TRANSIENT_S)
        model.close()
    assert isinstance(error, EmbeddingCredentialsError)
    assert took_s < TRANSIENT_S + GRACE_S


NO_SOURCE = Source(
    "keys",
    lambda around: around.set(AWS_ACCESS_KEY_ID="AKIAEXAMPLE", AWS_SECRET_ACCESS_KEY=SECRET),
    "",
)


def is_waiting(thread: threading.Thread, before: set[threading.Thread]) -> bool:
    """Whether a thread is the one that waits for a source, or one of a stand-in's."""
    return (thread.daemon and thread.name.startswith("langgraph-aurora-store")) or (
        "_serve" in thread.name or thread in before
    )


def assert_that_it_says(error: CredentialsError, source: Source) -> None:
    says = source.says
    if source.is_transient:  # on a busy machine the last attempt may not have been answered
        says = f"{says}|{says.partition('.*')[0]}.*no answer yet"
    assert re.search(says, str(error)), str(error)
    assert error.is_transient == source.is_transient


def shown(error: BaseException | None) -> str:
    """All that a traceback with locals would print of an error and of what led to it."""
    lines: list[str] = []
    while error is not None:
        lines += [repr(error), repr(vars(error))]
        for frame, _ in traceback.walk_tb(error.__traceback__):
            lines += [f"{name}={value!r}" for name, value in frame.f_locals.items()]
        error = error.__cause__ or error.__context__
    return "\n".join(lines)
