"""Every error a user can catch, as one tree.

The caller's mistakes are also ``ValueError``; what replaces a driver's error also inherits it, so
``except psycopg.OperationalError`` keeps working.

```
AuroraStoreError
├── ConfigurationError (ValueError)      a parameter, a setting or the environment is wrong
│   └── MissingExtraError (ImportError)  an optional package is not installed
├── InvalidItemError (ValueError)        an item that cannot be stored; nothing was written
├── InvalidFilterError (ValueError)      a search filter that means nothing
├── InvalidCheckpointError (ValueError)  a checkpoint that cannot be stored; nothing was written
├── ConcurrentRunError                   another run writes to the thread; nothing was written
├── SchemaError (psycopg.ProgrammingError)
│   ├── SchemaMissingError               the tables are not there: setup() has not run
│   └── SchemaDriftError                 the database and the index configuration differ
├── ClusterError                         the cluster could not be looked up
│   ├── ClusterNotFoundError
│   ├── ClusterAccessDeniedError
│   └── IamAuthenticationDisabledError
├── CredentialsError                     AWS credentials or a secret could not be read
├── ConnectError (psycopg.OperationalError)
│   ├── AuthenticationError              the server refused the user or the token
│   ├── DatabaseNotFoundError
│   ├── CertificateError                 the server's certificate could not be verified
│   ├── HostNotFoundError                the endpoint's name does not resolve
│   ├── ConnectTimeoutError              nothing answered in time
│   ├── PoolTimeoutError (psycopg_pool.PoolTimeout)  no connection in the whole waiting time
│   ├── PoolFullError (psycopg_pool.TooManyRequests)  too many callers wait already
│   └── PoolClosedError (psycopg_pool.PoolClosed)    the pool was closed, the store was not
├── ReadOnlyEndpointError (psycopg.errors.ReadOnlySqlTransaction)  a write to a reader endpoint
├── RetriesExhaustedError (psycopg.OperationalError)  a fault outlasted the deadline of retry=
├── WrongLoopError (asyncio.InvalidStateError)   blocking code on an asyncio store's event loop
└── EmbeddingError                       the embedding service or model failed
    ├── EmbeddingAccessError             a permission, a key or a model's activation is missing
    ├── EmbeddingCredentialsError (CredentialsError)  AWS credentials could not be obtained
    │   └── EmbeddingCredentialsMissingError (EmbeddingAccessError)  and waiting does not mend it
    └── EmbeddingResponseError           vectors of the wrong count, length or content
```
"""

from __future__ import annotations

import asyncio

import psycopg
import psycopg_pool


class AuroraStoreError(Exception):
    """Base of every error this package raises on its own account."""


class ConfigurationError(AuroraStoreError, ValueError):
    """A parameter, a setting or the environment is wrong; the message says what to pass."""


class MissingExtraError(ConfigurationError, ImportError):
    """An optional package is not installed; the message holds the ``pip install`` line."""


class InvalidItemError(AuroraStoreError, ValueError):
    """An item cannot be stored; raised before anything is written.

    The message names namespace, key and field, never the value.
    """


class InvalidFilterError(AuroraStoreError, ValueError):
    """A search filter holds an unknown operator or an operand that cannot be compared."""


class InvalidCheckpointError(AuroraStoreError, ValueError):
    """A checkpoint cannot be stored; raised before anything is written.

    The message names channel or metadata key, never the value.
    """


class ConcurrentRunError(AuroraStoreError):
    """Another run has stored a checkpoint of the thread since this one read it.

    Raised by a saver with ``concurrent_runs="refuse"``; nothing was written.
    """


class SchemaError(AuroraStoreError, psycopg.ProgrammingError):
    """The store's tables are not what this store needs."""


class SchemaMissingError(SchemaError):
    """The store's tables do not exist: run ``setup()`` once, or the SQL of ``ddl()``."""


class SchemaDriftError(SchemaError):
    """The database holds vectors of another shape than the index configuration describes."""


class ClusterError(AuroraStoreError):
    """The cluster could not be resolved to an endpoint.

    ``is_transient``: whether the same call may succeed shortly, with nothing changed.
    """

    is_transient: bool = False


class ClusterNotFoundError(ClusterError):
    """``rds:DescribeDBClusters`` knows no such cluster in this account and region."""


class ClusterAccessDeniedError(ClusterError):
    """The caller may not call ``rds:DescribeDBClusters``."""


class IamAuthenticationDisabledError(ClusterError):
    """The cluster does not accept IAM tokens: IAM database authentication is switched off."""


class CredentialsError(AuroraStoreError):
    """AWS credentials or a secret could not be read; the message names their source.

    ``is_transient``: whether the same call may succeed shortly, with nothing changed.
    """

    is_transient: bool = False


class ConnectError(AuroraStoreError, psycopg.OperationalError):
    """A connection could not be made; the message carries the server's own reason."""


class AuthenticationError(ConnectError):
    """The server refused the user, the token or the password."""


class DatabaseNotFoundError(ConnectError):
    """The server has no such database."""


class CertificateError(ConnectError):
    """The server's certificate could not be verified against the trust store."""


class HostNotFoundError(ConnectError):
    """The endpoint's host name does not resolve."""


class ConnectTimeoutError(ConnectError):
    """The server did not answer within the connect timeout."""


class PoolTimeoutError(ConnectError, psycopg_pool.PoolTimeout):
    """No connection became free, or could be made, within the whole waiting time."""


class PoolFullError(ConnectError, psycopg_pool.TooManyRequests):
    """As many callers wait for a connection as the pool's settings allow."""


class PoolClosedError(ConnectError, psycopg_pool.PoolClosed):
    """The pool was closed before its caller had a connection; the store opens a new one."""


class ReadOnlyEndpointError(AuroraStoreError, psycopg.errors.ReadOnlySqlTransaction):
    """A write was sent to an endpoint that serves reads only; nothing was written."""


class RetriesExhaustedError(AuroraStoreError, psycopg.OperationalError):
    """Lost connections, a failover or the like lasted longer than the deadline of ``retry=``.

    The message tells how often it was tried, the last reason, and whether a write may have taken
    effect, as ``may_have_written`` does. ``sqlstate`` is the last reason's.
    """

    may_have_written = False


class WrongLoopError(AuroraStoreError, asyncio.InvalidStateError):
    """A blocking method of an asyncio store was called where it could only hang."""


class EmbeddingError(AuroraStoreError):
    """The embedding service failed; nothing was written."""


class EmbeddingAccessError(EmbeddingError):
    """A permission, an API key or the activation of a model is missing."""


class EmbeddingCredentialsError(EmbeddingError, CredentialsError):
    """AWS credentials to embed with could not be obtained; ``is_transient``: a retry may help."""


class EmbeddingCredentialsMissingError(EmbeddingCredentialsError, EmbeddingAccessError):
    """AWS credentials to embed with are missing or wrong, which waiting does not mend."""


class EmbeddingResponseError(EmbeddingError):
    """The embedding service answered with vectors of the wrong count, length or content."""
