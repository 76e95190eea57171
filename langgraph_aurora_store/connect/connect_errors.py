"""Why a connection failed: the driver's error translated, and whether trying again may help. Pure.

libpq reports failed attempts as text only, without an SQLSTATE, so this reads the server's words.
"""

from __future__ import annotations

import copy
import re
from typing import NamedTuple

import psycopg

from langgraph_aurora_store.aws.partitions import partition_of
from langgraph_aurora_store.connect.cluster_names import Kind
from langgraph_aurora_store.connect.credentials import Method
from langgraph_aurora_store.errors import (
    AuthenticationError,
    CertificateError,
    ClusterError,
    ConnectError,
    ConnectTimeoutError,
    CredentialsError,
    DatabaseNotFoundError,
    HostNotFoundError,
)

# Patterns as text, compiled on the first refusal only. Read in this order: of several addresses of
# one host, the one that answered says most.
_CLASSES: tuple[tuple[type[ConnectError], str], ...] = (
    (
        AuthenticationError,
        r"(?i:authentication failed)|no pg_hba\.conf entry|pg_hba\.conf rejects"
        r"|role .* does not exist|is not permitted to log in|no password supplied"
        r"|permission denied for database"
        # RDS Proxy, "Common issues when connecting to a proxy" in the Aurora user guide.
        r"|has no credentials for the role|password that was provided for the role"
        r"|IAM authentication is allowed only|requires TLS connections",
    ),
    (DatabaseNotFoundError, r"database .* does not exist"),
    (
        CertificateError,
        r"certificate verify failed|does not match host name|could not get server's host name"
        r"|root certificate file|self.signed certificate|certificate has expired",
    ),
    (HostNotFoundError, r"failed to resolve host|could not translate host name"),
    (ConnectTimeoutError, r"timeout expired|timed out"),
)
# What a cluster says or does while it starts, stops, fails over or is full.
_TRANSIENT = (
    r"(?i)the database system is|server closed the connection unexpectedly"
    r"|connection reset|ssl connection has been closed|ssl syscall error|unexpected eof|broken pipe"
    r"|too many (?:clients|connections)|remaining connection slots|terminating connection"
    r"|the connection is lost|the port is open|timed.out waiting to acquire database connection"
)
# 08 connection exceptions, 53300 too many connections, 57P01-03 shutdown, crash and starting up:
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_TRANSIENT_SQLSTATES = r"08\w{3}|53300|57P0[123]"
_NO_WAY = r"unreachable|No route to host"
_CLOSED = r"(?i)connection refused"
_OPEN = "; the port is open, but nothing answered in time"
# psycopg repeats where it connected, and, after several addresses, libpq's words for each.
_PREFIX = (
    r"^(?:- host: .*?, hostaddr: \S+: )?(?:connection failed: )?"
    r"(?:connection to server at .*? failed: )?"
)
_HEADING = "Multiple connection attempts failed. All failures were:"


class Target(NamedTuple):
    """Where and as whom a connection was tried, for messages; no secret is in it."""

    user: str
    host: str
    port: int
    database: str
    region: str | None
    kind: Kind
    method: Method
    addresses: tuple[str, ...] = ()
    signed_port: int | None = None
    may_be_pooled: bool = False
    connect_resource: str | None = None
    sslmode: str = "verify-full"
    sslrootcert: str | None = None

    def __str__(self) -> str:
        via = f" (dialled at {', '.join(self.addresses)})" if self.addresses else ""
        region = f", region {self.region}" if self.region else ""
        where = f"{self.host}:{self.port}{via}"
        return f"user {self.user!r} at {where}, database {self.database!r}{region}"


def translate(error: psycopg.Error, target: Target, *, port_is_open: bool = False) -> ConnectError:
    """Name the cause of a failed attempt, with the server's own words and what to do.

    ``port_is_open``: after a timeout, whether the port could be dialled nevertheless.
    """
    text = f"{error}{_OPEN}" if port_is_open else str(error)
    found = _classify(text)
    # libpq indents what it guesses in addition.
    lines = (line for line in text.splitlines() if line != _HEADING and not line.startswith("\t"))
    said = "; ".join(dict.fromkeys(re.sub(_PREFIX, "", line).strip() for line in lines))
    refusal = found(f"could not connect as {target}: {said}{_advice(found, target, text)}")
    # A copy: the original holds on to libpq's connection, and with it to the password.
    refusal.__cause__ = type(error)(text)
    return refusal


def is_timeout(error: psycopg.Error) -> bool:
    """Whether nothing, or nothing in time, answered an attempt."""
    return _classify(str(error)) is ConnectTimeoutError


def is_transient(error: BaseException) -> bool:
    """Whether the same attempt may succeed shortly, with nothing changed by the user."""
    if isinstance(error, ClusterError | CredentialsError):
        return error.is_transient
    cause = error.__cause__ if isinstance(error, ConnectError) else error
    if not isinstance(cause, psycopg.OperationalError):
        return False
    if cause.sqlstate and re.fullmatch(_TRANSIENT_SQLSTATES, cause.sqlstate):
        return True
    text = str(cause)
    is_final = issubclass(_classify(text), AuthenticationError | DatabaseNotFoundError)
    return not is_final and bool(re.search(_TRANSIENT, text))


