"""The LangGraph example, and what it says of sync, async and tools, with the real packages."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.tools import tool
from langgraph.config import get_config, get_store
from langgraph.func import entrypoint

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from langgraph_aurora_store.errors import CredentialsError
from local_services.openai_service import LocalOpenAI
from local_services.stand_ins import stand_ins
from tests.support.database import Database
from tests.support.example_runs import (
    EXAMPLES,
    documented_program,
    environment_of,
    load,
    memories,
    run,
)

EXAMPLE = EXAMPLES / "langgraph_memory"
INDEX = {"embed": "openai:text-embedding-3-small", "fields": ["text"]}


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalOpenAI]:
    """The example's scripted model, found by clients of this process and of its children."""
    with LocalOpenAI(load(EXAMPLE / "scripted_model.py").script) as models:
        for name, value in models.environment.items():
            monkeypatch.setenv(name, value)
        yield models


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
        "index": INDEX,
    }


@tool
def remember(text: str) -> str:
    """Remember one fact about the user, as a sentence of its own."""
    namespace = ("notes", get_config()["configurable"]["user_id"])
    get_store().put(namespace, "only", {"text": text})
    return "remembered"


def test_readmes_command_recalls_across_threads_and_processes(
    database: Database, models: LocalOpenAI
) -> None:
    """Entrypoint, graph and agent, in three processes: what they said, and what they stored."""
    environment = environment_of(database) | models.environment
    said = run(documented_program("langgraph_memory"), environment).stdout
    assert "thread tuesday: ada: Where do I live? You told me: I live in Lisbon." in said
    assert "thread tuesday: grace: Where do I live? You never told me." in said
    assert "ada: What is my dog called? You told me: My dog is called Rex." in said
    assert sorted((row["prefix"], row["value"]["text"]) for row in memories(database)) == [
        ("notes.ada", "I live in Lisbon."),
        ("notes.ada", "My dog is called Rex."),
        ("notes.ada", "The user says: I play the cello"),
        ("notes.grace", "I live in Porto."),
        ("notes.grace", "The user says: I play the cello in a trio"),
        ("notes.linus", "I live on a boat."),
    ]


def test_services_that_nothing_names_are_started_here() -> None:
    """Without a cluster or a key, an example gets a database it can enter and a model."""
    with stand_ins({}) as services:
        assert services.database.startswith("a local Aurora")
        assert "OpenAI protocol on this machine" in services.models
        program = (
            "from langgraph_aurora_store import AuroraStore\n"
            "index = {'embed': 'openai:text-embedding-3-small'}\n"
            "with AuroraStore.from_cluster(index=index) as store:\n"
            "    store.setup()\n"
            "    store.put(('a',), 'k', {'text': 'tea'})\n"
            "    print(store.search(('a',), query='tea')[0].key)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | services.environment,
            capture_output=True,
            text=True,
        )
        assert done.stdout == "k\n", done.stderr


def test_aws_credentials_that_cannot_be_had_are_told_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A profile that nobody wrote, or nobody logged in to; with the way to go without."""
    config = tmp_path / "config"
    config.write_text(
        "[profile x]\nsso_session = s\nsso_account_id = 111122223333\nsso_role_name = r\n"
        "[sso-session s]\nsso_start_url = https://example.com/start\nsso_region = us-east-1\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("HOME", str(tmp_path))
    for profile in ("x", "nobody"):
        monkeypatch.setenv("AWS_PROFILE", profile)
        started = stand_ins({"AWS_PROFILE": profile})
        with pytest.raises(CredentialsError, match="AWS_PROFILE") as caught, started:
            pass
        assert profile in str(caught.value)
        assert "env -u AWS_PROFILE" in str(caught.value)


def test_services_that_are_named_are_left_alone() -> None:
    """With a cluster and a key nothing is started, and the words say so."""
    with stand_ins({"AURORA_CLUSTER": "mine", "OPENAI_API_KEY": "sk-secret"}) as services:
        assert services.environment == {}
        assert "'mine'" in services.database
        assert services.models.startswith("OpenAI")
        assert "sk-secret" not in repr(services)


async def test_blocking_tool_of_an_asyncio_agent_writes_through_the_agents_asyncio_store(
    database: Database, models: LocalOpenAI, settings: dict[str, Any]
) -> None:
    """LangChain runs the tool in a thread; its write goes to the store's loop and arrives."""
    async with AsyncAuroraStore.from_cluster(**settings) as store:
        await store.setup()
        agent = create_agent("openai:gpt-4.1-mini", [remember], store=store)
        await agent.ainvoke(
            {"messages": [("user", "Please remember that I sail.")]},
            {"configurable": {"user_id": "ada"}},
        )
    assert [(row["prefix"], row["value"]) for row in memories(database)] == [
        ("notes.ada", {"text": "The user says: I sail"})
    ]


async def test_coroutines_may_use_the_blocking_store(
    models: LocalOpenAI, settings: dict[str, Any]
) -> None:
    """An asyncio entrypoint over AuroraStore: calls run in threads, and concurrently."""
    with AuroraStore.from_cluster(**settings) as store:
        store.setup()

        @entrypoint(store=store)
        async def note(user_id: str) -> str:
            await get_store().aput(("notes", user_id), "only", {"text": f"I am {user_id}"})
            item = await get_store().aget(("notes", user_id), "only")
            return item.value["text"]

        users = [f"user{i}" for i in range(8)]
        answers = await asyncio.gather(*(note.ainvoke(user) for user in users))
        assert answers == [f"I am {user}" for user in users]
