"""The proxy's own process: accepts connections, opens them as RDS does, forwards what follows.

A process of its own, and one more for each connection, so that forwarding costs the interpreter
that runs the tests or benchmarks nothing. It decides nothing: who may enter is asked over a Unix
socket, see ``proxy_control.py``. Standard library only, for a quick start and small children.
"""

from __future__ import annotations

import gc
import json
import math
import mmap
import os
import select
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from langgraph_aurora_store.local import wire

CHUNK = 65_536
HELD_MAX = 1_048_576  # bytes under way in one direction before the sender has to wait
OWNER_CHECK_S = 1.0
WAIT = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
OPENING_TIMEOUT_S = 60.0  # PostgreSQL's authentication_timeout
STALL_POLL_S = 0.02
TLS_HANDSHAKE = b"\x16"  # the type of a TLS record that opens a handshake
QUIET_S = 0.02  # a session that sends nothing for so long has answered all that it was asked
HOLD_TIMEOUT_S = 0.5
REATTACH_TIMEOUT_S = 10.0


class CutError(Exception):
    """The client's connection is to be reset."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a connection finds what it needs."""

    certificate: str
    control: str
    controls: str
    endpoints: Mapping[str, str]  # links to the sockets of the servers they lead to


class Endpoint(NamedTuple):
    """One of the cluster's endpoints, as a connection sees it."""

    name: str
    link: str

    def server(self) -> str:
        """The socket of the server that it leads to now."""
        return os.readlink(self.link)


def main() -> None:
    """Accept connections on the inherited listeners until standard input ends or the owner does."""
    paths = Paths(**json.loads(sys.argv[2]))
    listeners = {
        inherit(descriptor): Endpoint(name, paths.endpoints[name])
        for name, descriptor in json.loads(sys.argv[1]).items()
    }
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
        readable, _, _ = select.select(
            [0, *(each.fileno() for each in listeners)], [], [], OWNER_CHECK_S
        )
        if 0 in readable:
            break
        for listener in listeners:
            if listener.fileno() in readable:
                accept(listener, listeners, contexts, paths, controls)
    os.killpg(0, signal.SIGKILL)  # this process leads a group of those of its connections


def inherit(descriptor: int) -> socket.socket:
    """A listener under the lowest descriptor that is free, for select() takes none above 1023."""
    listener = socket.socket(fileno=os.dup(descriptor))
    os.close(descriptor)
    return listener


def accept(
    listener: socket.socket,
    listeners: Mapping[socket.socket, Endpoint],
    contexts: Contexts,
    paths: Paths,
    controls: LinkControls,
) -> None:
    """Take one connection and leave it to a new process."""
    client, _ = listener.accept()
    with client:
        context = contexts.current()
        if os.fork():
            return
        status = 1
        try:
            for each in listeners:
                each.close()
            os.close(0)
            serve(client, context, paths.control, listeners[listener], controls)
            status = 0
        except (OSError, CutError):
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
    accepted: socket.socket,
    context: ssl.SSLContext,
    control_path: str,
    endpoint: Endpoint,
    controls: LinkControls,
) -> None:
    """Open one connection and forward it to its end."""
    accepted.settimeout(OPENING_TIMEOUT_S)
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    controls.wait_one_round_trip()  # the TCP handshake's, which the kernel has already answered
    control = Control(control_path, endpoint.name)
    if controls.read().asleep:
        control.ask("wake")
    server_path = endpoint.server()
    if not os.path.exists(server_path):
        reset(accepted)  # the nearest to a refused connection, which only the kernel can give
        return
    client, packet = open_connection(accepted, context, controls)
    if wire.opening_code(packet) == wire.CANCEL_REQUEST:
        cancel(packet, server_path)
        close_gently(client)
        return
    if not admit(client, packet, control, controls):
        return
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(server_path)
        server.sendall(packet)
        if not authenticate(client, server, server_path, control, controls):
            return
        session = Session(server, server_path, packet)
        try:
            Forwarding(client, session, control, controls).run()
        except CutError:
            reset(client)


