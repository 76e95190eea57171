"""What the parent's writes and its concurrency get wrong and ours right: the rows W1 to W12."""

import asyncio
import concurrent.futures
import datetime
import decimal
import gc
import random
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest
from langgraph.store.base import GetOp, PutOp

from langgraph_aurora_store.errors import InvalidItemError
from tests.support.parent_comparison import Side, side, traffic
from tests.support.store_kinds import Letters, Table

__all__ = ["side"]

POOL = {"min_size": 1, "max_size": 4}
LONG_S = 30.0
WHILE_S = 0.3
"""How long the parent's callers are watched while they wait for what never comes."""

SLOW_ROWS = """
CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END$$;
CREATE TRIGGER test_slow BEFORE INSERT OR UPDATE ON store
    FOR EACH ROW EXECUTE FUNCTION dawdle()
"""
DELETES_COUNTED = """
CREATE TABLE deletes (count bigint);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
    $$BEGIN INSERT INTO deletes SELECT count(*) FROM gone; RETURN NULL; END$$;
CREATE TRIGGER test_note AFTER DELETE ON store REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION note()
"""


class Held(Letters):
    """Answers when released, and fails on "broken"."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.released = threading.Event(), threading.Event()
        self.async_entered, self.async_released = asyncio.Event(), asyncio.Event()
        self.on_embed: Callable[[], object] = lambda: None
        self.failure: BaseException = RuntimeError("the model is away")

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.on_embed()
        if any("held" in text for text in texts):
            self.entered.set()
            assert self.released.wait(LONG_S)
        return super().embed_documents(texts)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        if any("broken" in text for text in texts):
            raise self.failure
        if any("held" in text for text in texts):
            self.async_entered.set()
            await self.async_released.wait()
        return Letters.embed_documents(self, texts)


@pytest.fixture
def model() -> Held:
    return Held()


def indexed(model: Letters) -> dict[str, Any]:
    return {"index": {"dims": model.dims, "embed": model, "fields": ["text"]}}


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(count)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False)


def results(futures: list[Future[Any]]) -> list[Any]:
    return [future.result(LONG_S) for future in futures]


# W1


@pytest.mark.parametrize("pool", [None, POOL], ids=["connection", "pool"])
def test_w1_a_get_returns_while_a_put_is_embedded(side: Side, model: Held, pool: Any) -> None:
    """W1: the parent holds its lock while embedding, and each call needs it."""
    with side.store(pool=pool, **indexed(model)) as store, threads(2) as executor:
        store.put(("a",), "k", {})
        put = executor.submit(store.put, ("a",), "slow", {"text": "held"})
        assert model.entered.wait(LONG_S)
        get = executor.submit(store.get, ("a",), "k")
        with side.only_ours(concurrent.futures.TimeoutError):
            assert get.result(LONG_S if side.is_ours else WHILE_S)
        model.released.set()
        results([put, get])


def test_w1_threads_embed_at_a_time(side: Side, model: Held) -> None:
    """W1: the parent's eight threads take turns at the model."""
    meeting = threading.Barrier(8)
    model.on_embed = lambda: meeting.wait(LONG_S if side.is_ours else WHILE_S)
    with side.store(pool=POOL, **indexed(model)) as store, threads(8) as executor:
        puts = [executor.submit(store.put, ("a",), f"{i}", {"text": "tea"}) for i in range(8)]
        with side.only_ours(threading.BrokenBarrierError):
            results(puts)
        concurrent.futures.wait(puts, LONG_S)


def test_w1_embedding_holds_no_connection(side: Side, model: Held) -> None:
    """W1: the parent's waiting threads hold the pool's connections, and others get none."""
    pool = {"min_size": 1, "max_size": 2, "timeout": 2 * WHILE_S}
    with side.store(pool=pool, **indexed(model)) as store, threads(4) as executor:
        puts = [executor.submit(store.put, ("a",), f"{i}", {"text": "held"}) for i in range(3)]
        assert model.entered.wait(LONG_S)
        with side.only_ours(psycopg_pool.PoolTimeout):
            for _ in range(3):
                executor.submit(store.sweep_ttl).result(LONG_S)
        model.released.set()
        concurrent.futures.wait(puts, LONG_S)


