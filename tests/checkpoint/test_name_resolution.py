"""No object of another role takes part in a saver's statement, whatever is on the search path."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from langgraph_aurora_store import AsyncAuroraSaver, AuroraSaver
from tests.support.database import Database
from tests.support.saver_comparison import aput, chain, put, thread
from tests.support.traps import traps_set

TRAPPED = 'SET search_path = "$user", traps, public'
SETTINGS: dict[str, Any] = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}


def test_a_saver_calls_no_function_of_another_role(database: Database) -> None:
    """Each of its operations succeeds as without the traps."""
    with psycopg.connect(database.owner_dsn, **SETTINGS) as conn:
        saver, refusing = AuroraSaver(conn), AuroraSaver(conn, concurrent_runs="refuse")
        saver.setup()
        with traps_set(database.admin_dsn):
            conn.execute(TRAPPED)
            with pytest.raises(psycopg.Error):
                conn.execute("SELECT '{}'::jsonb -> 'a'")
            last = chain(saver, thread("a"), 4)[-1]
            saver.put_writes(last, [("value", 1)], "task")
            put(refusing, thread("b"), {"value": 1})
            # Of a format whose pending sends are read from the parent's writes.
            child = put(saver, last, {"value": 1}, metadata={"run_id": "r"}, v=3)
            assert saver.get_tuple(child) is not None
            assert saver.get_tuple(thread("a")) is not None
            assert len(list(saver.list(thread("a"), filter={"run_id": "r"}, limit=3))) == 1
            assert len(list(saver.list(thread("a"), before=last))) == 3
            saver.copy_thread("a", "c")
            saver.delete_for_runs(["r"])
            saver.prune(["a"], older_than=timedelta(days=1))
            saver.prune(["a"], keep_last=2)
            assert len(list(saver.list(thread("a")))) == 2
            assert saver.delete_idle_threads(timedelta(days=1)) == 0
            saver.delete_thread("a")
            saver.setup()


async def test_nor_does_the_asyncio_one(database: Database) -> None:
    """The reads, which every run of a graph makes."""
    conn: Any = await psycopg.AsyncConnection.connect(database.owner_dsn, **SETTINGS)
    async with conn:
        saver = AsyncAuroraSaver(conn)
        await saver.setup()
        with traps_set(database.admin_dsn):
            await conn.execute(TRAPPED)
            await aput(saver, thread("a"), {"value": 1})
            assert await saver.aget_tuple(thread("a")) is not None
            assert len([it async for it in saver.alist(thread("a"))]) == 1
            await saver.aprune(["a"])
