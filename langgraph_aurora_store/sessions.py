"""botocore's default session, made once for all that ask in the same circumstances.

The signer of a store's tokens and the caller of its embedding model both need one. Making it takes
5 ms of a cold start, and its credentials may come over the network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from weakref import ref

from langgraph_aurora_store.config import environment
from langgraph_aurora_store.forks import ForkSafeLock

if TYPE_CHECKING:
    from botocore.session import Session

Circumstances: TypeAlias = tuple[object, ...]

_FILES = {
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
}
_lock = ForkSafeLock()
_last: tuple[Circumstances, ref[Session]] | None = None


def default_session() -> Session:
    """A session of botocore's own chain; the last one, while it is in use and nothing has changed.

    What a session reads it keeps. So another process, other ``AWS_`` variables and changed
    configuration files get a new one.
    """
    global _last
    import botocore.session

    now = _circumstances(environment())
    with _lock:
        session = _last[1]() if _last and _last[0] == now else None
        if session is None:
            session = botocore.session.Session()
            _last = now, ref(session)
        return session


def _circumstances(environ: Mapping[str, str]) -> Circumstances:
    variables = {name: value for name, value in environ.items() if name.startswith("AWS_")}
    files = (environ.get(name, default) for name, default in _FILES.items())
    return os.getpid(), environ.get("HOME"), variables, *map(_changed, files)


def _changed(file: str) -> tuple[int, int] | None:
    """When a file was last written, and its length; None where there is none."""
    try:
        found = Path(file).expanduser().stat()
    except (OSError, RuntimeError):
        return None
    return found.st_mtime_ns, found.st_size
