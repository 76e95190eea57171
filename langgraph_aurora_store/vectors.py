"""pgvector's values on the wire: binary, whatever schema the extension lives in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from psycopg import BaseConnection
from psycopg.types import TypeInfo

# The OIDs of an extension's types differ from database to database.
TYPES = "SELECT typname::text, oid, typarray FROM pg_type WHERE typname IN ('vector', 'halfvec')"


def register(connection: BaseConnection[Any], types: Iterable[tuple[str, int, int]]) -> None:
    """Let a connection send pgvector's values, alone and in arrays; ``types`` is `TYPES`'s rows.

    What it receives stays as it was: other code may read vectors on the same connection.
    """
    from pgvector import HalfVector, Vector
    from pgvector.psycopg.halfvec import HalfVectorBinaryDumper, HalfVectorDumper
    from pgvector.psycopg.vector import VectorBinaryDumper, VectorDumper

    classes = {
        "vector": (Vector, VectorDumper, VectorBinaryDumper),
        "halfvec": (HalfVector, HalfVectorDumper, HalfVectorBinaryDumper),
    }
    for name, oid, array_oid in types:
        # Not TypeInfo.register(): it makes the arrays' loaders too.
        connection.adapters.types.add(TypeInfo(name, oid, array_oid))
        cls, *dumpers = classes[name]
        for dumper in dumpers:
            connection.adapters.register_dumper(cls, type(dumper.__name__, (dumper,), {"oid": oid}))
