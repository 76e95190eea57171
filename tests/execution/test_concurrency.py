"""Many callers at once: none waits for another's embedding, or for ever, or is left in doubt."""

import asyncio
import contextlib
import gc
import random
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from langgraph.store.base import GetOp, ListNamespacesOp, PutOp, SearchOp
from psycopg_pool import AsyncConnectionPool

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore, PoolSettings
from langgraph_aurora_store.errors import InvalidItemError, PoolFullError, PoolTimeoutError
from langgraph_aurora_store.local import LocalAurora
from tests.support.database import Database
from tests.support.store_kinds import (
    DIMS,
    KINDS,
    PIPELINE_KINDS,
    Letters,
    Twin,
    arguments,
    opened,
    owner_dsn,
    pool_of,
    set_up,
)

DATABASE = "concurrency"
LONG_S = 30.0
"""Longer than anything here takes, whatever the machine; what hangs fails by it."""
BLOCKING = [kind for kind in KINDS if kind.startswith("blocking")]
ASYNCIO = [kind for kind in KINDS if kind.startswith("asyncio")]

# Each row written takes a while, so that transactions are sure to meet half-way.
SLOW_ROWS = """
CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END$$;
CREATE TRIGGER test_slow BEFORE INSERT OR UPDATE ON store
    FOR EACH ROW EXECUTE FUNCTION dawdle()
"""
# The server refuses one key: at once, with its vectors, or not before the end of the transaction.
REFUSALS = {
    "item": """
        ALTER TABLE store ADD CONSTRAINT test_refusal CHECK (key <> 'bad')
    """,
    "vector": """
        ALTER TABLE store_vectors ADD CONSTRAINT test_refusal CHECK (key <> 'bad')
    """,
    "commit": """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN RAISE check_violation USING MESSAGE = 'refused'; END$$;
        CREATE CONSTRAINT TRIGGER test_refusal AFTER INSERT OR UPDATE ON store
            DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (NEW.key = 'bad') EXECUTE FUNCTION refuse()
    """,
}
CLEAN = """
DROP TRIGGER IF EXISTS test_slow ON store;
DROP TRIGGER IF EXISTS test_refusal ON store;
DROP FUNCTION IF EXISTS dawdle, refuse;
ALTER TABLE store DROP CONSTRAINT IF EXISTS test_refusal;
ALTER TABLE store_vectors DROP CONSTRAINT IF EXISTS test_refusal;
TRUNCATE store CASCADE
"""


class OutageError(Exception):
    """The embedding model's."""


class Model(Letters):
    """Holds texts with "held" in them until released, and fails on those with "broken"."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.released = threading.Event(), threading.Event()
        self.async_entered, self.async_released = asyncio.Event(), asyncio.Event()
        self.failure: BaseException = OutageError("the model is away")
        self.on_embed: Callable[[], Any] = lambda: None

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.on_embed()
        self._fail(texts)
        if any("held" in text for text in texts):
            self.entered.set()
            assert self.released.wait(LONG_S)
        return super().embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        self._fail([text])
        return super().embed_query(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        if (waiting := self.on_embed()) is not None:
            await waiting
        self._fail(texts)
        if any("held" in text for text in texts):
            self.async_entered.set()
            await asyncio.wait_for(self.async_released.wait(), LONG_S)
        return Letters.embed_documents(self, texts)

    def _fail(self, texts: list[str]) -> None:
        if any("broken" in text for text in texts):
            raise self.failure


@pytest.fixture(scope="module")
def database(aurora: LocalAurora) -> Iterator[psycopg.Connection]:
    with set_up(aurora, DATABASE, index={"dims": DIMS, "embed": Letters()}) as conn:
        # What would be a deadlock after a second is one after a moment.
        conn.execute(f"ALTER DATABASE {DATABASE} SET deadlock_timeout = '20ms'")
        yield conn


@pytest.fixture
def sql(database: psycopg.Connection) -> Iterator[psycopg.Connection]:
    """The superuser's connection; what a test adds to the tables is removed."""
    yield database
    database.execute(CLEAN)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
async def store(
    request: pytest.FixtureRequest, aurora: LocalAurora, sql: psycopg.Connection, model: Model
) -> AsyncIterator[Twin]:
    """A store of the kind that the test names."""
    config = {"dims": DIMS, "embed": model, "fields": ["text"]}
    async with opened(request.param, aurora, DATABASE, index=config, ttl={}) as twin:
        yield twin


