"""Sources of AWS credentials that fail, as local stand-ins: servers, scripts, files, variables."""

import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Self

import pytest

# In every answer that holds keys, so that a test can look for it in errors and logs.
SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
HANG, HANG_UP = "hang", "hang up"
ROLE = "arn:aws:iam::123456789012:role/agent"


class StandIn:
    """An HTTP server on a loopback port that gives each request one answer, or none."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self._answer = answer
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._server, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection = self._server.accept()[0]
                self._open.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            while request := _request(connection):
                answer = self._answer(request)
                if answer == HANG:
                    continue
                connection.sendall(answer.encode() if answer != HANG_UP else b"")
                connection.shutdown(socket.SHUT_RDWR)


def _request(connection: socket.socket) -> str:
    """One whole request; empty when the client has hung up."""
    received = ""
    while more := connection.recv(65536):
        received += more.decode("latin-1")
        head, blank, body = received.partition("\r\n\r\n")
        length = re.search(r"(?i)^content-length: *(\d+)", head, re.MULTILINE)
        if blank and len(body) >= (int(length[1]) if length else 0):
            return received
    return ""


def http(status: int, body: object = "", *, announced: int | None = None) -> str:
    """An HTTP answer; a body that is no text is sent as JSON."""
    text = body if isinstance(body, str) else json.dumps(body)
    return (
        f"HTTP/1.1 {status} x\r\nContent-Type: text/plain\r\nConnection: close\r\n"
        f"Content-Length: {announced or len(text)}\r\n\r\n{text}"
    )


def sts_error(status: int, code: str) -> str:
    return http(
        status,
        f"<ErrorResponse><Error><Code>{code}</Code><Message>said STS</Message></Error>"
        "</ErrorResponse>",
    )


def keys(**changed: object) -> dict[str, object]:
    """What an agent and the metadata service answer; ``None`` leaves a key out."""
    answer = {
        "Code": "Success",
        "AccessKeyId": "ASIAEXAMPLE",
        "SecretAccessKey": SECRET,
        "Token": SECRET,
        "Expiration": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
    }
    return {name: value for name, value in (answer | changed).items() if value is not None}


class Surroundings(NamedTuple):
    """A test's own directory, which is its home, and its environment."""

    path: Path
    environment: pytest.MonkeyPatch

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            self.environment.setenv(name, value)

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def profile(self, text: str) -> None:
        self.set(AWS_CONFIG_FILE=str(self.write("config", text)), AWS_PROFILE="agent")


class Source(NamedTuple):
    """A failing source: how to set it up, and what the error has to say of it."""

    name: str
    set_up: Callable[[Surroundings], object]
    says: str
    is_transient: bool = False


@contextmanager
def set_up(source: Source, around: Surroundings) -> Iterator[None]:
    """The source in force, within the block; a server or a process of it ends with it."""
    around.set(HOME=str(around.path), AWS_MAX_ATTEMPTS="1", AWS_DEFAULT_REGION="us-east-1")
    made = source.set_up(around)
    try:
        if isinstance(made, StandIn):
            with made:
                yield
        else:
            yield
    finally:
        for file in around.path.glob("*.pid"):
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), 9)


def _web_identity(answer: str) -> Callable[[Surroundings], object]:
    def prepare(around: Surroundings) -> object:
        server = StandIn(lambda _: answer)
        token = around.write("token", SECRET)
        around.set(
            AWS_ENDPOINT_URL_STS=server.url,
            AWS_ROLE_ARN=ROLE,
            AWS_WEB_IDENTITY_TOKEN_FILE=str(token),
        )
        return server

    return prepare


def _no_region(around: Surroundings) -> object:
    around.environment.delenv("AWS_DEFAULT_REGION")
    around.set(AWS_REGION="us-east-1")
    return _assumed(HANG)(around)


def _missing_token(around: Surroundings) -> None:
    around.set(AWS_ROLE_ARN=ROLE, AWS_WEB_IDENTITY_TOKEN_FILE=str(around.path / "missing"))


def _assumed(answer: str, extra: str = "") -> Callable[[Surroundings], object]:
    def prepare(around: Surroundings) -> object:
        server = StandIn(lambda _: answer)
        around.set(AWS_ENDPOINT_URL_STS=server.url)
        around.profile(
            f"[profile agent]\nrole_arn = {ROLE}\nsource_profile = base\n{extra}\n"
            f"[profile base]\naws_access_key_id = AKIAEXAMPLE\naws_secret_access_key = {SECRET}\n"
        )
        return server

    return prepare


