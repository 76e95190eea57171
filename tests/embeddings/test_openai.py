"""OpenAI's own ways: keys, batches, event loops, and the services that speak its protocol."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from openai import AsyncOpenAI
from openai import OpenAI as Client

from langgraph_aurora_store.embeddings import OpenAIEmbeddings
from langgraph_aurora_store.embeddings.concurrency import FairSemaphore
from langgraph_aurora_store.errors import (
    EmbeddingAccessError,
    EmbeddingError,
    EmbeddingResponseError,
)
from tests.support.http_service import Reply, Stall
from tests.support.openai_service import OpenAI, error, tokens
from tests.support.text_vectors import vector_of

SMALL = "text-embedding-3-small"


@pytest.fixture(scope="module")
def _openai() -> Iterator[OpenAI]:
    with OpenAI() as service:
        yield service


@pytest.fixture
def openai(_openai: OpenAI) -> OpenAI:
    _openai.reset()
    _openai.latency_s = 0.0
    return _openai


def embeddings(openai: OpenAI, model: str = SMALL, **options: object) -> OpenAIEmbeddings:
    settings = {"api_key": openai.key, "base_url": openai.base_url, "query_cache_size": 0}
    return OpenAIEmbeddings(model, **(settings | options))  # type: ignore[arg-type]  # a test's own


def embed(mode: str, used: OpenAIEmbeddings, texts: list[str]) -> list[list[float]]:
    if mode == "sync":
        return used.embed_documents(texts)
    return asyncio.run(used.aembed_documents(texts))


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_no_request_is_over_the_service_s_count(openai: OpenAI, mode: str) -> None:
    """Few texts share one request, and thousands are spread over the places there are."""
    embed(mode, embeddings(openai), [f"m {number}" for number in range(128)])
    assert [len(body["input"]) for body in openai.requests] == [128]
    openai.reset()
    one_lane = embeddings(openai, max_concurrency=1, dimensions=1)
    embed(mode, one_lane, [f"m {number}" for number in range(5000)])
    assert [len(body["input"]) for body in openai.requests] == [2048, 2048, 904]
    openai.reset()
    texts = [f"m {number}" for number in range(4000)]
    vectors = embed(mode, embeddings(openai, max_concurrency=4, dimensions=2), texts)
    assert [len(body["input"]) for body in openai.requests] == [1000] * 4
    assert vectors[3456] == pytest.approx(list(vector_of(texts[3456], 2)))


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_no_request_is_over_the_service_s_size(openai: OpenAI, mode: str) -> None:
    """However dense the texts, no request can hold 300,000 tokens: a token is a byte at least."""
    texts = [f"{number:05} " + "0;" * 3900 for number in range(100)]
    embed(mode, embeddings(openai, max_concurrency=1), texts)
    assert max(sum(map(tokens, body["input"])) for body in openai.requests) <= 300_000
    assert max(sum(map(len, body["input"])) for body in openai.requests) <= 300_000
    assert sum(len(body["input"]) for body in openai.requests) == 100


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_requests_of_a_call_are_under_way_together(openai: OpenAI, mode: str) -> None:
    """Every place there is gets a share of the texts, and all shares are sent at once."""
    openai.latency_s = 0.5
    bounded = embeddings(openai, max_concurrency=3, dimensions=2)
    embed(mode, bounded, [f"memory {number}" for number in range(3 * 128)])
    assert openai.peak == 3
    assert [len(body["input"]) for body in openai.requests] == [128] * 3


def test_the_bound_holds_over_threads_and_loops_together(openai: OpenAI) -> None:
    """Threads that block and event loops that do not share one bound."""
    openai.latency_s = 0.02
    bounded = embeddings(openai, max_concurrency=3)

    def blocking(name: str) -> None:
        for number in range(10):
            bounded.embed_query(f"{name} {number}")

    async def together(name: str) -> None:
        await asyncio.gather(*(bounded.aembed_query(f"{name} {number}") for number in range(10)))

    threads = [
        threading.Thread(target=work, args=(f"caller {number}",))
        for number in range(4)
        for work in (blocking, lambda name: asyncio.run(together(f"async {name}")))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert openai.peak == 3
    assert len(openai.requests) == 80


async def turns() -> None:
    """Let every task go as far as it can."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_caller_that_no_longer_waits_is_passed_over(openai: OpenAI) -> None:
    """A call cancelled while it waits for its turn gets none."""
    openai.next(Stall())
    bounded = embeddings(openai, max_concurrency=1, timeout_s=0.3)
    holds = asyncio.create_task(bounded.aembed_query("holds"))
    await asyncio.to_thread(openai.wait_for, 1)
    waits = asyncio.create_task(bounded.aembed_query("waits"))
    last = asyncio.create_task(bounded.aembed_query("last"))
    await turns()
    waits.cancel()
    await asyncio.gather(holds, last)
    assert sorted(body["input"][0] for body in openai.requests) == ["holds", "holds", "last"]


