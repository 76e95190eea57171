"""setup() by many at once, killed at any point, on tables that are in use."""

import contextlib
import itertools
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import errors

from langgraph_aurora_store.errors import SchemaError
from langgraph_aurora_store.sql.flow import Autocommit, Sleep, Transaction
from langgraph_aurora_store.sql.schema.definitions import as_text
from langgraph_aurora_store.sql.schema.drift import check
from langgraph_aurora_store.sql.schema.setup import setup
from langgraph_aurora_store.sql.store_tables import StoreTables
from tests.support.flow_runner import drive
from tests.support.relations import (
    THREE,
    WITH_VECTORS,
    advisory_locks,
    connect,
    index_definition,
    parent,
    relations,
    versions,
)

# Real processes, made from one that has imported all they need.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["tests.support.flow_runner", "langgraph_aurora_store.sql.schema.setup"]
)


def set_up(dsn, together):
    """What each process does: connect, wait for the others, and set up."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        together.wait()
        drive(setup(WITH_VECTORS), conn)


class Killed(BaseException):
    """What a killed process does not live to raise."""


@pytest.fixture
def owner(database):
    """A connection of the role that owns the database."""
    with connect(database.owner_dsn) as conn:
        yield conn


@pytest.fixture
def admin(database):
    """A connection of the superuser."""
    with connect(database.admin_dsn) as conn:
        yield conn


def until(conn, query, params=()):
    """Wait until a query finds something, and return it."""
    for _ in range(6000):
        if row := conn.execute(query, params).fetchone():
            return row
        conn.execute("SELECT pg_sleep(0.01)")
    raise AssertionError(query)


def assert_complete(conn, tables=WITH_VECTORS):
    """Everything is there and valid, and no lock is held."""
    made = relations(conn)
    drive(check(tables), conn)
    assert drive(setup(tables), conn)
    assert relations(conn) == made
    assert not conn.execute("SELECT 1 FROM pg_index WHERE NOT indisvalid").fetchall()
    assert advisory_locks(conn) == 0


@pytest.mark.parametrize("of_the_parent", [False, True], ids=["empty", "of the parent"])
def test_sixteen_processes_at_once_all_succeed(database, owner, of_the_parent):
    """Real processes, released together, on an empty database and on the parent's."""
    if of_the_parent:
        with parent(database.owner_dsn) as store:
            store.setup()
            store.put(("a",), "k", {"text": "hello"})
    together = processes.Barrier(16)
    started = [
        processes.Process(target=set_up, args=(database.owner_dsn, together)) for _ in range(16)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * 16
    assert_complete(owner)
    assert versions(owner, "vector_migrations") == [0, 1, 2]


def test_eight_threads_at_once_all_succeed(database, owner):
    """Each on a connection of its own, released together, on tables that lack our indexes."""
    drive(setup(WITH_VECTORS), owner)
    owner.execute("DROP INDEX store_vectors_prefix_idx, store_prefix_idx")
    together = threading.Barrier(8)

    def one(_):
        with connect(database.owner_dsn) as conn:
            together.wait()
            drive(setup(WITH_VECTORS), conn)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    assert_complete(owner)


def test_beside_the_parents_setup_ours_succeeds(database, owner):
    """The parent takes no lock and may fail, but ours tries again what it got in the way of."""
    together = threading.Barrier(6)

    def theirs(_):
        with parent(database.owner_dsn) as store:
            together.wait()
            with contextlib.suppress(psycopg.Error):
                store.setup()

    def ours(_):
        with connect(database.owner_dsn) as conn:
            together.wait()
            drive(setup(WITH_VECTORS), conn)

    with ThreadPoolExecutor(6) as pool:
        done = [pool.submit(job, n) for n, job in enumerate([theirs, ours] * 3)]
    for future in done:
        future.result()
    assert_complete(owner)


def dying(flow, after):
    """The flow, whose process is gone instead of asking for its n-th step."""
    step = next(flow)
    for _ in range(after):
        reply = yield step
        try:
            step = flow.send(reply)
        except StopIteration as stop:
            return stop.value
    flow.close()
    raise Killed


def failing(flow, after):
    """The flow, whose n-th step is done, but then answered with an error."""
    error = None
    reply = None
    with contextlib.suppress(StopIteration):
        for n in itertools.count():
            step = flow.throw(error) if error else flow.send(reply)
            reply = yield step
            error = errors.QueryCanceled("the n-th step failed") if n == after else None


def incomplete(conn, schema, start):
    """A schema in one of the states that setup() begins from."""
    tables = StoreTables(schema=schema, index=THREE)
    if start == "nothing":
        return tables
    drive(setup(tables), conn)
    if start == "no indexes":
        conn.execute(
            f"DROP INDEX {schema}.store_prefix_idx, {schema}.idx_store_expires_at,"
            f" {schema}.store_vectors_prefix_idx, {schema}.store_vectors_embedding_idx"
        )
        conn.execute(f"DELETE FROM {schema}.aurora_store_migrations")
    if start == "no columns":
        conn.execute(f"ALTER TABLE {schema}.store DROP COLUMN lifetime")
    return tables


@pytest.mark.parametrize("start", ["nothing", "no columns", "no indexes"])
def test_a_process_killed_at_any_step_leaves_what_the_next_completes(database, owner, start):
    """Its connection is gone before the n-th step, for each n until it gets to the end."""
    for n in range(100):
        tables = incomplete(owner, f"killed_{n}", start)
        with connect(database.owner_dsn) as conn:
            try:
                drive(dying(setup(tables), n), conn)
                break
            except Killed:
                pass
        drive(setup(tables), owner)
        assert_complete(owner, tables)
    assert n > 3


@pytest.mark.parametrize("start", ["nothing", "no columns", "no indexes"])
def test_a_failure_at_any_step_is_raised_and_unlocks(database, owner, start):
    """The driver's error comes out as it was, and the session keeps neither lock nor setting."""
    for n in range(100):
        tables = incomplete(owner, f"failed_{n}", start)
        with connect(database.owner_dsn, options="-c statement_timeout=90s") as conn:
            try:
                drive(failing(setup(tables), n), conn)
                break
            except errors.QueryCanceled as exc:
                reason = str(exc)
            assert reason == "the n-th step failed"
            assert advisory_locks(conn) == 0
            assert conn.execute("SHOW statement_timeout").fetchone() == ("90s",)
        drive(setup(tables), owner)
        assert_complete(owner, tables)
    assert n > 3


def test_a_process_killed_in_a_build_leaves_an_index_that_is_repaired(database, owner, admin):
    """kill -9 while the server builds: what it leaves invalid is dropped and built again."""
    drive(setup(WITH_VECTORS), owner)
    owner.execute("DROP INDEX store_vectors_embedding_idx")
    alone = processes.Barrier(1)
    process = processes.Process(target=set_up, args=(database.owner_dsn, alone))
    with connect(database.owner_dsn) as busy, busy.transaction():
        busy.execute("LOCK TABLE store_vectors IN ROW EXCLUSIVE MODE")  # a build waits for writers
        process.start()
        (pid,) = until(
            admin,
            "SELECT pid FROM pg_stat_activity JOIN pg_locks USING (pid)"
            " WHERE query LIKE 'CREATE INDEX CONCURRENTLY%%' AND NOT granted",
        )
        process.kill()
        process.join()
        admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
        until(
            admin, "SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", (pid,)
        )
    assert index_definition(owner, "store_vectors_embedding_idx") is None
    assert "store_vectors_embedding_idx" in {row[1] for row in relations(owner)}
    drive(setup(WITH_VECTORS), owner)
    assert index_definition(owner, "store_vectors_embedding_idx")
    assert_complete(owner)


@pytest.mark.parametrize(
    "index",
    [
        "store_prefix_idx",
        "idx_store_expires_at",
        "store_vectors_prefix_idx",
        "store_vectors_embedding_idx",
    ],
)
def test_an_invalid_index_recorded_as_done_is_rebuilt(owner, admin, index):
    """What counts is whether the index can be used, not what the record says."""
    drive(setup(WITH_VECTORS), owner)
    before = index_definition(owner, index)
    admin.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", (index,)
    )
    drive(setup(WITH_VECTORS), owner)
    assert index_definition(owner, index) == before