def reset(client: socket.socket) -> None:
    """Close a connection by TCP RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    client.close()


class Session:
    """A session on the server, and what is needed to open it again on that server's successor.

    Args:
        server: the connection to the server.
        path: the server's socket.
        startup: the client's StartupMessage.
    """

    def __init__(self, server: socket.socket, path: str, startup: bytes) -> None:
        self.server = server
        self.path = path
        self.status = wire.IDLE
        self.is_answered = True
        self._startup = startup
        self._unfinished = b""  # the beginning of a message from the client
        self._statements: dict[bytes, bytes] = {}
        self._reported = b""  # of the session opened again, for the client

    def note_sent(self, data: bytes, *, keeps: bool) -> None:
        """Note a request; remember the statements that it prepares if they are to be kept."""
        self.is_answered = False
        if not keeps:
            return
        messages, self._unfinished = wire.split(self._unfinished + data)
        for message in messages:
            if name := wire.prepared_name(message):
                self._statements[name] = message
            elif name := wire.closed_name(message):
                self._statements.pop(name, None)

    def note_received(self, data: bytes) -> None:
        """Note the transaction's status, with which a server ends an answer."""
        status = wire.status_at_end(data)
        self.is_answered = status is not None
        self.status = status or self.status

    @property
    def is_idle(self) -> bool:
        """Whether the client has sent whole messages, all are answered and no transaction open."""
        return self.is_answered and self.status == wire.IDLE and not self._unfinished

    def reattach(self) -> None:
        """Open the session again on the restarted server, with its prepared statements.

        Raises:
            CutError: the server does not let it in.
        """
        deadline = time.monotonic() + REATTACH_TIMEOUT_S
        while True:
            self.server.close()
            self.server = socket.socket(socket.AF_UNIX)
            self.server.settimeout(REATTACH_TIMEOUT_S)
            with suppress(OSError):
                self.server.connect(self.path)
                self._exchange(self._startup)
                if self._statements:
                    self._exchange(b"".join([*self._statements.values(), wire.SYNC]))
                return
            if time.monotonic() > deadline:
                raise CutError
            time.sleep(STALL_POLL_S)

    def take_reported(self) -> bytes:
        """What the server has reported of its role, to go before its next answer."""
        reported, self._reported = self._reported, b""
        return reported

    def _exchange(self, request: bytes) -> None:
        self.server.sendall(request)
        while (message := read_message(self.server, maximum=wire.MAX_MESSAGE))[:1] != b"Z":
            if wire.tells_role(message):
                self._reported = message
            if message[:1] == b"E" and wire.sqlstate(message) in wire.NOT_YET:
                raise ConnectionError("the server is starting")
            if message[:1] == b"E" or wire.asks_for_password(message):
                raise CutError
        self.note_received(message)


class Direction:
    """One direction of a connection: what was read from the source and not yet sent."""

    __slots__ = ("_waiting", "blocked", "held", "sink", "source")

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.held = 0
        self.blocked = False
        self._waiting: deque[tuple[float, bytes]] = deque()

    def receive(self) -> bytes | None:
        """Read once; empty at the source's end, None where there is nothing to read."""
        try:
            return self.source.recv(CHUNK)
        except WAIT:
            return None

    def pass_on(self, data: bytes, delay_s: float = 0.0) -> None:
        """Send it, after a delay if there is one."""
        sent = 0
        if not delay_s and not self.held:
            sent = self._send(data)
        if sent < len(data):
            self._waiting.append((time.monotonic() + delay_s, data[sent:]))
            self.held += len(data) - sent

    def send_due(self, now: float) -> float | None:
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


