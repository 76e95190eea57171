"""What the two stores share outside of their I/O: `from_cluster` and `ddl`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from langgraph.store.base import TTLConfig
from langgraph.store.postgres.base import PostgresIndexConfig

from langgraph_aurora_store.connect.connection_factory import ConnectionFactory, connection_factory
from langgraph_aurora_store.connect.environment import connect_defaults
from langgraph_aurora_store.connect.lazy_pool import AsyncLazyPool, LazyPool
from langgraph_aurora_store.connect.pool_settings import PoolSettings, Profile
from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.execution.read_routing import ReadOptions
from langgraph_aurora_store.execution.retry import DEFAULT_RETRY, RetrySettings
from langgraph_aurora_store.execution.store_flows import Deserializer, Operations
from langgraph_aurora_store.validation import check

if TYPE_CHECKING:
    from langgraph_aurora_store.aws.credential_failures import Session
    from langgraph_aurora_store.connect.credentials import Credentials


class BaseAuroraStore:
    """A store that `from_cluster` makes; the subclass is blocking or asyncio."""

    _operations: Operations
    _pool_class: ClassVar[type[LazyPool | AsyncLazyPool]]
    _accepted_types: ClassVar[tuple[type, ...]]

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
        application_name: str | None = None,
        pooler: bool | None = None,
        pool: Profile | PoolSettings | None = None,
        index: PostgresIndexConfig | None = None,
        ttl: TTLConfig | None = None,
        schema: str | None = None,
        deserializer: Deserializer | None = None,
        retry: RetrySettings | None = DEFAULT_RETRY,
        read_from: Literal["writer", "reader"] = "writer",
        reader_endpoint: str | None = None,
        reader_port: int | None = None,
        read_your_writes_s: float = 5.0,
    ) -> Self:
        """Make a store that connects on first use; nothing is contacted here.

        Safe at import time, in a Lambda module and before a fork. ``open()``, the first operation
        or a ``with`` block connects; ``close()`` or leaving the block closes.

        Args:
            cluster: identifier, ARN, or the host name of a writer, reader, instance or RDS Proxy
                endpoint. Default: ``AURORA_CLUSTER``. A reader serves reads only: there ``put``
                raises `ReadOnlyEndpointError`, and ``setup`` `SchemaError`.
            user: a role that is granted ``rds_iam``. Default: ``AURORA_USER``.
            database: default: ``AURORA_DATABASE``, else the cluster's own.
            region: where the cluster's name does not tell. Default: the session's, then
                ``AWS_REGION``.
            port: default: the cluster's own where it is looked up, else 5432.
            endpoint: what ``cluster`` stands for, where that is an alias such as a CNAME or a
                tunnel: tokens and certificates are for the endpoint's own name. ``HOST:PORT``
                where the endpoint's port, which tokens are for, is not the ``port`` to dial.
            session: the boto3 session whose credentials sign, and call Bedrock. Default: boto3's
                own chain.
            credentials: in place of IAM tokens: `PasswordCredentials` or
                `SecretsManagerCredentials`.
            sslmode: libpq's; weaker ones than ``verify-full`` work, with a warning.
            sslrootcert: in place of the bundled Amazon roots. Default: ``PGSSLROOTCERT``.
            application_name: what ``pg_stat_activity`` shows, up to 63 printable ASCII characters.
                Default: ``PGAPPNAME``, else ``langgraph-aurora-store``.
            pooler: whether RDS Proxy, PgBouncer or the like is connected to, through which no
                statement may stay prepared. Default: by the endpoint's name, and at an address
                that is no endpoint of RDS by what answers there.
            pool: ``"service"``, ``"lambda"`` or `PoolSettings`. Default: ``"lambda"`` when
                running there.
            index: LangGraph's index configuration; ``embed`` may be ``"bedrock:<model id>"`` or
                ``"openai:<model>"``, whose ``dims`` are known.
            ttl: LangGraph's TTL configuration, in minutes, each more than 0. (``put(..., ttl=0)``
                is as the parent's: an item that has expired when it is written.)
            schema: where the tables are. Default: the search path's first schema.
            deserializer: as the parent's.
            retry: how long a call goes on after a lost connection, a failover or a deadlock;
                ``None`` raises the first such error. Nothing is embedded again, and no write is
                made twice.
            read_from: ``"reader"`` has the cluster's reader endpoint serve reads, where it has what
                this store has written and read so far; else, and without a reader, the writer does.
            reader_endpoint: default: the cluster's own.
            reader_port: default: ``port``.
            read_your_writes_s: how long after a write reads go to the writer, where a reader does
                not tell how far it is.

        Raises:
            ConfigurationError: something is missing or wrong, naming parameter and variable.
        """
        connect = partial(
            connection_factory,
            user=user,
            database=database,
            region=region,
            session=session,
            credentials=credentials,
            sslmode=sslmode,
            sslrootcert=sslrootcert,
            application_name=application_name,
            pooler=pooler,
        )
        operations = Operations(
            index=index,
            ttl=ttl,
            schema=schema,
            deserializer=deserializer,
            session=session,
            region=region,
            retry=retry,
        )
        options = ReadOptions(read_from, reader_endpoint, reader_port, read_your_writes_s)
        return cls._made(connect, (cluster, port, endpoint), pool, options, operations)

    @classmethod
    def _made(
        cls,
        connect: Callable[..., ConnectionFactory],
        where: tuple[str | None, int | None, str | None],
        pool: Profile | PoolSettings | None,
        options: ReadOptions,
        operations: Operations,
    ) -> Self:
        cluster, port, endpoint = where
        factory = connect(cluster, port=port, endpoint=endpoint)
        readers = options.factory(connect, cluster, port, endpoint)
        settings = PoolSettings.chosen(pool, on_lambda=connect_defaults().on_lambda)
        store = cls.__new__(cls)
        store._initialize(  # noqa: SLF001 - its own
            cls._pool_class(factory, settings),
            operations,
            readers=None if readers is None else cls._pool_class(readers, settings),
            read_your_writes_s=options.read_your_writes_s,
        )
        return store

    def _check(self, conn: object) -> None:
        """Refuse anything but a connection or a pool of psycopg."""
        if not isinstance(conn, self._accepted_types):
            kinds = (
                f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
                for kind in self._accepted_types
            )
            raise ConfigurationError(
                f"conn= of type {type(conn).__name__} is wrong: pass a {' or a '.join(kinds)}; from"
                " a connection string, from_conn_string makes a store, and from_cluster from a"
                " cluster's name"
            )

    def _initialize(
        self,
        conn: Any,
        operations: Operations,
        *,
        pipe: Any = None,
        readers: Any = None,
        read_your_writes_s: float = 0.0,
    ) -> None:
        """Complete a new instance, once its operations are made."""
        raise NotImplementedError

    def ddl(self, *, role: str | None = None, concurrently: bool = True) -> str:
        """The SQL that `setup` would run, for an administrator; safe to run again.

        Afterwards ``setup()`` finds nothing to do and needs no rights of its own.

        Args:
            role: the store's role, which is granted what it needs; ``None`` leaves the grants as
                comments.
            concurrently: build indexes while the tables are in use, which cannot be done in a
                transaction; pass ``False`` for a tool that runs the script as one.

        Raises:
            ConfigurationError: the vectors' dimensions are unknown; pass ``dims`` in ``index``. Or
                ``role`` is no name of a role.
        """
        check(role=role, reads_environment=False)
        return self._operations.ddl(role=role, concurrently=concurrently)
