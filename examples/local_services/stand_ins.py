"""Local services in place of those that the environment does not name, for examples and demos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from langgraph_aurora_store.errors import CredentialsError
from local_services.openai_service import LocalOpenAI, Script, echo

if TYPE_CHECKING:
    import boto3

_BEDROCK_MODEL = "bedrock:amazon.titan-embed-text-v2:0"
_AWS_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


@dataclass(frozen=True, slots=True)
class StandIns:
    """Which services are used: ``environment`` leads a process to those that were started.

    It is to be added to the process's own; ``database`` and ``models`` say in plain words what is
    used. Where everything is real it is empty.
    """

    database: str
    models: str
    environment: dict[str, str] = field(repr=False)


@contextmanager
def stand_ins(environ: Mapping[str, str], script: Script = echo) -> Iterator[StandIns]:
    """Start what ``environ`` leaves open, for as long as the block lasts.

    Without ``AURORA_CLUSTER`` that is a `LocalAurora`, without ``OPENAI_API_KEY`` a `LocalOpenAI`
    whose chat model follows ``script``. Where it names AWS credentials and no ``OPENAI_API_KEY``,
    ``EXAMPLE_EMBEDDING_MODEL`` is a model of Bedrock's, unless it is set.

    Raises:
        CredentialsError: the AWS credentials that it names cannot be obtained.
        MissingExtraError: ``pip install 'langgraph-aurora-store[local]'`` has not been run.
    """
    with ExitStack() as stack:
        database, to_database = _database(environ, stack)
        models, to_models = _models(environ, stack, script)
        yield StandIns(database, models, to_database | to_models)


def _database(environ: Mapping[str, str], stack: ExitStack) -> tuple[str, dict[str, str]]:
    if cluster := environ.get("AURORA_CLUSTER"):
        return f"the Aurora cluster {cluster!r} that AURORA_CLUSTER names", {}
    from langgraph_aurora_store.local.aurora import LocalAurora

    keys_of = _session(environ) if _named_credentials(environ) else None
    region = (keys_of and keys_of.region_name) or "us-east-1"
    local = stack.enter_context(LocalAurora(keys_of=keys_of, region=region, export=False))
    return (
        "a local Aurora: real PostgreSQL with pgvector, verified TLS, IAM tokens checked;"
        " no database on AWS is used (set AURORA_CLUSTER for a real cluster)"
    ), local.environment


def _models(
    environ: Mapping[str, str], stack: ExitStack, script: Script
) -> tuple[str, dict[str, str]]:
    if environ.get("OPENAI_API_KEY"):
        return "OpenAI's, as OPENAI_API_KEY is set", {}
    to_chat = stack.enter_context(LocalOpenAI(script)).environment
    if _named_credentials(environ):
        model = environ.get("EXAMPLE_EMBEDDING_MODEL", _BEDROCK_MODEL)
        return (
            f"embeddings by {model}, as AWS credentials are set; chat by a script that speaks the"
            " OpenAI protocol on this machine (set OPENAI_API_KEY to use OpenAI)"
        ), to_chat | {"EXAMPLE_EMBEDDING_MODEL": model}
    return (
        "a script and hashed words that speak the OpenAI protocol on this machine; the clients are"
        " the real ones (set OPENAI_API_KEY to use OpenAI, or AWS credentials to use Bedrock)"
    ), to_chat


def _session(environ: Mapping[str, str]) -> boto3.Session:
    """A session whose credentials have been seen to be there."""
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.Session()
        if credentials := session.get_credentials():
            credentials.get_frozen_credentials()
    except BotoCoreError as error:
        names = _named_credentials(environ)
        unset = " ".join(f"-u {name}" for name in names)
        raise CredentialsError(
            f"the AWS credentials of {' and '.join(names)} cannot be obtained: {error}."
            f" Log in, or go without AWS: put 'env {unset}' before the command"
        ) from None
    return session


def _named_credentials(environ: Mapping[str, str]) -> list[str]:
    """The variables that say where to get some; the machine's own role is not asked for."""
    # Where RDS is not AWS's, neither are the keys: those of a local Aurora open nothing on AWS.
    if environ.get("AWS_ENDPOINT_URL_RDS"):
        return []
    return [name for name in _AWS_CREDENTIALS if environ.get(name)]
