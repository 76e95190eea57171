"""Settings as frozen, validated data. The only module that reads the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar, cast, get_args

from langgraph.store.base import tokenize_path

from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.validation import brief, check, within

Distance: TypeAlias = Literal["cosine", "l2", "inner_product"]
VectorType: TypeAlias = Literal["vector", "halfvec"]
IndexKind: TypeAlias = Literal["hnsw", "ivfflat", "flat"]

# pgvector README, "HNSW": an index holds up to 2,000 dimensions of vector, 4,000 of halfvec.
MAX_INDEXED_DIMS: Mapping[VectorType, int] = {"vector": 2000, "halfvec": 4000}
# pgvector README, "Vector Type" and "Halfvec Type": a column holds up to 16,000 dimensions.
MAX_DIMS = 16_000
# The least and most that pgvector takes, hnsw.h and ivfflat.h, and which kind each belongs to.
_BUILD_RANGES = {"m": (2, 100), "ef_construction": (4, 1000), "lists": (1, 32_768)}
# pgvector's default is 64. Measured on 3,000 embeddings of 128 dimensions of which 40 were unlike
# all others: 22 in 480 of those had no way to them in the graph, and no search would ever meet
# them; built with 200, 1 in 480. A put takes a quarter of a millisecond longer for it.
EF_CONSTRUCTION = 200
_BUILD_KEYS: Mapping[IndexKind, tuple[str, ...]] = {
    "hnsw": ("m", "ef_construction"),
    "ivfflat": ("lists", "nlist"),
    "flat": (),
}
_INDEX_KEYS = ("ann_index_config", "dims", "distance_type", "embed", "fields")
_ANN_KEYS = ("ef_construction", "kind", "lists", "m", "nlist", "vector_type")
_TTL_KEYS = ("default_ttl", "omit_expired", "refresh_on_read", "sweep_interval_minutes")
# The parts of a path that are in brackets: an item of a list or all of them, or several fields.
_BRACKETS = re.compile(r"\[(?:\*|-?\d+)\]|\{[^{}]+\}")
PATH_RULE = "paths are written like 'a.b', 'a[0].b', 'a[*].b' and '{a,b}'"
# ttl_minutes is an INT, and threads wait for no longer than some hundred years.
_LONGEST_MINUTES = {"default_ttl": 2**31 - 1, "sweep_interval_minutes": 525_600}

_Choice = TypeVar("_Choice", bound=str)


def environment() -> Mapping[str, str]:
    """The process's environment, read again at each call and never copied into a setting's repr."""
    return os.environ


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """What is embedded, and how its vectors are stored and indexed.

    ``dims`` counts dimensions; ``m``, ``ef_construction`` and ``lists`` are pgvector's build
    parameters; ``None`` is pgvector's default, and for ``ef_construction`` 200, so that an item
    unlike all others is found too.

    Raises:
        ConfigurationError: when made with values that pgvector would refuse.
    """

    dims: int
    fields: tuple[str, ...] = ("$",)
    distance: Distance = "cosine"
    vector_type: VectorType = "vector"
    kind: IndexKind = "hnsw"
    m: int | None = None
    ef_construction: int | None = None
    lists: int | None = None

    def __post_init__(self) -> None:
        within("dims", self.dims, 1, MAX_DIMS)
        limit = MAX_INDEXED_DIMS[self.vector_type]
        if self.kind != "flat" and self.dims > limit:
            fits_halfvec = self.dims <= MAX_INDEXED_DIMS["halfvec"]
            way_out = "'vector_type': 'halfvec', or " if fits_halfvec else ""
            raise ConfigurationError(
                f"an index of kind {self.kind!r} holds at most {limit} dimensions of"
                f" {self.vector_type}, not {self.dims}; set in ann_index_config {way_out}"
                "'kind': 'flat' (an exact search without an index)"
            )
        for name, (low, high) in _BUILD_RANGES.items():
            if (value := getattr(self, name)) is not None:
                within(name, value, low, high)
        # pgvector, hnsw.h: m is 16 by default, and ef_construction at least twice m.
        least = 2 * (self.m or 16)
        if self.ef_construction is not None and self.ef_construction < least:
            raise ConfigurationError(
                f"m={self.m or 16} needs an ef_construction of at least {least},"
                f" not {self.ef_construction}"
            )

    @classmethod
    def from_config(cls, index: Mapping[str, object], dims: int | None = None) -> IndexSettings:
        """Read the ``index=`` mapping that LangGraph's stores take.

        Args:
            index: LangGraph's ``IndexConfig`` with the parent's ``ann_index_config`` and
                ``distance_type``. More than 2,000 dimensions without a ``vector_type`` are
                stored as ``halfvec``, unless ``kind`` is ``flat``, which needs no index.
            dims: the length of the embedding model's vectors, where it is known.

        Raises:
            ConfigurationError: for an unknown key, a value out of range, or dimensions that are
                unknown, or that differ between ``index`` and the model.
        """
        check(index=index)
        # The parent keeps what it derived from a configuration in the same mapping, under "__".
        own = (key for key in index if not str(key).startswith("__"))
        _known_keys("index=", own, _INDEX_KEYS)
        ann = index.get("ann_index_config") or {}
        if not isinstance(ann, Mapping):
            raise ConfigurationError(f"ann_index_config is a mapping, not {brief(ann)}")
        _known_keys("ann_index_config", ann, _ANN_KEYS)
        kind: IndexKind = _one_of("kind", ann.get("kind", "hnsw"), get_args(IndexKind))
        size = _dims(index.get("dims"), dims)
        narrow = size > MAX_INDEXED_DIMS["vector"] and kind != "flat"
        vector_type = ann.get("vector_type") or ("halfvec" if narrow else "vector")
        return cls(
            dims=size,
            fields=_fields(index.get("fields")),
            distance=_one_of(
                "distance_type", index.get("distance_type", "cosine"), get_args(Distance)
            ),
            vector_type=_one_of("vector_type", vector_type, get_args(VectorType)),
            kind=kind,
            **_build_parameters(kind, ann),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TtlSettings:
    """How long memories live, in minutes; ``None`` is for ever."""

    refresh_on_read: bool = True
    default_ttl: float | None = None
    sweep_interval_minutes: float | None = None

    @classmethod
    def from_config(cls, ttl: Mapping[str, object] | None) -> TtlSettings:
        """Read the ``ttl=`` mapping that LangGraph's stores take; ``None`` means no expiry.

        ``omit_expired`` is accepted and needs no setting: an expired memory is never returned.

        Raises:
            ConfigurationError: for an unknown key or a value that is not a positive number.
        """
        check(ttl=ttl)
        ttl = {} if ttl is None else ttl
        _known_keys("ttl=", ttl, _TTL_KEYS)
        for name in ("refresh_on_read", "omit_expired"):
            if not isinstance(ttl.get(name, True), bool):
                raise ConfigurationError(f"{name} is True or False, not {brief(ttl[name])}")
        return cls(
            refresh_on_read=bool(ttl.get("refresh_on_read", True)),
            default_ttl=_minutes("default_ttl", ttl.get("default_ttl")),
            sweep_interval_minutes=_minutes(
                "sweep_interval_minutes", ttl.get("sweep_interval_minutes")
            ),
        )


def _known_keys(where: str, given: Iterable[object], known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            import difflib  # which most programs never need

            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigurationError(
                f"{where} has an unknown key {brief(key)}{hint} (known: {', '.join(known)})"
            )


def _one_of(name: str, value: object, choices: tuple[_Choice, ...]) -> _Choice:
    for choice in choices:
        if value == choice:
            return choice
    raise ConfigurationError(f"{name} is one of {', '.join(choices)}, not {brief(value)}")


def _dims(configured: object, of_model: int | None) -> int:
    if configured is None and of_model is None:
        raise ConfigurationError(
            "the embedding model's dimensions are unknown; pass index={'dims': ...}"
        )
    size: int = within("dims", of_model if configured is None else configured, 1, MAX_DIMS)
    if of_model not in (None, size):
        raise ConfigurationError(
            f"index= says {size} dims, but the embedding model returns {of_model};"
            " leave 'dims' out or correct it"
        )
    return size


def _fields(fields: object) -> tuple[str, ...]:
    paths = (fields,) if isinstance(fields, str) else fields or ("$",)
    if not isinstance(paths, list | tuple):
        raise ConfigurationError(f"fields is a path or a list of paths, not {brief(fields)}")
    for path in paths:
        if not isinstance(path, str) or not path.strip():
            raise ConfigurationError(f"fields holds a path that is not text: {brief(path)}")
        if not is_path(path):
            raise ConfigurationError(
                f"fields holds a path whose brackets mean nothing: {brief(path)}; {PATH_RULE}"
            )
    return tuple(dict.fromkeys(paths))


def is_path(path: str) -> bool:
    """Whether a path to a field is one that can find something."""
    return bool(path.strip()) and all(map(_is_token, tokenize_path(path)))


def _is_token(token: str) -> bool:
    """Whether a part of a path is one that can find something."""
    if token[0] in "[{":
        return bool(_BRACKETS.fullmatch(token))
    return not set(token) & set("]}")


def _build_parameters(kind: IndexKind, ann: Mapping[str, object]) -> dict[str, int]:
    given: dict[str, int] = {}
    for key in ("m", "ef_construction", "lists", "nlist"):
        if (value := ann.get(key)) is None:
            continue
        if key not in _BUILD_KEYS[kind]:
            raise ConfigurationError(f"{brief(key)} has no meaning for an index of kind {kind!r}")
        name = "lists" if key == "nlist" else key
        if given.setdefault(name, within(key, value, *_BUILD_RANGES[name])) != value:
            raise ConfigurationError("'lists' and 'nlist' are one setting; pass one of them")
    return given


def _minutes(name: str, value: object) -> float | None:
    if value is None:
        return None
    longest = _LONGEST_MINUTES[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < cast("float", value) <= longest:
        raise ConfigurationError(
            f"{name} is a positive number of minutes or None, not {brief(value)}; {longest} at most"
        )
    return float(cast("float", value))
