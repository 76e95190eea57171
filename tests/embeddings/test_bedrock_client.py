"""Bedrock through botocore's own client: what configures, traces or stubs one counts here too."""

import functools
import io
import json
import logging
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import botocore.endpoint
import botocore.session
import pytest
from botocore.client import BaseClient, ClientCreator
from botocore.config import Config
from botocore.credentials import RefreshableCredentials

from langgraph_aurora_store.embeddings import BedrockEmbeddings
from langgraph_aurora_store.embeddings.models import MODELS
from langgraph_aurora_store.errors import EmbeddingError
from langgraph_aurora_store.local.authority import Authority
from langgraph_aurora_store.version import __version__
from tests.support.bedrock_service import Bedrock
from tests.support.signing_clock import set_signing_clock

pytestmark = pytest.mark.usefixtures("sessions_without_moto")

TITAN = "amazon.titan-embed-text-v2:0"
PROFILE = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3"
MODEL_IDS = [model.id for model in MODELS.values() if model.wire_format.provider == "bedrock"]
KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret"}
NOWHERE = "http://127.0.0.1:9"
# One attempt, as in this package, whose retries are not botocore's.
CONFIG = Config(retries={"total_max_attempts": 1, "mode": "standard"})
# What tells one call from the next, and is not signed.
BOOKKEEPING = {"amz-sdk-invocation-id", "user-agent"}


class Listener(Bedrock):
    """A Bedrock that keeps the paths it was asked for, as they came."""

    def __init__(self) -> None:
        super().__init__(profiles={PROFILE: TITAN})
        self.paths: list[str] = []

    def admit(self, path: str, headers: Mapping[str, str]) -> None:
        self.paths.append(path)
        super().admit(path, headers)


@pytest.fixture
def bedrock() -> Iterator[Listener]:
    with Listener() as service:
        yield service


def plain() -> boto3.Session:
    return boto3.Session("AKIDEXAMPLE", "secret", "session-token", region_name="us-east-1")


def make(model: str = TITAN, **options: Any) -> BedrockEmbeddings:
    return BedrockEmbeddings(model, **{"session": plain(), "query_cache_size": 0} | options)


# the request


@pytest.mark.parametrize("model", [*MODEL_IDS, "us.cohere.embed-v4:0", PROFILE])
@pytest.mark.parametrize("path", ["", "/behind/a/path/"])
def test_the_request_is_the_one_boto3_sends(
    bedrock: Listener, monkeypatch: pytest.MonkeyPatch, model: str, path: str
) -> None:
    """Path, headers, body and signature at the same moment; colons and slashes are escaped."""
    noon = datetime(2026, 1, 1, 12)  # noqa: DTZ001 - botocore's own clock is naive
    set_signing_clock(monkeypatch, noon)
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "f")
    monkeypatch.setenv("_X_AMZN_TRACE_ID", "Root=1-2;Parent=3;Sampled=1")
    url = bedrock.url + path
    base = TITAN if model == PROFILE else None
    ours = make(model, endpoint_url=url, base_model=base)
    client = plain().client("bedrock-runtime", endpoint_url=url, config=CONFIG)
    for embeddings in (ours, make(model, client=client, base_model=base)):
        with suppress(EmbeddingError):  # the service knows no path in front of its own
            embeddings.embed_query("Grüße, ? & = %")
    assert bedrock.paths[0] == bedrock.paths[1]
    assert bedrock.requests[0] == bedrock.requests[1]
    mine, boto3s = bedrock.headers
    assert "Signature=" in mine["authorization"]
    assert mine["x-amzn-trace-id"] == "Root=1-2;Parent=3;Sampled=1"
    assert without(BOOKKEEPING, mine) == without(BOOKKEEPING, boto3s)
    assert mine["user-agent"].startswith("Boto3/")
    assert f" langgraph-aurora-store/{__version__}" in mine["user-agent"]


def without(names: set[str], headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in names}


