"""Credentials that cannot be obtained, and unexpected answers: what is told, what is retried."""

import logging
import traceback
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from langgraph_aurora_store.embeddings import BedrockEmbeddings
from langgraph_aurora_store.errors import EmbeddingAccessError, EmbeddingError
from tests.support.bedrock_service import Bedrock
from tests.support.http_service import Reply
from tests.support.stepped_clock import SteppedClock

pytestmark = pytest.mark.usefixtures("sessions_without_moto")

TITAN = "amazon.titan-embed-text-v2:0"


@pytest.fixture
def bedrock() -> Iterator[Bedrock]:
    with Bedrock() as service:
        yield service


def make(bedrock: Bedrock, clock: SteppedClock, **options: Any) -> BedrockEmbeddings:
    settings = {"region": "us-east-1", "endpoint_url": bedrock.url, "query_cache_size": 0}
    return BedrockEmbeddings(TITAN, clock=clock, **settings | options)


def plain() -> boto3.Session:
    return boto3.Session("AKIDEXAMPLE", "secret", region_name="us-east-1")


def refused(code: str, status: int) -> ClientError:
    """What STS answers, as botocore raises it."""
    response: Any = {
        "Error": {"Code": code, "Message": "not authorized to perform: sts:AssumeRole"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, "AssumeRole")


def without_credentials(error: Exception, step: str) -> botocore.session.Session:
    """A session that fails to find credentials, or to renew those it has found."""

    def fail() -> Any:
        raise error

    core = botocore.session.Session()
    if step == "find":
        core.get_component("credential_provider").load_credentials = fail
    else:
        core._credentials = SimpleNamespace(get_frozen_credentials=fail)
    return core


@pytest.mark.parametrize("step", ["find", "renew"])
@pytest.mark.parametrize(
    ("code", "status"),
    [("AccessDenied", 403), ("ExpiredTokenException", 400), ("InvalidIdentityToken", 400)],
)
def test_a_refusal_of_sts_is_told_as_one(
    bedrock: Bedrock, step: str, code: str, status: int
) -> None:
    """It is not Bedrock that refused, and bedrock:InvokeModel would not help."""
    clock = SteppedClock()
    session = without_credentials(refused(code, status), step)
    with pytest.raises(EmbeddingAccessError, match="AWS credentials could not be obtained") as told:
        make(bedrock, clock, session=session).embed_query("tea")
    assert f"({code}) when calling the AssumeRole operation" in str(told.value)
    assert "trust policy" in str(told.value)
    assert "InvokeModel" not in str(told.value)
    assert clock.sleeps == []


@pytest.mark.parametrize("step", ["find", "renew"])
@pytest.mark.parametrize(
    "error",
    [
        refused("Throttling", 400),
        refused("InternalFailure", 500),
        EndpointConnectionError(endpoint_url="https://sts.mars-north-1.amazonaws.com"),
    ],
    ids=["throttled", "failing", "lost"],
)
def test_credentials_late_to_come_are_asked_for_again(
    bedrock: Bedrock, step: str, error: Exception
) -> None:
    """STS has its bad moments as Bedrock has, and the error says whose they were."""
    clock = SteppedClock()
    session = without_credentials(error, step)
    with pytest.raises(EmbeddingError, match="AWS credentials could not be obtained") as told:
        make(bedrock, clock, session=session, deadline_s=1).embed_query("tea")
    assert not isinstance(told.value, EmbeddingAccessError)
    assert clock.sleeps == [0.25, 0.5]


def test_any_failure_of_finding_credentials_is_told_as_one(bedrock: Bedrock) -> None:
    """A token's file that is missing is no failure of Bedrock."""
    clock = SteppedClock()
    session = without_credentials(FileNotFoundError(2, "No such file", "/run/token"), "find")
    with pytest.raises(EmbeddingAccessError, match=r"could not be obtained.*'/run/token'"):
        make(bedrock, clock, session=session).embed_query("tea")
    assert clock.sleeps == []


def test_a_header_that_cannot_be_sent_is_not_tried_again(
    bedrock: Bedrock, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake made here does not heal, and neither error nor log quotes a credential."""
    caplog.set_level(logging.DEBUG)
    clock = SteppedClock()
    session = boto3.Session("AKIDEXAMPLE", "secret", "hidden\ntoken", region_name="us-east-1")
    with pytest.raises(EmbeddingError, match="HTTPClientError") as told:
        make(bedrock, clock, session=session).embed_query("tea")
    assert clock.sleeps == []
    assert "hidden" not in "".join(traceback.format_exception(told.value))
    assert "hidden" not in caplog.text


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "body",
    [b"[]", b'"busy"', b"5", b"null", b"", b'{"message":"\xff"}', b"<html>busy</html>"],
    ids=["list", "text", "number", "null", "nothing", "bytes", "page"],
)
def test_an_error_of_any_shape_is_tried_again(bedrock: Bedrock, status: int, body: bytes) -> None:
    """A gateway in between answers as it likes: the status tells whether to try again."""
    clock = SteppedClock()
    bedrock.next(Reply(status, body))
    assert make(bedrock, clock, session=plain()).embed_query("tea")
    assert clock.sleeps == [0.25]


def test_an_error_without_a_readable_body_is_known_by_its_header(bedrock: Bedrock) -> None:
    """The type that AWS puts beside the body is enough."""
    bedrock.next(Reply(403, b"[]", {"x-amzn-errortype": "AccessDeniedException:http://x"}))
    with pytest.raises(EmbeddingAccessError, match="Bedrock said AccessDeniedException"):
        make(bedrock, SteppedClock(), session=plain()).embed_query("tea")
