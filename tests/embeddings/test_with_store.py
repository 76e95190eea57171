"""A store with each model of the table: memories put and found again, end to end."""

import logging
from collections.abc import Iterator

import psycopg
import pytest

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from langgraph_aurora_store.embeddings import BedrockEmbeddings, OpenAIEmbeddings
from langgraph_aurora_store.embeddings.base import ServiceEmbeddings
from langgraph_aurora_store.embeddings.models import MODELS, Model
from tests.support.bedrock_service import Bedrock
from tests.support.database import Database
from tests.support.embedding_rigs import SESSION
from tests.support.openai_service import OpenAI
from tests.support.store_kinds import DIMS, Letters, opened

MEMORIES = {
    "hobby": "spends weekends hiking in the alps",
    "work": "works on cloud services for a bank",
    "music": "plays the cello in an orchestra",
}


@pytest.fixture(scope="module")
def services() -> Iterator[tuple[Bedrock, OpenAI]]:
    with Bedrock() as one, OpenAI() as other:
        yield one, other


def embeddings_for(model: Model, services: tuple[Bedrock, OpenAI]) -> ServiceEmbeddings:
    bedrock, openai = services
    if model.wire_format.provider == "openai":
        return OpenAIEmbeddings(model.id, api_key=openai.key, base_url=openai.base_url)
    return BedrockEmbeddings(model.id, session=SESSION, endpoint_url=bedrock.url)


def index_for(model: Model, services: tuple[Bedrock, OpenAI]) -> dict[str, object]:
    """An index configuration as short as can be: ``dims`` follow from the model."""
    return {"embed": embeddings_for(model, services), "fields": ["text"]}


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.id)
def test_memories_are_found_by_what_they_say(
    model: Model, services: tuple[Bedrock, OpenAI], database: Database
) -> None:
    """Put with the model's document side, searched with its query side, the right one first."""
    index = index_for(model, services)
    with AuroraStore.from_conn_string(database.owner_dsn, index=index) as store:
        store.setup()
        for key, text in MEMORIES.items():
            store.put(("chat", "ada"), key, {"text": text})
        found = store.search(("chat", "ada"), query="which cloud services", limit=2)
        assert found[0].key == "work"
        assert found[0].score is not None
        assert store.search(("chat", "grace"), query="which cloud services") == []


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.id)
async def test_memories_are_found_by_what_they_say_in_asyncio(
    model: Model, services: tuple[Bedrock, OpenAI], database: Database
) -> None:
    """The asyncio twin does the same."""
    index = index_for(model, services)
    async with AsyncAuroraStore.from_conn_string(database.owner_dsn, index=index) as store:
        await store.setup()
        for key, text in MEMORIES.items():
            await store.aput(("chat", "ada"), key, {"text": text})
        found = await store.asearch(("chat", "ada"), query="which cloud services", limit=2)
        assert found[0].key == "work"


@pytest.mark.parametrize("kind", ["blocking-pool", "asyncio-pool"])
async def test_unknown_dimensions_are_asked_for_once(kind: str, database: Database) -> None:
    """By one short query, and the tables are made for its answer; given dimensions ask nothing."""
    for index, asked in (({}, 1), ({"dims": DIMS}, 0)):
        letters = Letters()
        settings = {"index": {"embed": letters, "fields": ["text"], **index}}
        async with opened(kind, database.cluster, database.name, **settings) as store:
            await store.setup()
            await store.setup()
            await store.put(("a",), "k", {"text": "tea"})
        assert len(letters.queries) == asked
        assert letters.documents == [["tea"]]
    with psycopg.connect(database.owner_dsn) as conn:
        assert conn.execute("SELECT vector_dims(embedding) FROM store_vectors").fetchall() == [(8,)]


def test_a_memory_that_was_cut_is_named(
    services: tuple[Bedrock, OpenAI], database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning about a long text tells the namespace and the key it belongs to."""
    index = index_for(MODELS["cohere.embed-english-v3"], services)
    with AuroraStore.from_conn_string(database.owner_dsn, index=index) as store:
        store.setup()
        store.put(("chat", "ada"), "novel", {"text": "It was a dark and stormy night. " * 100})
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    for word in ("chat", "ada", "novel", "3,200 characters", "2,048"):
        assert word in warning.getMessage()
    assert "stormy" not in caplog.text
