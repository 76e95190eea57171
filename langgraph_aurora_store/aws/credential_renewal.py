"""A session's keys: loaded and renewed once for all callers, within their time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from langgraph_aurora_store.aws import credential_failures as sources
from langgraph_aurora_store.aws.credential_failures import (
    Session,
    frames_of_error,
    frames_of_thread,
)
from langgraph_aurora_store.aws.single_flight import SingleFlight
from langgraph_aurora_store.errors import CredentialsError
from langgraph_aurora_store.fork_safety import ForkSafeLock
from langgraph_aurora_store.sdk_log_redaction import redact_sdk_logs

if TYPE_CHECKING:
    from botocore.credentials import Credentials, ReadOnlyCredentials


# Keys that hold for longer than this sign, while what renews them fails or is late.
_KEYS_HOLD_S = 10


# How long a caller with such keys waits for new ones.
_RENEWAL_WAIT_S = 1.0


_THREAD_NAME = "langgraph-aurora-store credentials"


class SessionKeys:
    """The keys of one session: loaded, renewed, and told of when late. Thread-safe."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._loaded: Credentials | None = None
        self._loading: SingleFlight[None] = SingleFlight(_THREAD_NAME)
        self._renewal: SingleFlight[ReadOnlyCredentials] = SingleFlight(_THREAD_NAME)

    def get(self) -> ReadOnlyCredentials:
        """As `AwsSession.credentials`."""
        if self._loaded is None:
            self._loading.call(self._load, late=partial(self._late, self._loading))
        loaded = self._loaded
        if loaded is not None and not _needs_renewal(loaded):
            return loaded.get_frozen_credentials()
        held = _keys_that_hold(loaded)
        wait_s = _RENEWAL_WAIT_S if held else None
        late = partial(self._late, self._renewal)
        try:
            return self._renewal.call(self._renew, late=late, wait_s=wait_s)
        except CredentialsError:
            if held is None:
                raise
        return held

    def _load(self) -> None:
        """Have botocore's chain find the credentials; runs in a thread of its own."""
        if self._loaded is not None:
            return  # by a call that ended just now
        failure: CredentialsError | None = None
        with redact_sdk_logs():
            try:
                self._loaded = self.session.get_credentials()
            except Exception as error:
                failure = sources.explain(error, self._source(frames_of_error(error)))
        if self._loaded is None:
            raise failure or sources.nothing_found(self.session)

    def _renew(self) -> ReadOnlyCredentials:
        """Ask for keys that are due, and maybe not there yet; runs in a thread of its own."""
        failure: CredentialsError | None = None
        with redact_sdk_logs():
            try:
                found = self._loaded.get_frozen_credentials() if self._loaded else None
            except Exception as error:
                found = None
                failure = sources.explain(error, self._source(frames_of_error(error)))
        if found is None:
            raise failure or sources.nothing_found(self.session)
        return found

    def _late(self, flight: SingleFlight[Any]) -> CredentialsError:
        return sources.still_waiting(self._source(frames_of_thread(flight.thread_id)))

    def _source(self, frames: Iterator[FrameType]) -> sources.Source:
        return sources.name_source(self.session, frames, getattr(self._loaded, "method", None))


_shared: WeakValueDictionary[int, SessionKeys] = WeakValueDictionary()


_shared_lock = ForkSafeLock()


def shared_keys(session: Session) -> SessionKeys:
    """The keys of a session, for all that use it: a source that hangs hangs once for them."""
    with _shared_lock:
        found = _shared.get(id(session))  # which holds the session, so its id is no other's
        if found is None:
            found = _shared[id(session)] = SessionKeys(session)
        return found


def _needs_renewal(credentials: Any) -> bool:
    """Whether asking for the keys may take a network; unknown kinds are asked in a thread."""
    from botocore.credentials import Credentials

    if type(credentials) is Credentials:
        return False
    asks = getattr(credentials, "refresh_needed", None)
    return asks is None or bool(asks())


def _keys_that_hold(credentials: Any) -> ReadOnlyCredentials | None:
    """The keys at hand of credentials that a renewal is due for, unless they are about to end."""
    # botocore 1.44 shows them in no public way that does not renew them first.
    keys: ReadOnlyCredentials | None = getattr(credentials, "_frozen_credentials", None)
    if keys is None or credentials.refresh_needed(refresh_in=_KEYS_HOLD_S):
        return None
    return keys
