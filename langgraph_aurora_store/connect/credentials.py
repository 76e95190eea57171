"""Who connects, and with what: an IAM token (the default), a password, or a secret."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from langgraph_aurora_store.aws.session import Aws, Session, hush, sdk_errors
from langgraph_aurora_store.connect.cluster import Endpoint
from langgraph_aurora_store.errors import (
    ConfigurationError,
    CredentialsError,
    IamAuthenticationDisabledError,
)
from langgraph_aurora_store.fork_safety import ForkSafeLock
from langgraph_aurora_store.validation import check

# IAM tokens are accepted for 900 s: Aurora user guide, "IAM database authentication".
TOKEN_LIFETIME_S = 900

Method: TypeAlias = Literal["IAM token", "password"]


@dataclass(frozen=True, slots=True)
class Login:
    """A user and what proves it, for one connection attempt. The repr hides the password."""

    user: str
    password: str = field(repr=False)


class Credentials(Protocol):
    """Where logins come from. Called by several pool workers at once, and may block."""

    @property
    def method(self) -> Method:
        """What the password is, for messages: an IAM token or a password."""
        ...

    def login(self, endpoint: Endpoint, user: str | None) -> Login:
        """The login for one connection attempt to ``endpoint``."""
        ...

    def refused(self) -> None:
        """The server refused the last login: drop whatever is cached."""
        ...


class IamCredentials:
    """A token signed anew for each connection, locally, with a session's AWS credentials.

    ``session`` is any boto3 or botocore session (profile, assumed role, IRSA, Lambda role); the
    default is botocore's own chain, read anew where environment or files have changed. Signing
    takes no network; botocore refreshes the credentials that sign. No token is kept, so none can go
    stale. Thread-safe.
    """

    method: Method = "IAM token"

    def __init__(
        self,
        session: Session | Aws | None = None,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._aws = session if isinstance(session, Aws) else Aws(session)
        self._environ = environ

    def __repr__(self) -> str:
        return "IamCredentials()"

    def login(self, endpoint: Endpoint, user: str | None) -> Login:
        """Sign a token for this endpoint and user.

        Raises:
            ConfigurationError: no user or no region is known.
            IamAuthenticationDisabledError: the cluster is known not to accept tokens.
            CredentialsError: there are no AWS credentials, or they could not be refreshed.
        """
        if not user:
            raise ConfigurationError("an IAM token needs a user; pass user= or set AURORA_USER")
        if endpoint.iam_enabled is False:
            raise IamAuthenticationDisabledError(
                f"IAM database authentication is off on the cluster of {endpoint.host!r}; turn it"
                " on: aws rds modify-db-cluster --db-cluster-identifier NAME"
                " --enable-iam-database-authentication --apply-immediately"
            )
        region = endpoint.region or self._aws.region(self._environ)
        if not region:
            raise ConfigurationError(
                f"no region in endpoint {endpoint.host!r}; pass region= or set AWS_REGION"
            )
        return Login(user, self._sign(endpoint, region, user))

    def refused(self) -> None:
        """Nothing to drop: each login asks the session anew, and is signed anew."""

    def _sign(self, endpoint: Endpoint, region: str, user: str) -> str:
        from botocore.awsrequest import prepare_request_dict

        # The request that botocore's rds client signs in generate_db_auth_token; the scheme is
        # there for the URL parser and is no part of a token.
        request: dict[str, Any] = {
            "url_path": "/",
            "query_string": "",
            "headers": {},
            "body": {"Action": "connect", "DBUser": user},
            "method": "GET",
        }
        prepare_request_dict(request, f"https://{endpoint.host}:{endpoint.port}")
        signer = self._aws.signer(region)
        with hush(), sdk_errors("AWS credentials could not be refreshed"):
            url: str = signer.generate_presigned_url(
                request,
                operation_name="connect",
                region_name=region,
                expires_in=TOKEN_LIFETIME_S,
                signing_name="rds-db",
            )
        return url.removeprefix("https://")


class PasswordCredentials:
    """One fixed password, for a cluster or a role without IAM. The repr hides it.

    Raises:
        ConfigurationError: the password is empty or no text.
    """

    method: Method = "password"

    def __init__(self, password: str) -> None:
        check(password=password)
        self._password = password

    def __repr__(self) -> str:
        return "PasswordCredentials()"

    def login(self, endpoint: Endpoint, user: str | None) -> Login:  # noqa: ARG002 - the protocol's
        """The password, for whichever endpoint.

        Raises:
            ConfigurationError: no user was given.
        """
        if not user:
            raise ConfigurationError("a password needs a user; pass user= or set AURORA_USER")
        return Login(user, self._password)

    def refused(self) -> None:
        """A fixed password cannot be had anew."""


@dataclass(frozen=True, slots=True)
class Secret:
    """What RDS writes into a secret; only ``password`` is always there. The repr hides it."""

    password: str = field(repr=False)
    username: str | None = None
    host: str | None = None
    port: int | None = None
    dbname: str | None = None


class SecretsManagerCredentials:
    """User and password from a secret in the JSON that RDS writes; survives its rotation.

    The secret is read on first use, kept, and read again after a connection was refused. What it
    says of ``host``, ``port``, ``dbname`` and ``username`` stands in for what is not given. The
    region is that of the secret's ARN, else ``region``, else the session's, else ``AWS_REGION``.
    Thread-safe.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    method: Method = "password"

    def __init__(
        self,
        secret_id: str,
        *,
        region: str | None = None,
        session: Session | Aws | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        check(secret_id=secret_id, region=region)
        if not isinstance(session, Aws):
            check(session=session)
        self.secret_id = secret_id
        parts = secret_id.split(":")
        self._region = parts[3] if secret_id.startswith("arn:") and len(parts) > 6 else region
        self._aws = session if isinstance(session, Aws) else Aws(session)
        self._environ = environ
        self._lock = ForkSafeLock()
        self._secret: Secret | None = None

    def __repr__(self) -> str:
        return f"SecretsManagerCredentials({self.secret_id!r})"

    def login(self, endpoint: Endpoint, user: str | None) -> Login:  # noqa: ARG002 - the protocol's
        """The secret's user and password.

        Raises:
            ConfigurationError: neither the secret nor the caller names a user, or they differ.
            CredentialsError: the secret could not be read, or is not the JSON that RDS writes.
        """
        secret = self.secret()
        if user and secret.username and user != secret.username:
            raise ConfigurationError(
                f"secret {self.secret_id!r} is the password of {secret.username!r}, not of"
                f" {user!r}; leave user= out"
            )
        name = secret.username or user
        if not name:
            raise ConfigurationError(
                f"secret {self.secret_id!r} holds no 'username'; pass user= or set AURORA_USER"
            )
        return Login(name, secret.password)

    def refused(self) -> None:
        """Read the secret again on next use: it may have been rotated."""
        self._secret = None

    def secret(self) -> Secret:
        """The secret, read if it is not at hand. Blocking.

        Raises:
            ConfigurationError: no region is known to read it in.
            CredentialsError: it could not be read, or is not the JSON that RDS writes.
        """
        with self._lock:
            if self._secret is None:
                self._secret = parse_secret(self.secret_id, self._read())
            return self._secret

    def _read(self) -> str:
        from botocore.exceptions import BotoCoreError, ClientError

        region = self._region or self._aws.region(self._environ)
        if not region:
            raise ConfigurationError(
                f"no region to read secret {self.secret_id!r} in; pass its ARN or region=, or set"
                " AWS_REGION"
            )
        try:
            with hush():
                client = self._aws.client("secretsmanager", region)
                return client.get_secret_value(SecretId=self.secret_id).get("SecretString", "")
        except (BotoCoreError, ClientError) as error:
            raise CredentialsError(
                f"secret {self.secret_id!r} in region {region!r} could not be read: {error}; allow"
                " secretsmanager:GetSecretValue on it (and kms:Decrypt on its key), and check its"
                " name and region"
            ) from error


def parse_secret(secret_id: str, text: str) -> Secret:
    """Read the JSON that RDS writes; the content is never repeated in an error.

    Raises:
        CredentialsError: not such a JSON.
    """
    try:
        content = json.loads(text)
    except ValueError:
        content = None  # the decoder's error would carry the text along
    if not isinstance(content, dict) or not content.get("password"):
        raise CredentialsError(
            f"secret {secret_id!r} is not the JSON that RDS writes: it needs at least 'username'"
            " and 'password'"
        )
    port = str(content.get("port", ""))
    return Secret(
        password=str(content["password"]),
        username=content.get("username") or None,
        host=content.get("host") or None,
        port=int(port) if port.isdigit() else None,
        dbname=content.get("dbname") or None,
    )
