"""How much of a text a model takes: cutting without a tokenizer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from langgraph_aurora_store.embeddings.formats import WireFormat

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
