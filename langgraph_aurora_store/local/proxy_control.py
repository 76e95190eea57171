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
from langgraph_aurora_store.local.proxy_server import LinkControls, Paths

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
from langgraph_aurora_store.local.proxy_server import main
main()
"""


class Proxy:
    """A TLS proxy with a loopback port for each endpoint of a cluster; a context manager.

    Args:
        directory: where its control socket and the certificate it presents live.
        ports: TCP port of each endpoint, 0 for any that is free.
    """

    def __init__(self, directory: Path, *, ports: Mapping[str, int]) -> None:
        self._directory = directory
        self._stack = ExitStack()
        with ExitStack() as stack:
            self._listeners = {
                name: stack.enter_context(_listen(port)) for name, port in ports.items()
            }
            self._stack = stack.pop_all()
        self.ports: Mapping[str, int] = {
            name: listener.getsockname()[1] for name, listener in self._listeners.items()
        }
        self._controls_path.write_bytes(bytes(LinkControls.LAYOUT.size))
        self.controls = LinkControls(str(self._controls_path))
        self.connections = Connections()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()
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

    def _endpoint(self, name: str) -> Path:
        return self._directory / f"{name}-endpoint"

    def present(self, chain: bytes) -> None:
        """Present this certificate and key to every connection opened from now on."""
        fresh = self._directory / "fresh.pem"
        fresh.touch(mode=0o600)
        fresh.write_bytes(chain)
        fresh.replace(self._certificate)

    def lead(self, endpoint: str, server: Path) -> None:
        """Have an endpoint lead to the server with this socket, for connections from now on."""
        fresh = self._directory / f"{endpoint}-fresh"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(server)
        fresh.replace(self._endpoint(endpoint))

    @contextmanager
    def running(self, answer: Answerer) -> Iterator[None]:
        """Forward connections for the block; certificate and endpoints must have been set.

        Args:
            answer: called from several threads with each question of the proxy process.
        """
        with DecisionServer(str(self._control), self.connections, answer) as decisions:
            thread = threading.Thread(target=decisions.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            process = self._start_process()
            try:
                yield
            finally:
                with process:
                    process.communicate()  # closes its standard input, which ends it
                self.connections.release()
                decisions.shutdown()
                thread.join()

    def _start_process(self) -> subprocess.Popen[bytes]:
        paths = Paths(
            certificate=str(self._certificate),
            control=str(self._control),
            controls=str(self._controls_path),
            endpoints={name: str(self._endpoint(name)) for name in self.ports},
        )
        descriptors = {name: listener.fileno() for name, listener in self._listeners.items()}
        package = str(Path(__file__).parent.parent)
        arguments = [package, json.dumps(descriptors), json.dumps(asdict(paths))]
        process = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
            [sys.executable, "-I", "-c", LAUNCH, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=tuple(descriptors.values()),
            start_new_session=True,
        )
        self._stack.close()  # the listeners are the process's from here on
        if process.stdout is None or not process.stdout.readline():
            process.wait()
            raise AuroraStoreError("the local Aurora's proxy did not start, see standard error")
        return process


class Connections:
    """The connections of authenticated clients that are open now; thread-safe."""

    def __init__(self) -> None:
        self._open: dict[socket.socket, str] = {}
        self._held: set[socket.socket] = set()
        self._changed = threading.Condition()
        self._is_holding = False

    def count(self) -> int:
        """How many are open."""
        with self._changed:
            return len(self._open)

    @contextmanager
    def counted(self, control: socket.socket, server: str) -> Iterator[None]:
        """Count a connection as open for the block."""
        with self._changed:
            self._open[control] = server
        try:
            yield
        finally:
            with self._changed:
                del self._open[control]
                self._held.discard(control)
                self._changed.notify_all()

    def cut(self, server: Path | None = None) -> int:
        """Have every connection reset, or those to one server; return how many, once gone."""
        return self._end(server, lambda control: control.shutdown(socket.SHUT_WR))

    def close(self, server: Path | None = None) -> int:
        """Have every connection closed by TCP FIN, or those to one server; return how many."""
        return self._end(server, lambda control: _send(control, "close"))

    def silence(self, *, keep_sessions: bool, reset_after_s: float) -> int:
        """Have nothing pass on every open connection any more; return how many there are."""
        command = f"{'silence' if keep_sessions else 'lose'} {reset_after_s}"
        with self._changed:
            for control in self._open:
                with suppress(OSError):
                    _send(control, command)
            return len(self._open)

    def _end(self, server: Path | None, order: Callable[[socket.socket], object]) -> int:
        with self._changed:
            doomed = self._of(server)
            for control in doomed:
                with suppress(OSError):
                    order(control)
            self._changed.wait_for(lambda: not doomed & self._open.keys(), CUT_TIMEOUT_S)
        return len(doomed)

    def _of(self, server: Path | None) -> set[socket.socket]:
        return {c for c, path in self._open.items() if server is None or path == str(server)}

    @contextmanager
    def held(self, server: Path) -> Iterator[None]:
        """Keep the idle connections to a server while it is away; those in use are reset."""
        with self._changed:
            self._is_holding = True
            wanted = self._of(server)
            for control in wanted:
                with suppress(OSError):
                    _send(control, "hold")
            self._changed.wait_for(lambda: wanted & self._open.keys() <= self._held, CUT_TIMEOUT_S)
        try:
            yield
        finally:
            self.release()

    def wait_while_held(self, control: socket.socket) -> None:
        """Block the thread of a connection until it may go on."""
        with self._changed:
            self._held.add(control)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_holding)
            self._held.discard(control)

    def release(self) -> None:
        """Let the held connections go on."""
        with self._changed:
            self._is_holding = False
            self._changed.notify_all()


def _send(control: socket.socket, command: str) -> None:
    control.sendall(json.dumps({"do": command}).encode() + b"\n")


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
                connections = self.server.connections
                if question["ask"] == "admitted":
                    stack.enter_context(connections.counted(self.connection, question["server"]))
                elif question["ask"] == "held":
                    connections.wait_while_held(self.connection)
                self.wfile.write(json.dumps(answer).encode() + b"\n")


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on 127.0.0.1:{port}: {error.strerror}; pass another port, or port=0 for"
            " any that is free"
        ) from error
