"""What a search by meaning cannot find or rank is said when the store first uses the database."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from langgraph_aurora_store.local import LocalAurora
from tests.support.store_kinds import CLUSTER_KINDS, DIMS, KINDS, Letters, opened, set_up

DATABASE = "coverage"
NAMESPACE = ("users", "ada")


class Named(Letters):
    """An embedding model with a name, as those of services have."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = model


def index(model: str, *fields: str) -> dict[str, Any]:
    return {"embed": Named(model), "dims": DIMS, "fields": list(fields or ("text",))}


@pytest.fixture
def sql(aurora: LocalAurora) -> Iterator[psycopg.Connection]:
    """A database whose tables were set up for vectors."""
    with set_up(aurora, DATABASE, index=index("one")) as conn:
        yield conn


def warned(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    messages = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    return [message for message in messages if words in message]


@pytest.mark.parametrize("use", ["search", "setup"])
@pytest.mark.parametrize("kind", [*KINDS, *CLUSTER_KINDS])
async def test_items_without_a_vector_are_counted_once(
    kind: str,
    use: str,
    aurora: LocalAurora,
    sql: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An index that is switched on over memories finds none of them."""
    async with opened(kind, aurora, DATABASE) as plain:
        for number in range(30):
            await plain.put(NAMESPACE, f"k{number}", {"text": "tea"})
        await plain.put(NAMESPACE, "blank", {"text": " \n"})
        await plain.put(NAMESPACE, "other", {"name": "tea"})
        await plain.put(NAMESPACE, "null", {"text": None})
    async with opened(kind, aurora, DATABASE, index=index("one")) as store:
        await store.put(NAMESPACE, "new", {"text": "milk"}) if use == "search" else None
        for _ in range(2):
            await (store.setup() if use == "setup" else store.search(NAMESPACE, query="tea"))
    (message,) = warned(caplog, "have no vector")
    assert message.startswith("30 of 30 items with text in fields ['text']")
    assert "Put them again" in message
    caplog.clear()
    async with opened(kind, aurora, DATABASE, index=index("one")) as store:
        for number in range(30):
            await store.put(NAMESPACE, f"k{number}", {"text": "tea"})
        assert len(await store.search(NAMESPACE, query="tea", limit=50)) >= 30
    async with opened(kind, aurora, DATABASE, index=index("one")) as store:
        await store.search(NAMESPACE, query="tea")
    assert len(warned(caplog, "have no vector")) == 1, "the first of these stores warns once more"


@pytest.mark.parametrize("kind", [*KINDS, *CLUSTER_KINDS])
async def test_vectors_of_another_model_are_counted(
    kind: str, aurora: LocalAurora, sql: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the same length they fit the column, and only the ranking is wrong."""
    async with opened(kind, aurora, DATABASE, index=index("one")) as store:
        for number in range(20):
            await store.put(NAMESPACE, f"k{number}", {"text": f"tea {number}"})
    assert warned(caplog, "another embedding model") == []
    async with opened(kind, aurora, DATABASE, index=index("two")) as store:
        await store.put(NAMESPACE, "k0", {"text": "tea 0"})
        await store.search(NAMESPACE, query="tea")
    (message,) = warned(caplog, "another embedding model")
    assert message.startswith("20 of 20 vectors")
    assert "'two'" in message
    caplog.clear()
    async with opened(kind, aurora, DATABASE, index=index("two")) as store:
        await store.setup()
    (message,) = warned(caplog, "another embedding model")
    assert message.startswith("19 of 20 vectors")


async def test_a_model_without_a_name_is_compared_with_none(
    aurora: LocalAurora, sql: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """A function has no name that another process would know."""
    settings = {"embed": Letters(), "dims": DIMS, "fields": ["text"]}
    for _ in range(2):
        async with opened("blocking-pool", aurora, DATABASE, index=settings) as store:
            await store.put(NAMESPACE, "k", {"text": "tea"})
    assert warned(caplog, "another embedding model") == []


@pytest.mark.parametrize(
    ("fields", "value", "has_text"),
    [
        (["a.b"], {"a": {"b": "tea"}}, True),
        (["a.b"], {"a": {"b": ""}}, False),
        (["a[0].b"], {"a": [{"b": "tea"}]}, True),
        (["a[1].b"], {"a": [{"b": "tea"}]}, False),
        (["a[-1].b"], {"a": [{"b": ""}, {"b": "tea"}]}, True),
        (["a[*].b"], {"a": [{"c": 1}, {"b": 7}]}, True),
        (["a.*"], {"a": {"x": "tea"}}, True),
        (["{x,y}"], {"y": "tea"}, True),
        (["x", "z"], {"z": False}, True),
        (["$"], {"anything": 1}, True),
        (['a"b\\c'], {'a"b\\c': "tea"}, True),
    ],
)
async def test_only_items_with_text_in_the_indexed_fields_count(
    fields: list[str],
    value: dict[str, Any],
    has_text: bool,
    aurora: LocalAurora,
    sql: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As a put would embed them."""
    async with opened("blocking-pool", aurora, DATABASE) as plain:
        await plain.put(NAMESPACE, "k", value)
    async with opened("blocking-pool", aurora, DATABASE, index=index("one", *fields)) as store:
        await store.search(NAMESPACE, query="tea")
        assert len(warned(caplog, "1 of 1 items")) == has_text
        await store.put(NAMESPACE, "k", value)
    vectors = sql.execute("SELECT count(*) FROM store_vectors").fetchone()
    assert vectors is not None
    assert bool(vectors[0]) == has_text, "the test's own claim"


async def test_a_large_table_is_sampled(
    aurora: LocalAurora, sql: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """So that a store of any size is in use within milliseconds."""
    sql.execute(
        "INSERT INTO store (prefix, key, value) SELECT 'users.ada', n::text,"
        " jsonb_build_object('text', repeat('tea ', 50)) FROM generate_series(1, 60000) AS n"
    )
    async with opened("blocking-pool", aurora, DATABASE, index=index("one")) as store:
        await store.search(NAMESPACE, query="tea")
    (message,) = warned(caplog, "have no vector")
    assert message.startswith("about ")
    assert 30_000 < int(message.split()[1]) < 90_000


async def test_a_table_of_a_stranger_is_named(
    aurora: LocalAurora, sql: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """A role that may create in the schema may have made it first, and read what is put there."""
    sql.execute("CREATE ROLE mallory")
    try:
        sql.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO langmem")
        sql.execute("ALTER TABLE store OWNER TO mallory")
        sql.execute("GRANT ALL ON store TO langmem")
        async with opened("blocking-pool", aurora, DATABASE, index=index("one")) as store:
            await store.get(NAMESPACE, "k")
        (message,) = warned(caplog, "neither owner nor member")
        assert "store (owned by 'mallory')" in message
        caplog.clear()
        async with opened("asyncio-pool", aurora, DATABASE, index=index("one")) as store:
            await store.setup()
        assert len(warned(caplog, "neither owner nor member")) == 1
        caplog.clear()
        sql.execute("GRANT mallory TO langmem")
        async with opened("blocking-pool", aurora, DATABASE, index=index("one")) as store:
            await store.get(NAMESPACE, "k")
        assert warned(caplog, "neither owner nor member") == []
    finally:
        sql.execute("ALTER TABLE store OWNER TO langmem")
        sql.execute("DROP OWNED BY mallory; DROP ROLE mallory")
