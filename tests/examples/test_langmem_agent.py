"""The LangMem example, LangMem's managers under load, and what is left of a write they lose."""

import asyncio
import logging
import re
import threading
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from langchain_openai import ChatOpenAI
from openai import DefaultAsyncHttpxClient
from pydantic import SecretStr

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore, PoolSettings
from langgraph_aurora_store.errors import EmbeddingError, WrongLoopError
from local_services.openai_service import (
    ChatReply,
    ChatRequest,
    LocalOpenAI,
    ToolCall,
    embed,
)
from tests.support.database import Database
from tests.support.example_runs import (
    EXAMPLES,
    documented_program,
    environment_of,
    load,
    memories,
    run,
)

with warnings.catch_warnings():
    # Upstream's own affair: trustcall imports names from where LangGraph 1.0 moved them away.
    warnings.simplefilter("ignore", DeprecationWarning)
    from langmem import create_manage_memory_tool, create_memory_store_manager

EXAMPLE = EXAMPLES / "langmem_agent"
MODEL = "openai:gpt-4.1-mini"
USERS = [f"user-{number}" for number in range(1, 51)]
KNOWN = re.compile(r"Know that ([^.]+)\.")
SECRET = "the-cat-is-called-Mog"


class DocumentsFail(Embeddings):
    """A model that embeds queries and fails on documents, as one that is throttled half-way."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise EmbeddingError("the embedding service is down")

    def embed_query(self, text: str) -> list[float]:
        return embed(text, 8)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LocalOpenAI]]:
    """Start a scripted model that the real clients of this process find."""
    running: list[LocalOpenAI] = []

    def start(script: Callable[[ChatRequest], ChatReply]) -> LocalOpenAI:
        models = LocalOpenAI(script)
        models.__enter__()
        running.append(models)
        for name, value in models.environment.items():
            monkeypatch.setenv(name, value)
        return models

    yield start
    for models in running:
        models.__exit__(None, None, None)


@pytest.fixture
def settings(database: Database) -> dict[str, Any]:
    """What from_cluster needs to enter the test's database."""
    cluster = database.cluster
    return {
        "cluster": cluster.identifier,
        "user": cluster.user,
        "database": database.name,
        "session": cluster.session,
        "sslrootcert": cluster.sslrootcert,
        "index": {"embed": "openai:text-embedding-3-small", "fields": ["content"]},
    }


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[LocalOpenAI], ChatOpenAI]]:
    """A chat model with an HTTP client of this loop's own.

    langchain_openai keeps one client for the whole process, whatever loop its connections belong
    to: on the next test's loop it fails.
    """
    async with DefaultAsyncHttpxClient() as client:
        yield lambda models: ChatOpenAI(
            model="gpt-4.1-mini",
            base_url=models.base_url,
            api_key=SecretStr("local"),
            http_async_client=client,
        )


def conversation(text: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "I see."}]
    return {"messages": turns}


def config_of(user_id: str) -> dict[str, Any]:
    return {"configurable": {"user_id": user_id}}


def remember(request: ChatRequest) -> ChatReply:
    """One Memory of what the user wants to be known."""
    matter = KNOWN.findall(request.said_by("user")[-1])[-1]
    return ChatReply(tool_calls=(ToolCall("Memory", {"content": matter}),))


def lost(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.ERROR and record.name.startswith("langgraph_aurora_store")
    ]


def test_example_inserts_updates_deletes_and_keeps_fifty_users_apart(
    database: Database, serve: Callable[..., LocalOpenAI]
) -> None:
    """By the README's one command: what lies in the database afterwards, all of it."""
    models = serve(load(EXAMPLE / "scripted_model.py").script)
    run(documented_program("langmem_agent"), environment_of(database) | models.environment)
    expected = {
        ("profile.ada", "Fact", "The user lives in Porto."),
        ("profile.grace", "Preference", "sailing"),
        ("notes.grace", None, "the spare key is under the mat"),
        ("notes.user-1", None, "my locker is number user-1"),
        ("notes.user-50", None, "my locker is number user-50"),
    }
    for user in USERS:
        expected.add((f"profile.{user}", "Fact", f"The user lives in {user} street."))
        expected.add((f"profile.{user}", "Preference", f"blend {user}"))
    assert Counter(map(_told, memories(database))) == Counter(expected)


def _told(row: dict[str, Any]) -> tuple[str, str | None, str]:
    """Where a memory lies, its schema where a manager wrote it, and what it says."""
    content = row["value"]["content"]
    if isinstance(content, dict):
        content = next(
            content[name] for name in ("statement", "topic", "content") if name in content
        )
    return row["prefix"], row["value"].get("kind"), content


