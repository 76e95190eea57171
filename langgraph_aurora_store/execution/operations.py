"""What the blocking and the asyncio store share: settings made data, and flows made of steps.

Nothing here does I/O; `store` and `aio` drive the flows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast
from uuid import uuid4

import orjson
import psycopg
from langgraph.store.base import NOT_PROVIDED, GetOp, Op, PutOp, Result, SearchOp, tokenize_path

from langgraph_aurora_store.config import IndexSettings, TtlSettings
from langgraph_aurora_store.embeddings import resolve
from langgraph_aurora_store.embeddings.model_identity import identify
from langgraph_aurora_store.errors import (
    AuroraStoreError,
    ConfigurationError,
    SchemaError,
    SchemaMissingError,
)
from langgraph_aurora_store.execution.pgvector_types import TypeRegistry
from langgraph_aurora_store.sql.batch import Prepared, apart, converse, finish, prepare, validate
from langgraph_aurora_store.sql.flow import Embed, Flow, Label
from langgraph_aurora_store.sql.namespaces import count_under, delete_under
from langgraph_aurora_store.sql.tables import StoreTables
from langgraph_aurora_store.sql.vector_search import LargeNamespaces
from langgraph_aurora_store.validation import check

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings
    from langgraph.store.base import TTLConfig
    from langgraph.store.postgres.base import PostgresIndexConfig

    from langgraph_aurora_store.sql.schema.introspection import DatabaseState

T = TypeVar("T")
Deserializer: TypeAlias = Callable[[bytes | orjson.Fragment], dict[str, Any]]

# What speaks of tables is imported where it is used: a process that imports the store, a Lambda
# function at its cold start for one, need not wait for it.

# Applications filter by the name of 0.1.0.
logger = logging.getLogger("langgraph_aurora_store.engine")

# Embedded once, where neither the model's name nor the configuration tells the vectors' length.
_PROBE = "How many dimensions?"


# The parent's.
_SWEEP_INTERVAL_MINUTES = 5

# What a database says that is not, or no longer, as it was found.
_OBJECTIONS = (psycopg.DataError, psycopg.InternalError, psycopg.ProgrammingError)
_GONE = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedTable,
)


class Operations:
    """A store's settings, and its operations as conversations. Safe for any number of threads."""

    def __init__(
        self,
        *,
        index: PostgresIndexConfig | None,
        ttl: TTLConfig | None,
        schema: str | None,
        deserializer: Deserializer | None = None,
        session: Any = None,
        region: str | None = None,
    ) -> None:
        check(index=index, ttl=ttl, schema=schema, deserializer=deserializer)
        if index is not None:
            # All of it that a first look can tell, whatever the model has to say of its dimensions.
            IndexSettings.from_config(index, 1 if index.get("dims") is None else None)
            check(embed=index.get("embed"))
        self.ttl = TtlSettings.from_config(ttl)
        self.embeddings: Embeddings | None = None
        self.ttl_config = ttl
        # A copy: it is completed with what the parent's class derives, for code that reads it.
        self.index_config = None if index is None else index.copy()
        self._schema = schema
        self.deserializer = deserializer
        self._layout: StoreTables | None = None
        self._ready: StoreTables | None = None
        self._place = ""
        self.pgvector = TypeRegistry()
        self._sizes = LargeNamespaces()
        dims = None
        if index is not None:
            resolved = resolve(
                cast("Embeddings", index.get("embed")),
                dims=index.get("dims"),
                session=session,
                region=region,
            )
            self.embeddings, dims = resolved.embeddings, resolved.dims
        if index is None or dims is not None or index.get("dims") is not None:
            self._configure(dims)

    @property
    def embedder(self) -> Embeddings:
        """The embedding model; no flow asks for one in a store without an index."""
        if self.embeddings is None:
            raise ConfigurationError("this store has no index: make it with index={'embed': ...}")
        return self.embeddings

    def batch(self, ops: Iterable[Op]) -> Flow[list[Result]]:
        """The results of a batch of operations, in order; all of its writes or none."""
        known = [self._with_defaults(op) for op in ops]
        return (yield from self._on_tables(lambda layout: converse(known, layout, self._sizes)))

    def prepare(self, ops: Iterable[Op], *, at_most: int) -> Flow[list[Prepared]]:
        """Operations that need not take effect together, embedded at once, in parts to `finish`.

        The parts, ``at_most`` so many, may be finished side by side.
        """
        known = [self._with_defaults(op) for op in ops]
        prepared = yield from self._on_tables(lambda layout: prepare(known, layout))
        return apart(prepared, at_most)

    def check(self, op: Op) -> None:
        """Raise what is wrong with an operation by itself, as far as that is known by now."""
        if layout := self._ready:
            validate(self._with_defaults(op), layout)

    def finish(self, part: Prepared) -> Flow[list[Result]]:
        """The results of a part, in the order of its places."""
        return (yield from self._on_tables(lambda layout: finish(part, layout, self._sizes)))

    def setup(self) -> Flow[None]:
        """Bring the database to what this store needs."""
        from langgraph_aurora_store.sql.schema.setup import setup

        self.forget()
        layout = yield from self.layout()
        self._found(layout, (yield from setup(layout)))

    def count(
        self, namespace_prefix: tuple[str, ...], filter_: Mapping[str, object] | None
    ) -> Flow[int]:
        """How many items lie in a namespace and below it."""
        return (
            yield from self._on_tables(
                lambda layout: count_under(namespace_prefix, layout, filter_)
            )
        )

    def delete_namespace(self, namespace_prefix: tuple[str, ...]) -> Flow[int]:
        """Delete a namespace and what is below it; how many items there were."""
        return (yield from self._on_tables(lambda layout: delete_under(namespace_prefix, layout)))

    def sweep(self) -> Flow[int]:
        """Delete expired items; how many there were."""
        from langgraph_aurora_store.sql.ttl import sweep

        return (yield from self._on_tables(sweep))

    def sweep_interval_s(self, minutes: float | None) -> float | None:
        """Seconds between sweeps, five minutes by default; ``None`` without a TTL configuration."""
        if self.ttl_config is None:
            return None
        if minutes is not None:
            minutes = TtlSettings.from_config(
                {"sweep_interval_minutes": minutes}
            ).sweep_interval_minutes
        return 60 * (minutes or self.ttl.sweep_interval_minutes or _SWEEP_INTERVAL_MINUTES)

    def ddl(self, *, role: str | None, concurrently: bool) -> str:
        """The script that `setup` spares an administrator, or lets one run."""
        from langgraph_aurora_store.sql.schema.ddl import ddl

        if self._layout is None:
            raise ConfigurationError(
                "the embedding model's dimensions are unknown; pass index={'dims': ...}"
            )
        return ddl(self._layout, role=role, concurrently=concurrently)

    def ready(self) -> Flow[StoreTables]:
        """The layout, once the database has been seen to hold what it says."""
        from langgraph_aurora_store.sql.schema.diff import check as inspect

        if ready := self._ready:  # which another thread may have forgotten a moment later
            return ready
        layout = yield from self.layout()
        return self._found(layout, (yield from inspect(layout)))

    def forget(self) -> None:
        """Look at the database anew at the next use: it may have changed, or be another."""
        self._ready = None
        self.pgvector.forget()

    def _found(self, layout: StoreTables, found: DatabaseState) -> StoreTables:
        """The layout with what is in the database, and what its pgvector can do."""
        self._place = f"schema {found.schema!r} of database {found.database!r}"
        if layout.index is not None and layout.has_ann_index and not found.iterative_scan:
            logger.warning(
                "pgvector %s in database %r is older than 0.8: a search that its index leaves short"
                " of matches compares all, which is slow; run ALTER EXTENSION vector UPDATE",
                found.pgvector,
                found.database,
            )
        ready = self._ready = replace(
            layout,
            ef_construction=found.built_with("ef_construction"),
            lists=found.built_with("lists"),
            iterative_scan=found.iterative_scan,
            pgvector_schema=found.pgvector_schema,
            has_vectors=found.may_forget,
        )
        return ready

    def _on_tables(self, work: Callable[[StoreTables], Flow[T]]) -> Flow[T]:
        """Work on tables that were seen to be there once, and look again where they object."""
        layout = yield from self.ready()
        try:
            return (yield from work(layout))
        except _OBJECTIONS as exc:
            self.forget()
            if isinstance(exc, AuroraStoreError):
                raise
            if change := _change(exc, self._place):
                raise change from exc
            raise

    def layout(self) -> Flow[StoreTables]:
        """The layout; asks the embedding model for its dimensions where nothing tells them."""
        if self._layout is None:
            vectors = yield Embed((), (_PROBE,))
            self._configure(len(vectors.queries[0]))
        return cast("StoreTables", self._layout)

    def _configure(self, dims: int | None) -> None:
        settings = None
        if self.index_config is not None:
            settings = IndexSettings.from_config(self.index_config, dims)
            self.index_config.update(_derived(settings))
        self._layout = StoreTables(
            schema=self._schema,
            index=settings,
            ttl=self.ttl,
            embedding_id=_embedding_id(self.index_config, self.embeddings),
            deserializer=self.deserializer or orjson.loads,
        )

    def _with_defaults(self, op: Op) -> Op:
        """Apply the TTL configuration where an operation says that it leaves it open."""
        # LangGraph's own types know neither of the two, its methods pass neither.
        if isinstance(op, PutOp) and cast("object", op.ttl) is NOT_PROVIDED:
            return op._replace(ttl=self.ttl.default_ttl)
        if isinstance(op, (GetOp, SearchOp)) and op.refresh_ttl is None:
            return op._replace(refresh_ttl=self.ttl.refresh_on_read)
        return op


