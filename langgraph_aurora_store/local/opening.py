"""How a link is opened: encryption, a password where one is wanted, the server's own words.

Part of the gate's own process, see ``relay.py``; standard library only.
"""

from __future__ import annotations

import json
import mmap
import socket
import ssl
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from langgraph_aurora_store.local import wire

OPENING_TIMEOUT_S = 60.0  # PostgreSQL's authentication_timeout
STALL_POLL_S = 0.02
TLS_HANDSHAKE = b"\x16"  # the type of a TLS record that opens a handshake


class Dials:
    """What the owner may turn while links are open, in shared memory."""

    LAYOUT = struct.Struct("<d?")  # delay of a round trip in seconds, stalled

    def __init__(self, path: str) -> None:
        with Path(path).open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), self.LAYOUT.size)

    def read(self) -> tuple[float, bool]:
        """The delay of one round trip in seconds, and whether nothing passes."""
        delay_s, stalled = self.LAYOUT.unpack_from(self._memory)
        return delay_s, stalled

    def turn(self, delay_s: float, *, stalled: bool) -> None:
        """Set both; every link sees it at once."""
        self.LAYOUT.pack_into(self._memory, 0, delay_s, stalled)

    def close(self) -> None:
        """Let go of the shared memory."""
        self._memory.close()

    def wait_one_round_trip(self) -> None:
        """Sleep as long as one exchange with a distant client takes, or while stalled."""
        delay_s, stalled = self.read()
        while stalled:
            time.sleep(STALL_POLL_S)
            delay_s, stalled = self.read()
        time.sleep(delay_s)


class Control:
    """Asks the owner; each question waits for its answer. An end of stream cuts the link."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self._answers = self.socket.makefile("rb")

    def ask(self, question: str, **facts: object) -> Mapping[str, str]:
        """Put a question to the owner.

        Raises:
            ConnectionError: the owner has cut the link or is gone.
        """
        self.socket.sendall(json.dumps({"ask": question, **facts}).encode() + b"\n")
        line = self._answers.readline()
        if not line:
            raise ConnectionError("cut by the owner")
        answer: dict[str, str] = json.loads(line)
        return answer


def open_link(
    client: socket.socket, context: ssl.SSLContext, dials: Dials
) -> tuple[socket.socket, bytes]:
    """Answer requests for encryption; return the link and the first message that is none."""
    link = client
    if client.recv(1, socket.MSG_PEEK) == TLS_HANDSHAKE:
        link = encrypt(client, context, dials)  # sslnegotiation=direct
    while True:
        packet = read_opening(link)
        match wire.opening_code(packet):
            case wire.SSL_REQUEST if link is client:
                dials.wait_one_round_trip()
                link.sendall(b"S")
                link = encrypt(client, context, dials)
            case wire.GSS_REQUEST | wire.SSL_REQUEST:
                dials.wait_one_round_trip()
                link.sendall(b"N")
            case _:
                return link, packet


def encrypt(client: socket.socket, context: ssl.SSLContext, dials: Dials) -> ssl.SSLSocket:
    """Take the server's part of a TLS handshake."""
    link = context.wrap_socket(client, server_side=True)
    dials.wait_one_round_trip()
    return link


def read_opening(link: socket.socket) -> bytes:
    """Read one message without a type byte."""
    head = read_exactly(link, 4)
    size = int.from_bytes(head, "big")
    if not 8 <= size <= wire.MAX_OPENING:
        raise ConnectionError("not PostgreSQL's protocol")
    return head + read_exactly(link, size - 4)


def read_message(link: socket.socket) -> bytes:
    """Read one message with a type byte, as it is sent during authentication."""
    head = read_exactly(link, 5)
    size = int.from_bytes(head[1:], "big")
    if not 4 <= size <= wire.MAX_AUTHENTICATION:
        raise ConnectionError("not a message of the authentication phase")
    return head + read_exactly(link, size - 4)


def read_exactly(link: socket.socket, size: int) -> bytes:
    """Read ``size`` bytes or raise ConnectionError."""
    data = b""
    while len(data) < size:
        part = link.recv(size - len(data))
        if not part:
            raise ConnectionError("closed by the peer")
        data += part
    return data


def cancel(packet: bytes, path: str) -> None:
    """Hand a request to cancel a statement to the server, which answers by closing."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        server.sendall(packet)
        server.recv(1)


def admit(link: socket.socket, packet: bytes, control: Control, dials: Dials) -> bool:
    """Ask for a password where the owner wants one; tell the client if it is refused."""
    names = wire.startup_parameters(packet)
    user = names.get("user", "")
    answer = control.ask(
        "enter",
        user=user,
        database=names.get("database", user),
        peer=str(link.getpeername()[0]),
        encrypted=isinstance(link, ssl.SSLSocket),
    )
    dials.wait_one_round_trip()
    if answer["go"] == "ask":
        link.sendall(wire.ASK_FOR_PASSWORD)
        message = read_message(link)
        if message[:1] != b"p":
            raise ConnectionError("expected a password")
        answer = control.ask("token", user=user, token=wire.password_of(message[5:]))
        dials.wait_one_round_trip()
    if answer["go"] == "refuse":
        link.sendall(wire.error(answer["code"], answer["text"]))
        close_gently(link)
    return answer["go"] == "in"


def authenticate(
    link: socket.socket, server: socket.socket, control: Control, dials: Dials
) -> bool:
    """Pass the server's own authentication through; whether the client was let in."""
    while True:
        message = read_message(server)
        method = int.from_bytes(message[5:9], "big") if message[:1] == b"R" else None
        if method == wire.AUTHENTICATION_OK:
            control.ask("admitted")
            link.sendall(message)
            return True
        if message[:1] == b"E":
            control.ask("refused", code=wire.sqlstate(message))
            link.sendall(message)
            close_gently(link)
            return False
        link.sendall(message)
        if method in wire.AUTHENTICATION_EXPECTING_REPLY:
            server.sendall(read_message(link))
            dials.wait_one_round_trip()


def close_gently(link: socket.socket) -> None:
    """End TLS as PostgreSQL does, so that the client sees an orderly end."""
    with suppress(OSError, ssl.SSLError, ValueError):
        if isinstance(link, ssl.SSLSocket):
            link.settimeout(0)
            link.unwrap()
