"""Who may enter: the proxy's decisions and what it counts, without any I/O of its own."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict

import psycopg

from langgraph_aurora_store.local.tokens import Keys, TokenScope, reason_to_refuse

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
