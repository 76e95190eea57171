"""The gate's own process: accepts links, opens them as RDS does and relays what follows.

A process of its own, and one more for each link, so that relaying costs the interpreter that runs
the tests or benchmarks nothing. It decides nothing: who may enter is asked over a Unix socket, see
``gate.py``. Standard library only, for a quick start and small children.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import ssl
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass

from langgraph_aurora_store.local import wire
from langgraph_aurora_store.local.opening import (
    OPENING_TIMEOUT_S,
    STALL_POLL_S,
    Control,
    Dials,
    admit,
    authenticate,
    cancel,
    close_gently,
    open_link,
)

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
    dials: str
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
    dials = Dials(paths.dials)
    gc.freeze()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while os.getppid() == owner:
        readable, _, _ = select.select([listener.fileno(), 0], [], [], OWNER_CHECK_S)
        if 0 in readable:
            break
        if readable:
            accept(listener, contexts, paths, dials)
    os.killpg(0, signal.SIGKILL)  # this process leads a group of its own links


def accept(listener: socket.socket, contexts: Contexts, paths: Paths, dials: Dials) -> None:
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
            serve(client, context, paths, dials)
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


def serve(client: socket.socket, context: ssl.SSLContext, paths: Paths, dials: Dials) -> None:
    """Open one link and relay it to its end."""
    client.settimeout(OPENING_TIMEOUT_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    dials.wait_one_round_trip()  # the TCP handshake's, which the kernel has already answered
    link, packet = open_link(client, context, dials)
    if wire.opening_code(packet) == wire.CANCEL_REQUEST:
        cancel(packet, paths.server)
        close_gently(link)
        return
    control = Control(paths.control)
    if not admit(link, packet, control, dials):
        return
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(paths.server)
        server.sendall(packet)
        if authenticate(link, server, control, dials):
            relay(link, server, control, dials)


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


def relay(link: socket.socket, server: socket.socket, control: Control, dials: Dials) -> None:
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
        delay_s, stalled = dials.read()
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
