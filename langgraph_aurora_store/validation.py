"""What callers may pass: one table of it, and how a mistake in it is told."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from langgraph_aurora_store.errors import ConfigurationError

# Longer identifiers PostgreSQL cuts off: https://www.postgresql.org/docs/current/limits.html
_LONGEST_IDENTIFIER = 63
# RDS API reference, CreateDBCluster.
IDENTIFIER_RULE = "1 to 63 letters, digits and single hyphens, the first a letter"
_CLUSTER_IDENTIFIER = r"(?=.{1,63}$)[A-Za-z](?:-?[A-Za-z0-9])*"
_REGION = r"[a-z]{2,}(?:-[a-z]+)+-\d{1,2}"

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 200
_brief.maxtuple = 20
# Of what is made of many parts. A line of a log names ten writes at most.
_LONGEST_SHOWN = 500


class _Wanted(NamedTuple):
    """Whether a value is right, and in words what would be."""

    is_right: Callable[[Any], bool]
    words: str
    is_secret: bool = False
    is_required: bool = False
    variable: str | None = None  # stands in where the argument is left out


# Control characters, and what ends a line elsewhere: in a comment of a script or a line of a log.
_UNPRINTABLE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not _UNPRINTABLE.search(value)


def _is_password(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _has(*names: str) -> Callable[[object], bool]:
    return lambda value: not isinstance(value, type) and all(hasattr(value, name) for name in names)


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65_535


def _is_identifier(value: object) -> bool:
    return _is_text(value) and len(str(value).encode(errors="replace")) <= _LONGEST_IDENTIFIER


def _is_application_name(value: object) -> bool:
    # PostgreSQL replaces other characters and cuts longer names off: "application_name" in
    # https://www.postgresql.org/docs/current/runtime-config-logging.html
    pattern = f"[ -~]{{1,{_LONGEST_IDENTIFIER}}}"
    return isinstance(value, str) and bool(re.fullmatch(pattern, value))


def is_cluster_identifier(value: object) -> bool:
    """Whether RDS would take a value for the identifier of a cluster: `IDENTIFIER_RULE`."""
    return isinstance(value, str) and bool(re.fullmatch(_CLUSTER_IDENTIFIER, value))


def is_region(value: object) -> bool:
    """Whether a value has the form of a region's name."""
    return isinstance(value, str) and bool(re.fullmatch(_REGION, value))


def _embeds(value: object) -> bool:
    return _is_text(value) or _has("embed_documents")(value) or _has("__call__")(value)


_TEXT = (
    "text that is not empty, holds no NUL or other control character and has"
    f" {_LONGEST_IDENTIFIER} bytes at most"
)
_ARGUMENTS: Mapping[str, _Wanted] = {
    "cluster": _Wanted(_is_text, "the identifier, ARN or endpoint of a cluster, or leave it out"),
    "identifier": _Wanted(is_cluster_identifier, IDENTIFIER_RULE),
    "endpoint": _Wanted(_is_text, "the host name of a cluster's own endpoint, or leave it out"),
    "user": _Wanted(_is_identifier, f"{_TEXT}, or leave it out", variable="AURORA_USER"),
    "database": _Wanted(_is_identifier, f"{_TEXT}, or leave it out", variable="AURORA_DATABASE"),
    "role": _Wanted(_is_identifier, f"{_TEXT}, or leave it out"),
    "application_name": _Wanted(
        _is_application_name,
        f"1 to {_LONGEST_IDENTIFIER} printable ASCII characters, or leave it out",
        variable="PGAPPNAME",
    ),
    "pooler": _Wanted(lambda value: isinstance(value, bool), "True, False, or leave it out"),
    "region": _Wanted(is_region, "a region such as 'us-east-1', or leave it out"),
    "port": _Wanted(_is_port, "a whole number from 1 to 65535, or leave it out"),
    "session": _Wanted(_has("get_credentials"), "a boto3.Session, or leave it out", is_secret=True),
    "credentials": _Wanted(
        _has("login", "method", "refused"),
        "PasswordCredentials(...) or SecretsManagerCredentials(...), or leave it out",
        is_secret=True,
    ),
    "password": _Wanted(
        _is_password,
        "text that is not empty and holds no NUL character",
        is_secret=True,
        is_required=True,
    ),
    "secret_id": _Wanted(_is_text, "the ARN or the name of a secret", is_required=True),
    "deserializer": _Wanted(callable, "a function from JSON to a dictionary, or leave it out"),
    "schema": _Wanted(_is_identifier, f"{_TEXT}, or leave it out"),
    "index": _Wanted(
        lambda value: isinstance(value, Mapping),
        "a mapping, {'embed': 'bedrock:amazon.titan-embed-text-v2:0', 'fields': ['content']}",
    ),
    "ttl": _Wanted(lambda value: isinstance(value, Mapping), "a mapping, {'default_ttl': 60}"),
    "retry": _Wanted(_has("deadline_s"), "RetrySettings(...), or None for no retries"),
    "embed": _Wanted(
        _embeds,
        "'bedrock:<model id>', 'openai:<model>', an instance of a LangChain Embeddings class, or a"
        " function from texts to vectors",
        is_required=True,
    ),
}


