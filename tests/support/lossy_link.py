"""A link to PostgreSQL that loses replies: between a client's socket and the server's."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

# The server's CommandComplete message for COMMIT.
COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"


class LossyLink:
    """Forwards bytes between Unix sockets; ``dsn`` is for clients."""

    def __init__(self, dsn: str) -> None:
        server = conninfo_to_dict(dsn)
        name = f".s.PGSQL.{server.get('port', 5432)}"
        self._server = f"{server['host']}/{name}"
        self._directory = tempfile.TemporaryDirectory()
        self.dsn = make_conninfo(dsn, host=self._directory.name)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(Path(self._directory.name) / name))
        self._listener.listen(64)
        self._meanwhile: Callable[[], object] | None = None
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._is_open = True
        self.lost = 0
        """How many replies were lost."""

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()
        for pair in self._pairs:
            for end in pair:
                _shut(end)
        self._directory.cleanup()

    def lose_next_commit(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Lose the reply to the next COMMIT and the link with it, once ``meanwhile`` was called."""
        self._meanwhile = meanwhile

    def refuse(self) -> None:
        """Close every link, and take no more."""
        self._is_open = False
        for client, _ in list(self._pairs):
            _shut(client)

    def abandon_clients(self) -> None:
        """Close the clients' ends only: what the server is doing goes on."""
        for client, _ in list(self._pairs):
            _shut(client)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if not self._is_open:
                    _shut(client)
                    continue
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                self._pairs.append((client, server))
                threading.Thread(target=self._send, args=(client, server), daemon=True).start()
                threading.Thread(target=self._reply, args=(client, server), daemon=True).start()

    def _send(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)

    def _reply(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                meanwhile = self._meanwhile
                if meanwhile is not None and COMMITTED in data:
                    self._meanwhile = None
                    self.lost += 1
                    meanwhile()
                    break
                with suppress(OSError):
                    client.sendall(data)
        _shut(client)
        _shut(server)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