async def test_a_place_given_up_is_taken_by_the_next() -> None:
    """A call cancelled at the very moment its turn comes does not take the place with it."""
    slots = FairSemaphore(1)
    slots.acquire()
    waits = asyncio.create_task(slots.aacquire())
    await turns()
    slots.release()
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    await asyncio.wait_for(slots.aacquire(), 10)


async def test_asyncio_uses_no_thread_for_a_request(openai: OpenAI) -> None:
    """The native client sends from the loop: many requests under way, and no thread more."""
    openai.latency_s = 0.05
    used = embeddings(openai, max_concurrency=50)
    await used.aembed_query("made the client")
    before = threading.active_count()
    call = asyncio.gather(*(used.aembed_query(f"m {number}") for number in range(50)))
    await asyncio.to_thread(openai.wait_for, 20)
    assert threading.active_count() <= before + 1
    await call
    assert openai.peak > 10


def test_one_object_outlives_its_event_loops() -> None:
    """A second ``asyncio.run`` works, and each loop's connections are closed with it."""
    with OpenAI() as service:
        used = embeddings(service)
        for number in range(3):
            assert asyncio.run(used.aembed_query(f"m {number}"))
            service.wait_until_alone()


async def test_closing_closes_the_connections() -> None:
    """``aclose`` lets go of the blocking and the asynchronous client; both can be used again."""
    with OpenAI() as service:
        used = embeddings(service)
        used.embed_query("sync")
        await used.aembed_query("async")
        await used.aclose()
        await asyncio.to_thread(service.wait_until_alone)
        assert used.embed_query("sync") == await used.aembed_query("sync")
        await used.aclose()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vectors_are_matched_to_texts_by_their_index(openai: OpenAI, mode: str) -> None:
    """The order of an answer is not relied on, and plain numbers do as well as base64."""
    used = embeddings(openai, "text-embedding-ada-002")
    data = [{"index": place, "embedding": [float(place)] * 1536} for place in (2, 0, 1)]
    openai.next(Reply(body={"data": data}))
    vectors = embed(mode, used, ["a", "b", "c"])
    assert [vector[0] for vector in vectors] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "data",
    [
        [{"index": "b", "embedding": [0.5]}, {"index": 0, "embedding": [0.5]}],
        [{"index": 0, "embedding": "AAA"}, {"index": 1, "embedding": "AAAA"}],
        [[0.5], [0.5]],
        {"0": [0.5]},
    ],
    ids=["index", "base64", "lists", "object"],
)
def test_data_of_another_shape_is_refused(openai: OpenAI, data: object) -> None:
    """Whatever stands in the place of the vectors, the error is about the answer."""
    openai.next(Reply(body={"data": data}))
    with pytest.raises(EmbeddingResponseError, match="answered"):
        embeddings(openai).embed_documents(["tea", "coffee"])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_vectors_is_refused(openai: OpenAI, count: int) -> None:
    """Two texts have two vectors: with fewer or more it is not known which is whose."""
    data = [{"index": place, "embedding": [0.5] * 1536} for place in range(count)]
    openai.next(Reply(body={"data": data}))
    problem = f"answered 2 text\\(s\\) with {count} vector"
    with pytest.raises(EmbeddingResponseError, match=problem):
        embeddings(openai).embed_documents(["tea", "coffee"])


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (error(401, "Incorrect API key provided: sk-…", code="invalid_api_key"), "OPENAI_API_KEY"),
        (error(403, "Project does not have access to model"), "allow it in the project"),
        (error(404, "The model does not exist", code="model_not_found"), "base_url="),
        (error(429, "You exceeded your current quota", code="insufficient_quota"), "billing"),
    ],
    ids=["key", "project", "model", "quota"],
)
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_what_waiting_does_not_heal_is_not_tried_again(
    openai: OpenAI, mode: str, reply: Reply, problem: str
) -> None:
    """A refused key, model or account is an error at once that says what to change."""
    openai.next(reply)
    with pytest.raises(EmbeddingAccessError, match=problem):
        embed(mode, embeddings(openai), ["tea"])
    assert len(openai.requests) == 1


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_missing_key_is_an_error_that_says_where_to_put_it(openai: OpenAI, mode: str) -> None:
    """Without a key nothing is sent."""
    with pytest.raises(EmbeddingAccessError, match="set OPENAI_API_KEY or pass api_key="):
        embed(mode, embeddings(openai, api_key=None), ["tea"])
    assert not openai.requests


