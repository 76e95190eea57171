"""Bedrock's own ways: credentials, regions, permissions, limits, threads, processes."""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator

import boto3
import pytest

from langgraph_aurora_store.embeddings import BedrockEmbeddings, text_labels
from langgraph_aurora_store.embeddings.concurrency import Workers
from langgraph_aurora_store.errors import (
    ConfigurationError,
    EmbeddingAccessError,
    EmbeddingError,
)
from tests.support.bedrock_service import Bedrock, error
from tests.support.embedding_rigs import SESSION
from tests.support.http_service import Stall

TITAN = "amazon.titan-embed-text-v2:0"
COHERE = "cohere.embed-english-v3"
NOVA = "amazon.nova-2-multimodal-embeddings-v1:0"


@pytest.fixture(scope="module")
def _bedrock() -> Iterator[Bedrock]:
    with Bedrock() as service:
        yield service


@pytest.fixture
def bedrock(_bedrock: Bedrock) -> Bedrock:
    _bedrock.reset()
    _bedrock.latency_s = 0.0
    return _bedrock


def embeddings(bedrock: Bedrock, model: str = TITAN, **options: object) -> BedrockEmbeddings:
    settings = {"session": SESSION, "endpoint_url": bedrock.url, "query_cache_size": 0} | options
    return BedrockEmbeddings(model, **settings)  # type: ignore[arg-type]  # a test's own options


def refusal_of(bedrock: Bedrock, *reply: object, model: str = TITAN, **options: object) -> str:
    """The text of the error a user gets for this answer, which must not be tried again."""
    bedrock.reset()
    bedrock.next(error(*reply))  # type: ignore[arg-type]  # code, status, message
    with pytest.raises(EmbeddingError) as refused:
        embeddings(bedrock, model, **options).embed_query("tea")
    assert len(bedrock.requests) == 1
    assert isinstance(refused.value, EmbeddingAccessError)
    return str(refused.value)


def test_access_denied_names_the_permission_and_the_resource(bedrock: Bedrock) -> None:
    """The policy line that is missing can be copied out of the error."""
    denied = "User: arn:aws:sts::123456789012:assumed-role/app/i is not authorized"
    text = refusal_of(bedrock, "AccessDeniedException", 403, denied)
    assert f"bedrock:InvokeModel on arn:aws:bedrock:us-east-1::foundation-model/{TITAN}" in text
    assert denied in text
    profile = refusal_of(
        bedrock, "AccessDeniedException", 403, denied, model="us.cohere.embed-v4:0"
    )
    assert "us-east-1:<account>:inference-profile/us.cohere.embed-v4:0" in profile
    assert "arn:aws:bedrock:*::foundation-model/cohere.embed-v4:0" in profile


@pytest.mark.parametrize(
    ("region", "partition"), [("us-gov-west-1", "aws-us-gov"), ("cn-north-1", "aws-cn")]
)
def test_the_resource_is_named_in_its_partition(region: str, partition: str) -> None:
    """GovCloud and China have ARNs of their own."""
    with Bedrock(region=region) as service:
        text = refusal_of(service, "AccessDeniedException", 403, "no", region=region)
    assert f"arn:{partition}:bedrock:{region}::foundation-model/{TITAN}" in text


ACCOUNT = "arn:aws:bedrock:us-east-1:123456789012"
MODELS = "arn:aws:bedrock:*::foundation-model"


@pytest.mark.parametrize(
    ("arn", "resources"),
    [
        (f"{ACCOUNT}:provisioned-model/a1b2c3", ""),
        (f"arn:aws:bedrock:us-east-1::foundation-model/{TITAN}", ""),
        (f"{ACCOUNT}:inference-profile/us.{TITAN}", f" and {MODELS}/{TITAN}"),
        (
            f"{ACCOUNT}:application-inference-profile/a1b2c3",
            f" and {MODELS}/<the model behind it>",
        ),
    ],
)
def test_an_arn_is_named_as_it_is(bedrock: Bedrock, arn: str, resources: str) -> None:
    """For a model given by its ARN the policy names that, and the models behind a profile."""
    text = refusal_of(bedrock, "AccessDeniedException", 403, "no", model=arn, base_model=TITAN)
    assert f"bedrock:InvokeModel on {arn}{resources}, and" in text