class Forwarding:
    """Forwards both ways until one side ends or the owner ends the connection."""

    def __init__(
        self, client: socket.socket, session: Session, control: Control, controls: LinkControls
    ) -> None:
        self._client = client
        self._session = session
        self._control = control
        self._controls = controls
        self._keeps = controls.read().keeps  # for good, or it would miss what was prepared before
        self._silenced = False
        self._ends_at = math.inf
        self._attach()

    def _attach(self) -> None:
        self._client.settimeout(0)
        self._session.server.settimeout(0)
        self._up = Direction(self._client, self._session.server)
        self._down = Direction(self._session.server, self._client)

    def run(self) -> None:
        """Return when either side has ended.

        Raises:
            CutError: the client's connection is to be reset.
        """
        if isinstance(self._client, ssl.SSLSocket) and self._client.pending():
            self._take_up(0.0)  # select() knows nothing of what TLS has already decrypted
        while True:
            readable = [self._control.fileno()] if self._control.has_command else self._wait()
            if self._control.fileno() in readable and self._is_ended_by_owner():
                return
            settings = self._controls.read()
            if time.monotonic() >= self._ends_at:
                raise CutError
            if self._silenced:
                continue
            if settings.stalled:
                select.select((self._control.fileno(),), (), (), STALL_POLL_S)
                continue
            if self._client.fileno() in readable and not self._take_up(settings.delay_s):
                return
            from_server = self._session.server.fileno() in readable
            if from_server and not self._take_down(watched=settings.watched):
                self._finish()
                return

    def _wait(self) -> list[int]:
        # A side is not read from while too much of what it sent is under way.
        up, down = self._up, self._down
        now = time.monotonic()
        if self._silenced:
            left_s = None if math.isinf(self._ends_at) else max(0.0, self._ends_at - now)
            return select.select((self._control.fileno(),), (), (), left_s)[0]
        if not (up.held or down.held):
            sources = (self._control.fileno(), up.source.fileno(), down.source.fileno())
            return select.select(sources, (), ())[0]
        dues = [due for due in (up.send_due(now), down.send_due(now)) if due is not None]
        waiting = [way.source.fileno() for way in (up, down) if way.held < HELD_MAX]
        sinks = [way.sink.fileno() for way in (up, down) if way.blocked]
        # Not poll(): it counts in whole milliseconds, which a delay of one would be lost in.
        timeout_s = min(dues) - now if dues else None
        return select.select([self._control.fileno(), *waiting], sinks, [], timeout_s)[0]

    def _take_up(self, delay_s: float) -> bool:
        data = self._up.receive()
        if data:
            self._session.note_sent(data, keeps=self._keeps)
            self._up.pass_on(data, delay_s)
        return data != b""

    def _take_down(self, *, watched: bool) -> bool:
        data = self._down.receive()
        if data:
            tells_commit = watched and wire.tells_commit(data, status_before=self._session.status)
            if tells_commit and self._control.ask("commit")["go"] == "drop":
                raise CutError
            self._session.note_received(data)
            self._down.pass_on(self._session.take_reported() + data)
        return data != b""

    def _is_ended_by_owner(self) -> bool:
        match self._control.command().split():
            case ["close"]:
                self._client.shutdown(socket.SHUT_RDWR)
                return True
            case ["silence" | "lose" as how, after_s]:
                self._silenced = True
                self._ends_at = time.monotonic() + float(after_s)
                if how == "lose":
                    self._session.server.shutdown(socket.SHUT_RDWR)
            case ["hold"] if self._keeps:
                self._hold()
            case _:
                raise CutError
        return False

    def _hold(self) -> None:
        """Keep the client while the server becomes another; cut it where that would be seen."""
        self._answer_all()
        if not self._session.is_idle:
            raise CutError
        self._session.server.close()
        self._control.ask("held")  # answered when the server is there again
        self._session.reattach()
        self._attach()

    def _answer_all(self) -> None:
        deadline = time.monotonic() + HOLD_TIMEOUT_S
        while time.monotonic() < deadline:
            server = self._session.server.fileno()
            readable, _, _ = select.select((server,), (), (), QUIET_S)
            self._down.send_due(time.monotonic())
            self._up.send_due(time.monotonic())
            if not readable and not self._down.held and not self._up.held:
                return
            if readable and not self._take_down(watched=False):
                raise CutError

    def _finish(self) -> None:
        # The server's last words, then an orderly end.
        self._client.settimeout(OPENING_TIMEOUT_S)
        self._down.send_due(time.monotonic())
        close_gently(self._client)


class Settings(NamedTuple):
    """What applies to every connection now."""

    delay_s: float = 0.0  # of one round trip
    stalled: bool = False  # nothing passes
    asleep: bool = False  # new connections ask whether they have to wait
    watched: bool = False  # the owner is told of each commit before the client is
    keeps: bool = False  # prepared statements are remembered


class LinkControls:
    """What the owner may set while connections are open, in shared memory."""

    LAYOUT = struct.Struct("<d????")

    def __init__(self, path: str) -> None:
        with Path(path).open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), self.LAYOUT.size)
        self._lock = threading.Lock()

    def read(self) -> Settings:
        """What is set now."""
        return Settings._make(self.LAYOUT.unpack_from(self._memory))

    def set(self, **changes: Any) -> None:
        """Change some; every connection sees it at once."""
        with self._lock:
            self.LAYOUT.pack_into(self._memory, 0, *self.read()._replace(**changes))

    def close(self) -> None:
        """Let go of the shared memory."""
        self._memory.close()

    def wait_one_round_trip(self) -> None:
        """Sleep as long as one exchange with a distant client takes, or while stalled."""
        while (settings := self.read()).stalled:
            time.sleep(STALL_POLL_S)
        time.sleep(settings.delay_s)


