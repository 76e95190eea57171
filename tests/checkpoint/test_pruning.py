"""Deleting old checkpoints, idle threads and what runs have left: the rows G4, G5 and S10."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from psycopg import Connection

from langgraph_aurora_store import AsyncAuroraSaver, AuroraSaver
from langgraph_aurora_store.checkpoint import deletion as pruning
from langgraph_aurora_store.errors import ConfigurationError
from tests.support.database import Database
from tests.support.parent_comparison import traffic
from tests.support.saver_comparison import (
    SaverSide,
    aput,
    chain,
    checkpoint,
    id_of_age,
    put,
    saver_side,
    thread,
    values_of,
)
from tests.support.store_kinds import arguments

__all__ = ["saver_side"]

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
DAY = timedelta(days=1)


@pytest.fixture
def side(database: Database) -> SaverSide:
    """Ours alone."""
    return SaverSide(True, database)


def counts(side: SaverSide) -> list[int]:
    """The rows of each table."""
    return [side.sql(f"SELECT count(*) FROM {table}")[0][0] for table in TABLES]


def ids(saver: Any, name: str) -> list[str]:
    """A thread's checkpoints, the newest first."""
    return [it.checkpoint["id"] for it in saver.list(thread(name))]


def test_g4_threads_are_pruned_together(saver_side: SaverSide, tmp_path: Path) -> None:
    """Ten threads of twenty checkpoints: the parent takes twelve round trips for each."""
    with saver_side.saver() as pooled:
        for name in range(10):
            chain(pooled, thread(str(name)), 20)
    names = [str(name) for name in range(10)]
    with Connection.connect(
        saver_side.database.owner_dsn, autocommit=True, prepare_threshold=None
    ) as conn:
        saver: Any = saver_side.saver_class(conn)
        trips = traffic(conn, tmp_path / "trace", lambda: saver.prune(names)).round_trips
        assert counts(saver_side) == [10, 10, 0]
        with saver_side.only_ours():
            assert trips <= 3
        again = traffic(conn, tmp_path / "again", lambda: saver.prune(names)).round_trips
        with saver_side.only_ours():
            assert again <= 3
        delete = lambda: saver.prune(names, strategy="delete")  # noqa: E731
        with saver_side.only_ours():
            assert traffic(conn, tmp_path / "delete", delete).round_trips == 1


def test_g4_two_pruners_at_a_time_both_succeed(saver_side: SaverSide) -> None:
    """Of the parent's, half fail with 40001, though there is nothing wrong."""
    names = [str(name) for name in range(6)]
    failures = []

    def prune(saver: Any, barrier: threading.Barrier) -> None:
        barrier.wait()
        try:
            saver.prune(names)
        except psycopg.OperationalError as error:
            failures.append(error)

    with saver_side.saver() as saver, ThreadPoolExecutor(2) as threads:
        other = saver_side.saver_class(saver.conn)
        for _ in range(3):
            for name in names:
                chain(saver, thread(name), 15)
            barrier = threading.Barrier(2)
            for done in [threads.submit(prune, it, barrier) for it in (saver, other)]:
                done.result()
        assert counts(saver_side)[0] >= 6
        with saver_side.only_ours():
            assert failures == []
            assert counts(saver_side) == [6, 6, 0]


def test_the_newest_are_kept(side: SaverSide) -> None:
    with side.saver() as saver:
        made = chain(saver, thread("t"), 8)
        for config in made:
            saver.put_writes(config, [("items", 1)], "task")
        saver.prune(["t"], keep_last=3)
        assert ids(saver, "t") == [it["configurable"]["checkpoint_id"] for it in made[:-4:-1]]
        assert counts(side) == [3, 3, 3]
        assert [it.checkpoint["channel_values"]["items"] for it in saver.list(None)] == [
            [7],
            [6],
            [5],
        ]
        assert list(saver.list(None))[-1].parent_config is None


