"""Whether an IAM authentication token is good: pure, so that each refusal is tested by itself."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlsplit

from langgraph_aurora_store.errors import CredentialsError

if TYPE_CHECKING:
    import boto3


MAX_AGE_S = 900  # "Each token has a lifetime of 15 minutes", RDS user guide


CLOCK_SKEW_S = 300  # a signature may lie this far in the future, as for other AWS requests


ALGORITHM = "AWS4-HMAC-SHA256"


SERVICE = "rds-db"


EMPTY_BODY = hashlib.sha256(b"").hexdigest()


REQUIRED = frozenset(
    {"Action", "DBUser"}
    | {f"X-Amz-{name}" for name in ("Algorithm", "Credential", "Date", "Expires", "Signature")}
    | {"X-Amz-SignedHeaders"}
)


@dataclass(frozen=True, slots=True)
class Keys:
    """The long-term or temporary AWS keys whose signatures are accepted."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)

    @classmethod
    def made_up(cls, session_token: str | None) -> Keys:
        """Keys of the form that AWS gives; temporary ones with a session token."""
        letters = random_text(string.ascii_uppercase + "234567", 16)
        return cls(f"AKIA{letters}", secrets.token_urlsafe(30), session_token)

    @classmethod
    def of_session(cls, session: boto3.Session) -> Keys:
        """The keys that a session has now.

        Raises:
            CredentialsError: it has none.
        """
        credentials = session.get_credentials()
        now = credentials.get_frozen_credentials() if credentials else None
        if now is None or now.access_key is None or now.secret_key is None:
            raise CredentialsError("the session has no AWS credentials; leave keys_of out")
        return cls(now.access_key, now.secret_key, now.token)


def random_text(alphabet: str, length: int) -> str:
    """So many random characters of an alphabet."""
    return "".join(secrets.choice(alphabet) for _ in range(length))


@dataclass(frozen=True, slots=True)
class TokenScope:
    """What a token must have been signed for."""

    hosts: frozenset[str]
    port: int
    region: str


@dataclass(frozen=True, slots=True)
class Claims:
    """A token taken apart; nothing in it is verified yet."""

    host: str
    port: int
    query: Mapping[str, str] = field(repr=False)

    @property
    def credential_scope(self) -> list[str]:
        """Access key, day, region, service and ``aws4_request``."""
        return self.query["X-Amz-Credential"].rsplit("/", 4)

    @property
    def signed_at(self) -> float:
        """When the token was signed, in seconds since the epoch."""
        date = self.query["X-Amz-Date"]
        return datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()

    @property
    def lifetime_s(self) -> int:
        """For how long the token asks to be valid, in seconds."""
        return int(self.query["X-Amz-Expires"])


def reason_to_refuse(
    token: str, *, user: str, scope: TokenScope, keys: Keys, now: float
) -> str | None:
    """Name what is wrong with a token, or None when it lets ``user`` in at time ``now``.

    The names: garbage, wrong-action, wrong-host, wrong-port, wrong-user, wrong-service,
    wrong-region, wrong-access-key, wrong-session-token, bad-signature, expired, not-yet-valid.
    """
    claims = _parse(token)
    if claims is None:
        return "garbage"
    return (
        _wrong_target(claims, user, scope)
        or _wrong_signer(claims, scope, keys)
        or _wrong_age(claims, now)
    )


def _parse(token: str) -> Claims | None:
    try:
        parts = urlsplit(f"https://{token}")
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True))
        claims = Claims(parts.hostname or "", parts.port or 443, query)
        well_formed = (
            query.keys() >= REQUIRED
            and query["X-Amz-Algorithm"] == ALGORITHM
            and parts.path == "/"
            and len(claims.credential_scope) == 5
            and claims.signed_at > 0
            and claims.lifetime_s > 0
        )
    except ValueError:
        return None
    return claims if well_formed else None


def _wrong_target(claims: Claims, user: str, scope: TokenScope) -> str | None:
    if claims.query["Action"] != "connect":
        return "wrong-action"
    if claims.host not in scope.hosts:
        return "wrong-host"
    if claims.port != scope.port:
        return "wrong-port"
    return None if claims.query["DBUser"] == user else "wrong-user"


def _wrong_signer(claims: Claims, scope: TokenScope, keys: Keys) -> str | None:
    access_key, _, region, service, _ = claims.credential_scope
    if service != SERVICE:
        return "wrong-service"
    if region != scope.region:
        return "wrong-region"
    if access_key != keys.access_key:
        return "wrong-access-key"
    if claims.query.get("X-Amz-Security-Token") != keys.session_token:
        return "wrong-session-token"
    expected = signature(claims, keys.secret_key).encode()
    given = claims.query["X-Amz-Signature"].encode()
    return None if hmac.compare_digest(expected, given) else "bad-signature"


def _wrong_age(claims: Claims, now: float) -> str | None:
    age_s = now - claims.signed_at
    if age_s > min(claims.lifetime_s, MAX_AGE_S):
        return "expired"
    return "not-yet-valid" if age_s < -CLOCK_SKEW_S else None


def signature(claims: Claims, secret_key: str) -> str:
    """The hexadecimal signature these claims have under ``secret_key``."""
    _, day, region, service, terminator = claims.credential_scope
    canonical = "\n".join(
        ("GET", "/", _canonical_query(claims), f"host:{_host_header(claims)}\n", "host", EMPTY_BODY)
    )
    to_sign = "\n".join(
        (
            ALGORITHM,
            claims.query["X-Amz-Date"],
            "/".join((day, region, service, terminator)),
            hashlib.sha256(canonical.encode()).hexdigest(),
        )
    )
    key = b"AWS4" + secret_key.encode()
    for part in (day, region, service, terminator):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, to_sign.encode(), "sha256").hex()


def _canonical_query(claims: Claims) -> str:
    pairs = sorted(
        (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
        for name, value in claims.query.items()
        if name != "X-Amz-Signature"
    )
    return "&".join(f"{name}={value}" for name, value in pairs)


def _host_header(claims: Claims) -> str:
    return claims.host if claims.port == 443 else f"{claims.host}:{claims.port}"
