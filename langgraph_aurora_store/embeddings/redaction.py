"""What of a service's own words may be shown: never a text, never a key."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

WITHHELD = "its message quotes what was sent and is withheld"
LONGEST_MESSAGE = 400
# Any run of this many characters that message and text share counts as a quotation.
TELLING_RUN = 12


def service_words(message: str, secrets: Sequence[str]) -> str:
    """The service's message in one line, or a remark in its place where it quotes a secret."""
    if quotes(message, secrets):
        return WITHHELD
    line = " ".join(message.split()).rstrip(" .")
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]}…"


def quotes(message: str, secrets: Sequence[str]) -> bool:
    """Whether ``message`` holds one of ``secrets``, or a telling part of one."""
    for secret in secrets:
        for form in {secret, json.dumps(secret)[1:-1]}:
            if len(form) < TELLING_RUN:
                found = bool(re.search(rf"(?<!\w){re.escape(form)}(?!\w)", message))
            else:
                starts = range(len(message) - TELLING_RUN + 1)
                found = any(message[start : start + TELLING_RUN] in form for start in starts)
            if form and found:
                return True
    return False


def attach_cause(error: Exception, cause: Exception, secrets: Sequence[str]) -> None:
    """Show ``cause`` as what led to ``error``, unless its words quote a secret."""
    error.__cause__ = None if quotes(f"{cause} {cause!r}", secrets) else cause