def test_the_young_are_kept(side: SaverSide) -> None:
    """And the newest, however old; an id that tells no time is never old enough."""
    with side.saver() as saver:
        for age in (9, 8, 3, 1):
            given = {"checkpoint_id": id_of_age(age * DAY), "versions": {"a": str(age)}}
            put(saver, thread("mixed"), {"a": [age]}, **given)
            put(saver, thread("old"), {"a": [age]}, checkpoint_id=id_of_age((age + 9) * DAY))
        for name in ("1", "2"):
            put(saver, thread("foreign"), checkpoint_id=name)
        saver.prune(older_than=7 * DAY)
        assert [it.checkpoint["channel_values"] for it in saver.list(thread("mixed"))] == [
            {"a": [1]},
            {"a": [3]},
        ]
        assert len(ids(saver, "old")) == 1
        assert ids(saver, "foreign") == ["2", "1"]
        saver.prune(older_than=timedelta(0), keep_last=2)
        assert len(ids(saver, "mixed")) == 2


def test_more_than_a_batch_is_deleted_in_several(side: SaverSide) -> None:
    """Each a transaction of its own: what another session holds up stops the rest only."""
    count = 2 * pruning.BATCH + 5
    with side.saver() as saver:
        put(saver, thread("t"), {"a": [1]})
        side.sql(
            "INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint)"
            " SELECT 't', '', '0-' || lpad(i::text, 6, '0'), jsonb_build_object('v', 4,"
            " 'channel_versions', jsonb_build_object('a', i::text)) FROM generate_series(1, %s) i",
            count,
        )
        side.sql(
            "INSERT INTO checkpoint_blobs SELECT 't', '', 'a', 'x' || i, 'msgpack', '' FROM"
            " generate_series(1, %s) i",
            count,
        )
        with psycopg.connect(side.database.admin_dsn) as holder, ThreadPoolExecutor(1) as threads:
            holder.execute(
                "SELECT FROM checkpoints WHERE checkpoint_id = %s FOR UPDATE",
                [f"0-{pruning.BATCH + 1:06}"],
            )
            done = threads.submit(saver.prune, ["t"])
            while counts(side)[0] > count + 1 - pruning.BATCH:
                time.sleep(0.01)
            assert not done.done()
            holder.rollback()
            done.result(60)
        assert counts(side) == [1, 1, 0]
        assert values_of(saver, thread("t")) == {"a": [1]}


def test_more_threads_than_a_group_are_pruned(side: SaverSide) -> None:
    with side.saver() as saver:
        side.sql(
            "INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint)"
            """ SELECT 'thread ' || i, '', j::text, '{"v": 4}' FROM generate_series(1, %s) i,"""
            " generate_series(1, 3) j",
            2 * pruning.THREADS + 1,
        )
        saver.prune()
        assert counts(side)[0] == 2 * pruning.THREADS + 1


def delta_thread(saver: Any, name: str) -> None:
    config = put(saver, thread(name), {"items": _DeltaSnapshot([1])})
    for n in range(2, 5):
        saver.put_writes(config, [("items", n)], "task")
        made = checkpoint({}, {"items": str(n)})
        config = saver.put(config, made, {}, {"items": str(n)})


def test_threads_of_a_delta_channel_are_left_whole(
    side: SaverSide, caplog: pytest.LogCaptureFixture
) -> None:
    """Named they are refused, as by the parent; among all of them they are left, and counted."""
    caplog.set_level("INFO", logger=pruning.logger.name)
    with side.saver() as saver:
        delta_thread(saver, "delta")
        chain(saver, thread("plain"), 3)
        before = counts(side)
        with pytest.raises(NotImplementedError, match="DeltaChannel: delta"):
            saver.prune(["plain", "delta"])
        assert counts(side) == before
        saver.prune()
        assert len(ids(saver, "plain")) == 1
        assert len(ids(saver, "delta")) == 4
        head = thread("delta")
        history = saver.get_delta_channel_history(config=head, channels=["items"])
        assert [it[2] for it in history["items"]["writes"]] == [2, 3, 4]
    assert "left 1 threads whole" in caplog.text


