"""What of a service's own words may be shown: never a text, never a key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from struct import iter_unpack

WITHHELD = "its message quotes what was sent and is withheld"
LONGEST_MESSAGE = 400
# What is not looked through is not shown: the rest of a longer message, or a longer cause.
LONGEST_HEAD = 4096
LONGEST_CAUSE = 16_384
# Any run of this many characters that message and text share counts as a quotation.
TELLING_RUN = 12
# Every run of 12 bytes holds one of the 6-byte blocks that start at each 7th byte of a text, so
# only those are compared with the message: a megabyte of texts takes about 10 ms.
_BLOCK, _STRIDE = 6, 7


def service_words(message: str, secrets: Sequence[str]) -> str:
    """The service's message in one line, or a remark in its place where it quotes a secret."""
    head = message[:LONGEST_HEAD]
    if quotes(head, secrets):
        return WITHHELD
    line = " ".join(head.split()).rstrip(" .")
    is_whole = len(line) <= LONGEST_MESSAGE and len(message) <= LONGEST_HEAD
    return line if is_whole else f"{line[:LONGEST_MESSAGE]}…"


def attach_cause(error: Exception, cause: Exception, secrets: Sequence[str]) -> None:
    """Show ``cause`` as what led to ``error``, unless its words are many or quote a secret."""
    words = f"{cause} {cause!r}"
    is_private = len(words) > LONGEST_CAUSE or quotes(words, secrets)
    error.__cause__ = None if is_private else cause


def quotes(message: str, secrets: Sequence[str]) -> bool:
    """Whether ``message`` holds one of ``secrets``, or a telling part of one."""
    said = _Said(_encoded(message))
    for secret in secrets:
        for form in _forms(secret):
            if len(form) < TELLING_RUN:
                if _holds_word(message, form):
                    return True
            elif said.shares_run(_encoded(form)):
                return True
    return False


def _forms(secret: str) -> set[str]:
    """A secret as it is, and as JSON spells it."""
    is_plain = secret.isascii() and secret.isprintable() and not ('"' in secret or "\\" in secret)
    return {secret} if is_plain else {secret, json.dumps(secret)[1:-1]}


class _Said:
    """A message by its blocks and runs, so that many texts can be compared with it."""

    def __init__(self, said: bytes) -> None:
        self._blocks = frozenset((block,) for block in _windows(said, _BLOCK))
        self._runs = frozenset(_windows(said, TELLING_RUN))

    def shares_run(self, text: bytes) -> bool:
        """Whether message and ``text`` share a run of ``TELLING_RUN`` bytes.

        It takes time in proportion to the text, whatever either holds.
        """
        padded = text + bytes(-len(text) % _STRIDE)
        common = self._blocks.intersection(iter_unpack(f"{_BLOCK}sx", padded))
        if not common:
            return False
        blocks = enumerate(iter_unpack(f"{_BLOCK}sx", padded))
        starts = (_STRIDE * number for number, block in blocks if block in common)
        return any(
            text[first : first + TELLING_RUN] in self._runs
            for start in starts
            for first in range(max(0, start + _BLOCK - TELLING_RUN), start + 1)
        )


def _windows(said: bytes, length: int) -> Iterator[bytes]:
    return (said[start : start + length] for start in range(len(said) - length + 1))


def _holds_word(message: str, word: str) -> bool:
    """Whether ``message`` holds ``word`` with no letter or digit beside it."""
    start = message.find(word) if word else -1
    while start >= 0:
        before, after = message[start - 1 : start], message[start + len(word) :][:1]
        if not (_is_of_word(before) or _is_of_word(after)):
            return True
        start = message.find(word, start + 1)
    return False


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
