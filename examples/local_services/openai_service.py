"""A local stand-in for the OpenAI service, so that agents run without a key and without a network.

It speaks the protocol of `POST /v1/chat/completions` (tool calls included), `/v1/responses` and
`/v1/embeddings`, so the real ``openai`` and ``langchain-openai`` clients talk to it unmodified by
``OPENAI_BASE_URL``. What the chat model says is a script: a function from a `ChatRequest` to a
`ChatReply`. Embeddings are hashed bags of words: texts that share words are near each other.
Nothing is streamed. Source of the shapes: the OpenAI API reference.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar, Self

_WORD = re.compile(r"[^\W_]+")

# platform.openai.com/docs/guides/embeddings: the native length of each model's vectors
_NATIVE_DIMS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call the scripted model makes of a tool it was offered."""

    name: str
    arguments: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a script sees of a request: messages as ``(role, text)``, and the tools on offer."""

    model: str
    messages: tuple[tuple[str, str], ...]
    tools: frozenset[str] = frozenset()

    def said_by(self, role: str) -> tuple[str, ...]:
        """The texts of one role, oldest first."""
        return tuple(text for who, text in self.messages if who == role)


@dataclass(frozen=True, slots=True)
class ChatReply:
    """What the scripted model answers: a text, tool calls, or both."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = field(default=())


Script = Callable[[ChatRequest], ChatReply]


def echo(request: ChatRequest) -> ChatReply:
    """The default script: repeat what the user said last."""
    return ChatReply(request.said_by("user")[-1] if request.said_by("user") else "")


class LocalOpenAI:
    """Serve the OpenAI protocol on a loopback port while the ``with`` block lasts.

    ``environment`` holds what a client needs: ``OPENAI_BASE_URL`` and an ``OPENAI_API_KEY`` that
    means nothing. Requests are answered concurrently, each by its own thread; the script must be
    safe to call from several at once.
    """

    def __init__(self, script: Script = echo, *, port: int = 0) -> None:
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.script = script
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    @property
    def base_url(self) -> str:
        """The address for ``OPENAI_BASE_URL``."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which the real clients find this server."""
        return {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": "local"}

    @property
    def requests(self) -> tuple[str, ...]:
        """The paths served so far, oldest first."""
        return tuple(self._server.paths)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def embed(text: str, dims: int) -> list[float]:
    """The unit vector of ``dims`` floats for a text: each word adds to a hashed dimension."""
    vector = [0.0] * dims
    for word in _WORD.findall(text.lower()):
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        vector[int.from_bytes(digest[:4], "big") % dims] += 1.0
    length = math.sqrt(sum(x * x for x in vector)) or 1.0
    return [x / length for x in vector]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Handler threads end with their keep-alive connection, which a client may hold open for ever.
    block_on_close = False
    request_queue_size = 128
    script: Script

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self.paths: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.paths.append(self.path)
        answer = self._ROUTES.get(self.path.split("?")[0])
        if answer is None:
            self._send(404, {"error": {"message": f"no such path: {self.path}", "type": "local"}})
        else:
            self._send(*_attempted(answer, body, self.server.script))

    def _send(self, status: int, payload: Mapping[str, object]) -> None:
        data = json.dumps(payload).encode()
        self.send_response(status)
        # The clients' own header: no error of a script passes by itself.
        self.send_header("x-should-retry", "false")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name upstream gives it
        """Say nothing: the base class writes each request to stderr."""

    _ROUTES: ClassVar[dict[str, Callable[[Any, Script], Mapping[str, object]]]] = {}


def _attempted(answer: Callable[..., Any], body: Any, script: Script) -> tuple[int, Any]:
    """Status and payload; what a script raises reaches the client as a server error."""
    try:
        return 200, answer(body, script)
    except Exception as exc:
        message = f"the script raised {type(exc).__name__}: {exc}"
        return 500, {"error": {"message": message, "type": "script_error"}}


def _text(content: object) -> str:
    """The text of a message's content, which is a string, or a list of typed parts, or null."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part.get("text", "") for part in parts)


def _chat(body: Any, script: Script) -> Mapping[str, object]:
    request = ChatRequest(
        model=body["model"],
        messages=tuple((m["role"], _text(m.get("content"))) for m in body["messages"]),
        tools=frozenset(tool["function"]["name"] for tool in body.get("tools") or ()),
    )
    reply = script(request)
    message: dict[str, object] = {"role": "assistant", "content": reply.text or None}
    if reply.tool_calls:
        message["tool_calls"] = [
            {
                "id": f"call_{uuid.uuid4().hex[:12]}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
            }
            for call in reply.tool_calls
        ]
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": "tool_calls" if reply.tool_calls else "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def _responses(body: Any, script: Script) -> Mapping[str, object]:
    said = body["input"]
    turns: Sequence[Any] = [{"role": "user", "content": said}] if isinstance(said, str) else said
    instructions = body.get("instructions")
    system = (("system", instructions),) if instructions else ()
    request = ChatRequest(
        model=body["model"],
        messages=(*system, *((turn["role"], _text(turn["content"])) for turn in turns)),
    )
    content = {"type": "output_text", "text": script(request).text, "annotations": []}
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": time.time(),
        "status": "completed",
        "model": request.model,
        "output": [
            {
                "id": f"msg_{uuid.uuid4().hex}",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [content],
            }
        ],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "error": None,
        "incomplete_details": None,
        "instructions": instructions,
        "metadata": {},
        "usage": {
            "input_tokens": 1,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 1,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 2,
        },
    }


def _embeddings(body: Any, _script: Script) -> Mapping[str, object]:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    dims = body.get("dimensions") or _NATIVE_DIMS.get(body["model"], 1536)
    as_base64 = body.get("encoding_format") == "base64"

    def wire(vector: list[float]) -> str | list[float]:
        if not as_base64:
            return vector
        return base64.b64encode(struct.pack(f"<{dims}f", *vector)).decode()

    return {
        "object": "list",
        "model": body["model"],
        "data": [
            {"object": "embedding", "index": i, "embedding": wire(embed(text, dims))}
            for i, text in enumerate(texts)
        ],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }


_Handler._ROUTES.update(  # noqa: SLF001 - the handler's own table, filled once its functions exist
    {
        "/v1/chat/completions": _chat,
        "/v1/responses": _responses,
        "/v1/embeddings": _embeddings,
    }
)
