"""From the texts of one call to its requests, and from the answers back to vectors: no I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from langgraph_aurora_store.embeddings.formats import Purpose, Truncate, WireFormat
from langgraph_aurora_store.embeddings.models import Model
from langgraph_aurora_store.embeddings.options import Options
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


# "The characters to tokens ratio in English is 4.7, on average": Amazon Bedrock user guide,
# Amazon Titan Text Embeddings models.
CHARS_PER_TOKEN = 4.7
# Other scripts: a token of the usual byte-pair vocabularies holds about two bytes of UTF-8.
BYTES_PER_TOKEN = 2.0
# Fewer texts than this are not split for the sake of sending them side by side.
WORTH_A_REQUEST = 128

# Text, not compiled patterns: only a refusal needs them.
_MEASURES = (
    # Titan: "Too many input tokens. Max input tokens: 8192, request input token count: 9875"
    r"(?i)max input tokens: (?P<limit>\d+), request input token count: (?P<given>\d+)",
    # Bedrock's schema: "expected maxLength: 50000, actual: 52611"
    r"(?i)expected maxLength: (?P<limit>\d+), actual: (?P<given>\d+)",
    # OpenAI: "maximum context length is 8192 tokens, however you requested 9875 tokens"
    r"(?i)maximum context length is (?P<limit>\d+) tokens,? however,? "
    r"you requested (?P<given>\d+)",
)
_TOO_LONG = (
    r"(?i)too many (input )?tokens|too long|maximum (context|input) length|maxLength|max_tokens_per"
)


def fitting_length(text: str, wire_format: WireFormat) -> int:
    """How many characters of ``text`` to send: exact where the model counts characters.

    A limit in tokens is estimated at the average of English prose, so that no more is lost than
    needed; a service that still finds the text too long says so, and `accepted_share` reads it.
    """
    length = min(len(text), wire_format.max_chars or len(text))
    # A service that reports its own cut knows its tokens better than an estimate does.
    limit = None if wire_format.cut_at else wire_format.max_tokens
    if limit is None or _tokens(text[:length]) <= limit:
        return length
    if text.isascii():
        return int(limit * CHARS_PER_TOKEN)
    return _longest_prefix(text[:length], limit)


def largest_token_count(text: str, wire_format: WireFormat) -> int:
    """A number of tokens ``text`` cannot exceed: a token holds at least one byte."""
    size = len(text.encode("utf-8", "surrogatepass"))
    return min(size, wire_format.max_tokens or size)


def says_too_long(message: str) -> bool:
    """Whether a service's refusal is about the length of a text."""
    return bool(re.search(_TOO_LONG, message))


def accepted_share(message: str) -> float | None:
    """The share of the text that would have fitted, where the refusal holds the two numbers."""
    for measure in _MEASURES:
        if (found := re.search(measure, message)) and int(found["given"]):
            return int(found["limit"]) / int(found["given"])
    return None


def batches(texts: Sequence[str], wire_format: WireFormat, *, workers: int) -> Iterator[list[int]]:
    """Positions of ``texts`` in requests that stay within the format's count and size.

    Requests are smaller than they may be where all ``workers`` can then work at the same time.
    """
    most = min(wire_format.texts, max(WORTH_A_REQUEST, math.ceil(len(texts) / workers)))
    batch: list[int] = []
    tokens = 0
    for position, text in enumerate(texts):
        size = largest_token_count(text, wire_format) if wire_format.request_tokens else 0
        full = len(batch) == most or tokens + size > (wire_format.request_tokens or 0)
        if batch and full:
            yield batch
            batch, tokens = [], 0
        batch.append(position)
        tokens += size
    if batch:
        yield batch


def _tokens(text: str) -> float:
    if text.isascii():
        return len(text) / CHARS_PER_TOKEN
    encoded = len(text.encode("utf-8", "surrogatepass"))
    others = sum(character > "\x7f" for character in text)
    ascii_characters = len(text) - others
    return ascii_characters / CHARS_PER_TOKEN + (encoded - ascii_characters) / BYTES_PER_TOKEN


def _longest_prefix(text: str, max_tokens: int) -> int:
    """The longest prefix estimated at no more than ``max_tokens``, by bisection."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if _tokens(text[:middle]) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    return low


_labels: ContextVar[Sequence[str]] = ContextVar("langgraph_aurora_store_text_labels", default=())


@contextmanager
def text_labels(labels: Sequence[str]) -> Iterator[None]:
    """Name the texts of the embedding calls made inside the block, by position.

    ``labels[i]`` describes the i-th text passed to ``embed_documents`` or its async twin, for
    example ``"namespace ('chat', 'u1') key 'k'"``. Belongs to the current thread or task, and to
    the calls it makes; any ``Embeddings`` may be called in it, those of this package read it.
    A label is written to logs and errors as it is: put no text in it.
    """
    token = _labels.set(labels)
    try:
        yield
    finally:
        _labels.reset(token)


def label_of(position: int) -> str:
    """The label of the text at ``position``, or its number where it has none."""
    labels = _labels.get()
    return labels[position] if position < len(labels) else f"text {position + 1}"
