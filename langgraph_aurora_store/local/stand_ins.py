"""Local services in place of those that the environment does not name, for examples and demos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from langgraph_aurora_store.local.openai import LocalOpenAI, Script, echo

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
    whose chat model follows ``script``. With AWS credentials and without ``OPENAI_API_KEY``,
    ``EXAMPLE_EMBEDDING_MODEL`` is a model of Bedrock's, unless it is set.

    Raises:
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

    keys_of = None
    if _has_aws_credentials(environ):
        import boto3

        keys_of = boto3.Session()
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
    if _has_aws_credentials(environ):
        model = environ.get("EXAMPLE_EMBEDDING_MODEL", _BEDROCK_MODEL)
        return (
            f"embeddings by {model}, as AWS credentials are set; chat by a script that speaks the"
            " OpenAI protocol on this machine (set OPENAI_API_KEY to use OpenAI)"
        ), to_chat | {"EXAMPLE_EMBEDDING_MODEL": model}
    return (
        "a script and hashed words that speak the OpenAI protocol on this machine; the clients are"
        " the real ones (set OPENAI_API_KEY to use OpenAI, or AWS credentials to use Bedrock)"
    ), to_chat


def _has_aws_credentials(environ: Mapping[str, str]) -> bool:
    """Whether the environment says where to get some; the machine's own role is not asked for."""
    # Where RDS is somebody else's, so are the keys: those of a local Aurora open nothing on AWS.
    if environ.get("AWS_ENDPOINT_URL_RDS"):
        return False
    return any(environ.get(name) for name in _AWS_CREDENTIALS)