def test_setup_waits_for_its_turn_outside_the_server(database, owner):
    """A waiter polls: it holds no snapshot that the builder of an index would wait for."""
    drive(setup(WITH_VECTORS), owner)
    owner.execute("DROP INDEX store_prefix_idx")
    holder = setup(WITH_VECTORS)
    with connect(database.owner_dsn) as first:
        steps = []
        with pytest.raises(Killed):
            drive(dying(holder, 4), first, seen=steps)  # it has looked and has the lock
        assert advisory_locks(owner) == 1
        with ThreadPoolExecutor(1) as pool, connect(database.owner_dsn) as second:
            seen = []
            waiter = pool.submit(drive, setup(WITH_VECTORS), second, seen=seen)
            until(owner, "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%%try_advisory%%'")
            while len(seen) < 12:
                owner.execute("SELECT pg_sleep(0.01)")
                assert not waiter.done()
            assert not owner.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall()
            first.close()
            waiter.result()
    assert_complete(owner)


def hurried(flow, slept):
    """The flow, which gets its sleeps answered at once; ``slept`` gets their seconds."""
    reply = None
    with contextlib.suppress(StopIteration):
        while True:
            step = flow.send(reply)
            if isinstance(step, Sleep):
                slept.append(step.seconds)
                reply = None
            else:
                reply = yield step


