"""Where AWS credentials come from, by name, and what its failures mean. No secret is repeated."""

from __future__ import annotations

import http.client
import json
import re
import sys
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from langgraph_aurora_store.aws.error_codes import is_passing
from langgraph_aurora_store.errors import CredentialsError

if TYPE_CHECKING:
    import boto3.session
    import botocore.session

Session: TypeAlias = "boto3.session.Session | botocore.session.Session"

_LONGEST_DETAIL = 400
_NO_SOURCE = (
    "no AWS credentials found; pass session=, set AWS_PROFILE or AWS_ACCESS_KEY_ID and"
    " AWS_SECRET_ACCESS_KEY, or run with a role (Lambda, ECS, EKS, EC2)"
)
_TRUST = (
    "see the role and its trust policy, and the credentials or the token that it is asked for with"
)


_NO_REGION = (
    "a region to ask in is needed, and botocore does not read AWS_REGION for it: set"
    " AWS_DEFAULT_REGION, or region in the profile"
)


class Source(NamedTuple):
    """A source of credentials: botocore's name of its kind, what to call it, what to do."""

    method: str
    name: str
    remedy: str


SESSION = Source("", "the session", _TRUST)
# By the METHOD of botocore 1.44's providers, which their credentials carry. {profile} is filled in.
_SOURCES = {
    "explicit": ("the keys passed to the session", "pass keys that hold"),
    "env": (
        "the environment (AWS_ACCESS_KEY_ID)",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither",
    ),
    "assume-role": ("the role of profile {profile}, assumed with STS", _TRUST),
    "assume-role-with-web-identity": (
        "a web identity, AWS_WEB_IDENTITY_TOKEN_FILE or profile {profile}, with STS",
        _TRUST,
    ),
    "sso": (
        "IAM Identity Center (SSO), profile {profile}",
        "run: aws sso login --profile {profile}",
    ),
    "login": ("aws login, profile {profile}", "run: aws login --profile {profile}"),
    "shared-credentials-file": (
        "the credentials file, profile {profile}",
        "see AWS_SHARED_CREDENTIALS_FILE or ~/.aws/credentials",
    ),
    "config-file": (
        "the configuration file, profile {profile}",
        "see AWS_CONFIG_FILE or ~/.aws/config",
    ),
    "custom-process": (
        "credential_process of profile {profile}",
        "run its command by hand to see what it says",
    ),
    "container-role": (
        "the container agent (AWS_CONTAINER_CREDENTIALS_FULL_URI or _RELATIVE_URI)",
        "see that the agent runs, that the pod or task has a role, and the agent's own log",
    ),
    "iam-role": (
        "the instance metadata service (IMDS)",
        "see that the instance has a role, and in a container that IMDSv2's hop limit is 2",
    ),
}


def name_source(session: Session, frames: Iterator[FrameType], method: str | None) -> Source:
    """The source that these frames are in, the innermost first; else that of ``method``."""
    from botocore.credentials import CredentialProvider

    profile: object = None
    for frame in frames:
        provider = frame.f_locals.get("self")
        if isinstance(provider, CredentialProvider):
            method = method or str(provider.METHOD)
            profile = getattr(provider, "_profile_name", None)
            break
        if frame.f_code is _trouble_of_imds.__code__:
            method = "iam-role"
            break
    name, remedy = _SOURCES.get(
        method or "",
        (f"a source of the session ({method or 'its own chain'})", _TRUST),
    )
    profile = profile or profile_of(session)
    return Source(
        method or "",
        name.format(profile=repr(profile)),
        remedy.format(profile=profile),
    )


def frames_of_thread(thread_id: int | None) -> Iterator[FrameType]:
    """Where a thread is now, the innermost frame first."""
    frame = sys._current_frames().get(thread_id or 0)  # noqa: SLF001 - documented, for debuggers
    while frame is not None:
        yield frame
        frame = frame.f_back


def frames_of_error(error: Exception) -> Iterator[FrameType]:
    """Where an error came through, the innermost frame first."""
    return (frame for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))))


def explain(error: Exception, source: Source) -> CredentialsError:
    """The error for a source that failed: its name, what was wrong, what to do.

    The original is no cause of it: its text, its request or its frames may hold a key.
    """
    detail, is_transient = _detail(error, source)
    failure = CredentialsError(
        f"AWS credentials could not be obtained from {source.name}: {detail}; {source.remedy}"
    )
    failure.is_transient = is_transient
    return failure


def still_waiting(source: Source) -> CredentialsError:
    """The error for a source that has not answered in its caller's time."""
    failure = CredentialsError(
        f"AWS credentials could not be obtained from {source.name}: no answer yet; {source.remedy}"
    )
    failure.is_transient = True
    return failure


def nothing_found(session: Session) -> CredentialsError:
    """The error where botocore's chain ended without credentials; asks the metadata service why.

    botocore takes a metadata service that is late, or fails, for one that is not there.
    """
    trouble = _trouble_of_imds(session)
    if trouble is None:
        return CredentialsError(_NO_SOURCE)
    source = name_source(session, iter(()), "iam-role")
    failure = CredentialsError(
        f"AWS credentials could not be obtained from {source.name}: {trouble}; {source.remedy}"
    )
    failure.is_transient = True
    return failure


