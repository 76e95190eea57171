"""Making savers: from a cluster's name, on a store's pool, in a graph, through failovers."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from psycopg import AsyncConnection, Connection, sql

from langgraph_aurora_store import (
    AsyncAuroraSaver,
    AsyncAuroraStore,
    AuroraSaver,
    AuroraStore,
    PoolSettings,
)
from langgraph_aurora_store.errors import (
    ConcurrentRunError,
    ConfigurationError,
    DatabaseNotFoundError,
)
from langgraph_aurora_store.local import LocalAurora
from tests.support.database import Database
from tests.support.saver_comparison import aput, chain, checkpoint, put, thread, values_of
from tests.support.store_kinds import arguments, in_process

ONE = PoolSettings(min_size=0, max_size=1)


class Conversation(TypedDict):
    messages: Annotated[list[str], lambda old, new: old + new]


def graph(**compiled: Any) -> Any:
    """Answers each message."""
    builder = StateGraph(Conversation)
    builder.add_node("answer", lambda state: {"messages": [f"re: {state['messages'][-1]}"]})
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    return builder.compile(**compiled)


def test_a_saver_is_made_from_a_clusters_name(database: Database) -> None:
    """Nothing is contacted before it is used, and a closed one opens again."""
    before = database.cluster.accepted
    saver = AuroraSaver.from_cluster(**arguments(database, pool=ONE))
    assert database.cluster.accepted == before
    with saver:
        saver.setup()
        put(saver, thread("t"), {"a": [1]})
    assert values_of(saver, thread("t")) == {"a": [1]}
    saver.close()


async def test_so_is_an_asyncio_one(database: Database) -> None:
    saver = AsyncAuroraSaver.from_cluster(**arguments(database, pool=ONE))
    async with saver:
        await saver.setup()
        await aput(saver, thread("t"), {"a": [1]})
    assert (await saver.aget_tuple(thread("t"))).checkpoint["channel_values"] == {"a": [1]}
    await saver.close()


async def test_entering_says_what_is_wrong(database: Database) -> None:
    given = {**arguments(database), "database": "missing"}
    with pytest.raises(DatabaseNotFoundError), AuroraSaver.from_cluster(**given):
        pass
    with pytest.raises(DatabaseNotFoundError):
        async with AsyncAuroraSaver.from_cluster(**given):
            pass


async def test_a_wrong_string_is_said_to_be_wrong_at_once(database: Database) -> None:
    """With the server's own reason, as by the parent."""
    wrong = psycopg.conninfo.make_conninfo(database.owner_dsn, dbname="missing")
    begun = time.monotonic()
    with (
        pytest.raises(psycopg.OperationalError, match='database "missing" does not exist'),
        AuroraSaver.from_conn_string(wrong),
    ):
        pass
    with pytest.raises(psycopg.OperationalError, match='database "missing" does not exist'):
        async with AsyncAuroraSaver.from_conn_string(wrong):
            pass
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("concurrent_runs", ["allow", "refuse"])
def test_a_put_whose_reply_was_lost_is_repeated(database: Database, concurrent_runs: str) -> None:
    """It had taken effect, and counts as stored by this run, not by another one."""
    given = arguments(database, concurrent_runs=concurrent_runs)
    with AuroraSaver.from_cluster(**given) as saver:
        saver.setup()
        head = put(saver, thread("t"), {"a": [1]})
        lost = database.cluster.replies_dropped
        database.cluster.drop_reply_of_commit()
        child = put(saver, head, {"a": [2]}, versions={"a": "2"})
        assert database.cluster.replies_dropped == lost + 1
        database.cluster.drop_reply_of_commit()
        saver.put_writes(child, [("a", [3])], "task")
        assert database.cluster.replies_dropped == lost + 2
        assert values_of(saver, thread("t")) == {"a": [2]}
        assert len(list(saver.list(thread("t")))) == 2
        assert saver.get_tuple(child).pending_writes == [("task", "a", [3])]