def test_a_lock_left_behind_is_named_after_a_bounded_wait(database, owner):
    """The error says who holds the lock and how to end it; then setup() completes."""
    drive(setup(WITH_VECTORS), owner)
    owner.execute("DROP INDEX store_prefix_idx")
    slept = []
    with connect(database.owner_dsn, application_name="old-pooler") as holder:
        with pytest.raises(Killed):
            drive(dying(setup(WITH_VECTORS), 4), holder)  # it has looked and has the lock
        pid = holder.info.backend_pid
        with pytest.raises(SchemaError) as caught:
            drive(hurried(setup(WITH_VECTORS), slept), owner)
        assert f"pg_terminate_backend({pid})" in str(caught.value)
        assert "old-pooler" in str(caught.value)
        assert 120 <= sum(slept) < 125
        assert advisory_locks(owner) == 1  # the holder's alone
        owner.execute("SELECT pg_terminate_backend(%s)", (pid,))
        until(owner, "SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_locks WHERE pid = %s)", (pid,))
    drive(setup(WITH_VECTORS), owner)
    assert_complete(owner)


def test_a_holder_that_builds_an_index_is_waited_for_without_a_bound(database, owner, admin):
    """A large index takes hours: what is waited for is at work, so no time counts."""
    drive(setup(WITH_VECTORS), owner)
    owner.execute("DROP INDEX store_vectors_embedding_idx")
    slept = []
    with (
        ThreadPoolExecutor(2) as pool,
        connect(database.owner_dsn) as building,
        connect(database.owner_dsn) as waiting,
        connect(database.owner_dsn) as busy,
    ):
        with busy.transaction():
            busy.execute("LOCK TABLE store_vectors IN ROW EXCLUSIVE MODE")
            builder = pool.submit(drive, setup(WITH_VECTORS), building)
            until(admin, "SELECT 1 FROM pg_stat_progress_create_index")
            waiter = pool.submit(drive, hurried(setup(WITH_VECTORS), slept), waiting)
            while sum(slept) < 200 and not waiter.done():
                owner.execute("SELECT pg_sleep(0.01)")
            assert not waiter.done()
        builder.result()
        waiter.result()
    assert_complete(owner)


def test_limits_of_the_role_do_not_end_a_build(database, owner, admin):
    """A statement_timeout meant for queries would leave a large index invalid for ever."""
    drive(setup(WITH_VECTORS), owner)
    owner.execute("DROP INDEX store_vectors_embedding_idx")
    limits = "-c statement_timeout=300ms -c lock_timeout=300ms"
    with (
        ThreadPoolExecutor(1) as pool,
        connect(database.owner_dsn, options=limits) as limited,
        connect(database.owner_dsn) as busy,
    ):
        with busy.transaction():
            busy.execute("LOCK TABLE store_vectors IN ROW EXCLUSIVE MODE")
            builder = pool.submit(drive, setup(WITH_VECTORS), limited)
            until(
                admin,
                "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%%'"
                " AND wait_event_type = 'Lock' AND now() - query_start > interval '600 ms'",
            )
        builder.result()
        assert limited.execute("SHOW statement_timeout").fetchone() == ("300ms",)
        assert limited.execute("SHOW lock_timeout").fetchone() == ("300ms",)
    assert_complete(owner)


def test_a_table_in_use_is_not_blocked_for_long(database, owner, admin):
    """A new column waits in short turns: statements behind it are let through in between."""
    drive(setup(WITH_VECTORS), owner)
    owner.execute("ALTER TABLE store DROP COLUMN lifetime")
    with (
        ThreadPoolExecutor(1) as pool,
        connect(database.owner_dsn) as ours,
        connect(database.owner_dsn) as busy,
    ):
        with busy.transaction():
            busy.execute("SELECT count(*) FROM store")
            setting_up = pool.submit(drive, setup(WITH_VECTORS), ours)
            until(
                admin, "SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"
            )
            owner.execute("SELECT count(*) FROM store")  # behind it, and then served
            assert not setting_up.done()
        setting_up.result()
    assert_complete(owner)


def test_giving_up_says_what_was_in_the_way(owner):
    """A table that cannot be locked ends in an error with the last reason, not in a loop."""
    drive(setup(WITH_VECTORS), owner)
    owner.execute("ALTER TABLE store DROP COLUMN lifetime")
    flow = setup(WITH_VECTORS)
    with pytest.raises(SchemaError, match=r"store \(lifetime\).*too busy"):
        drive(without_the_column(flow), owner)
    assert advisory_locks(owner) == 0


def without_the_column(flow):
    """The flow with every ALTER TABLE refused, and no time passing."""
    step = next(flow)
    with contextlib.suppress(StopIteration):
        while True:
            if isinstance(step, Transaction) and "ALTER" in str([it.sql for it in step.statements]):
                step = flow.throw(errors.LockNotAvailable("too busy"))
            elif isinstance(step, (Transaction, Autocommit)):
                step = flow.send((yield step))
            else:
                step = flow.send(None)


def test_statement_text_keeps_percent_signs():
    """Text that is executed with parameters has its percent signs doubled."""
    assert as_text(psycopg.sql.Identifier("100%")) == '"100%%"'