def on(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("store", kinds, indirect=True)


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are left behind if the test fails, rather than hang with it."""
    executor = ThreadPoolExecutor(count)
    try:
        yield executor
    finally:
        executor.shutdown(wait=False)


def results(futures: list[Future[Any]]) -> list[Any]:
    return [future.result(LONG_S) for future in futures]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def keys_stored(sql: psycopg.Connection) -> list[str]:
    return [key for (key,) in sql.execute('SELECT key FROM store ORDER BY key COLLATE "C"')]


def waiting_for_locks(sql: psycopg.Connection) -> int:
    """How many sessions of the database wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
    (count,) = sql.execute(query, [DATABASE]).fetchone()
    return count


# threads


@on(*BLOCKING)
async def test_a_read_returns_while_a_put_is_embedded(store: Twin, model: Model) -> None:
    """Neither the store's lock nor its only connection is held meanwhile."""
    blocking = store.store
    blocking.put(("a",), "k", {"v": 1})
    with threads(2) as pool:
        put = pool.submit(blocking.put, ("a",), "slow", {"text": "held"})
        assert model.entered.wait(LONG_S)
        assert pool.submit(blocking.get, ("a",), "k").result(LONG_S).value == {"v": 1}
        assert len(pool.submit(blocking.search, ("a",)).result(LONG_S)) == 1
        pool.submit(blocking.put, ("a",), "quick", {"v": 2}).result(LONG_S)
        assert not put.done()
        model.released.set()
        put.result(LONG_S)
    assert blocking.get(("a",), "slow").value == {"text": "held"}


@on(*BLOCKING)
async def test_an_embedder_may_use_the_store(store: Twin, model: Model) -> None:
    """A model that keeps its cache, or counts its texts, in the same store does not deadlock."""
    blocking = store.store
    model.on_embed = lambda: blocking.put(("cache",), "k", {"seen": True})
    with threads(1) as pool:
        pool.submit(blocking.put, ("a",), "k", {"text": "tea"}).result(LONG_S)
    assert blocking.get(("cache",), "k").value == {"seen": True}


@on("blocking-connection", "blocking-pool")
async def test_eight_threads_embed_at_a_time(store: Twin, model: Model) -> None:
    """However many connections there are: the model is asked by all of them before any answer."""
    meeting = threading.Barrier(8)
    model.on_embed = lambda: meeting.wait(LONG_S)
    with threads(8) as pool:
        puts = [pool.submit(store.store.put, ("a",), f"{i}", {"text": f"t{i}"}) for i in range(8)]
        results(puts)
    assert store.store.count(("a",)) == 8


@on("blocking-connection", "blocking-pool")
async def test_more_threads_than_connections_are_all_served(store: Twin) -> None:
    """16 threads put, get, search and delete on one connection or four, and lose nothing."""

    def work(number: int) -> int:
        for turn in range(15):
            key = f"{number}-{turn}"
            store.store.put(("a", str(number)), key, {"text": key, "n": number})
            assert store.store.get(("a", str(number)), key).value["n"] == number
            assert store.store.search(("a", str(number)), query=key, filter={"text": key})
            if turn % 3 == 0:
                store.store.delete(("a", str(number)), key)
        return store.store.count(("a", str(number)))

    with threads(16) as pool:
        assert results([pool.submit(work, i) for i in range(16)]) == [10] * 16


@on("blocking-pool", "asyncio-pool")
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "there"])
async def test_batches_with_the_same_keys_in_opposite_order_do_not_deadlock(
    store: Twin, sql: psycopg.Connection, *, is_new: bool
) -> None:
    """Each row takes its time, so they are sure to meet; they queue and all succeed."""
    keys = ["a", "b", "c", "d"]
    if not is_new:
        await store.batch([PutOp(("n",), key, {"text": key}) for key in keys])
    sql.execute(SLOW_ROWS)
    orders = [keys, keys[::-1], keys[2:] + keys[:2], keys[1::-1] + keys[:1:-1]]
    await together(
        store,
        [
            ("batch", [PutOp(("n",), key, {"text": f"{i}"}) for key in order])
            for i, order in enumerate(orders)
        ],
    )
    found = await store.batch([GetOp(("n",), key) for key in keys])
    assert len({item.value["text"] for item in found}) == 1, "the last batch won as a whole"


@on("blocking-pool", "asyncio-pool")
async def test_reads_that_renew_the_same_items_do_not_deadlock(
    store: Twin, sql: psycopg.Connection
) -> None:
    """Gets and searches in opposite order; each returns, and the items are renewed."""
    keys = [(f"ns{i}", f"k{i}") for i in range(4)]
    await store.batch([PutOp((ns,), key, {"text": "tea"}, ttl=10) for ns, key in keys])
    sql.execute("UPDATE store SET expires_at = now() + interval '1 min'")
    sql.execute(SLOW_ROWS)
    gets = [GetOp((ns,), key, refresh_ttl=True) for ns, key in keys]
    search = [SearchOp((), query="tea", refresh_ttl=True)]
    found = await together(
        store, [("batch", gets), ("batch", gets[::-1]), ("batch", search), ("batch", gets)]
    )
    assert all(item is not None for answers in found for item in answers)
    assert len(found[2][0]) == 4
    query = "SELECT min(expires_at) > now() + interval '9 min' FROM store"
    assert sql.execute(query).fetchone() == (True,)


@on("blocking-pool", "asyncio-pool")
async def test_nothing_that_stores_do_at_once_deadlocks(
    store: Twin, sql: psycopg.Connection
) -> None:
    """Puts, deletes, renewals, sweeps and deleted namespaces on a few keys, in any order."""

    async def work(seed: int) -> None:
        draw = random.Random(seed)
        for turn in range(40):
            if draw.random() < 0.1:
                await store.sweep_ttl()
            elif draw.random() < 0.1:
                await store.delete_namespace(("n", draw.choice("ab")))
            else:
                await store.batch([operation(draw, turn) for _ in range(6)])

    if store.is_async:
        await asyncio.gather(*map(work, range(4)))
    else:
        with threads(4) as pool:
            results([pool.submit(asyncio.run, work(seed)) for seed in range(4)])
    sql.execute("SELECT pg_stat_force_next_flush()")
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = %s"
    assert sql.execute(query, [DATABASE]).fetchone() == (0,)


