"""What a caller may pass to reach Bedrock, looked at before anything is imported or opened."""

from __future__ import annotations

import re
from types import ModuleType
from urllib.parse import urlsplit

from langgraph_aurora_store.errors import ConfigurationError

_REGION = re.compile(r"[A-Za-z0-9-]+")


def check_region(region: object) -> None:
    """Refuse what no host name and no signature could hold; a misspelt region is found later."""
    if not isinstance(region, str) or not _REGION.fullmatch(region):
        raise ConfigurationError(f"region={region!r}: pass a region such as 'us-east-1'")


def check_endpoint_url(url: object) -> None:
    """Refuse anything but an address to send to."""
    if not _is_url(url):
        # A URL may hold a password.
        shown = repr(url) if isinstance(url, str) and "@" not in url else type(url).__name__
        raise ConfigurationError(
            f"endpoint_url={shown}: pass a URL such as "
            "'https://bedrock-runtime-fips.us-east-1.amazonaws.com'"
        )


def check_session(session: object) -> None:
    """Refuse what makes no client: a profile's name, a class, the module boto3."""
    is_made = not isinstance(session, type | ModuleType)
    if not is_made or not (hasattr(session, "client") or hasattr(session, "create_client")):
        raise ConfigurationError(
            f"session= of type {type(session).__name__}: pass a boto3.Session, such as "
            "boto3.Session(profile_name='dev')"
        )


def check_client(client: object) -> None:
    """Refuse what cannot invoke a model, such as a client of another service."""
    if isinstance(client, type) or not hasattr(client, "invoke_model"):
        raise ConfigurationError(
            f"client= of type {type(client).__name__}: pass a client of 'bedrock-runtime'"
        )


def _is_url(url: object) -> bool:
    if not isinstance(url, str) or re.search(r"\s", url):
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
