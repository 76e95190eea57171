"""Which tables the statements speak to, and what they may ask of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

import orjson

from langgraph_aurora_store.config import Distance, IndexSettings, TtlSettings
from langgraph_aurora_store.errors import ConfigurationError

Table = Literal["store", "store_vectors"]


# An added table, one row for each connection that has written.
WRITE_MARKS = "aurora_store_writes"


class ExtraColumn(NamedTuple):
    """A nullable column added to one of the parent's tables, which the parent never reads."""

    table: Table
    name: str
    type: str


# The parent updates rows without touching these columns, so each says which write it belongs to
# and counts for nothing after another one: `lifetime` starts at the row's `updated_at`, and
# `hashed_at` equals it.
EXTRA_COLUMNS = (
    # Until when the item was to live as of its last write: the exact ttl where it is no whole
    # number of minutes, which is all that the parent's ttl_minutes INT can hold.
    ExtraColumn("store", "lifetime", "tstzrange"),
    # SHA-256 of what was embedded (the text and the model's name), so that the same text is
    # neither embedded nor written twice.
    ExtraColumn("store_vectors", "content_hash", "bytea"),
    ExtraColumn("store_vectors", "hashed_at", "timestamptz"),
    # Which model made the vector, so that vectors of another one are noticed.
    ExtraColumn("store_vectors", "model_hash", "bytea"),
)


_OPERATORS: dict[Distance, str] = {"cosine": "<=>", "l2": "<->", "inner_product": "<#>"}


@dataclass(frozen=True, kw_only=True)
class StoreTables:
    """A store's tables and settings, as the statements need to know them.

    ``schema`` is ``None`` for the search path's. ``embedding_id`` names the embedding model, so
    that a text is embedded again when the model changes, ``names_model`` is whether other stores
    know the model by the same name, and ``deserializer`` reads values on a connection that hands
    out JSON as it is. ``ef_construction`` and ``lists`` are those that the index in the database
    was built with. ``iterative_scan`` tells whether pgvector is 0.8 or later, and
    ``pgvector_schema`` where it lives, ``None`` for the search path.
    ``has_vectors`` is whether the table of vectors was there at first use, for a role that may
    delete them, and ``has_write_marks`` whether writes are to be marked. What the properties return
    is quoted and ready to stand in a statement with parameters.
    """

    schema: str | None = None
    index: IndexSettings | None = None
    ttl: TtlSettings = field(default_factory=TtlSettings)
    # No statement's text depends on it, and settings of any kind are part of it.
    embedding_id: str | None = field(default=None, compare=False, repr=False)
    names_model: bool = field(default=True, compare=False, repr=False)
    deserializer: Callable[[Any], dict[str, Any]] = field(
        default=orjson.loads, compare=False, repr=False
    )
    ef_construction: int | None = None
    lists: int | None = None
    iterative_scan: bool = True
    pgvector_schema: str | None = None
    has_vectors: bool = False
    has_write_marks: bool = False

    def __post_init__(self) -> None:
        # Every statement's text is looked up by its tables.
        values = (getattr(self, member.name) for member in fields(self) if member.compare)
        object.__setattr__(self, "_hash", hash(tuple(values)))

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined, no-any-return]  # set when made

    @property
    def store(self) -> str:
        """The table of items."""
        return _quoted(self.schema, "store")

    @property
    def vectors(self) -> str:
        """The table of embeddings."""
        return _quoted(self.schema, "store_vectors")

    @property
    def write_marks(self) -> str:
        """The table of write marks."""
        return _quoted(self.schema, WRITE_MARKS)

    @property
    def model_hash(self) -> bytes | None:
        """Eight bytes for the model and its dimensions; ``None`` for a model without a name."""
        if not self.names_model:
            return None
        origin = f"{self.embedding_id or ''}\0{self.indexed.dims}"
        return hashlib.sha256(origin.encode()).digest()[:8]

    @property
    def embedding_type(self) -> str:
        """The type of an embedding."""
        return _quoted(self.pgvector_schema, self.indexed.vector_type)

    def operator(self, distance: Distance) -> str:
        """The operator for a distance; an index on the embeddings serves that of the settings."""
        operator = _OPERATORS[distance]
        if self.pgvector_schema is None:
            return operator
        return f"OPERATOR({_quoted(self.pgvector_schema)}.{operator})"

    @property
    def has_ann_index(self) -> bool:
        """Whether there is to be an index that a search can scan."""
        return self.indexed.kind != "flat"

    @property
    def indexed(self) -> IndexSettings:
        """The index settings, where a flow has made sure that there are any."""
        if self.index is None:
            raise ConfigurationError("this store has no index")
        return self.index


def _quoted(*names: str | None) -> str:
    """Names joined by dots; a percent sign is doubled, as in any text with parameters."""
    quoted = ('"' + name.replace('"', '""') + '"' for name in names if name is not None)
    return ".".join(quoted).replace("%", "%%")
