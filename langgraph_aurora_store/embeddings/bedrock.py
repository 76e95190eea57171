"""Text models of Amazon Bedrock."""

from __future__ import annotations

import asyncio
import json
import re
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import orjson
from typing_extensions import override

from langgraph_aurora_store.aws.logging import BOTOCORE_LOGGERS, silence, under_way
from langgraph_aurora_store.aws.session import default_session
from langgraph_aurora_store.config import environment
from langgraph_aurora_store.embeddings.base import ServiceEmbeddings
from langgraph_aurora_store.embeddings.bedrock_errors import explain
from langgraph_aurora_store.embeddings.concurrency import ForkAwareClient, RequestFanOut
from langgraph_aurora_store.embeddings.formats import Truncate
from langgraph_aurora_store.embeddings.models import choose_model
from langgraph_aurora_store.embeddings.options import Options
from langgraph_aurora_store.embeddings.requests import Answer, Request
from langgraph_aurora_store.embeddings.retry import Clock, Failure
from langgraph_aurora_store.errors import ConfigurationError, EmbeddingResponseError

if TYPE_CHECKING:
    from mypy_boto3_bedrock_runtime import BedrockRuntimeClient

    from langgraph_aurora_store.embeddings.bedrock_runtime import Runtime, Session

_ARN_REGION = re.compile(r"^arn:[\w-]+:bedrock:([\w-]+):")


class BedrockEmbeddings(ServiceEmbeddings):
    """Embeddings of a text model on Amazon Bedrock.

    ``model`` is a model id (``amazon.titan-embed-text-v2:0``), the id of a cross-region inference
    profile (``us.cohere.embed-v4:0``) or an ARN. An ARN that does not show its model (an
    application inference profile, a provisioned model) needs ``base_model``, the model id behind
    it. A model this package does not know needs ``family``, the way it is asked, and
    ``dimensions``.

    The region is ``region``, else the ARN's, the session's or ``AWS_REGION``. ``endpoint_url`` is
    for a VPC or FIPS endpoint. A ``client`` of your own is used as it is: give it a connection
    pool of ``max_concurrency`` and switch its retries off.

    `close` lets its threads and connections go, and need not be called.
    """

    def __init__(
        self,
        model: str,
        *,
        dimensions: int | None = None,
        region: str | None = None,
        session: Session | None = None,
        family: str | None = None,
        base_model: str | None = None,
        max_concurrency: int = 16,
        deadline_s: float = 60.0,
        timeout_s: float = 15.0,
        truncate: Truncate = "warn",
        query_cache_size: int = 128,
        endpoint_url: str | None = None,
        client: BedrockRuntimeClient | None = None,
        clock: Clock | None = None,
    ) -> None:
        for check, given in (
            (check_region, region),
            (check_session, session),
            (check_endpoint_url, endpoint_url),
            (check_client, client),
        ):
            if given is not None:
                check(given)
        options = Options(
            max_concurrency=max_concurrency,
            deadline_s=deadline_s,
            timeout_s=timeout_s,
            truncate=truncate,
            query_cache_size=query_cache_size,
        )
        chosen = choose_model(
            model, "bedrock", dimensions=dimensions, family=family, base_model=base_model
        )
        super().__init__(chosen, options, clock)
        self._region = region
        self._session = session
        self._endpoint_url = endpoint_url
        self._given = client
        self._runtime = ForkAwareClient(self, self._open)

    def close(self) -> None:
        """Let threads and connections go; the next embedding opens new ones."""
        self._workers.close()
        self._runtime.close()

    @override
    async def _agather(self, requests: tuple[Request, ...]) -> list[Answer]:
        # boto3 blocks, so its calls stay in the workers; cancelling the task ends the gathering.
        return await asyncio.wrap_future(
            RequestFanOut(self._workers, requests, self._perform).start()
        )

    @override
    def _send(self, request: Request) -> object:
        body = self._model.body(
            request.contents, purpose=request.purpose, truncate=self._options.truncate
        )
        with under_way():
            content = self._runtime.get().invoke(json.dumps(body).encode())
        try:
            return orjson.loads(content)
        except ValueError as error:
            raise EmbeddingResponseError(
                f"Bedrock model {self.model} answered with something else than JSON"
            ) from error

    @override
    def _explain(self, error: Exception, request: Request) -> Failure:
        return explain(error, model=self.model, region=self._where(), texts=request.contents)

    def _open(self) -> Runtime:
        # This imports botocore.
        from langgraph_aurora_store.embeddings import bedrock_runtime

        silence(BOTOCORE_LOGGERS)
        if self._given is not None:
            return bedrock_runtime.ClientRuntime(self._given, self.model, is_ours=False)
        session = self._session or default_session()
        return bedrock_runtime.open_runtime(
            session,
            is_default=self._session is None,
            model=self.model,
            region=self._choose_region(bedrock_runtime.region_of(session)),
            url=self._endpoint_url,
            options=self._options,
        )

    def _choose_region(self, own: str | None) -> str:
        """The nearest region given; ``own`` is the session's."""
        arn = _ARN_REGION.match(self.model)
        region = (
            self._region
            or (arn[1] if arn else None)
            or (own if self._session is not None else None)
            or environment().get("AWS_REGION")
            or own
        )
        if not region:
            raise ConfigurationError(
                f"no region for Bedrock model {self.model}; pass region= or set AWS_REGION"
            )
        check_region(region)
        return region

    def _where(self) -> str:
        runtime = self._runtime.made
        return runtime.region if runtime else self._region or "no region"


_REGION = re.compile(r"[A-Za-z0-9-]+")


def check_region(region: object) -> None:
    """Refuse what no host name and no signature could hold; a misspelt region is found later."""
    if not isinstance(region, str) or not _REGION.fullmatch(region):
        raise ConfigurationError(f"region={region!r}: pass a region such as 'us-east-1'")


def check_endpoint_url(url: object) -> None:
    """Refuse anything but an address to send to."""
    if not _is_url(url):
        # A URL may hold a password.
        shown = repr(url) if isinstance(url, str) and "@" not in url else type(url).__name__
        raise ConfigurationError(
            f"endpoint_url={shown}: pass a URL such as "
            "'https://bedrock-runtime-fips.us-east-1.amazonaws.com'"
        )


def check_session(session: object) -> None:
    """Refuse what makes no client: a profile's name, a class, the module boto3."""
    is_made = not isinstance(session, type | ModuleType)
    if not is_made or not (hasattr(session, "client") or hasattr(session, "create_client")):
        raise ConfigurationError(
            f"session= of type {type(session).__name__}: pass a boto3.Session, such as "
            "boto3.Session(profile_name='dev')"
        )


def check_client(client: object) -> None:
    """Refuse what cannot invoke a model, such as a client of another service."""
    if isinstance(client, type) or not hasattr(client, "invoke_model"):
        raise ConfigurationError(
            f"client= of type {type(client).__name__}: pass a client of 'bedrock-runtime'"
        )


def _is_url(url: object) -> bool:
    if not isinstance(url, str) or re.search(r"\s", url):
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
