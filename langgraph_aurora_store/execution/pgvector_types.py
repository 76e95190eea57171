"""pgvector's values on the wire: binary, whatever schema the extension lives in."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from psycopg import BaseConnection
from psycopg.adapt import Dumper
from psycopg.types import TypeInfo

from langgraph_aurora_store.sql.vector_values import vector_classes

# The OIDs of an extension's types differ from database to database, and other types may have their
# names in other schemas.
TYPES = """
SELECT t.typname::text, t.oid, t.typarray
FROM pg_catalog.pg_type AS t
JOIN pg_catalog.pg_extension AS e ON e.extnamespace = t.typnamespace
WHERE e.extname = 'vector'::name AND t.typname IN ('vector'::name, 'halfvec'::name)
"""


class TypeRegistry:
    """The OIDs of pgvector's types in a store's database, and the connections that know them.

    Shared by any number of threads and loops: two that look at the same time find the same.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop all of it: a re-created extension, or another database, has other OIDs."""
        self.types: Sequence[tuple[Any, ...]] = ()
        self._registered: weakref.WeakSet[BaseConnection[Any]] = weakref.WeakSet()

    def is_registered(self, connection: BaseConnection[Any]) -> bool:
        """Whether a connection knows the types."""
        return connection in self._registered

    def register(self, connection: BaseConnection[Any]) -> None:
        """Register the types with a connection, once they are known."""
        if self.types:
            register(connection, self.types)
            self._registered.add(connection)


def register(connection: BaseConnection[Any], types: Iterable[tuple[Any, ...]]) -> None:
    """Make a connection send pgvector's values, also in arrays; ``types`` are the rows of `TYPES`.

    What it receives stays as it was: other code may read vectors on the same connection.
    """
    from pgvector.psycopg.halfvec import HalfVectorBinaryDumper, HalfVectorDumper
    from pgvector.psycopg.vector import VectorBinaryDumper, VectorDumper

    vector, halfvec = vector_classes()
    classes = {
        "vector": (vector, VectorDumper, VectorBinaryDumper),
        "halfvec": (halfvec, HalfVectorDumper, HalfVectorBinaryDumper),
    }
    for name, oid, array_oid in types:
        # Not TypeInfo.register(): it makes the arrays' loaders too.
        connection.adapters.types.add(TypeInfo(name, oid, array_oid))
        cls, *dumpers = classes[name]
        for dumper in dumpers:
            connection.adapters.register_dumper(cls, _with_oid(dumper, oid))


@lru_cache(maxsize=1024)
def _with_oid(dumper: type[Dumper], oid: int) -> type[Dumper]:
    """A dumper of a type by its OID; cached, as psycopg 3.3 keeps each class that it uses."""
    return type(dumper.__name__, (dumper,), {"oid": oid})
