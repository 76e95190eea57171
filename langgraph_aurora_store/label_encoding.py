"""Any text as a label of a namespace, and back."""

from __future__ import annotations

import re

from langgraph.store.base import InvalidNamespaceError

from langgraph_aurora_store.validation import brief

# What no label may hold, what lies in wait as a wildcard or an escape wherever a prefix is matched
# by LIKE (as in LangGraph's own PostgresStore on the same tables), and the escape's own character.
_UNSAFE = re.compile("[.%\\\\~\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
_ESCAPES = re.compile("(?:~[0-9A-F]{2})+")
# LangGraph refuses this one as a first label, and the empty one everywhere.
_RESERVED = {"": "~", "langgraph": "~6Canggraph"}


def encode_label(text: str) -> str:
    """A namespace label for any text, such as an e-mail address; `decode_label` gives it back.

    No two texts have one label. Letters, digits and most else stay as they are; ``.``, ``%``,
    ``~``, the backslash and control characters become ``~`` and the two hexadecimal digits of each
    UTF-8 byte: ``ada@example.com`` is ``ada@example~2Ecom``. Upper and lower case stay apart.

    Raises:
        InvalidNamespaceError: for what is no text; of a number, pass ``str(number)``.
    """
    if not isinstance(text, str):
        raise InvalidNamespaceError(
            f"encode_label takes text, not {brief(text)}; pass str() of a number"
        )
    return _RESERVED.get(text) or _UNSAFE.sub(lambda found: _escape(found[0]), text)


def decode_label(label: str) -> str:
    """The text that `encode_label` made this label of.

    Raises:
        InvalidNamespaceError: for a label that it makes of no text.
    """
    for text, reserved in _RESERVED.items():
        if label == reserved:
            return text
    try:
        text = _ESCAPES.sub(lambda found: _unescape(found[0]), label)
        if encode_label(text) == label:
            return text
    except (TypeError, UnicodeDecodeError):
        pass
    raise InvalidNamespaceError(f"{brief(label)} is no label of encode_label's")


def _escape(character: str) -> str:
    return "".join(f"~{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _unescape(escapes: str) -> str:
    return bytes.fromhex(escapes.replace("~", "")).decode("utf-8", "surrogatepass")
