"""What one connection attempt needs, gathered from parameters, a secret and the environment.

Precedence, the first that says something:

| | parameter | secret's | environment | else |
|---|---|---|---|---|
| cluster | `cluster`, `endpoint` | `host` | `AURORA_CLUSTER` | an error |
| user | `user` | `username` | `AURORA_USER` | an error |
| database | `database` | `dbname` | `AURORA_DATABASE` | the name that the lookup gives |
| port | `port` | `port`, at its own host | | the lookup's, else 5432 |
| port signed for | the `:PORT` of `endpoint` | | | the port |
| region | the cluster's name, `region` | | see `Aws.region` | an error |
| trust store | `sslrootcert` | | `PGSSLROOTCERT` | the bundled one |
| application name | `application_name` | | `PGAPPNAME` | the package's |

A `user` that contradicts the secret's `username` is an error. Of libpq's other variables see
`libpq_environment`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from langgraph_aurora_store import config
from langgraph_aurora_store.aws.credential_failures import Session
from langgraph_aurora_store.aws.session import AwsSession
from langgraph_aurora_store.connect.cluster_lookup import Cluster, Endpoint
from langgraph_aurora_store.connect.connect_errors import Target
from langgraph_aurora_store.connect.credentials import (
    Credentials,
    IamCredentials,
    PasswordCredentials,
    Secret,
    SecretsManagerCredentials,
)
from langgraph_aurora_store.connect.environment import (
    NO_DEFAULTS,
    ConnectDefaults,
    connect_defaults,
)
from langgraph_aurora_store.connect.libpq_environment import libpq_parameters
from langgraph_aurora_store.connect.tls import Tls, verify
from langgraph_aurora_store.errors import (
    AuthenticationError,
    CertificateError,
    ConfigurationError,
    HostNotFoundError,
    IamAuthenticationDisabledError,
)
from langgraph_aurora_store.validation import check, check_variables

APPLICATION_NAME = "langgraph-aurora-store"


class ConnectionFactory(NamedTuple):
    """Makes the arguments of each connection. Immutable; thread-safe; the repr holds no secret.

    ``defaults`` are the environment's, for what neither a parameter nor a secret gives.
    ``pooler``: whether a pooler is connected to; ``None`` is what the endpoint's name says.
    """

    cluster: Cluster | None
    user: str | None
    database: str | None
    credentials: Credentials
    tls: Tls
    role: Literal["writer", "reader"] = "writer"
    application_name: str = APPLICATION_NAME
    port: int | None = None
    environ: Mapping[str, str] | None = None  # the process's own by default
    default_cluster: Cluster | None = None
    defaults: ConnectDefaults = NO_DEFAULTS
    pooler: bool | None = None

    @property
    def reader(self) -> str | None:
        """The endpoint's name, where the name says that it serves reads only."""
        cluster = self.cluster or self.default_cluster
        if cluster is None or not (self.role == "reader" or cluster.kind == "reader"):
            return None
        return cluster.name

    @property
    def name(self) -> str:
        """What to call a pool of these connections: the cluster's name as it was given."""
        cluster = self.cluster or self.default_cluster
        return cluster.name if cluster else "aurora"

    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `AuroraConnection.connect`, with a login made now. Blocking.

        Raises:
            AuroraStoreError: the cluster, its alias or the credentials could not be obtained.
            ConfigurationError: libpq's environment would change the connection.
        """
        secret = self._secret()
        endpoint = self._endpoint(secret)
        login = self.credentials.login(endpoint, self.user or secret.username or self.defaults.user)
        target = self._target(endpoint, login.user)
        return {
            **libpq_parameters(config.environment() if self.environ is None else self.environ),
            "target": target,
            # As many names as addresses, which psycopg then tries in turn.
            "host": ",".join([endpoint.host] * max(len(endpoint.addresses), 1)),
            "hostaddr": ",".join(endpoint.addresses),
            "port": target.port,
            "dbname": target.database,
            "user": login.user,
            "password": login.password,
            "application_name": self.application_name,
            "autocommit": True,
            # A pooler hands statements of one client to many servers: none may stay prepared.
            # Not 0: an instrumentor that comments each statement with its trace makes each text
            # new, and a statement that never returns would be prepared for nothing.
            "prepare_threshold": None if self._is_pooled(endpoint) else 1,
            **self.tls.kwargs(),
        }

    def refused(self, error: Exception) -> None:
        """Drop what was remembered and may be why an attempt failed."""
        if isinstance(error, AuthenticationError):
            self.credentials.refused()
        stale = HostNotFoundError | CertificateError | IamAuthenticationDisabledError
        cluster = self.cluster or self.default_cluster
        if cluster and isinstance(error, stale):
            cluster.forget()

    def _is_pooled(self, endpoint: Endpoint) -> bool:
        return endpoint.kind == "proxy" if self.pooler is None else self.pooler

    def _secret(self) -> Secret:
        if isinstance(self.credentials, SecretsManagerCredentials):
            return self.credentials.secret()
        return Secret("")

    def _endpoint(self, secret: Secret) -> Endpoint:
        cluster = self.cluster
        if cluster is None and secret.host:
            cluster = Cluster(secret.host, port=self.port)
        cluster = cluster or self.default_cluster
        if cluster is None:
            raise ConfigurationError(
                "neither the secret's 'host' nor anything else names the cluster; pass cluster= or"
                " set AURORA_CLUSTER"
            )
        endpoint = cluster.writer() if self.role == "writer" else cluster.reader()
        no_port_given = self.port is None and endpoint.dialled_port is None
        if secret.port and endpoint.host == secret.host and no_port_given:
            endpoint = endpoint._replace(port=secret.port)
        return endpoint._replace(
            database=self.database or secret.dbname or self.defaults.database or endpoint.database,
        )

    def _target(self, endpoint: Endpoint, user: str) -> Target:
        if endpoint.database is None:
            raise ConfigurationError(
                f"no database is known at {endpoint.host!r}; pass database= or set AURORA_DATABASE"
            )
        return Target(
            user=user,
            host=endpoint.host,
            port=endpoint.dialled_port or endpoint.port,
            database=endpoint.database,
            region=endpoint.region,
            kind=endpoint.kind,
            method=self.credentials.method,
            addresses=endpoint.addresses,
            signed_port=endpoint.port,
            may_be_pooled=self.pooler is None and endpoint.kind == "alias",
            connect_resource=endpoint.connect_resource,
            sslmode=self.tls.sslmode,
            sslrootcert=self.tls.sslrootcert,
        )


def connection_factory(
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
    environ: Mapping[str, str] | None = None,
) -> ConnectionFactory:
    """Gather and check everything that can be checked without I/O; nothing is contacted.

    What is left out comes from the secret of `SecretsManagerCredentials` or from ``environ``, the
    process's own by default: see the module's table. ``session`` also signs for the default
    credentials.

    Raises:
        ConfigurationError: something is missing or wrong, naming parameter and variable.
    """
    check(
        cluster=cluster,
        user=user,
        database=database,
        region=region,
        port=port,
        endpoint=endpoint,
        session=session,
        credentials=credentials,
        application_name=application_name,
        pooler=pooler,
    )
    given = cluster or endpoint
    defaults = _read_environment(environ, (given, user, database, application_name))
    aws = AwsSession(session)
    named = partial(Cluster, region=region, port=port, session=aws, environ=environ)
    factory = ConnectionFactory(
        cluster=named(given, endpoint=endpoint) if given else None,
        user=user,
        database=database,
        credentials=credentials or IamCredentials(aws, environ=environ),
        tls=verify(sslmode, sslrootcert, environ=environ),
        application_name=application_name or defaults.application_name or APPLICATION_NAME,
        port=port,
        environ=environ,
        default_cluster=None if given or not defaults.cluster else named(defaults.cluster),
        defaults=defaults,
        pooler=pooler,
    )
    return _checked(factory)


def _read_environment(
    environ: Mapping[str, str] | None, given: Sequence[str | None]
) -> ConnectDefaults:
    """What the environment says, checked where no parameter is given in the variable's place."""
    defaults = connect_defaults(environ)
    found = {
        "AURORA_CLUSTER": defaults.cluster,
        "AURORA_USER": defaults.user,
        "AURORA_DATABASE": defaults.database,
        "PGAPPNAME": defaults.application_name,
    }
    needed = (name for name, value in zip(found, given, strict=True) if value is None)
    check_variables(**{name: found[name] for name in needed})
    libpq_parameters(config.environment() if environ is None else environ)
    return defaults


