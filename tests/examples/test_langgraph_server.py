"""The store under a LangGraph Server of its own process, through its HTTP API."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient

from langgraph_aurora_store import AuroraStore
from langgraph_aurora_store.local import LocalAurora
from local_services.openai_service import LocalOpenAI
from tests.support.database import Database
from tests.support.example_runs import (
    EXAMPLES,
    documented_program,
    environment_of,
    load,
    memories,
    run,
)

EXAMPLE = EXAMPLES / "langgraph_server"
WORKERS = 3
CONNECTIONS_PER_STORE = 4

# A model beside the store's path, which tells that it was loaded and that it was asked.
PROBE = """
from pathlib import Path

Path("loaded").touch()

def embed(texts):
    Path("asked").touch()
    return [[1.0, 0.0, 0.0, 0.0] for _ in texts]
"""

Connect = Callable[[str], LangGraphClient]


@pytest.fixture(scope="module")
def models() -> Iterator[LocalOpenAI]:
    with LocalOpenAI() as models:
        yield models


@pytest.fixture(scope="module")
def database(aurora: LocalAurora) -> Iterator[Database]:
    """One database for the module, as the server starts once."""
    fresh = Database(aurora, "served")
    aurora.create_database(fresh.name)
    yield fresh
    aurora.drop_database(fresh.name)


@pytest.fixture(scope="module")
def server(
    database: Database, models: LocalOpenAI, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """The example's server and folder, each worker on a thread and an event loop of its own."""
    folder = tmp_path_factory.mktemp("server") / "example"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns(".langgraph_api"))
    (folder / "probe.py").write_text(PROBE)
    settings = json.loads((folder / "langgraph.json").read_text())
    settings["store"] |= {
        "index": {"embed": "./probe.py:embed", "dims": 4, "fields": ["text"]},
        "ttl": {"default_ttl": 1},
    }
    (folder / "langgraph.json").write_text(json.dumps(settings))
    environment = os.environ | environment_of(database) | models.environment
    environment |= {"BG_JOB_ISOLATED_LOOPS": "true"}
    serving = load(EXAMPLE / "main.py").serving
    with serving(environment, folder=folder, workers=WORKERS) as url:
        yield url, folder


@pytest.fixture
def url(server: tuple[str, Path]) -> str:
    return server[0]


@pytest.fixture
async def connect(url: str) -> AsyncIterator[Connect]:
    """Clients of the server, by user."""
    async with AsyncExitStack() as stack:
        clients: list[LangGraphClient] = []

        def client(user_id: str) -> LangGraphClient:
            headers = {"Authorization": f"Bearer {user_id}-key"}
            clients.append(get_client(url=url, headers=headers))
            stack.push_async_callback(clients[-1].aclose)
            return clients[-1]

        yield client


def served(database: Database, prefix: str) -> dict[str, Any]:
    """The values below a namespace, by key."""
    return {
        row["key"]: row["value"]
        for row in memories(database)
        if f"{row['prefix']}.".startswith(f"{prefix}.")
    }


def texts(found: Any) -> list[str]:
    return [item["value"]["text"] for item in found["items"]]


async def test_put_get_and_delete_reach_the_database(database: Database, connect: Connect) -> None:
    """What the API takes lies in the tables with a vector and an expiry, and goes again."""
    store = connect("ada").store
    place = ["notes", "ada", "crud"]
    await store.put_item(place, key="tea", value={"text": "Drinks tea."}, ttl=30)
    assert (await store.get_item(place, key="tea"))["value"] == {"text": "Drinks tea."}
    with psycopg.connect(database.admin_dsn) as conn:
        minutes, vectors = conn.execute(
            """SELECT extract(minutes FROM expires_at - now()), (
                   SELECT count(*) FROM store_vectors AS v WHERE v.prefix = s.prefix
               ) FROM store AS s WHERE prefix = 'notes.ada.crud'"""
        ).fetchone()
    assert 28 <= minutes <= 30
    assert vectors == 1
    await store.delete_item(place, key="tea")
    assert served(database, "notes.ada.crud") == {}


