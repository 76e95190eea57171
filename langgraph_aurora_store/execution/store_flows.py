"""What the blocking and the asyncio store share: settings as data, and operations as flows.

Nothing here does I/O; the executors of `store` and `aio` perform the flows.

What is known of the database:

```
unknown --ready(), setup()--> known
known --forget(): the database objects to a statement, or the store is closed--> unknown
```
"""

from __future__ import annotations

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
from langgraph_aurora_store.execution.retry import RetrySettings
from langgraph_aurora_store.execution.schema_warnings import warn_of_coverage, warn_of_state
from langgraph_aurora_store.sql.batch import Prepared, complete, prepare, run, split, validate
from langgraph_aurora_store.sql.flow import Embed, Flow, Label
from langgraph_aurora_store.sql.namespace_operations import count_under, delete_under
from langgraph_aurora_store.sql.store_tables import StoreTables
from langgraph_aurora_store.sql.vector_search import LargeNamespaces
from langgraph_aurora_store.validation import brief, check

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings
    from langgraph.store.base import TTLConfig
    from langgraph.store.postgres.base import PostgresIndexConfig

    from langgraph_aurora_store.sql.schema.introspection import DatabaseState

T = TypeVar("T")
Deserializer: TypeAlias = Callable[[bytes | orjson.Fragment], dict[str, Any]]

# The modules on the schema are imported where they are used: importing the store, as a Lambda
# function does at its cold start, then does not wait for them.


# Embedded once, where neither the model's name nor the configuration tells the vectors' length.
_PROBE = "How many dimensions?"

# The parent's default.
_SWEEP_INTERVAL_MINUTES = 5

# What a database raises that is no longer as it was found.
_CHANGED_ERRORS = (psycopg.DataError, psycopg.InternalError, psycopg.ProgrammingError)
_MISSING_ERRORS = (
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedTable,
)


