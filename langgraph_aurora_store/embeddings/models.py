"""Every embedding model this package knows, as data: request, response, dimensions, limits.

A new model is one `Model` in `MODELS`; a new wire format is one `Family` in `FAMILIES`.
A request is a template whose `Slot` members are replaced for each request, and a response is the
path at which its vectors are found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Literal, TypeAlias

from langgraph_aurora_store.errors import ConfigurationError

Provider: TypeAlias = Literal["bedrock", "openai"]
Purpose: TypeAlias = Literal["document", "query"]
Truncate: TypeAlias = Literal["warn", "error"]


class Slot(Enum):
    """A place in a request template that is filled for each request."""

    TEXT = auto()
    """The one text of a single-text model."""
    TEXTS = auto()
    """The list of texts of a batch model."""
    DIMENSIONS = auto()
    """The dimensions, always."""
    SHORTENED = auto()
    """The dimensions, left out where they are the model's default."""
    PURPOSE = auto()
    """The service's word for a document or for a query."""
    TRUNCATION = auto()
    """The service's word for cutting a long text or for refusing it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How a group of models is asked and answers, and what one request may hold.

    ``max_chars`` counts characters of one text and is exact; ``max_tokens`` counts the service's
    own tokens of one text; ``texts`` and ``request_tokens`` bound one request. ``response`` names
    the places where vectors may be found. ``purposes`` are the service's words for (document,
    query), ``truncation`` those for (cut, refuse).
    """

    name: str
    provider: Provider
    request: Mapping[str, object]
    response: tuple[str, ...]
    max_tokens: int
    max_chars: int | None = None
    texts: int = 1
    request_tokens: int | None = None
    purposes: tuple[str, str] = ("", "")
    truncation: tuple[str, str] = ("", "")

    def body(
        self, texts: Sequence[str], *, model: Model, purpose: Purpose, truncate: Truncate
    ) -> dict[str, object]:
        """The request for ``texts``, ready for JSON."""
        slots: dict[Slot, object] = {
            Slot.TEXT: texts[0],
            Slot.TEXTS: list(texts),
            Slot.DIMENSIONS: model.dimensions,
            Slot.SHORTENED: None if model.dimensions == model.offers[0] else model.dimensions,
            Slot.PURPOSE: self.purposes[purpose == "query"],
            Slot.TRUNCATION: self.truncation[truncate == "error"],
        }
        return _filled(self.request, slots)

    def read(self, answer: object) -> list[object]:
        """The vectors of one answer, unchecked.

        Raises ``LookupError`` when the answer has another shape.
        """
        for path in self.response:
            found = _at(answer, path)
            if isinstance(found, list):
                single = self.texts == 1 and "[]" not in path
                return [found] if single else found
        raise LookupError(" or ".join(self.response))


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model: what it is called, how it is asked, and how long its vectors are.

    ``offers`` are the dimensions the service can return, its default first; ``dimensions`` is the
    choice made of them; ``source`` is where these facts were read.
    """

    id: str
    family: Family
    offers: Sequence[int]
    source: str = "the caller"
    dimensions: int = 0

    def __post_init__(self) -> None:
        """Choose the default dimensions where none were chosen."""
        object.__setattr__(self, "dimensions", self.dimensions or self.offers[0])

    def sized(self, dimensions: int | None) -> Model:
        """This model with vectors of this length; `ConfigurationError` if it offers none such."""
        if dimensions is None:
            return self
        if dimensions not in self.offers:
            raise ConfigurationError(
                f"{self.id} has no vectors of {dimensions} dimensions; it offers {self.choice}"
            )
        return replace(self, dimensions=dimensions)

    @property
    def choice(self) -> str:
        """The dimensions on offer, as a reader would write them."""
        if isinstance(self.offers, range):
            return f"{self.offers[0]} and any shorter length"
        return ", ".join(map(str, self.offers))


_BEDROCK_GUIDE = "Amazon Bedrock user guide, "
_OPENAI_REFERENCE = "OpenAI API reference, Create embeddings"

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="titan-v1",
            provider="bedrock",
            request={"inputText": Slot.TEXT},
            response=("embedding",),
            max_tokens=8192,
            max_chars=50_000,
        ),
        Family(
            name="titan-v2",
            provider="bedrock",
            request={"inputText": Slot.TEXT, "dimensions": Slot.DIMENSIONS, "normalize": True},
            response=("embedding",),
            max_tokens=8192,
            max_chars=50_000,
        ),
        Family(
            name="titan-image",
            provider="bedrock",
            request={
                "inputText": Slot.TEXT,
                "embeddingConfig": {"outputEmbeddingLength": Slot.DIMENSIONS},
            },
            response=("embedding",),
            max_tokens=256,
        ),
        Family(
            name="cohere-v3",
            provider="bedrock",
            request={
                "texts": Slot.TEXTS,
                "input_type": Slot.PURPOSE,
                "truncate": Slot.TRUNCATION,
            },
            response=("embeddings", "embeddings.float"),
            max_tokens=512,
            max_chars=2048,
            texts=96,
            purposes=("search_document", "search_query"),
            truncation=("END", "NONE"),
        ),
        Family(
            name="cohere-v4",
            provider="bedrock",
            request={
                "texts": Slot.TEXTS,
                "input_type": Slot.PURPOSE,
                "truncate": Slot.TRUNCATION,
                "embedding_types": ["float"],
                "output_dimension": Slot.DIMENSIONS,
            },
            response=("embeddings.float",),
            max_tokens=128_000,
            texts=96,
            purposes=("search_document", "search_query"),
            truncation=("RIGHT", "NONE"),
        ),
        Family(
            name="nova",
            provider="bedrock",
            request={
                "taskType": "SINGLE_EMBEDDING",
                "singleEmbeddingParams": {
                    "embeddingPurpose": Slot.PURPOSE,
                    "embeddingDimension": Slot.DIMENSIONS,
                    "text": {"truncationMode": Slot.TRUNCATION, "value": Slot.TEXT},
                },
            },
            response=("embeddings[].embedding",),
            max_tokens=8192,
            max_chars=50_000,
            purposes=("GENERIC_INDEX", "TEXT_RETRIEVAL"),
            truncation=("END", "NONE"),
        ),
        Family(
            name="openai",
            provider="openai",
            request={
                "input": Slot.TEXTS,
                "dimensions": Slot.SHORTENED,
                "encoding_format": "base64",
            },
            response=("data[].embedding",),
            max_tokens=8191,
            texts=2048,
            request_tokens=300_000,
        ),
        Family(
            name="openai-fixed",
            provider="openai",
            request={"input": Slot.TEXTS, "encoding_format": "base64"},
            response=("data[].embedding",),
            max_tokens=8191,
            texts=2048,
            request_tokens=300_000,
        ),
    )
}

MODELS: Mapping[str, Model] = {
    model.id: model
    for model in (
        Model(
            id="amazon.titan-embed-text-v2:0",
            family=FAMILIES["titan-v2"],
            offers=(1024, 512, 256),
            source=_BEDROCK_GUIDE + "Amazon Titan Text Embeddings",
        ),
        Model(
            id="amazon.titan-embed-text-v1",
            family=FAMILIES["titan-v1"],
            offers=(1536,),
            source=_BEDROCK_GUIDE + "Amazon Titan Text Embeddings",
        ),
        Model(
            id="amazon.titan-embed-image-v1",
            family=FAMILIES["titan-image"],
            offers=(1024, 384, 256),
            source=_BEDROCK_GUIDE + "Amazon Titan Multimodal Embeddings G1",
        ),
        Model(
            id="cohere.embed-english-v3",
            family=FAMILIES["cohere-v3"],
            offers=(1024,),
            source=_BEDROCK_GUIDE + "Cohere Embed v3",
        ),
        Model(
            id="cohere.embed-multilingual-v3",
            family=FAMILIES["cohere-v3"],
            offers=(1024,),
            source=_BEDROCK_GUIDE + "Cohere Embed v3",
        ),
        Model(
            id="cohere.embed-v4:0",
            family=FAMILIES["cohere-v4"],
            offers=(1536, 1024, 512, 256),
            source=_BEDROCK_GUIDE + "Cohere Embed v4",
        ),
        Model(
            id="amazon.nova-2-multimodal-embeddings-v1:0",
            family=FAMILIES["nova"],
            offers=(3072, 1024, 384, 256),
            source="Amazon Nova user guide, Complete embeddings request and response schema",
        ),
        Model(
            id="text-embedding-3-small",
            family=FAMILIES["openai"],
            offers=range(1536, 0, -1),
            source=_OPENAI_REFERENCE,
        ),
        Model(
            id="text-embedding-3-large",
            family=FAMILIES["openai"],
            offers=range(3072, 0, -1),
            source=_OPENAI_REFERENCE,
        ),
        Model(
            id="text-embedding-ada-002",
            family=FAMILIES["openai-fixed"],
            offers=(1536,),
            source=_OPENAI_REFERENCE,
        ),
    )
}

# A geography in front of a model id names a cross-region inference profile (us., eu., apac.,
# global., us-gov. …): Bedrock user guide, "Supported Regions and models for inference profiles".
_PROFILE_PREFIX = re.compile(r"^[a-z]{2,6}(-gov)?\.")
_READABLE_ARN = re.compile(
    r"^arn:[\w-]+:bedrock:[\w-]*:\d*:(foundation-model|inference-profile)/(.+)$"
)


def find_model(name: str, provider: Provider) -> Model | None:
    """The model behind a model id, a cross-region profile id or a readable ARN, if it is known."""
    if readable := _READABLE_ARN.match(name):
        name = readable[2]
    for candidate in (name, _PROFILE_PREFIX.sub("", name)):
        for model in MODELS.values():
            # "amazon.titan-embed-text-v2:0:8k" is the same model with its throughput spelt out.
            same = candidate == model.id or candidate.startswith(f"{model.id}:")
            if same and model.family.provider == provider:
                return model
    return None


def choose_model(
    name: str,
    provider: Provider,
    *,
    dimensions: int | None = None,
    family: str | None = None,
    base_model: str | None = None,
) -> Model:
    """The model to ask for as ``name``, known or described by the caller.

    Raises `ConfigurationError`, which lists what is known, when neither is the case.
    """
    described = find_model(base_model or name, provider)
    if family is not None:
        return replace(_described(name, provider, family, dimensions), id=name)
    if described is None:
        raise ConfigurationError(_unknown(name, provider, base_model))
    return replace(described.sized(dimensions), id=name)


def known_models(provider: Provider) -> str:
    """The ids of a provider's known models, for an error message."""
    return ", ".join(model.id for model in MODELS.values() if model.family.provider == provider)


