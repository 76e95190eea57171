"""An AWS session, used as little as possible: region, credentials, a signer, a client.

botocore is imported when something is first asked of AWS, never with the package.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload
from weakref import ref

from langgraph_aurora_store import config
from langgraph_aurora_store.config import environment
from langgraph_aurora_store.errors import CredentialsError
from langgraph_aurora_store.fork_safety import ForkSafeLock, reinit_after_fork

if TYPE_CHECKING:
    import boto3.session
    import botocore.session
    from botocore.credentials import Credentials as AwsCredentials
    from botocore.hooks import BaseEventHooks
    from botocore.signers import RequestSigner
    from mypy_boto3_rds import RDSClient
    from mypy_boto3_secretsmanager import SecretsManagerClient

Session: TypeAlias = "boto3.session.Session | botocore.session.Session"

# botocore writes canonical requests, signatures, session tokens and response bodies (a secret's
# string, an assumed role's key) into these at DEBUG.
_TALKATIVE = ("botocore.auth", "botocore.endpoint", "botocore.parsers")
_hushed: ContextVar[bool] = ContextVar("hushed", default=False)


def _is_not_hushed(_record: logging.LogRecord) -> bool:
    return not _hushed.get()


@contextmanager
def hush() -> Iterator[None]:
    """Keep the SDK's DEBUG lines that hold secrets out of the logs, in this block only."""
    for name in _TALKATIVE:
        logging.getLogger(name).addFilter(_is_not_hushed)  # adding it again does nothing
    token = _hushed.set(True)
    try:
        yield
    finally:
        _hushed.reset(token)


class Aws:
    """One AWS session, the user's or botocore's default, made when first needed. Thread-safe.

    The default is asked for at each use: see `default_session` for what gets another.
    """

    def __init__(self, session: Session | None = None) -> None:
        self._given = session
        self._session = session
        self._lock = ForkSafeLock()
        self._signers: dict[str, RequestSigner] = {}
        self._emitter: BaseEventHooks | None = None  # signers refer to it weakly
        reinit_after_fork(self)

    def __repr__(self) -> str:
        return f"Aws({'default session' if self._given is None else type(self._given).__name__})"

    def reinit(self) -> None:
        """In a forked child: free the lock of the given session's credentials.

        A thread of the parent may have been refreshing them. Credentials that these are made of in
        turn, as an assumed role's are, keep their own locks.
        """
        # Of botocore 1.44; what another version calls otherwise is let be.
        core = getattr(self._given, "_session", self._given)
        credentials: Any = getattr(core, "_credentials", None)
        lock = getattr(credentials, "_refresh_lock", None)
        if isinstance(lock, type(threading.Lock())) and lock.locked():
            credentials._refresh_lock = threading.Lock()  # noqa: SLF001 - nothing public does

    def region(self, environ: Mapping[str, str] | None = None) -> str | None:
        """The session's own region, else that of ``AWS_REGION`` or ``AWS_DEFAULT_REGION``."""
        session: Any = self._open()
        with sdk_errors("the AWS configuration could not be read"):
            if hasattr(session, "region_name"):
                region = session.region_name
            else:
                region = session.get_config_variable("region")
        return region or config.connect_defaults(environ).region

    def credentials(self) -> AwsCredentials:
        """The session's credentials; botocore refreshes them itself.

        Raises:
            CredentialsError: there are none, or their source failed.
        """
        session = self._open()
        with self._lock, hush(), sdk_errors("no AWS credentials could be obtained"):
            found = session.get_credentials()
        if found is None:
            raise CredentialsError(
                "no AWS credentials found; pass session=, set AWS_PROFILE or AWS_ACCESS_KEY_ID and"
                " AWS_SECRET_ACCESS_KEY, or run with a role (Lambda, ECS, EKS, EC2)"
            )
        return found

    def signer(self, region: str) -> RequestSigner:
        """The signer of ``rds-db:connect`` tokens for a region; it is kept, tokens are not."""
        with self._lock:
            self._open()
            signer = self._signers.get(region)
            if signer is None:
                signer = self._signers[region] = self._make_signer(region)
            return signer

    def _make_signer(self, region: str) -> RequestSigner:
        # A whole rds client takes 0.2 to 0.3 s to make, and signs with just this object.
        from botocore.hooks import HierarchicalEmitter
        from botocore.model import ServiceId
        from botocore.signers import RequestSigner

        self._emitter = self._emitter or HierarchicalEmitter()
        return RequestSigner(
            ServiceId("rds-db"), region, "rds-db", "v4", self.credentials(), self._emitter
        )

    @overload
    def client(self, service: Literal["rds"], region: str | None) -> RDSClient: ...
    @overload
    def client(
        self, service: Literal["secretsmanager"], region: str | None
    ) -> SecretsManagerClient: ...
    def client(self, service: str, region: str | None) -> object:
        """A client that gives up within seconds: a user waits behind it."""
        from botocore.config import Config

        session: Any = self._open()
        make = getattr(session, "client", None) or session.create_client
        config = Config(
            connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 2}
        )
        with self._lock, hush():
            return make(service, region_name=region, config=config)

    def _open(self) -> Session:
        with self._lock:
            session = self._given or default_session()
            if session is not self._session:
                self._session, self._signers = session, {}
            return session


@contextmanager
def sdk_errors(what_failed: str) -> Iterator[None]:
    """Turn what the SDK raises into a `CredentialsError`; a token's file may be missing, too."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, OSError) as error:
        raise CredentialsError(f"{what_failed}: {error}") from error


Circumstances: TypeAlias = tuple[object, ...]

_FILES = {
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
}
_lock = ForkSafeLock()
_last: tuple[Circumstances, ref[botocore.session.Session]] | None = None


def default_session() -> botocore.session.Session:
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
