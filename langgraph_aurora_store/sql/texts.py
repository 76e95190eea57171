"""What of an item is embedded, and the check of what the model made of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from langgraph.store.base import get_text_at_path, tokenize_path

from langgraph_aurora_store.config import PATH_RULE, is_path
from langgraph_aurora_store.errors import InvalidItemError
from langgraph_aurora_store.sql.flow import Embed, Label
from langgraph_aurora_store.sql.json_values import at, is_storable
from langgraph_aurora_store.sql.store_tables import StoreTables
from langgraph_aurora_store.validation import brief


class Text(NamedTuple):
    """A text of an item that gets a vector of its own, named as the parent names it."""

    namespace: tuple[str, ...]
    key: str
    field: str
    text: str
    digest: bytes

    @property
    def label(self) -> Label:
        """Where it comes from."""
        return Label(self.namespace, self.key, self.field)


def checked_index(index: object, namespace: tuple[str, ...], key: str) -> None:
    """Refuse an ``index=`` that would index nothing without a word.

    Raises:
        InvalidItemError: unless it is ``None``, ``False`` or a list of paths.
    """
    if index is None or index is False:
        return
    if not isinstance(index, (list, tuple)) or not all(isinstance(path, str) for path in index):
        raise InvalidItemError(
            f"{at(namespace, key)}: index= is None, False or a list of paths, not {brief(index)}"
        )
    if not all(is_storable(path) for path in index):
        raise InvalidItemError(
            f"{at(namespace, key)}: a path of index= holds a NUL character or a lone surrogate"
        )
    for path in index:
        if path and not is_path(path):  # an empty one is the parent's for the whole value
            raise InvalidItemError(
                f"{at(namespace, key)}: the brackets of index= path {brief(path)} mean nothing, or"
                f" it is blank; {PATH_RULE}"
            )


def texts_of(
    namespace: tuple[str, ...],
    key: str,
    document: str,
    index: Sequence[str] | Literal[False] | None,
    tables: StoreTables,
) -> tuple[Text, ...]:
    """The texts of a value as it is stored, one for each field name, and none that is blank."""
    if tables.index is None or index is False:
        return ()
    value = json.loads(document)
    paths = tables.index.fields if index is None else index
    origin = f"{tables.embedding_id or ''}\0{tables.index.dims}\0"
    named = dict(pair for path in paths for pair in _named(path, value))
    return tuple(
        Text(namespace, key, name, text, hashlib.sha256((origin + text).encode()).digest())
        for name, text in named.items()
        if text.strip()
    )


def request(documents: Sequence[Text], queries: Sequence[str]) -> Embed:
    """Each distinct text once."""
    first: dict[str, Label] = {}
    for document in documents:
        first.setdefault(document.text, document.label)
    return Embed(tuple(first), tuple(dict.fromkeys(queries)), tuple(first.values()))


def _named(path: str, value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    texts = get_text_at_path(value, _tokens(path))
    for position, text in enumerate(texts):
        yield (f"{path}.{position}" if len(texts) > 1 else path), text


@lru_cache(maxsize=1024)
def _tokens(path: str) -> str | list[str]:
    return path if path == "$" else tokenize_path(path)
