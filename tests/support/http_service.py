"""The common half of the local services: an HTTP server in a thread, with faults on demand."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

KEPT_ANSWERS = 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer; ``body`` is sent as JSON unless it is bytes already."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def encoded(self) -> bytes:
        """The whole answer, as it goes over the wire."""
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        head = [f"HTTP/1.1 {self.status} {self.status}", "Content-Type: application/json"]
        head += [f"{name}: {value}" for name, value in self.headers.items()]
        head += [f"Content-Length: {len(body)}", "", ""]
        return "\r\n".join(head).encode() + body


class Stall:
    """A fault: accept the request and never answer it."""


class Hangup:
    """A fault: close the connection without an answer."""


class RefusedError(Exception):
    """Raised by a service that does not accept a request; carries the answer to give."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class Service:
    """A local service on a loopback port, from entering its block to leaving it.

    ``latency_s`` is the service's time for every request. ``requests`` holds the decoded bodies in
    the order of their arrival, ``headers`` what came with each, and ``peak`` the most requests
    that were under way at a time.
    """

    def __init__(self, *, latency_s: float = 0.0, port: int = 0) -> None:
        self.latency_s = latency_s
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.peak = 0
        self.port = port
        self._under_way = 0
        self._answers: dict[tuple[str, bytes], bytes] = {}
        self._faults: deque[Reply | Stall | Hangup] = deque()
        self._changed = threading.Condition()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def next(self, *faults: Reply | Stall | Hangup) -> None:
        """Give the next requests these answers instead of the right ones."""
        self._faults.extend(faults)

    def reset(self) -> None:
        """Forget what was asked and what was to go wrong."""
        self.requests.clear()
        self.headers.clear()
        self._faults.clear()
        self.peak = self._under_way

    def wait_for(self, requests: int) -> None:
        """Block until this many requests have arrived."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.requests) >= requests, timeout=30):
                raise TimeoutError(f"{len(self.requests)} of {requests} requests arrived")

    def wait_until_alone(self) -> None:
        """Block until every client has closed its connections."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._connections, timeout=30):
                raise TimeoutError(f"{len(self._connections)} connections are open")

    def admit(self, path: str, headers: Mapping[str, str]) -> None:
        """Look at who asks for what; raises `RefusedError`."""
        raise NotImplementedError

    def answer(self, path: str, body: dict[str, Any]) -> object:
        """The answer to a body, the same for the same body; raises `RefusedError`."""
        raise NotImplementedError

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await self._loop.create_server(
            lambda: _Connection(self, self._loop), "127.0.0.1", self.port, backlog=256
        )
        self.port = server.sockets[0].getsockname()[1]
        self._connections: set[asyncio.Transport] = set()
        self._ready.set()
        await self._stop.wait()
        server.close()
        # One that was accepted just now is known some turns of the loop later.
        for _ in range(5):
            for connection in list(self._connections):
                connection.abort()
            await asyncio.sleep(0)
        await server.wait_closed()

    def _handle(self, connection: "_Connection", content: bytes) -> None:
        arrived = self._loop.time()
        self._under_way += 1
        self.peak = max(self.peak, self._under_way)
        fault = self._faults.popleft() if self._faults else None
        answer = self._reply(connection, content)
        if isinstance(fault, Stall):
            connection.is_stalled = True
            return
        if fault is not None:
            answer = fault.encoded if isinstance(fault, Reply) else b""
        # The answer is ready by now: the latency is the whole of the service's time.
        self._loop.call_at(arrived + self.latency_s, self._finish, connection, answer)

    def _reply(self, connection: "_Connection", content: bytes) -> bytes:
        path, body = connection.path, json.loads(content)
        with self._changed:
            self.requests.append(body)
            self.headers.append(connection.headers)
            self._changed.notify_all()
        try:
            self.admit(path, connection.headers)
            # Kept, so that a benchmark measures the client and not this server's arithmetic.
            if (path, content) not in self._answers:
                if len(self._answers) >= KEPT_ANSWERS:
                    self._answers.clear()
                self._answers[path, content] = Reply(200, self.answer(path, body)).encoded
            return self._answers[path, content]
        except RefusedError as refused:
            return refused.reply.encoded

    def _finish(self, connection: "_Connection", answer: bytes) -> None:
        self._under_way -= 1
        if answer:
            connection.transport.write(answer)
        else:
            connection.transport.close()


class _Connection(asyncio.Protocol):
    """One client's keep-alive connection: collects a request and hands it to the service."""

    transport: asyncio.Transport

    def __init__(self, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        self._service = service
        self._buffer = b""
        self.path = ""
        self.headers: dict[str, str] = {}
        self.is_stalled = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._service._connections.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        with self._service._changed:
            self._service._connections.discard(self.transport)
            self._service._changed.notify_all()
        if self.is_stalled:
            self._service._under_way -= 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, content = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        if not self.headers:
            request, *lines = head.decode("latin-1").split("\r\n")
            self.path = request.split(" ")[1]
            named = (line.partition(":") for line in lines)
            self.headers = {name.lower(): value.strip() for name, _, value in named}
        if len(content) >= int(self.headers.get("content-length", 0)):
            self._buffer = b""
            self._service._handle(self, content)
            self.headers = {}


def serve(service: Service) -> None:
    """Run a service until its standard input closes, telling its address on standard output."""
    import sys

    with service:
        print(service.url, flush=True)
        with suppress(KeyboardInterrupt):
            sys.stdin.read()