def test_fifty_threads_through_one_blocking_manager_store_every_memory_once(
    database: Database, serve: Callable[..., LocalOpenAI], settings: dict[str, Any]
) -> None:
    """All fifty reach the model before any may write; each memory is then under its user."""
    together = threading.Barrier(len(USERS), timeout=60)

    def script(request: ChatRequest) -> ChatReply:
        together.wait()
        return remember(request)

    serve(script)
    with AuroraStore.from_cluster(**settings) as store:
        store.setup()
        manager = create_memory_store_manager(MODEL, namespace=("chat", "{user_id}"), store=store)

        def learn(user: str) -> None:
            manager.invoke(conversation(f"Know that {user} keeps bees."), config_of(user))

        with ThreadPoolExecutor(len(USERS)) as threads:
            list(threads.map(learn, USERS))
    expected = {(f"chat.{user}", "Memory", f"{user} keeps bees") for user in USERS}
    assert Counter(map(_told, memories(database))) == Counter(expected)


def test_write_that_a_blocking_manager_drops_is_logged_without_its_value(
    database: Database,
    serve: Callable[..., LocalOpenAI],
    settings: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """LangMem reports success though the embedder failed; the log names namespace and key."""
    serve(remember)
    settings["index"] = {"embed": DocumentsFail(), "dims": 8}
    with AuroraStore.from_cluster(**settings) as store:
        store.setup()
        manager = create_memory_store_manager(MODEL, namespace=("chat", "{user_id}"), store=store)
        (reported,) = manager.invoke(conversation(f"Know that {SECRET}."), config_of("ada"))
    assert memories(database) == []
    (message,) = lost(caplog)
    assert "('chat', 'ada')" in message
    assert reported["key"] in message
    assert "EmbeddingError: the embedding service is down" in message
    assert SECRET not in caplog.text


def test_write_dropped_because_the_database_went_away_is_logged_with_the_servers_reason(
    database: Database,
    serve: Callable[..., LocalOpenAI],
    settings: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The links are cut and tokens refused while the model thinks, between search and put."""

    def script(request: ChatRequest) -> ChatReply:
        database.cluster.refuse_next(1000)
        database.cluster.cut_connections()
        return remember(request)

    serve(script)
    settings["pool"] = PoolSettings(min_size=0, timeout_s=3)
    with AuroraStore.from_cluster(**settings) as store:
        store.setup()
        manager = create_memory_store_manager(MODEL, namespace=("chat", "{user_id}"), store=store)
        (reported,) = manager.invoke(conversation(f"Know that {SECRET}."), config_of("ada"))
    assert memories(database) == []
    (message,) = lost(caplog)
    assert "('chat', 'ada')" in message
    assert reported["key"] in message
    assert SECRET not in caplog.text


def test_examples_learner_raises_where_the_manager_reports_success(
    database: Database,
    serve: Callable[..., LocalOpenAI],
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What memory.py adds for blocking code: a reported memory that is not there is an error."""
    serve(load(EXAMPLE / "scripted_model.py").script)
    for name, value in environment_of(database).items():
        monkeypatch.setenv(name, value)
    memory = load(EXAMPLE / "memory.py")
    with memory.store as store:
        store.setup()
        with store.connection() as conn:
            # Writes vanish, as those of a failed executor do.
            conn.execute("CREATE RULE nothing AS ON INSERT TO store DO INSTEAD NOTHING")
        with pytest.raises(memory.LostMemoryError, match=r"\('profile', 'ada'\)"):
            memory.learner.invoke(conversation("I live in Rome."), config_of("ada"))


async def test_asyncio_manager_raises_what_its_write_raised_and_it_is_logged_once(
    database: Database,
    serve: Callable[..., LocalOpenAI],
    connect: Callable[[LocalOpenAI], ChatOpenAI],
    settings: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Under ainvoke nothing is lost in silence: the caller learns of it."""
    model = connect(serve(remember))
    settings["index"] = {"embed": DocumentsFail(), "dims": 8}
    async with AsyncAuroraStore.from_cluster(**settings) as store:
        await store.setup()
        manager = create_memory_store_manager(model, namespace=("chat", "{user_id}"), store=store)
        with pytest.raises(EmbeddingError):
            await manager.ainvoke(conversation(f"Know that {SECRET}."), config_of("ada"))
    assert len(lost(caplog)) == 1
    assert memories(database) == []


async def test_asyncio_store_under_a_blocking_manager_on_its_loop_says_what_to_use(
    serve: Callable[..., LocalOpenAI], settings: dict[str, Any]
) -> None:
    """manager.invoke from a coroutine: an error at once, where it could only have blocked."""
    serve(remember)
    async with AsyncAuroraStore.from_cluster(**settings) as store:
        await store.setup()
        manager = create_memory_store_manager(MODEL, namespace=("chat", "{user_id}"), store=store)
        with pytest.raises(WrongLoopError, match="or use AuroraStore"):
            manager.invoke(conversation("Know that Ada sails."), config_of("ada"))


def test_asyncio_store_without_a_loop_says_what_to_use(
    serve: Callable[..., LocalOpenAI], settings: dict[str, Any]
) -> None:
    """Blocking code with nothing but an asyncio store: an error at once, and no connection."""
    serve(remember)
    store = AsyncAuroraStore.from_cluster(**settings)
    manager = create_memory_store_manager(MODEL, namespace=("chat", "{user_id}"), store=store)
    with pytest.raises(WrongLoopError, match="use AuroraStore in blocking code"):
        manager.invoke(conversation("Know that Ada sails."), config_of("ada"))


async def test_asyncio_store_under_a_blocking_manager_in_a_thread_of_its_own_stores(
    database: Database, serve: Callable[..., LocalOpenAI], settings: dict[str, Any]
) -> None:
    """Where the loop is free to run, its threads may call the store by its blocking names."""
    serve(remember)
    async with AsyncAuroraStore.from_cluster(**settings) as store:
        await store.setup()
        manager = create_memory_store_manager(MODEL, namespace=("chat", "{user_id}"), store=store)
        told = conversation("Know that Ada sails.")
        await asyncio.to_thread(manager.invoke, told, config_of("ada"))
    assert list(map(_told, memories(database))) == [("chat.ada", "Memory", "Ada sails")]


def test_manager_cannot_read_what_the_manage_tool_stored(
    serve: Callable[..., LocalOpenAI], settings: dict[str, Any]
) -> None:
    """Why the example keeps them apart; when this fails, the documentation may say less."""
    serve(remember)
    with AuroraStore.from_cluster(**settings) as store:
        store.setup()
        tool = create_manage_memory_tool(("chat", "{user_id}"), store=store)
        tool.invoke({"content": "Ada sails"}, config_of("ada"))
        manager = create_memory_store_manager(MODEL, namespace=("chat", "{user_id}"), store=store)
        with pytest.raises(KeyError, match="kind"):
            manager.invoke(conversation("Know that Ada rows."), config_of("ada"))


@pytest.mark.timeout(30)
async def test_asyncio_store_under_a_manager_that_searches_from_threads_fails_instead_of_hanging(
    serve: Callable[..., LocalOpenAI], settings: dict[str, Any]
) -> None:
    """With query_model LangMem searches in threads while invoke blocks the loop they need."""

    def script(_: ChatRequest) -> ChatReply:
        return ChatReply(tool_calls=(ToolCall("search_memory", {"query": "sails"}),))

    serve(script)
    async with AsyncAuroraStore.from_cluster(**settings) as store:
        await store.setup()
        manager = create_memory_store_manager(
            MODEL, query_model=MODEL, namespace=("chat", "{user_id}"), store=store
        )
        with pytest.raises(WrongLoopError, match=r"has been blocked for .* use AuroraStore"):
            manager.invoke(conversation("Know that Ada sails."), config_of("ada"))
        assert await asyncio.wait_for(store.asearch(("chat",)), 10) == []


async def test_fifty_asyncio_users_share_one_manager(
    database: Database,
    serve: Callable[..., LocalOpenAI],
    connect: Callable[[LocalOpenAI], ChatOpenAI],
    settings: dict[str, Any],
) -> None:
    """A second conversation of each user updates their own memory and inserts nothing."""
    model = connect(serve(load(EXAMPLE / "scripted_model.py").script))
    schemas = load(EXAMPLE / "schemas.py")
    async with AsyncAuroraStore.from_cluster(**settings) as store:
        await store.setup()
        manager = create_memory_store_manager(
            model,
            schemas=[schemas.Preference, schemas.Fact],
            namespace=("profile", "{user_id}"),
            store=store,
        )
        for sentence in ("I live in Old {}.", "I moved to New {}."):
            await asyncio.gather(
                *(
                    manager.ainvoke(conversation(sentence.format(user)), config_of(user))
                    for user in USERS
                )
            )
    expected = {(f"profile.{u}", "Fact", f"The user lives in New {u}.") for u in USERS}
    assert Counter(map(_told, memories(database))) == Counter(expected)
