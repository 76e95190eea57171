"""An AWS session, used as little as possible: its region, its credentials, its clients.

botocore is imported when something is first asked of AWS, never with the package; boto3 is not
imported at all.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, overload
from weakref import ref

from langgraph_aurora_store.aws import credential_failures as sources
from langgraph_aurora_store.aws.credential_failures import (
    Session,
)
from langgraph_aurora_store.aws.credential_renewal import SessionKeys, shared_keys
from langgraph_aurora_store.config import environment
from langgraph_aurora_store.errors import ConfigurationError, CredentialsError
from langgraph_aurora_store.fork_safety import ForkSafeLock, reinit_after_fork
from langgraph_aurora_store.sdk_log_redaction import redact_sdk_logs
from langgraph_aurora_store.validation import is_region

if TYPE_CHECKING:
    import botocore.session
    from botocore.awsrequest import AWSRequest
    from botocore.config import Config
    from botocore.credentials import ReadOnlyCredentials
    from mypy_boto3_bedrock_runtime import BedrockRuntimeClient
    from mypy_boto3_rds import RDSClient
    from mypy_boto3_secretsmanager import SecretsManagerClient

REGION_ORDER = (
    "looked for in the session, AWS_REGION, AWS_DEFAULT_REGION and the profile, in this order"
)


class Region(NamedTuple):
    """A region, and where it was found, for messages."""

    name: str
    source: str

    def __str__(self) -> str:
        return f"{self.name!r} (from {self.source})"


class AwsSession:
    """One AWS session, the user's or the default one, for the database and for Bedrock alike.

    The default is boto3's own, if the process has set one up, else botocore's; it is asked for at
    each use, see `default_session` for what gets another. Thread-safe.
    """

    def __init__(self, session: Session | None = None) -> None:
        self._given = session
        self._lock = ForkSafeLock()
        self._client_lock = ForkSafeLock()  # a session makes one client at a time
        self._keys: SessionKeys | None = None
        reinit_after_fork(self)

    def __repr__(self) -> str:
        kind = "default session" if self._given is None else type(self._given).__name__
        return f"AwsSession({kind})"

    def reinit(self) -> None:
        """In a forked child: free the lock of the session's credentials.

        A thread of the parent may have been refreshing them. Credentials that these are made of in
        turn, as an assumed role's are, keep their own locks.
        """
        # Names of botocore 1.44; a version that has others is left alone.
        session = self._keys.session if self._keys else self._given
        core = getattr(session, "_session", session)
        credentials: Any = getattr(core, "_credentials", None)
        lock = getattr(credentials, "_refresh_lock", None)
        if isinstance(lock, type(threading.Lock())) and lock.locked():
            credentials._refresh_lock = threading.Lock()  # noqa: SLF001 - nothing public does

    @property
    def is_given(self) -> bool:
        """Whether the user chose the session: passed it, or set it up as boto3's default."""
        return self._given is not None or _default_of_boto3() is not None

    @property
    def makes_own_clients(self) -> bool:
        """Whether the session is of a class of the user's, whose clients may sign as they like."""
        import botocore.session

        session = self.open()
        boto3 = sys.modules.get("boto3.session")
        for base in (botocore.session.Session, getattr(boto3, "Session", None)):
            if base is not None and isinstance(session, base):
                made_by = ("client", "create_client", "get_credentials")
                kind = type(session)
                return any(getattr(kind, n, None) is not getattr(base, n, None) for n in made_by)
        return True

    def region(self, environ: Mapping[str, str] | None = None) -> Region | None:
        """The region of whatever has none of its own; the one rule for database and Bedrock.

        A session that was chosen says it first, then ``AWS_REGION``, ``AWS_DEFAULT_REGION``, then
        the profile of the default session.

        Raises:
            ConfigurationError: what was found is no region's name.
            CredentialsError: the AWS configuration could not be read.
        """
        environ = environment() if environ is None else environ
        for name, source in self._regions(environ):
            if name and not is_region(name):
                raise ConfigurationError(
                    f"region={name!r}, from {source}, is wrong: set one such as 'us-east-1' there,"
                    " or pass region="
                )
            if name:
                return Region(name, source)
        return None

    def _regions(self, environ: Mapping[str, str]) -> Iterator[tuple[str | None, str]]:
        session = self.open()
        if self.is_given:
            yield _region_of(session), "the session"
        for variable in ("AWS_REGION", "AWS_DEFAULT_REGION"):
            yield environ.get(variable), variable
        if not self.is_given:
            yield _region_of(session), f"profile {sources.profile_of(session)!r}"

    def credentials(self) -> ReadOnlyCredentials:
        """The keys that sign now. Blocking, for as long as `wait_at_most` lets it.

        botocore loads and renews them, in a thread of its own when that may take a network. Keys
        that still hold are used while a renewal fails or is late.

        Raises:
            CredentialsError: there are none, or their source failed or is late.
        """
        return self._keys_of_session().get()

    @overload
    def client(self, service: Literal["rds"], region: str) -> RDSClient: ...
    @overload
    def client(self, service: Literal["secretsmanager"], region: str) -> SecretsManagerClient: ...
    @overload
    def client(
        self,
        service: Literal["bedrock-runtime"],
        region: str,
        config: Config,
        endpoint_url: str | None,
    ) -> BedrockRuntimeClient: ...
    def client(
        self,
        service: str,
        region: str,
        config: Config | None = None,
        endpoint_url: str | None = None,
    ) -> object:
        """A client of the session; without ``config`` one that gives up within seconds.

        Ask for `credentials` first: a client loads them when it is made, however long that takes.
        Each request is signed with what `credentials` gives then, unless `makes_own_clients`.
        """
        from botocore.config import Config

        session: Any = self.open()
        make = getattr(session, "client", None) or session.create_client
        brief = Config(
            connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 2}
        )
        given = {"endpoint_url": endpoint_url} if endpoint_url else {}
        with self._client_lock, redact_sdk_logs():
            client = make(service, region_name=region, config=config or brief, **given)
        if not self.makes_own_clients:
            client.meta.events.register("before-sign", partial(_sign_with_ready_keys, self))
        return client

    def open(self) -> Session:
        """The session itself."""
        return self._keys_of_session().session

    def _keys_of_session(self) -> SessionKeys:
        with self._lock:
            session = self._given or _default_of_boto3() or default_session()
            if self._keys is None or self._keys.session is not session:
                self._keys = shared_keys(session)
            return self._keys


