"""Each model of the table, asked by the real SDK, answered by a service that checks the body."""

import math
from collections.abc import Iterator

import boto3
import pytest

from langgraph_aurora_store.embeddings import BedrockEmbeddings, OpenAIEmbeddings
from langgraph_aurora_store.embeddings.base import ServiceEmbeddings
from langgraph_aurora_store.embeddings.formats import WIRE_FORMATS
from langgraph_aurora_store.embeddings.models import MODELS, Model, find_model
from langgraph_aurora_store.errors import ConfigurationError
from tests.support.bedrock_service import Bedrock
from tests.support.openai_service import OpenAI

APPLICATION_PROFILE = (
    "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3d4e5f6"
)
PROFILE = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.cohere.embed-v4:0"
FOUNDATION = "arn:aws:bedrock:us-east-1::foundation-model/amazon.titan-embed-text-v2:0"

SESSION = boto3.Session("AKIDEXAMPLE", "secret", region_name="us-east-1")


@pytest.fixture(scope="module")
def _bedrock() -> Iterator[Bedrock]:
    profiles = {
        APPLICATION_PROFILE: "cohere.embed-multilingual-v3",
        PROFILE: "cohere.embed-v4:0",
        FOUNDATION: "amazon.titan-embed-text-v2:0",
        "amazon.titan-embed-text-v2:0:8k": "amazon.titan-embed-text-v2:0",
    }
    with Bedrock(profiles=profiles) as service:
        yield service


@pytest.fixture
def bedrock(_bedrock: Bedrock) -> Bedrock:
    _bedrock.reset()
    return _bedrock


@pytest.fixture(scope="module")
def _openai() -> Iterator[OpenAI]:
    with OpenAI() as service:
        yield service


@pytest.fixture
def openai(_openai: OpenAI) -> OpenAI:
    _openai.reset()
    return _openai


def embeddings_for(
    model: Model, bedrock: Bedrock, openai: OpenAI, dimensions: int | None = None
) -> ServiceEmbeddings:
    """The embeddings of a model, at the local twin of its service."""
    if model.wire_format.provider == "openai":
        return OpenAIEmbeddings(
            model.id, dimensions=dimensions, api_key=openai.key, base_url=openai.base_url
        )
    return BedrockEmbeddings(
        model.id, dimensions=dimensions, session=SESSION, endpoint_url=bedrock.url
    )


def likeness(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (
        math.hypot(*one) * math.hypot(*other)
    )


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.id)
async def test_a_query_finds_the_document_it_is_about(
    model: Model, bedrock: Bedrock, openai: OpenAI
) -> None:
    """Every model embeds documents and queries, sync and async, into comparable vectors."""
    embeddings = embeddings_for(model, bedrock, openai)
    documents = ["likes hiking in the alps", "works on cloud services", "plays the cello"]
    vectors = embeddings.embed_documents(documents)
    assert vectors == await embeddings.aembed_documents(documents)
    assert [len(vector) for vector in vectors] == [model.dimensions] * 3
    query = embeddings.embed_query("which cloud services")
    assert query == await embeddings.aembed_query("which cloud services")
    assert max(vectors, key=lambda vector: likeness(vector, query)) is vectors[1]


@pytest.mark.parametrize(
    ("model", "dimensions"),
    [
        (model, dimensions)
        for model in MODELS.values()
        for dimensions in (model.offers if len(model.offers) < 10 else (1, 256, 1024))
    ],
    ids=lambda value: value.id if isinstance(value, Model) else str(value),
)
def test_each_length_on_offer_can_be_had(
    model: Model, dimensions: int, bedrock: Bedrock, openai: OpenAI
) -> None:
    """``dimensions`` reaches the service and the vectors have that length."""
    embeddings = embeddings_for(model, bedrock, openai, dimensions)
    assert embeddings.dimensions == dimensions
    assert len(embeddings.embed_query("anything")) == dimensions


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.id)
def test_a_length_not_on_offer_is_refused_with_those_that_are(
    model: Model, bedrock: Bedrock, openai: OpenAI
) -> None:
    """A wrong ``dimensions`` is an error at once, before any request, and lists the right ones."""
    with pytest.raises(ConfigurationError, match=str(model.offers[0])):
        embeddings_for(model, bedrock, openai, 5000)
    assert not bedrock.requests
    assert not openai.requests


@pytest.mark.parametrize(
    ("model", "place", "document", "query"),
    [
        ("cohere.embed-english-v3", ("input_type",), "search_document", "search_query"),
        ("cohere.embed-multilingual-v3", ("input_type",), "search_document", "search_query"),
        ("cohere.embed-v4:0", ("input_type",), "search_document", "search_query"),
        (
            "amazon.nova-2-multimodal-embeddings-v1:0",
            ("singleEmbeddingParams", "embeddingPurpose"),
            "GENERIC_INDEX",
            "TEXT_RETRIEVAL",
        ),
    ],
)
def test_a_query_is_told_apart_from_a_document(
    model: str,
    place: tuple[str, ...],
    document: str,
    query: str,
    bedrock: Bedrock,
    openai: OpenAI,
) -> None:
    """The services that distinguish purposes are told which of the two a text is."""
    embeddings = embeddings_for(MODELS[model], bedrock, openai)
    embeddings.embed_documents(["a memory"])
    embeddings.embed_query("a question")
    sent = []
    for body in bedrock.requests:
        for name in place:
            body = body[name]
        sent.append(body)
    assert sent == [document, query]