def operation(draw: random.Random, turn: int) -> PutOp | GetOp | SearchOp:
    address = ("n", draw.choice("abc")), draw.choice("123")
    kind = draw.random()
    if kind < 0.2:
        return GetOp(*address, refresh_ttl=True)
    if kind < 0.3:
        return SearchOp(("n",), query="tea", refresh_ttl=True)
    value = None if kind < 0.5 else {"text": f"tea {turn % 5}"}
    return PutOp(*address, value, ttl=draw.choice([None, 0.0005, 10]))


async def together(store: Twin, calls: list[tuple[str, Any]]) -> list[Any]:
    """So many calls at once, each in a thread of its own where the store is a blocking one."""
    if store.is_async:
        return await asyncio.gather(*(getattr(store, name)(argument) for name, argument in calls))
    with threads(len(calls)) as pool:
        return results([pool.submit(getattr(store.store, name), arg) for name, arg in calls])


# all of a batch or nothing


@on(*KINDS, *PIPELINE_KINDS)
@pytest.mark.parametrize("at", REFUSALS)
async def test_a_batch_that_the_server_refuses_leaves_no_trace(
    store: Twin, sql: psycopg.Connection, at: str
) -> None:
    """Wherever it fails; and the next batch on the same connection is not the worse for it."""
    await store.put(("a",), "deleted", {"text": "tea"})
    await store.put(("a",), "updated", {"text": "tea"})
    sql.execute(REFUSALS[at])
    ops = [
        PutOp(("a",), "deleted", None),
        PutOp(("a",), "updated", {"text": "milk"}),
        PutOp(("a",), "bad", {"text": "cocoa"}),
        PutOp(("z",), "new", {"text": "milk"}),
    ]
    for _ in range(2):
        with pytest.raises(psycopg.errors.CheckViolation):
            await store.batch(ops)
        assert keys_stored(sql) == ["deleted", "updated"]
        found = await store.search((), query="tea")
        assert [item.score > 0.999 for item in found] == [True, True]
    await store.batch([op for op in ops if op.key != "bad"])
    assert keys_stored(sql) == ["new", "updated"]
    assert [item.key for item in await store.search((), query="milk", limit=2)] == [
        "updated",
        "new",
    ]


@on(*KINDS, *PIPELINE_KINDS)
@pytest.mark.parametrize("value", [{"when": object()}, {"text": "broken"}], ids=["value", "model"])
async def test_a_batch_that_fails_on_our_side_leaves_no_trace(
    store: Twin, sql: psycopg.Connection, value: dict[str, Any]
) -> None:
    """A value that is not JSON, or a model that is away, is known before the first statement."""
    await store.put(("a",), "deleted", {})
    with pytest.raises((InvalidItemError, OutageError)):
        await store.batch([PutOp(("a",), "deleted", None), PutOp(("b",), "new", value)])
    assert keys_stored(sql) == ["deleted"]


@on("blocking-connection", "asyncio-connection")
@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_store_takes_part_in_the_transaction_of_its_connections_owner(
    store: Twin, sql: psycopg.Connection, *, is_kept: bool
) -> None:
    """What it wrote is kept with the owner's transaction, and goes with it."""
    conn = store.store.conn
    for statement in ("BEGIN", None, "COMMIT" if is_kept else "ROLLBACK"):
        if statement is None:
            await store.put(("a",), "k", {"text": "tea"})
            assert keys_stored(sql) == []
        elif store.is_async:
            await conn.execute(statement)
        else:
            conn.execute(statement)
    assert keys_stored(sql) == (["k"] if is_kept else [])


# asyncio


@on(*ASYNCIO)
async def test_an_aget_returns_while_an_aput_is_embedded(store: Twin, model: Model) -> None:
    """In the same iteration of the loop and in later ones; nor does anything else wait."""
    await store.put(("a",), "k", {"v": 1})
    put = asyncio.create_task(store.put(("a",), "slow", {"text": "held"}))
    at_once = asyncio.gather(store.get(("a",), "k"), store.search(("a",), query="tea"))
    assert (await asyncio.wait_for(at_once, LONG_S))[0].value == {"v": 1}
    await asyncio.wait_for(model.async_entered.wait(), LONG_S)
    assert await asyncio.wait_for(store.get(("a",), "k"), LONG_S)
    assert len(await asyncio.wait_for(store.search(("a",)), LONG_S)) == 1
    await asyncio.wait_for(store.put(("a",), "quick", {"text": "tea"}), LONG_S)
    await asyncio.wait_for(store.batch([PutOp(("a",), "b", {}), GetOp(("a",), "k")]), LONG_S)
    assert not put.done()
    model.async_released.set()
    await put
    assert (await store.get(("a",), "slow")).value == {"text": "held"}


@on(*ASYNCIO)
async def test_an_async_embedder_may_use_the_store(store: Twin, model: Model) -> None:
    """It awaits the store that awaits it."""
    model.on_embed = lambda: store.put(("cache",), "k", {"seen": True})
    await asyncio.wait_for(store.put(("a",), "k", {"text": "tea"}), LONG_S)
    assert (await store.get(("cache",), "k")).value == {"seen": True}


