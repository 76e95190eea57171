"""LangGraph's own conformance tests of checkpointers, on each way to make one of ours."""

from collections.abc import AsyncIterator

import pytest
from langgraph.checkpoint.conformance import checkpointer_test, validate

from langgraph_aurora_store import AsyncAuroraSaver, AsyncAuroraStore
from tests.support.database import Database
from tests.support.store_kinds import arguments

TESTS = 81
"""How many tests langgraph-checkpoint-conformance 0.0.2 holds."""


@pytest.mark.parametrize("way", ["connection string", "cluster", "store", "schema"])
async def test_every_test_passes(database: Database, way: str) -> None:
    """No capability is missing, and no test is left out."""

    @checkpointer_test(name=way)
    async def saver() -> AsyncIterator[AsyncAuroraSaver]:
        if way == "connection string":
            async with AsyncAuroraSaver.from_conn_string(database.owner_dsn) as made:
                await made.setup()
                yield made
        elif way == "store":
            async with AsyncAuroraStore.from_cluster(**arguments(database)) as store:
                made = store.checkpointer()
                await made.setup()
                yield made
        else:
            schema = 'a "schema" 100%' if way == "schema" else None
            given = arguments(database, schema=schema)
            async with AsyncAuroraSaver.from_cluster(**given) as made:
                await made.setup()
                yield made

    report = await validate(saver)
    failures = [it for result in report.results.values() for it in result.failures or []]
    assert failures == []
    assert all(result.passed for result in report.results.values()), report.results
    assert sum(result.tests_passed for result in report.results.values()) == TESTS
