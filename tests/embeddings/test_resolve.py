"""What an index configuration's ``embed`` may be, and what it becomes."""

from collections.abc import Sequence

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings

from langgraph_aurora_store.embeddings import (
    BedrockEmbeddings,
    OpenAIEmbeddings,
    Resolved,
    resolve,
)
from langgraph_aurora_store.embeddings.models import MODELS
from langgraph_aurora_store.errors import ConfigurationError


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.id)
def test_a_known_model_by_name_brings_its_dimensions(model: object) -> None:
    """``dims`` may be left out for every model of the table."""
    assert hasattr(model, "wire_format")
    resolved = resolve(f"{model.wire_format.provider}:{model.id}")
    assert resolved.dims == model.offers[0]
    assert isinstance(resolved.embeddings, BedrockEmbeddings | OpenAIEmbeddings)


def test_dims_choose_the_length() -> None:
    """``dims`` beside a name is the length that is asked for, where the model offers it."""
    assert resolve("bedrock:amazon.titan-embed-text-v2:0", dims=256).dims == 256
    assert resolve("openai:text-embedding-3-large", dims=1000).dims == 1000
    with pytest.raises(ConfigurationError, match="1024, 512, 256"):
        resolve("bedrock:amazon.titan-embed-text-v2:0", dims=1536)


def test_an_object_of_ours_brings_its_dimensions() -> None:
    """``dims`` may be left out beside an object, and must not contradict it."""
    embeddings = BedrockEmbeddings("us.cohere.embed-v4:0", dimensions=512)
    assert resolve(embeddings) == Resolved(embeddings, 512)
    assert resolve(embeddings, dims=512).dims == 512
    with pytest.raises(ConfigurationError, match=r"dims=1024 .* vectors of 512"):
        resolve(embeddings, dims=1024)


def test_any_langchain_embeddings_are_taken() -> None:
    """An object of LangChain's keeps its identity; its length is what the user says."""
    fake = DeterministicFakeEmbedding(size=7)
    assert resolve(fake, dims=7) == Resolved(fake, 7)
    assert resolve(fake).dims is None


def vectors(texts: Sequence[str]) -> list[list[float]]:
    return [[float(len(text)), 1.0] for text in texts]


async def avectors(texts: Sequence[str]) -> list[list[float]]:
    return vectors(texts)


async def test_functions_are_taken() -> None:
    """A function from texts to vectors embeds, plain or async."""
    plain = resolve(vectors, dims=2).embeddings
    assert isinstance(plain, Embeddings)
    assert plain.embed_documents(["tea"]) == [[3.0, 1.0]]
    assert await plain.aembed_query("tea") == [3.0, 1.0]
    assert await resolve(avectors, dims=2).embeddings.aembed_query("tea") == [3.0, 1.0]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("bedrock:acme.embed-v1", "known are amazon.titan-embed-text-v2:0"),
        ("openai:nomic-embed-text", "known are text-embedding-3-small"),
        ("acme:embed", "Built in are bedrock: amazon.titan"),
        ("titan", "is no 'provider:model'"),
        ("bedrock:", "is no 'provider:model'"),
        ("amazon.titan-embed-text-v2:0", "write 'bedrock:amazon.titan-embed-text-v2:0'"),
        ("text-embedding-3-small", "write 'openai:text-embedding-3-small'"),
        (
            "bedrock:arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1",
            "base_model=",
        ),
    ],
)
def test_a_name_that_means_nothing_is_refused_with_what_would(name: str, problem: str) -> None:
    """The error lists what is known or shows the name that was probably meant."""
    with pytest.raises(ConfigurationError, match=problem):
        resolve(name)


def test_another_provider_is_langchain_s() -> None:
    """A name of a provider that LangChain knows becomes LangChain's own object."""
    pytest.importorskip("langchain")
    pytest.importorskip("langchain_openai")
    with pytest.raises(ConfigurationError, match="langchain-ollama"):
        resolve("ollama:llama3")


def test_the_session_and_region_reach_bedrock() -> None:
    """They are handed on, and nothing is looked up while resolving."""
    resolved = resolve("bedrock:cohere.embed-english-v3", region="eu-nowhere-1")
    assert isinstance(resolved.embeddings, BedrockEmbeddings)