@on(*ASYNCIO)
async def test_operations_of_one_iteration_share_one_request_to_the_model(
    store: Twin, model: Model
) -> None:
    """Ten tasks that put at once embed as one, and equal texts once; each gets its own result."""
    texts = [f"text {i % 7}" for i in range(10)]
    await asyncio.gather(*(store.put(("a",), f"k{i}", {"text": t}) for i, t in enumerate(texts)))
    assert [sorted(request) for request in model.documents] == [sorted(set(texts))]
    queries = [f"text {i % 3}" for i in range(6)]
    found = await asyncio.gather(*(store.search(("a",), query=q, limit=1) for q in queries))
    assert [items[0].value["text"] for items in found] == queries
    assert sorted(model.queries) == sorted(set(queries))


@on("asyncio-pool")
async def test_coalesced_operations_do_not_wait_in_one_line(
    store: Twin, model: Model, aurora: LocalAurora, sql: psycopg.Connection
) -> None:
    """A key that someone holds holds up a part of its neighbours at most; they share a request."""
    await store.put(("a",), "k0", {"text": "before"})
    with psycopg.connect(owner_dsn(aurora, DATABASE)) as other:
        other.execute("SELECT FROM store WHERE key = 'k0' FOR UPDATE")
        calls = [
            asyncio.create_task(store.put(("a",), f"k{i}", {"text": f"tea {i}"})) for i in range(16)
        ]
        done, waiting = await asyncio.wait(calls, timeout=LONG_S, return_when="FIRST_COMPLETED")
        assert done
        assert calls[0] in waiting
    await asyncio.wait_for(asyncio.gather(*calls), LONG_S)
    assert sorted(keys_stored(sql)) == sorted(f"k{i}" for i in range(16))
    assert [len(request) for request in model.documents] == [1, 16]


