"""Warnings of what is in the database and works against the store, each with its remedy."""

from __future__ import annotations

import logging

from langgraph_aurora_store.sql.coverage import Coverage
from langgraph_aurora_store.sql.schema.introspection import DatabaseState
from langgraph_aurora_store.sql.store_tables import StoreTables

# Applications filter by the name of 0.1.0.
logger = logging.getLogger("langgraph_aurora_store.engine")


def warn_of_state(tables: StoreTables, found: DatabaseState) -> None:
    """Warn of an old pgvector, and of tables that another role owns."""
    if tables.index is not None and tables.has_ann_index and not found.iterative_scan:
        logger.warning(
            "pgvector %s in database %r is older than 0.8: a search that its index leaves short"
            " of matches compares all, which is slow; run ALTER EXTENSION vector UPDATE",
            found.pgvector,
            found.database,
        )
    if found.foreign_owners:
        logger.warning(
            "in database %r, role %r is neither owner nor member of the owner of %s: an owner can"
            " read and change what is stored. If that is no administrator, another role may have"
            " made the tables first: pass schema= for a schema that only your roles may create in,"
            " or ALTER TABLE ... OWNER TO",
            found.database,
            found.user,
            ", ".join(f"{table} (owned by {owner!r})" for table, owner in found.foreign_owners),
        )


def warn_of_coverage(tables: StoreTables, coverage: Coverage, location: str) -> None:
    """Warn of items that no search by meaning finds, and of vectors that it ranks by chance."""
    about = "about " if coverage.is_sampled else ""
    if coverage.without_vector:
        logger.warning(
            "%s%d of %d items with text in fields %s have no vector in %s: a search with query="
            " does not find them. Put them again to embed them; those put with index=False are"
            " meant to be without",
            about,
            coverage.without_vector,
            coverage.items,
            list(tables.indexed.fields),
            location,
        )
    if coverage.of_another_model:
        logger.warning(
            "%s%d of %d vectors in %s are of another embedding model than %s: a search with query="
            " ranks them by chance. Put their items again to embed them by this model, or configure"
            " the other one",
            about,
            coverage.of_another_model,
            coverage.vectors,
            location,
            tables.embedding_id,
        )