async def test_index_beside_path_loads_a_model_that_is_never_asked(
    server: tuple[str, Path], database: Database, connect: Connect
) -> None:
    """The server makes it at start-up; vectors are those of the store's own model."""
    _, folder = server
    assert (folder / "loaded").exists()
    store = connect("ada").store
    await store.put_item(["notes", "ada", "indexed"], key="k", value={"text": "Sails."})
    found = await store.search_items(["notes", "ada", "indexed"], query="sails")
    assert texts(found) == ["Sails."]
    assert not (folder / "asked").exists()


async def test_an_auth_handler_sets_the_ttl_that_a_request_leaves_out(
    database: Database, connect: Connect
) -> None:
    """A default of the store, or beside its path, does not reach a put by HTTP."""
    store = connect("ada").store
    place = ["notes", "ada", "expiring"]
    await store.put_item(place, key="default", value={"text": "t"})
    await store.put_item(place, key="own", value={"text": "t"}, ttl=30)
    with psycopg.connect(database.admin_dsn) as conn:
        minutes = dict(
            conn.execute(
                """SELECT key, round(extract(epoch FROM expires_at - now()) / 60)::int
                   FROM store WHERE prefix = 'notes.ada.expiring'"""
            ).fetchall()
        )
    year = 365 * 24 * 60
    assert year - 5 <= minutes["default"] <= year
    assert 25 <= minutes["own"] <= 30


async def test_search_ranks_by_meaning_and_filters(connect: Connect) -> None:
    """Vector search through the server, with a filter and with an offset."""
    store = connect("ada").store
    place = ["notes", "ada", "search"]
    for key, text, year in [
        ("a", "The boat needs paint", 2024),
        ("b", "The boat needs a new sail", 2026),
        ("c", "Bread is in the oven", 2026),
    ]:
        await store.put_item(place, key=key, value={"text": text, "year": year})
    found = await store.search_items(place, query="new sail for the boat")
    assert texts(found)[0] == "The boat needs a new sail"
    assert texts(found)[-1] == "Bread is in the oven"
    late = await store.search_items(place, query="boat", filter={"year": {"$gt": 2025}}, limit=1)
    assert texts(late) == ["The boat needs a new sail"]
    rest = await store.search_items(place, query="new sail for the boat", offset=1)
    assert texts(rest) == texts(found)[1:]


async def test_auth_filter_joined_by_and_shows_a_reader_what_names_them(
    database: Database, connect: Connect
) -> None:
    """The server sends {"$and": [the request's, the handler's]}: both hold, operators included."""
    cluster = database.cluster
    with AuroraStore.from_cluster(
        cluster.identifier,
        user=cluster.user,
        database=database.name,
        session=cluster.session,
        sslrootcert=cluster.sslrootcert,
    ) as store:
        for key, readers, size in [("a", ["ada"], 1), ("b", ["ada", "grace"], 9), ("c", [], 9)]:
            store.put(("team", "plans"), key, {"text": key, "readers": readers, "size": size})
        # Not lists, so they name no reader, although "ada" is within "adam".
        for key, text in [("d", "adam"), ("e", "ada")]:
            store.put(("team", "plans"), key, {"text": key, "readers": text, "size": 1})
    ada, grace = connect("ada").store, connect("grace").store
    assert sorted(texts(await ada.search_items(["team"]))) == ["a", "b"]
    assert texts(await grace.search_items(["team", "plans"])) == ["b"]
    large = {"$or": [{"size": {"$gte": 5}}, {"size": 0}]}
    assert texts(await ada.search_items(["team"], filter=large)) == ["b"]
    assert texts(await grace.search_items(["team"], filter={"size": 1})) == []