@pytest.mark.parametrize("pool", [None, POOL], ids=["connection", "pool"])
def test_w1_an_embedder_may_read_the_store(side: Side, model: Held, pool: Any) -> None:
    """W1: the parent's lock is not reentrant, so its thread waits for itself."""
    with side.store(pool=pool, **indexed(model)) as store, threads(1) as executor:
        model.on_embed = lambda: store.get(("a",), "k")
        put = executor.submit(store.put, ("a",), "k", {"text": "tea"})
        with side.only_ours(concurrent.futures.TimeoutError):
            put.result(LONG_S if side.is_ours else WHILE_S)
        if not side.is_ours:  # let the thread go
            model.on_embed = lambda: None
            store.lock.release()
            with suppress(Exception):
                put.result(LONG_S)


# W2, W3


@pytest.mark.parametrize("pool", [None, POOL], ids=["connection", "pool"])
async def test_w2_an_aget_returns_while_an_aput_is_embedded(
    side: Side, model: Held, pool: Any
) -> None:
    """W2: the parent has one batch under way in a store."""
    async with side.async_store(pool=pool, **indexed(model)) as store:
        await store.aput(("a",), "k", {})
        put = asyncio.create_task(store.aput(("a",), "slow", {"text": "held"}))
        await asyncio.wait_for(model.async_entered.wait(), LONG_S)
        with side.only_ours(TimeoutError):
            async with asyncio.timeout(LONG_S if side.is_ours else WHILE_S):
                assert await store.aget(("a",), "k")
        model.async_released.set()
        await put


async def test_w2_no_connection_is_held_while_the_model_is_awaited(side: Side, model: Held) -> None:
    """W2: the parent's pool of one has nothing left for anybody else."""
    pool = {"min_size": 1, "max_size": 1}
    async with side.async_store(pool=pool, **indexed(model)) as store:
        put = asyncio.create_task(store.aput(("a",), "slow", {"text": "held"}))
        await asyncio.wait_for(model.async_entered.wait(), LONG_S)
        with side.only_ours(psycopg_pool.PoolTimeout):
            async with store.conn.connection(LONG_S if side.is_ours else WHILE_S):
                pass
        model.async_released.set()
        await put


async def test_w3_one_bad_operation_fails_alone(side: Side) -> None:
    """W3: one NUL fails all that the parent has queued with it."""
    async with side.async_store(pool=POOL) as store:
        calls = [store.aput(("a",), f"{i}", {"v": i or "\0"}) for i in range(10)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(outcomes[0], Exception)
        with side.only_ours():
            assert outcomes[1:] == [None] * 9


async def test_w3_an_outage_of_the_model_leaves_a_read_working(side: Side, model: Held) -> None:
    """W3: on the parent a plain aget that is queued with it fails with the model's error."""
    async with side.async_store(pool=POOL, **indexed(model)) as store:
        await store.aput(("a",), "k", {})
        calls = store.aput(("a",), "x", {"text": "broken"}), store.aget(("a",), "k")
        put, got = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(put, RuntimeError)
        with side.only_ours():
            assert not isinstance(got, Exception)


async def test_w3_a_cancellation_from_the_model_ends_its_callers(side: Side, model: Held) -> None:
    """W3: it kills the parent's queue, and its callers wait for ever."""
    model.failure = asyncio.CancelledError()
    async with side.async_store(pool=POOL, **indexed(model)) as store:
        call = asyncio.create_task(store.aput(("a",), "k", {"text": "broken"}))
        done, _ = await asyncio.wait({call}, timeout=LONG_S if side.is_ours else WHILE_S)
        with side.only_ours():
            assert done
        call.cancel()


# W4


def test_w4_an_error_of_ours_undoes_the_batch(side: Side) -> None:
    """W4: the parent finds a value that is not JSON after it has sent the delete, and commits."""
    with side.store() as store:
        store.put(("a",), "k", {"v": 1})
        ops = [
            PutOp(("a",), "k", None),
            PutOp(("b",), "new", {"when": datetime.datetime.now(datetime.UTC)}),
        ]
        with pytest.raises((TypeError, InvalidItemError)):
            store.batch(ops)
        with side.only_ours():
            assert store.get(("a",), "k") is not None


# W5


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "there"])
def test_w5_batches_of_the_same_keys_do_not_deadlock(side: Side, *, is_new: bool) -> None:
    """W5: the parent writes rows in the order of the caller's list."""
    ops = [PutOp(("a",), f"k{i}", {"v": i}) for i in range(4)]
    with side.store() as store:
        if not is_new:
            store.batch(ops)
    side.sql(SLOW_ROWS)
    side.configure(deadlock_timeout="20ms")
    with (
        side.store(is_set_up=True) as one,
        side.store(is_set_up=True) as other,
        threads(2) as executor,
    ):
        calls = [executor.submit(one.batch, ops), executor.submit(other.batch, ops[::-1])]
        with side.only_ours(psycopg.errors.DeadlockDetected):
            results(calls)
        concurrent.futures.wait(calls, LONG_S)


