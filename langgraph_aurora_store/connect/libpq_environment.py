"""libpq's environment variables: what counts beside the parameters, and what is kept out.

libpq reads a variable for each parameter that it is not given, and files below ``~/.postgresql``.
So every parameter is given. docs/connecting.md has the table; a test holds it against the
variables that the libpq in use knows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache

from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.validation import brief

# A path that cannot exist: libpq then looks for no file of this kind, in no home directory.
_NO_FILE = f"{os.devnull}/none"

# Given with every connection, whatever the environment says.
_GIVEN: Mapping[str, str] = {
    "hostaddr": "",  # unless an alias is dialled
    "options": "",  # a search_path in it would hide the tables; poolers refuse start-up options
    "client_encoding": "UTF8",
    "target_session_attrs": "any",
    "load_balance_hosts": "disable",
    "require_auth": "!gss,!sspi",  # an empty one would allow nothing
    "requirepeer": "",
    "channel_binding": "prefer",  # an IAM token is sent without
    "gssencmode": "disable",  # RDS offers none over its endpoints, and asking costs a trip
    "gssdelegation": "0",
    "krbsrvname": "postgres",
    # RDS never asks for a client's certificate; a home that may not be entered would be an error.
    "sslcert": _NO_FILE,
    "sslkey": _NO_FILE,
    "sslcertmode": "disable",
    "sslcompression": "0",
    "sslsni": "1",
    "sslnegotiation": "postgres",
    "ssl_min_protocol_version": "TLSv1.2",
    "ssl_max_protocol_version": "",
    "min_protocol_version": "3.0",
    "max_protocol_version": "3.0",
}


def libpq_parameters(environ: Mapping[str, str]) -> dict[str, str]:
    """What to give libpq so that its environment changes nothing about a connection.

    Raises:
        ConfigurationError: a variable is set that no parameter overrides.
    """
    if "PGSERVICE" in environ:
        service = brief(environ["PGSERVICE"])
        raise ConfigurationError(
            f"the environment variable PGSERVICE is set, to {service}, and libpq"
            " would read a service file for each connection; unset it (from_conn_string() is for"
            " services)"
        )
    given = {**_GIVEN, **_stricter(environ)}
    return {name: value for name, value in given.items() if name in _known()}


def _stricter(environ: Mapping[str, str]) -> dict[str, str]:
    """What the environment may ask for in addition, as it verifies more."""
    stricter = {}
    if environ.get("PGSSLMINPROTOCOLVERSION") == "TLSv1.3":
        stricter["ssl_min_protocol_version"] = "TLSv1.3"
    if not (environ.get("PGSSLCRL") or environ.get("PGSSLCRLDIR")):
        stricter["sslcrl"] = _NO_FILE  # else that of the home directory, where there is one
    return stricter


@cache
def _known() -> frozenset[str]:
    """The parameters of the libpq in use; an older one has fewer."""
    from psycopg.pq import Conninfo

    return frozenset(default.keyword.decode() for default in Conninfo.get_defaults())
