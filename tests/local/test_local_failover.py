"""What a local Aurora does to its clients, seen by plain psycopg: reader, failover, faults."""

import select
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import psycopg
import pytest
from psycopg import errors

from langgraph_aurora_store.errors import AuroraStoreError, ConfigurationError
from langgraph_aurora_store.local import LocalAurora

READER = "memory.cluster-ro-abc123.us-east-1.rds.amazonaws.com"


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalAurora]:
    """A cluster with a reader whose endpoint has a name of its own."""
    version = request.config.getoption("--server")
    with LocalAurora(readers=1, reader_endpoint=READER, version=version, export=False) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _whole(cluster: LocalAurora) -> Iterator[None]:
    """Each test begins with a reader and an empty table, and with no fault left over."""
    if not cluster.has_reader:
        cluster.add_reader()
    with closing(connect(cluster)) as connection:
        connection.execute("DROP TABLE IF EXISTS t")
        connection.execute("CREATE TABLE t (n int)")
    until(lambda: rows(cluster, reader=True) == [])
    yield
    cluster.reset()
    cluster.cut_connections()


def connect(cluster: LocalAurora, *, reader: bool = False, **options: object) -> psycopg.Connection:
    """Connect through the proxy to an endpoint, with a token for it and full verification."""
    host = cluster.reader_endpoint if reader else cluster.endpoint
    port = cluster.reader_port if reader else cluster.port
    token = cluster.session.client("rds").generate_db_auth_token(host, port, cluster.user)
    return psycopg.connect(
        **{
            "host": host,
            "hostaddr": "127.0.0.1",
            "port": port,
            "user": cluster.user,
            "password": token,
            "dbname": cluster.database,
            "sslmode": "verify-full",
            "sslrootcert": cluster.sslrootcert,
            "autocommit": True,
            **options,
        }
    )


def rows(cluster: LocalAurora, *, reader: bool = False) -> list[int]:
    """What a fresh connection finds in the table, sorted."""
    with suppress(errors.UndefinedTable), closing(connect(cluster, reader=reader)) as connection:
        return sorted(n for (n,) in connection.execute("SELECT n FROM t"))
    return [-1]


def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def insert_in_pipeline(connection: psycopg.Connection, count: int) -> None:
    with connection.pipeline(), connection.transaction():
        for n in range(count):
            connection.execute("INSERT INTO t VALUES (%s)", [n])


def is_reader(connection: psycopg.Connection) -> bool:
    return connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)


# reader


def test_the_reader_endpoint_serves_what_the_writer_has_committed(cluster: LocalAurora):
    """Under its own name and port, and refuses writes with 25006."""
    with closing(connect(cluster)) as writer, closing(connect(cluster, reader=True)) as reader:
        assert (is_reader(writer), is_reader(reader)) == (False, True)
        writer.execute("INSERT INTO t VALUES (1)")
        until(lambda: reader.execute("SELECT n FROM t").fetchall() == [(1,)])
        with pytest.raises(errors.ReadOnlySqlTransaction):
            reader.execute("INSERT INTO t VALUES (2)")


def test_a_token_is_for_one_endpoint(cluster: LocalAurora):
    """One signed for the writer's port opens nothing on the reader's."""
    rds = cluster.session.client("rds")
    token = rds.generate_db_auth_token(cluster.endpoint, cluster.port, cluster.user)
    before = cluster.refusals
    with pytest.raises(psycopg.OperationalError, match="PAM authentication failed"):
        connect(cluster, reader=True, password=token)
    assert cluster.refusals - before == {"wrong-host": 1}


def test_the_api_tells_of_the_reader(cluster: LocalAurora):
    """As a second member that is no writer."""
    rds = cluster.session.client("rds")
    members = rds.describe_db_clusters()["DBClusters"][0]["DBClusterMembers"]
    assert [member["IsClusterWriter"] for member in members] == [True, False]
    cluster.remove_reader()
    members = rds.describe_db_clusters()["DBClusters"][0]["DBClusterMembers"]
    assert [member["IsClusterWriter"] for member in members] == [True]


def test_the_readers_lag_can_be_set(cluster: LocalAurora):
    """A commit is seen on the reader so much later, and no more once it is set back."""
    with closing(connect(cluster)) as writer, closing(connect(cluster, reader=True)) as reader:
        cluster.reader_lag_s = 0.6
        writer.execute("INSERT INTO t VALUES (1)")
        began = time.monotonic()
        assert reader.execute("SELECT n FROM t").fetchall() == []
        until(lambda: reader.execute("SELECT n FROM t").fetchall() == [(1,)])
        assert 0.4 < time.monotonic() - began < 2
        cluster.reader_lag_s = 60
        writer.execute("INSERT INTO t VALUES (2)")
        assert reader.execute("SELECT n FROM t").fetchall() == [(1,)]
        cluster.reader_lag_s = 0
        until(lambda: len(reader.execute("SELECT n FROM t").fetchall()) == 2)


