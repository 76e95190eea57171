"""What the parent's savers do to connections, and what ours do: the rows C1 to C11."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from psycopg import Connection

from langgraph_aurora_store import AsyncAuroraSaver, AuroraSaver
from langgraph_aurora_store.errors import WrongLoopError
from tests.support.parent_comparison import traffic
from tests.support.saver_comparison import (
    SaverSide,
    aput,
    chain,
    checkpoint,
    ours,
    put,
    saver_side,
    thread,
    values_of,
)
from tests.support.store_kinds import arguments

__all__ = ["ours", "saver_side"]

LONG_S = 20.0
WHILE_S = 0.5
"""How long the parent's callers are watched while they wait for what comes too late."""


@contextmanager
def held_row(side: SaverSide, name: str) -> Iterator[None]:
    """Another session holds the rows of a thread."""
    with psycopg.connect(side.database.admin_dsn) as conn:
        conn.execute("SELECT FROM checkpoints WHERE thread_id = %s FOR UPDATE", [name])
        yield
        conn.rollback()


def wait_for_lock(side: SaverSide) -> None:
    """Until a statement waits for a row."""
    while not side.sql("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
        time.sleep(0.01)


def test_c1_a_put_that_waits_holds_up_no_other_thread(saver_side: SaverSide) -> None:
    """The parent holds one lock around every call, though a pool has other connections."""
    with saver_side.saver() as saver, ThreadPoolExecutor(2) as threads:
        held = checkpoint({"a": 1})
        saver.put(thread("held"), held, {}, {})
        put(saver, thread("free"), {"a": 2})
        with saver_side.only_ours(TimeoutError), held_row(saver_side, "held"):
            waiting = threads.submit(saver.put, thread("held"), held, {}, {})
            wait_for_lock(saver_side)
            found = threads.submit(values_of, saver, thread("free"))
            assert found.result(LONG_S if saver_side.is_ours else WHILE_S) == {"a": 2}
            assert not waiting.done()
        waiting.result(LONG_S)


async def test_c1_a_task_that_waits_holds_up_no_other(saver_side: SaverSide) -> None:
    async with saver_side.async_saver() as saver:
        held = checkpoint({"a": 1})
        await saver.aput(thread("held"), held, {}, {})
        with saver_side.only_ours(TimeoutError), held_row(saver_side, "held"):
            waiting = asyncio.create_task(saver.aput(thread("held"), held, {}, {}))
            await asyncio.to_thread(wait_for_lock, saver_side)
            async with asyncio.timeout(LONG_S if saver_side.is_ours else WHILE_S):
                await aput(saver, thread("free"), {"a": 2})
            assert not waiting.done()
        await waiting


def test_c2_reading_through_a_list_holds_no_connection(saver_side: SaverSide) -> None:
    """So a checkpoint can be asked for meanwhile; the parent's lock would never come free."""
    with saver_side.saver(size=1) as saver:
        chain(saver, thread("t"), 3)
        listed = saver.list(thread("t"))
        next(listed)
        with saver_side.only_ours():
            assert saver.conn.get_stats()["pool_available"] == 1
            assert [values_of(saver, found.config)["items"] for found in listed] == [[1], [0]]


async def test_c2_nor_does_an_asyncio_iterator(saver_side: SaverSide) -> None:
    async with saver_side.async_saver(size=1) as saver:
        config = await aput(saver, thread("t"), {"a": 1})
        await aput(saver, config, {"a": 2})
        listed = saver.alist(thread("t"))
        await anext(listed)
        with saver_side.only_ours():
            assert saver.conn.get_stats()["pool_available"] == 1
            assert (await anext(listed)).config == config
        await listed.aclose()


def test_c2_the_first_of_many_does_not_wait_for_the_rest(saver_side: SaverSide) -> None:
    """Pages are read as they are asked for: what is deleted meanwhile is not listed."""
    with saver_side.saver() as saver:
        chain(saver, thread("t"), 100)
        listed = saver.list(None)
        next(listed)
        saver_side.sql("DELETE FROM checkpoints")
        with saver_side.only_ours():
            assert len(list(listed)) == 63


def test_c2_pages_miss_nothing_and_repeat_nothing(ours: SaverSide) -> None:
    """Also among threads that hold the same ids, as after copy_thread."""
    with ours.saver() as saver:
        chain(saver, thread("a"), 90)
        for target in ("b", "c"):
            saver.copy_thread("a", target)
        found = [tuple(it.config["configurable"].values()) for it in saver.list(None)]
        assert len(found) == len(set(found)) == 270
        assert [it[2] for it in found] == sorted((it[2] for it in found), reverse=True)
        assert len(list(saver.list(None, limit=100))) == 100
        assert list(saver.list(None, limit=0)) == []


def test_c3_killed_connections_of_a_pool_are_replaced(saver_side: SaverSide) -> None:
    """No caller sees that the server has ended them."""
    with saver_side.saver() as saver:
        put(saver, thread("t"), {"a": 1})
        saver_side.kill_backends()
        with saver_side.only_ours(psycopg.OperationalError):
            for _ in range(8):
                assert values_of(saver, thread("t")) == {"a": 1}


def test_c3_so_is_one_that_is_killed_in_a_call(saver_side: SaverSide) -> None:
    """The call is repeated on another one."""
    with saver_side.saver() as saver, ThreadPoolExecutor(1) as threads:
        held = checkpoint({"a": 1})
        saver.put(thread("held"), held, {}, {})
        with held_row(saver_side, "held"):
            waiting = threads.submit(saver.put, thread("held"), held, {"n": 2}, {})
            wait_for_lock(saver_side)
            saver_side.kill_backends(who_wait=True)
        with saver_side.only_ours(psycopg.OperationalError):
            waiting.result(LONG_S)
            assert saver.get_tuple(thread("held")).metadata == {"n": 2}


async def test_c3_asyncio_calls_are_repeated_too(saver_side: SaverSide) -> None:
    async with saver_side.async_saver() as saver:
        held = checkpoint({"a": 1})
        await saver.aput(thread("held"), held, {}, {})
        with held_row(saver_side, "held"):
            waiting = asyncio.create_task(saver.aput(thread("held"), held, {"n": 2}, {}))
            await asyncio.to_thread(wait_for_lock, saver_side)
            await asyncio.to_thread(saver_side.kill_backends, who_wait=True)
        with saver_side.only_ours(psycopg.OperationalError):
            await waiting
            assert (await saver.aget_tuple(thread("held"))).metadata == {"n": 2}


def test_c3_a_saver_on_a_string_outlives_its_connection(saver_side: SaverSide) -> None:
    with saver_side.saver_class.from_conn_string(saver_side.database.owner_dsn) as saver:
        saver.setup()
        saver_side.kill_backends()
        with saver_side.only_ours(psycopg.OperationalError):
            put(saver, thread("t"), {"a": 1})
            assert values_of(saver, thread("t")) == {"a": 1}


def test_c4_calls_may_be_repeated(saver_side: SaverSide) -> None:
    """Three times leave the same rows as once, on either side."""
    with saver_side.saver() as saver:
        made = checkpoint({"a": [1], "b": "text"})
        for _ in range(3):
            config = saver.put(thread("t"), made, {}, made["channel_versions"])
            saver.put_writes(config, [("a", 1), ("b", 2)], "task")
        counts = [
            saver_side.sql(f"SELECT count(*) FROM {table}")[0][0]
            for table in ("checkpoints", "checkpoint_writes")
        ]
        assert counts == [1, 2]
        assert len(saver.get_tuple(thread("t")).pending_writes) == 2
        for _ in range(3):
            saver.delete_thread("t")
        assert saver.get_tuple(thread("t")) is None


def test_c5_connections_to_what_was_the_writer_are_replaced(saver_side: SaverSide) -> None:
    """After a failover they lead to a server that refuses every write, for a while."""
    read_only = "ALTER SYSTEM SET default_transaction_read_only = on"
    with saver_side.saver() as saver, ThreadPoolExecutor(1) as threads:
        try:
            saver_side.sql(read_only)
            saver_side.sql("SELECT pg_reload_conf()")
            while saver_side.sql("SHOW default_transaction_read_only") != [("on",)]:
                time.sleep(0.01)
            putting = threads.submit(put, saver, thread("t"), {"a": 1})
            time.sleep(0.2)
        finally:
            with psycopg.connect(saver_side.database.admin_dsn, autocommit=True) as conn:
                conn.execute("SET default_transaction_read_only = off")
                conn.execute("ALTER SYSTEM RESET default_transaction_read_only")
                conn.execute("SELECT pg_reload_conf()")
        with saver_side.only_ours(psycopg.errors.ReadOnlySqlTransaction):
            putting.result(LONG_S)
            assert values_of(saver, thread("t")) == {"a": 1}


def test_c6_a_first_get_is_one_round_trip(saver_side: SaverSide, tmp_path: Path) -> None:
    """Nothing is prepared on a connection string's connection, which a pooler may hand on."""
    with saver_side.saver_class.from_conn_string(saver_side.database.owner_dsn) as saver:
        saver.setup()
        put(saver, thread("t"), {"a": 1})
        conn = saver.conn
        if saver_side.is_ours:
            with saver.connection() as conn:
                pass
        trips = [
            traffic(conn, tmp_path / str(n), lambda: saver.get_tuple(thread("t"))).round_trips
            for n in range(2)
        ]
        with saver_side.only_ours():
            assert trips == [1, 1]
            assert conn.prepare_threshold is None


def test_c7_puts_are_committed_without_autocommit(saver_side: SaverSide) -> None:
    with saver_side.saver():
        pass
    with Connection.connect(saver_side.database.owner_dsn) as conn:
        saver = saver_side.saver_class(conn)
        put(saver, thread("t"), {"a": 1})
        with saver_side.only_ours():
            assert saver_side.sql("SELECT count(*) FROM checkpoints") == [(1,)]
        conn.rollback()


def test_c8_pipeline_survives_a_kill(saver_side: SaverSide) -> None:
    """It is accepted, and does nothing: each call is one round trip by itself."""
    dsn = saver_side.database.owner_dsn
    with saver_side.saver():
        pass
    with (
        saver_side.only_ours(psycopg.OperationalError),
        saver_side.saver_class.from_conn_string(dsn, pipeline=True) as saver,
    ):
        saver_side.kill_backends()
        put(saver, thread("t"), {"a": 1})


def test_c9_an_asyncio_saver_is_made_outside_of_a_loop(saver_side: SaverSide) -> None:
    """And works in one loop after another, with many tasks in each."""
    given = arguments(saver_side.database, pool=None)
    with saver_side.only_ours(AttributeError, RuntimeError):
        made: Any = saver_side.async_saver_class
        saver = made.from_cluster(**given) if saver_side.is_ours else made(object())

        async def work() -> list[Any]:
            await saver.setup()
            return await asyncio.gather(*(aput(saver, thread(str(i)), {"a": i}) for i in range(30)))

        async def once() -> None:
            try:
                await work()
            finally:
                await saver.close()

        for _ in range(3):
            asyncio.run(once())


BLOCKING: dict[str, Callable[[Any], Any]] = {
    "get": lambda saver: saver.get(thread("t")),
    "get_tuple": lambda saver: saver.get_tuple(thread("t")),
    "list": lambda saver: next(saver.list(None)),
    "put": lambda saver: put(saver, thread("t"), {"a": 1}),
    "put_writes": lambda saver: saver.put_writes(
        thread("t", checkpoint_id="1"), [("a", 1)], "task"
    ),
    "delete_thread": lambda saver: saver.delete_thread("t"),
    "delete_for_runs": lambda saver: saver.delete_for_runs(["run"]),
    "copy_thread": lambda saver: saver.copy_thread("t", "u"),
    "prune": lambda saver: saver.prune(["t"]),
    "get_delta_channel_history": lambda saver: saver.get_delta_channel_history(
        config=thread("t"), channels=["a"]
    ),
}


@pytest.mark.parametrize("name", BLOCKING)
async def test_c9_a_blocking_call_on_the_loop_is_refused(ours: SaverSide, name: str) -> None:
    """It could only hang; see the next test for the parent's."""
    async with ours.async_saver() as saver:
        with pytest.raises(WrongLoopError, match="AsyncAuroraSaver was called on a thread"):
            BLOCKING[name](saver)


@pytest.mark.filterwarnings("ignore")  # of the parent's loop, which never ends
def test_c9_a_put_on_the_loop_ends(saver_side: SaverSide) -> None:
    ended = threading.Event()

    async def block() -> None:
        async with saver_side.async_saver() as saver:
            with suppress(WrongLoopError):
                put(saver, thread("t"), {"a": 1})
            ended.set()

    threading.Thread(target=lambda: asyncio.run(block()), daemon=True).start()
    with saver_side.only_ours():
        assert ended.wait(LONG_S if saver_side.is_ours else 4 * WHILE_S)


@pytest.mark.parametrize("name", BLOCKING)
async def test_c9_a_blocking_call_from_a_thread_works(ours: SaverSide, name: str) -> None:
    """Which runs it on the loop."""
    async with ours.async_saver() as saver:
        await aput(saver, thread("t"), {"a": 1})
        await asyncio.to_thread(BLOCKING[name], saver)


async def test_c10_a_cancelled_put_leaves_its_connection(saver_side: SaverSide) -> None:
    """On either side."""
    async with saver_side.async_saver(size=1) as saver:
        held = checkpoint({"a": 1})
        await saver.aput(thread("held"), held, {}, {})
        with held_row(saver_side, "held"):
            waiting = asyncio.create_task(saver.aput(thread("held"), held, {"n": 2}, {}))
            await asyncio.to_thread(wait_for_lock, saver_side)
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
        async with asyncio.timeout(LONG_S):
            assert (await saver.aget_tuple(thread("held"))).metadata == {}


class Watched(JsonPlusSerializer):
    """Remembers in which thread it works, and what holds then."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded_in: set[int] = set()
        self.dumped_while: list[int] = []
        self.look: Callable[[], int] = int

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        self.loaded_in.add(threading.get_ident())
        return super().loads_typed(data)

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        self.dumped_while.append(self.look())
        return super().dumps_typed(obj)


async def test_c11_much_is_decoded_off_the_loop(saver_side: SaverSide) -> None:
    """Little is decoded on it, which takes less than the way to a thread."""
    serde = Watched()
    async with saver_side.async_saver(serde=serde) as saver:
        await aput(saver, thread("little"), {"items": ["x" * 100]})
        await aput(saver, thread("much"), {"items": ["x" * 1000] * 200})
        with saver_side.only_ours():
            await saver.aget_tuple(thread("little"))
            assert serde.loaded_in == {threading.get_ident()}
            serde.loaded_in.clear()
            await saver.aget_tuple(thread("much"))
            assert threading.get_ident() not in serde.loaded_in


def test_c11_no_connection_is_held_while_values_are_serialised(saver_side: SaverSide) -> None:
    serde = Watched()
    with saver_side.saver(size=1, serde=serde) as saver:
        serde.look = lambda: saver.conn.get_stats()["pool_available"]
        config = put(saver, thread("t"), {"items": [1]})
        saver.put_writes(config, [("items", [2])], "task")
        with saver_side.only_ours():
            assert serde.dumped_while == [1, 1]


async def test_c11_nor_by_the_asyncio_twin(saver_side: SaverSide) -> None:
    serde = Watched()
    async with saver_side.async_saver(size=1, serde=serde) as saver:
        serde.look = lambda: saver.conn.get_stats()["pool_available"]
        config = await aput(saver, thread("t"), {"items": [1]})
        await saver.aput_writes(config, [("items", [2])], "task")
        with saver_side.only_ours():
            assert serde.dumped_while == [1, 1]


def test_g1_each_call_is_one_round_trip(saver_side: SaverSide, tmp_path: Path) -> None:
    """Of as many blobs as there are, and each of these on either side."""
    with saver_side.saver():
        pass
    with Connection.connect(
        saver_side.database.owner_dsn, autocommit=True, prepare_threshold=None
    ) as conn:
        saver: Any = saver_side.saver_class(conn)
        values = {str(i): [i] for i in range(20)}
        config = put(saver, thread("t"), values)
        calls: list[Callable[[], Any]] = [
            lambda: put(saver, config, values, versions=dict.fromkeys(values, "2")),
            lambda: saver.put_writes(config, [("a", [1])] * 5, "task"),
            lambda: saver.get_tuple(config),
            lambda: list(saver.list(thread("t"))),
            lambda: saver.delete_thread("t"),
        ]
        trips = [traffic(conn, tmp_path / str(n), it).round_trips for n, it in enumerate(calls)]
        assert trips == [1] * 5


@pytest.mark.parametrize("cls", [AuroraSaver, AsyncAuroraSaver])
def test_what_is_no_connection_is_refused(cls: Any) -> None:
    with pytest.raises(ValueError, match=r"conn= of type str is wrong: pass a psycopg\."):
        cls("postgresql://")