@pytest.mark.parametrize(
    ("region", "variant"),
    [
        ("us-east-1", ""),
        ("cn-north-1", ""),
        ("us-east-1", "FIPS"),
        ("us-gov-east-1", "FIPS DUALSTACK"),
        ("eu-west-1", "DUALSTACK"),
        ("us-iso-east-1", ""),
        ("eusc-de-east-1", ""),
        ("fips-us-east-1", ""),
        ("mars-north-1", ""),
    ],
)
def test_the_host_is_the_one_boto3_calls(
    monkeypatch: pytest.MonkeyPatch, region: str, variant: str
) -> None:
    """In each partition, with FIPS and dual-stack names; a proxy is asked for it."""
    for name in variant.split():
        monkeypatch.setenv(f"AWS_USE_{name}_ENDPOINT", "true")
    asked: list[str] = []

    def refuse(connection: socket.socket) -> None:
        asked.append(connection.recv(4096).decode().partition("\r\n")[0])
        connection.sendall(b"HTTP/1.1 503 no\r\ncontent-length: 0\r\n\r\n")

    with serving(refuse) as url:
        monkeypatch.setenv("HTTPS_PROXY", url)
        ours = make(region=region, deadline_s=0.01)
        client = plain().client("bedrock-runtime", region_name=region, config=CONFIG)
        for embeddings in (ours, make(client=client, deadline_s=0.01)):
            with pytest.raises(EmbeddingError, match=r"did not answer \(ProxyConnectionError\)"):
                embeddings.embed_query("tea")
    assert asked[0] == asked[-1]
    assert asked[0].startswith("CONNECT bedrock-runtime")


@contextmanager
def serving(answer: Callable[[Any], None], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that answers each connection once, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    accepted = server.accept()[0]
                    with suppress(ssl.SSLError, ConnectionError):
                        connection = (
                            tls.wrap_socket(accepted, server_side=True) if tls else accepted
                        )
                        with connection:
                            answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_boto3_is_not_imported_for_it() -> None:
    """With the default session botocore's client does it, and numpy is not needed."""
    program = (
        "import sys\n"
        "from langgraph_aurora_store.embeddings import BedrockEmbeddings\n"
        "from tests.support.bedrock_service import Bedrock\n"
        "with Bedrock() as service:\n"
        f"    embeddings = BedrockEmbeddings({TITAN!r}, endpoint_url=service.url)\n"
        "    print(len(embeddings.embed_query('tea')))\n"
        "print([name for name in ('boto3', 'numpy') if name in sys.modules])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **KEYS, "AWS_REGION": "us-east-1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "1024\n[]\n"


# settings


@pytest.mark.parametrize("place", ["service", "global", "profile", "services"])
def test_the_endpoint_is_the_configured_one(
    bedrock: Listener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    """The two variables, the profile's key and its services section, as with any AWS SDK."""
    sections = {
        "profile": f"[default]\nendpoint_url = {bedrock.url}\n",
        "services": f"[default]\nendpoint_url = {NOWHERE}\nservices = mine\n"
        f"[services mine]\nbedrock_runtime =\n  endpoint_url = {bedrock.url}\n",
    }
    configure(tmp_path, monkeypatch, sections.get(place, f"[default]\nendpoint_url = {NOWHERE}\n"))
    if place not in sections:
        monkeypatch.setenv("AWS_ENDPOINT_URL", bedrock.url if place == "global" else NOWHERE)
    if place == "service":
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", bedrock.url)
    assert make(deadline_s=0.01).embed_query("tea")


def configure(path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    (path / "config").write_text(content)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path / "config"))


def test_configured_endpoints_can_be_ignored(
    bedrock: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one given to the constructor is used whatever is configured."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", bedrock.url)
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    monkeypatch.setenv("HTTPS_PROXY", NOWHERE)
    with pytest.raises(EmbeddingError, match=r"did not answer \(ProxyConnectionError\)"):
        make(deadline_s=0.01).embed_query("tea")
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOWHERE)
    monkeypatch.delenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
    assert make(endpoint_url=bedrock.url).embed_query("tea")


@pytest.mark.parametrize("place", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "profile"])
def test_the_bundle_of_roots_is_the_configured_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    """A server whose certificate is not of the roots trusted is refused, and is not tried again."""
    authority = Authority.create("roots of this test")
    roots, own = tmp_path / "roots.pem", tmp_path / "own.pem"
    roots.write_bytes(authority.pem())
    own.write_bytes(authority.issue(["127.0.0.1", "localhost"]))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(own)
    content = json.dumps({"embedding": [0.5] * 1024}).encode()
    with serving(lambda connection: reply(connection, content, len(content)), tls) as url:
        where = url.replace("127.0.0.1", "localhost")
        with pytest.raises(EmbeddingError, match=r"SSLError: .*certificate"):
            make(endpoint_url=where).embed_query("tea")
        if place == "profile":
            configure(tmp_path, monkeypatch, f"[default]\nca_bundle = {roots}\n")
        else:
            monkeypatch.setenv(place, str(roots))
        assert make(endpoint_url=where).embed_query("tea") == [0.5] * 1024