def profile_of(session: Any) -> str:
    """The profile that a session of either kind reads."""
    found = getattr(session, "profile_name", None) or getattr(session, "profile", None)
    return str(found or "default")


def _detail(error: Exception, source: Source) -> tuple[str, bool]:
    """What was wrong, in words that hold no secret, and whether it may pass."""
    from botocore import exceptions as aws

    if isinstance(error, aws.ClientError):
        return _one_line(error), is_passing(error)
    if is_passing(error):
        return f"it did not answer ({type(error).__name__})", True
    if isinstance(error, aws.CredentialRetrievalError):
        return _detail_of_retrieval(str(error.kwargs.get("error_msg", "")), source)
    if isinstance(error, RuntimeError) and "still expired" in str(error):
        return (
            "what it gave has expired already (or this machine's clock is wrong)",
            source.method in ("iam-role", "container-role"),
        )
    if isinstance(error, EOFError | aws.RefreshWithMFAUnsupportedError):
        return "it needs an MFA code, and there is no terminal to ask on", False
    if isinstance(error, aws.NoRegionError):
        return _NO_REGION, False
    if isinstance(error, aws.BotoCoreError | OSError):
        return _one_line(error), False
    return _detail_of_answer(error), False


def _detail_of_answer(error: Exception) -> str:
    """What was wrong with an answer that botocore could not read; its text is not repeated."""
    said = str(error)
    if isinstance(error, KeyError):
        return f"its answer lacks {_key(error)}"
    if isinstance(error, UnicodeError | json.JSONDecodeError):
        return "its answer is no JSON"
    if "legal header" in said:
        return (
            "the token in AWS_CONTAINER_AUTHORIZATION_TOKEN or its file has a line break: write it"
            " without one"
        )
    if said.startswith("Unsupported host"):
        return _one_line(said)
    return f"its answer has another form than botocore expects ({type(error).__name__})"


_STATUS = re.compile(r"non 200 response (\d+)")


def _detail_of_retrieval(said: str, source: Source) -> tuple[str, bool]:
    if source.method == "container-role":
        status = _STATUS.search(said)
        if status:  # what follows is the answer itself
            code = int(status[1])
            return f"it answered {code}", code >= 500 or code in (408, 429)
        if "parse JSON" in said:
            return "its answer is no JSON, or was cut off", True
        return "it did not answer", True
    if source.method == "iam-role":
        return "it gave no complete credentials", True
    if source.method == "custom-process":
        known = ("Unsupported version", "Missing required key")
        shown = _one_line(said) if said.startswith(known) else "its command ended with an error"
        return shown, False
    return _one_line(said), False


def _key(error: KeyError) -> str:
    # An answer's key, never its value; one that is no word would be something else.
    key = str(error.args[0]) if error.args else ""
    return repr(key) if re.fullmatch(r"\w{1,40}", key) else "a key"


def _one_line(said: object) -> str:
    line = " ".join(str(said).split()).rstrip(" .")
    return line if len(line) <= _LONGEST_DETAIL else f"{line[:_LONGEST_DETAIL]}…"


_IMDS = {"ipv4": "http://169.254.169.254/", "ipv6": "http://[fd00:ec2::254]/"}
_IMDS_PATH = "latest/meta-data/iam/security-credentials/"
_IMDS_TIMEOUT_S = 1.0


def _trouble_of_imds(session: Any) -> str | None:
    """What is wrong with the metadata service; ``None`` where there is none, or it has no role.

    Instance Metadata Service Version 2, EC2 user guide: a token first, then the role's name.
    """
    from langgraph_aurora_store.config import environment

    if environment().get("AWS_EC2_METADATA_DISABLED", "false").lower() == "true":
        return None
    core = getattr(session, "_session", session)
    read = getattr(core, "get_config_variable", lambda _: None)
    mode = str(read("ec2_metadata_service_endpoint_mode") or "ipv4").lower()
    url = read("ec2_metadata_service_endpoint") or _IMDS.get(mode, _IMDS["ipv4"])
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port or 80, timeout=_IMDS_TIMEOUT_S
    )
    try:
        connection.connect()
    except OSError:
        return None  # no such service here: a laptop, a container without a way to it
    try:
        return _status_of_imds(connection, parts.path.rstrip("/"))
    except (OSError, http.client.HTTPException) as error:
        return f"it is late or breaks off ({type(error).__name__})"
    finally:
        connection.close()


def _status_of_imds(connection: http.client.HTTPConnection, path: str) -> str | None:
    headers = {"x-aws-ec2-metadata-token-ttl-seconds": "21600"}
    connection.request("PUT", f"{path}/latest/api/token", headers=headers)
    response = connection.getresponse()
    token = response.read().decode("latin-1")
    if response.status >= 500 or response.status == 429:
        return f"it answered {response.status}"
    headers = {"x-aws-ec2-metadata-token": token} if response.status == 200 else {}
    connection.request("GET", f"{path}/{_IMDS_PATH}", headers=headers)
    response = connection.getresponse()
    role = response.read()
    if response.status in (401, 403, 404) or (response.status == 200 and not role.strip()):
        return None  # switched off, or no role
    return f"it answered {response.status} now, and nothing of use before"
