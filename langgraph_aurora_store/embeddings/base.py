"""What every embedding service of this package does, whatever its SDK."""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import abstractmethod
from typing import Protocol, runtime_checkable

from langchain_core.embeddings import Embeddings
from typing_extensions import override

from langgraph_aurora_store.embeddings.concurrency import RequestFanOut, Workers
from langgraph_aurora_store.embeddings.formats import Purpose
from langgraph_aurora_store.embeddings.models import Model
from langgraph_aurora_store.embeddings.options import Options
from langgraph_aurora_store.embeddings.query_cache import QueryCache
from langgraph_aurora_store.embeddings.request_flow import Delay, Failed, RequestFlow, Send
from langgraph_aurora_store.embeddings.requests import (
    Request,
    RequestPlan,
    RequestResult,
    describe_cuts,
    plan_requests,
)
from langgraph_aurora_store.embeddings.retry import Clock, Failure, RateLimitedWarning, SystemClock
from langgraph_aurora_store.errors import EmbeddingError

# Applications filter by the name of 0.1.0.
logger = logging.getLogger("langgraph_aurora_store.embeddings.service")

# Measuring and sorting more texts than this would hold up the event loop for milliseconds.
PLANNED_AT_ONCE = 256


class ServiceEmbeddings(Embeddings):
    """Texts to vectors through a remote service: batched, bounded, retried and checked.

    Thread-safe, and usable from any number of event loops. Nothing is imported, looked up or
    opened before the first embedding.
    """

    def __init__(self, model: Model, options: Options, clock: Clock | None) -> None:
        self._model = model
        self._options = options
        self._clock: Clock = clock or SystemClock()
        self._request_flow = RequestFlow(
            model, options, self._clock, RateLimitedWarning(self._clock)
        )
        self._queries = QueryCache(options.query_cache_size)
        self._workers = Workers(options.max_concurrency, type(self).__name__)

    @property
    def model(self) -> str:
        """The model id that the service is asked for."""
        return self._model.id

    @property
    def dimensions(self) -> int:
        """The length of every vector."""
        return self._model.dimensions

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, dimensions={self.dimensions})"

    @override
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text, to be stored; blocks. Equal texts are paid for once.

        Raises `EmbeddingError`: its subclasses tell a missing permission or key
        (`EmbeddingAccessError`) from an answer that makes no sense (`EmbeddingResponseError`).
        """
        return self._embed(self._plan(texts, "document"))

    @override
    def embed_query(self, text: str) -> list[float]:
        """The vector to search with; blocks, unless the query is one of the last ones asked.

        Raises as `embed_documents` does.
        """
        return self.embed_queries([text])[0]

    def embed_queries(self, texts: list[str]) -> list[list[float]]:
        """`embed_query` for each text, in as few requests as the service allows; blocks."""
        known, asked = self._recall(texts)
        new = self._embed(self._plan(asked, "query")) if asked else []
        return self._remember(texts, known, dict(zip(asked, new, strict=True)))

    @override
    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents` without blocking the event loop."""
        if len(texts) <= PLANNED_AT_ONCE:
            return await self._aembed(self._plan(texts, "document"))
        return await self._aembed(await asyncio.to_thread(self._plan, texts, "document"))

    @override
    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` without blocking the event loop."""
        return (await self.aembed_queries([text]))[0]

    async def aembed_queries(self, texts: list[str]) -> list[list[float]]:
        """`embed_queries` without blocking the event loop."""
        known, asked = self._recall(texts)
        new = await self._aembed(self._plan(asked, "query")) if asked else []
        return self._remember(texts, known, dict(zip(asked, new, strict=True)))

    @abstractmethod
    def _send(self, request: Request) -> object:
        """Make one request, blocking, and return its decoded answer; raises what the SDK does."""

    @abstractmethod
    async def _agather(self, requests: tuple[Request, ...]) -> list[RequestResult]:
        """Perform the requests without blocking the event loop."""

    @abstractmethod
    def _explain(self, error: Exception, request: Request) -> Failure:
        """What an error of the SDK means to the user."""

    def _recall(self, queries: list[str]) -> tuple[dict[str, list[float]], list[str]]:
        """The vectors of queries asked lately, and the other queries, each once."""
        cached = {text: self._queries.get(text) for text in queries}
        known = {text: vector for text, vector in cached.items() if vector is not None}
        return known, [text for text in cached if text not in known]

    def _remember(
        self, queries: list[str], known: dict[str, list[float]], new: dict[str, list[float]]
    ) -> list[list[float]]:
        for text, vector in new.items():
            self._queries.put(text, vector)
        found = known | new
        return [list(found[text]) for text in queries]

    def _plan(self, texts: list[str], purpose: Purpose) -> RequestPlan:
        return plan_requests(texts, purpose, self._model, self._options)

    def _embed(self, planned: RequestPlan) -> list[list[float]]:
        answers = RequestFanOut(self._workers, planned.requests, self._perform).start()
        try:
            return self._finish(planned, answers.result())
        finally:
            answers.cancel()

    async def _aembed(self, planned: RequestPlan) -> list[list[float]]:
        return self._finish(planned, await self._agather(planned.requests))

    def _finish(self, planned: RequestPlan, answers: list[RequestResult]) -> list[list[float]]:
        if cuts := describe_cuts(answers, self._model):
            logger.warning("%s", cuts)
        return planned.assemble(answers)

    def _perform(self, request: Request, stop: threading.Event) -> RequestResult:
        """Perform one request, blocking; ``stop`` ends it early, and its outcome is not awaited."""
        steps = self._request_flow.steps(request)
        reply: object = None
        while not stop.is_set():
            try:
                step = steps.send(reply)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # the type is that of Steps
            reply = self._take(step, stop)
        raise EmbeddingError(f"{self.model}: the call ended before this request")

    def _take(self, step: Send | Delay, stop: threading.Event) -> object:
        if isinstance(step, Delay):
            self._clock.sleep(step.seconds, stop)
            return None
        try:
            return self._send(step.request)
        except Exception as error:
            return self._failed(error, step.request)

    def _failed(self, error: Exception, request: Request) -> Failed:
        return Failed(type(error).__name__, self._explain(error, request))


@runtime_checkable
class EmbedsQueries(Protocol):
    """An ``Embeddings`` that also takes many queries in one call; a store uses it where it can.

    The vectors come in the queries' order, as those of ``embed_query`` would.
    """

    def embed_queries(self, texts: list[str]) -> list[list[float]]:
        """A vector to search with for each text; blocks."""
        ...

    async def aembed_queries(self, texts: list[str]) -> list[list[float]]:
        """The same, without blocking the event loop."""
        ...