def reply(connection: socket.socket, content: bytes, announced: int) -> bytes:
    """Read a request and answer it, with another length than is announced if need be."""
    received = b""
    while not received.endswith(b"}"):
        received += connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (announced, content))
    return received


def test_an_answer_cut_short_is_asked_for_again() -> None:
    """A connection that ends within the answer is one that was lost."""
    content = json.dumps({"embedding": [0.5] * 1024}).encode()
    lengths = iter((100, 2000, len(content)))
    with serving(
        lambda connection: reply(connection, content[: next(lengths)], len(content))
    ) as url:
        assert make(endpoint_url=url).embed_query("tea") == [0.5] * 1024
    assert list(lengths) == []


# who listens, and who stands in


def hooked(seen: list[str]) -> boto3.Session:
    session = plain()
    session.events.register(
        "before-send.bedrock-runtime", lambda request, **_: seen.append(request.url)
    )
    return session


def test_a_handler_of_the_sessions_events_is_called(bedrock: Listener) -> None:
    """A handler of a session's events is called for the requests of this package too."""
    seen: list[str] = []
    embeddings = make(session=hooked(seen), endpoint_url=bedrock.url)
    embeddings.embed_query("tea")
    assert seen == [f"{bedrock.url}/model/{TITAN.replace(':', '%3A')}/invoke"]


