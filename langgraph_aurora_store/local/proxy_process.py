"""The proxy's own process: accepts links, opens them as RDS does and relays what follows.

A process of its own, and one more for each link, so that relaying costs the interpreter that runs
the tests or benchmarks nothing. It decides nothing: who may enter is asked over a Unix socket, see
``proxy.py``. Standard library only, for a quick start and small children.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import select
import signal
import socket
import ssl
import struct
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from langgraph_aurora_store.local import wire

CHUNK = 65_536
HELD_MAX = 1_048_576  # bytes under way in one direction before the sender has to wait
OWNER_CHECK_S = 1.0
WAIT = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a link finds what it needs."""

    certificate: str
    control: str
    controls: str
    server: str


def main() -> None:
    """Accept links on the inherited listener until standard input ends or the owner is gone."""
    # The lowest descriptor that is free, for select() takes none above 1023.
    listener = socket.socket(fileno=os.dup(int(sys.argv[1])))
    os.close(int(sys.argv[1]))
    paths = Paths(**json.loads(sys.argv[2]))
    owner = os.getppid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the system
    contexts = Contexts(paths.certificate)
    controls = LinkControls(paths.controls)
    gc.freeze()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while os.getppid() == owner:
        readable, _, _ = select.select([listener.fileno(), 0], [], [], OWNER_CHECK_S)
        if 0 in readable:
            break
        if readable:
            accept(listener, contexts, paths, controls)
    os.killpg(0, signal.SIGKILL)  # this process leads a group of its own links


def accept(
    listener: socket.socket, contexts: Contexts, paths: Paths, controls: LinkControls
) -> None:
    """Take one link and leave it to a new process."""
    client, _ = listener.accept()
    with client:
        context = contexts.current()
        if os.fork():
            return
        status = 1
        try:
            listener.close()
            os.close(0)
            serve(client, context, paths, controls)
            status = 0
        except (OSError, ssl.SSLError):
            status = 0  # either side went away
        finally:
            os._exit(status)


class Contexts:
    """The TLS context for the certificate that lies at ``path`` now."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._context = self._load()

    def current(self) -> ssl.SSLContext:
        """Load the certificate again if it was replaced."""
        found = os.stat(self._path)
        stamp = (found.st_ino, found.st_mtime_ns)
        if stamp != self._stamp:
            self._stamp, self._context = stamp, self._load()
        return self._context

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.num_tickets = 0
        context.set_alpn_protocols(["postgresql"])
        context.load_cert_chain(self._path)
        return context


def serve(
    client: socket.socket, context: ssl.SSLContext, paths: Paths, controls: LinkControls
) -> None:
    """Open one link and relay it to its end."""
    client.settimeout(OPENING_TIMEOUT_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    controls.wait_one_round_trip()  # the TCP handshake's, which the kernel has already answered
    link, packet = open_link(client, context, controls)
    if wire.opening_code(packet) == wire.CANCEL_REQUEST:
        cancel(packet, paths.server)
        close_gently(link)
        return
    control = Control(paths.control)
    if not admit(link, packet, control, controls):
        return
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(paths.server)
        server.sendall(packet)
        if authenticate(link, server, control, controls):
            relay(link, server, control, controls)


class Way:
    """One direction of a link: what was read from the source and not yet sent to the sink."""

    __slots__ = ("_waiting", "blocked", "held", "sink", "source")

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.held = 0
        self.blocked = False
        self._waiting: deque[tuple[float, bytes]] = deque()

    def take(self, delay_s: float = 0.0) -> bool:
        """Read once and send it, after a delay if there is one; False at the source's end."""
        try:
            data = self.source.recv(CHUNK)
        except WAIT:
            return True
        if not data:
            return False
        sent = 0
        if not delay_s and not self.held:
            sent = self._send(data)
        if sent < len(data):
            self._waiting.append((time.monotonic() + delay_s, data[sent:]))
            self.held += len(data) - sent
        return True

    def give(self, now: float) -> float | None:
        """Send what is due; return when the next is due, or None."""
        self.blocked = False
        while self._waiting and not self.blocked:
            due, data = self._waiting[0]
            if due > now:
                return due
            sent = self._send(data)
            self.held -= sent
            self._waiting.popleft()
            if sent < len(data):
                self._waiting.appendleft((due, data[sent:]))
        return None

    def _send(self, data: bytes) -> int:
        try:
            return self.sink.send(data)
        except WAIT:
            self.blocked = True
            return 0


