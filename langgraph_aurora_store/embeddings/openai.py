"""Embedding models of OpenAI, and of services that speak its protocol, through its own client."""

from __future__ import annotations

import asyncio
import base64
import sys
from array import array
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import orjson
from typing_extensions import override

from langgraph_aurora_store.config import environment
from langgraph_aurora_store.embeddings.base import ServiceEmbeddings
from langgraph_aurora_store.embeddings.concurrency import FairSemaphore
from langgraph_aurora_store.embeddings.fork_aware_client import ForkAwareClient
from langgraph_aurora_store.embeddings.formats import Truncate
from langgraph_aurora_store.embeddings.models import choose_model
from langgraph_aurora_store.embeddings.openai_errors import explain
from langgraph_aurora_store.embeddings.options import Options
from langgraph_aurora_store.embeddings.request_flow import Delay, Send
from langgraph_aurora_store.embeddings.requests import Request, RequestResult
from langgraph_aurora_store.embeddings.retry import Clock, Failure
from langgraph_aurora_store.errors import (
    EmbeddingAccessError,
    EmbeddingResponseError,
    MissingExtraError,
)
from langgraph_aurora_store.sdk_log_redaction import redact_sdk_logs

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

# Decoding more vectors than this would hold up the event loop for milliseconds.
DECODED_AT_ONCE = 16
# Looking for more characters than this in the message of a failure would, too.
EXPLAINED_AT_ONCE = 65_536


class OpenAIEmbeddings(ServiceEmbeddings):
    """Embeddings of OpenAI's models, or of a service that speaks its protocol (``base_url``).

    A model this package does not know needs ``family`` (``"openai"`` where its vectors can be
    shortened, ``"openai-fixed"`` otherwise) and ``dimensions``. The key is ``api_key``, else
    ``OPENAI_API_KEY``. A ``client`` or ``async_client`` of your own is used as it is: switch its
    retries off (``max_retries=0``).

    Blocking calls use one client and threads; asyncio calls a native client for each event loop,
    closed with the loop. Both together keep to ``max_concurrency``. `close` lets threads and the
    blocking client go, and need not be called.
    """

    def __init__(
        self,
        model: str,
        *,
        dimensions: int | None = None,
        family: str | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        organization: str | None = None,
        project: str | None = None,
        max_concurrency: int = 16,
        deadline_s: float = 60.0,
        timeout_s: float = 30.0,
        truncate: Truncate = "warn",
        query_cache_size: int = 128,
        client: OpenAI | None = None,
        async_client: AsyncOpenAI | None = None,
        clock: Clock | None = None,
    ) -> None:
        options = Options(
            max_concurrency=max_concurrency,
            deadline_s=deadline_s,
            timeout_s=timeout_s,
            truncate=truncate,
            query_cache_size=query_cache_size,
        )
        chosen = choose_model(model, "openai", dimensions=dimensions, family=family)
        super().__init__(chosen, options, clock)
        self._slots = FairSemaphore(options.max_concurrency)
        self._account = _Account(api_key, base_url, organization, project, options.timeout_s)
        self._given = client
        self._async_given = async_client
        self._own = ForkAwareClient(self, self._account.client)
        self._of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopClient]
        self._of_loop = WeakKeyDictionary()

    @property
    def base_url(self) -> str | None:
        """The service's address where one was given; None for OpenAI's own."""
        return self._account.base_url or environment().get("OPENAI_BASE_URL") or None

    def close(self) -> None:
        """Let threads and the blocking client's connections go; the next embedding opens new."""
        self._workers.close()
        self._own.close()

    async def aclose(self) -> None:
        """`close`, and the client of the running event loop too."""
        self.close()
        held = self._of_loop.get(asyncio.get_running_loop())
        if held is not None:
            await held.lifetime.aclose()

    @override
    def _send(self, request: Request) -> object:
        self._slots.acquire()
        try:
            with redact_sdk_logs("openai"):
                answer = self._client().embeddings.with_raw_response.create(
                    model=self.model,
                    **self._body(request),  # type: ignore[arg-type]  # from the model's template
                )
                return decoded(answer.http_response.content)
        finally:
            self._slots.release()

    async def _asend(self, request: Request) -> object:
        await self._slots.aacquire()
        try:
            with redact_sdk_logs("openai"):
                client = await self._aclient()
                answer = await client.embeddings.with_raw_response.create(
                    model=self.model,
                    **self._body(request),  # type: ignore[arg-type]  # from the model's template
                )
                content = answer.http_response.content
        finally:
            self._slots.release()
        if len(request.texts) <= DECODED_AT_ONCE:
            return decoded(content)
        return await asyncio.to_thread(decoded, content)

    @override
    async def _agather(self, requests: tuple[Request, ...]) -> list[RequestResult]:
        answers: dict[int, RequestResult] = {}
        waiting = iter(enumerate(requests))

        async def worker() -> None:
            for position, request in waiting:
                answers[position] = await self._aperform(request)

        width = min(len(requests), self._options.max_concurrency)
        workers = [asyncio.ensure_future(worker()) for _ in range(width)]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return [answers[position] for position in range(len(requests))]

    async def _aperform(self, request: Request) -> RequestResult:
        """The asyncio twin of ``_perform``; cancelling the task ends it."""
        steps = self._request_flow.steps(request)
        reply: object = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # the type is that of Steps
            reply = await self._atake(step)

    async def _atake(self, step: Send | Delay) -> object:
        if isinstance(step, Delay):
            await self._clock.asleep(step.seconds)
            return None
        try:
            return await self._asend(step.request)
        except Exception as error:
            if sum(map(len, step.request.contents)) <= EXPLAINED_AT_ONCE:
                return self._failed(error, step.request)
            return await asyncio.to_thread(self._failed, error, step.request)

    @override
    def _explain(self, error: Exception, request: Request) -> Failure:
        key = self._account.api_key
        secrets = [*request.contents, *([key] if key else [])]
        return explain(error, model=self.model, secrets=secrets)

    def _body(self, request: Request) -> dict[str, object]:
        return self._model.body(
            request.contents, purpose=request.purpose, truncate=self._options.truncate
        )

    def _client(self) -> OpenAI:
        return self._given or self._own.get()

    async def _aclient(self) -> AsyncOpenAI:
        if self._async_given is not None:
            return self._async_given
        loop = asyncio.get_running_loop()
        if loop not in self._of_loop:
            # Importing the SDK and reading the certificates takes a third of a second.
            client = await asyncio.to_thread(self._account.async_client)
            if loop not in self._of_loop:
                held = _LoopClient(client, self._until_loop_ends(loop, client))
                self._of_loop[loop] = held
                await anext(held.lifetime)
        return self._of_loop[loop].client

    async def _until_loop_ends(
        self, loop: asyncio.AbstractEventLoop, client: AsyncOpenAI
    ) -> AsyncGenerator[None, None]:
        """Close the client with its loop, which ends every asynchronous generator it has begun."""
        try:
            yield
        finally:
            self._of_loop.pop(loop, None)
            await client.close()


