"""Expired items are swept in bounded batches, by one process at a time."""

import pytest

from langgraph_aurora_store.sql.expiry_sweep import sweep
from langgraph_aurora_store.sql.flow import Transaction
from langgraph_aurora_store.sql.schema.setup import setup
from langgraph_aurora_store.sql.store_tables import StoreTables
from tests.support.flow_runner import drive
from tests.support.relations import WITH_VECTORS, connect


@pytest.fixture
def owner(database):
    """The owner's connection to a database that is set up."""
    with connect(database.owner_dsn) as conn:
        drive(setup(WITH_VECTORS), conn)
        yield conn


def put(conn, count, *, prefix, minutes, table="store"):
    """Items that expire so many minutes from now."""
    conn.execute(
        f"INSERT INTO {table} (prefix, key, value, expires_at)"
        " SELECT %s, i::text, '{}', now() + %s * interval '1 minute' FROM generate_series(1, %s) i",
        (prefix, minutes, count),
    )


def left(conn, table="store"):
    """How many items each namespace holds."""
    return dict(conn.execute(f"SELECT prefix, count(*) FROM {table} GROUP BY prefix").fetchall())


def test_what_has_expired_goes_and_the_rest_stays(owner):
    """With its vectors; items without an expiry are never touched."""
    put(owner, 5, prefix="old", minutes=-1)
    put(owner, 3, prefix="young", minutes=1)
    owner.execute("INSERT INTO store (prefix, key, value) VALUES ('kept', '1', '{}')")
    owner.execute(
        "INSERT INTO store_vectors (prefix, key, field_name) SELECT prefix, key, '$' FROM store"
    )
    assert drive(sweep(WITH_VECTORS), owner) == 5
    assert left(owner) == left(owner, "store_vectors") == {"young": 3, "kept": 1}


def test_what_expires_at_this_moment_goes(owner):
    """No read returns it from then on."""
    with owner.transaction():
        put(owner, 1, prefix="now", minutes=0)
        (statement,) = next(sweep(WITH_VECTORS)).statements
        assert owner.execute(*statement).fetchone() == (1,)


def test_nothing_expired_is_nothing_swept(owner):
    """One round trip, and no row touched."""
    put(owner, 3, prefix="young", minutes=1)
    steps = []
    assert drive(sweep(WITH_VECTORS), owner, seen=steps) == 0
    assert len(steps) == 1


def test_a_batch_is_a_transaction_of_bounded_size(owner):
    """Twenty-five in batches of ten are three transactions, and the count is of all."""
    put(owner, 25, prefix="old", minutes=-1)
    steps = []
    assert drive(sweep(WITH_VECTORS, 10), owner, seen=steps) == 25
    assert [type(step) for step in steps] == [Transaction] * 3


def test_the_longest_expired_go_first(owner):
    """A sweep that is interrupted has done the oldest part of its work."""
    put(owner, 5, prefix="old", minutes=-1)
    put(owner, 5, prefix="older", minutes=-9)
    flow = sweep(WITH_VECTORS, 5)
    (statement,) = next(flow).statements
    owner.execute(*statement)
    assert left(owner) == {"old": 5}


def test_items_that_somebody_holds_are_left_for_the_next_sweep(database, owner):
    """The sweeper waits for no lock, so it cannot take part in a deadlock."""
    put(owner, 5, prefix="old", minutes=-1)
    with connect(database.owner_dsn) as busy, busy.transaction():
        busy.execute("SELECT FROM store WHERE key = '3' FOR NO KEY UPDATE")
        assert drive(sweep(WITH_VECTORS), owner) == 4
    assert drive(sweep(WITH_VECTORS), owner) == 1


def test_one_process_sweeps_at_a_time(database, owner):
    """Who finds another at it has nothing to do, and does not wait."""
    put(owner, 20, prefix="old", minutes=-1)
    with connect(database.owner_dsn) as other, other.transaction():
        (statement,) = next(sweep(WITH_VECTORS, 10)).statements
        assert other.execute(*statement).fetchone() == (10,)
        assert drive(sweep(WITH_VECTORS, 10), owner) == 0
    assert drive(sweep(WITH_VECTORS, 10), owner) == 10


def test_each_schema_has_a_turn_of_its_own(database, owner):
    """A sweep of one store does not keep another one of the same database waiting."""
    here, there = StoreTables(schema='it\'s "1%"'), StoreTables(schema='it\'s "2%"')
    for tables in (here, there):
        drive(setup(tables), owner)
        put(owner, 5, prefix="old", minutes=-1, table=tables.store)
    with connect(database.owner_dsn) as other, other.transaction():
        (statement,) = next(sweep(here)).statements
        other.execute(*statement)
        assert drive(sweep(there), owner) == 5
    assert left(owner, here.store.replace("%%", "%")) == {}
    assert left(owner, there.store.replace("%%", "%")) == {}