def test_a_store_and_its_checkpointer_share_one_pool(database: Database) -> None:
    """One connection serves both; closing the store closes it, and closing the saver does not."""
    given = arguments(database, pool=ONE, schema="memory")
    with AuroraStore.from_cluster(**given) as store:
        saver = store.checkpointer()
        store.setup()
        saver.setup()
        agent = graph(checkpointer=saver, store=store)
        config: Any = thread("t")
        for word in ("one", "two"):
            agent.invoke({"messages": [word]}, config)
        store.put(("memories",), "k", {"text": "kept"})
        assert agent.get_state(config).values == {"messages": ["one", "re: one", "two", "re: two"]}
        saver.close()
        assert store.get(("memories",), "k")
        assert database.cluster.open_connections == 1
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'memory'"
    with psycopg.connect(database.admin_dsn) as conn:
        assert conn.execute(tables + " AND tablename LIKE 'checkpoint%'").fetchone() == (4,)


async def test_so_do_the_asyncio_ones(database: Database) -> None:
    async with AsyncAuroraStore.from_cluster(**arguments(database, pool=ONE)) as store:
        saver = store.checkpointer()
        await store.setup()
        await saver.setup()
        agent = graph(checkpointer=saver, store=store)
        await asyncio.gather(
            *(agent.ainvoke({"messages": ["one"]}, thread(str(i))) for i in range(5))
        )
        assert len([it async for it in agent.aget_state_history(thread("1"))]) == 3
        await saver.close()
        await store.aput(("memories",), "k", {"text": "kept"})
        assert database.cluster.open_connections == 1


async def test_a_checkpointer_shares_a_stores_only_connection(database: Database) -> None:
    """And its lock: a connection has one user at a time."""
    with Connection.connect(database.owner_dsn, autocommit=True) as conn:
        store = AuroraStore(conn)
        saver = store.checkpointer()
        store.setup()
        saver.setup()
        assert saver.lock is store.lock
        threads = [
            threading.Thread(target=chain, args=(saver, thread(str(i)), 5)) for i in range(4)
        ]
        for it in threads:
            it.start()
        for i in range(20):
            store.put(("n",), str(i), {})
        for it in threads:
            it.join()
        assert len(list(saver.list(None))) == 20
    async with await AsyncConnection.connect(database.owner_dsn, autocommit=True) as aconn:
        asyncio_store = AsyncAuroraStore(aconn)
        other = asyncio_store.checkpointer()
        assert other.lock is asyncio_store.lock
        await asyncio.gather(
            *(aput(other, thread("a"), {"a": [i]}) for i in range(9)),
            *(asyncio_store.aput(("n",), str(i), {}) for i in range(9)),
        )


def test_thread_and_memory_survive_the_process(database: Database) -> None:
    """Made from the environment alone, in one process after another."""
    code = """
    import json
    from langgraph_aurora_store import AuroraStore
    from tests.checkpoint.test_savers import graph, thread
    with AuroraStore.from_cluster() as store:
        saver = store.checkpointer()
        store.setup()
        saver.setup()
        agent = graph(checkpointer=saver, store=store)
        print(json.dumps(agent.invoke({"messages": ["hi"]}, thread("t"))))
    """
    assert json.loads(in_process(database, code)) == {"messages": ["hi", "re: hi"]}
    assert json.loads(in_process(database, code)) == {"messages": ["hi", "re: hi"] * 2}


def test_a_clone_with_an_allowlist_works(database: Database) -> None:
    """LangGraph makes one of a checkpointer whose graph has types of its own."""
    with AuroraSaver.from_cluster(**arguments(database)) as saver:
        saver.setup()
        saver.serde = JsonPlusSerializer(allowed_msgpack_modules=[])
        clone = saver.with_allowlist([("tests.checkpoint.test_savers", "Conversation")])
        assert clone is not saver
        put(clone, thread("t"), {"a": [1]})
        assert values_of(saver, thread("t")) == {"a": [1]}


# S8: two runs at a time on one thread


class Meeting(AsyncAuroraSaver):
    """Lets two runs go on once both have read their thread."""

    reading: asyncio.Barrier | None = None

    async def aget_tuple(self, config: Any) -> Any:
        found = await super().aget_tuple(config)
        if self.reading:
            await self.reading.wait()
        return found


async def run_two(saver: Meeting) -> list[Any]:
    """Two runs that both have read the thread before either of them stores."""
    saver.reading = asyncio.Barrier(2)
    agent = graph(checkpointer=saver)
    runs = [agent.ainvoke({"messages": [word]}, thread("t")) for word in ("one", "two")]
    results = await asyncio.gather(*runs, return_exceptions=True)
    saver.reading = None
    return results


