"""pgvector's types on connections, as many as are made."""

import gc

import pytest
from pgvector.psycopg.halfvec import HalfVectorDumper
from pgvector.psycopg.vector import VectorDumper

from langgraph_aurora_store.local import LocalAurora
from tests.support.store_kinds import DIMS, Letters, opened, set_up

CONNECTIONS = 5
INDEX = {"dims": DIMS, "embed": Letters(), "fields": ["text"]}


def dumpers() -> set[type]:
    """The classes that send pgvector's values; psycopg keeps each that was used."""
    gc.collect()
    found: set[type] = set()
    for base in (VectorDumper, HalfVectorDumper):
        for one in base.__subclasses__():
            found |= {one, *one.__subclasses__()}
    return found


@pytest.mark.parametrize("kind", ["blocking-connection", "asyncio-connection"])
async def test_a_further_connection_leaves_no_classes_behind(
    kind: str, aurora: LocalAurora
) -> None:
    """psycopg would keep those of every connection for ever."""

    async def use() -> None:
        async with opened(kind, aurora, "dumpers", index=INDEX) as store:
            await store.put(("n",), "k", {"text": "tea"})
            assert await store.search(("n",), query="tea")

    with set_up(aurora, "dumpers", index=INDEX):
        await use()
        known = dumpers()
        for _ in range(CONNECTIONS):
            await use()
        assert dumpers() - known == set()
