"""From the texts of one call to its requests, and from the answers back to vectors: no I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from langgraph_aurora_store.embeddings.formats import Purpose, Truncate
from langgraph_aurora_store.embeddings.models import Model
from langgraph_aurora_store.embeddings.options import Options
from langgraph_aurora_store.embeddings.text_labels import label_of
from langgraph_aurora_store.embeddings.text_lengths import batches, fitting_length
from langgraph_aurora_store.errors import EmbeddingError, EmbeddingResponseError

MENTIONED = 5


@dataclass(frozen=True, slots=True)
class InputText:
    """One distinct text of a call: what to send of it, and how to name it without quoting it."""

    content: str = field(repr=False)
    label: str
    length: int

    @property
    def is_cut(self) -> bool:
        """Whether less than the whole text is sent."""
        return len(self.content) < self.length

    def cut_to(self, length: int) -> InputText:
        """This text with no more than its first ``length`` characters to send."""
        return replace(self, content=self.content[:length])


class Request(NamedTuple):
    """The texts of one request to the service."""

    texts: tuple[InputText, ...]
    purpose: Purpose

    @property
    def contents(self) -> list[str]:
        """What to send."""
        return [text.content for text in self.texts]


@dataclass(frozen=True, slots=True)
class RequestResult:
    """The vectors of one request, and the texts as they were sent in the end."""

    vectors: list[list[float]] = field(repr=False)
    texts: tuple[InputText, ...]


class RequestPlan(NamedTuple):
    """One call's requests, and the position of each text's vector in their answers."""

    requests: tuple[Request, ...]
    positions: tuple[int, ...]

    def assemble(self, answers: Sequence[RequestResult]) -> list[list[float]]:
        """A vector for each text of the call, in its order; equal texts get a copy each."""
        vectors = [vector for answer in answers for vector in answer.vectors]
        given: set[int] = set()
        found = []
        for position in self.positions:
            found.append(vectors[position].copy() if position in given else vectors[position])
            given.add(position)
        return found


def plan_requests(
    texts: Sequence[str], purpose: Purpose, model: Model, options: Options
) -> RequestPlan:
    """Split ``texts`` into requests, each distinct text once, cut to what the model takes.

    Raises `EmbeddingError` for an empty text, and for one over the model's character limit where
    ``truncate`` is ``"error"``.
    """
    truncate = options.truncate
    positions = {text: position for position, text in enumerate(dict.fromkeys(texts))}
    first = {text: position for position, text in reversed(list(enumerate(texts)))}
    distinct = [
        _text(text, "the query" if purpose == "query" else label_of(first[text]), model, truncate)
        for text in positions
    ]
    requests = tuple(
        Request(tuple(distinct[position] for position in batch), purpose)
        for batch in batches(
            [text.content for text in distinct], model.wire_format, workers=options.max_concurrency
        )
    )
    return RequestPlan(requests, tuple(positions[text] for text in texts))


def describe_cuts(answers: Sequence[RequestResult], model: Model) -> str:
    """A sentence that names the texts that were cut, or an empty one."""
    cut = [text for answer in answers for text in answer.texts if text.is_cut]
    if not cut:
        return ""
    named = ", ".join(
        f"{text.label} ({text.length:,} characters, the first {len(text.content):,} embedded)"
        for text in cut[:MENTIONED]
    )
    more = f" and {len(cut) - MENTIONED} more" if len(cut) > MENTIONED else ""
    return f"{len(cut)} text(s) over the limit of {model.id} were cut: {named}{more}"


def validate_vectors(
    vectors: Sequence[object], request: Request, model: Model
) -> list[list[float]]:
    """The vectors of one answer, if they are what was asked for.

    Raises `EmbeddingResponseError` for another count or length, and for numbers that are none.
    """
    if len(vectors) != len(request.texts):
        raise EmbeddingResponseError(
            f"{model.id} answered {len(request.texts)} text(s) with {len(vectors)} vector(s)"
        )
    return [
        _numbers(vector, text, model) for vector, text in zip(vectors, request.texts, strict=True)
    ]


def _text(content: str, label: str, model: Model, truncate: Truncate) -> InputText:
    if not content:
        raise EmbeddingError(
            f"{label} is empty: there is nothing to embed, and {model.id} refuses it. "
            "Leave it out, or store the item with index=False"
        )
    limit = model.wire_format.max_chars
    if truncate == "warn":
        return InputText(content, label, len(content)).cut_to(
            fitting_length(content, model.wire_format)
        )
    if limit is not None and len(content) > limit:
        raise EmbeddingError(
            f"{label} has {len(content):,} characters, over the limit of {limit:,} of {model.id}; "
            'shorten it, split it, or pass truncate="warn" to have it cut'
        )
    return InputText(content, label, len(content))


def _numbers(vector: object, text: InputText, model: Model) -> list[float]:
    length = len(vector) if isinstance(vector, list) else None
    if not isinstance(vector, list) or length != model.dimensions:
        found = f"{length} numbers" if length is not None else "no list of numbers"
        raise EmbeddingResponseError(
            f"{model.id} answered {text.label} with {found} instead of {model.dimensions}; "
            "for a model of your own pass the dimensions= it has"
        )
    try:
        # One pass in C: a NaN or an infinity anywhere makes the sum one.
        finite = math.isfinite(sum(vector))
    except TypeError:
        finite = False
    if not finite:
        raise EmbeddingResponseError(
            f"{model.id} answered {text.label} with a vector that holds something else than "
            "finite numbers"
        )
    return vector