def _profile(text: str) -> Callable[[Surroundings], None]:
    return lambda around: around.profile(text)


def _process(script: str) -> Callable[[Surroundings], None]:
    def prepare(around: Surroundings) -> None:
        command = around.write("process.sh", script.replace("DIR", str(around.path)))
        around.profile(f"[profile agent]\ncredential_process = sh {command}\n")

    return prepare


def _agent(answer: Callable[[], str], token: str | None = None) -> Callable[[Surroundings], object]:
    def prepare(around: Surroundings) -> object:
        server = StandIn(lambda _: answer())
        around.set(AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{server.url}/creds")
        if token is not None:
            file = around.write("agent-token", token)
            around.set(AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=str(file))
        return server

    return prepare


def _imds(answer: Callable[[str], str]) -> Callable[[Surroundings], object]:
    def prepare(around: Surroundings) -> object:
        server = StandIn(answer)
        around.environment.delenv("AWS_EC2_METADATA_DISABLED")
        around.set(AWS_EC2_METADATA_SERVICE_ENDPOINT=f"{server.url}/")
        return server

    return prepare


def _imds_without(name: str) -> Callable[[str], str]:
    def answer(request: str) -> str:
        if request.startswith("PUT"):
            return http(200, "imds-token")
        role = "GET /latest/meta-data/iam/security-credentials/agent"
        return http(200, keys(**{name: None}) if request.startswith(role) else "agent")

    return answer


def _sso(answer: str | None) -> Callable[[Surroundings], object]:
    def prepare(around: Surroundings) -> object:
        server = StandIn(lambda _: answer or HANG)
        around.set(AWS_ENDPOINT_URL_SSO=server.url)
        start = "https://example.awsapps.com/start"
        around.profile(
            f"[profile agent]\nsso_start_url = {start}\nsso_region = us-east-1\n"
            "sso_account_id = 123456789012\nsso_role_name = agent\n"
        )
        if answer is not None:
            from hashlib import sha1

            name = sha1(start.encode(), usedforsecurity=False).hexdigest()
            token = {
                "startUrl": start,
                "region": "us-east-1",
                "accessToken": SECRET,
                "expiresAt": (datetime.now(UTC) + timedelta(hours=1)).strftime(
                    "%Y-%m-%dT%H:%M:%SZ"
                ),
            }
            around.write(f"sso/{name}.json", json.dumps(token))
            # botocore settles where it is on import.
            where = "botocore.credentials.SSOProvider._SSO_TOKEN_CACHE_DIR"
            around.environment.setattr(where, str(around.path / "sso"))
        return server

    return prepare


_EXPIRED = "2020-01-01T00:00:00Z"
_WEB, _ROLE = "web identity, .*STS", "role of profile 'agent', assumed with STS"
_AGENT, _IMDS, _SSO = "container agent", r"instance metadata service \(IMDS\)", r"\(SSO\)"
_PROCESS = "credential_process of profile 'agent'"

SOURCES = [
    Source("web identity: STS hangs", _web_identity(HANG), f"{_WEB}: no answer yet", True),
    Source("web identity: STS hangs up", _web_identity(HANG_UP), f"{_WEB}.*not answer", True),
    Source("web identity: STS 500", _web_identity(http(500)), f"{_WEB}.*500", True),
    Source(
        "web identity: STS throttles",
        _web_identity(sts_error(400, "Throttling")),
        f"{_WEB}.*Throttling.*said STS",
        True,
    ),
    Source(
        "web identity: STS denies",
        _web_identity(sts_error(403, "AccessDenied")),
        f"{_WEB}.*AccessDenied.*said STS.*trust policy",
    ),
    Source(
        "web identity: token refused",
        _web_identity(sts_error(400, "InvalidIdentityToken")),
        f"{_WEB}.*InvalidIdentityToken",
    ),
    Source("web identity: a page", _web_identity(http(200, "<html>hi")), _WEB),
    Source("web identity: no token file", _missing_token, f"{_WEB}.*/missing"),
    Source("role: STS hangs", _assumed(HANG), f"{_ROLE}: no answer yet", True),
    Source("role: no region for STS", _no_region, f"{_ROLE}.*AWS_DEFAULT_REGION"),
    Source("role: keys expired", _assumed(sts_error(403, "ExpiredToken")), f"{_ROLE}.*Expired"),
    Source(
        "role: MFA, no terminal",
        _assumed(HANG, "mfa_serial = arn:aws:iam::123456789012:mfa/me"),
        f"{_ROLE}.*MFA code",
    ),
    Source(
        "role: itself",
        _profile(f"[profile agent]\nrole_arn={ROLE}\nsource_profile=agent\n"),
        "profile 'agent'",
    ),
    Source(
        "role: unknown source",
        _profile(f"[profile agent]\nrole_arn={ROLE}\nsource_profile=nowhere\n"),
        "nowhere",
    ),
    Source("profile: unknown", lambda around: around.set(AWS_PROFILE="nowhere"), "nowhere"),
    Source("agent: hangs", _agent(lambda: HANG), f"{_AGENT}.*no answer yet", True),
    Source("agent: 500", _agent(lambda: http(500, SECRET)), f"{_AGENT}.*(500|no answer yet)", True),
    Source("agent: 403", _agent(lambda: http(403, SECRET)), f"{_AGENT}.*(403|no answer yet)", True),
    Source(
        "agent: cut off",
        _agent(lambda: http(200, json.dumps(keys())[:-40])),
        f"{_AGENT}.*(cut off|no answer yet)",
        True,
    ),
    Source(
        "agent: lacks a key",
        _agent(lambda: http(200, keys(SecretAccessKey=None))),
        f"{_AGENT}.*lacks 'SecretAccessKey'",
    ),
    Source(
        "agent: expired keys",
        _agent(lambda: http(200, keys(Expiration=_EXPIRED))),
        f"{_AGENT}.*expired already",
        True,
    ),
    Source(
        "agent: token with a line break",
        _agent(lambda: http(200, keys()), f"{SECRET}\n"),
        f"{_AGENT}.*line break",
    ),
    Source(
        "agent: host not allowed",
        lambda around: around.set(AWS_CONTAINER_CREDENTIALS_FULL_URI="http://agent.internal/c"),
        f"{_AGENT}.*agent.internal",
    ),
    Source("IMDS: hangs", _imds(lambda _: HANG), f"{_IMDS}.*(no answer yet|late)", True),
    Source("IMDS: 500", _imds(lambda _: http(500)), f"{_IMDS}.*500", True),
    Source("IMDS: no role", _imds(lambda _: http(404)), "no AWS credentials found; pass session="),
    Source("IMDS: lacks a key", _imds(_imds_without("SecretAccessKey")), _IMDS, True),
    Source(
        "process: hangs",
        _process("echo $$ > DIR/$$.pid; exec sleep 60"),
        f"{_PROCESS}: no answer yet",
        True,
    ),
    Source(
        "process: fails", _process(f"echo key {SECRET} refused >&2; exit 3"), f"{_PROCESS}.*by hand"
    ),
    Source("process: no JSON", _process(f"echo key {SECRET}"), f"{_PROCESS}.*no JSON"),
    Source("process: a list", _process(f"echo '[\"{SECRET}\"]'"), _PROCESS),
    Source(
        "process: lacks a key",
        _process(f"""echo '{{"Version": 1, "SecretAccessKey": "{SECRET}"}}'"""),
        f"{_PROCESS}.*AccessKeyId",
    ),
    Source("process: version 2", _process("""echo '{"Version": 2}'"""), f"{_PROCESS}.*version '2'"),
    Source(
        "process: expired keys",
        _process(
            f"""echo '{{"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "{SECRET}","""
            f""" "SessionToken": "{SECRET}", "Expiration": "{_EXPIRED}"}}'"""
        ),
        f"{_PROCESS}.*expired already",
    ),
    Source(
        "process: no such command",
        _profile("[profile agent]\ncredential_process = /no/such\n"),
        f"{_PROCESS}.*/no/such",
    ),
    Source("SSO: not logged in", _sso(None), f"{_SSO}.*aws sso login --profile agent"),
    Source(
        "SSO: refused",
        _sso(http(401, {"message": "Session token not found or invalid"})),
        f"{_SSO}.*aws sso login",
    ),
    Source("SSO: hangs", _sso(HANG), f"{_SSO}.*no answer yet", True),
    Source(
        "environment: half a key",
        lambda around: around.set(AWS_ACCESS_KEY_ID="AKIAEXAMPLE"),
        r"the environment \(AWS_ACCESS_KEY_ID\)",
    ),
    Source(
        "files: half a key",
        _profile("[profile agent]\naws_access_key_id = AKIAEXAMPLE\n"),
        "file, profile 'agent'",
    ),
]
