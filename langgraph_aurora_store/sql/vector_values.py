"""Vectors as values of pgvector-python, by whichever of its versions is installed."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgvector import HalfVector, Vector
import math
from typing import TYPE_CHECKING, NamedTuple

from langgraph_aurora_store.config import IndexSettings
from langgraph_aurora_store.errors import EmbeddingResponseError
from langgraph_aurora_store.sql.flow import Embed, Vectors
from langgraph_aurora_store.sql.json_values import at

if TYPE_CHECKING:
    from pgvector import HalfVector, Vector


@cache
def vector_classes() -> tuple[type[Vector], type[HalfVector]]:
    """The classes of ``vector`` and ``halfvec``; imported late, for stores that hold vectors."""
    try:
        from pgvector import HalfVector, Vector
    except ImportError:  # before 0.4
        from pgvector.utils import (  # type: ignore[import-not-found, no-redef, unused-ignore]
            HalfVector,
            Vector,
        )
    return Vector, HalfVector


def vector_value(numbers: Sequence[float], vector_type: str) -> Vector | HalfVector:
    """A model's numbers as the database's type; not a number and infinity are let through.

    Raises:
        TypeError: something else than a number is among them.
        OverflowError: one is finite, and too large for the type.
    """
    vector, halfvec = vector_classes()
    # Check here: pgvector before 0.5 takes strings and None, and turns what is too large into
    # infinity, with a warning of numpy.
    if vector_type == "vector":
        return vector(array("f", numbers).tolist())
    try:
        struct.pack(f"{len(numbers)}e", *numbers)
    except struct.error as exc:
        raise TypeError(*exc.args) from None
    return halfvec(list(numbers))


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
    numbers = _numbers(values, name)
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


def _numbers(values: object, name: str) -> list[float]:
    """A model's vector as a list: of a sequence, an array of numpy, or a class of pgvector's."""
    for to_list in ("tolist", "to_list"):
        if hasattr(values, to_list):
            numbers: list[float] = getattr(values, to_list)()
            return numbers
    if not isinstance(values, Iterable):
        raise EmbeddingResponseError(
            f"the embedding of {name} is of type {type(values).__name__}, and no list of numbers"
        )
    return list(values)