def is_unreachable(error: BaseException) -> bool:
    """Whether nothing answered: a wrong name or a closed way in at first, trouble later on."""
    if isinstance(error, HostNotFoundError | ConnectTimeoutError) or is_port_closed(error):
        return True
    return isinstance(error, ConnectError) and bool(re.search(_NO_WAY, str(error)))


def is_resuming(error: BaseException) -> bool:
    """Whether the port was open and nothing answered, as while a cluster resumes or is overrun."""
    return isinstance(error, ConnectTimeoutError) and _OPEN in str(error)


def is_port_closed(error: BaseException) -> bool:
    """Whether the host answered that nothing listens at the port."""
    return type(error) is ConnectError and bool(re.search(_CLOSED, str(error)))


def copy_for_raise(error: Exception) -> Exception:
    """The same error without its traceback, whose frames hold the password, for another thread."""
    twin = copy.copy(error)
    twin.__cause__ = error.__cause__
    return twin


def _classify(text: str) -> type[ConnectError]:
    found = (kind for kind, pattern in _CLASSES if re.search(pattern, text))
    return next(found, ConnectError)


def _advice(found: type[ConnectError], target: Target, text: str) -> str:
    if found is AuthenticationError:
        return _authentication_advice(target, text)
    if found is DatabaseNotFoundError:
        return "; create it, or pass another as database="
    if found is CertificateError:
        return _certificate_advice(target, text)
    if found is HostNotFoundError:
        return (
            "; check the name, and that this machine's DNS can resolve it (a private endpoint"
            " resolves to an address of its VPC)"
        )
    if found is ConnectTimeoutError and _OPEN in text:
        return ": the cluster is overrun, or resumes from a pause, which takes 15 s and more"
    if found is ConnectTimeoutError:
        return (
            "; nothing answered: check that a security group admits this machine to the port, and"
            " that there is a route into the VPC"
        )
    if re.search(_CLOSED, text) and not re.search(_TRANSIENT, text):
        return (
            f"; the host answers and nothing listens at port {target.port}: check port=, that the"
            " cluster is not stopped, and that a tunnel or proxy in between is up (a security group"
            " that shuts a client out mostly keeps silent, a firewall may refuse like this)"
        )
    if "server does not support SSL" in text:
        return "; what listens there speaks no TLS: check host and port"
    return ""


def _authentication_advice(target: Target, text: str) -> str:
    if "has no credentials for the role" in text:
        return f"; RDS Proxy needs a secret of its own for {target.user!r}: aws rds modify-db-proxy"
    if "no encryption" in text or "requires TLS" in text or "only with SSL" in text:
        return "; the server demands TLS: leave sslmode at its default, 'verify-full'"
    if "permission denied for database" in text:
        return f'; GRANT CONNECT ON DATABASE "{target.database}" TO "{target.user}"'
    if target.method == "password":
        return (
            "; check user and password, and that the role is not granted rds_iam, which takes"
            " precedence over a password"
        )
    resource = target.connect_resource or _resource_to_fill_in(target)
    # A cluster that was looked up is known to have it on.
    is_on = target.connect_resource or target.kind == "proxy"
    switch = (
        ""
        if is_on
        else (
            " that IAM authentication is on (aws rds modify-db-cluster"
            " --enable-iam-database-authentication);"
        )
    )
    return (
        f'; check that the role exists and is granted it: GRANT rds_iam TO "{target.user}";'
        f"{switch} that the AWS identity may rds-db:connect on {resource}/{target.user}; that its"
        " credentials have not expired, and this machine's clock is right, as a token holds for"
        " 900 s; and that the endpoint is the cluster's own, as a token cannot be signed for a"
        f" CNAME{_tunnel_advice(target)}"
    )


def _tunnel_advice(target: Target) -> str:
    """Where a token was signed for the port that is dialled, although that may be a tunnel's."""
    if not target.addresses or target.port != target.signed_port:
        return ""
    return (
        f"; nor for a tunnel's port: it was signed for {target.host}:{target.port}, so where the"
        f" endpoint's own port is another, pass endpoint='{target.host}:5432' with it and keep"
        f" port={target.port}"
    )


def _resource_to_fill_in(target: Target) -> str:
    region = target.region or "REGION"
    # "Creating and using an IAM policy for IAM database access" in the Aurora user guide.
    resource = "prx-RESOURCE_ID" if target.kind == "proxy" else "CLUSTER_RESOURCE_ID"
    return f"arn:{partition_of(region).name}:rds-db:{region}:ACCOUNT:dbuser:{resource}"


def _certificate_advice(target: Target, text: str) -> str:
    if "does not match host name" in text:
        return (
            "; connect by the endpoint's own name; for an alias pass the alias as cluster and the"
            " endpoint it stands for as endpoint="
        )
    bundle = partition_of(target.region or "").trust_store
    published = f" (Amazon publishes its own at {bundle})" if bundle else ""
    # OpenSSL knows which of the two it is; libpq does not tell.
    return (
        f"; its authority is not in the trust store {target.sslrootcert!r}: pass one that holds it"
        f" as sslrootcert= or PGSSLROOTCERT{published}; or a certificate, the server's or one in"
        " the store, has expired or this machine's clock is wrong: openssl s_client -starttls"
        f" postgres -connect {target.host}:{target.port} tells"
    )
