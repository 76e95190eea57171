"""Every embedding model this package knows, as data. A new one is one `Model` in `MODELS`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from langgraph_aurora_store.embeddings.formats import (
    WIRE_FORMATS,
    Provider,
    Purpose,
    Truncate,
    WireFormat,
)
from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.validation import brief


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model: what it is called, how it is asked, and how long its vectors are.

    ``offers`` are the dimensions the service can return, its default first; ``dimensions`` is the
    choice made of them; ``source`` is where these facts were read.
    """

    id: str
    wire_format: WireFormat
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
            asked = brief(dimensions)
            raise ConfigurationError(
                f"{self.id} has no vectors of {asked} dimensions; it offers {self.choice}"
            )
        return replace(self, dimensions=dimensions)

    def body(
        self, texts: Sequence[str], *, purpose: Purpose, truncate: Truncate
    ) -> dict[str, object]:
        """The request for ``texts``, ready for JSON."""
        return self.wire_format.body(
            texts,
            dimensions=self.dimensions,
            shortened=self.dimensions != self.offers[0],
            purpose=purpose,
            truncate=truncate,
        )

    @property
    def choice(self) -> str:
        """The dimensions on offer, as a reader would write them."""
        if isinstance(self.offers, range):
            return f"{self.offers[0]} and any shorter length"
        return ", ".join(map(str, self.offers))


_BEDROCK_GUIDE = "Amazon Bedrock user guide, "
_OPENAI_REFERENCE = "OpenAI API reference, Create embeddings"

MODELS: Mapping[str, Model] = {
    model.id: model
    for model in (
        Model(
            id="amazon.titan-embed-text-v2:0",
            wire_format=WIRE_FORMATS["titan-v2"],
            offers=(1024, 512, 256),
            source=_BEDROCK_GUIDE + "Amazon Titan Text Embeddings",
        ),
        Model(
            id="amazon.titan-embed-text-v1",
            wire_format=WIRE_FORMATS["titan-v1"],
            offers=(1536,),
            source=_BEDROCK_GUIDE + "Amazon Titan Text Embeddings",
        ),
        Model(
            id="amazon.titan-embed-image-v1",
            wire_format=WIRE_FORMATS["titan-image"],
            offers=(1024, 384, 256),
            source=_BEDROCK_GUIDE + "Amazon Titan Multimodal Embeddings G1",
        ),
        Model(
            id="cohere.embed-english-v3",
            wire_format=WIRE_FORMATS["cohere-v3"],
            offers=(1024,),
            source=_BEDROCK_GUIDE + "Cohere Embed v3",
        ),
        Model(
            id="cohere.embed-multilingual-v3",
            wire_format=WIRE_FORMATS["cohere-v3"],
            offers=(1024,),
            source=_BEDROCK_GUIDE + "Cohere Embed v3",
        ),
        Model(
            id="cohere.embed-v4:0",
            wire_format=WIRE_FORMATS["cohere-v4"],
            offers=(1536, 1024, 512, 256),
            source=_BEDROCK_GUIDE + "Cohere Embed v4",
        ),
        Model(
            id="amazon.nova-2-multimodal-embeddings-v1:0",
            wire_format=WIRE_FORMATS["nova"],
            offers=(3072, 1024, 384, 256),
            source="Amazon Nova user guide, Complete embeddings request and response schema",
        ),
        Model(
            id="text-embedding-3-small",
            wire_format=WIRE_FORMATS["openai"],
            offers=range(1536, 0, -1),
            source=_OPENAI_REFERENCE,
        ),
        Model(
            id="text-embedding-3-large",
            wire_format=WIRE_FORMATS["openai"],
            offers=range(3072, 0, -1),
            source=_OPENAI_REFERENCE,
        ),
        Model(
            id="text-embedding-ada-002",
            wire_format=WIRE_FORMATS["openai-fixed"],
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
            if same and model.wire_format.provider == provider:
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
    _check_given(dimensions, model=name, family=family, base_model=base_model)
    described = find_model(base_model or name, provider)
    if family is not None:
        return replace(_described(name, provider, family, dimensions), id=name)
    if described is None:
        raise ConfigurationError(_unknown(name, provider, base_model))
    return replace(described.sized(dimensions), id=name)


def _check_given(dimensions: object, **names: object) -> None:
    """Refuse a name or a length of another type, before it is looked up or sent."""
    for option, value in names.items():
        is_left_out = value is None and option != "model"
        if not is_left_out and not (isinstance(value, str) and value.strip()):
            raise ConfigurationError(f"{option}={brief(value)}: pass its name")
    if not isinstance(dimensions, int | None) or isinstance(dimensions, bool):
        raise ConfigurationError(
            f"dimensions={brief(dimensions)}: pass a whole number, or leave it out"
        )


def known_models(provider: Provider) -> str:
    """The ids of a provider's known models, for an error message."""
    return ", ".join(
        model.id for model in MODELS.values() if model.wire_format.provider == provider
    )


def known_families(provider: Provider) -> str:
    """The names of a provider's request families, for an error message."""
    return ", ".join(
        name for name, wire_format in WIRE_FORMATS.items() if wire_format.provider == provider
    )


def _described(name: str, provider: Provider, family: str, dimensions: int | None) -> Model:
    """The model a caller describes by its family and dimensions."""
    known = WIRE_FORMATS.get(family)
    if known is None or known.provider != provider:
        raise ConfigurationError(
            f"family={brief(family)} is unknown; known are {known_families(provider)}"
        )
    if dimensions is None or dimensions < 1:
        raise ConfigurationError(
            f"family={family!r} says how {brief(name)} is asked; pass dimensions= as well, "
            "the length of its vectors"
        )
    # Offered twice, so that a format which leaves the default out sends what the caller chose.
    return Model(id=name, wire_format=known, offers=(0, dimensions), dimensions=dimensions)


def _unknown(name: str, provider: Provider, base_model: str | None) -> str:
    known, shown = f"known are {known_models(provider)}", brief(name)
    if provider == "openai":
        return (
            f"OpenAI model {shown} is unknown; {known}. For another one pass OpenAIEmbeddings("
            f"{shown}, dimensions=…, family=…), family one of {known_families(provider)}"
        )
    if base_model is not None:
        return f"base_model={brief(base_model)} is unknown; {known}"
    if name.startswith("arn:"):
        return (
            f"{shown} does not show which model is behind it; pass BedrockEmbeddings(arn, "
            f"base_model=…) with the model's id; {known}"
        )
    return (
        f"Bedrock model {shown} is unknown; {known}, also with a cross-region prefix such as us. "
        f"or eu. For another one pass BedrockEmbeddings({shown}, dimensions=…, family=…), family "
        f"one of {known_families(provider)}"
    )
