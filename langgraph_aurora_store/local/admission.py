"""Who may enter: the gate's decisions and what it counts, without any I/O of its own."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict

from langgraph_aurora_store.local.tokens import Door, Keys, reason_to_refuse

NOT_AUTHORIZED = "28000"  # invalid_authorization_specification


class Answer(TypedDict, total=False):
    """What the relay is to do with a client."""

    go: Literal["ask", "in", "refuse"]
    code: str
    text: str


@dataclass(slots=True)
class Policy:
    """What the owner may change while the cluster is up."""

    iam_enabled: bool = True
    refuse_next: int = 0
    resume_s: float | None = None  # set while paused


class Admission:
    """Decides on each client and keeps count; thread-safe.

    Args:
        door: what a token must have been signed for.
        keys: whose signatures are good.
        clock: seconds since the epoch, for the age of tokens only.
        has_rds_iam: whether a role is a member of ``rds_iam``.
        reserved: the role that RDS lets nobody use.
    """

    def __init__(
        self,
        *,
        door: Door,
        keys: Keys,
        clock: Callable[[], float],
        has_rds_iam: Callable[[str], bool],
        reserved: str,
    ) -> None:
        self.door = door
        self.keys = keys
        self.policy = Policy()
        self.accepted = 0
        self.refusals: Counter[str] = Counter()
        self.tokens: list[str] = []
        self._clock = clock
        self._has_rds_iam = has_rds_iam
        self._reserved = reserved
        self._changed = threading.Condition()
        self._awake_at = 0.0
        self._closed = False

    def answer(self, question: Mapping[str, object]) -> Answer:
        """Answer one question of the relay."""
        match question:
            case {"ask": "enter", "user": str(user), "encrypted": bool(encrypted), **rest}:
                where = f'user "{user}", database "{rest.get("database")}"'
                return self._enter(user, f'host "{rest.get("peer")}", {where}', encrypted=encrypted)
            case {"ask": "token", "user": str(user), "token": str(token)}:
                return self._judge(user, token)
            case {"ask": "admitted"}:
                with self._changed:
                    self.accepted += 1
                return Answer(go="in")
            case {"ask": "refused", "code": str(code)}:
                return self._refuse(code, "")
        raise ValueError(f"the relay asked {question.get('ask')!r}")

    def counted(self) -> Counter[str]:
        """The refusals so far; a copy."""
        with self._changed:
            return Counter(self.refusals)

    def reset(self) -> None:
        """Go back to the policy of the start; nobody waits any longer."""
        with self._changed:
            self.policy = Policy()
            self._awake_at = 0.0
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
        self._wake()
        return Answer(go="ask" if self._has_rds_iam(user) else "in")

    def _judge(self, user: str, token: str) -> Answer:
        reason = reason_to_refuse(
            token, user=user, door=self.door, keys=self.keys, now=self._clock()
        )
        with self._changed:
            self.tokens.append(hashlib.sha256(token.encode()).hexdigest())
            if reason is None and not self.policy.iam_enabled:
                reason = "iam-disabled"
            if reason is None and self.policy.refuse_next > 0:
                self.policy.refuse_next -= 1
                reason = "intermittent"
        if reason is None:
            return Answer(go="in")
        return self._refuse(reason, f'PAM authentication failed for user "{user}"')

    def _refuse(self, reason: str, text: str) -> Answer:
        with self._changed:
            self.refusals[reason] += 1
        return Answer(go="refuse", code=NOT_AUTHORIZED, text=text)

    def pause(self, resume_s: float) -> None:
        """Let the next client wait ``resume_s`` seconds, and all that come meanwhile."""
        with self._changed:
            self.policy.resume_s = resume_s

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            if self.policy.resume_s is not None:
                self._awake_at = time.monotonic() + self.policy.resume_s
                self.policy.resume_s = None
            while not self._closed and (left_s := self._awake_at - time.monotonic()) > 0:
                self._changed.wait(left_s)