@pytest.mark.parametrize(
    ("name", "base_model", "dimensions"),
    [
        ("us.cohere.embed-v4:0", None, 1536),
        ("global.cohere.embed-v4:0", None, 1536),
        ("eu.amazon.titan-embed-text-v2:0", None, 1024),
        ("amazon.titan-embed-text-v2:0:8k", None, 1024),
        (FOUNDATION, None, 1024),
        (PROFILE, None, 1536),
        (APPLICATION_PROFILE, "cohere.embed-multilingual-v3", 1024),
        (APPLICATION_PROFILE, "eu.cohere.embed-multilingual-v3", 1024),
    ],
)
def test_profiles_and_arns_are_asked_for_by_their_own_name(
    name: str, base_model: str | None, dimensions: int, bedrock: Bedrock
) -> None:
    """The model behind a profile decides the request; the profile is what is called."""
    embeddings = BedrockEmbeddings(
        name, base_model=base_model, session=SESSION, endpoint_url=bedrock.url
    )
    assert len(embeddings.embed_query("anything")) == dimensions
    assert bedrock.models[-1] == name


def test_an_arn_that_hides_its_model_asks_for_it() -> None:
    """An application profile without ``base_model`` is an error that says what to pass."""
    with pytest.raises(ConfigurationError, match=r"base_model=.* known are amazon\.titan"):
        BedrockEmbeddings(APPLICATION_PROFILE)


def test_an_unknown_bedrock_model_is_refused_with_what_is_known() -> None:
    """The error lists the models, and the families by which another one can be described."""
    with pytest.raises(ConfigurationError) as refused:
        BedrockEmbeddings("acme.embed-v1")
    for word in ("cohere.embed-v4:0", "titan-v2", "dimensions=", "family=", "'acme.embed-v1'"):
        assert word in str(refused.value)


def test_an_unknown_openai_model_is_refused_with_what_is_known() -> None:
    """The error lists the models, and how another one can be described."""
    with pytest.raises(ConfigurationError, match=r"text-embedding-3-small.*openai-fixed"):
        OpenAIEmbeddings("nomic-embed-text")


def test_a_described_model_works() -> None:
    """A model outside the table is asked in the family, and with the length, that the user says."""
    arn = "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/abcdefghijkl"
    with Bedrock(profiles={arn: "amazon.titan-embed-text-v2:0"}) as service:
        embeddings = BedrockEmbeddings(
            arn, family="titan-v2", dimensions=512, session=SESSION, endpoint_url=service.url
        )
        assert len(embeddings.embed_query("anything")) == 512
        assert service.requests[0]["dimensions"] == 512


def test_a_described_model_needs_its_length_and_a_known_family() -> None:
    """``family`` without ``dimensions``, and a family of no meaning, are errors that say so."""
    with pytest.raises(ConfigurationError, match="dimensions="):
        BedrockEmbeddings("acme.embed-v1", family="titan-v2")
    with pytest.raises(ConfigurationError, match="cohere-v4"):
        BedrockEmbeddings("acme.embed-v1", family="openai", dimensions=4)


def test_openai_is_told_a_length_only_where_it_is_not_the_default(openai: OpenAI) -> None:
    """The default length is left out, for services that do not know the parameter."""
    model = MODELS["text-embedding-3-small"]
    for dimensions in (None, 1536, 512):
        OpenAIEmbeddings(
            model.id, dimensions=dimensions, api_key=openai.key, base_url=openai.base_url
        ).embed_query("anything")
    assert [body.get("dimensions") for body in openai.requests] == [None, None, 512]


def test_no_id_is_mistaken_for_another() -> None:
    """A prefix is a geography, and a longer id is the same model only after a colon."""
    assert find_model("acme.cohere-embed-v4:0", "bedrock") is None
    assert find_model("amazon.titan-embed-text-v12", "bedrock") is None
    assert find_model("text-embedding-3-small", "bedrock") is None
    assert find_model("us.us.cohere.embed-v4:0", "bedrock") is None


def test_every_model_and_family_is_keyed_by_its_name() -> None:
    """The tables hold each entry under its own name, and each model starts at its default."""
    assert all(name == wire_format.name for name, wire_format in WIRE_FORMATS.items())
    assert all(
        name == model.id and model.dimensions == model.offers[0] and model.source
        for name, model in MODELS.items()
    )