def test_without_a_reader_its_endpoint_leads_to_the_writer(cluster: LocalAurora):
    """As Aurora's does; who is connected to the reader that goes is reset."""
    with closing(connect(cluster, reader=True)) as reader:
        cluster.remove_reader()
        with pytest.raises(psycopg.OperationalError):
            reader.execute("SELECT 1")
    with closing(connect(cluster, reader=True)) as connection:
        assert not is_reader(connection)
        connection.execute("INSERT INTO t VALUES (1)")
    assert rows(cluster) == [1]
    with pytest.raises(AuroraStoreError, match=r"no reader.*add_reader\(\)"):
        cluster.failover()
    cluster.add_reader()
    assert rows(cluster, reader=True) == [1]
    with pytest.raises(AuroraStoreError, match="has a reader"):
        cluster.add_reader()


# failover


def test_a_failover_resets_the_old_writers_clients_and_loses_nothing(cluster: LocalAurora):
    """What was committed, even what the reader had not shown yet, is on the new writer."""
    with closing(connect(cluster)) as writer:
        cluster.reader_lag_s = 60
        for n in range(50):
            writer.execute("INSERT INTO t VALUES (%s)", [n])
        cluster.failover()
        with pytest.raises(psycopg.OperationalError):
            writer.execute("INSERT INTO t VALUES (50)")
    assert not cluster.has_reader
    with closing(connect(cluster)) as writer:
        assert not is_reader(writer)
        writer.execute("INSERT INTO t VALUES (51)")
    assert rows(cluster) == [*range(50), 51]
    with psycopg.connect(cluster.admin_dsn) as admin:
        assert admin.execute("SELECT count(*) FROM t").fetchone() == (51,)


def test_a_demoted_writer_keeps_its_idle_links_and_refuses_writes(cluster: LocalAurora):
    """25006 for any write, whatever is set; prepared statements stay; it follows the new writer."""
    with closing(connect(cluster)) as old, closing(connect(cluster)) as in_use:
        for n in range(2):
            old.execute("INSERT INTO t VALUES (%s)", [n], prepare=True)
        in_use.execute("BEGIN; INSERT INTO t VALUES (99)")
        cluster.failover(demoted="read-only")
        assert is_reader(old)
        for write in (
            "INSERT INTO t VALUES (%s)",
            "WITH x AS (DELETE FROM t WHERE n = %s RETURNING n) SELECT * FROM x",
        ):
            with pytest.raises(errors.ReadOnlySqlTransaction):
                old.execute(write, [0])
        for demand in ("SET default_transaction_read_only = off", "BEGIN READ WRITE"):
            with suppress(errors.FeatureNotSupported):
                old.execute(demand)
            with pytest.raises((errors.ReadOnlySqlTransaction, errors.InFailedSqlTransaction)):
                old.execute("INSERT INTO t VALUES (2)")
            old.execute("ROLLBACK")
        with pytest.raises(psycopg.OperationalError):
            in_use.execute("COMMIT")
        with closing(connect(cluster)) as new:
            new.execute("INSERT INTO t VALUES (5)")
        until(lambda: old.execute("SELECT n FROM t ORDER BY n").fetchall() == [(0,), (1,), (5,)])
    assert cluster.has_reader


def test_the_writer_endpoint_may_follow_later(cluster: LocalAurora):
    """Until then it leads to the demoted writer, as a name in DNS does."""
    cluster.failover(demoted="read-only", endpoint_delay_s=0.5)
    with closing(connect(cluster)) as early:
        assert is_reader(early)
        with pytest.raises(errors.ReadOnlySqlTransaction):
            early.execute("INSERT INTO t VALUES (1)")

    def leads_to_a_writer() -> bool:
        with closing(connect(cluster)) as connection:
            return not is_reader(connection)

    until(leads_to_a_writer, 3)


def test_the_writer_endpoint_may_lead_to_nothing_for_a_while(cluster: LocalAurora):
    """Where the old writer is gone, connecting is reset until the endpoint follows."""
    cluster.failover(endpoint_delay_s=0.5)
    with pytest.raises(psycopg.OperationalError):
        connect(cluster)

    def can_connect() -> bool:
        with suppress(psycopg.OperationalError), closing(connect(cluster)):
            return True
        return False

    until(can_connect, 3)