def _checked(factory: ConnectionFactory) -> ConnectionFactory:
    cluster = factory.cluster or factory.default_cluster
    if isinstance(factory.credentials, IamCredentials) and cluster:
        _check_signable(cluster)
    if isinstance(factory.credentials, SecretsManagerCredentials):
        return factory  # the secret may know the rest
    if cluster is None:
        raise ConfigurationError(
            "no cluster: pass cluster=, its identifier, ARN or endpoint host name, or set"
            " AURORA_CLUSTER"
        )
    no_user = factory.user is None and factory.defaults.user is None
    if no_user and isinstance(factory.credentials, IamCredentials | PasswordCredentials):
        raise ConfigurationError("no user: pass user=, the database role, or set AURORA_USER")
    no_database = factory.database is None and factory.defaults.database is None
    if no_database and not cluster.needs_lookup:
        raise ConfigurationError(
            f"no database: {cluster.name!r} does not tell; pass database= or set AURORA_DATABASE"
        )
    return factory


def _check_signable(cluster: Cluster) -> None:
    if cluster.can_be_signed_for:
        return
    if cluster.kind == "custom":
        raise ConfigurationError(
            f"RDS accepts no IAM token for a custom endpoint, {cluster.name!r}; pass the cluster's"
            " writer or reader endpoint, or that of an instance"
        )
    raise ConfigurationError(
        f"RDS accepts no IAM token for an alias, {cluster.name!r}; pass the endpoint it stands for"
        " as well, endpoint='NAME.cluster-ID.REGION.rds.amazonaws.com'"
    )
