"""Lambda's side of a function, on this machine: its Runtime API, and a sandbox that is frozen.

The function runs under `awslambdaric`, the runtime interface client of Lambda's own images, in a
process that is stopped (SIGSTOP) from the end of an invocation to the beginning of the next, as
Lambda freezes an execution environment. Unlike there, the machine's kernel goes on running: it
acknowledges what arrives for a frozen function. Source: AWS Lambda developer guide, "Using the
Lambda runtime API" and "Understanding the Lambda execution environment lifecycle".
"""

import base64
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

INIT_TIMEOUT_S = 60
VERSION = "/2018-06-01/runtime"


class FunctionError(Exception):
    """The function raised, or ended, or took longer than it may; ``report`` is the runtime's."""

    def __init__(self, report: dict) -> None:
        super().__init__(report.get("errorMessage"))
        self.report = report


@dataclass(frozen=True)
class Result:
    """What the runtime posted: a response, or the report of an error."""

    payload: dict
    is_error: bool = False


class Sandbox:
    """One execution environment, from entering its block to leaving it.

    Entering starts the init phase and waits for its end. ``environment`` is all that the function
    sees of the machine's. ``log`` is what it wrote.
    """

    def __init__(
        self,
        function: str,
        environment: dict[str, str],
        *,
        task_root: Path,
        python: str = sys.executable,
        timeout_s: float = 90.0,
    ) -> None:
        self.timeout_s = timeout_s
        self._api = RuntimeApi()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - ends with the sandbox
        self._final_log = b""
        self._last_began = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [python, "-m", "awslambdaric", function]
        self._task_root = task_root
        self._environment = {
            "PATH": os.defpath,
            "TZ": ":UTC",
            "AWS_LAMBDA_FUNCTION_NAME": "local",
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_FORMAT": "JSON",
            "AWS_LAMBDA_LOG_LEVEL": "INFO",
            "AWS_LAMBDA_RUNTIME_API": self._api.address,
            "LAMBDA_TASK_ROOT": str(task_root),
            "PYTHONPATH": str(task_root),
            **environment,
        }

    def __enter__(self) -> Self:
        self._api.start()
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, a module of the project's
            self._command,
            cwd=self._task_root,
            env=self._environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait_until_idle(INIT_TIMEOUT_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._api.stop()
        self._final_log = self._written()
        self._output.close()

    @property
    def log(self) -> str:
        """Everything the function has written so far."""
        return self._written().decode()

    @property
    def last_log(self) -> str:
        """What it has written since its last invocation, or its init phase, began."""
        return self._written()[self._last_began :].decode()

    def invoke(self, event: dict, *, timeout_s: float | None = None) -> dict:
        """Thaw, hand the event over, wait for the response, freeze.

        Raises:
            FunctionError: there is no response; after ``timeout_s`` the sandbox is ended.
        """
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        self._last_began = len(self._written())
        self._process.send_signal(signal.SIGCONT)
        self._api.hand_over(event, time.time() + limit_s)
        result = self._result(limit_s)
        self._wait_until_idle(limit_s)
        if result.is_error:
            raise FunctionError(result.payload)
        return result.payload

    def request(self, body: object, **parts: object) -> tuple[int, dict]:
        """Send a body to the Function URL; return status and decoded body of the answer."""
        text = body if isinstance(body, str) else json.dumps(body)
        response = self.invoke(url_event(text, **parts))
        return response["statusCode"], json.loads(response["body"])

    def _written(self) -> bytes:
        if self._output.closed:
            return self._final_log
        descriptor = self._output.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)

    def _result(self, limit_s: float) -> Result:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            try:
                return self._api.results.get(timeout=0.2)
            except queue.Empty:
                self._raise_if_ended()
        self._process.kill()
        raise FunctionError({"errorMessage": f"Task timed out after {limit_s:.2f} seconds"})

    def _wait_until_idle(self, limit_s: float) -> None:
        """Wait until the runtime asks for the next event, and freeze it there."""
        deadline = time.monotonic() + limit_s
        while not self._api.asked.wait(0.1):
            self._raise_if_ended()
            if time.monotonic() > deadline:
                raise FunctionError({"errorMessage": f"not ready after {limit_s:.0f} s"})
        self._process.send_signal(signal.SIGSTOP)

    def _raise_if_ended(self) -> None:
        if self._process.poll() is not None:
            report = self._api.init_error or {"errorMessage": f"the runtime ended: {self.log}"}
            raise FunctionError(report)


class RuntimeApi:
    """The Runtime API for one sandbox: an HTTP server on a loopback port."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.results: queue.Queue[Result] = queue.Queue()
        self.init_error: dict | None = None
        self.events: queue.Queue[tuple[bytes, dict[str, str]] | None] = queue.Queue()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.api = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.events.put(None)
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def hand_over(self, event: dict, deadline: float) -> None:
        """Answer the runtime's waiting question with an event."""
        self.asked.clear()
        headers = {
            "Lambda-Runtime-Aws-Request-Id": str(uuid.uuid4()),
            "Lambda-Runtime-Deadline-Ms": str(round(deadline * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": (
                "arn:aws:lambda:us-east-1:000000000000:function:local"
            ),
        }
        self.events.put((json.dumps(event).encode(), headers))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path != f"{VERSION}/invocation/next":
            self._send(404, b"{}")
            return
        self.server.api.asked.set()
        if (waiting := self.server.api.events.get()) is not None:
            event, headers = waiting
            self._send(200, event, headers)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        payload = json.loads(body or b"{}")
        if self.path == f"{VERSION}/init/error":
            self.server.api.init_error = payload
        elif self.path.endswith(("/response", "/error")):
            self.server.api.results.put(Result(payload, self.path.endswith("/error")))
        self._send(202, b"{}")

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name upstream gives it
        """Say nothing: the base class writes each request to stderr."""


def url_event(body: str | bytes | None, *, method: str = "POST", as_base64: bool = False) -> dict:
    """The event that a Function URL makes of an HTTP request, as far as a handler may look.

    What is no text arrives in Base64.
    """
    if isinstance(body, bytes):
        try:
            body = body.decode()
        except UnicodeDecodeError:
            as_base64 = True
    if as_base64 and body is not None:
        body = base64.b64encode(body.encode() if isinstance(body, str) else body).decode()
    return {
        "version": "2.0",
        "rawPath": "/",
        "rawQueryString": "",
        "headers": {"content-type": "application/json"},
        "requestContext": {"http": {"method": method, "path": "/", "protocol": "HTTP/1.1"}},
        **({} if body is None else {"body": body}),
        "isBase64Encoded": as_base64,
    }