def test_what_a_run_saves_meanwhile_is_kept(side: SaverSide) -> None:
    """Whatever its id: the statement sees what was there as it began, and deletes of that."""
    with side.saver() as saver, ThreadPoolExecutor(1) as threads:
        made = chain(saver, thread("t"), 4)
        with psycopg.connect(side.database.admin_dsn) as holder:
            holder.execute("SELECT FROM checkpoints FOR UPDATE")
            done = threads.submit(saver.prune, ["t"])
            while not side.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                time.sleep(0.01)
            values = {"items": [3], "more": ["new"]}
            new = checkpoint(values, {"items": "3", "more": "1"})
            config = saver.put(made[-1], new, {}, {"more": "1"})
            early = checkpoint(values, {"items": "3", "more": "1"}, checkpoint_id="0")
            saver.put(thread("t"), early, {}, {})
            saver.put_writes(config, [("items", 9)], "task")
            holder.rollback()
        done.result(60)
        assert values_of(saver, config) == values
        assert len(saver.get_tuple(config).pending_writes) == 1
        assert values_of(saver, thread("t", checkpoint_id="0")) == values


def test_what_makes_no_sense_is_refused(side: SaverSide) -> None:
    with side.saver() as saver:
        chain(saver, thread("t"), 3)
        for wrong in (
            {"keep_last": 0},
            {"keep_last": True},
            {"strategy": "delete"},
            {"thread_ids": ["t"], "strategy": "delete", "keep_last": 2},
        ):
            with pytest.raises(ConfigurationError):
                saver.prune(**wrong)
        with pytest.raises(ValueError, match="Unknown prune strategy"):
            saver.prune(["t"], strategy="some")
        with pytest.raises(TypeError, match="not a str"):
            saver.prune("t")
        saver.prune([])
        assert counts(side)[0] == 3


# S10


def test_s10_runs_are_deleted_with_all_they_left(side: SaverSide) -> None:
    """No blob is orphaned, and what other runs refer to stays."""
    with side.saver() as saver:
        first = put(saver, thread("t"), {"a": [1], "b": [1]}, metadata={"run_id": "first"})
        saver.put_writes(first, [("a", 1)], "task")
        second = put(
            saver,
            first,
            {"a": [2], "b": [1]},
            versions={"a": "2", "b": "1"},
            metadata={"run_id": "second"},
        )
        saver.delete_for_runs(["first", "none"])
        assert counts(side) == [1, 2, 0]
        assert values_of(saver, second) == {"a": [2], "b": [1]}
        assert saver.get_tuple(second).parent_config is None
        saver.delete_for_runs([])
        saver.delete_for_runs(["second"])
        assert counts(side) == [0, 0, 0]


def test_s10_a_copy_may_be_repeated_and_continued(side: SaverSide) -> None:
    with side.saver() as saver:
        made = chain(saver, thread(1), 3)
        saver.put_writes(made[-1], [("items", [9])], "task")
        for _ in range(2):
            saver.copy_thread(1, 2)
        assert ids(saver, "2") == ids(saver, "1")
        head = saver.get_tuple(thread("2"))
        assert head.pending_writes == [("task", "items", [9])]
        put(saver, head.config, {"items": ["own"]}, versions={"items": "9"})
        assert len(ids(saver, "1")) == 3
        saver.delete_thread("1")
        assert [it.checkpoint["channel_values"]["items"] for it in saver.list(thread("2"))] == [
            ["own"],
            [2],
            [1],
            [0],
        ]


@pytest.mark.parametrize("name", ["delete_for_runs", "copy_thread"])
def test_s10_the_parent_lacks_them(saver_side: SaverSide, name: str) -> None:
    with saver_side.saver() as saver, saver_side.only_ours(NotImplementedError):
        getattr(saver, name)(*(["run"],) if name == "delete_for_runs" else ("a", "b"))


