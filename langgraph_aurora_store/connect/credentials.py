"""Who connects, and with what: an IAM token (the default), a password, or a secret."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, Protocol, Self, SupportsIndex, TypeAlias

from langgraph_aurora_store.aws.credential_failures import Session
from langgraph_aurora_store.aws.error_codes import is_passing
from langgraph_aurora_store.aws.session import REGION_ORDER, AwsSession
from langgraph_aurora_store.aws.single_flight import SingleFlight
from langgraph_aurora_store.connect.cluster_lookup import Endpoint
from langgraph_aurora_store.errors import (
    ConfigurationError,
    CredentialsError,
    IamAuthenticationDisabledError,
)
from langgraph_aurora_store.sdk_log_redaction import redact_sdk_logs
from langgraph_aurora_store.validation import brief, check

# IAM tokens are accepted for 900 s: Aurora user guide, "IAM database authentication".
TOKEN_LIFETIME_S = 900

Method: TypeAlias = Literal["IAM token", "password"]


class _HoldsSecret:
    """What holds a secret: a pickle of it would hold the secret as plain text."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} holds a secret and cannot be pickled; make it in the process"
            " that uses it"
        )

    def __copy__(self) -> Self:
        return self  # it does not change, but for a secret that it reads again

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self


@dataclass(frozen=True, slots=True)
class Login(_HoldsSecret):
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
    """A new token for each connection, locally, with a session's AWS credentials.

    ``session`` is any boto3 or botocore session (profile, assumed role, IRSA, Lambda role); the
    default is botocore's own chain, read again where environment or files have changed. Signing
    takes no network; botocore refreshes the credentials that sign. No token is kept, so none can go
    stale. Thread-safe.
    """

    method: Method = "IAM token"

    def __init__(
        self,
        session: Session | AwsSession | None = None,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._aws = session if isinstance(session, AwsSession) else AwsSession(session)
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
        region = endpoint.region or self._region(endpoint)
        return Login(user, self._sign(endpoint, region, user))

    def refused(self) -> None:
        """Nothing to drop: each login asks the session again, and is signed with what it says."""

    def _region(self, endpoint: Endpoint) -> str:
        found = self._aws.region(self._environ)
        if found is None:
            raise ConfigurationError(
                f"no region in endpoint {endpoint.host!r}; pass region= or set AWS_REGION"
                f" ({REGION_ORDER})"
            )
        return found.name

    def _sign(self, endpoint: Endpoint, region: str, user: str) -> str:
        from botocore.auth import SigV4QueryAuth
        from botocore.awsrequest import create_request_object, prepare_request_dict

        # The request that botocore's rds client signs in generate_db_auth_token; the scheme is
        # there for the URL parser and is no part of a token. A client takes 0.2 to 0.3 s to make.
        request: dict[str, Any] = {
            "url_path": "/",
            "query_string": "",
            "headers": {},
            "body": {"Action": "connect", "DBUser": user},
            "method": "GET",
            "context": {},
        }
        prepare_request_dict(request, f"https://{endpoint.host}:{endpoint.port}")
        signed = create_request_object(request)
        keys = self._aws.credentials()
        with redact_sdk_logs():
            SigV4QueryAuth(keys, "rds-db", region, expires=TOKEN_LIFETIME_S).add_auth(signed)
        url: str = signed.prepare().url
        return url.removeprefix("https://")


class PasswordCredentials(_HoldsSecret):
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
        """A fixed password has no other source to be read from."""


@dataclass(frozen=True, slots=True)
class Secret(_HoldsSecret):
    """What RDS writes into a secret; only ``password`` is always there. The repr hides it."""

    password: str = field(repr=False)
    username: str | None = None
    host: str | None = None
    port: int | None = None
    dbname: str | None = None


class SecretsManagerCredentials(_HoldsSecret):
    """User and password from a secret in the JSON that RDS writes; survives its rotation.

    The secret is read on first use, kept, and read again after a connection was refused. What it
    says of ``host``, ``port`` and ``dbname`` stands in for what is not given. Its ``username`` is
    taken, as rotation may alternate between two users; a ``user=`` that is another from the start
    is an error. The region is that of the secret's ARN, else ``region``, else the one that
    `AwsSession.region` finds. Thread-safe. Neither pickled nor copied.

    Raises:
        ConfigurationError: an argument is wrong.
    """

    method: Method = "password"

    def __init__(
        self,
        secret_id: str,
        *,
        region: str | None = None,
        session: Session | AwsSession | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        check(secret_id=secret_id, region=region)
        if not isinstance(session, AwsSession):
            check(session=session)
        self.secret_id = secret_id
        parts = secret_id.split(":")
        self._region = parts[3] if secret_id.startswith("arn:") and len(parts) > 6 else region
        self._aws = session if isinstance(session, AwsSession) else AwsSession(session)
        self._environ = environ
        self._secret: Secret | None = None
        self._is_rotated = False
        self._reading: SingleFlight[Secret] = SingleFlight("langgraph-aurora-store secret")

    def __repr__(self) -> str:
        return f"SecretsManagerCredentials({self.secret_id!r})"

    def login(self, endpoint: Endpoint, user: str | None) -> Login:  # noqa: ARG002 - the protocol's
        """The secret's user and password.

        Raises:
            ConfigurationError: neither the secret nor the caller names a user, or they differ.
            CredentialsError: the secret could not be read, or is not the JSON that RDS writes.
        """
        secret = self.secret()
        if user and secret.username and not self._is_rotated:
            self._check_user(user, secret.username)
        name = secret.username or user
        if not name:
            raise ConfigurationError(
                f"secret {brief(self.secret_id)} holds no 'username'; pass user= or set AURORA_USER"
            )
        return Login(name, secret.password)

    def refused(self) -> None:
        """Read the secret again on next use: it may have been rotated."""
        self._is_rotated = self._is_rotated or self._secret is not None
        self._secret = None

    def secret(self) -> Secret:
        """The secret, read if it is not at hand. Blocking.

        Raises:
            ConfigurationError: no region is known to read it in.
            CredentialsError: it could not be read, or is not the JSON that RDS writes.
        """
        found = self._secret
        if found is not None:
            return found
        region = self._find_region()
        self._aws.credentials()  # a source that hangs is named here, and not in the reading
        return self._reading.call(lambda: self._read(region), late=lambda: self._late(region))

    def _check_user(self, user: str, found: str) -> None:
        # Secrets Manager user guide, "Alternating users": the other user is the first one's clone.
        if user.removesuffix("_clone") != found.removesuffix("_clone"):
            raise ConfigurationError(
                f"secret {brief(self.secret_id)} is the password of {found!r}, not of {user!r};"
                " leave user= out"
            )

    def _find_region(self) -> str:
        region = self._region or self._aws.region(self._environ)
        if not region:
            raise ConfigurationError(
                f"no region to read secret {brief(self.secret_id)} in; pass its ARN or region=, or"
                f" set AWS_REGION ({REGION_ORDER})"
            )
        return region if isinstance(region, str) else region.name

    def _late(self, region: str) -> CredentialsError:
        failure = CredentialsError(
            f"secret {brief(self.secret_id)} in region {region!r} could not be read: Secrets"
            " Manager has not answered yet; check the region and, inside a VPC, the way out (a NAT"
            " gateway or a VPC endpoint for secretsmanager)"
        )
        failure.is_transient = True
        return failure

    def _read(self, region: str) -> Secret:
        """Read the secret; runs in the thread of the reading."""
        found = self._secret  # of a reading that ended just now
        if found is not None:
            return found
        failure: CredentialsError | None = None
        with redact_sdk_logs():
            try:
                client = self._aws.client("secretsmanager", region)
                answer = client.get_secret_value(SecretId=self.secret_id)
            except CredentialsError as error:  # of signing, told already
                failure = error
            except Exception as error:
                failure = self._explain(error, region)
        if failure is not None:
            raise failure
        self._secret = found = parse_secret(self.secret_id, answer.get("SecretString", ""))
        return found

    def _explain(self, error: Exception, region: str) -> CredentialsError:
        from botocore.exceptions import BotoCoreError, ClientError

        # No text but the SDK's own, which holds no secret.
        is_told = isinstance(error, BotoCoreError | ClientError)
        said = str(error) if is_told else type(error).__name__
        failure = CredentialsError(
            f"secret {brief(self.secret_id)} in region {region!r} could not be read: {said}; allow"
            " secretsmanager:GetSecretValue on it (and kms:Decrypt on its key), and check its"
            " name and region"
        )
        failure.is_transient = is_passing(error)
        return failure


_NOT_OF_RDS = (
    "secret {} is not the JSON that RDS writes: it needs at least 'username' and 'password'"
)


def parse_secret(secret_id: str, text: str) -> Secret:
    """Read the JSON that RDS writes; the content is never repeated in an error.

    Raises:
        CredentialsError: not such a JSON.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None  # the decoder's error would carry the text along
    del text  # a traceback printed with its locals would show it
    if not isinstance(content, dict) or not content.get("password"):
        content = None
    if content is None:
        raise CredentialsError(_NOT_OF_RDS.format(brief(secret_id)))
    names = {name: _text(content.get(name)) for name in ("username", "host", "dbname")}
    port = str(content.get("port", ""))
    # Nothing here may raise: an error's frame would hold the password.
    is_port = re.fullmatch("[0-9]{1,5}", port)
    return Secret(str(content["password"]), port=int(port) if is_port else None, **names)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
