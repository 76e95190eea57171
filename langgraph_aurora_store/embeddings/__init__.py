"""Text to vectors: Amazon Bedrock, OpenAI, and whatever LangChain embeds with."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from langchain_core.embeddings import Embeddings
from langgraph.store.base import ensure_embeddings

from langgraph_aurora_store.embeddings.base import ServiceEmbeddings
from langgraph_aurora_store.embeddings.models import find_model, known_models
from langgraph_aurora_store.embeddings.text_labels import text_labels
from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.lazy_imports import lazy_attributes
from langgraph_aurora_store.validation import brief

if TYPE_CHECKING:
    import boto3

    from langgraph_aurora_store.embeddings.bedrock import BedrockEmbeddings
    from langgraph_aurora_store.embeddings.openai import OpenAIEmbeddings

__all__ = [
    "BedrockEmbeddings",
    "Embed",
    "OpenAIEmbeddings",
    "Resolved",
    "resolve",
    "text_labels",
]

Embed: TypeAlias = (
    str
    | Embeddings
    | Callable[[Sequence[str]], list[list[float]]]
    | Callable[[Sequence[str]], Awaitable[list[list[float]]]]
)


# Imported when first asked for: a program uses one service at most.
__getattr__ = lazy_attributes(
    __name__, {"BedrockEmbeddings": "bedrock", "OpenAIEmbeddings": "openai"}
)


class Resolved(NamedTuple):
    """What embeds, and the length of its vectors; None where only a first vector tells it."""

    embeddings: Embeddings
    dims: int | None


def resolve(
    embed: Embed,
    *,
    dims: int | None = None,
    session: boto3.Session | None = None,
    region: str | None = None,
) -> Resolved:
    """What an index configuration's ``embed`` and ``dims`` stand for; no I/O, no SDK import.

    ``embed`` is ``"bedrock:<model id>"``, ``"openai:<model>"``, another ``"provider:model"`` that
    LangChain's ``init_embeddings`` knows, a LangChain ``Embeddings``, or a function, plain or
    async, from texts to vectors. ``session`` and ``region`` are for Bedrock.

    Raises `ConfigurationError` for an unknown provider or model, and for ``dims`` that the model
    does not offer.
    """
    if isinstance(embed, str):
        return _named(embed, dims, session, region)
    embeddings = ensure_embeddings(embed)
    if isinstance(embeddings, ServiceEmbeddings):
        if dims not in (None, embeddings.dimensions):
            raise ConfigurationError(
                f"dims={dims} in the index, but {embeddings!r} makes vectors of "
                f"{embeddings.dimensions}; leave dims out, or pass dimensions={dims} to it"
            )
        return Resolved(embeddings, embeddings.dimensions)
    return Resolved(embeddings, dims)


def _named(
    name: str, dims: int | None, session: boto3.Session | None, region: str | None
) -> Resolved:
    provider, colon, model = name.partition(":")
    if provider == "bedrock" and model:
        from langgraph_aurora_store.embeddings.bedrock import BedrockEmbeddings

        bedrock = BedrockEmbeddings(model, dimensions=dims, session=session, region=region)
        return Resolved(bedrock, bedrock.dimensions)
    if provider == "openai" and model:
        from langgraph_aurora_store.embeddings.openai import OpenAIEmbeddings

        openai = OpenAIEmbeddings(model, dimensions=dims)
        return Resolved(openai, openai.dimensions)
    if not colon or not model or find_model(name, "bedrock"):
        raise ConfigurationError(_unnamed(name))
    try:
        return Resolved(ensure_embeddings(name), dims)
    except (ImportError, ValueError) as error:
        # What LangChain adds lists every provider of its own, and how to install itself.
        reason = re.split(r"[\n;]", str(error), maxsplit=1)[0].rstrip(".")
        raise ConfigurationError(
            f"embed={brief(name)}: {reason[:_LONGEST_REASON]}. {_KNOWN}"
        ) from error


_LONGEST_REASON = 200
_KNOWN = (
    f"Built in are bedrock: {known_models('bedrock')}; openai: {known_models('openai')}. "
    "LangChain's providers need pip install langchain langchain-PROVIDER. "
    "Any LangChain Embeddings object or function from texts to vectors can be passed instead"
)


def _unnamed(name: str) -> str:
    """The error for a model without its provider."""
    for provider in ("bedrock", "openai"):
        if find_model(name, provider):
            return f"embed={brief(name)} names no provider; write {brief(provider + ':' + name)}"
    return f"embed={brief(name)} is no 'provider:model'. {_KNOWN}"