@pytest.mark.parametrize("message", ["on-demand throughput", "model identifier is invalid"])
def test_no_profile_is_suggested_that_is_none(bedrock: Bedrock, message: str) -> None:
    """The id behind an ARN gets a geography in front, and the ARN itself never."""
    for shown in ("::foundation-model/", ":123456789012:inference-profile/us."):
        arn = f"arn:aws:bedrock:us-east-1{shown}{TITAN}"
        text = refusal_of(bedrock, "ValidationException", 400, message, model=arn)
        assert f"'us.{TITAN}'" in text
    hidden = f"{ACCOUNT}:provisioned-model/a1b2c3"
    text = refusal_of(bedrock, "ValidationException", 400, message, model=hidden, base_model=TITAN)
    assert "such as" not in text


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("ResourceNotFoundException", 404, "Could not resolve the foundation model"),
        ("ValidationException", 400, "The provided model identifier is invalid"),
    ],
)
def test_an_unknown_model_or_wrong_region_says_what_to_check(
    bedrock: Bedrock, code: str, status: int, message: str
) -> None:
    """AWS gives the same answer for both: the error names region and id and both remedies."""
    text = refusal_of(bedrock, code, status, message)
    for word in (TITAN, "us-east-1", "region=", f"us.{TITAN}", message):
        assert word in text


def test_a_model_behind_profiles_only_says_so(bedrock: Bedrock) -> None:
    """Where on-demand calls are not offered, the error shows the id of a profile."""
    message = "Invocation of model ID x with on-demand throughput is not supported."
    text = refusal_of(bedrock, "ValidationException", 400, message)
    assert f"'us.{TITAN}'" in text
    assert "base_model=" in text


@pytest.mark.parametrize(
    "code", ["UnrecognizedClientException", "ExpiredTokenException", "InvalidSignatureException"]
)
def test_refused_credentials_say_so(bedrock: Bedrock, code: str) -> None:
    """Credentials that AWS does not accept are told apart from a missing permission."""
    text = refusal_of(bedrock, code, 403, "The security token included in the request is invalid.")
    assert "credentials were refused" in text


