"""The owner's side of the proxy: starts its process, answers its questions, cuts connections."""

from __future__ import annotations

import json
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Self, TypeAlias
from weakref import WeakSet

from typing_extensions import override

from langgraph_aurora_store.errors import AuroraStoreError, ConfigurationError
from langgraph_aurora_store.local.proxy_process import LinkControls, Paths

Answerer: TypeAlias = Callable[[Mapping[str, object]], Mapping[str, object]]

CUT_TIMEOUT_S = 5.0
BACKLOG = 512

# The process imports two small modules; the package's own __init__ would import a database driver
# into every connection's process, so an empty package with the same path stands in for it.
LAUNCH = """\
import sys, types
package = types.ModuleType("langgraph_aurora_store")
package.__path__ = [sys.argv.pop(1)]
sys.modules[package.__name__] = package
from langgraph_aurora_store.local.proxy_process import main
main()
"""


class Proxy:
    """A TLS proxy on a loopback port in front of a server's Unix socket; a context manager.

    Args:
        directory: where its control socket and the certificate it presents live.
        port: TCP port, 0 for any that is free.
    """

    def __init__(self, directory: Path, *, port: int) -> None:
        self._directory = directory
        self._listener = _listen(port)
        self.port: int = self._listener.getsockname()[1]
        self._controls_path.write_bytes(bytes(LinkControls.LAYOUT.size))
        self.controls = LinkControls(str(self._controls_path))
        self._connections = Connections()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.close()
        self.controls.close()

    @property
    def _certificate(self) -> Path:
        return self._directory / "presented.pem"

    @property
    def _control(self) -> Path:
        return self._directory / "control"

    @property
    def _controls_path(self) -> Path:
        return self._directory / "controls"

    @property
    def open_connections(self) -> int:
        """How many connections of authenticated clients are open."""
        return self._connections.count()

    def present(self, chain: bytes) -> None:
        """Present this certificate and key to every connection opened from now on."""
        fresh = self._directory / "fresh.pem"
        fresh.touch(mode=0o600)
        fresh.write_bytes(chain)
        fresh.replace(self._certificate)

    def cut(self) -> int:
        """Reset every open connection; return how many, once they are gone."""
        return self._connections.cut()

    @contextmanager
    def running(self, server: Path, answer: Answerer) -> Iterator[None]:
        """Forward connections for the block; a certificate must have been set.

        Args:
            server: path of the server's Unix socket.
            answer: called from several threads with each question of the proxy process.
        """
        with DecisionServer(str(self._control), self._connections, answer) as decisions:
            thread = threading.Thread(target=decisions.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            process = self._start_process(server)
            try:
                yield
            finally:
                with process:
                    process.communicate()  # closes its standard input, which ends it
                decisions.shutdown()
                thread.join()

    def _start_process(self, server: Path) -> subprocess.Popen[bytes]:
        paths = Paths(
            certificate=str(self._certificate),
            control=str(self._control),
            controls=str(self._controls_path),
            server=str(server),
        )
        descriptor = self._listener.fileno()
        package = str(Path(__file__).parent.parent)
        arguments = [package, str(descriptor), json.dumps(asdict(paths))]
        process = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
            [sys.executable, "-I", "-c", LAUNCH, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(descriptor,),
            start_new_session=True,
        )
        self._listener.close()  # the process's from here on
        if process.stdout is None or not process.stdout.readline():
            process.wait()
            raise AuroraStoreError("the local Aurora's proxy did not start, see standard error")
        return process


class Connections:
    """The connections of authenticated clients that are open now; thread-safe."""

    def __init__(self) -> None:
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()

    def count(self) -> int:
        """How many are open."""
        with self._changed:
            return len(self._open)

    @contextmanager
    def holding(self, control: socket.socket) -> Iterator[None]:
        """Count a connection as open for the block."""
        with self._changed:
            self._open.add(control)
        try:
            yield
        finally:
            with self._changed:
                self._open.discard(control)
                self._changed.notify_all()

    def cut(self) -> int:
        """Ask every open connection's process to reset it, and wait until they have."""
        with self._changed:
            doomed = set(self._open)
            for control in doomed:
                with suppress(OSError):
                    control.shutdown(socket.SHUT_WR)
            self._changed.wait_for(lambda: not doomed & self._open, CUT_TIMEOUT_S)
        return len(doomed)


class DecisionServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers the processes of the connections, one thread for each."""

    request_queue_size = BACKLOG

    def __init__(self, path: str, connections: Connections, answer: Answerer) -> None:
        super().__init__(path, _Conversation)
        self.connections = connections
        self.answer = answer
        self._threads_running: WeakSet[threading.Thread] = WeakSet()

    @override
    def process_request(self, request: object, client_address: object) -> None:
        # ThreadingMixIn either joins its threads or makes them daemons. These are both: a program
        # that never closes its cluster can exit, and a closed cluster leaves no thread.
        arguments = (request, client_address)
        thread = threading.Thread(target=self.process_request_thread, args=arguments, daemon=True)
        self._threads_running.add(thread)
        thread.start()

    @override
    def server_close(self) -> None:
        super().server_close()
        for thread in list(self._threads_running):
            thread.join()


class _Conversation(socketserver.StreamRequestHandler):
    server: DecisionServer

    def handle(self) -> None:
        with suppress(OSError), ExitStack() as stack:
            for line in self.rfile:
                question = json.loads(line)
                answer = self.server.answer(question)
                if question["ask"] == "admitted":
                    stack.enter_context(self.server.connections.holding(self.connection))
                self.wfile.write(json.dumps(answer).encode() + b"\n")


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on 127.0.0.1:{port}: {error.strerror}; pass another port, or port=0 for"
            " any that is free"
        ) from error
