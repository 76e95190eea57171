"""Local services in place of those that the environment does not name, for examples and demos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from langgraph_aurora_store.local.openai import LocalOpenAI, Script, echo


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
    whose chat model follows ``script``.

    Raises:
        MissingExtraError: ``pip install 'langgraph-aurora-store[local]'`` has not been run.
    """
    environment: dict[str, str] = {}
    with ExitStack() as stack:
        if cluster := environ.get("AURORA_CLUSTER"):
            database = f"the Aurora cluster {cluster!r} that AURORA_CLUSTER names"
        else:
            from langgraph_aurora_store.local.aurora import LocalAurora

            environment |= stack.enter_context(LocalAurora(export=False)).environment
            database = (
                "a local Aurora: real PostgreSQL with pgvector, verified TLS, IAM tokens checked;"
                " no AWS account is used (set AURORA_CLUSTER for a real cluster)"
            )
        if environ.get("OPENAI_API_KEY"):
            models = "OpenAI, as OPENAI_API_KEY is set"
        else:
            environment |= stack.enter_context(LocalOpenAI(script)).environment
            models = (
                "a scripted stand-in that speaks the OpenAI protocol on this machine; the clients"
                " are the real ones (set OPENAI_API_KEY to use OpenAI)"
            )
        yield StandIns(database, models, environment)