def test_no_credentials_is_an_error_that_says_where_to_put_them(
    bedrock: Bedrock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any credentials nothing is sent, and the error says what to give."""
    with pytest.raises(
        EmbeddingAccessError, match=r"pass session=, set AWS_PROFILE.*run with a role"
    ):
        embeddings(bedrock, session=boto3.Session(region_name="us-east-1")).embed_query("tea")
    assert not bedrock.requests


def test_no_region_is_an_error_that_says_where_to_put_it(bedrock: Bedrock) -> None:
    """Nothing is guessed: the error names the parameter and the variable."""
    with pytest.raises(ConfigurationError, match="pass region= or set AWS_REGION"):
        embeddings(bedrock, session=boto3.Session("AKIDEXAMPLE", "secret")).embed_query("tea")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("region", "us east-1"),
        ("region", "us-east-1\r\nx-more: 1"),
        ("region", "us-east-1\n"),
        ("region", ""),
        ("region", 5),
        ("session", "prof"),
        ("session", boto3),
        ("session", boto3.Session),
        ("client", object()),
        ("client", SESSION.client("sts")),
        ("endpoint_url", "bedrock.internal"),
        ("endpoint_url", "ftp://bedrock.internal"),
        ("endpoint_url", "https://"),
        ("endpoint_url", "https://bedrock.internal/a b"),
        ("endpoint_url", "https://bedrock.internal:port"),
        ("endpoint_url", 5),
        ("model", None),
        ("model", 5),
        ("model", " "),
        ("base_model", 5),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_what_cannot_reach_bedrock_is_refused_when_it_is_given(option: str, value: object) -> None:
    """A mistake is found where it is made, and the error names the option."""
    with pytest.raises(ConfigurationError, match=f"^{option}="):
        BedrockEmbeddings(**{"model": TITAN, option: value})  # type: ignore[arg-type]  # mistakes


def test_a_region_of_the_environment_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line's end that came along from a file would end up in the host name and the signature."""
    monkeypatch.setenv("AWS_REGION", "us-east-1\n")
    with pytest.raises(ConfigurationError, match="region="):
        BedrockEmbeddings(TITAN).embed_query("tea")


def test_a_password_in_a_wrong_url_is_not_shown() -> None:
    """An error may be logged."""
    with pytest.raises(ConfigurationError) as refused:
        BedrockEmbeddings(TITAN, endpoint_url="ftp://me:hidden@x")
    assert "hidden" not in str(refused.value)


def test_a_region_that_does_not_exist_is_not_tried_again() -> None:
    """A misspelt region has no endpoint, and the error says so at once."""
    misspelt = BedrockEmbeddings(TITAN, session=SESSION, region="us-esat-1", timeout_s=2)
    with pytest.raises(EmbeddingAccessError, match=r"no Bedrock endpoint known in 'us-esat-1'"):
        misspelt.embed_query("tea")


@pytest.mark.parametrize(
    ("options", "variables", "region"),
    [
        ({"region": "eu-west-1"}, {"AWS_REGION": "us-west-2"}, "eu-west-1"),
        ({}, {"AWS_REGION": "us-west-2"}, "us-east-1"),
        ({"session": None}, {"AWS_REGION": "us-west-2"}, "us-west-2"),
        ({"session": None}, {"AWS_DEFAULT_REGION": "sa-east-1"}, "sa-east-1"),
        (
            {"session": None, "model": f"arn:aws:bedrock:eu-west-3::foundation-model/{TITAN}"},
            {"AWS_REGION": "us-west-2"},
            "eu-west-3",
        ),
    ],
    ids=["parameter", "session", "AWS_REGION", "AWS_DEFAULT_REGION", "ARN"],
)
def test_the_region_is_the_nearest_one_given(
    options: dict[str, str | None],
    variables: dict[str, str],
    region: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parameter, the ARN, the session, the environment: the first that says one."""
    credentials = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret"}
    for name, value in (variables | credentials).items():
        monkeypatch.setenv(name, value)
    model = str(options.get("model", TITAN))
    with Bedrock(region=region, profiles={model: TITAN}) as service:
        embeddings(service, **{"model": model} | options).embed_query("tea")
        assert f"/{region}/bedrock/aws4_request" in service.headers[0]["authorization"]


def test_a_rejected_request_is_not_tried_again(bedrock: Bedrock) -> None:
    """A request that AWS finds malformed fails once, in AWS's own words."""
    bedrock.next(error("ValidationException", 400, "Malformed input request: #: no"))
    with pytest.raises(EmbeddingError, match="refused the request; Bedrock said Validation"):
        embeddings(bedrock).embed_query("tea")
    assert len(bedrock.requests) == 1


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_no_more_requests_are_under_way_than_allowed(bedrock: Bedrock, mode: str) -> None:
    """Two hundred texts keep every one of seven places busy, and never an eighth."""
    bedrock.latency_s = 0.01
    bounded = embeddings(bedrock, max_concurrency=7)
    texts = [f"memory {number}" for number in range(200)]
    if mode == "sync":
        vectors = bounded.embed_documents(texts)
    else:
        vectors = asyncio.run(bounded.aembed_documents(texts))
    assert bedrock.peak == 7
    assert len(vectors) == 200


def test_the_bound_holds_over_threads_and_loops_together(bedrock: Bedrock) -> None:
    """Callers in several threads, some with event loops, share one bound."""
    bedrock.latency_s = 0.01
    bounded = embeddings(bedrock, max_concurrency=5)

    def blocking(name: str) -> None:
        bounded.embed_documents([f"{name} {number}" for number in range(30)])

    def looping(name: str) -> None:
        asyncio.run(bounded.aembed_documents([f"{name} {number}" for number in range(30)]))

    threads = [
        threading.Thread(target=work, args=(f"{work.__name__} {number}",))
        for number in range(3)
        for work in (blocking, looping)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bedrock.peak == 5
    assert len(bedrock.requests) == 180


def test_a_query_does_not_wait_for_a_bulk_load(bedrock: Bedrock) -> None:
    """A call of one text is served in the next round, not after a call of thousands."""
    bedrock.latency_s = 0.005
    shared = embeddings(bedrock, max_concurrency=2)
    bulk = threading.Thread(
        target=shared.embed_documents, args=([f"memory {number}" for number in range(400)],)
    )
    bulk.start()
    bedrock.wait_for(10)
    shared.embed_query("a question")
    asked = len(bedrock.requests)
    bulk.join()
    assert asked < 200


async def test_the_event_loop_is_not_blocked(bedrock: Bedrock) -> None:
    """While Bedrock thinks, the loop runs on: another task makes progress during the call."""
    bedrock.latency_s = 0.2
    call = asyncio.create_task(embeddings(bedrock).aembed_query("tea"))
    turns = 0
    while not call.done():
        await asyncio.sleep(0)
        turns += 1
    await call
    assert turns > 100


async def test_a_cancelled_call_sends_nothing_more(bedrock: Bedrock) -> None:
    """Cancelling the task ends the call; texts that wait are never sent."""
    bedrock.next(*[Stall()] * 2)
    bounded = embeddings(bedrock, max_concurrency=2, timeout_s=0.3)
    call = asyncio.create_task(bounded.aembed_documents([f"m {number}" for number in range(50)]))
    await asyncio.to_thread(bedrock.wait_for, 2)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await bounded.aembed_query("afterwards")
    assert [body["inputText"] for body in bedrock.requests[2:]] == ["afterwards"]


def test_a_forked_process_embeds_on_its_own(bedrock: Bedrock) -> None:
    """Threads and sockets are not inherited: a child that forks after a first use still works."""
    shared = embeddings(bedrock, max_concurrency=1)
    shared.embed_query("before")
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            shared.embed_documents(["after", "the", "fork"])
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    shared.embed_query("and the parent too")
    assert len(bedrock.requests) == 5


def test_a_child_forked_during_the_first_embedding_embeds(bedrock: Bedrock) -> None:
    """What another thread was about to make is made in the child, which has no such thread."""
    making, go_on = threading.Event(), threading.Event()

    class Slow(boto3.session.Session):
        def client(self, *args: object, **options: object) -> object:
            making.set()
            go_on.wait(20)
            return super().client(*args, **options)  # type: ignore[call-overload]  # as given

    keys = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "secret"}
    shared = embeddings(bedrock, session=Slow(region_name="us-east-1", **keys))
    first = threading.Thread(target=shared.embed_query, args=("of a thread",))
    first.start()
    assert making.wait(20)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        go_on.set()
        try:
            shared.embed_query("of the child")
            os._exit(0)
        finally:
            os._exit(1)
    go_on.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    first.join()
    assert len(bedrock.requests) == 2


def test_embeddings_can_be_used_after_closing(bedrock: Bedrock) -> None:
    """``close`` lets go of threads and connections, not of the object."""
    reused = embeddings(bedrock)
    reused.embed_query("tea")
    reused.close()
    assert reused.embed_query("tea")


def test_closing_disturbs_no_call_that_begins_meanwhile() -> None:
    """Work given to threads that are being let go is done by new ones."""
    workers = Workers(2, "test")
    failed: list[RuntimeError] = []

    def submit() -> None:
        try:
            for _ in range(5000):
                workers.submit(bool)
        except RuntimeError as error:
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=submit) for _ in range(4)]
        for thread in threads:
            thread.start()
        while not failed and any(thread.is_alive() for thread in threads):
            workers.close()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    workers.close()
    assert failed == []