def test_w5_reads_that_renew_do_not_deadlock(side: Side) -> None:
    """W5: nor in the order in which it reads."""
    gets = [GetOp((f"n{i}",), "k", refresh_ttl=True) for i in range(4)]
    with side.store() as store:
        store.batch([PutOp((f"n{i}",), "k", {}, ttl=10) for i in range(4)])
    side.sql("UPDATE store SET expires_at = now() + interval '1 min'")
    side.sql(SLOW_ROWS)
    side.configure(deadlock_timeout="20ms")
    with (
        side.store(is_set_up=True) as one,
        side.store(is_set_up=True) as other,
        threads(2) as executor,
    ):
        calls = [executor.submit(one.batch, gets), executor.submit(other.batch, gets[::-1])]
        with side.only_ours(psycopg.errors.DeadlockDetected):
            assert all(all(items) for items in results(calls))
        concurrent.futures.wait(calls, LONG_S)


# W6


def test_w6_a_sweep_waits_for_its_turn_on_a_single_connection(side: Side, model: Held) -> None:
    """W6: the parent's sweeper takes no lock, so it meets a batch on the same connection."""
    with side.store(**indexed(model)) as store, threads(2) as executor:
        store.put(("a",), "gone", {}, ttl=10)
        side.sql("UPDATE store SET expires_at = now() - interval '1 s'")
        put = executor.submit(store.put, ("a",), "k", {"text": "held"})
        assert model.entered.wait(LONG_S)
        swept = executor.submit(store.sweep_ttl)
        with side.only_ours():
            assert swept.result(LONG_S) == 1
        model.released.set()
        with suppress(Exception):
            put.result(LONG_S)


def test_w6_a_sweeper_ends_with_its_store(side: Side) -> None:
    """W6: the parent's thread keeps its store alive, and itself."""
    with side.store(ttl={"sweep_interval_minutes": 1000}) as opened:
        store = side.blocking_class(opened.conn, ttl={"sweep_interval_minutes": 1000})
        store.start_ttl_sweeper()
        sweeping = {t for t in threading.enumerate() if "sweeper" in t.name}
        gone, event = weakref.ref(store), getattr(store, "_ttl_stop_event", None)
        del store
        gc.collect()
        with side.only_ours():
            assert gone() is None
        if not side.is_ours:
            event.set()
        for thread in sweeping:
            thread.join(LONG_S)


def test_w6_a_sweep_goes_in_bounded_batches(side: Side) -> None:
    """W6: the parent deletes everything in one statement, however much it is."""
    with side.store() as store:
        store.batch([PutOp(("a",), f"{i}", {}, ttl=10) for i in range(2500)])
        side.sql("UPDATE store SET expires_at = now() - interval '1 s'")
        side.sql(DELETES_COUNTED)
        assert store.sweep_ttl() == 2500
    with side.only_ours(match="assert 2500"):
        assert side.sql("SELECT max(count) FROM deletes")[0][0] <= 1000


def test_w6_a_sweep_waits_for_nobody(side: Side) -> None:
    """W6: an item that somebody holds stops the parent's sweep."""
    with side.store() as store:
        for key in ("held", "free"):
            store.put(("a",), key, {}, ttl=10)
        side.sql("UPDATE store SET expires_at = now() - interval '1 s'")
        side.configure(lock_timeout="50ms")
    with (
        side.store(is_set_up=True) as store,
        psycopg.connect(side.database.owner_dsn) as holder,
    ):
        holder.execute("SELECT 1 FROM store WHERE key = 'held' FOR UPDATE")
        with side.only_ours(psycopg.errors.LockNotAvailable):
            assert store.sweep_ttl() == 1


# W7, W8, W9


