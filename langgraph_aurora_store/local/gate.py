"""The owner's side of the gate: starts the relay's process, answers its questions, cuts links."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from langgraph_aurora_store.local.relay import Dials

CUT_TIMEOUT_S = 5.0
BACKLOG = 512

# The relay imports two small modules; the package's own __init__ would import a database driver
# into every link's process, so an empty package with the same path stands in for it.
LAUNCH = """\
import sys, types
package = types.ModuleType("langgraph_aurora_store")
package.__path__ = [sys.argv.pop(1)]
sys.modules[package.__name__] = package
from langgraph_aurora_store.local.relay import main
main()
"""


class Gate:
    """A TLS gate on a loopback port in front of a server's Unix socket.

    Args:
        directory: where its control socket and the certificate it presents live.
        server: path of the server's Unix socket.
        port: TCP port, 0 for any that is free.
        answer: called from several threads with each question of the relay.
    """

    def __init__(
        self,
        directory: Path,
        *,
        server: Path,
        port: int,
        answer: Callable[[Mapping[str, object]], Mapping[str, object]],
    ) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
        self.port: int = self._listener.getsockname()[1]
        self.certificate = directory / "presented.pem"
        self._server = server
        self._control = directory / "control"
        self._dials_path = directory / "dials"
        self._dials_path.write_bytes(bytes(Dials.LAYOUT.size))
        self.dials = Dials(str(self._dials_path))
        self._links = Links()
        self._answer = answer

    def close(self) -> None:
        """Let go of the port and the shared memory."""
        self._listener.close()
        self.dials.close()

    def present(self, chain: bytes) -> None:
        """Present this certificate and key to every link opened from now on."""
        fresh = self.certificate.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_bytes(chain)
        fresh.replace(self.certificate)

    def cut(self) -> int:
        """Reset every link that is open; return how many, once they are gone."""
        return self._links.cut()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Relay links for the block; a certificate must have been set."""
        with Doorkeeper(str(self._control), self._links, self._answer) as doorkeeper:
            thread = threading.Thread(target=doorkeeper.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            relay = self._start_relay()
            try:
                yield
            finally:
                _end(relay)
                doorkeeper.shutdown()
                thread.join()

    def _start_relay(self) -> subprocess.Popen[bytes]:
        paths = {
            "certificate": str(self.certificate),
            "control": str(self._control),
            "dials": str(self._dials_path),
            "server": str(self._server),
        }
        descriptor = self._listener.fileno()
        package = str(Path(__file__).parent.parent)
        relay = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
            [sys.executable, "-I", "-c", LAUNCH, package, str(descriptor), json.dumps(paths)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(descriptor,),
            env={"PATH": os.defpath},
            start_new_session=True,
        )
        self._listener.close()
        return relay


def _end(relay: subprocess.Popen[bytes]) -> None:
    if relay.stdin:
        with suppress(BrokenPipeError):
            relay.stdin.close()
    relay.wait()


class Links:
    """The links that are open now; thread-safe."""

    def __init__(self) -> None:
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()

    @contextmanager
    def holding(self, control: socket.socket) -> Iterator[None]:
        """Count a link as open for the block."""
        with self._changed:
            self._open.add(control)
        try:
            yield
        finally:
            with self._changed:
                self._open.discard(control)
                self._changed.notify_all()

    def cut(self) -> int:
        """Ask every open link's process to reset it, and wait until they have."""
        with self._changed:
            doomed = set(self._open)
            for control in doomed:
                with suppress(OSError):
                    control.shutdown(socket.SHUT_WR)
            self._changed.wait_for(lambda: not doomed & self._open, CUT_TIMEOUT_S)
        return len(doomed)


class Doorkeeper(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers the processes of the links, one thread for each."""

    daemon_threads = False
    request_queue_size = BACKLOG

    def __init__(
        self,
        path: str,
        links: Links,
        answer: Callable[[Mapping[str, object]], Mapping[str, object]],
    ) -> None:
        super().__init__(path, _Conversation)
        self.links = links
        self.answer = answer


class _Conversation(socketserver.StreamRequestHandler):
    server: Doorkeeper

    def handle(self) -> None:
        with suppress(OSError), self.server.links.holding(self.connection):
            for line in self.rfile:
                answer = self.server.answer(json.loads(line))
                self.wfile.write(json.dumps(answer).encode() + b"\n")