# G5


def test_g5_idle_threads_are_deleted(side: SaverSide) -> None:
    """By their newest checkpoint, in any namespace; by the plan that skips from one to the next."""
    with side.saver() as saver:
        for age in (40, 31):
            put(saver, thread("idle"), {"a": [1]}, checkpoint_id=id_of_age(age * DAY))
        for name, ns, age in (("awake", "", 40), ("awake", "inner", 29), ("new", "", 0)):
            given = {"checkpoint_id": id_of_age(age * DAY)}
            put(saver, thread(name, checkpoint_ns=ns), {"a": [1]}, **given)
        put(saver, thread("foreign"), checkpoint_id="1")
        assert saver.delete_idle_threads(30 * DAY) == 1
        assert counts(side) == [4, 3, 0]
        assert saver.get_tuple(thread("idle")) is None
        assert saver.delete_idle_threads(30 * DAY) == 0


def test_g5_many_idle_threads_are_deleted_in_batches(side: SaverSide) -> None:
    count = 2 * pruning.THREADS + 1
    with side.saver() as saver:
        side.sql(
            "INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint)"
            """ SELECT 'thread ' || i, '', %s, '{"v": 4}' FROM generate_series(1, %s) i""",
            id_of_age(2 * DAY),
            count,
        )
        assert saver.delete_idle_threads(DAY) == count
        assert counts(side)[0] == 0


def test_g5_a_sweeper_deletes_them(side: SaverSide) -> None:
    """Until it is stopped or the saver is closed; without a TTL there is none."""
    ttl = {"default_ttl": 60, "sweep_interval_minutes": 0.001}
    with side.saver(ttl=ttl) as saver:
        put(saver, thread("idle"), checkpoint_id=id_of_age(timedelta(hours=2)))
        put(saver, thread("awake"), checkpoint_id=id_of_age(timedelta(minutes=50)))
        future = saver.start_ttl_sweeper()
        assert saver.start_ttl_sweeper() is future
        while saver.get_tuple(thread("idle")):
            time.sleep(0.01)
        saver.close()
        assert future.done()
        assert saver.get_tuple(thread("awake"))
    with side.saver() as saver:
        put(saver, thread("idle"), checkpoint_id=id_of_age(timedelta(hours=2)))
        assert saver.sweep_ttl() == 0
        assert saver.start_ttl_sweeper().done()


async def test_the_asyncio_saver_deletes_likewise(side: SaverSide) -> None:
    ttl = {"default_ttl": 60, "sweep_interval_minutes": 0.001}
    async with side.async_saver(ttl=ttl) as saver:
        for number in range(3):
            await aput(saver, thread("t"), {"a": [number]}, versions={"a": str(number)})
        await saver.aprune(keep_last=2)
        assert counts(side) == [2, 2, 0]
        await aput(saver, thread("idle"), checkpoint_id=id_of_age(timedelta(hours=2)))
        assert await saver.adelete_idle_threads(DAY) == 0
        task = await saver.start_ttl_sweeper()
        assert await saver.start_ttl_sweeper() is task
        while await saver.aget_tuple(thread("idle")):
            await asyncio.sleep(0.01)
        await saver.close()
        assert task.done()
    async with side.async_saver() as saver:
        assert await saver.sweep_ttl() == 0
        await (await saver.start_ttl_sweeper())
        assert await saver.stop_ttl_sweeper()


@pytest.mark.parametrize("cls", [AuroraSaver, AsyncAuroraSaver])
def test_a_ttl_that_makes_no_sense_is_refused(cls: Any, database: Database) -> None:
    with pytest.raises(ConfigurationError, match="default_ttl"):
        cls.from_cluster(**arguments(database, ttl={"default_ttl": 0}))