def test_a_client_of_the_users_own_is_used(bedrock: Bedrock) -> None:
    """A boto3 client passed in makes the calls."""
    client = SESSION.client("bedrock-runtime", endpoint_url=bedrock.url)
    assert BedrockEmbeddings(TITAN, client=client).embed_query("tea")
    assert len(bedrock.requests) == 1


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_cohere_takes_ninety_six_texts_a_request(bedrock: Bedrock, mode: str) -> None:
    """Batches are full, and every text has its own vector, in order."""
    batched = embeddings(bedrock, COHERE)
    texts = [f"memory {number}" for number in range(200)]
    if mode == "sync":
        vectors = batched.embed_documents(texts)
    else:
        vectors = asyncio.run(batched.aembed_documents(texts))
    assert sorted(len(body["texts"]) for body in bedrock.requests) == [8, 96, 96]
    assert vectors[150] == batched.embed_documents([texts[150]])[0]


@pytest.mark.parametrize(
    ("model", "text", "length"),
    [
        (COHERE, "a memory of tea. " * 200, 2048),
        (TITAN, "memory " * 12_000, 38_502),
        ("amazon.titan-embed-image-v1", "memory " * 1_000, 1_203),
        ("cohere.embed-v4:0", "tea " * 160_000, 601_600),
    ],
)
def test_a_long_text_is_cut_with_one_warning_that_names_it(
    bedrock: Bedrock, model: str, text: str, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The one warning has the label, both lengths and the model, and no word of the text."""
    with text_labels(["namespace ('a', 'b') key 'long'", "key 'short'"]):
        vectors = embeddings(bedrock, model).embed_documents([text, "short"])
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    said = warning.getMessage()
    assert "namespace ('a', 'b') key 'long'" in said
    assert f"{len(text):,} characters" in said
    assert f"{length:,}" in said
    assert model in said
    assert "short" not in said
    assert "tea" not in said
    assert "memory" not in said
    assert vectors[0] == embeddings(bedrock, model).embed_documents([text[:length]])[0]


def test_many_cut_texts_make_one_warning(
    bedrock: Bedrock, caplog: pytest.LogCaptureFixture
) -> None:
    """A batch of long texts names the first few and counts the rest."""
    long = [f"{number} " + "word " * 1000 for number in range(20)]
    embeddings(bedrock, COHERE).embed_documents(long)
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage().startswith("20 text(s)")
    assert warning.getMessage().endswith("and 15 more")


def test_a_text_the_service_still_finds_too_long_is_cut_again(
    bedrock: Bedrock, caplog: pytest.LogCaptureFixture
) -> None:
    """Dense text has more tokens than estimated: the service's own count says where to cut."""
    dense = "0x1f;" * 9000
    assert embeddings(bedrock).embed_documents([dense])[0]
    sent = [len(body["inputText"]) for body in bedrock.requests]
    assert sent[0] > sent[-1] > 0.5 * sent[0]
    assert f"the first {sent[-1]:,} embedded" in caplog.text


def test_one_long_text_in_a_batch_is_cut_alone(
    bedrock: Bedrock, caplog: pytest.LogCaptureFixture
) -> None:
    """When a batch is refused for a text's length, only texts that may be long are shortened."""
    long, short = "é" * 2048, "tea"
    bedrock.next(
        error("ValidationException", 400, "#/texts/1: expected maxLength: 2048, actual: 4096"),
    )
    vectors = embeddings(bedrock, COHERE).embed_documents([short, long, "coffee"])
    assert vectors[0] == embeddings(bedrock, COHERE).embed_documents([short])[0]
    assert [body["texts"] for body in bedrock.requests][1:3] == [[short, "coffee"], [long]]
    assert "were cut" not in caplog.text


def test_what_nova_cut_itself_is_reported(
    bedrock: Bedrock, caplog: pytest.LogCaptureFixture
) -> None:
    """Nova cuts at its own tokens and says where: the warning tells that length."""
    text = "tea " * 12_000
    assert embeddings(bedrock, NOVA).embed_documents([text])[0]
    assert bedrock.requests[0]["singleEmbeddingParams"]["text"]["value"] == text
    assert (
        f"{len(text):,} characters, the first {48_000 * 8192 // 12_000:,} embedded" in caplog.text
    )


@pytest.mark.parametrize(
    ("model", "text", "problem"),
    [
        (COHERE, "w" * 2049, r"key 'k' has 2,049 characters, over the limit of 2,048"),
        (TITAN, "w" * 50_001, r"key 'k' has 50,001 characters"),
        (TITAN, "0x1f;" * 9000, r"key 'k': .* too long; .*Max input tokens: 8192"),
        (NOVA, "tea " * 12_000, r"key 'k': .* too long; .*Max input tokens: 8192"),
    ],
    ids=["cohere-characters", "titan-characters", "titan-tokens", "nova-tokens"],
)
def test_a_long_text_is_an_error_where_asked_for(
    bedrock: Bedrock, model: str, text: str, problem: str
) -> None:
    """With ``truncate="error"`` nothing is cut, here or by the service."""
    strict = embeddings(bedrock, model, truncate="error")
    with text_labels(["key 'k'"]), pytest.raises(EmbeddingError, match=problem):
        strict.embed_documents([text])


def test_a_text_at_the_limit_is_left_whole(
    bedrock: Bedrock, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit itself is not over the limit."""
    text = "w" * 2048
    embeddings(bedrock, COHERE).embed_documents([text])
    assert bedrock.requests[0]["texts"] == [text]
    assert "cut" not in caplog.text


def test_a_message_that_quotes_the_text_is_withheld(bedrock: Bedrock) -> None:
    """A service that echoes what it was sent does not get it into the error or its causes."""
    secret = "the patient's name is Frida Kahlo"
    bedrock.next(error("ValidationException", 400, f"#/inputText: '{secret[:20]}...' is odd"))
    with pytest.raises(EmbeddingError, match="withheld") as refused:
        embeddings(bedrock).embed_query(secret)
    assert refused.value.__cause__ is None
    assert "patient" not in str(refused.value)