def check(*, reads_environment: bool = True, **given: object) -> None:
    """Refuse the first of these arguments that is wrong; most may be left out, as ``None``.

    ``reads_environment``: whether the caller takes what is left out from there.

    Raises:
        ConfigurationError: naming the argument, its value unless that may be a secret, and what
            to pass.
    """
    for name, value in given.items():
        wanted = _ARGUMENTS[name]
        is_left_out = value is None and not wanted.is_required
        if not (is_left_out or wanted.is_right(value)):
            reads = reads_environment and wanted.variable
            words = f"{wanted.words} and set {wanted.variable}" if reads else wanted.words
            raise ConfigurationError(f"{name}{_shown(value, wanted)} is wrong: pass {words}")


_VARIABLES = {
    "AURORA_CLUSTER": "cluster",
    "AURORA_USER": "user",
    "AURORA_DATABASE": "database",
    "PGAPPNAME": "application_name",
}


def check_variables(**found: str | None) -> None:
    """Refuse the first of these environment variables whose value is wrong; ``None`` is not set.

    Raises:
        ConfigurationError: naming the variable, its value unless that may be a secret, and what to
            set.
    """
    for variable, value in found.items():
        wanted = _ARGUMENTS[_VARIABLES[variable]]
        if not (value is None or wanted.is_right(value)):
            words = wanted.words.removesuffix(", or leave it out")
            raise ConfigurationError(
                f"the environment variable {variable}{_shown(value, wanted)} is wrong: set {words}"
            )


def one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a setting that is not one of a few words.

    Raises:
        ConfigurationError: it is none of ``choices``.
    """
    if value not in choices:
        wanted = " or ".join(map(repr, choices))
        raise ConfigurationError(f"{name} is {wanted}, not {repr(value)[:60]}")


def within(name: str, value: object, low: float, high: float, *, whole: bool = True) -> Any:
    """The value, where it is a number in a range.

    Raises:
        ConfigurationError: it is not.
    """
    kind = int if whole else int | float
    # Comparisons are false for NaN.
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        words = "whole number" if whole else "number"
        raise ConfigurationError(f"{name} is a {words} from {low} to {high}, not {brief(value)}")
    return value


def may_hold_password(text: str) -> bool:
    """Whether a text looks like (a part of) a URL, or libpq's ``name=value`` pairs."""
    return "://" in text or bool(re.search(r"\w\s*=|:[^@\s]+@", text))


def _shown(value: object, wanted: _Wanted) -> str:
    if isinstance(value, type):
        return f"=, the class {value.__name__},"
    # What else there is may hold a key or a password in its text.
    is_plain = isinstance(value, str | int | float | None) and not may_hold_password(str(value))
    if wanted.is_secret or not is_plain:
        return f"= of type {type(value).__name__}"
    text = repr(value)
    return f"={text[:60]}..." if len(text) > 80 else f"={text}"


def brief_unless_secret(value: object) -> str:
    """A value as messages show it, unless it is a connection string that lies in a wrong place."""
    return (
        "(what looks like a connection string)" if may_hold_password(str(value)) else brief(value)
    )


def brief(value: object) -> str:
    """A value as messages show it, with what is too long to read left out."""
    text = _brief.repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
