"""What takes the place of the services that need an account: Secrets Manager, and a model.

The clients are the real ones: boto3 by ``AWS_ENDPOINT_URL_SECRETS_MANAGER``, openai and langmem by
``OPENAI_BASE_URL``.
"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from local_services.openai_service import ChatReply, ChatRequest, ToolCall

LIKES = re.compile(r"\bI (?:like|love|am interested in) ([^.!?\n]+)", re.IGNORECASE)
HUMAN_TURN = re.compile(r"=+ Human Message =+\s+(.*?)(?=\n=+ |</session|\Z)", re.DOTALL)
FACT = re.compile(r"^- (The user likes .+)$", re.MULTILINE)


def script(request: ChatRequest) -> ChatReply:
    """Answer as LangMem's model when it offers the tool Preference, else as the assistant."""
    if "Preference" in request.tools:
        said = " ".join(HUMAN_TURN.findall(request.said_by("user")[-1]))
        return ChatReply(tool_calls=tuple(preference(topic) for topic in LIKES.findall(said)))
    facts = FACT.findall("\n".join(request.said_by("system")))
    return ChatReply(f"I know that: {' '.join(facts)}" if facts else "Tell me what you like.")


def preference(topic: str) -> ToolCall:
    """A call of the tool Preference."""
    return ToolCall(
        "Preference",
        {
            "topic": topic,
            "category": "other",
            "interest_level": "high",
            "description": f"The user likes {topic}.",
        },
    )


class LocalSecrets:
    """Secrets Manager's GetSecretValue on a loopback port, for these secrets by name or ARN."""

    def __init__(self, secrets: dict[str, str]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.secrets = secrets
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def environment(self) -> dict[str, str]:
        """The variable by which boto3 finds this server."""
        address = f"http://127.0.0.1:{self._server.server_port}"
        return {"AWS_ENDPOINT_URL_SECRETS_MANAGER": address}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body.get("SecretId")
        secret = self.server.secrets.get(name)
        if self.headers["X-Amz-Target"] != "secretsmanager.GetSecretValue" or secret is None:
            self._send(400, {"__type": "ResourceNotFoundException", "message": "no such secret"})
        else:
            self._send(200, {"ARN": name, "Name": name, "SecretString": secret})

    def _send(self, status: int, payload: dict[str, str]) -> None:
        body = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name upstream gives it
        """Say nothing: the base class writes each request to stderr."""
