"""Vectors as values of pgvector-python, by whichever of its versions is installed."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

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