def relay(
    link: socket.socket, server: socket.socket, control: Control, controls: LinkControls
) -> None:
    """Relay both ways until one side ends or the owner cuts the link."""
    link.settimeout(0)
    server.settimeout(0)
    up, down = Way(link, server), Way(server, link)
    from_owner, from_link, from_server = (s.fileno() for s in (control.socket, link, server))
    if isinstance(link, ssl.SSLSocket) and link.pending():
        up.take()  # select() knows nothing of what TLS has already decrypted
    while True:
        if up.held or down.held:
            readable = wait(from_owner, up, down)
        else:
            readable, _, _ = select.select((from_owner, from_link, from_server), (), ())
        delay_s, stalled = controls.read()
        if from_owner in readable:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            return
        if stalled:
            select.select((from_owner,), (), (), STALL_POLL_S)
            continue
        if from_link in readable and not up.take(delay_s):
            return
        if from_server in readable and not down.take():
            finish(link, down)
            return


def wait(from_owner: int, up: Way, down: Way) -> list[int]:
    """Send what is due, then wait for more to read, to send or to be due; return what can be read.

    A side is not read from while too much of what it sent is under way.
    """
    now = time.monotonic()
    dues = [due for due in (up.give(now), down.give(now)) if due is not None]
    sources = [way.source.fileno() for way in (up, down) if way.held < HELD_MAX]
    sinks = [way.sink.fileno() for way in (up, down) if way.blocked]
    # Not poll(): it counts in whole milliseconds, which a delay of one would be lost in.
    timeout_s = min(dues) - now if dues else None
    readable, _, _ = select.select([from_owner, *sources], sinks, [], timeout_s)
    return readable


def finish(link: socket.socket, down: Way) -> None:
    """Send the client the server's last words and close."""
    link.settimeout(OPENING_TIMEOUT_S)
    down.give(time.monotonic())
    close_gently(link)


OPENING_TIMEOUT_S = 60.0  # PostgreSQL's authentication_timeout
STALL_POLL_S = 0.02
TLS_HANDSHAKE = b"\x16"  # the type of a TLS record that opens a handshake


class LinkControls:
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
    client: socket.socket, context: ssl.SSLContext, controls: LinkControls
) -> tuple[socket.socket, bytes]:
    """Answer requests for encryption; return the link and the first message that is none."""
    link = client
    if client.recv(1, socket.MSG_PEEK) == TLS_HANDSHAKE:
        link = encrypt(client, context, controls)  # sslnegotiation=direct
    while True:
        packet = read_opening(link)
        match wire.opening_code(packet):
            case wire.SSL_REQUEST if link is client:
                controls.wait_one_round_trip()
                link.sendall(b"S")
                link = encrypt(client, context, controls)
            case wire.GSS_REQUEST | wire.SSL_REQUEST:
                controls.wait_one_round_trip()
                link.sendall(b"N")
            case _:
                return link, packet


def encrypt(
    client: socket.socket, context: ssl.SSLContext, controls: LinkControls
) -> ssl.SSLSocket:
    """Take the server's part of a TLS handshake."""
    link = context.wrap_socket(client, server_side=True)
    controls.wait_one_round_trip()
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


def admit(link: socket.socket, packet: bytes, control: Control, controls: LinkControls) -> bool:
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
    controls.wait_one_round_trip()
    if answer["go"] == "ask":
        link.sendall(wire.ASK_FOR_PASSWORD)
        message = read_message(link)
        if message[:1] != b"p":
            raise ConnectionError("expected a password")
        answer = control.ask("token", user=user, token=wire.password_of(message[5:]))
        controls.wait_one_round_trip()
    if answer["go"] == "refuse":
        link.sendall(wire.error(answer["code"], answer["text"]))
        close_gently(link)
    return answer["go"] == "in"


def authenticate(
    link: socket.socket, server: socket.socket, control: Control, controls: LinkControls
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
            controls.wait_one_round_trip()


def close_gently(link: socket.socket) -> None:
    """End TLS as PostgreSQL does, so that the client sees an orderly end."""
    with suppress(OSError, ssl.SSLError, ValueError):
        if isinstance(link, ssl.SSLSocket):
            link.settimeout(0)
            link.unwrap()