@on("asyncio-pool")
async def test_writers_that_wait_for_a_row_leave_connections_to_readers(
    store: Twin, aurora: LocalAurora, sql: psycopg.Connection
) -> None:
    """There may be more of them than connections; they take half of the pool."""
    pool = pool_of(store.store)
    keys = [f"k{i}" for i in range(2 * pool.max_size)]
    await store.batch([PutOp(("a",), key, {"text": "before"}) for key in keys])
    with psycopg.connect(owner_dsn(aurora, DATABASE)) as other:
        other.execute("SELECT FROM store FOR UPDATE")
        calls = []
        for key in keys:
            calls.append(asyncio.create_task(store.put(("a",), key, {"text": "after"})))
            await asyncio.sleep(0)  # an iteration of its own
        await asyncio.to_thread(until, lambda: waiting_for_locks(sql) == pool.max_size // 2)
        found = await asyncio.wait_for(store.search(("a",), query="before"), LONG_S)
        assert len(found) == len(keys)
        assert not any(call.done() for call in calls)
    await asyncio.wait_for(asyncio.gather(*calls), LONG_S)


@on("asyncio-pool")
async def test_a_write_that_was_given_up_half_way_overwrites_none_that_came_after(
    store: Twin, sql: psycopg.Connection, aurora: LocalAurora
) -> None:
    """It shares a transaction with a neighbour, which waits for a locked row."""
    await store.batch([PutOp(("a",), key, {"v": 1}) for key in ("k", "taken")])
    with psycopg.connect(owner_dsn(aurora, DATABASE)) as other:
        other.execute("SELECT FROM store WHERE key = 'taken' FOR UPDATE")
        left = asyncio.create_task(store.put(("a",), "k", {"v": "old"}))
        stays = asyncio.create_task(store.put(("a",), "taken", {"v": 2}))
        await asyncio.to_thread(until, lambda: waiting_for_locks(sql) == 1)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        new = asyncio.create_task(store.put(("a",), "k", {"v": "new"}))
        await asyncio.sleep(0.05)
    await asyncio.wait_for(asyncio.gather(stays, new), LONG_S)
    assert (await store.get(("a",), "k")).value == {"v": "new"}


@on("asyncio-pool")
async def test_a_write_given_up_while_it_waits_for_its_turn_is_not_written(
    store: Twin, sql: psycopg.Connection, aurora: LocalAurora
) -> None:
    """Its neighbours are; one that comes after it stays."""
    keys = ["t0", "t1"]
    assert len(keys) == pool_of(store.store).max_size // 2
    await store.batch([PutOp(("a",), key, {"v": 1}) for key in (*keys, "k")])
    with psycopg.connect(owner_dsn(aurora, DATABASE)) as other:
        other.execute("SELECT FROM store WHERE key LIKE 't%' FOR UPDATE")
        writers = []
        for key in keys:
            writers.append(asyncio.create_task(store.put(("a",), key, {"v": 2})))
            await asyncio.sleep(0.01)
        await asyncio.to_thread(until, lambda: waiting_for_locks(sql) == len(keys))
        left = asyncio.create_task(store.put(("a",), "k", {"v": "old"}))
        neighbour = asyncio.create_task(store.put(("a",), "n", {"v": 2}))
        await asyncio.sleep(0.05)
        left.cancel()
        await asyncio.sleep(0.05)
    await asyncio.wait_for(asyncio.gather(*writers, neighbour), LONG_S)
    assert (await store.get(("a",), "k")).value == {"v": 1}
    assert (await store.get(("a",), "n")).value == {"v": 2}


@on("asyncio-connection")
async def test_callers_that_leave_do_not_cost_a_store_its_only_connection(
    store: Twin, sql: psycopg.Connection
) -> None:
    """Whatever the server was about to say: it is asked to stop, and its answer is waited for."""
    sql.execute(SLOW_ROWS.replace("0.02", "0.002"))
    generator = random.Random(5)
    for _ in range(60):
        ops = [PutOp(("a",), key, {"text": generator.choice("abc")}) for key in "klm"]
        calls = [asyncio.create_task(store.batch(ops)) for _ in range(4)]
        await asyncio.sleep(generator.random() * 0.02)
        left = [call for call in calls if generator.random() < 0.5 and call.cancel()]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        stayed = [out for call, out in zip(calls, outcomes, strict=True) if call not in left]
        assert stayed == [[None] * 3] * len(stayed)
    await store.put(("a",), "k", {"text": "at last"})
    assert (await store.get(("a",), "k")).value == {"text": "at last"}


async def test_writers_wait_for_each_other_as_long_as_the_pool_says(
    aurora: LocalAurora, sql: psycopg.Connection
) -> None:
    """Then an error says so; as many as it lets wait, and reads go on."""
    pool = PoolSettings(max_size=2, timeout_s=0.5, max_waiting=1)
    async with opened("asyncio-cluster", aurora, DATABASE, pool=pool) as store:
        await store.put(("a",), "taken", {"v": 1})
        with psycopg.connect(owner_dsn(aurora, DATABASE)) as other:
            other.execute("SELECT FROM store WHERE key = 'taken' FOR UPDATE")
            first = asyncio.create_task(store.put(("a",), "taken", {"v": 2}))
            await asyncio.to_thread(until, lambda: waiting_for_locks(sql) == 1)
            second = asyncio.create_task(store.put(("a",), "second", {"v": 2}))
            await asyncio.sleep(0.05)
            with pytest.raises(PoolFullError, match="1 callers wait already to write"):
                await store.put(("a",), "third", {"v": 2})
            with pytest.raises(PoolTimeoutError, match=r"held all 1 that may write"):
                await asyncio.wait_for(second, LONG_S)
            assert (await store.get(("a",), "taken")).value == {"v": 1}
            with pytest.raises(PoolTimeoutError, match="earlier write of the same key"):
                await asyncio.wait_for(store.put(("a",), "taken", {"v": 3}), LONG_S)
            leaver = asyncio.create_task(store.put(("a",), "left", {"v": 2}))
            await asyncio.sleep(0.05)
            leaver.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaver
        await asyncio.wait_for(first, LONG_S)
        await asyncio.wait_for(store.put(("a",), "second", {"v": 3}), LONG_S)
        assert keys_stored(sql) == ["second", "taken"]


def test_a_loop_that_has_ended_is_forgotten(aurora: LocalAurora, sql: psycopg.Connection) -> None:
    """Though its writers have waited for each other, and the store was never closed."""
    settings = arguments(Database(aurora, DATABASE), pool=PoolSettings(max_size=2))
    store = AsyncAuroraStore.from_cluster(**settings)

    async def use() -> None:
        await asyncio.gather(*(later(i) for i in range(8)))
        loops.append(weakref.ref(asyncio.get_running_loop()))

    async def later(iterations: int) -> None:
        for _ in range(iterations):
            await asyncio.sleep(0)
        await store.aput(("a",), str(iterations), {})

    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    for _ in range(3):
        asyncio.run(use())
    gc.collect()
    assert [loop() is None for loop in loops] == [True, True, False]
    asyncio.run(store.close())


@on(*ASYNCIO)
@pytest.mark.parametrize(
    "fault", ["value", "namespace", "key", "type", "length", "model", *REFUSALS]
)
async def test_one_bad_operation_fails_alone(
    store: Twin, sql: psycopg.Connection, fault: str
) -> None:
    """Whatever is bad about it, its neighbours of the same iteration succeed."""
    if fault in REFUSALS:
        sql.execute(REFUSALS[fault])
    bad = {
        "value": (("a",), "x", {"v": "\0"}),
        "namespace": (("a\0",), "x", {}),
        "key": (("a",), "\ud800", {}),
        "type": (("a",), ["k"], {}),
        # More than an entry of a b-tree index holds, however well it is compressed.
        "length": (("a",), random.Random(1).randbytes(9_000).hex(), {}),
        "model": (("a",), "x", {"text": "broken"}),
    }.get(fault, (("a",), "bad", {"text": "tea"}))
    calls = [store.put(("a",), f"k{i}", {"text": f"tea {i}"}) for i in range(9)]
    calls.insert(4, store.batch([PutOp(*bad)]))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(outcomes.pop(4), Exception)
    assert outcomes == [None] * 9
    assert keys_stored(sql) == [f"k{i}" for i in range(9)]
    assert len(await store.search(("a",), query="tea")) == 9


@on(*ASYNCIO)
async def test_operations_on_one_key_keep_their_order_beside_a_bad_one(
    store: Twin, model: Model
) -> None:
    """The last one wins, also when each has to run alone and the first takes longest."""
    calls = asyncio.gather(
        store.put(("a",), "k", {"text": "held"}),
        store.put(("b",), "k", {"v": 1}),
        store.put(("a",), "k", {"v": "last"}),
        store.put(("a",), "bad", {"text": "broken"}),
        store.delete(("b",), "k"),
        return_exceptions=True,
    )
    await asyncio.wait_for(model.async_entered.wait(), LONG_S)
    await store.put(("c",), "k", {})
    model.async_released.set()
    outcomes = await asyncio.wait_for(calls, LONG_S)
    assert isinstance(outcomes.pop(3), OutageError)
    assert outcomes == [None] * 4
    assert (await store.get(("a",), "k")).value == {"v": "last"}
    assert await store.get(("b",), "k") is None


@on(*ASYNCIO)
async def test_a_bad_search_fails_alone(store: Twin) -> None:
    """A filter that means nothing, a page below zero, a query that the model refuses."""
    await store.put(("a",), "k", {"text": "tea"})
    bad = [
        store.search(("a",), filter={"$near": 1}),
        store.search(("a",), limit=-1),
        store.search(("a",), query="broken"),
        store.list_namespaces(max_depth=0),
    ]
    good = [store.search(("a",), query="tea"), store.search(("a",)), store.search((), query="a")]
    outcomes = await asyncio.gather(*bad, *good, return_exceptions=True)
    assert all(isinstance(outcome, Exception) for outcome in outcomes[:4])
    assert [len(outcome) for outcome in outcomes[4:]] == [1, 1, 1]


@on("asyncio-pool")
async def test_one_operation_that_may_not_wait_fails_alone(
    store: Twin, sql: psycopg.Connection, aurora: LocalAurora
) -> None:
    """A row is locked for longer than the server allows; the other rows are written."""
    await store.put(("a",), "taken", {"v": 1})
    pool = pool_of(store.store)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            conn = await stack.enter_async_context(pool.connection())
            await conn.execute("SET lock_timeout = '100ms'")
    with psycopg.connect(owner_dsn(aurora, DATABASE)) as holder:
        holder.execute("SELECT 1 FROM store WHERE key = 'taken' FOR UPDATE")
        outcomes = await asyncio.gather(
            *(store.put(("a",), key, {"v": 2}) for key in ("other", "taken", "third")),
            return_exceptions=True,
        )
    assert isinstance(outcomes[1], psycopg.errors.LockNotAvailable)
    assert outcomes[0] is outcomes[2] is None
    assert keys_stored(sql) == ["other", "taken", "third"]


@on(*ASYNCIO)
async def test_an_outage_of_the_model_leaves_reads_and_deletes_working(store: Twin) -> None:
    """In the same iteration as operations that need the model, and fail with its own error."""
    await store.put(("a",), "k", {"text": "tea"})
    await store.put(("b",), "d", {"text": "tea"})
    outcomes = await asyncio.gather(
        store.put(("a",), "x", {"text": "broken"}),
        store.search(("a",), query="broken"),
        store.get(("a",), "k"),
        store.search(("a",)),
        store.list_namespaces(prefix=("a",)),
        store.delete(("b",), "d"),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes[:2]] == [OutageError, OutageError]
    assert outcomes[2].value == {"text": "tea"}
    assert len(outcomes[3]) == 1
    assert outcomes[4] == [("a",)]
    assert outcomes[5] is None
    assert await store.get(("b",), "d") is None


@on(*ASYNCIO)
async def test_a_cancellation_that_comes_from_the_model_leaves_no_caller_waiting(
    store: Twin, model: Model
) -> None:
    """A client library that gives up by CancelledError ends the callers, and the store goes on."""
    model.failure = asyncio.CancelledError()
    calls = [asyncio.create_task(store.put(("a",), f"{i}", {"text": "broken"})) for i in range(3)]
    calls.append(asyncio.create_task(store.search(("a",), query="broken")))
    done, pending = await asyncio.wait(calls, timeout=LONG_S)
    assert not pending
    assert all(call.cancelled() or call.exception() for call in done)
    with pytest.raises(asyncio.CancelledError):
        await store.batch([PutOp(("a",), "x", {"text": "broken"}), GetOp(("a",), "x")])
    await store.put(("a",), "k", {"text": "tea"})
    assert [item.key for item in await store.search(("a",), query="tea")] == ["k"]


@on("asyncio-pool")
async def test_callers_that_leave_while_embedding_leave_nothing_behind(
    store: Twin, model: Model
) -> None:
    """Neither a connection nor a waiting task; who stayed gets what was asked for."""
    leaves = [asyncio.create_task(store.put(("a",), f"{i}", {"text": "held"})) for i in range(5)]
    leaves += [
        asyncio.create_task(
            store.batch([PutOp(("b",), f"{i}", {"text": "held"}), GetOp(("b",), "k")])
        )
        for i in range(5)
    ]
    stays = asyncio.create_task(store.put(("a",), "stays", {"text": "held"}))
    await asyncio.wait_for(model.async_entered.wait(), LONG_S)
    for task in leaves:
        task.cancel()
    assert {type(o) for o in await asyncio.gather(*leaves, return_exceptions=True)} == {
        asyncio.CancelledError
    }
    model.async_released.set()
    await asyncio.wait_for(stays, LONG_S)
    assert await store.get(("a",), "stays")
    assert await store.count(("b",)) == 0
    stats = pool_of(store.store).get_stats()
    assert stats["pool_available"] == stats["pool_size"]
    assert stats["requests_waiting"] == 0


@on(*ASYNCIO)
async def test_callers_that_leave_while_the_server_works_leave_nothing_behind(
    store: Twin, sql: psycopg.Connection, aurora: LocalAurora
) -> None:
    """More of them than connections, some waiting for one: all are given back, in good order."""
    await store.put(("a",), "taken", {"v": 1})
    conn = store.store.conn
    connections = conn.max_size if isinstance(conn, AsyncConnectionPool) else 1
    with psycopg.connect(owner_dsn(aurora, DATABASE)) as holder:
        holder.execute("SELECT 1 FROM store WHERE key = 'taken' FOR UPDATE")
        ops = [PutOp(("a",), "taken", {"v": 2}), PutOp(("a",), "other", {"v": 2})]
        leaves = [asyncio.create_task(store.batch(ops)) for _ in range(9)]
        await asyncio.to_thread(until, lambda: waiting_for_locks(sql) == connections)
        for task in leaves:
            task.cancel()
        outcomes = await asyncio.wait_for(asyncio.gather(*leaves, return_exceptions=True), LONG_S)
        assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
    assert (await store.get(("a",), "taken")).value == {"v": 1}
    for i in range(8):
        await store.batch([PutOp(("a",), f"k{i}", {}), GetOp(("a",), "taken")])
    assert await store.get(("a",), "other") is None
    if isinstance(conn, AsyncConnectionPool):
        stats = conn.get_stats()
        assert stats["pool_available"] == stats["pool_size"] <= connections
        assert stats["requests_waiting"] == 0


@pytest.mark.parametrize("iterations", range(8))
@pytest.mark.parametrize(("kind", "connections"), [("asyncio-pool", 4), ("asyncio-cluster", 10)])
async def test_a_caller_may_leave_at_the_moment_it_gets_a_connection(
    kind: str, connections: int, iterations: int, aurora: LocalAurora, sql: psycopg.Connection
) -> None:
    """Python 3.11 can lose a cancellation there; the batch must end, and not be written."""
    async with opened(kind, aurora, DATABASE) as store, contextlib.AsyncExitStack() as held:
        await store.get(("a",), "k")
        for _ in range(connections - 1):
            await held.enter_async_context(store.store.connection())
        async with store.store.connection():
            leaves = asyncio.create_task(store.batch([PutOp(("a",), "k", {}), GetOp(("a",), "k")]))
            for _ in range(20):
                await asyncio.sleep(0)
        for _ in range(iterations):
            await asyncio.sleep(0)
        assert leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(leaves, LONG_S)


@pytest.mark.parametrize("kind", ["asyncio-pool", "asyncio-cluster"])
async def test_a_caller_may_leave_while_its_connection_is_given_back(
    kind: str, aurora: LocalAurora, sql: psycopg.Connection
) -> None:
    """The pool gets it back, and no caller waits for a connection that is lost."""
    async with opened(kind, aurora, DATABASE) as store:
        await store.get(("a",), "k")
        conn = store.store.conn
        pool = conn if isinstance(conn, AsyncConnectionPool) else await conn.get()
        for _ in range(2 * pool.max_size):
            entered = asyncio.Event()

            async def use(entered: asyncio.Event = entered) -> None:
                async with store.store.connection():
                    entered.set()

            user = asyncio.create_task(use())
            await entered.wait()
            async with pool._lock:  # psycopg_pool's own, which giving back waits for
                for _ in range(5):
                    await asyncio.sleep(0)
                user.cancel()
                for _ in range(5):
                    await asyncio.sleep(0)
            assert user.done()
        await asyncio.wait_for(store.get(("a",), "k"), LONG_S)
        await asyncio.to_thread(
            until, lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"]
        )


@on(*ASYNCIO)
@pytest.mark.parametrize("then", ["put", "delete"])
async def test_a_write_given_up_beside_a_neighbour_overwrites_no_later_one(
    store: Twin, model: Model, then: str
) -> None:
    """Put, time out, put again or delete: what was acknowledged last is what there is."""
    first = asyncio.create_task(store.put(("a",), "k", {"text": "old, held"}))
    neighbour = asyncio.create_task(store.put(("a",), "other", {"text": "tea"}))
    await asyncio.wait_for(model.async_entered.wait(), LONG_S)
    first.cancel()
    if then == "put":
        await store.put(("a",), "k", {"v": "new"}, index=False)
    else:
        await store.delete(("a",), "k")
    model.async_released.set()
    await asyncio.wait_for(neighbour, LONG_S)
    item = await store.get(("a",), "k")
    assert (item and item.value) == ({"v": "new"} if then == "put" else None)
    assert (await store.get(("a",), "other")).value == {"text": "tea"}


@on(*ASYNCIO)
async def test_an_earlier_write_of_one_key_counts_when_a_later_one_is_given_up(
    store: Twin, model: Model
) -> None:
    """Its caller has not left."""
    calls = [
        asyncio.create_task(store.put(("a",), "k", {"text": f"tea {number}"}))
        for number in range(3)
    ]
    calls.append(asyncio.create_task(store.put(("a",), "other", {"text": "held"})))
    await asyncio.wait_for(model.async_entered.wait(), LONG_S)
    calls[2].cancel()
    model.async_released.set()
    await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), LONG_S)
    assert (await store.get(("a",), "k")).value == {"text": "tea 1"}
    assert (await store.search(("a",), query="tea 1", limit=1))[0].score == pytest.approx(1)


