"""A connection that a failover has left at the former writer answers no read."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from langgraph_aurora_store.connect.pool_settings import PoolSettings
from langgraph_aurora_store.local import LocalAurora

NAMESPACE = ("users", "ada")
POOL = PoolSettings(min_size=2, max_size=2, check_after_idle_s=None)
CHANGE = "UPDATE store SET value = '{\"text\": \"new\"}' WHERE key = 'k'"


@pytest.mark.parametrize("endpoint_delay_s", [0.0, 1.0])
@pytest.mark.parametrize("is_asyncio", [False, True], ids=["blocking", "asyncio"])
def test_a_read_after_a_failover_sees_what_the_new_writer_has(
    is_asyncio: bool, endpoint_delay_s: float
) -> None:
    """The former writer keeps its connections, and lags behind as a reader does."""
    with LocalAurora(readers=1, export=False) as aurora:
        given: dict[str, Any] = {
            "user": aurora.user,
            "database": aurora.database,
            "session": aurora.session,
            "sslrootcert": aurora.sslrootcert,
            "pool": POOL,
        }

        def change() -> None:
            aurora.failover(demoted="read-only", endpoint_delay_s=endpoint_delay_s)
            aurora.reader_lag_s = 5.0
            with psycopg.connect(aurora.admin_dsn, autocommit=True) as writer:
                assert writer.execute(CHANGE).rowcount == 1

        if is_asyncio:
            found = asyncio.run(_read_after(aurora.identifier, given, change))
        else:
            with AuroraStore.from_cluster(aurora.identifier, **given) as store:
                store.setup()
                store.put(NAMESPACE, "k", {"text": "old"})
                change()
                found = [store.get(NAMESPACE, "k"), *store.search(NAMESPACE)]
        assert [item and item.value for item in found] == [{"text": "new"}] * 2


async def _read_after(identifier: str, given: dict[str, Any], change: Any) -> list[Any]:
    async with AsyncAuroraStore.from_cluster(identifier, **given) as store:
        await store.setup()
        await store.aput(NAMESPACE, "k", {"text": "old"})
        await asyncio.to_thread(change)
        return [await store.aget(NAMESPACE, "k"), *(await store.asearch(NAMESPACE))]


@pytest.mark.parametrize("is_asyncio", [False, True], ids=["blocking", "asyncio"])
def test_without_retries_a_demoted_writer_costs_one_call(is_asyncio: bool) -> None:
    """The pool lets go of its connections then, and the next call is served."""
    with LocalAurora(readers=1, export=False) as aurora:
        given: dict[str, Any] = {
            "user": aurora.user,
            "database": aurora.database,
            "session": aurora.session,
            "sslrootcert": aurora.sslrootcert,
            "pool": POOL,
            "retry": None,
        }

        def change() -> None:
            aurora.failover(demoted="read-only")

        if is_asyncio:
            asyncio.run(_put_twice_after(aurora.identifier, given, change))
            return
        with AuroraStore.from_cluster(aurora.identifier, **given) as store:
            store.setup()
            store.put(NAMESPACE, "k", {"text": "old"})
            change()
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                store.put(NAMESPACE, "k", {"text": "refused"})
            store.put(NAMESPACE, "k", {"text": "new"})


async def _put_twice_after(identifier: str, given: dict[str, Any], change: Any) -> None:
    async with AsyncAuroraStore.from_cluster(identifier, **given) as store:
        await store.setup()
        await store.aput(NAMESPACE, "k", {"text": "old"})
        await asyncio.to_thread(change)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await store.aput(NAMESPACE, "k", {"text": "refused"})
        await store.aput(NAMESPACE, "k", {"text": "new"})
