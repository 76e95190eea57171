"""What both services do when something goes wrong, sync and async, with the real SDKs."""

import json
import logging
import re
from collections.abc import Iterator
from math import inf, nan

import pytest

from langgraph_aurora_store.embeddings import text_labels
from langgraph_aurora_store.errors import (
    ConfigurationError,
    EmbeddingAccessError,
    EmbeddingError,
    EmbeddingResponseError,
)
from tests.support import bedrock_service as bedrock
from tests.support import openai_service as openai
from tests.support.embedding_rigs import Rig, bedrock_rig, openai_rig
from tests.support.http_service import Hangup, Reply, Service, Stall


@pytest.fixture(scope="module")
def services() -> Iterator[tuple[bedrock.Bedrock, openai.OpenAI]]:
    with bedrock.Bedrock() as one, openai.OpenAI() as other:
        yield one, other


@pytest.fixture(params=["bedrock-sync", "bedrock-async", "openai-sync", "openai-async"])
def rig(request: pytest.FixtureRequest, services: tuple[bedrock.Bedrock, openai.OpenAI]) -> Rig:
    provider, mode = request.param.split("-")
    for service in services:
        service.reset()
    if provider == "bedrock":
        return bedrock_rig(services[0], mode)
    return openai_rig(services[1], mode)


def texts_of(service: Service) -> list[str]:
    """Every text the service was asked for, request by request."""
    found: list[str] = []
    for body in service.requests:
        found += body["input"] if "input" in body else [body["inputText"]]
    return found


def test_throttling_is_retried_until_it_passes(rig: Rig) -> None:
    """Throttled and failing requests are sent again, with growing delays, and the call succeeds."""
    rig.service.next(rig.throttled(), rig.failing, rig.throttled())
    assert len(rig.query(rig.embeddings(), "a question")) > 0
    assert len(rig.service.requests) == 4
    assert rig.clock.sleeps == [0.25, 0.5, 1.0]