@on(*ASYNCIO)
async def test_a_bad_operation_costs_its_neighbours_no_request(store: Twin, model: Model) -> None:
    """The others of its iteration share one all the same."""
    await store.get(("a",), "k")
    calls = [store.put(("a",), f"k{i}", {"text": f"tea {i}"}) for i in range(9)]
    calls.insert(4, store.put(("a",), "bad", {"text": "\0"}))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(outcomes.pop(4), InvalidItemError)
    assert outcomes == [None] * 9
    assert [len(request) for request in model.documents] == [9]


async def test_closing_waits_for_a_batch(aurora: LocalAurora, sql: psycopg.Connection) -> None:
    """And leaves no pool behind that the batch has made."""
    model = Model()
    index = {"dims": DIMS, "embed": model, "fields": ["text"]}
    async with opened("asyncio-cluster", aurora, DATABASE, index=index) as store:
        await store.get(("a",), "k")
        ops = [PutOp(("a",), "k", {"text": "held"}), PutOp(("a",), "l", {"text": "tea"})]
        batch = asyncio.create_task(store.batch(ops))
        await asyncio.wait_for(model.async_entered.wait(), LONG_S)
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        model.async_released.set()
        await asyncio.wait_for(closing, LONG_S)
        assert batch.done()
        assert not store.store.conn._pools


