"""What the two savers share outside of their I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias, get_args

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.postgres.base import BasePostgresSaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.store.base import TTLConfig

from langgraph_aurora_store.checkpoint import deletion as pruning
from langgraph_aurora_store.checkpoint import reads
from langgraph_aurora_store.checkpoint import single_statements as writes
from langgraph_aurora_store.checkpoint.reads import Listing, Row
from langgraph_aurora_store.checkpoint.single_statements import Put
from langgraph_aurora_store.connect.connection_factory import connection_factory
from langgraph_aurora_store.connect.environment import connect_defaults
from langgraph_aurora_store.connect.lazy_pool import AsyncLazyPool, LazyPool
from langgraph_aurora_store.connect.pool_settings import PoolSettings, Profile
from langgraph_aurora_store.errors import ConfigurationError, SchemaMissingError
from langgraph_aurora_store.execution.retry import DEFAULT_RETRY, RetrySettings
from langgraph_aurora_store.execution.store_flows import Operations
from langgraph_aurora_store.sql.flow import Flow, Statement
from langgraph_aurora_store.sql.store_tables import StoreTables
from langgraph_aurora_store.validation import brief, check

if TYPE_CHECKING:
    from langgraph_aurora_store.aws.credential_failures import Session
    from langgraph_aurora_store.connect.credentials import Credentials

ConcurrentRuns: TypeAlias = Literal["allow", "refuse"]


class BaseAuroraSaver(BasePostgresSaver):
    """A saver that `from_cluster` makes; the subclass is blocking or asyncio."""

    _operations: Operations
    _pool_class: ClassVar[type[LazyPool | AsyncLazyPool]]
    _accepted_types: ClassVar[tuple[type, ...]]
    _refuses_runs: bool

    @classmethod
    def from_cluster(
        cls,
        cluster: str | None = None,
        *,
        user: str | None = None,
        database: str | None = None,
        region: str | None = None,
        port: int | None = None,
        endpoint: str | None = None,
        session: Session | None = None,
        credentials: Credentials | None = None,
        sslmode: str = "verify-full",
        sslrootcert: str | Path | None = None,
        pool: Profile | PoolSettings | None = None,
        serde: SerializerProtocol | None = None,
        ttl: TTLConfig | None = None,
        schema: str | None = None,
        concurrent_runs: ConcurrentRuns = "allow",
        retry: RetrySettings | None = DEFAULT_RETRY,
        application_name: str | None = None,
        pooler: bool | None = None,
    ) -> Self:
        """Make a saver that connects on first use; nothing is contacted here.

        The connection's parameters are those of `AuroraStore.from_cluster`. A program that also
        has a store shares its pool by ``store.checkpointer()``.

        Args:
            cluster: as for the store, and so are the parameters up to ``pool``.
            user: a role that is granted ``rds_iam``.
            database: default: ``AURORA_DATABASE``, else the cluster's own.
            region: where the cluster's name does not tell.
            port: default: the cluster's own where it is looked up, else 5432.
            endpoint: what ``cluster`` stands for, where that is an alias.
            session: the boto3 session whose credentials sign.
            credentials: in place of IAM tokens.
            sslmode: libpq's.
            sslrootcert: in place of the bundled Amazon roots.
            pool: ``"service"``, ``"lambda"`` or `PoolSettings`.
            serde: as the parent's. With one that is not LangGraph's own, such as its
                ``EncryptedSerializer``, every value of a channel goes through it; metadata never
                does.
            ttl: ``{"default_ttl": minutes, "sweep_interval_minutes": minutes}``: how long a thread
                lives after its last checkpoint, for `sweep_ttl` and the sweeper.
            schema: where the tables are. Default: the search path's.
            concurrent_runs: with ``"refuse"``, a checkpoint is stored only where its parent is the
                latest of its thread and namespace, so of two runs at a time one fails; and so does
                a run that forks from an older checkpoint.
            retry: how long a call goes on after a lost connection, a failover or a deadlock;
                ``None`` raises the first such error.
            application_name: as for the store.
            pooler: as for the store.

        Raises:
            ConfigurationError: something is missing or wrong, naming parameter and variable.
        """
        factory = connection_factory(
            cluster,
            user=user,
            database=database,
            region=region,
            port=port,
            endpoint=endpoint,
            session=session,
            credentials=credentials,
            sslmode=sslmode,
            sslrootcert=sslrootcert,
            application_name=application_name,
            pooler=pooler,
        )
        settings = PoolSettings.chosen(pool, on_lambda=connect_defaults().on_lambda)
        operations = Operations(index=None, ttl=ttl, schema=schema, retry=retry)
        saver = cls.__new__(cls)
        pooled = cls._pool_class(factory, settings)
        saver._initialize(  # noqa: SLF001 - its own
            pooled, operations, serde, concurrent_runs=concurrent_runs, owns_pool=True
        )
        return saver

    @classmethod
    def on_pool(
        cls,
        conn: Any,
        *,
        lock: Any,
        settings: Operations,
        serde: SerializerProtocol | None,
        ttl: TTLConfig | None,
        concurrent_runs: ConcurrentRuns,
    ) -> Self:
        """A saver on a store's connection or pool, which stays the store's to close."""
        saver = cls.__new__(cls)
        operations = Operations(index=None, ttl=ttl, schema=settings.schema, retry=settings.retry)
        saver._initialize(  # noqa: SLF001 - its own
            conn, operations, serde, concurrent_runs=concurrent_runs
        )
        saver.lock = lock  # type: ignore[attr-defined]  # the subclasses' is of their kind
        return saver

    def _initialize(
        self,
        conn: Any,
        operations: Operations,
        serde: SerializerProtocol | None,
        *,
        concurrent_runs: ConcurrentRuns,
        pipe: Any = None,
        owns_pool: bool = False,
    ) -> None:
        """Complete a new instance, once its settings are checked."""
        raise NotImplementedError

    def ddl(self, *, role: str | None = None, concurrently: bool = True) -> str:
        """The SQL that `setup` would run, for an administrator; safe to run again.

        Afterwards ``setup()`` finds nothing to do and needs no rights of its own.

        Args:
            role: the saver's role, which is granted what it needs; ``None`` leaves the grants as
                comments.
            concurrently: build indexes while the tables are in use, which cannot be done in a
                transaction; pass ``False`` for a tool that runs the script as one.

        Raises:
            ConfigurationError: ``role`` is no name of a role.
        """
        from langgraph_aurora_store.checkpoint.schema import ddl

        check(role=role, reads_environment=False)
        return ddl(StoreTables(schema=self._schema), role=role, concurrently=concurrently)

    def _check(self, conn: object, pipe: object) -> None:
        """Refuse anything but a connection or a pool of psycopg."""
        connection, pool = self._accepted_types
        if not isinstance(conn, self._accepted_types):
            raise ConfigurationError(
                f"conn= of type {type(conn).__name__} is wrong: pass a psycopg."
                f"{connection.__name__} or a psycopg_pool.{pool.__name__}; from a connection"
                " string, from_conn_string makes a saver, and from_cluster from a cluster's name"
            )
        if isinstance(conn, pool) and pipe is not None:
            raise ValueError(
                f"Pipeline should be used only with a single {connection.__name__}, not"
                f" {pool.__name__}."
            )

    @property
    def _schema(self) -> str | None:
        return self._operations.schema

    # what is asked of the database

    def _get(self, config: RunnableConfig) -> Flow[Row | None]:
        return reads.get(config, self._schema, self._migrate_pending_sends)

    def _listing(
        self,
        config: RunnableConfig | None,
        filter_: dict[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> Listing:
        where, params = self._search_where(config and with_text_id(config), filter_, before)
        return Listing(
            where,
            params,
            None if limit is None else int(limit),
            self._schema,
            self._migrate_pending_sends,
        )

    def _storing(self, put: Put) -> Flow[None]:
        return put.store(self._schema, if_free=self._refuses_runs)

    def _execution(self, statement: Statement | None) -> Flow[None]:
        return writes.execute(statement, self._schema)

    def _pruning(
        self,
        thread_ids: Sequence[str] | None,
        strategy: str,
        keep_last: int,
        older_than: timedelta | None,
    ) -> Flow[None]:
        return pruning.prune(
            thread_ids,
            strategy=strategy,
            keep_last=keep_last,
            older_than=older_than,
            now=datetime.now(UTC),
            schema=self._schema,
        )

    def _idle_deletion(self, idle_for: timedelta) -> Flow[int]:
        return pruning.delete_idle_threads(idle_for, datetime.now(UTC), self._schema)

    @property
    def _ttl(self) -> timedelta | None:
        """How long a thread lives after its last checkpoint."""
        minutes = self._operations.ttl.default_ttl
        return None if minutes is None else timedelta(minutes=minutes)

    def _setup(self, *, metadata_index: bool) -> Flow[None]:
        from langgraph_aurora_store.checkpoint.schema import setup

        return setup(StoreTables(schema=self._schema), metadata_index=metadata_index)


def refuses_runs(concurrent_runs: object) -> bool:
    """Whether a run that finds another one's checkpoint is to fail.

    Raises:
        ConfigurationError: neither ``"allow"`` nor ``"refuse"``.
    """
    if concurrent_runs not in get_args(ConcurrentRuns):
        raise ConfigurationError(
            f"concurrent_runs={brief(concurrent_runs)} is wrong: pass 'allow' or 'refuse'"
        )
    return concurrent_runs == "refuse"


def with_text_id(config: RunnableConfig) -> RunnableConfig:
    """The configuration with its thread's id as text, which the column is compared with."""
    configurable = config["configurable"]
    return {"configurable": {**configurable, "thread_id": str(configurable["thread_id"])}}


def named_missing(error: psycopg.errors.UndefinedTable) -> SchemaMissingError:
    """The error for tables that are not there."""
    said = error.diag.message_primary or str(error)
    return SchemaMissingError(f"{said}: run setup() of the saver once")


def blob_sizes(row: Row) -> Iterator[int]:
    """The sizes of what is to be decoded of a row."""
    for _, _, data in row["channel_values"] or ():
        yield len(data or b"")
    for _, _, _, data, *_ in row["pending_writes"] or ():
        yield len(data or b"")