def test_the_first_retry_of_a_request_is_told(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """One warning with model, error and time left, and no text; one a second over all requests."""
    embeddings = rig.embeddings(deadline_s=20)
    rig.service.next(rig.throttled(), rig.throttled(), rig.throttled())
    rig.query(embeddings, "a question")
    [told] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith(f"{embeddings.model}: a request failed (")
    assert "429" in told or "ThrottlingException" in told
    assert "20.0 s are left of deadline_s=20" in told
    assert "question" not in told
    rig.service.next(*[rig.throttled()] * 3)
    rig.documents(embeddings, [f"memory {number}" for number in range(3)])
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2


def test_jitter_spreads_a_retry_over_the_whole_delay(rig: Rig) -> None:
    """The delay is a random share of the backoff, down to none."""
    rig.clock.luck = 0.0
    rig.service.next(rig.throttled())
    rig.query(rig.embeddings(), "a question")
    assert rig.clock.sleeps == [0.0]


@pytest.mark.parametrize(
    ("headers", "least"),
    [
        ({"retry_after": "7"}, 7.0),
        (
            {
                "date": "Wed, 21 Oct 2026 07:28:00 GMT",
                "retry_after": "Wed, 21 Oct 2026 07:28:09 GMT",
            },
            9.0,
        ),
        ({"retry_after": "soon"}, 0.0),
    ],
)
def test_the_wait_a_service_asks_for_is_kept(
    rig: Rig, headers: dict[str, str], least: float
) -> None:
    """Retry-After, in seconds or as a date, is the least that is waited."""
    rig.service.next(rig.throttled(**headers))
    rig.query(rig.embeddings(), "a question")
    assert rig.clock.sleeps == [least + 0.25]


def test_no_request_is_tried_beyond_the_deadline(rig: Rig) -> None:
    """When the next attempt would come too late, the error says how long and how often."""
    rig.service.next(*[rig.throttled()] * 100)
    with pytest.raises(EmbeddingError, match=r"attempt.*deadline_s=10\)") as failed:
        rig.query(rig.embeddings(deadline_s=10), "a question")
    assert rig.clock.sleeps == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert not isinstance(failed.value, EmbeddingAccessError)


def test_a_wait_longer_than_the_deadline_is_not_begun(rig: Rig) -> None:
    """Where the service asks for more time than there is, the error comes at once."""
    rig.service.next(rig.throttled(retry_after="3600"))
    with pytest.raises(EmbeddingError, match="1 attempt"):
        rig.query(rig.embeddings(deadline_s=60), "a question")
    assert rig.clock.sleeps == []


def test_a_request_without_answer_is_tried_again(rig: Rig) -> None:
    """A stalled request and a dropped connection are retried, each after its time."""
    rig.service.next(Stall(), Hangup())
    assert len(rig.query(rig.embeddings(timeout_s=0.2), "a question")) > 0
    assert len(rig.service.requests) == 3


def test_a_service_that_is_not_there_is_an_error_that_says_so(rig: Rig) -> None:
    """Nothing listening: retried within the deadline, then named."""
    nowhere = "http://127.0.0.1:9"
    where = {"base_url": nowhere} if "openai" in type(rig.service).__module__ else {}
    where = where or {"endpoint_url": nowhere}
    with pytest.raises(EmbeddingError, match="did not answer"):
        rig.query(rig.embeddings(deadline_s=1, **where), "a question")
    assert rig.clock.sleeps


def test_what_was_paid_for_is_kept_while_the_rest_is_retried(rig: Rig) -> None:
    """A failing request of many is sent again alone: no other text is paid for twice."""
    texts = [f"memory {number}" for number in range(512)]
    rig.service.next(Reply(status=502, body=b"<html>Bad gateway</html>"), rig.throttled())
    vectors = rig.documents(rig.embeddings(), texts)
    asked = texts_of(rig.service)
    again = len(asked) - len(set(asked))
    batch = max(len(body.get("input", [0])) for body in rig.service.requests)
    assert again == 2 * batch
    assert set(asked) == set(texts)
    rig.service.reset()
    assert vectors == rig.documents(rig.embeddings(), texts)


def test_equal_texts_are_paid_for_once(rig: Rig) -> None:
    """Each distinct text is sent once, and every place gets a vector of its own."""
    vectors = rig.documents(rig.embeddings(), ["tea", "coffee", "tea", "tea"])
    # The service may still hear of a request that an earlier test gave up.
    heard = [text for text in texts_of(rig.service) if text in {"tea", "coffee"}]
    assert sorted(heard) == ["coffee", "tea"]
    assert vectors[0] == vectors[2] == vectors[3] != vectors[1]
    vectors[0][0] = 9.0
    assert vectors[2][0] != 9.0


def test_nothing_to_embed_asks_nothing(rig: Rig) -> None:
    """An empty list is answered with an empty list."""
    assert rig.documents(rig.embeddings(), []) == []
    assert not rig.service.requests


def test_an_empty_text_is_refused_before_it_is_sent(rig: Rig) -> None:
    """The error names the memory and says what to do instead."""
    with text_labels(["key 'a'", "key 'b'"]), pytest.raises(EmbeddingError) as refused:
        rig.documents(rig.embeddings(), ["tea", ""])
    assert "key 'b' is empty" in str(refused.value)
    assert "index=False" in str(refused.value)
    assert not rig.service.requests


def test_a_repeated_query_is_asked_once(rig: Rig) -> None:
    """The last queries are remembered, sync and async alike, as vectors of the caller's own."""
    embeddings = rig.embeddings(query_cache_size=2)
    asked = rig.query(embeddings, "tea")
    remembered = embeddings.embed_query("tea")
    assert remembered == asked
    assert len(rig.service.requests) == 1
    asked[0] = remembered[0] = 9.0
    assert rig.query(embeddings, "tea")[0] != 9.0


def test_the_query_unused_for_longest_is_forgotten(rig: Rig) -> None:
    """What is asked again stays; what is not gives way."""
    embeddings = rig.embeddings(query_cache_size=2)
    for text in ("tea", "coffee", "tea", "water", "tea", "coffee"):
        rig.query(embeddings, text)
    assert texts_of(rig.service) == ["tea", "coffee", "water", "coffee"]


def test_a_document_is_not_answered_from_the_queries(rig: Rig) -> None:
    """The memory of queries is theirs alone: a document may be embedded for another purpose."""
    embeddings = rig.embeddings(query_cache_size=2)
    rig.query(embeddings, "tea")
    rig.documents(embeddings, ["tea"])
    assert texts_of(rig.service) == ["tea", "tea"]


def test_the_memory_of_queries_can_be_switched_off(rig: Rig) -> None:
    """With ``query_cache_size=0`` the same query is asked each time."""
    embeddings = rig.embeddings(query_cache_size=0)
    rig.query(embeddings, "tea")
    rig.query(embeddings, "tea")
    assert texts_of(rig.service) == ["tea", "tea"]


def vectors_of(rig: Rig, *vectors: object) -> Reply:
    """A well-formed answer with these vectors."""
    if "openai" in type(rig.service).__module__:
        data = [{"index": place, "embedding": vector} for place, vector in enumerate(vectors)]
        return Reply(body={"data": data})
    return Reply(body={"embedding": vectors[0]} if vectors else {})


@pytest.mark.parametrize(
    ("vector", "problem"),
    [
        ([0.5] * 7, "7 numbers"),
        ([0.5] * 4096, "4096 numbers"),
        ([], "0 numbers"),
        ("none", "JSON|no list of numbers|without vectors"),
        (None, "no list of numbers|without vectors"),
        ({"float": [0.5]}, "no list of numbers|without vectors"),
        (["NaN"] * 1024, "finite numbers|numbers instead"),
    ],
    ids=["short", "long", "empty", "text", "null", "object", "words"],
)
def test_a_vector_of_another_shape_is_refused(rig: Rig, vector: object, problem: str) -> None:
    """What comes back is checked: length, kind and content, and is not retried."""
    rig.service.next(vectors_of(rig, vector))
    with pytest.raises(EmbeddingResponseError, match=problem):
        rig.documents(rig.embeddings(dimensions=1024), ["tea"])
    assert len(rig.service.requests) == 1


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "null", '"0.5"'])
def test_a_number_that_is_none_is_refused(rig: Rig, number: str) -> None:
    """One bad number among the good ones is enough."""
    body = json.dumps(vectors_of(rig, [0.5] * 1024).body).replace("0.5", number, 1)
    rig.service.next(Reply(body=body.encode()))
    with pytest.raises(EmbeddingResponseError):
        rig.documents(rig.embeddings(dimensions=1024), ["tea"])