def test_the_key_is_read_from_the_environment(
    openai: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OPENAI_API_KEY and OPENAI_BASE_URL serve where nothing was passed."""
    monkeypatch.setenv("OPENAI_API_KEY", openai.key)
    monkeypatch.setenv("OPENAI_BASE_URL", openai.base_url)
    assert OpenAIEmbeddings(SMALL).embed_query("tea")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_dense_texts_in_a_batch_are_cut_alone(
    openai: OpenAI, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The one text over the token limit is cut to fit, its neighbours are left whole."""
    dense = "0x1f;" * 6000
    texts = ["tea", dense, "coffee"]
    vectors = embed(mode, embeddings(openai), texts)
    assert vectors[0] == embeddings(openai).embed_documents(["tea"])[0]
    assert vectors[2] == embeddings(openai).embed_documents(["coffee"])[0]
    assert "1 text(s) over the limit" in caplog.text
    assert f"text 2 ({len(dense):,} characters" in caplog.text


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_length_refused_without_numbers_is_tried_shorter(openai: OpenAI, mode: str) -> None:
    """Where a service only says that a text is too long, it is cut step by step."""
    openai.next(*[error(400, "Invalid 'input[0]': maximum input length is 8192 tokens.")] * 3)
    embed(mode, embeddings(openai), ["tea " * 5000])
    lengths = [len(body["input"][0]) for body in openai.requests]
    assert lengths == [20_000, 14_000, 9_800, 6_860]


def test_a_length_refused_to_the_end_is_an_error(openai: OpenAI) -> None:
    """Cutting ends at a few words: what is refused even then is not about the length."""
    openai.next(*[error(400, "too long")] * 100)
    with pytest.raises(EmbeddingError, match="found a text too long"):
        embeddings(openai).embed_query("tea " * 5000)
    openai.reset()
    openai.next(error(400, "too long"))
    with pytest.raises(EmbeddingError, match="found a text too long"):
        embeddings(openai).embed_documents(["tea", "coffee"])


def test_clients_of_the_users_own_are_used(openai: OpenAI) -> None:
    """An ``openai`` client passed in makes the calls, and is the user's to close."""
    settings = {"api_key": openai.key, "base_url": openai.base_url, "max_retries": 0}
    with Client(**settings) as client:  # type: ignore[arg-type]  # one dict for both
        assert OpenAIEmbeddings(SMALL, client=client).embed_query("tea")

    async def ask() -> list[float]:
        async with AsyncOpenAI(**settings) as client:  # type: ignore[arg-type]  # one dict for both
            return await OpenAIEmbeddings(SMALL, async_client=client).aembed_query("tea")

    assert asyncio.run(ask())


def test_a_missing_package_is_an_error_with_the_line_to_install_it() -> None:
    """Without the extra the error comes with the first embedding, and names it."""
    program = (
        "import sys; sys.modules['openai'] = None\n"
        "from langgraph_aurora_store.embeddings import resolve\n"
        "resolve('openai:text-embedding-3-small').embeddings.embed_query('tea')"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "MissingExtraError" in run.stderr
    assert "pip install 'langgraph-aurora-store[openai]'" in run.stderr
