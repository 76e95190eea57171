"""One way to drive either service's embeddings, blocking or asynchronous, in a test."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import boto3

from langgraph_aurora_store.embeddings import BedrockEmbeddings, OpenAIEmbeddings
from langgraph_aurora_store.embeddings.base import ServiceEmbeddings
from tests.support import bedrock_service as bedrock
from tests.support import openai_service as openai
from tests.support.http_service import Reply, Service
from tests.support.stepped_clock import SteppedClock

SESSION = boto3.Session("AKIDEXAMPLE", "secret", region_name="us-east-1")


@dataclass
class Rig:
    """A local service, how it says no, and the embeddings that ask it; ``mode`` is sync or async.

    Bedrock is asked for Titan v2, one text a request, and OpenAI for a batch.
    """

    service: Service
    mode: str
    make: Callable[..., ServiceEmbeddings]
    throttled: Callable[..., Reply]
    failing: Reply
    clock: SteppedClock = field(default_factory=SteppedClock)

    def embeddings(self, **options: Any) -> ServiceEmbeddings:
        return self.make(**{"clock": self.clock, "query_cache_size": 0} | options)

    def documents(self, embeddings: ServiceEmbeddings, texts: list[str]) -> list[list[float]]:
        if self.mode == "sync":
            return embeddings.embed_documents(texts)
        return asyncio.run(embeddings.aembed_documents(texts))

    def query(self, embeddings: ServiceEmbeddings, text: str) -> list[float]:
        if self.mode == "sync":
            return embeddings.embed_query(text)
        return asyncio.run(embeddings.aembed_query(text))


def bedrock_rig(service: bedrock.Bedrock, mode: str) -> Rig:
    def make(**options: Any) -> ServiceEmbeddings:
        settings: dict[str, Any] = {"session": SESSION, "endpoint_url": service.url} | options
        return BedrockEmbeddings("amazon.titan-embed-text-v2:0", **settings)

    failing = bedrock.error("ServiceUnavailableException", 503, "Service is unavailable")
    return Rig(service, mode, make, bedrock.throttled, failing)


def openai_rig(service: openai.OpenAI, mode: str) -> Rig:
    def make(**options: Any) -> ServiceEmbeddings:
        settings: dict[str, Any] = {"api_key": service.key, "base_url": service.base_url} | options
        return OpenAIEmbeddings("text-embedding-3-small", **settings)

    failing = openai.error(500, "The server had an error while processing your request.")
    return Rig(service, mode, make, openai.throttled, failing)
