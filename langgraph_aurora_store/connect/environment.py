"""What the environment says of where to connect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from langgraph_aurora_store.config import environment


class ConnectDefaults(NamedTuple):
    """What the environment says of where to connect; ``None`` where it says nothing."""

    cluster: str | None
    user: str | None
    database: str | None
    region: str | None
    sslrootcert: str | None
    application_name: str | None
    on_lambda: bool


NO_DEFAULTS = ConnectDefaults(None, None, None, None, None, None, on_lambda=False)


def connect_defaults(environ: Mapping[str, str] | None = None) -> ConnectDefaults:
    """Read the connection's defaults; an empty variable is an absent one."""
    environ = environment() if environ is None else environ
    return ConnectDefaults(
        cluster=environ.get("AURORA_CLUSTER") or None,
        user=environ.get("AURORA_USER") or None,
        database=environ.get("AURORA_DATABASE") or None,
        region=environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or None,
        sslrootcert=environ.get("PGSSLROOTCERT") or None,
        application_name=environ.get("PGAPPNAME") or None,
        # Lambda developer guide, "Defined runtime environment variables".
        on_lambda=bool(environ.get("AWS_LAMBDA_FUNCTION_NAME")),
    )