@dataclass(frozen=True, slots=True)
class _Account:
    """Who asks, and where."""

    api_key: str | None = field(repr=False)
    base_url: str | None
    organization: str | None
    project: str | None
    timeout_s: float

    def client(self) -> OpenAI:
        settings = self._settings()
        from openai import OpenAI

        return OpenAI(**settings)

    def async_client(self) -> AsyncOpenAI:
        settings = self._settings()
        from openai import AsyncOpenAI

        return AsyncOpenAI(**settings)

    def _settings(self) -> dict[str, Any]:
        if find_spec("openai") is None:
            raise MissingExtraError(
                "OpenAI embeddings need the openai package: "
                "pip install 'langgraph-aurora-store[openai]'"
            )
        if not (self.api_key or environment().get("OPENAI_API_KEY")):
            raise EmbeddingAccessError("no OpenAI API key: set OPENAI_API_KEY or pass api_key=")
        return {
            "api_key": self.api_key,
            "base_url": self.base_url,
            "organization": self.organization,
            "project": self.project,
            "timeout": self.timeout_s,
            "max_retries": 0,
        }


@dataclass(frozen=True, slots=True)
class _LoopClient:
    """The client of one event loop, and the generator that closes it."""

    client: AsyncOpenAI
    lifetime: AsyncGenerator[None, None]


def decoded(content: bytes) -> object:
    """An answer's JSON with its vectors as lists of numbers, in the order of the texts.

    Raises `EmbeddingResponseError` for what is no JSON, and for a vector that is no base64.
    """
    try:
        return _ordered(orjson.loads(content))
    except (TypeError, ValueError) as error:
        raise EmbeddingResponseError(
            "the OpenAI service answered with something else than JSON and vectors"
        ) from error


def _ordered(answer: Any) -> object:
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or not all(isinstance(member, dict) for member in data):
        return answer
    members = sorted(data, key=lambda member: member.get("index", 0))
    for member in members:
        if isinstance(member.get("embedding"), str):
            member["embedding"] = _floats(member["embedding"])
    return {**answer, "data": members}


def _floats(encoded: str) -> list[float]:
    """The numbers of OpenAI's base64 form: 32-bit floats, little-endian."""
    numbers = array("f", base64.b64decode(encoded))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
