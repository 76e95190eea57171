"""Faults of the server and of links, which callers see none of."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest
from langgraph.store.base import GetOp, PutOp
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore, RetrySettings
from langgraph_aurora_store.errors import (
    ConfigurationError,
    ReadOnlyEndpointError,
    RetriesExhaustedError,
)
from langgraph_aurora_store.execution.retry import DEFAULT_RETRY, Attempts, Failure
from langgraph_aurora_store.sql.flow import Transaction
from tests.support.database import Database
from tests.support.lossy_link import LossyLink
from tests.support.store_kinds import CLUSTER_KINDS, Letters, Twin, opened

NS = ("notes",)
TEA, COFFEE = {"text": "likes tea"}, {"text": "likes coffee"}
BOTH = pytest.mark.parametrize("flavour", ["blocking", "asyncio"])

# The next calls of a trigger fail with an SQLSTATE; a sequence counts them, which no rollback does.
FAULTS = """
CREATE SEQUENCE faults;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('faults') <= {count} THEN RAISE EXCEPTION 'planned' USING ERRCODE = '{sqlstate}';
    END IF;
    RETURN NULL;
END $$;
ALTER FUNCTION fail() SECURITY DEFINER;
CREATE TRIGGER fail AFTER INSERT ON store
    FOR EACH STATEMENT EXECUTE FUNCTION fail()
"""


@pytest.fixture
def sql(database: Database) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database.admin_dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def model() -> Letters:
    return Letters()


@contextmanager
def other_client(database: Database) -> Iterator[AuroraStore]:
    """Another client's store, on a good link."""
    with AuroraStore.from_conn_string(database.owner_dsn) as store:
        yield store


@asynccontextmanager
async def on_link(
    flavour: str,
    link: LossyLink,
    model: Letters,
    *,
    size: int = 4,
    retry: RetrySettings | None = DEFAULT_RETRY,
) -> AsyncIterator[Twin]:
    """A store that is set up, on a pool through a link."""
    index: Any = {"dims": 8, "embed": model, "fields": ["text"]}
    kwargs = {"autocommit": True, "prepare_threshold": 0}
    if flavour == "blocking":
        with ConnectionPool(link.dsn, kwargs=kwargs, min_size=1, max_size=size) as pool:
            store = AuroraStore(pool, index=index, retry=retry)
            store.setup()
            yield Twin(store)
    else:
        async with AsyncConnectionPool(
            link.dsn, kwargs=kwargs, min_size=1, max_size=size, open=False
        ) as async_pool:
            async_store = AsyncAuroraStore(async_pool, index=index, retry=retry)
            await async_store.setup()
            yield Twin(async_store)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# lost replies