def _sign_with_ready_keys(
    aws: AwsSession, request: AWSRequest, signature_version: object, **_: object
) -> None:
    """Have botocore sign with keys that are at hand: its own renewal could hang, or fail early.

    botocore 1.44 signs with ``request_credentials`` of a request where it has them, as S3's own
    handlers give it.
    """
    from botocore.credentials import Credentials

    if signature_version in ("v4", "v4a"):
        access_key, secret_key, token, *_rest = aws.credentials()
        keys = Credentials(access_key or "", secret_key or "", token)
        request.context.setdefault("signing", {})["request_credentials"] = keys


def _region_of(session: Any) -> str | None:
    """The region that a session itself says.

    Raises:
        CredentialsError: its configuration could not be read.
    """
    failure = None
    try:
        if hasattr(session, "region_name"):
            return str(session.region_name or "") or None
        return str(session.get_config_variable("region") or "") or None
    except Exception as error:  # a profile that is missing, a file that cannot be parsed
        failure = CredentialsError(f"the AWS configuration could not be read: {error}")
    raise failure


def _default_of_boto3() -> Session | None:
    """The session that the process has set up as boto3's default, for other than its own chain.

    One that boto3 made by the way, for ``boto3.client(...)``, holds what the environment said
    then; `default_session` reads that afresh.
    """
    session: Any = getattr(sys.modules.get("boto3"), "DEFAULT_SESSION", None)
    core = getattr(session, "_session", None)
    if core is None:
        return session  # type: ignore[no-any-return]  # None, or a stand-in
    loaded = getattr(core, "_credentials", None)
    is_plain = not core.instance_variables() and (
        loaded is None or getattr(loaded, "method", None) in _READ_AFRESH
    )
    return None if is_plain and _is_of_botocore(session, core) else session


_READ_AFRESH = frozenset({"env", "shared-credentials-file", "config-file"})


def _is_of_botocore(session: object, core: Any) -> bool:
    """Whether a session looks for credentials as botocore does, by no class or provider else."""
    if {type(session).__module__, type(core).__module__} != {"boto3.session", "botocore.session"}:
        return False
    try:
        providers = core.get_component("credential_provider").providers
    except Exception:  # a file that cannot be parsed, which using the session tells of
        return True
    is_botocores = all(type(one).__module__ == "botocore.credentials" for one in providers)
    return is_botocores and {one.METHOD for one in providers} >= _READ_AFRESH


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
