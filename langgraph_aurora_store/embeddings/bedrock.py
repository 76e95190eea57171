"""Text models of Amazon Bedrock."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson
from typing_extensions import override

from langgraph_aurora_store.aws.credential_failures import Session
from langgraph_aurora_store.aws.session import REGION_ORDER, AwsSession, Region
from langgraph_aurora_store.aws.single_flight import wait_at_most
from langgraph_aurora_store.config import environment
from langgraph_aurora_store.embeddings.base import ServiceEmbeddings
from langgraph_aurora_store.embeddings.bedrock_errors import explain
from langgraph_aurora_store.embeddings.concurrency import RequestFanOut
from langgraph_aurora_store.embeddings.fork_aware_client import ForkAwareClient
from langgraph_aurora_store.embeddings.formats import Truncate
from langgraph_aurora_store.embeddings.models import choose_model
from langgraph_aurora_store.embeddings.options import Options
from langgraph_aurora_store.embeddings.requests import Request, RequestResult
from langgraph_aurora_store.embeddings.retry import Clock, Failure
from langgraph_aurora_store.errors import ConfigurationError, EmbeddingResponseError
from langgraph_aurora_store.sdk_log_redaction import QuietBytes, redact_sdk_logs
from langgraph_aurora_store.validation import brief, check
from langgraph_aurora_store.version import __version__

if TYPE_CHECKING:
    from mypy_boto3_bedrock_runtime import BedrockRuntimeClient

logger = logging.getLogger(__name__)

BEARER_VARIABLE = "AWS_BEARER_TOKEN_BEDROCK"
_LONGEST_CONNECT_S = 5.0
# How long an attempt waits for AWS credentials before it counts as failed, and is tried again.
_LONGEST_CREDENTIALS_WAIT_S = 1.0
_ARN_REGION = re.compile(r"^arn:[\w-]+:bedrock:([\w-]+):")


class BedrockEmbeddings(ServiceEmbeddings):
    """Embeddings of a text model on Amazon Bedrock.

    ``model`` is a model id (``amazon.titan-embed-text-v2:0``), the id of a cross-region inference
    profile (``us.cohere.embed-v4:0``) or an ARN. An ARN that does not show its model (an
    application inference profile, a provisioned model) needs ``base_model``, the model id behind
    it. A model this package does not know needs ``family``, the way it is asked, and
    ``dimensions``.

    The region is ``region``, else the ARN's, else the one that `AwsSession.region` finds.
    ``endpoint_url`` is for a VPC or FIPS endpoint. The client is botocore's own, so that what
    configures, traces or stubs one counts here; it is made with the first embedding. A ``client``
    of your own is used as it is: give it a connection pool of ``max_concurrency`` and switch its
    retries off.

    A Bedrock API key in ``AWS_BEARER_TOKEN_BEDROCK`` outranks every other credential, those of
    ``session`` too.

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
        check(region=region, session=session)
        if endpoint_url is not None:
            check_endpoint_url(endpoint_url)
        if client is not None:
            check_client(client)
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
        self._aws = AwsSession(session)
        self._credentials_wait_s = min(_LONGEST_CREDENTIALS_WAIT_S, deadline_s / 2)
        self._asked_region: Region | None = None
        self._ready_in = 0  # the process whose first request has met region and credentials
        self._endpoint_url = endpoint_url
        self._given = client
        self._client: ForkAwareClient[BedrockRuntimeClient] = ForkAwareClient(self, self._open)

    def close(self) -> None:
        """Let threads and connections go; the next embedding opens new ones."""
        self._workers.close()
        self._client.close()

    @override
    async def _agather(self, requests: tuple[Request, ...]) -> list[RequestResult]:
        # boto3 blocks, so its calls stay in the workers; cancelling the task ends the gathering.
        return await asyncio.wrap_future(
            RequestFanOut(self._workers, requests, self._perform).start()
        )

    @override
    def _send(self, request: Request) -> object:
        body = self._model.body(
            request.contents, purpose=request.purpose, truncate=self._options.truncate
        )
        with redact_sdk_logs():
            client = self._given or self._ready_client()
            with wait_at_most(self._credentials_wait_s):
                answer = client.invoke_model(
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
    def _explain(self, error: Exception, request: Request) -> Failure:
        return explain(error, model=self.model, region=self._where(), texts=request.contents)

    def _ready_client(self) -> BedrockRuntimeClient:
        if self._ready_in != os.getpid():
            self._asked_region = self._find_region()
            # Before the client is asked for: it would load the credentials however long that
            # takes, and under a lock that every worker waits for.
            if not (environment().get(BEARER_VARIABLE) or self._aws.makes_own_clients):
                with wait_at_most(self._credentials_wait_s):
                    self._aws.credentials()
            self._ready_in = os.getpid()
        return self._client.get()

    def _open(self) -> BedrockRuntimeClient:
        from botocore.config import Config

        if self._aws.is_given and environment().get(BEARER_VARIABLE):
            logger.warning(
                "%s is set and outranks the credentials of session=: Bedrock is called with the"
                " API key in it; unset it to have the session's used",
                BEARER_VARIABLE,
            )
        options = self._options
        config = Config(
            max_pool_connections=options.max_concurrency,
            connect_timeout=min(_LONGEST_CONNECT_S, options.timeout_s),
            read_timeout=options.timeout_s,
            retries={"total_max_attempts": 1, "mode": "standard"},
            tcp_keepalive=True,
            user_agent_extra=f"langgraph-aurora-store/{__version__}",
        )
        region = self._asked_region or self._find_region()
        client = self._aws.client("bedrock-runtime", region.name, config, self._endpoint_url)
        client.meta.events.register("before-parse.bedrock-runtime", _drop_unreadable_error)
        return client

    def _find_region(self) -> Region:
        """The nearest region given."""
        if self._region:
            return Region(self._region, "region=")
        arn = _ARN_REGION.match(self.model)
        found = Region(arn[1], "the model's ARN") if arn else self._aws.region()
        if found is None:
            raise ConfigurationError(
                f"no region for Bedrock model {self.model}; pass region= or set AWS_REGION"
                f" ({REGION_ORDER})"
            )
        return found

    def _where(self) -> Region:
        if self._given is not None:
            return Region(str(self._given.meta.region_name), "client=")
        return self._asked_region or Region("no region", "nowhere")


def _drop_unreadable_error(response_dict: dict[str, Any], **_: object) -> None:
    """Leave an error its status and headers, where a gateway put anything else into its body.

    botocore 1.44 takes the body for a JSON object, and fails on another with an AttributeError.
    """
    if response_dict["status_code"] < 300:
        return
    try:
        is_readable = isinstance(orjson.loads(response_dict["body"]), dict)
    except ValueError:
        is_readable = False
    if not is_readable:
        response_dict["body"] = b""


def check_endpoint_url(url: object) -> None:
    """Refuse anything but an address to send to."""
    if not _is_url(url):
        # A URL may hold a password.
        shown = brief(url) if isinstance(url, str) and "@" not in url else type(url).__name__
        raise ConfigurationError(
            f"endpoint_url={shown}: pass a URL such as "
            "'https://bedrock-runtime-fips.us-east-1.amazonaws.com'"
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
