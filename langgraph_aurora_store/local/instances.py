"""The instances of a cluster: a writer and perhaps a reader, and where the endpoints lead."""

from __future__ import annotations

import pwd
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Literal, LiteralString

import psycopg

from langgraph_aurora_store.errors import AuroraStoreError
from langgraph_aurora_store.local.proxy_control import Proxy
from langgraph_aurora_store.local.server import (
    Server,
    ServerVersion,
    StopMode,
    reachable_binaries,
    system_account,
)

Demoted = Literal["gone", "read-only"]
Role = Literal["writer", "reader"]

ROLES: tuple[Role, ...] = ("writer", "reader")


class Instances:
    """The servers behind a proxy; methods are thread-safe and follow one another.

    An Aurora cluster's instances share one storage, so that a failover loses nothing that was
    committed. Here each has its own: a reader is a streaming replica, and ``failover`` promotes
    it once it has received all that the writer had committed.

    Args:
        directory: where the instances' directories are made.
        version: major version of PostgreSQL.
        proxy: its endpoints "writer" and "reader" are led.
    """

    def __init__(self, directory: Path, *, version: ServerVersion, proxy: Proxy) -> None:
        self._directory = directory
        self._proxy = proxy
        self._account: pwd.struct_passwd | None = system_account()
        self._binaries = reachable_binaries(directory, version, self._account)
        self._made = 0
        self._lag_s = 0.0
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self.reader: Server | None = None
        self.writer = self._new_server()
        self._lead_all()

    def _new_server(self) -> Server:
        self._made += 1
        name = f"server-{self._made}"
        return Server(self._directory / name, binaries=self._binaries, account=self._account)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the writer for the block, and at its end stop every instance."""
        try:
            self.writer.start()
            yield
        finally:
            with self._lock, ExitStack() as stack:
                self._forget_timer()
                for server in self._all():
                    stack.callback(server.stop, "immediate")

    def _all(self) -> list[Server]:
        return [self.writer, self.reader] if self.reader else [self.writer]

    def ask(self, query: LiteralString, params: tuple[object, ...]) -> list[tuple[object, ...]]:
        """Run a query on an instance that is up.

        Raises:
            psycopg.OperationalError: none is.
        """
        try:
            return self.writer.execute(query, params)
        except psycopg.OperationalError:
            if (reader := self.reader) is None:
                raise
            return reader.execute(query, params)

    def named(self, role: Role) -> Server:
        """The instance in a role.

        Raises:
            AuroraStoreError: there is no reader.
        """
        if role == "writer":
            return self.writer
        if self.reader is None:
            raise AuroraStoreError(
                "the local Aurora has no reader; LocalAurora(readers=1) or add_reader() makes one"
            )
        return self.reader

    def add_reader(self) -> None:
        """Copy the writer and start a standby; blocks until it streams."""
        with self._lock:
            if self.reader is not None:
                raise AuroraStoreError("the local Aurora has a reader; it can have one")
            reader = self._new_server()
            reader.copy(self.writer)
            reader.start()
            self.reader = reader
            self._apply_lag()
            self._await_streaming()
            self._lead("reader", reader)
            self._proxy.controls.set(keeps=True)

    def remove_reader(self) -> None:
        """Stop the reader and remove it; the reader endpoint then leads to the writer."""
        with self._lock:
            reader = self.named("reader")
            self.reader = None
            self._lead("reader", self.writer)
            self._retire(reader, "immediate")

    def restart(self, role: Role, mode: StopMode, *, down_s: float) -> None:
        """Stop an instance and start it again after ``down_s`` seconds; blocks until it is up."""
        with self._lock:
            server = self.named(role)
            server.stop(mode)
            time.sleep(down_s)
            server.start()

    @property
    def lag_s(self) -> float:
        """For how long the reader keeps back what the writer has committed, in seconds."""
        return self._lag_s

    @lag_s.setter
    def lag_s(self, seconds: float) -> None:
        with self._lock:
            self._lag_s = seconds
            self._apply_lag()

    def _apply_lag(self, server: Server | None = None, lag_s: float | None = None) -> None:
        server = server or self.reader
        if server is not None:
            milliseconds = round((self._lag_s if lag_s is None else lag_s) * 1000)
            server.execute(f"ALTER SYSTEM SET recovery_min_apply_delay = {milliseconds}".encode())
            server.execute(b"SELECT pg_reload_conf()")

    def failover(self, *, demoted: Demoted, endpoint_delay_s: float) -> None:
        """Promote the reader; blocks until it accepts writes.

        Args:
            demoted: what becomes of the old writer.
            endpoint_delay_s: how long the writer endpoint leads to the old one after that.
        """
        with self._lock:
            old, new = self.writer, self.named("reader")
            self._await_streaming()
            self._forget_timer()
            connections = self._proxy.connections
            if demoted == "gone":
                connections.cut(old.socket)
            with connections.held(old.socket) if demoted == "read-only" else nullcontext():
                self._hand_over(old, new)
                self.writer, self.reader = new, None
                if demoted == "read-only":
                    old.follow(new)
                    old.start()
                    self.reader = old
                    self._apply_lag()
            self._lead("reader", self.reader or new)
            self._move_writer_endpoint(endpoint_delay_s)
            if self.reader is None:
                self._retire(old, "fast")

    def _hand_over(self, old: Server, new: Server) -> None:
        self._apply_lag(new, 0.0)
        old.stop("fast")  # which waits until the reader has all of the write-ahead log
        end = old.last_checkpoint()
        try:
            new.wait_until(
                f"SELECT pg_last_wal_receive_lsn() >= '{end}'".encode(),
                "receive what the writer had committed",
            )
        except AuroraStoreError:
            old.start()
            raise
        new.promote()

    def _move_writer_endpoint(self, delay_s: float) -> None:
        if not delay_s:
            self._lead("writer", self.writer)
            return
        self._timer = threading.Timer(delay_s, self._lead, ("writer", self.writer))
        self._timer.daemon = True
        self._timer.start()

    def _forget_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            timer.join()

    def settle(self) -> None:
        """Have each endpoint lead where it should, whatever was delayed."""
        with self._lock:
            self._forget_timer()
            self._lead_all()

    def _lead_all(self) -> None:
        self._lead("writer", self.writer)
        self._lead("reader", self.reader or self.writer)

    def _lead(self, endpoint: Role, server: Server) -> None:
        self._proxy.lead(endpoint, server.socket)

    def _await_streaming(self) -> None:
        # Not the state alone: a standby that has just begun to follow a promoted writer streams
        # the timeline before the promotion first.
        [(end,)] = self.writer.execute("SELECT pg_current_wal_flush_lsn()::text")
        self.writer.wait_until(
            "SELECT count(*) > 0 FROM pg_stat_replication"
            f" WHERE state = 'streaming' AND flush_lsn >= '{end}'".encode(),
            "stream to its reader",
        )

    def _retire(self, server: Server, mode: StopMode) -> None:
        self._proxy.connections.cut(server.socket)
        server.stop(mode)
        shutil.rmtree(server.directory, ignore_errors=True)
