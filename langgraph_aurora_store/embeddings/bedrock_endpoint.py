"""Where InvokeModel is sent and whom it trusts, as far as that is plain to see.

boto3's client knows every way to configure a call, and takes 0.15 s to make. What most programs
use of it is found here without one; a session that holds anything else is left to the client.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

from botocore.client import BaseClient, ClientCreator
from botocore.endpoint import Endpoint as ClientEndpoint
from botocore.session import Session
from botocore.utils import is_valid_endpoint_url, is_valid_ipv6_endpoint_url

from langgraph_aurora_store.config import environment

SERVICE = "bedrock-runtime"

# The regions' patterns and DNS suffixes of botocore's partitions.json, and the host names of its
# bedrock-runtime/endpoint-rule-set-1.json. Partitions that are not here are botocore's to resolve.
_PARTITIONS = (
    (re.compile(r"(us|eu|ap|sa|ca|me|af|il|mx)-[a-z]+-\d+"), "amazonaws.com", "api.aws"),
    (re.compile(r"us-gov-[a-z]+-\d+"), "amazonaws.com", "api.aws"),
    (re.compile(r"cn-[a-z]+-\d+"), "amazonaws.com.cn", "api.amazonwebservices.com.cn"),
)
# A call of a client goes through these events, in which anyone may have a hand.
_EVENTS = (
    "after-call",
    "after-call-error",
    "before-call",
    "before-endpoint-resolution",
    "before-parameter-build",
    "before-parse",
    "before-send",
    "before-sign",
    "choose-signer",
    "creating-client-class",
    "needs-retry",
    "provide-client-params",
    "request-created",
    "response-received",
)
# A client is made and called through these, which tracers and mocks put their own in place of.
_BOTOCORES: tuple[tuple[object, str], ...] = (
    (BaseClient, "__init__"),
    (BaseClient, "_make_api_call"),
    (ClientCreator, "create_client"),
    (ClientCreator, "_create_methods"),
    (ClientCreator, "_create_api_method"),
    (ClientEndpoint, "make_request"),
    (Session, "create_client"),
)
# On import, langchain_aws wraps what makes boto3's clients, to add its name to the user agent.
_KNOWN = ("boto3", "botocore", "langchain_aws")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A URL to send to, and what checks its certificate: a bundle's path, or True for botocore's.

    ``url`` may hold a path, which goes before InvokeModel's own.
    """

    url: str
    verify: str | bool


def find_endpoint(session: Session, region: str, url: str | None) -> Endpoint | None:
    """The endpoint that a client of ``session`` would use, or None where only a client can tell.

    ``url`` is the user's own, which wins over everything configured.
    """
    if _is_instrumented(session) or _is_customized(session):
        return None
    found = _find_url(session, region, url)
    verify = session.get_config_variable("ca_bundle")
    if verify is None:
        verify = environment().get("REQUESTS_CA_BUNDLE", True)
    if found is None or not str(verify).strip():
        return None
    is_valid = is_valid_endpoint_url(found) or is_valid_ipv6_endpoint_url(found)
    return Endpoint(found, verify) if is_valid else None


def _is_instrumented(session: Session) -> bool:
    """Whether somebody watches or changes the calls of clients: a tracer, a mock, a handler."""
    if "create_client" in vars(session) or is_boto3_replaced():
        return True
    if not all(_is_original(owner, name) for owner, name in _BOTOCORES):
        return True
    try:
        # botocore has no public way to ask who listens.
        find = session.get_component("event_emitter")._emitter._handlers.prefix_search  # noqa: SLF001
    except AttributeError:
        return True
    return any(
        not str(getattr(handler, "__module__", "")).startswith(("boto3.", "botocore."))
        for event in _EVENTS
        for handler in find(f"{event}.{SERVICE}.InvokeModel")
    )


def is_boto3_replaced() -> bool:
    """Whether boto3, which is not imported for this, makes its clients another way than its own."""
    boto3 = sys.modules.get("boto3")
    module = sys.modules.get("boto3.session")
    if boto3 is None or module is None:
        return False
    return not (_is_original(boto3, "client") and _is_original(module.Session, "client"))


def _is_original(owner: object, name: str) -> bool:
    """Whether a function is the SDK's own, as is each that it wraps, or known to do no harm.

    The name of its module tells nothing: ``functools.wraps`` copies it.
    """
    function = vars(owner).get(name)
    while type(function) is FunctionType:
        if function.__globals__.get("__name__", "").partition(".")[0] not in _KNOWN:
            return False
        if not hasattr(function, "__wrapped__"):
            return True
        function = function.__wrapped__
    return False


def _is_customized(session: Session) -> bool:
    """Whether a setting is in force that changes calls and is not understood here."""
    loader = session.get_component("data_loader")
    return bool(
        environment().get("AWS_BEARER_TOKEN_BEDROCK")
        or environment().get("BOTOCORE_EXPERIMENTAL__PLUGINS")
        or session.get_default_client_config() is not None
        or session.get_config_variable("auth_scheme_preference")
        or session.get_config_variable("csm_enabled")
        or session.get_config_variable("defaults_mode") != "legacy"
        or SERVICE in session.get_config_variable("api_versions")
        or SERVICE in session.get_scoped_config()  # its signature_version
        or any(
            Path(path, SERVICE).is_dir()
            for path in loader.search_paths
            if not loader.is_builtin_path(path)
        )
    )


def _find_url(session: Session, region: str, url: str | None) -> str | None:
    """The URL given, else the one in the environment, else the region's; None if in doubt."""
    fips = session.get_config_variable("use_fips_endpoint")
    dualstack = session.get_config_variable("use_dualstack_endpoint")
    if url is None and not session.get_config_variable("ignore_configured_endpoint_urls"):
        names = ("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "AWS_ENDPOINT_URL")
        url = next(filter(None, map(environment().get, names)), None)
        if url is None and session.get_scoped_config().keys() & {"endpoint_url", "services"}:
            return None
    if url is not None:
        return None if fips or dualstack else url
    for pattern, suffix, dualstack_suffix in _PARTITIONS:
        if pattern.fullmatch(region):
            name = f"{SERVICE}-fips" if fips else SERVICE
            return f"https://{name}.{region}.{dualstack_suffix if dualstack else suffix}"
    return None