def _change(exc: psycopg.Error, place: str) -> SchemaError | None:
    """What has changed in the database since it was looked at, where that is what it objects to."""
    said = exc.diag.message_primary or str(exc)
    if isinstance(exc, _GONE):
        return SchemaMissingError(
            f"{said}: not in {place}, where this store had found its tables; run setup(), or have"
            " an administrator run the SQL of ddl()"
        )
    is_missing = isinstance(exc, psycopg.errors.UndefinedObject | psycopg.errors.UndefinedFunction)
    if is_missing or "cache lookup failed for type" in said:
        return SchemaError(
            f"{said}: pgvector in {place} is not the one that this store had found; nothing was"
            " written, and trying once more looks anew"
        )
    return None


def labels_of(labels: Sequence[Label]) -> list[str]:
    """Labels as the embedding classes write them in a warning."""
    return [f"namespace {ns!r}, key {key!r}, field {field!r}" for ns, key, field in labels]


def _derived(settings: IndexSettings) -> PostgresIndexConfig:
    paths = settings.fields
    return cast(
        "PostgresIndexConfig",
        {
            "dims": settings.dims,
            "__tokenized_fields": [(p, p if p == "$" else tokenize_path(p)) for p in paths],
            "__estimated_num_vectors": len(paths),
        },
    )


def _embedding_id(index: PostgresIndexConfig | None, embeddings: object) -> str | None:
    """A name for the embedding model, or for this store where nothing names the model.

    Then unchanged text is skipped within the store only: another one's model may be another.
    """
    if index is None:
        return None
    embed = index.get("embed")
    return identify(embeddings) or (embed if isinstance(embed, str) else uuid4().hex)
