"""No text and no key in any log, repr or traceback; no SDK before it is needed."""

import logging
import subprocess
import sys
import traceback
from collections.abc import Iterator

import boto3
import pytest

from langgraph_aurora_store.embeddings import BedrockEmbeddings, OpenAIEmbeddings
from langgraph_aurora_store.errors import EmbeddingError
from tests.support import bedrock_service as bedrock
from tests.support import openai_service as openai
from tests.support.embedding_rigs import Rig, bedrock_rig, openai_rig
from tests.support.http_service import Hangup, Reply

KEY = "sk-hidden-9876543210abcdef"
SESSION = boto3.Session(
    "AKIDHIDDEN", "secret-hidden-13579", "session-token-hidden-24680", region_name="us-east-1"
)
TEXT = 'Frida said: "I paint flowers so they will not die"\nand meant it — à jamais'
FRAGMENTS = ("Frida", "flowers", "will not die", "jamais", "hidden", "AKIDHIDDEN")


@pytest.fixture(params=["bedrock-sync", "bedrock-async", "openai-sync", "openai-async"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    provider, mode = request.param.split("-")
    if provider == "bedrock":
        with bedrock.Bedrock() as service:
            yield bedrock_rig(service, mode)
    else:
        with openai.OpenAI(key=KEY) as other:
            yield openai_rig(other, mode)


def echo(rig: Rig) -> Reply:
    """A refusal that quotes the request, as services do now and then."""
    if isinstance(rig.service, bedrock.Bedrock):
        return bedrock.error("ValidationException", 400, f"inputText: {TEXT!r} is not accepted")
    return openai.error(400, f"Invalid 'input': {TEXT[:24]}… with key {KEY}")


def leaks(said: str) -> list[str]:
    return [fragment for fragment in FRAGMENTS if fragment in said]


def test_nothing_private_is_logged(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG on every logger, successes, retries and refusals show neither texts nor keys."""
    options = {"session": SESSION} if isinstance(rig.service, bedrock.Bedrock) else {}
    embeddings = rig.embeddings(**options)
    with caplog.at_level(logging.DEBUG):
        rig.documents(embeddings, [TEXT, TEXT + " twice", TEXT * 2000])
        rig.query(embeddings, TEXT)
        rig.service.next(rig.throttled(), rig.failing, Hangup())
        rig.query(embeddings, TEXT + "?")
        rig.service.next(echo(rig))
        with pytest.raises(EmbeddingError):
            rig.query(embeddings, TEXT)
    assert any(
        record.name.startswith("urllib3") or "http" in record.name for record in caplog.records
    )
    said = caplog.text + "".join(f"{record.__dict__}" for record in caplog.records)
    assert leaks(said) == []


@pytest.mark.parametrize("fault", ["echo", "throttled", "shape", "hangup"])
def test_nothing_private_is_in_an_error(rig: Rig, fault: str) -> None:
    """Neither the message nor the traceback with all its causes shows what was sent."""
    replies = {
        "echo": echo(rig),
        "throttled": rig.throttled(retry_after="3600"),
        "shape": Reply(body={"embedding": [TEXT], "data": [{"embedding": TEXT}]}),
        "hangup": Hangup(),
    }
    rig.service.next(*[replies[fault]] * 30)
    options = {"session": SESSION} if isinstance(rig.service, bedrock.Bedrock) else {}
    with pytest.raises(EmbeddingError) as failed:
        rig.documents(rig.embeddings(deadline_s=1, **options), [TEXT])
    assert leaks("".join(traceback.format_exception(failed.value))) == []
    assert leaks(repr(failed.value)) == []


def test_nothing_private_is_in_a_repr() -> None:
    """The objects a user may print show model, length and nothing else."""
    embeddings = [
        OpenAIEmbeddings("text-embedding-3-small", api_key=KEY),
        BedrockEmbeddings("amazon.titan-embed-text-v2:0", session=SESSION),
    ]
    said = repr(embeddings) + "".join(repr(vars(one)) for one in embeddings)
    assert leaks(said) == []
    assert "OpenAIEmbeddings('text-embedding-3-small', dimensions=1536)" in said


def test_the_logs_of_others_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Only this package's own requests are kept out of an SDK's logs."""
    with bedrock.Bedrock() as service:
        embeddings = BedrockEmbeddings(
            "amazon.titan-embed-text-v2:0", session=SESSION, endpoint_url=service.url
        )
        embeddings.embed_query("quiet")
        client = SESSION.client("bedrock-runtime", endpoint_url=service.url)
        with caplog.at_level(logging.DEBUG):
            client.invoke_model(
                modelId="amazon.titan-embed-text-v2:0", body=b'{"inputText": "loud"}'
            )
        client.close()
        embeddings.close()
    assert "loud" in caplog.text


def test_no_sdk_is_imported_before_the_first_embedding() -> None:
    """Making embeddings of either kind imports neither SDK, and numpy is never needed."""
    program = (
        "import sys\n"
        "from langgraph_aurora_store.embeddings import *\n"
        "resolve('bedrock:us.cohere.embed-v4:0', region='us-east-1')\n"
        "resolve('openai:text-embedding-3-large', dims=256)\n"
        "print([name for name in ('boto3', 'botocore', 'openai', 'numpy') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"


def test_numpy_is_not_needed() -> None:
    """Where numpy cannot be imported, both services embed."""
    program = (
        "import sys; sys.modules['numpy'] = None\n"
        "import boto3\n"
        "from langgraph_aurora_store.embeddings import BedrockEmbeddings, OpenAIEmbeddings\n"
        "from tests.support.bedrock_service import Bedrock\n"
        "from tests.support.openai_service import OpenAI\n"
        "with Bedrock() as one, OpenAI() as other:\n"
        "    session = boto3.Session('AKIDEXAMPLE', 'secret', region_name='us-east-1')\n"
        "    for embeddings in (\n"
        "        BedrockEmbeddings('cohere.embed-v4:0', session=session, endpoint_url=one.url),\n"
        "        OpenAIEmbeddings('text-embedding-3-small', api_key=other.key,\n"
        "                         base_url=other.base_url),\n"
        "    ):\n"
        "        print(len(embeddings.embed_query('tea')))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "1536\n1536\n"