async def test_s8_the_second_of_two_runs_is_refused(database: Database) -> None:
    """By default both succeed, and one of them is lost, as with the parent."""
    async with Meeting.from_cluster(**arguments(database)) as saver:
        await saver.setup()
        assert [type(it) for it in await run_two(saver)] == [dict, dict]
        head = await graph(checkpointer=saver).aget_state(thread("t"))
        assert len(head.values["messages"]) == 2
        await saver.adelete_thread("t")
    given = arguments(database, concurrent_runs="refuse")
    async with Meeting.from_cluster(**given) as saver:
        for turn in range(1, 4):
            refused, kept = sorted(await run_two(saver), key=lambda it: isinstance(it, dict))
            assert isinstance(refused, ConcurrentRunError)
            assert len(kept["messages"]) == 2 * turn
            head = await graph(checkpointer=saver).aget_state(thread("t"))
            assert head.values == kept


@pytest.mark.parametrize("values", [{"a": [1]}, {}])
def test_s8_what_is_refused_leaves_nothing(database: Database, values: dict[str, Any]) -> None:
    """And what was stored may be stored again, as after a lost reply."""
    with Connection.connect(database.owner_dsn, autocommit=True) as conn:
        saver = AuroraSaver(conn, concurrent_runs="refuse", schema='a "schema" 100%')
        saver.setup()
        head = put(saver, thread("t"), values)
        made = checkpoint(values)
        saver.put(head, made, {}, made["channel_versions"])
        put(saver, thread("t", checkpoint_ns="inner"), values)
        put(saver, thread("other"), values)
        saver.put(head, made, {"again": True}, made["channel_versions"])
        for parent in (head, thread("t")):
            with pytest.raises(ConcurrentRunError, match="thread 't' has a later checkpoint"):
                put(saver, parent, {"b": [2]})
        assert len(list(saver.list(thread("t", checkpoint_ns="")))) == 2
        rows = conn.execute(
            sql.SQL("SELECT count(*) FROM {} WHERE channel = 'b'").format(
                sql.Identifier('a "schema" 100%', "checkpoint_blobs")
            )
        )
        assert rows.fetchone() == (0,)


@pytest.mark.parametrize("cls", [AuroraSaver, AsyncAuroraSaver])
def test_s8_another_word_is_refused(cls: Any, database: Database) -> None:
    with pytest.raises(ConfigurationError, match="pass 'allow' or 'refuse'"):
        cls.from_cluster(**arguments(database, concurrent_runs="forbid"))


# failovers


@pytest.fixture
def cluster() -> Iterator[LocalAurora]:
    """One of its own, as the rest of the session's would see its failovers."""
    with LocalAurora(export=False) as found:
        found.add_reader()
        yield found


@pytest.mark.timeout(300)
async def test_no_acknowledged_checkpoint_is_lost_through_five_failovers(
    cluster: LocalAurora,
) -> None:
    """Nor does a caller see one: each put is repeated on the new writer."""
    database = Database(cluster, cluster.database)
    acknowledged: list[dict[str, Any]] = []
    is_over = asyncio.Event()
    settings = PoolSettings(min_size=4, max_size=4)
    async with AsyncAuroraSaver.from_cluster(**arguments(database, pool=settings)) as saver:
        await saver.setup()

        async def write(name: str) -> None:
            config = thread(name)
            while not is_over.is_set():
                config = await aput(saver, config, {"text": "x" * 100})
                await saver.aput_writes(config, [("text", name)], "task")
                acknowledged.append(config)

        writers = [asyncio.create_task(write(str(i))) for i in range(8)]
        for number in range(5):
            demoted = "read-only" if number % 2 else "gone"
            await asyncio.to_thread(cluster.failover, demoted=demoted)
            done = len(acknowledged)
            while len(acknowledged) < done + 50:
                await asyncio.sleep(0.01)
                for writer in writers:
                    if writer.done():
                        writer.result()
            if demoted == "gone":
                await asyncio.to_thread(cluster.add_reader)
        is_over.set()
        await asyncio.gather(*writers)
        kept = {it.config["configurable"]["checkpoint_id"] async for it in saver.alist(None)}
        assert {it["configurable"]["checkpoint_id"] for it in acknowledged} <= kept
        found = await saver.aget_tuple(acknowledged[-1])
        assert found.checkpoint["channel_values"] == {"text": "x" * 100}
        assert len(found.pending_writes) == 1
