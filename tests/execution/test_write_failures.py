"""What a store logs of writes that failed, beside the exception."""

import asyncio
import logging
import pickle
import traceback
from typing import Any

import psycopg
import pytest
from langgraph.store.base import GetOp, InvalidNamespaceError, Op, PutOp, SearchOp

from langgraph_aurora_store import AsyncAuroraStore
from langgraph_aurora_store.errors import InvalidItemError, PoolTimeoutError
from tests.support.database import Database
from tests.support.store_kinds import KINDS, Letters, opened

SECRET = "the-cat-is-called-Mog"


def lost(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def outcomes(store: AsyncAuroraStore, *ops: Op) -> list[Any]:
    """What each of several callers of one event-loop iteration got."""
    return await asyncio.gather(*(store.abatch([op]) for op in ops), return_exceptions=True)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


async def test_failed_batch_is_logged_once_with_the_addresses_of_its_writes(
    kind: str, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """One record names each put and delete with namespace and key, and no value."""
    ops = [
        PutOp(("notes", "ada"), "fine", {"text": SECRET}),
        PutOp(("notes", "ada"), "gone", None),
        GetOp(("notes", "other"), "read"),
        PutOp(("notes", "grace"), "bad", {"text": SECRET, "at": object()}),
    ]
    async with opened(kind, database.cluster, database.name) as store:
        await store.setup()
        with pytest.raises(InvalidItemError):
            await store.batch(ops)
    (message,) = lost(caplog)
    assert "put of namespace ('notes', 'ada'), key 'fine'" in message
    assert "delete of namespace ('notes', 'ada'), key 'gone'" in message
    assert "put of namespace ('notes', 'grace'), key 'bad'" in message
    assert "other" not in message
    assert SECRET not in caplog.text


async def test_server_error_is_named_by_class_and_sqlstate_without_the_row(
    kind: str, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A server's message may quote the row: neither the log nor the exception repeats it."""
    async with opened(kind, database.cluster, database.name) as store:
        await store.setup()
        with psycopg.connect(database.admin_dsn, autocommit=True) as conn:
            conn.execute(
                f"ALTER TABLE store ADD CONSTRAINT quiet CHECK (value ->> 'text' <> '{SECRET}')"
            )
        with pytest.raises(psycopg.errors.CheckViolation, match='"quiet"') as raised:
            await store.put(("notes",), "k", {"text": SECRET})
    assert raised.value.diag.constraint_name == "quiet"
    assert raised.value.sqlstate == "23514"
    shown = "".join(traceback.format_exception(raised.value))
    assert SECRET not in shown + repr(pickle.dumps(raised.value))
    (message,) = lost(caplog)
    assert message.endswith("reason: CheckViolation (SQLSTATE 23514)")
    assert SECRET not in "".join(lost(caplog))


RAISES = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION 'no %%', new.value;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON store FOR EACH ROW EXECUTE FUNCTION refuse()
"""
RAISES_INTEGRITY, RAISES_FOR_A_RETRY = (
    RAISES.replace("new.value;", f"new.value USING ERRCODE = '{sqlstate}';")
    for sqlstate in ("23514", "40001")
)
READS = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM (new.value ->> 'text')::uuid; RETURN new;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON store FOR EACH ROW EXECUTE FUNCTION refuse()
"""


@pytest.mark.parametrize(
    ("trigger", "error"),
    [
        (RAISES, psycopg.errors.RaiseException),
        (RAISES_INTEGRITY, psycopg.errors.CheckViolation),
        (RAISES_FOR_A_RETRY, psycopg.errors.SerializationFailure),
        (READS, psycopg.errors.InvalidTextRepresentation),
    ],
)
async def test_trigger_that_quotes_a_value_does_not_show_it(
    kind: str,
    trigger: str,
    error: type[psycopg.Error],
    database: Database,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Class and SQLSTATE are left of a message that the database made of the value."""
    async with opened(kind, database.cluster, database.name, retry=None) as store:
        await store.setup()
        with psycopg.connect(database.admin_dsn, autocommit=True) as conn:
            conn.execute(trigger.replace("%%", "%"))
        with pytest.raises(error) as raised:
            await store.put(("notes",), "k", {"text": SECRET})
    shown = "".join(traceback.format_exception(raised.value))
    assert SECRET not in shown + repr(pickle.dumps(raised.value)) + "".join(lost(caplog))


async def test_long_names_are_cut_in_the_log(
    kind: str, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A key of 267 kB is refused in a line that can be read."""
    async with opened(kind, database.cluster, database.name) as store:
        await store.setup()
        key, label = "k" * 267_000, "l" * 267_000
        with pytest.raises(Exception, match="bytes"):
            await store.batch([PutOp(("notes", label), key, {"text": "a"})])
    (message,) = lost(caplog)
    assert 100 < len(message) < 2_000


@pytest.mark.parametrize(
    "namespace",
    [("l" * 1000,) * 300, ("l" * 267_000, "\0"), ("l" * 267_000, "a.b"), ("l" * 267_000, 5)],
)
async def test_so_are_namespaces(
    kind: str, namespace: Any, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Of many labels, or refused by LangGraph's own check; in the error too."""
    async with opened(kind, database.cluster, database.name) as store:
        await store.setup()
        with pytest.raises((InvalidItemError, InvalidNamespaceError)) as raised:
            await store.batch([PutOp(namespace, "k", {"text": "a"})])
        assert len(str(raised.value)) < 1_000
        with pytest.raises(InvalidNamespaceError) as raised:
            await store.delete_namespace((*namespace, "\0"))
        assert len(str(raised.value)) < 1_000
    (message,) = lost(caplog)
    assert 100 < len(message) < 2_000


async def test_failed_read_is_not_reported_as_a_lost_write(
    kind: str, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost by a search that means nothing."""
    async with opened(kind, database.cluster, database.name) as store:
        await store.setup()
        with pytest.raises(ValueError, match="unknown operator"):
            await store.batch([SearchOp(("notes",), filter={"n": {"$near": 1}})])
    assert lost(caplog) == []


async def test_of_a_thousand_lost_writes_ten_are_named_and_the_rest_counted(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A record stays short, however large the batch."""
    ops = [PutOp(("notes",), f"k{n}", {"n": float("nan")}) for n in range(1000)]
    async with opened("blocking-pool", database.cluster, database.name) as store:
        await store.setup()
        with pytest.raises(InvalidItemError):
            await store.batch(ops)
    (message,) = lost(caplog)
    assert message.count("put of") == 10
    assert "; and 990 more; reason:" in message


async def test_neighbours_of_a_failed_write_in_one_iteration_are_not_reported(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Their group failed first, but they were written: only the bad one is lost."""
    async with opened("asyncio-pool", database.cluster, database.name) as twin:
        await twin.setup()
        good, bad, also_good = await outcomes(
            twin.store,
            PutOp(("notes",), "good", {"text": "a"}),
            PutOp(("notes",), "bad", {"at": object()}),
            PutOp(("notes",), "also-good", {"text": "b"}),
        )
        assert good == also_good == [None]
        assert isinstance(bad, InvalidItemError)
        assert await twin.get(("notes",), "good") is not None
    (message,) = lost(caplog)
    assert "key 'bad'" in message
    assert "good" not in message


async def test_write_that_fails_after_its_caller_left_is_reported(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on for a neighbour that stays; when it fails, no caller would see the error."""
    embedding = asyncio.Event()
    fail = asyncio.Event()

    class Down(Letters):
        async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
            embedding.set()
            await fail.wait()
            raise PoolTimeoutError("down")

    index = {"dims": 8, "embed": Down(), "fields": ["text"]}
    async with opened("asyncio-pool", database.cluster, database.name, index=index) as twin:
        await twin.setup()
        put = twin.store.aput
        leaves = asyncio.create_task(put(("notes",), "left", {"text": SECRET}))
        stays = asyncio.create_task(put(("notes",), "stays", {"text": SECRET}))
        await embedding.wait()
        leaves.cancel()
        await asyncio.wait({leaves})
        assert lost(caplog) == []
        fail.set()
        with pytest.raises(PoolTimeoutError):
            await stays
    assert sorted("key 'left'" in message for message in lost(caplog)) == [False, True]
