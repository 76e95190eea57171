"""Settings as frozen, validated data. The only module that reads the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias


Distance: TypeAlias = Literal["cosine", "l2", "inner_product"]
VectorType: TypeAlias = Literal["vector", "halfvec"]
IndexKind: TypeAlias = Literal["hnsw", "ivfflat", "flat"]

# pgvector README, "HNSW": an index holds up to 2,000 dimensions of vector, 4,000 of halfvec.
MAX_INDEXED_DIMS: Mapping[VectorType, int] = {"vector": 2000, "halfvec": 4000}


def environment() -> Mapping[str, str]:
    """The process's environment, read anew at each call and never copied into a setting's repr."""
    return os.environ


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """What is embedded, and how its vectors are stored and indexed.

    ``dims`` counts dimensions; ``m``, ``ef_construction`` and ``lists`` are pgvector's build
    parameters, ``None`` for its defaults.
    """

    dims: int
    fields: tuple[str, ...] = ("$",)
    distance: Distance = "cosine"
    vector_type: VectorType = "vector"
    kind: IndexKind = "hnsw"
    m: int | None = None
    ef_construction: int | None = None
    lists: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TtlSettings:
    """How long memories live, in minutes; ``None`` is for ever."""

    refresh_on_read: bool = True
    default_ttl: float | None = None
    sweep_interval_minutes: float | None = None