def test_a_tracer_of_boto3s_calls_sees_them(
    bedrock: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X-Ray, OpenTelemetry and mocks put themselves around this method."""
    seen: list[str] = []
    inner = BaseClient._make_api_call

    def around(self: BaseClient, name: str, parameters: dict[str, Any]) -> Any:
        seen.append(name)
        return inner(self, name, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", around)
    make(endpoint_url=bedrock.url).embed_query("tea")
    assert seen == ["InvokeModel"]


def passing_through(owner: object, name: str, seen: list[str]) -> Callable[..., Any]:
    """What a tracer puts in the place of a function: its twin in name, and with a note of calls."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def around(*args: Any, **options: Any) -> Any:
        seen.append(name)
        return inner(*args, **options)

    return around


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (boto3.Session, "client"),
        (botocore.session.Session, "create_client"),
        (BaseClient, "__init__"),
        (BaseClient, "_make_api_call"),
        (ClientCreator, "create_client"),
        (ClientCreator, "_create_methods"),
        (ClientCreator, "_create_api_method"),
        (botocore.endpoint.Endpoint, "make_request"),
    ],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_a_tracer_of_any_step_of_boto3s_sees_it(
    bedrock: Listener, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """Sentry, New Relic and others wrap what makes a client, or what it sends with."""
    seen: list[str] = []
    monkeypatch.setattr(owner, name, passing_through(owner, name, seen))
    assert make(endpoint_url=bedrock.url).embed_query("tea")
    assert set(seen) == {name}


@pytest.mark.parametrize("place", ["session", "core"])
def test_a_stub_in_the_sessions_place_is_asked(
    bedrock: Listener, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A test that replaces what makes the session's clients sends nothing to AWS."""
    fake = mock.MagicMock()
    body = json.dumps({"embedding": [0.5] * 1024}).encode()
    fake.invoke_model.return_value = {"body": io.BytesIO(body)}
    core = botocore.session.Session()
    core.set_credentials("AKIDEXAMPLE", "secret")
    session: Any = plain() if place == "session" else core
    attribute = "client" if place == "session" else "create_client"
    monkeypatch.setattr(session, attribute, mock.MagicMock(return_value=fake))
    assert make(session=session, region="us-east-1").embed_query("tea") == [0.5] * 1024
    assert not bedrock.requests


def test_the_sessions_own_configuration_is_kept(bedrock: Listener) -> None:
    """Proxies and all else that a session hands to its clients."""
    core = botocore.session.Session()
    core.set_credentials("AKIDEXAMPLE", "secret")
    core.set_default_client_config(Config(proxies={"http": NOWHERE}, region_name="us-east-1"))
    session = boto3.Session(botocore_session=core)
    with pytest.raises(EmbeddingError, match=r"did not answer \(ProxyConnectionError\)"):
        make(
            session=session, region="us-east-1", endpoint_url=bedrock.url, deadline_s=0.01
        ).embed_query("tea")


def test_a_session_of_another_kind_makes_its_own_client(bedrock: Listener) -> None:
    """A subclass, or a stand-in with the same method, may do as it likes."""

    class Own(boto3.Session):
        def client(self, *args: Any, **options: Any) -> Any:
            return plain().client(*args, **options | {"endpoint_url": bedrock.url})

    assert make(session=Own(region_name="us-east-1"), endpoint_url=NOWHERE).embed_query("tea")


# the API key of Bedrock


@contextmanager
def keyed(answers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Bedrock behind TLS, as a key is sent over that only; keeps who asked."""
    authority = Authority.create("roots of this test")
    (tmp_path / "roots.pem").write_bytes(authority.pem())
    (tmp_path / "own.pem").write_bytes(authority.issue(["localhost"]))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "roots.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "own.pem")
    content = json.dumps({"embedding": [0.5] * 1024}).encode()

    def answer(connection: socket.socket) -> None:
        head = reply(connection, content, len(content)).decode("latin-1")
        answers.extend(re.findall(r"(?im)^authorization: (.*?)\r$", head))

    with serving(answer, tls) as url:
        yield url.replace("127.0.0.1", "localhost")


@pytest.mark.parametrize("session", [None, "given", "boto3's default"])
def test_an_api_key_outranks_every_credential_and_says_so_once(
    session: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """botocore sends the key of AWS_BEARER_TOKEN_BEDROCK in place of explicit keys, too."""
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "bedrock-api-key-0123456789")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", plain() if session == "boto3's default" else None)
    asked: list[str] = []
    with keyed(asked, tmp_path, monkeypatch) as url, caplog.at_level(logging.DEBUG):
        embeddings = make(session=plain() if session == "given" else None, endpoint_url=url)
        assert embeddings.embed_query("tea") == [0.5] * 1024
        assert embeddings.embed_query("coffee") == [0.5] * 1024
    assert asked == ["Bearer bedrock-api-key-0123456789"] * 2
    warnings = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert len(warnings) == (0 if session is None else 1)
    assert all("AWS_BEARER_TOKEN_BEDROCK" in warning for warning in warnings)
    assert "api-key-0123456789" not in caplog.text


def test_an_api_key_needs_no_other_credentials_and_tls(
    bedrock: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore sends a key over TLS only."""
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "bedrock-api-key-0123456789")
    with pytest.raises(EmbeddingError, match="Bearer authorization requires an HTTPS endpoint"):
        make(session=None, region="us-east-1", endpoint_url=bedrock.url).embed_query("tea")
    assert not bedrock.requests


def test_the_preferred_way_to_sign_is_the_profiles(
    bedrock: Listener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """auth_scheme_preference is botocore's to read: a bearer token is then asked for."""
    configure(tmp_path, monkeypatch, "[default]\nauth_scheme_preference = httpBearerAuth\n")
    with pytest.raises(EmbeddingError, match="Unable to locate authorization token"):
        make(endpoint_url=bedrock.url).embed_query("tea")
    assert not bedrock.requests


# credentials and connections


def test_a_botocore_session_is_taken(bedrock: Listener) -> None:
    """As for the tokens of the database; its own region is the session's."""
    core = botocore.session.Session()
    core.set_credentials("AKIDEXAMPLE", "secret")
    core.set_config_variable("region", "us-east-1")
    assert make(session=core, endpoint_url=bedrock.url).embed_query("tea")
    hear: list[str] = []
    core.register("before-send.bedrock-runtime", lambda request, **_: hear.append(request.url))
    assert make(session=core, endpoint_url=bedrock.url).embed_query("tea")
    assert len(hear) == 1


def test_each_call_is_signed_with_the_credentials_of_its_moment(bedrock: Listener) -> None:
    """A role's keys run out between two calls: botocore gets new ones, the second is signed so."""
    now = [datetime.now(UTC)]
    minted: list[str] = []

    def refresh() -> dict[str, str]:
        minted.append(f"ASIA{len(minted)}")
        expiry = (now[0] + timedelta(hours=1)).isoformat()
        return {"access_key": minted[-1], "secret_key": "s", "token": "t", "expiry_time": expiry}

    role = RefreshableCredentials.create_from_metadata(
        refresh(), refresh_using=refresh, method="test"
    )
    role._time_fetcher = lambda: now[0]  # botocore's own seam, which its constructor alone exposes
    core = botocore.session.Session()
    core._credentials = role
    embeddings = make(session=core, region="us-east-1", endpoint_url=bedrock.url)
    embeddings.embed_query("tea")
    now[0] += timedelta(minutes=59)
    embeddings.embed_query("tea")
    signed = [headers["authorization"] for headers in bedrock.headers]
    assert ["ASIA0/" in signed[0], "ASIA1/" in signed[1]] == [True, True]


def test_sixteen_threads_look_for_credentials_once(bedrock: Listener) -> None:
    """Where credentials come over the network, the first calls do not all ask for them."""
    looked: list[int] = []
    core = botocore.session.Session()
    find = core.get_component("credential_provider").load_credentials

    two = threading.Barrier(2)

    def load() -> Any:
        looked.append(threading.get_ident())
        with suppress(threading.BrokenBarrierError):
            two.wait(0.2)
        core.set_credentials("AKIDEXAMPLE", "secret")
        return find() or core._credentials

    core.get_component("credential_provider").load_credentials = load
    embeddings = make(session=core, region="us-east-1", endpoint_url=bedrock.url)
    bedrock.latency_s = 0.01
    embeddings.embed_documents([f"memory {number}" for number in range(32)])
    assert len(looked) == 1


def test_connections_are_kept_and_replaced_when_the_service_has_closed_them(
    bedrock: Listener,
) -> None:
    """As after a freeze of a Lambda sandbox: the next call connects again and loses no attempt."""
    bedrock.latency_s = 0.005
    embeddings = make(endpoint_url=bedrock.url, max_concurrency=4)
    embeddings.embed_documents([f"memory {number}" for number in range(40)])
    assert len(bedrock._connections) == 4
    for connection in list(bedrock._connections):
        bedrock._loop.call_soon_threadsafe(connection.close)
    bedrock.wait_until_alone()
    embeddings.embed_documents([f"thought {number}" for number in range(8)])
    assert len(bedrock.requests) == 48
    embeddings.close()
    bedrock.wait_until_alone()