def test_an_answer_without_vectors_is_refused(rig: Rig) -> None:
    """Another object, another count, and something else than JSON are each their own error."""
    for body in ({"detail": "ok"}, ["a"], b"<html>maintenance</html>", b""):
        rig.service.next(Reply(body=body))
        with pytest.raises(EmbeddingResponseError, match=r"answered with"):
            rig.query(rig.embeddings(), "tea")


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("max_concurrency", [0, 2.5, "4", None, True, 10**9]),
        ("deadline_s", [0, -1, nan, inf, "60", None]),
        ("timeout_s", [0, -1, nan, inf, 1e12, "15", None]),
        ("query_cache_size", [-1, 0.5, None]),
        ("truncate", ["cut", None]),
        ("dimensions", ["512", 512.0, True]),
    ],
)
def test_options_that_cannot_work_are_refused(rig: Rig, option: str, values: list[object]) -> None:
    """Bounds of another kind, or without an end, are refused when the object is made."""
    for value in values:
        with pytest.raises(ConfigurationError, match=f"{option}.*{re.escape(repr(value))}"):
            rig.embeddings(**{option: value})


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("provider", ["bedrock", "openai"])
def test_a_failed_call_leaves_no_request_behind(
    provider: str, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once one request has failed for good, those still waiting are not sent.

    The one that was under way beside it may yet arrive, so the service is this test's own.
    """
    with bedrock.Bedrock() as one, openai.OpenAI() as other:
        if provider == "bedrock":
            rig = bedrock_rig(one, mode)
            refusal = bedrock.error("AccessDeniedException", 403, "not authorized")
        else:
            rig, refusal = openai_rig(other, mode), openai.error(401, "Incorrect API key provided")
        rig.service.next(*[refusal] * 5000)
        texts = [f"memory {number}" for number in range(5000)]
        with caplog.at_level(logging.DEBUG), pytest.raises(EmbeddingAccessError):
            rig.documents(rig.embeddings(max_concurrency=2), texts)
        assert len(rig.service.requests) <= 4


@pytest.mark.parametrize("status", [429, 500])
def test_a_service_that_says_not_to_try_again_is_asked_once(rig: Rig, status: int) -> None:
    """``x-should-retry: false`` ends a request that would else be tried until the deadline."""
    said = {"x_should_retry": "false"}
    rig.service.next(*[failing(rig, status, **said)] * 9)
    with pytest.raises(EmbeddingError):
        rig.query(rig.embeddings(), "a question")
    assert len(rig.service.requests) == 1
    assert rig.clock.sleeps == []


def failing(rig: Rig, status: int, **headers: str) -> Reply:
    if "openai" in type(rig.service).__module__:
        return openai.error(status, "Try later", **headers)
    code = "ThrottlingException" if status == 429 else "InternalServerException"
    return bedrock.error(code, status, "Try later", **headers)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_service_that_says_to_try_again_is_asked_again(status: int, mode: str) -> None:
    """``x-should-retry: true`` of an OpenAI-compatible service, whatever else it answers."""
    with openai.OpenAI() as service:
        rig = openai_rig(service, mode)
        rig.service.next(openai.error(status, "starting", x_should_retry="true"))
        assert len(rig.query(rig.embeddings(), "a question")) == 1536
        assert len(rig.service.requests) == 2


def test_a_wait_beyond_the_deadline_is_told(rig: Rig) -> None:
    """Retry-After asks for longer than there is: the error names both times."""
    rig.service.next(rig.throttled(retry_after="3600"))
    with pytest.raises(EmbeddingError, match=r"asks to wait 3600 s, and 60\.0 s were left"):
        rig.query(rig.embeddings(deadline_s=60), "a question")
    rig.service.next(*[rig.throttled(retry_after="4")] * 9)
    with pytest.raises(EmbeddingError, match=r"asks to wait 4 s, and \d\.\d s were left"):
        rig.query(rig.embeddings(deadline_s=10), "a question")


def test_no_wait_is_told_where_none_was_asked_for(rig: Rig) -> None:
    """The deadline alone is why there was no further attempt."""
    rig.service.next(*[rig.throttled()] * 99)
    with pytest.raises(EmbeddingError) as failed:
        rig.query(rig.embeddings(deadline_s=10), "a question")
    assert "asks to wait" not in str(failed.value)
