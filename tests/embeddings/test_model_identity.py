"""Unchanged text keeps its vector exactly as long as the embedding model stays the same."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from langchain_aws import BedrockEmbeddings as LangChainBedrock
from langchain_openai import AzureOpenAIEmbeddings

from langgraph_aurora_store.embeddings import BedrockEmbeddings, OpenAIEmbeddings, resolve
from langgraph_aurora_store.embeddings.model_identity import identify
from langgraph_aurora_store.local import LocalAurora
from tests.support.embedding_rigs import SESSION
from tests.support.store_kinds import DIMS, Letters, opened, set_up

DATABASE = "identity"
KINDS = ("blocking-connection", "asyncio-pool")
TITAN = "amazon.titan-embed-text-v2:0"
COHERE = "cohere.embed-english-v3"


class Named(Letters):
    """What a user writes around a service: it may say which model it calls, and how."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


class OtherClass(Named):
    """Of the same attributes."""


@pytest.fixture(scope="module")
def sql(aurora: LocalAurora) -> Iterator[psycopg.Connection]:
    with set_up(aurora, DATABASE, index={"dims": DIMS, "embed": Letters()}) as conn:
        yield conn


@pytest.fixture(params=KINDS)
def embedded(
    request: pytest.FixtureRequest, aurora: LocalAurora, sql: psycopg.Connection
) -> Callable[..., Any]:
    """Whether a new store embeds an unchanged text, each of the times that it is put."""
    sql.execute("TRUNCATE store CASCADE")

    async def put(embed: Letters, times: int = 1, given: Any = None) -> list[bool]:
        index = {"dims": DIMS, "embed": given or embed, "fields": ["text"]}
        done = []
        async with opened(request.param, aurora, DATABASE, index=index) as store:
            for _ in range(times):
                before = len(embed.documents)
                await store.put(("a",), "k", {"text": "tea"})
                done.append(len(embed.documents) > before)
        return done

    return put


@pytest.mark.parametrize(
    "attributes",
    [{"model": "m"}, {"model_id": "m"}, {"model_name": "m"}, {"deployment": "m", "dimensions": 8}],
    ids=str,
)
async def test_the_same_model_of_another_store_embeds_nothing_again(
    embedded: Callable[..., Any], attributes: dict[str, Any]
) -> None:
    """As after a deployment or in another process."""
    assert await embedded(Named(**attributes)) == [True]
    assert await embedded(Named(**attributes)) == [False]


@pytest.mark.parametrize(
    "other",
    [
        Named(model_id="m2"),
        Named(model_name="m"),
        Named(model_id="m", dimensions=8),
        Named(model_id="m", model_kwargs={"normalize": False}),
        OtherClass(model_id="m"),
    ],
    ids=["name", "attribute", "dimensions", "settings", "class"],
)
async def test_another_model_embeds_again(embedded: Callable[..., Any], other: Named) -> None:
    """Its name, a setting or its class says so; and back again."""
    assert await embedded(Named(model_id="m")) == [True]
    assert await embedded(other) == [True]
    assert await embedded(Named(model_id="m")) == [True]


async def test_a_model_without_a_name_is_trusted_within_its_store(
    embedded: Callable[..., Any],
) -> None:
    """It cannot be told whether the next store's is the same; what is no text is no name."""
    for attributes in ({}, {"dimensions": 8}, {"model": object()}, {"model": ""}):
        assert await embedded(Named(**attributes), times=2) == [True, False]


async def test_a_function_is_trusted_within_its_store(embedded: Callable[..., Any]) -> None:
    """Plain or async: two functions may call two models."""
    for _ in range(2):
        letters = Letters()
        assert await embedded(letters, 2, letters.embed_documents) == [True, False]


def test_a_name_and_the_object_it_stands_for_are_one_model() -> None:
    """And another model, or other dimensions of it, are not."""
    ids = {
        identify(resolve(f"bedrock:{TITAN}").embeddings),
        identify(BedrockEmbeddings(TITAN)),
        identify(BedrockEmbeddings(TITAN, session=SESSION, region="eu-west-1")),
    }
    assert len(ids) == 1
    assert ids.isdisjoint(
        [
            None,
            identify(BedrockEmbeddings(COHERE)),
            identify(BedrockEmbeddings(TITAN, dimensions=256)),
            identify(resolve("openai:text-embedding-3-small").embeddings),
        ]
    )


def test_langchains_own_classes_have_an_identity() -> None:
    """The same for equal settings, another for other ones, and none of it a secret."""

    def azure(**settings: Any) -> str | None:
        embeddings = AzureOpenAIEmbeddings(
            api_key="secret", azure_endpoint="https://x", api_version="1", **settings
        )
        return identify(embeddings)

    assert azure(azure_deployment="one") == azure(azure_deployment="one")
    assert len({azure(azure_deployment="one"), azure(azure_deployment="two"), None}) == 3
    assert "secret" not in str(azure(azure_deployment="one"))
    bedrock = [
        identify(LangChainBedrock(model_id=TITAN, client=object(), **settings))
        for settings in ({}, {}, {"model_kwargs": {"dimensions": 256}})
    ]
    assert bedrock[0] == bedrock[1] != bedrock[2]


@pytest.mark.parametrize(
    "setting",
    [
        "base_url",
        "openai_api_base",
        "azure_endpoint",
        "endpoint_url",
        "doc_embed_type",
        "query_instruction",
        "embed_instruction",
    ],
)
def test_a_server_or_an_instruction_makes_another_model(setting: str) -> None:
    """The same name means another model on another server, and another vector when asked so."""
    values = ({}, {setting: "https://one/v1"}, {setting: "https://two/v1"})
    assert len({identify(Named(model="m", **value)) for value in values}) == 3


def test_the_server_of_our_own_class_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given or from the environment, and without the password in it."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    def ask(**options: Any) -> str | None:
        return identify(OpenAIEmbeddings("m", family="openai-fixed", dimensions=8, **options))

    one, two = ask(base_url="http://me:hidden@one/v1?key=hidden"), ask(base_url="http://two/v1")
    assert len({one, two, ask()}) == 3
    assert "hidden" not in str(one)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://two/v1/")
    assert ask() == two


def test_what_another_process_would_not_find_is_left_out() -> None:
    """An object's address differs in each, and a property may fail."""

    class Failing(Named):
        @property
        def dimensions(self) -> int:
            raise RuntimeError("not loaded yet")

    assert identify(Named(model="m", model_kwargs={"device": object()})) == identify(
        Named(model="m")
    )
    assert identify(Named(model=object())) is None
    assert identify(Failing(model="m")) is not None
