"""What of an item is embedded, and the check of what the model made of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from langgraph.store.base import get_text_at_path, tokenize_path

from langgraph_aurora_store.config import PATH_RULE, IndexSettings, is_path
from langgraph_aurora_store.errors import EmbeddingResponseError, InvalidItemError
from langgraph_aurora_store.sql.flow import Embed, Label, Vectors
from langgraph_aurora_store.sql.json_values import at, is_storable
from langgraph_aurora_store.sql.tables import StoreTables
from langgraph_aurora_store.sql.vector_values import vector_value
from langgraph_aurora_store.validation import brief

if TYPE_CHECKING:
    from pgvector import HalfVector, Vector


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


def checked(asked: Embed, reply: Vectors, index: IndexSettings) -> Embedded:
    """The model's answer as values for the database, by text.

    Raises:
        EmbeddingResponseError: for vectors of the wrong count, length or content.
    """
    names = [f"the text of {at(*label)}" for label in asked.labels]
    return Embedded(
        documents=_by_text(asked.documents, reply.documents, names, index),
        queries=_by_text(asked.queries, reply.queries, ["the query"] * len(asked.queries), index),
    )


class Embedded(NamedTuple):
    """Vectors ready for the database, by the text they stand for."""

    documents: dict[str, Vector | HalfVector]
    queries: dict[str, Vector | HalfVector]


def _named(path: str, value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    texts = get_text_at_path(value, _tokens(path))
    for position, text in enumerate(texts):
        yield (f"{path}.{position}" if len(texts) > 1 else path), text


@lru_cache(maxsize=1024)
def _tokens(path: str) -> str | list[str]:
    return path if path == "$" else tokenize_path(path)


def _by_text(
    texts: Sequence[str],
    vectors: Sequence[Sequence[float]],
    names: Sequence[str],
    index: IndexSettings,
) -> dict[str, Vector | HalfVector]:
    if len(vectors) != len(texts):
        raise EmbeddingResponseError(
            f"the embedding model returned {len(vectors)} vectors for {len(texts)} texts"
        )
    return {
        text: _vector(vector, name, index)
        for text, vector, name in zip(texts, vectors, names, strict=True)
    }


def _vector(values: Sequence[float], name: str, index: IndexSettings) -> Vector | HalfVector:
    numbers = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(numbers) != index.dims:
        raise EmbeddingResponseError(
            f"the embedding of {name} has {len(numbers)} dimensions; the index holds {index.dims}"
        )
    try:
        vector = vector_value(numbers, index.vector_type)
    except (TypeError, OverflowError) as exc:
        raise EmbeddingResponseError(
            f"the embedding of {name} holds what is no number within {index.vector_type}'s range"
        ) from exc
    # A sum of so few numbers of their size is finite exactly when each of them is.
    if not math.isfinite(sum(vector.to_list())):
        raise EmbeddingResponseError(f"the embedding of {name} holds NaN or infinity")
    return vector
