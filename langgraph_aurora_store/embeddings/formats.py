"""Every wire format this package speaks, as data: the request, the answer, the limits of a text.

A request is a template whose `Slot` members are replaced for each request, and an answer is read
at a path. A new format is one `WireFormat` in `WIRE_FORMATS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Literal, NamedTuple, TypeAlias

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


class WireFormat(NamedTuple):
    """How a group of models is asked and answers, and what one request may hold.

    ``max_chars`` counts characters of one text and is exact; ``max_tokens`` counts the service's
    own tokens of one text; ``texts`` and ``request_tokens`` bound one request. ``response`` names
    the places where vectors may be found, ``cut_at`` the one where the service says how many
    characters it used. ``purposes`` are its words for (document, query), ``truncation`` those for
    (cut, refuse).
    """

    name: str
    provider: Provider
    request: Mapping[str, object]
    response: tuple[str, ...]
    max_tokens: int | None = None
    max_chars: int | None = None
    texts: int = 1
    request_tokens: int | None = None
    cut_at: str = ""
    purposes: tuple[str, str] = ("", "")
    truncation: tuple[str, str] = ("", "")

    def body(
        self,
        texts: Sequence[str],
        *,
        dimensions: int,
        shortened: bool,
        purpose: Purpose,
        truncate: Truncate,
    ) -> dict[str, object]:
        """The request for ``texts``, ready for JSON.

        ``shortened`` says that ``dimensions`` are not the model's default.
        """
        slots: dict[Slot, object] = {
            Slot.TEXT: texts[0],
            Slot.TEXTS: list(texts),
            Slot.DIMENSIONS: dimensions,
            Slot.SHORTENED: dimensions if shortened else None,
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
        raise LookupError(" or ".join(map(repr, self.response)))

    def used(self, answer: object) -> int | None:
        """How many characters of its one text the service used, where it says that it cut it."""
        found = _at(answer, self.cut_at) if self.cut_at else None
        [length] = found if isinstance(found, list) and len(found) == 1 else [None]
        return length if isinstance(length, int) and length > 0 else None


WIRE_FORMATS: Mapping[str, WireFormat] = {
    wire_format.name: wire_format
    for wire_format in (
        WireFormat(
            name="titan-v1",
            provider="bedrock",
            request={"inputText": Slot.TEXT},
            response=("embedding",),
            max_tokens=8192,
            max_chars=50_000,
        ),
        WireFormat(
            name="titan-v2",
            provider="bedrock",
            request={"inputText": Slot.TEXT, "dimensions": Slot.DIMENSIONS, "normalize": True},
            response=("embedding",),
            max_tokens=8192,
            max_chars=50_000,
        ),
        WireFormat(
            name="titan-image",
            provider="bedrock",
            request={
                "inputText": Slot.TEXT,
                "embeddingConfig": {"outputEmbeddingLength": Slot.DIMENSIONS},
            },
            response=("embedding",),
            max_tokens=256,
        ),
        WireFormat(
            name="cohere-v3",
            provider="bedrock",
            request={
                "texts": Slot.TEXTS,
                "input_type": Slot.PURPOSE,
                "truncate": Slot.TRUNCATION,
            },
            response=("embeddings", "embeddings.float"),
            max_chars=2048,
            texts=96,
            purposes=("search_document", "search_query"),
            truncation=("END", "NONE"),
        ),
        WireFormat(
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
        WireFormat(
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
            # The guide says 8,192 characters, the service is reported to take 50,000; a refusal
            # tells its limit and the text is then cut to that.
            max_tokens=8192,
            max_chars=50_000,
            cut_at="embeddings[].truncatedCharLength",
            purposes=("GENERIC_INDEX", "TEXT_RETRIEVAL"),
            truncation=("END", "NONE"),
        ),
        WireFormat(
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
        WireFormat(
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
