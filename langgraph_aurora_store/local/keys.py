"""The AWS keys that a local Aurora knows: made up, or those of somebody's session."""

from __future__ import annotations

import secrets
import string
from typing import TYPE_CHECKING

from langgraph_aurora_store.errors import CredentialsError
from langgraph_aurora_store.local.tokens import Keys

if TYPE_CHECKING:
    import boto3


def made_up(session_token: str | None) -> Keys:
    """Keys of the form that AWS gives; temporary ones with a session token."""
    return Keys(
        access_key=f"AKIA{letters(string.ascii_uppercase + '234567', 16)}",
        secret_key=secrets.token_urlsafe(30),
        session_token=session_token,
    )


def of_session(session: boto3.Session) -> Keys:
    """The keys that a session has now.

    Raises:
        CredentialsError: it has none.
    """
    credentials = session.get_credentials()
    now = credentials.get_frozen_credentials() if credentials else None
    if now is None or now.access_key is None or now.secret_key is None:
        raise CredentialsError("the session has no AWS credentials; leave keys_of out")
    return Keys(access_key=now.access_key, secret_key=now.secret_key, session_token=now.token)


def letters(alphabet: str, length: int) -> str:
    """So many random letters of an alphabet."""
    return "".join(secrets.choice(alphabet) for _ in range(length))