def test_a_failover_may_follow_at_once(cluster: LocalAurora):
    """Before the reader has found the writer that was promoted last."""
    for number in range(4):
        cluster.failover(demoted="read-only")
        with psycopg.connect(cluster.admin_dsn) as admin:
            admin.execute("INSERT INTO t VALUES (%s)", [number])
    assert rows(cluster) == [0, 1, 2, 3]


def test_failovers_follow_one_another_under_load(cluster: LocalAurora):
    """Five, of both kinds; every acknowledged insert is there at the end, exactly once."""
    stop, acknowledged, attempted = threading.Event(), [], []

    def write(number: int) -> None:
        connection = None
        while not stop.is_set():
            n = number * 1_000_000 + len(attempted)
            try:
                connection = connection or connect(cluster, connect_timeout=5)
                attempted.append(n)
                connection.execute("INSERT INTO t VALUES (%s)", [n])
                acknowledged.append(n)
            except psycopg.Error:
                if connection is not None:
                    connection.close()
                connection = None
                time.sleep(0.01)
        if connection is not None:
            connection.close()

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, number) for number in range(3)]
        try:
            for demoted in ("read-only", "gone", "gone", "read-only", "gone"):
                before = len(acknowledged)
                until(lambda least=before + 20: len(acknowledged) > least)
                cluster.failover(demoted=demoted)
                if not cluster.has_reader:
                    cluster.add_reader()
            before = len(acknowledged)
            until(lambda: len(acknowledged) > before + 20)
        finally:
            stop.set()
        for writer in writers:
            writer.result()
    found = rows(cluster)
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found) <= set(attempted)


@pytest.mark.parametrize("instance", ["writer", "reader"])
@pytest.mark.parametrize(
    ("mode", "state"), [("fast", errors.AdminShutdown), ("immediate", psycopg.OperationalError)]
)
def test_an_instance_can_be_restarted(cluster: LocalAurora, mode, state, instance):
    """Its clients lose their links, others do not; what was committed is there afterwards."""
    reader = instance == "reader"
    with (
        closing(connect(cluster, reader=reader)) as lost,
        closing(connect(cluster, reader=not reader)) as kept,
    ):
        with closing(connect(cluster)) as writer:
            writer.execute("INSERT INTO t VALUES (1)")
        cluster.restart(mode, instance=instance)
        with pytest.raises(state):
            lost.execute("SELECT 1")
        assert kept.execute("SELECT 1").fetchone() == (1,)
    assert rows(cluster) == [1]
    until(lambda: rows(cluster, reader=True) == [1])


def test_a_restart_may_take_its_time(cluster: LocalAurora):
    """Meanwhile connecting is reset at once."""
    with ThreadPoolExecutor(1) as pool:
        restarting = pool.submit(cluster.restart, "immediate", down_s=0.6)

        def is_down() -> bool:
            began = time.monotonic()
            try:
                connect(cluster).close()
            except psycopg.OperationalError:
                assert time.monotonic() - began < 0.5
                return True
            return False

        until(is_down)
        restarting.result()
    connect(cluster).close()


# connections


def test_connections_can_be_closed_without_a_word(cluster: LocalAurora):
    """By FIN: the client reads an end and no error of the server's."""
    with closing(connect(cluster)) as connection, closing(connect(cluster)) as other:
        assert cluster.cut_connections("close") == 2
        assert cluster.open_connections == 0
        readable, _, _ = select.select([connection.fileno()], [], [], 5)
        assert readable
        with pytest.raises(psycopg.OperationalError, match=r"(?i)unexpected|EOF"):
            connection.execute("SELECT 1")
        cluster.cut_connections("reset")
        other.close()


@pytest.mark.parametrize("keep_sessions", [False, True])
def test_connections_can_fall_silent_for_ever(cluster: LocalAurora, keep_sessions):
    """Nothing comes back on those that were open; new ones work; locks as asked for."""
    with closing(connect(cluster)) as silent:
        silent.execute("BEGIN; LOCK TABLE t")
        assert cluster.silence_connections(keep_sessions=keep_sessions) == 1
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(silent.execute, "SELECT 1")
            with closing(connect(cluster)) as fresh:
                fresh.execute("SET lock_timeout = '500ms'")
                if keep_sessions:
                    with pytest.raises(errors.LockNotAvailable):
                        fresh.execute("INSERT INTO t VALUES (1)")
                else:
                    fresh.execute("INSERT INTO t VALUES (1)")
            assert not asking.done()
            cluster.cut_connections()
            with pytest.raises(psycopg.OperationalError):
                asking.result()


