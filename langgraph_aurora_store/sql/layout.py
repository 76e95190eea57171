"""Which tables the statements speak to, and what they may ask of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from langgraph_aurora_store.config import IndexSettings, TtlSettings

Table = Literal["store", "store_vectors"]


class Addition(NamedTuple):
    """A nullable column of ours in one of the parent's tables, which the parent never reads."""

    table: Table
    name: str
    type: str


# The parent updates rows without touching these columns, so each says which write it belongs to
# and counts for nothing after another one: `lifetime` starts at the row's `updated_at`, and
# `hashed_at` equals it.
ADDITIONS = (
    # Until when the item was to live as of its last write: the exact ttl where it is no whole
    # number of minutes, which is all that the parent's ttl_minutes INT can hold.
    Addition("store", "lifetime", "tstzrange"),
    # SHA-256 of what was embedded (the text and the model's name), so that the same text is
    # neither embedded nor written twice.
    Addition("store_vectors", "content_hash", "bytea"),
    Addition("store_vectors", "hashed_at", "timestamptz"),
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A store's tables and settings, as the statements need to know them.

    ``schema`` is ``None`` for the search path's. ``embedding_id`` names the embedding model, so
    that a text is embedded again when the model changes. ``store`` and ``vectors`` are the quoted
    names of the tables, ready to stand in a statement with parameters.
    """

    schema: str | None = None
    index: IndexSettings | None = None
    ttl: TtlSettings = field(default_factory=TtlSettings)
    embedding_id: str | None = None

    def table(self, name: Table) -> str:
        """The quoted name of a table; a percent sign is doubled, as in any text with parameters."""
        return ".".join(_quoted(part) for part in (self.schema, name) if part is not None)

    @property
    def store(self) -> str:
        """The table of items."""
        return self.table("store")

    @property
    def vectors(self) -> str:
        """The table of embeddings."""
        return self.table("store_vectors")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'