@BOTH
async def test_put_whose_reply_is_lost_succeeds_once(
    flavour: str, database: Database, model: Letters, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets its outcome; nothing is embedded again, and nothing is logged as lost."""
    with LossyLink(database.owner_dsn) as link:
        async with on_link(flavour, link, model) as store:
            await store.put(NS, "other", COFFEE)
            model.documents.clear()
            link.lose_next_commit()
            await store.put(NS, "k", TEA)
            assert link.lost == 1
            assert (await store.get(NS, "k")).value == TEA
            assert model.documents == [["likes tea"]]
    assert errors(caplog) == []


@BOTH
@pytest.mark.parametrize("later", [COFFEE, None], ids=["put", "delete"])
async def test_repeated_put_does_not_undo_a_later_write(
    flavour: str, later: dict[str, str] | None, database: Database, model: Letters
) -> None:
    """Another client wrote, or deleted, after the commit whose reply was lost."""
    with LossyLink(database.owner_dsn) as link, other_client(database) as other:
        async with on_link(flavour, link, model) as store:
            link.lose_next_commit(lambda: other.batch([PutOp(NS, "k", later)]))
            await store.put(NS, "k", TEA)
            assert link.lost == 1
            item = await store.get(NS, "k")
            assert (item and item.value) == later


@BOTH
async def test_repeated_delete_does_not_undo_a_later_put(
    flavour: str, database: Database, model: Letters
) -> None:
    """The key that another client put in the meantime stays."""
    with LossyLink(database.owner_dsn) as link, other_client(database) as other:
        async with on_link(flavour, link, model) as store:
            await store.put(NS, "k", TEA)
            link.lose_next_commit(lambda: other.put(NS, "k", COFFEE))
            await store.delete(NS, "k")
            assert link.lost == 1
            assert (await store.get(NS, "k")).value == COFFEE


@BOTH
async def test_delete_of_a_namespace_whose_reply_is_lost_tells_what_it_deleted(
    flavour: str, database: Database, model: Letters
) -> None:
    """The count is that of the commit; what another client put later stays."""
    with LossyLink(database.owner_dsn) as link, other_client(database) as other:
        async with on_link(flavour, link, model) as store:
            await store.batch([PutOp(NS, f"k{n}", TEA) for n in range(5)])
            link.lose_next_commit(lambda: other.put(NS, "later", COFFEE))
            assert await store.delete_namespace(NS) == 5
            assert link.lost == 1
            assert [item.key for item in await store.search(NS)] == ["later"]


@BOTH
async def test_sweep_whose_reply_is_lost_tells_what_it_deleted(
    flavour: str, database: Database, model: Letters, sql: psycopg.Connection
) -> None:
    """The count is that of the commit."""
    with LossyLink(database.owner_dsn) as link:
        async with on_link(flavour, link, model) as store:
            await store.batch([PutOp(NS, f"k{n}", TEA, ttl=60) for n in range(5)])
            sql.execute("UPDATE store SET expires_at = now()")
            link.lose_next_commit()
            assert await store.sweep_ttl() == 5
            assert link.lost == 1
            assert sql.execute("SELECT count(*) FROM store").fetchone() == (0,)


@BOTH
async def test_batch_whose_reply_is_lost_gives_the_same_rows(
    flavour: str, database: Database, model: Letters
) -> None:
    """Puts, a delete and reads, which see what was before the batch."""
    with LossyLink(database.owner_dsn) as link:
        async with on_link(flavour, link, model) as store:
            await store.batch([PutOp(NS, "a", COFFEE), PutOp(NS, "b", COFFEE)])
            link.lose_next_commit()
            found, *none = await store.batch(
                [GetOp(NS, "a"), PutOp(NS, "a", TEA), PutOp(NS, "b", None), PutOp(NS, "c", TEA)]
            )
            assert link.lost == 1
            assert found.value == COFFEE
            assert none == [None, None, None]
            assert sorted(item.key for item in await store.search(NS)) == ["a", "c"]


async def test_group_whose_reply_is_lost_is_embedded_once(
    database: Database, model: Letters, caplog: pytest.LogCaptureFixture
) -> None:
    """Every one of forty callers gets its outcome."""
    with LossyLink(database.owner_dsn) as link:
        async with on_link("asyncio", link, model) as store:
            link.lose_next_commit()
            await asyncio.gather(*(store.put(NS, f"k{n}", {"text": f"t{n}"}) for n in range(40)))
            assert link.lost == 1
            assert sum(map(len, model.documents)) == 40
            assert await store.count(NS) == 40
    assert errors(caplog) == []


@BOTH
async def test_repetition_waits_for_an_attempt_that_is_still_under_way(
    flavour: str, database: Database, model: Letters, sql: psycopg.Connection
) -> None:
    """The first attempt waits for a row lock when its link is lost, and is committed later."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with LossyLink(database.owner_dsn) as link, psycopg.connect(database.admin_dsn) as holder:
        async with on_link(flavour, link, model) as store:
            await store.put(NS, "k", COFFEE)
            holder.execute("SELECT FROM store WHERE key = 'k' FOR UPDATE")

            def disturb() -> None:
                until(lambda: sql.execute(waiting).fetchone() == (1,))
                link.abandon_clients()
                until(lambda: sql.execute(waiting).fetchone() == (2,))
                holder.rollback()

            thread = threading.Thread(target=disturb)
            thread.start()
            await store.put(NS, "k", TEA)
            await asyncio.to_thread(thread.join)
            assert (await store.get(NS, "k")).value == TEA
            (numbers,) = sql.execute("SELECT array_agg(number) FROM aurora_store_writes").fetchone()
            assert len(numbers) == 1  # the repetition has left no mark of its own


@BOTH
async def test_lost_reply_without_a_table_of_marks_is_an_error(
    flavour: str, database: Database, model: Letters, sql: psycopg.Connection
) -> None:
    """To repeat the write could undo another's: the caller is told instead."""
    with LossyLink(database.owner_dsn) as link:
        async with on_link(flavour, link, model) as store:
            sql.execute("DROP TABLE aurora_store_writes")
            with pytest.raises(psycopg.Error):  # of a table that it had found
                await store.put(NS, "first", TEA)
            await store.put(NS, "first", TEA)
            link.lose_next_commit()
            with pytest.raises(psycopg.OperationalError):
                await store.put(NS, "k", TEA)
            assert link.lost == 1


# marks


@BOTH
async def test_there_is_one_mark_for_each_connection(
    flavour: str, database: Database, model: Letters, sql: psycopg.Connection
) -> None:
    """However many writes it makes; those of connections long gone are deleted."""
    with LossyLink(database.owner_dsn) as link:
        async with on_link(flavour, link, model, size=1) as store:
            week_ago = time.time_ns() - 8 * 24 * 3600 * 10**9
            sql.execute("INSERT INTO aurora_store_writes VALUES (1, %s)", (week_ago,))
            for n in range(20):
                await store.put(NS, f"k{n}", TEA)
            rows = sql.execute("SELECT writer FROM aurora_store_writes").fetchall()
            assert len(rows) == 1
            assert rows != [(1,)]


@pytest.mark.parametrize("kind", CLUSTER_KINDS)
async def test_first_write_of_a_connection_may_be_a_delete_of_a_namespace(
    kind: str, database: Database
) -> None:
    """Its transaction also deletes old marks, which its count is not mixed up with."""
    async with opened(kind, database.cluster, database.name) as store:
        await store.setup()
        assert await store.delete_namespace(NS) == 0
        await store.put(NS, "k", TEA)
        await store.close()
        assert await store.delete_namespace(NS) == 1


# errors of the server


@BOTH
@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "57P01", "08006", "25006", "57P05"])
async def test_transient_error_is_not_seen_by_the_caller(
    flavour: str,
    sqlstate: str,
    database: Database,
    model: Letters,
    sql: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A put fails three times on the server, and succeeds; its text is embedded once."""
    with LossyLink(database.owner_dsn) as link:
        async with on_link(flavour, link, model) as store:
            sql.execute(FAULTS.format(count=3, sqlstate=sqlstate))
            await store.put(NS, "k", TEA)
            assert sql.execute("SELECT last_value FROM faults").fetchone() == (4,)
            assert (await store.get(NS, "k")).value == TEA
            assert model.documents == [["likes tea"]]
    assert errors(caplog) == []


async def test_group_on_a_demoted_writer_is_embedded_once(
    database: Database, model: Letters, sql: psycopg.Connection
) -> None:
    """25006 is every operation's fault: none is run alone, and none embedded again."""
    with LossyLink(database.owner_dsn) as link:
        async with on_link("asyncio", link, model) as store:
            sql.execute(FAULTS.format(count=3, sqlstate="25006"))
            await asyncio.gather(*(store.put(NS, f"k{n}", {"text": f"t{n}"}) for n in range(50)))
            assert len(model.documents) == 1
            assert sum(map(len, model.documents)) == 50
            assert await store.count(NS) == 50


@BOTH
async def test_error_that_does_not_pass_is_raised_at_once(
    flavour: str, database: Database, model: Letters, sql: psycopg.Connection
) -> None:
    """A check that fails is tried once."""
    with LossyLink(database.owner_dsn) as link:
        async with on_link(flavour, link, model) as store:
            sql.execute(FAULTS.format(count=3, sqlstate="23514"))
            with pytest.raises(psycopg.errors.CheckViolation):
                await store.put(NS, "k", TEA)
            assert sql.execute("SELECT last_value FROM faults").fetchone() == (1,)


@BOTH
async def test_backend_that_is_killed_at_work_costs_its_caller_nothing(
    flavour: str, database: Database, model: Letters, sql: psycopg.Connection
) -> None:
    """It waits for a row when it is ended; the write is made on another connection."""
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with LossyLink(database.owner_dsn) as link, psycopg.connect(database.admin_dsn) as holder:
        async with on_link(flavour, link, model) as store:
            await store.put(NS, "k", COFFEE)
            holder.execute("SELECT FROM store WHERE key = 'k' FOR UPDATE")

            def disturb() -> None:
                until(lambda: sql.execute(waiting).fetchone())
                sql.execute(f"SELECT pg_terminate_backend(pid) FROM ({waiting}) AS w")
                holder.rollback()

            thread = threading.Thread(target=disturb)
            thread.start()
            await store.put(NS, "k", TEA)
            await asyncio.to_thread(thread.join)
            assert (await store.get(NS, "k")).value == TEA


# settings and limits


@pytest.mark.parametrize("kind", CLUSTER_KINDS)
async def test_deadline_ends_with_what_was_tried(
    kind: str, database: Database, sql: psycopg.Connection
) -> None:
    """How often, for how long, and the last reason with its SQLSTATE."""
    settings: Any = {"retry": RetrySettings(deadline_s=0.4)}
    async with opened(kind, database.cluster, database.name, **settings) as store:
        await store.setup()
        sql.execute(FAULTS.format(count=10**9, sqlstate="40001"))
        began = time.monotonic()
        with pytest.raises(
            RetriesExhaustedError, match=r"gave up a write after \d+ attempts within 0\.4"
        ) as e:
            await store.put(NS, "k", TEA)
        assert time.monotonic() - began < 5
        assert e.value.sqlstate == "40001"
        assert "SerializationFailure" in str(e.value)
        assert "reply" not in str(e.value)
        assert sql.execute("SELECT last_value > 2 FROM faults").fetchone() == (True,)


@BOTH
async def test_write_that_stays_uncertain_is_called_so(
    flavour: str, database: Database, sql: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Its reply was lost, and no later attempt got through: in the error and in the log."""
    short = RetrySettings(deadline_s=0.5)
    with LossyLink(database.owner_dsn) as link:
        async with on_link(flavour, link, Letters(), retry=short) as store:
            await store.put(NS, "k", COFFEE)
            link.lose_next_commit(link.refuse)
            with pytest.raises(RetriesExhaustedError, match="may have taken effect") as raised:
                await store.put(NS, "k", TEA)
            assert raised.value.may_have_written
    (message,) = errors(caplog)
    assert message.startswith("perhaps not written: put of namespace ('notes',), key 'k'")


@BOTH
async def test_write_whose_reply_is_lost_without_retries_is_called_uncertain(
    flavour: str, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """It was written, and the log does not deny it."""
    with LossyLink(database.owner_dsn) as link:
        async with on_link(flavour, link, Letters(), retry=None) as store:
            link.lose_next_commit()
            with pytest.raises(psycopg.OperationalError):
                await store.put(NS, "k", TEA)
            assert (await store.get(NS, "k")).value == TEA
    (message,) = errors(caplog)
    assert message.startswith("perhaps not written: put of namespace ('notes',), key 'k'")


@pytest.mark.parametrize("kind", CLUSTER_KINDS)
async def test_no_retries_raise_the_first_error(
    kind: str, database: Database, sql: psycopg.Connection
) -> None:
    """``retry=None`` leaves it to the caller."""
    settings: Any = {"retry": None}
    async with opened(kind, database.cluster, database.name, **settings) as store:
        await store.setup()
        sql.execute(FAULTS.format(count=1, sqlstate="40001"))
        with pytest.raises(psycopg.errors.SerializationFailure):
            await store.put(NS, "k", TEA)
        await store.put(NS, "k", TEA)
        assert sql.execute("SELECT count(*) FROM aurora_store_writes").fetchone() == (0,)


@pytest.mark.parametrize("kind", CLUSTER_KINDS)
async def test_role_that_reads_only_is_refused_at_once(
    kind: str, database: Database, sql: psycopg.Connection
) -> None:
    """A setting of the role does not pass: the error says so, and nothing is tried again."""
    async with opened(kind, database.cluster, database.name) as store:
        await store.setup()
        user = database.cluster.user
        sql.execute(
            f'ALTER ROLE "{user}" IN DATABASE "{database.name}"'
            " SET default_transaction_read_only = on"
        )
        await store.close()
        began = time.monotonic()
        with pytest.raises(ReadOnlyEndpointError, match="default_transaction_read_only"):
            await store.put(NS, "k", TEA)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("deadline_s", [0, -1, float("nan"), "30", None, True])
def test_deadline_that_is_none_is_refused(deadline_s: Any) -> None:
    """Before anything is tried, with the value."""
    with pytest.raises(ConfigurationError, match="deadline_s"):
        RetrySettings(deadline_s=deadline_s)


@pytest.mark.parametrize("cls", [AuroraStore, AsyncAuroraStore])
def test_retry_of_another_kind_is_refused(cls: Any, database: Database) -> None:
    """A number of seconds is not what it takes."""
    with pytest.raises(ConfigurationError, match=r"RetrySettings\(\.\.\.\)"):
        cls.from_cluster("db", user="u", database="d", region="us-east-1", retry=30)


def test_pauses_grow_to_half_a_second_with_jitter_inside_the_deadline() -> None:
    """The first is 50 ms at most; none reaches beyond the deadline."""
    now, bounds = [0.0], []

    def spread(low: float, high: float) -> float:
        bounds.append((low, high))
        return high

    attempts = Attempts(RetrySettings(deadline_s=3), clock=lambda: now[0], spread=spread)
    failure = Failure(psycopg.errors.SerializationFailure("x"), is_closed=False)

    def go_on() -> None:
        while True:
            now[0] += attempts.retry_after_s(failure, Transaction((), writes=True))
            assert attempts.left() == {"timeout_s": pytest.approx(3 - now[0])}

    with pytest.raises(RetriesExhaustedError, match="within 3 s"):
        go_on()
    assert bounds[:6] == [
        (0.025, 0.05),
        (0.05, 0.1),
        (0.1, 0.2),
        (0.2, 0.4),
        (0.25, 0.5),
        (0.25, 0.5),
    ]
    assert 2.5 < now[0] < 3
