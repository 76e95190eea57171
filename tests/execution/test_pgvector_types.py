"""pgvector's types on connections, as many as are made."""

import gc

import pytest
from pgvector.psycopg.halfvec import HalfVectorDumper
from pgvector.psycopg.vector import VectorDumper

from langgraph_aurora_store.local import LocalAurora
from langgraph_aurora_store.sql.vector_values import vector_classes
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


@pytest.mark.parametrize("kind", ["blocking-pool", "asyncio-pool"])
@pytest.mark.parametrize("number", [0, 1])
async def test_a_function_may_return_pgvectors_own_classes(
    kind: str, number: int, aurora: LocalAurora
) -> None:
    """From pgvector-python 0.5 on they are no sequences."""
    made = vector_classes()[number]
    index = {"dims": 3, "embed": lambda texts: [made([1.0, 2.0, len(text)]) for text in texts]}
    with set_up(aurora, "dumpers", index=index):
        async with opened(kind, aurora, "dumpers", index=index) as store:
            await store.put(("n",), "k", {"text": "tea"}, index=["text"])
            (found,) = await store.search(("n",), query="tea")
    assert found.score == pytest.approx(1.0)