class Operations:
    """A store's settings, and its operations as flows. Safe for any number of threads."""

    def __init__(
        self,
        *,
        index: PostgresIndexConfig | None,
        ttl: TTLConfig | None,
        schema: str | None,
        deserializer: Deserializer | None = None,
        session: Any = None,
        region: str | None = None,
        retry: RetrySettings | None = None,
    ) -> None:
        check(index=index, ttl=ttl, schema=schema, deserializer=deserializer, retry=retry)
        if index is not None:
            # Check all that can be checked before the model tells its dimensions.
            IndexSettings.from_config(index, 1 if index.get("dims") is None else None)
            check(embed=index.get("embed"))
        self.ttl = TtlSettings.from_config(ttl)
        self.embeddings: Embeddings | None = None
        self.ttl_config = ttl
        self.retry = retry
        # A copy, completed with what the parent's class derives, for code that reads it.
        self.index_config = None if index is None else index.copy()
        self._schema = schema
        self.deserializer = deserializer
        self._tables: StoreTables | None = None
        self._ready: StoreTables | None = None
        self._location = ""
        self._covered: set[str] = set()
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
    def schema(self) -> str | None:
        """The schema that was asked for; ``None`` for the search path's."""
        return self._schema

    @property
    def embedder(self) -> Embeddings:
        """The embedding model; no flow asks for one in a store without an index."""
        if self.embeddings is None:
            raise ConfigurationError("this store has no index: make it with index={'embed': ...}")
        return self.embeddings

    def batch(self, ops: Iterable[Op]) -> Flow[list[Result]]:
        """The results of a batch of operations, in order; all of its writes or none."""
        known = [self._with_defaults(op) for op in ops]
        return (yield from self._on_tables(lambda tables: run(known, tables, self._sizes)))

    def prepare(self, ops: Iterable[Op], *, at_most: int) -> Flow[list[Prepared]]:
        """Embed for operations that need not take effect together; parts to `finish`.

        There are ``at_most`` that many parts, which may be finished side by side.
        """
        known = [self._with_defaults(op) for op in ops]
        prepared = yield from self._on_tables(lambda tables: prepare(known, tables))
        return split(prepared, at_most)

    def check(self, op: Op) -> None:
        """Raise what is invalid in an operation by itself, once the tables are known."""
        if tables := self._ready:
            validate(self._with_defaults(op), tables)

    def complete(self, part: Prepared) -> Flow[list[Result]]:
        """The results of a part, in the order of its operations."""
        return (yield from self._on_tables(lambda tables: complete(part, tables, self._sizes)))

    def setup(self) -> Flow[None]:
        """Bring the database to what this store needs."""
        from langgraph_aurora_store.sql.schema.setup import setup

        self.forget()
        tables = yield from self.tables()
        ready = self._adopt(tables, (yield from setup(tables)))
        yield from self._check_coverage(ready)

    def count(
        self, namespace_prefix: tuple[str, ...], filter_: Mapping[str, object] | None
    ) -> Flow[int]:
        """The number of items in a namespace and below it."""
        return (
            yield from self._on_tables(
                lambda tables: count_under(namespace_prefix, tables, filter_)
            )
        )

    def delete_namespace(self, namespace_prefix: tuple[str, ...]) -> Flow[int]:
        """Delete a namespace and what is below it; the number of items deleted."""
        return (yield from self._on_tables(lambda tables: delete_under(namespace_prefix, tables)))

    def sweep(self) -> Flow[int]:
        """Delete expired items; the number of items deleted."""
        from langgraph_aurora_store.sql.expiry_sweep import sweep

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
        """The SQL of `setup`, as a script for an administrator."""
        from langgraph_aurora_store.sql.schema.admin_script import ddl

        if self._tables is None:
            raise ConfigurationError(
                "the embedding model's dimensions are unknown; pass index={'dims': ...}"
            )
        return ddl(self._tables, role=role, concurrently=concurrently)

    def ready(self) -> Flow[StoreTables]:
        """The tables, once the database was seen to hold them."""
        from langgraph_aurora_store.sql.schema.drift import check as inspect

        if ready := self._ready:  # read once: another thread may call forget()
            return ready
        tables = yield from self.tables()
        ready = self._adopt(tables, (yield from inspect(tables)))
        yield from self._check_coverage(ready)
        return ready

    def forget(self) -> None:
        """Inspect the database again at the next use: it may have changed, or be another."""
        self._ready = None
        self.pgvector.forget()

    def _adopt(self, tables: StoreTables, found: DatabaseState) -> StoreTables:
        """Remember the tables as found, with what the database's pgvector can do."""
        self._location = f"schema {found.schema!r} of database {found.database!r}"
        warn_of_state(tables, found)
        ready = self._ready = replace(
            tables,
            ef_construction=found.built_with("ef_construction"),
            lists=found.built_with("lists"),
            iterative_scan=found.iterative_scan,
            pgvector_schema=found.pgvector_schema,
            has_vectors=found.may_forget,
            has_write_marks=found.may_mark and self.retry is not None,
        )
        return ready

    def _check_coverage(self, tables: StoreTables) -> Flow[None]:
        """Warn once, for each database, of items and vectors that a search cannot do well."""
        if tables.index is None or self._location in self._covered:
            return
        from langgraph_aurora_store.sql.coverage import inspect_coverage

        self._covered.add(self._location)
        warn_of_coverage(tables, (yield from inspect_coverage(tables)), self._location)

    def _on_tables(self, work: Callable[[StoreTables], Flow[T]]) -> Flow[T]:
        """Work on the known tables; forget them where the database objects."""
        tables = yield from self.ready()
        try:
            return (yield from work(tables))
        except psycopg.errors.ReadOnlySqlTransaction:
            raise
        except _CHANGED_ERRORS as exc:
            self.forget()
            if isinstance(exc, AuroraStoreError):
                raise
            if error := _schema_error(exc, self._location):
                raise error from exc
            raise

    def tables(self) -> Flow[StoreTables]:
        """The tables; asks the embedding model for its dimensions where nothing tells them."""
        if self._tables is None:
            vectors = yield Embed((), (_PROBE,))
            self._configure(len(vectors.queries[0]))
        return cast("StoreTables", self._tables)

    def _configure(self, dims: int | None) -> None:
        settings = None
        if self.index_config is not None:
            settings = IndexSettings.from_config(self.index_config, dims)
            self.index_config.update(_derived(settings))
        model = _model_name(self.index_config, self.embeddings)
        self._tables = StoreTables(
            schema=self._schema,
            index=settings,
            ttl=self.ttl,
            # Without a name, text is known as embedded within this store alone.
            embedding_id=model or uuid4().hex,
            names_model=model is not None,
            deserializer=self.deserializer or orjson.loads,
        )

    def _with_defaults(self, op: Op) -> Op:
        """Apply the TTL configuration to an operation that leaves its own open."""
        # LangGraph's types do not allow these two values, and its methods pass neither.
        if isinstance(op, PutOp) and cast("object", op.ttl) is NOT_PROVIDED:
            return op._replace(ttl=self.ttl.default_ttl)
        if isinstance(op, (GetOp, SearchOp)) and op.refresh_ttl is None:
            return op._replace(refresh_ttl=self.ttl.refresh_on_read)
        return op


def _schema_error(exc: psycopg.Error, location: str) -> SchemaError | None:
    """The error for a database that has changed since it was inspected, if that is the cause."""
    said = exc.diag.message_primary or str(exc)
    if isinstance(exc, _MISSING_ERRORS):
        return SchemaMissingError(
            f"{said}: not in {location}, where this store had found its tables; run setup(), or"
            " have an administrator run the SQL of ddl()"
        )
    is_missing = isinstance(exc, psycopg.errors.UndefinedObject | psycopg.errors.UndefinedFunction)
    if is_missing or "cache lookup failed for type" in said:
        return SchemaError(
            f"{said}: pgvector in {location} is not the one that this store had found; nothing was"
            " written, and trying once more inspects the database again"
        )
    return None


def labels_of(labels: Sequence[Label]) -> list[str]:
    """Labels of texts, as the embedding classes write them in a warning."""
    return [
        f"namespace {brief(ns)}, key {brief(key)}, field {brief(field)}"
        for ns, key, field in labels
    ]


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


def _model_name(index: PostgresIndexConfig | None, embeddings: object) -> str | None:
    """A name for the embedding model; ``None`` where nothing names it."""
    if index is None:
        return None
    embed = index.get("embed")
    return identify(embeddings) or (embed if isinstance(embed, str) else None)