async def test_users_reach_their_own_memories_only(url: str, connect: Connect) -> None:
    """Another user's namespace, the shared one by name, and an unknown key are refused."""
    grace = connect("grace").store
    for refused in (
        grace.get_item(["notes", "ada"], key="tea"),
        grace.search_items(["notes", "ada"]),
        grace.put_item(["team"], key="k", value={"text": "t"}),
        grace.list_namespaces(prefix=["notes"]),
    ):
        with pytest.raises(httpx.HTTPStatusError) as error:
            await refused
        assert error.value.response.status_code == 403
    async with httpx.AsyncClient(base_url=url) as stranger:
        answer = await stranger.post("/store/items/search", json={"namespace_prefix": ["notes"]})
    assert answer.status_code == 401


async def test_namespaces_are_listed_below_a_prefix_and_cut_at_a_depth(connect: Connect) -> None:
    """As the store's own list_namespaces, by HTTP."""
    store = connect("ada").store
    root = ["notes", "ada", "tree"]
    for branch in (["a", "x"], ["a", "y"], ["b"]):
        await store.put_item([*root, *branch], key="k", value={"text": "t"})
    listed = await store.list_namespaces(prefix=root, max_depth=4)
    assert listed["namespaces"] == [[*root, "a"], [*root, "b"]]
    listed = await store.list_namespaces(prefix=root, suffix=["y"])
    assert listed["namespaces"] == [[*root, "a", "y"]]


async def test_runs_on_several_worker_threads_share_the_memory_through_small_pools(
    database: Database, connect: Connect
) -> None:
    """More runs than workers at once, of two users: all noted, recalled, none mixed up."""

    async def say(user: LangGraphClient, text: str) -> str:
        state: Any = await user.runs.wait(None, "agent", input={"text": text})
        return state["answer"]

    users = {name: connect(name) for name in ("ada", "grace")}
    notes = [(name, f"{name} noted {number}.") for name in users for number in range(5)]
    database.cluster.delay_s = 0.05  # long enough for the runs to overlap
    try:
        answers = await asyncio.gather(*(say(users[name], text) for name, text in notes))
    finally:
        database.cluster.reset()
    assert set(answers) == {"Noted."}
    for name in users:
        stored = served(database, f"notes.{name}").values()
        assert [text for _, text in notes if text.startswith(name)] == sorted(
            value["text"] for value in stored if "noted" in value["text"]
        )
    questions = [(name, f"What has {name} noted as 3?") for name in users]
    recalled = await asyncio.gather(*(say(users[name], text) for name, text in questions))
    assert recalled == ["ada noted 3.", "grace noted 3."]
    with psycopg.connect(database.admin_dsn) as conn:
        connections = conn.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND usename = %s",
            (database.name, database.cluster.user),
        ).fetchone()[0]
    # Each worker made a store of its own; with the one of the API they stay within their pools.
    assert WORKERS <= connections <= (WORKERS + 1) * CONNECTIONS_PER_STORE


def test_readmes_command_serves_the_graph_and_the_store_api(
    aurora: LocalAurora, models: LocalOpenAI
) -> None:
    """From nothing but a database: the server starts, makes the tables, answers and stops."""
    fresh = Database(aurora, "served_by_readme")
    aurora.create_database(fresh.name)
    environment = environment_of(fresh) | models.environment
    said = run(documented_program("langgraph_server"), environment).stdout
    assert "Where do I live? I live in Lisbon." in said
    assert "Where do I live? You never told me." in said
    assert "search by meaning: ['Drinks green tea.']" in said
    assert sorted((row["prefix"], row["value"]["text"]) for row in memories(fresh)) == [
        ("notes.ada", "Drinks green tea."),
        ("notes.ada", "I live in Lisbon."),
    ]
    aurora.drop_database(fresh.name)


def test_a_server_that_is_not_installed_is_told_with_the_readmes_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is started, as after `make demo`, which needs no server."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        load(EXAMPLE / "main.py").main()
    _, _, line = str(ended.value).partition("; ")
    assert line in (EXAMPLE / "README.md").read_text()
    assert "langgraph-cli" in line