class Control:
    """Asks the owner and takes its commands, a line of JSON each; an end of stream is a cut."""

    def __init__(self, path: str, endpoint: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._endpoint = endpoint
        self._received = b""
        self._commands: deque[str] = deque()

    def fileno(self) -> int:
        """For select()."""
        return self._socket.fileno()

    def ask(self, question: str, **facts: object) -> Mapping[str, str]:
        """Put a question to the owner and wait for the answer.

        Raises:
            CutError: the owner has cut the connection or is gone.
        """
        asked = {"ask": question, "endpoint": self._endpoint, **facts}
        self._socket.sendall(json.dumps(asked).encode() + b"\n")
        while "do" in (line := self._read_line()):
            self._commands.append(line["do"])
        return line

    @property
    def has_command(self) -> bool:
        """Whether a command was read already, so that select() would not tell of it."""
        return bool(self._commands) or b"\n" in self._received

    def command(self) -> str:
        """Take the next command; blocks where there is none."""
        return self._commands.popleft() if self._commands else self._read_line()["do"]

    def _read_line(self) -> dict[str, str]:
        while b"\n" not in self._received:
            part = self._socket.recv(CHUNK)
            if not part:
                raise CutError
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        answer: dict[str, str] = json.loads(line)
        return answer


def open_connection(
    accepted: socket.socket, context: ssl.SSLContext, controls: LinkControls
) -> tuple[socket.socket, bytes]:
    """Answer requests for encryption; return the connection and the first message that is none."""
    client = accepted
    if accepted.recv(1, socket.MSG_PEEK) == TLS_HANDSHAKE:
        client = encrypt(accepted, context, controls)  # sslnegotiation=direct
    while True:
        packet = read_opening(client)
        match wire.opening_code(packet):
            case wire.SSL_REQUEST if client is accepted:
                controls.wait_one_round_trip()
                client.sendall(b"S")
                client = encrypt(accepted, context, controls)
            case wire.GSS_REQUEST | wire.SSL_REQUEST:
                controls.wait_one_round_trip()
                client.sendall(b"N")
            case _:
                return client, packet


def encrypt(
    accepted: socket.socket, context: ssl.SSLContext, controls: LinkControls
) -> ssl.SSLSocket:
    """Take the server's part of a TLS handshake."""
    client = context.wrap_socket(accepted, server_side=True)
    controls.wait_one_round_trip()
    return client


def read_opening(client: socket.socket) -> bytes:
    """Read one message without a type byte."""
    head = read_exactly(client, 4)
    size = int.from_bytes(head, "big")
    if not 8 <= size <= wire.MAX_OPENING:
        raise ConnectionError("not PostgreSQL's protocol")
    return head + read_exactly(client, size - 4)


def read_message(client: socket.socket, *, maximum: int = wire.MAX_AUTHENTICATION) -> bytes:
    """Read one message with a type byte, by default as it is sent during authentication."""
    head = read_exactly(client, 5)
    size = int.from_bytes(head[1:], "big")
    if not 4 <= size <= maximum:
        raise ConnectionError("not a message of this phase")
    return head + read_exactly(client, size - 4)


def read_exactly(client: socket.socket, size: int) -> bytes:
    """Read ``size`` bytes or raise ConnectionError."""
    data = b""
    while len(data) < size:
        part = client.recv(size - len(data))
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


def admit(client: socket.socket, packet: bytes, control: Control, controls: LinkControls) -> bool:
    """Ask for a password where the owner wants one; tell the client if it is refused."""
    names = wire.startup_parameters(packet)
    user = names.get("user", "")
    answer = control.ask(
        "enter",
        user=user,
        database=names.get("database", user),
        peer=str(client.getpeername()[0]),
        encrypted=isinstance(client, ssl.SSLSocket),
    )
    controls.wait_one_round_trip()
    if answer["go"] == "ask":
        client.sendall(wire.ASK_FOR_PASSWORD)
        message = read_message(client)
        if message[:1] != b"p":
            raise ConnectionError("expected a password")
        answer = control.ask("token", user=user, token=wire.password_of(message[5:]))
        controls.wait_one_round_trip()
    if answer["go"] == "refuse":
        client.sendall(wire.error(answer["code"], answer["text"]))
        close_gently(client)
    return answer["go"] == "in"


def authenticate(
    client: socket.socket,
    server: socket.socket,
    server_path: str,
    control: Control,
    controls: LinkControls,
) -> bool:
    """Pass the server's own authentication through; whether the client was let in."""
    while True:
        message = read_message(server)
        method = int.from_bytes(message[5:9], "big") if message[:1] == b"R" else None
        if method == wire.AUTHENTICATION_OK:
            control.ask("admitted", server=server_path)
            client.sendall(message)
            return True
        if message[:1] == b"E":
            control.ask("refused", code=wire.sqlstate(message))
            client.sendall(message)
            close_gently(client)
            return False
        client.sendall(message)
        if method in wire.AUTHENTICATION_EXPECTING_REPLY:
            server.sendall(read_message(client))
            controls.wait_one_round_trip()


def close_gently(client: socket.socket) -> None:
    """End TLS as PostgreSQL does, so that the client sees an orderly end."""
    with suppress(OSError, ssl.SSLError, ValueError):
        if isinstance(client, ssl.SSLSocket):
            client.settimeout(0)
            client.unwrap()