@on(*ASYNCIO)
async def test_a_caller_that_leaves_does_not_take_its_neighbours_along(
    store: Twin, sql: psycopg.Connection
) -> None:
    """Coalesced operations share a trip; a cancelled caller misses its answer only."""
    tasks = [asyncio.create_task(store.put(("a",), f"{i}", {"text": "tea"})) for i in range(6)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes.pop(2), asyncio.CancelledError)
    assert outcomes == [None] * 5
    assert set(keys_stored(sql)) >= {"0", "1", "3", "4", "5"}


@on(*ASYNCIO)
async def test_threads_may_use_an_asyncio_store_before_its_loop_has(store: Twin) -> None:
    """LangGraph runs blocking nodes in threads; they reach the loop that made the store."""
    await asyncio.to_thread(store.store.put, ("a",), "k", {"v": 1})
    item = await asyncio.to_thread(store.store.get, ("a",), "k")
    assert item.value == {"v": 1}


def test_two_event_loops_at_a_time_share_a_store(
    aurora: LocalAurora, sql: psycopg.Connection, model: Model
) -> None:
    """Each thread's loop has a pool of its own, and both see the same items."""
    index = {"dims": DIMS, "embed": Letters(), "fields": ["text"]}
    store = AsyncAuroraStore.from_cluster(**arguments(Database(aurora, DATABASE), index=index))
    meeting = threading.Barrier(2)

    async def work(name: str) -> int:
        await store.open()
        await asyncio.to_thread(meeting.wait, LONG_S)
        for turn in range(10):
            await asyncio.gather(
                *(store.aput((name,), f"{turn}-{i}", {"text": name}) for i in range(5)),
                store.abatch([PutOp(("both",), f"{turn}", {"by": name}), ListNamespacesOp()]),
            )
        await asyncio.to_thread(meeting.wait, LONG_S)
        found = await store.asearch((), query="tea", limit=1000)
        await store.close()
        return len(found)

    with threads(2) as pool:
        counts = results([pool.submit(asyncio.run, work(name)) for name in ("one", "two")])
    assert counts == [100, 100]
    assert asyncio.run(_count_and_close(store)) == 110