@pytest.mark.parametrize("keep_sessions", [False, True])
def test_a_silent_link_may_end_as_by_the_clients_own_timeout(cluster: LocalAurora, keep_sessions):
    """Which no loopback device lets it reach; new connections are not concerned."""
    with closing(connect(cluster)) as silent:
        cluster.silence_connections(keep_sessions=keep_sessions, reset_after_s=0.5)
        began = time.monotonic()
        with closing(connect(cluster)) as fresh:
            with pytest.raises(psycopg.OperationalError):
                silent.execute("SELECT 1")
            assert 0.2 < time.monotonic() - began < 3
            assert fresh.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("in_block", [True, False])
def test_the_reply_to_a_commit_can_be_lost(cluster: LocalAurora, in_block):
    """The client sees a reset, the row is there; the next commit is answered."""
    cluster.drop_reply_of_commit()
    before = cluster.replies_dropped
    with closing(connect(cluster, autocommit=not in_block)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError):  # noqa: PT012 - by either statement
            connection.execute("INSERT INTO t VALUES (1)")
            connection.commit()
            pytest.fail("the commit was answered")
    assert cluster.replies_dropped == before + 1
    with closing(connect(cluster)) as connection:
        connection.execute("INSERT INTO t VALUES (2)")
    assert rows(cluster) == [1, 2]


def test_a_rollback_is_answered_while_replies_are_lost(cluster: LocalAurora):
    """As is a commit of a transaction that had failed, which rolls back."""
    cluster.drop_reply_of_commit()
    before = cluster.replies_dropped
    with closing(connect(cluster)) as connection:
        connection.execute("BEGIN; INSERT INTO t VALUES (1)")
        connection.execute("ROLLBACK")
        connection.execute("BEGIN")
        with pytest.raises(errors.DivisionByZero):
            connection.execute("SELECT 1 / 0")
        connection.execute("COMMIT")
    assert cluster.replies_dropped == before
    cluster.reset()
    assert rows(cluster) == []


def test_a_pipelines_commit_can_be_lost(cluster: LocalAurora):
    """In which the answers come together."""
    cluster.drop_reply_of_commit()
    with closing(connect(cluster)) as connection, pytest.raises(psycopg.OperationalError):
        insert_in_pipeline(connection, 3)
    assert rows(cluster) == [0, 1, 2]


def test_new_connections_can_be_throttled(cluster: LocalAurora):
    """So many within a second; those above are refused as a bad token is."""
    cluster.connections_per_s = 3
    before = cluster.refusals
    for _ in range(3):
        connect(cluster).close()
    with pytest.raises(psycopg.OperationalError, match="PAM authentication failed"):
        connect(cluster)
    assert cluster.refusals - before == {"throttled": 1}
    cluster.connections_per_s = None
    connect(cluster).close()


def test_a_pause_lasts_until_the_resume(cluster: LocalAurora):
    """Connects are accepted and not answered meanwhile."""
    cluster.pause(resume_s=None)
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        connect(cluster, connect_timeout=2)
    with ThreadPoolExecutor(1) as pool:
        connecting = pool.submit(connect, cluster)
        with pytest.raises(TimeoutError):
            connecting.result(0.2)
        cluster.resume()
        connecting.result(5).close()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.failover(demoted="asleep"), "demoted is 'gone' or 'read-only', not 'asleep'"),
        (lambda c: c.restart("smart"), "mode is 'fast' or 'immediate', not 'smart'"),
        (lambda c: c.restart(instance="both"), "instance is 'writer' or 'reader', not 'both'"),
        (lambda c: c.failover(endpoint_delay_s=-1), "endpoint_delay_s .* not -1"),
        (lambda c: c.cut_connections("softly"), "how is 'reset' or 'close', not 'softly'"),
        (lambda c: c.drop_reply_of_commit(-1), "count .* not -1"),
        (lambda _: LocalAurora(readers=2), "readers .* from 0 to 1, not 2"),
    ],
)
def test_a_wrong_argument_changes_nothing(cluster: LocalAurora, call, words):
    """It is told with its value and what to pass."""
    with closing(connect(cluster)) as connection:
        with pytest.raises(ConfigurationError, match=words):
            call(cluster)
        assert not is_reader(connection)
