"""How the server is verified: sslmode and trust store."""

from __future__ import annotations

import inspect
import os.path
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

from langgraph_aurora_store.connect.environment import connect_defaults
from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.validation import brief_unless_secret

SslMode: TypeAlias = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]

# The RDS authorities of 32 regions of the commercial partition (docs/connecting.md names those that
# are missing) and the public Amazon roots, which certify RDS Proxy, in one file:
# truststore.pki.rds.amazonaws.com and amazontrust.com/repository. libpq reads it for each
# connection, and takes no context that could be kept.
BUNDLED = Path(__file__).with_name("data") / "rds-trust.pem"

_LOST: dict[SslMode, str] = {
    "disable": "nothing is encrypted: the password or token is sent in plain text",
    "allow": "encryption is not required: the password or token may be sent in plain text",
    "prefer": "encryption is not required: the password or token may be sent in plain text",
    "require": "the server is not verified: anyone in between can read the password or token",
    "verify-ca": "the host name is not verified: any server of these authorities is believed",
}


class InsecureTlsWarning(UserWarning):
    """A weaker sslmode than ``verify-full`` was asked for."""


class Tls(NamedTuple):
    """A checked sslmode and the trust store it needs; ``None`` where the mode verifies nothing."""

    sslmode: SslMode = "verify-full"
    sslrootcert: str | None = str(BUNDLED)

    def kwargs(self) -> dict[str, str]:
        """The libpq parameters."""
        store = {"sslrootcert": self.sslrootcert} if self.sslrootcert else {}
        return {"sslmode": self.sslmode, **store}


def verify(
    sslmode: str = "verify-full",
    sslrootcert: str | Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> Tls:
    """Choose sslmode and trust store, warning of a mode weaker than ``verify-full``.

    The store is ``sslrootcert``, else ``PGSSLROOTCERT``, else the bundled one.

    Raises:
        ConfigurationError: no such mode, or no such file.
    """
    mode = _checked_mode(sslmode)
    default = connect_defaults(environ).sslrootcert or BUNDLED
    if mode.startswith("verify-"):
        store = str(default if sslrootcert is None else sslrootcert)
        if store != "system" and not os.path.isfile(store):
            source = "PGSSLROOTCERT" if sslrootcert is None else "sslrootcert="
            raise ConfigurationError(
                f"{source} names {brief_unless_secret(store)}, which is not a file; leave it out to"
                " use the bundled Amazon RDS authorities"
            )
        tls = Tls(mode, store)
    else:
        # With a trust store libpq would verify more than was asked for.
        tls = Tls(mode, str(sslrootcert) if sslrootcert else None)
    if mode in _LOST:
        warnings.warn(f"sslmode={mode!r}: {_LOST[mode]}", InsecureTlsWarning, _callers_level())
    return tls


def _callers_level() -> int:
    # How deep the first line outside the package is, counted from `verify`.
    level, frame = 1, inspect.currentframe()
    frame = frame.f_back if frame else None
    while frame and str(frame.f_globals.get("__name__")).startswith("langgraph_aurora_store."):
        level, frame = level + 1, frame.f_back
    return level


def _checked_mode(sslmode: str) -> SslMode:
    for mode in get_args(SslMode):
        if mode == sslmode:
            return mode  # type: ignore[no-any-return]  # get_args is not typed
    raise ConfigurationError(
        f"sslmode={brief_unless_secret(sslmode)} is unknown; one of {', '.join(get_args(SslMode))}"
    )
