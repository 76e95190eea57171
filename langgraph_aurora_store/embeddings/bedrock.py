"""Text models of Amazon Bedrock, through boto3's ``bedrock-runtime`` client."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

import orjson
from typing_extensions import override

from langgraph_aurora_store.config import environment
from langgraph_aurora_store.embeddings.bedrock_faults import explain
from langgraph_aurora_store.embeddings.concurrency import Gathering, PerProcess
from langgraph_aurora_store.embeddings.families import Truncate
from langgraph_aurora_store.embeddings.models import choose_model
from langgraph_aurora_store.embeddings.options import Options
from langgraph_aurora_store.embeddings.plan import Answer, Request
from langgraph_aurora_store.embeddings.quiet import (
    BOTOCORE_LOGGERS,
    QuietBytes,
    silence,
    under_way,
)
from langgraph_aurora_store.embeddings.retry import Clock, Fault
from langgraph_aurora_store.embeddings.service import ServiceEmbeddings
from langgraph_aurora_store.errors import ConfigurationError, EmbeddingResponseError
from langgraph_aurora_store.version import __version__

if TYPE_CHECKING:
    import boto3
    from mypy_boto3_bedrock_runtime import BedrockRuntimeClient

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
        session: boto3.Session | None = None,
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
        self._own = PerProcess(self, self._make_client)

    def close(self) -> None:
        """Let threads and connections go; the next embedding opens new ones."""
        self._workers.close()
        self._own.close()

    @override
    async def _agather(self, requests: tuple[Request, ...]) -> list[Answer]:
        # boto3 blocks, so its calls stay in the workers; cancelling the task ends the gathering.
        return await asyncio.wrap_future(Gathering(self._workers, requests, self._perform).start())

    @override
    def _send(self, request: Request) -> object:
        body = self._model.body(
            request.contents, purpose=request.purpose, truncate=self._options.truncate
        )
        with under_way():
            answer = self._client().invoke_model(
                modelId=self.model,
                body=QuietBytes(json.dumps(body).encode()),
                accept="application/json",
                contentType="application/json",
            )
            content = answer["body"].read()
        try:
            return orjson.loads(content)
        except ValueError as error:
            raise EmbeddingResponseError(
                f"Bedrock model {self.model} answered with something else than JSON"
            ) from error

    @override
    def _explain(self, error: Exception, request: Request) -> Fault:
        return explain(error, model=self.model, region=self._where(), texts=request.contents)

    def _client(self) -> BedrockRuntimeClient:
        return self._given or self._own.get()

    def _make_client(self) -> BedrockRuntimeClient:
        import boto3
        import botocore.session
        from botocore.config import Config

        silence(BOTOCORE_LOGGERS)
        session = self._session or boto3.Session()
        # A user agent given whole is not put together anew, twice, for every request.
        user_agent = botocore.session.get_session().user_agent()
        return session.client(
            "bedrock-runtime",
            region_name=self._region_of(session),
            endpoint_url=self._endpoint_url,
            config=Config(
                max_pool_connections=self._options.max_concurrency,
                connect_timeout=min(5.0, self._options.timeout_s),
                read_timeout=self._options.timeout_s,
                retries={"total_max_attempts": 1, "mode": "standard"},
                tcp_keepalive=True,
                user_agent=f"{user_agent} langgraph-aurora-store/{__version__}",
            ),
        )

    def _region_of(self, session: boto3.Session) -> str:
        arn = _ARN_REGION.match(self.model)
        given = session.region_name if self._session is not None else None
        region = (
            self._region
            or (arn[1] if arn else None)
            or given
            or environment().get("AWS_REGION")
            or session.region_name
        )
        if not region:
            raise ConfigurationError(
                f"no region for Bedrock model {self.model}; pass region= or set AWS_REGION"
            )
        return region

    def _where(self) -> str:
        client = self._given or self._own.made
        return client.meta.region_name if client else self._region or "no region"
