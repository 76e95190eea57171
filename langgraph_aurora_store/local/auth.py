"""Who may enter: the proxy's decisions and what it counts, without any I/O of its own."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import string
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypedDict
from urllib.parse import parse_qsl, quote, urlsplit

import psycopg

from langgraph_aurora_store.errors import CredentialsError

if TYPE_CHECKING:
    import boto3

NOT_AUTHORIZED = "28000"  # invalid_authorization_specification
CANNOT_CONNECT_NOW = "57P03"


class Answer(TypedDict, total=False):
    """What the proxy process is to do with a client."""

    go: Literal["ask", "in", "refuse", "drop"]
    code: str
    text: str


@dataclass(slots=True)
class Policy:
    """What the owner may change while the cluster is up."""

    iam_enabled: bool = True
    refuse_next: int = 0
    is_paused: bool = False
    resume_s: float | None = None  # from the first client on, None: until told to resume
    connections_per_s: float | None = None
    drop_replies: int = 0


class Admission:
    """Decides on each client and keeps count; thread-safe.

    Args:
        scopes: what a token must have been signed for, by endpoint.
        keys: whose signatures are good.
        clock: seconds since the epoch, for the age of tokens only.
        has_rds_iam: whether a role is a member of ``rds_iam``; raises psycopg.OperationalError
            where no server is up.
        reserved: the role that RDS keeps to itself.
    """

    def __init__(
        self,
        *,
        scopes: Mapping[str, TokenScope],
        keys: Keys,
        clock: Callable[[], float],
        has_rds_iam: Callable[[str], bool],
        reserved: str,
    ) -> None:
        self.scopes = scopes
        self.keys = keys
        self.policy = Policy()
        self.accepted = 0
        self.refusals: Counter[str] = Counter()
        self.tokens: list[str] = []
        self.dropped = 0
        self._clock = clock
        self._has_rds_iam = has_rds_iam
        self._reserved = reserved
        self._changed = threading.Condition()
        self._awake_at = 0.0
        self._closed = False
        self._recent: deque[float] = deque()  # when IAM clients came in the last second

    def answer(self, question: Mapping[str, object]) -> Answer:
        """Answer one question of the proxy process."""
        match question:
            case {"ask": "enter", "user": str(user), "encrypted": bool(encrypted), **rest}:
                where = f'user "{user}", database "{rest.get("database")}"'
                return self._enter(user, f'host "{rest.get("peer")}", {where}', encrypted=encrypted)
            case {"ask": "token", "user": str(user), "token": str(token), "endpoint": str(name)}:
                return self._judge(user, token, self.scopes[name])
            case {"ask": "wake"}:
                self._wake()
                return Answer(go="in")
            case {"ask": "commit"}:
                return self._pass_reply()
            case {"ask": "held"}:
                return Answer(go="in")
            case {"ask": "admitted"}:
                with self._changed:
                    self.accepted += 1
                return Answer(go="in")
            case {"ask": "refused", "code": str(code)}:
                return self._refuse(code, "")
        raise ValueError(f"the proxy process asked {question.get('ask')!r}")

    def counted(self) -> Counter[str]:
        """The refusals so far; a copy."""
        with self._changed:
            return Counter(self.refusals)

    def reset(self) -> None:
        """Go back to the policy of the start and end every wait."""
        with self._changed:
            self.policy = Policy()
            self._awake_at = 0.0
            self._recent.clear()
            self._changed.notify_all()

    def _enter(self, user: str, whence: str, *, encrypted: bool) -> Answer:
        if not encrypted:
            # PostgreSQL's auth.c. RDS was also seen to say "pg_hba.conf rejects connection for" in
            # this case: github.com/haines/pg-aws_rds_iam/issues/582, rust-postgres/issues/1108.
            text = f"no pg_hba.conf entry for {whence}, no encryption"
            return self._refuse("plain-text", text)
        if user == self._reserved:
            text = f"pg_hba.conf rejects connection for {whence}, SSL encryption"
            return self._refuse("reserved-user", text)
        try:
            return Answer(go="ask" if self._has_rds_iam(user) else "in")
        except psycopg.OperationalError:
            return self._refuse(CANNOT_CONNECT_NOW, "the database system is starting up")

    def _judge(self, user: str, token: str, scope: TokenScope) -> Answer:
        reason = reason_to_refuse(token, user=user, scope=scope, keys=self.keys, now=self._clock())
        with self._changed:
            self.tokens.append(hashlib.sha256(token.encode()).hexdigest())
            if reason is None and not self.policy.iam_enabled:
                reason = "iam-disabled"
            if reason is None and self.policy.refuse_next > 0:
                self.policy.refuse_next -= 1
                reason = "intermittent"
            if self._is_too_fast() and reason is None:
                reason = "throttled"
        if reason is None:
            return Answer(go="in")
        return self._refuse(reason, f'PAM authentication failed for user "{user}"')

    def _is_too_fast(self) -> bool:
        now, recent = time.monotonic(), self._recent
        while recent and recent[0] <= now - 1.0:
            recent.popleft()
        limit = self.policy.connections_per_s
        if limit is not None and len(recent) >= limit:
            return True
        recent.append(now)
        return False

    def _pass_reply(self) -> Answer:
        with self._changed:
            if not self.policy.drop_replies:
                return Answer(go="in")
            self.policy.drop_replies -= 1
            self.dropped += 1
            return Answer(go="drop")

    def _refuse(self, reason: str, text: str) -> Answer:
        with self._changed:
            self.refusals[reason] += 1
        code = reason if reason == CANNOT_CONNECT_NOW else NOT_AUTHORIZED
        return Answer(go="refuse", code=code, text=text)

    def pause(self, resume_s: float | None) -> None:
        """Have the next client wait ``resume_s`` seconds, and all that come meanwhile."""
        with self._changed:
            self.policy.is_paused, self.policy.resume_s = True, resume_s

    def throttle(self, connections_per_s: float | None) -> None:
        """Refuse IAM clients above this rate from now on."""
        with self._changed:
            self.policy.connections_per_s = connections_per_s
            self._recent.clear()

    def resume(self) -> None:
        """End the pause and every wait at once."""
        with self._changed:
            self.policy.is_paused = False
            self._awake_at = 0.0
            self._changed.notify_all()

    def close(self) -> None:
        """End every wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            if self.policy.is_paused and self.policy.resume_s is not None:
                self.policy.is_paused = False
                self._awake_at = time.monotonic() + self.policy.resume_s
            while not self._closed:
                left_s = self._awake_at - time.monotonic()
                if not self.policy.is_paused and left_s <= 0:
                    return
                self._changed.wait(None if self.policy.is_paused else left_s)


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
