"""PgBouncer in transaction mode before the server of a local Aurora."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from langgraph_aurora_store.local import LocalAurora
from tests.support.forwarder import Forwarder

SIZE = 4  # fewer server connections than the clients have, so that these take turns
INI = """\
[databases]
* = host=127.0.0.1 port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 200
{demote}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port: int = unused.getsockname()[1]
        return port


@contextmanager
def pgbouncer(aurora: LocalAurora) -> Iterator[int]:
    """Its port; everyone is let in, as the cluster's user. Skips where it is not installed."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed: apt-get install pgbouncer")
    server = conninfo_to_dict(aurora.admin_dsn)
    listen = free_port()
    with (
        Forwarder(f"{server['host']}/.s.PGSQL.{server['port']}") as forwarder,
        tempfile.TemporaryDirectory() as name,
    ):
        directory = Path(name)
        directory.chmod(0o755)
        ini = directory / "pgbouncer.ini"
        demote = "user = nobody" if Path.home() == Path("/root") else ""  # it refuses to be root
        ini.write_text(
            INI.format(
                port=forwarder.port, user=aurora.user, listen=listen, size=SIZE, demote=demote
            )
        )
        log = directory / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen([program, "-q", str(ini)], stdout=sink, stderr=sink)
        try:
            _wait(listen, process, log)
            yield listen
        finally:
            process.terminate()
            process.wait(10)


def _wait(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(log.read_text())
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise TimeoutError(log.read_text())


def left_behind(aurora: LocalAurora, database: str) -> dict[str, int]:
    """What the server still holds of its sessions: prepared statements, locks and settings."""
    with psycopg.connect(aurora.admin_dsn_for(database)) as conn:
        row = conn.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchone()
    return {"advisory locks": row[0] if row else 0}