async def _count_and_close(store: AsyncAuroraStore) -> int:
    try:
        return await store.acount(())
    finally:
        await store.close()


# sweepers


@pytest.mark.parametrize("kind", BLOCKING)
def test_a_sweeper_shares_a_connection_in_good_order(
    kind: str, aurora: LocalAurora, sql: psycopg.Connection, model: Model
) -> None:
    """A sweep while an operation is under way waits its turn, and neither is the worse for it."""
    config = {"dims": DIMS, "embed": model, "fields": ["text"]}
    pool_config = {"max_size": 2} if kind == "blocking-pool" else None
    dsn = owner_dsn(aurora, DATABASE)
    with AuroraStore.from_conn_string(dsn, pool_config=pool_config, index=config, ttl={}) as store:
        store.put(("a",), "gone", {"text": "tea"}, ttl=10)
        sql.execute("UPDATE store SET expires_at = now() - interval '1 s'")
        store.start_ttl_sweeper(0.0005)
        for turn in range(100):
            store.batch([PutOp(("a",), "k", {"text": f"{turn}"}), GetOp(("a",), "k")])
        until(lambda: keys_stored(sql) == ["k"])
        assert store.stop_ttl_sweeper(LONG_S)
        assert store.get(("a",), "k").value == {"text": "99"}


@on(*ASYNCIO)
async def test_a_write_that_was_given_up_overwrites_none_that_came_after(
    store: Twin, model: Model
) -> None:
    """Its caller has left while it was embedded; what was acknowledged since stays."""
    left = asyncio.create_task(store.put(("n",), "k", {"text": "held"}))
    await asyncio.wait_for(model.async_entered.wait(), LONG_S)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    await store.put(("n",), "k", {"text": "new"})
    model.async_released.set()
    await store.store.close()
    assert (await store.get(("n",), "k")).value == {"text": "new"}
