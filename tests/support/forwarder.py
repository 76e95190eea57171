"""A forwarded port, as of a tunnel, whose links can fall silent while new ones work."""

import socket
import threading
from contextlib import suppress
from typing import Self


class Link:
    """One connection through the port; ``silent`` swallows what either side sends."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.ends = (near, far)
        self.silent = threading.Event()
        for pair in ((near, far), (far, near)):
            threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if not self.silent.is_set():
                    sink.sendall(data)
            if not self.silent.is_set():
                sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Forwarder:
    """Forwards a local port to another one, or to a Unix socket.

    ``refuses``: new connections are closed at once.
    """

    def __init__(self, to: int | str) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.links: list[Link] = []
        self.accepted = 0
        self.refuses = False
        self.is_deaf = False  # accepts, and answers nothing
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for link in self.links:
            link.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.accepted += 1
                if self.refuses:
                    near.close()
                    continue
                link = Link(near, self._dial())
                if self.is_deaf:
                    link.silent.set()
                self.links.append(link)

    def _dial(self) -> socket.socket:
        if isinstance(self._to, int):
            return socket.create_connection(("127.0.0.1", self._to))
        far = socket.socket(socket.AF_UNIX)
        far.connect(self._to)
        return far

    def silence(self) -> int:
        """Let the links that there are fall silent: nothing is closed, nothing passes."""
        for link in self.links:
            link.silent.set()
        return len(self.links)