def known_families(provider: Provider) -> str:
    """The names of a provider's request families, for an error message."""
    return ", ".join(name for name, family in FAMILIES.items() if family.provider == provider)


def _described(name: str, provider: Provider, family: str, dimensions: int | None) -> Model:
    """The model a caller describes by its family and dimensions."""
    known = FAMILIES.get(family)
    if known is None or known.provider != provider:
        raise ConfigurationError(
            f"family={family!r} is unknown; {provider} models are asked as one of "
            f"{known_families(provider)}"
        )
    if dimensions is None or dimensions < 1:
        raise ConfigurationError(
            f"family={family!r} says how {name} is asked; pass dimensions= as well, "
            "the length of its vectors"
        )
    # Offered twice, so that a family which leaves the default out sends what the caller chose.
    return Model(id=name, family=known, offers=(0, dimensions), dimensions=dimensions)


def _unknown(name: str, provider: Provider, base_model: str | None) -> str:
    known = f"known are {known_models(provider)}"
    if provider == "openai":
        return (
            f"OpenAI model {name!r} is unknown; {known}. For another one pass OpenAIEmbeddings("
            f"{name!r}, dimensions=…, family=…), family one of {known_families(provider)}"
        )
    if base_model is not None:
        return f"base_model={base_model!r} is unknown; {known}"
    if name.startswith("arn:"):
        return (
            f"{name} does not show which model is behind it; pass BedrockEmbeddings(arn, "
            f"base_model=…) with the model's id; {known}"
        )
    return (
        f"Bedrock model {name!r} is unknown; {known}, also with a cross-region prefix such as us. "
        f"or eu. For another one pass BedrockEmbeddings({name!r}, dimensions=…, family=…), family "
        f"one of {known_families(provider)}"
    )


def _filled(template: Mapping[str, object], slots: Mapping[Slot, object]) -> dict[str, object]:
    """The template with its slots replaced; a slot whose value is None leaves its key out."""
    filled: dict[str, object] = {}
    for key, part in template.items():
        value = slots[part] if isinstance(part, Slot) else part
        if isinstance(value, Mapping):
            value = _filled(value, slots)
        if value is not None:
            filled[key] = value
    return filled


def _at(answer: object, path: str) -> object:
    """What ``answer`` holds at ``path``: keys joined by dots, ``[]`` for each member of a list.

    None where there is no such place.
    """
    key, _, rest = path.partition(".")
    found = answer.get(key.removesuffix("[]")) if isinstance(answer, Mapping) else None
    if not rest:
        return found
    if not key.endswith("[]"):
        return _at(found, rest)
    return [_at(member, rest) for member in found] if isinstance(found, list) else None
