"""A memory's value as strict JSON, or an error that names the place, never the content."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from langgraph_aurora_store.errors import InvalidItemError
from langgraph_aurora_store.validation import brief

# PostgreSQL's jsonb and text hold every character but NUL; UTF-8 has no lone surrogates.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


# PostgreSQL takes more than 10,000. Python 3.11 reads 1,000, less the frames of the reader: what
# was written at the top of a program has to be readable from within an agent.
MOST_LEVELS = 500

# PostgreSQL's jsonb, in which no text and no object may take more bytes.
LONGEST = 2**28 - 1

Container: TypeAlias = Mapping[str, Any] | list[Any] | tuple[Any, ...]


def to_json(value: object, namespace: tuple[str, ...], key: str) -> str:
    """Serialise what ``put`` was given.

    Mappings of any kind (as objects), tuples (as arrays), integers of any size and subclasses of
    JSON's types are accepted, at every level. Keys that are numbers, booleans or ``None`` become
    text, as in ``json.dumps``; two that become the same text are refused. A float from 1e16 on
    comes back as an integer of the digits that Python writes for it: jsonb keeps numbers in decimal
    and writes no exponents.

    Raises:
        InvalidItemError: for anything else, naming namespace, key and field.
    """
    if not isinstance(value, Mapping):
        raise InvalidItemError(
            f"{at(namespace, key)}: the value must be a mapping, not {type(value).__name__}"
        )
    if found := _unstorable_part(value):
        field, reason = found
        raise InvalidItemError(f"{at(namespace, key, field)}: {reason}")
    try:
        document = json.dumps(value, ensure_ascii=False, allow_nan=False, default=dict)
    except ValueError:
        # Python writes no integer of more digits than sys.get_int_max_str_digits().
        raise InvalidItemError(f"{at(namespace, key)}: an integer has too many digits") from None
    if len(document) > LONGEST:
        raise InvalidItemError(f"{at(namespace, key)}: {too_long(document)}")
    return document


def too_long(document: str) -> str:
    """Why a value is not stored that is too long."""
    return f"the value has {len(document)} characters as JSON; PostgreSQL holds {LONGEST} bytes"


def at(namespace: tuple[str, ...], key: object, field: str | None = None) -> str:
    """How messages name an item, with what is too long to read left out."""
    name = f"item {brief(key)} in {brief(namespace)}"
    return name if field is None else f"{name}, field {brief(field)}"


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can hold this text."""
    return _UNSTORABLE.search(text) is None


def _unstorable_part(document: object) -> tuple[str | None, str] | None:
    """The field and the reason of what makes a document no JSON, looking as deep as it may go."""
    opened = [iter([("", document)])]
    while opened:
        for path, value in opened[-1]:
            if reason := _reason(value):
                return path or "$", reason
            if isinstance(value, (Mapping, list, tuple)):
                if len(opened) > MOST_LEVELS:
                    return None, f"nested more than {MOST_LEVELS} levels deep, or holding itself"
                opened.append(_members(value, path))
                break
        else:
            opened.pop()
    return None


def _members(value: Container, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        return ((f"{path}.{name}" if path else str(name), inner) for name, inner in value.items())
    return ((f"{path}[{position}]", inner) for position, inner in enumerate(value))


def _reason(value: object) -> str | None:
    """Why a value by itself, whatever it holds, cannot be stored."""
    if isinstance(value, Mapping):
        return _reason_of_names(value)
    if isinstance(value, str):
        if not is_storable(value):
            return "text with a NUL character or a lone surrogate cannot be stored"
    elif isinstance(value, float):
        if not math.isfinite(value):
            return "JSON has no NaN and no infinity"
    elif value is not None and not isinstance(value, (int, list, tuple)):
        return f"{type(value).__name__} is not a JSON type"
    return None


def _reason_of_names(names: Iterable[object]) -> str | None:
    as_stored: set[str] = set()
    for name in names:
        if name is not None and not isinstance(name, str | int | float):
            return f"keys must be text, numbers, booleans or None, not {type(name).__name__}"
        if isinstance(name, float) and not math.isfinite(name):
            return "JSON has no NaN and no infinity, as a key neither"
        try:
            text = json_key(name)
        except ValueError:
            return "a key is an integer of too many digits"
        if not is_storable(text):
            return "a key holds a NUL character or a lone surrogate"
        if text in as_stored:
            return f"two keys are the same text in JSON: {brief(text)}"
        as_stored.add(text)
    return None


def json_key(name: object) -> str:
    """The text that JSON writes for a key: ``1`` becomes ``"1"``, ``True`` ``"true"``."""
    if isinstance(name, str):
        return name
    if isinstance(name, float):
        return float.__repr__(name)
    return json.dumps(name)