def test_w7_a_batch_may_be_of_any_size(side: Side) -> None:
    """W7: 16,384 puts of four parameters are more than a statement of the parent's can have."""
    with side.store() as store, side.only_ours(psycopg.OperationalError, match="65535"):
        store.batch([PutOp(("a",), f"{i}", {}) for i in range(16_384)])
        assert store.count(("a",)) == 16_384


@pytest.mark.parametrize("name", ["put", "search"])
def test_w8_vectors_travel_as_binary_and_once(side: Side, name: str, tmp_path: Path) -> None:
    """W8: 1,536 dimensions are 6 KB; the parent sends their digits, in a search twice."""
    draw = random.Random(8)
    texts = {f"tea {i}": [draw.gauss(0, 1) for _ in range(1536)] for i in (1, 2)}
    index = {"dims": 1536, "embed": Table(texts), "fields": ["text"]}
    with side.store(index=index) as store:
        work: dict[str, Callable[[int], object]] = {
            "put": lambda i: store.put(("a",), f"{i}", {"text": f"tea {i}"}),
            "search": lambda i: store.search(("a",), query=f"tea {i}"),
        }
        work[name](1)  # what is sent once, to prepare the statements
        sent = traffic(store.conn, tmp_path / "trace", lambda: work[name](2)).bytes_sent
    with side.only_ours():
        assert sent < 1536 * 4 + 2000


@pytest.mark.parametrize("reads", [1, 10, 300])
def test_w9_any_number_of_gets_is_one_round_trip(side: Side, reads: int, tmp_path: Path) -> None:
    """W9: the parent waits for each namespace in turn."""
    with side.store() as store:
        ops = [GetOp((f"n{i}",), "k", refresh_ttl=False) for i in range(reads)]
        store.batch(ops)
        trips = traffic(store.conn, tmp_path / "trace", lambda: store.batch(ops)).round_trips
    with side.only_ours():
        assert trips == 1


# W10


def test_w10_unchanged_text_is_not_embedded_again(side: Side) -> None:
    """W10: an agent that rewrites what it knows pays for it again on the parent."""
    model = Letters()
    with side.store(**indexed(model)) as store:
        for version in range(3):
            store.put(("a",), "k", {"text": "tea", "version": version})
    with side.only_ours():
        assert model.documents == [["tea"]]


def test_w10_equal_texts_are_embedded_once(side: Side) -> None:
    """W10: the parent sends each copy."""
    model = Letters()
    with side.store(**indexed(model)) as store:
        store.batch([PutOp(("a",), f"{i}", {"text": "tea"}) for i in range(5)])
    with side.only_ours():
        assert model.documents == [["tea"]]


# W11, W12


def test_w11_a_dollar_in_an_index_list_is_the_whole_value(side: Side) -> None:
    """W11: the parent takes it for the name of a field that is not there."""
    with side.store(**indexed(Letters())) as store:
        store.put(("a",), "k", {"v": "tea"}, index=["$"])
        with side.only_ours():
            assert [item.key for item in store.search(("a",), query="tea")] == ["k"]


def test_w11_a_path_that_is_no_list_is_refused(side: Side) -> None:
    """W11: the parent takes ``index="text"`` for four fields of one letter."""
    with (
        side.store(**indexed(Letters())) as store,
        side.only_ours(pytest.fail.Exception),
        pytest.raises(ValueError, match="index="),
    ):
        store.put(("a",), "k", {"text": "tea"}, index="text")


async def test_w11_a_key_that_is_a_number_is_found_again(side: Side) -> None:
    """W11: the parent's asyncio store writes it and cannot read it."""
    async with side.async_store() as store:
        with side.only_ours(AssertionError, psycopg.Error):
            await store.aput(("a",), 1, {"v": 1})
            assert await store.aget(("a",), 1)


@pytest.mark.parametrize(
    "value",
    [
        "\0",
        "\ud800",
        float("nan"),
        datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        uuid.UUID(int=1),
        decimal.Decimal(1),
    ],
    ids=repr,
)
def test_w12_a_value_that_cannot_be_stored_is_named(side: Side, value: object) -> None:
    """W12: the parent's errors name neither the item nor the field."""
    with side.store() as store, side.only_ours(AssertionError):
        with pytest.raises(Exception) as caught:
            store.put(("a", "b"), "the-key", {"field": [value]})
        assert isinstance(caught.value, ValueError)
        for part in ("'the-key'", "('a', 'b')", "field"):
            assert part in str(caught.value)
