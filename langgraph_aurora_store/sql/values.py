"""A memory's value as strict JSON, or an error that names the place, never the content."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping

from langgraph_aurora_store.errors import InvalidItemError

# PostgreSQL's jsonb and text hold every character but NUL; UTF-8 has no lone surrogates.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def to_json(value: object, namespace: tuple[str, ...], key: str) -> str:
    """Serialise what ``put`` was given.

    Integers of any size, tuples (as arrays) and subclasses of JSON's types are accepted. A float
    from 1e16 on comes back as an integer of the digits that Python writes for it: jsonb keeps
    numbers in decimal and writes no exponents.

    Raises:
        InvalidItemError: for anything else, naming namespace, key and field.
    """
    if not isinstance(value, Mapping):
        raise InvalidItemError(
            f"{at(namespace, key)}: the value must be a mapping, not {type(value).__name__}"
        )
    document = dict(value)
    try:
        for path, reason in _faults(document, ""):
            raise InvalidItemError(f"{at(namespace, key)}, field {path!r}: {reason}")
        return json.dumps(document, ensure_ascii=False, allow_nan=False)
    except RecursionError as exc:
        raise InvalidItemError(
            f"{at(namespace, key)}: the value is nested too deeply, or holds itself"
        ) from exc
    except ValueError as exc:
        if isinstance(exc, InvalidItemError):
            raise
        # Python writes no integer of more digits than sys.get_int_max_str_digits().
        raise InvalidItemError(f"{at(namespace, key)}: an integer has too many digits") from None


def at(namespace: tuple[str, ...], key: object, field: str | None = None) -> str:
    """How messages name an item."""
    name = f"item {key!r} in {namespace!r}"
    return name if field is None else f"{name}, field {field!r}"


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can hold this text."""
    return _UNSTORABLE.search(text) is None


def _faults(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        yield from _faults_of_members(value, path)
    elif isinstance(value, (list, tuple)):
        for position, inner in enumerate(value):
            yield from _faults(inner, f"{path}[{position}]")
    elif isinstance(value, str):
        if not is_storable(value):
            yield path, "text with a NUL character or a lone surrogate cannot be stored"
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield path, "JSON has no NaN and no infinity"
    elif value is not None and not isinstance(value, int):
        yield path, f"{type(value).__name__} is not a JSON type"


def _faults_of_members(value: dict[object, object], path: str) -> Iterator[tuple[str, str]]:
    for name, inner in value.items():
        if not isinstance(name, str):
            yield path or "$", f"keys must be text, not {type(name).__name__}"
        elif not is_storable(name):
            yield path or "$", "a key holds a NUL character or a lone surrogate"
        else:
            yield from _faults(inner, f"{path}.{name}" if path else name)
