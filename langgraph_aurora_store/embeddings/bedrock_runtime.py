"""What answers for a model on Bedrock: requests signed here, or a client of boto3.

Imports botocore, so it is imported with the first embedding.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import botocore.session
from botocore.config import Config

from langgraph_aurora_store.aws.logging import QuietBytes
from langgraph_aurora_store.embeddings.bedrock_endpoint import (
    SERVICE,
    find_endpoint,
    is_boto3_replaced,
)
from langgraph_aurora_store.embeddings.bedrock_signed import SignedRuntime
from langgraph_aurora_store.embeddings.options import Options
from langgraph_aurora_store.version import __version__

if TYPE_CHECKING:
    import boto3.session
    from mypy_boto3_bedrock_runtime import BedrockRuntimeClient

Session: TypeAlias = "boto3.session.Session | botocore.session.Session"

_LONGEST_CONNECT_S = 5.0
_PRODUCT = f"langgraph-aurora-store/{__version__}"


class Runtime(Protocol):
    """One model in one region. Thread-safe."""

    @property
    def region(self) -> str:
        """Where the model is asked."""
        ...

    def invoke(self, body: bytes) -> bytes:
        """The answer to one request; blocks. Raises what a client of botocore raises."""
        ...

    def close(self) -> None:
        """Let connections go."""
        ...


def open_runtime(
    session: Session,
    *,
    is_default: bool,
    model: str,
    region: str,
    url: str | None,
    options: Options,
) -> Runtime:
    """A runtime without a client where the session's settings are plain, else with one.

    ``is_default`` tells a session that nobody chose, which boto3 may stand in for.
    """
    core = core_of(session)
    timeouts_s = (min(_LONGEST_CONNECT_S, options.timeout_s), options.timeout_s)
    user_agent = f"{(core or botocore.session.Session()).user_agent()} {_PRODUCT}"
    if core and (endpoint := find_endpoint(core, region, url)):
        return SignedRuntime(
            core,
            endpoint,
            model=model,
            region=region,
            user_agent=user_agent,
            timeouts_s=timeouts_s,
            connections=options.max_concurrency,
        )
    config = Config(
        max_pool_connections=options.max_concurrency,
        connect_timeout=timeouts_s[0],
        read_timeout=timeouts_s[1],
        retries={"total_max_attempts": 1, "mode": "standard"},
        tcp_keepalive=True,
        # Given whole, it is not put together anew, twice, for every request.
        user_agent=user_agent,
    )
    # A mock of boto3 is asked by boto3's own names only.
    maker: Any = sys.modules["boto3"] if is_default and is_boto3_replaced() else session
    make = maker.create_client if isinstance(maker, botocore.session.Session) else maker.client
    client: Any = make(SERVICE, region_name=region, endpoint_url=url, config=config)
    return ClientRuntime(client, model, is_ours=True)


def region_of(session: Session) -> str | None:
    """The region that a session itself says."""
    if isinstance(session, botocore.session.Session):
        region: str | None = session.get_config_variable("region")
        return region
    return session.region_name


def core_of(session: Session) -> botocore.session.Session | None:
    """The botocore session that a session is or wraps; None for one of another kind."""
    found: Any = session
    boto3_session = sys.modules.get("boto3.session")
    if boto3_session and type(session) is boto3_session.Session and "client" not in vars(session):
        found = found._session  # noqa: SLF001 - boto3 shows its settings nowhere else
    return found if type(found) is botocore.session.Session else None


class ClientRuntime:
    """A model asked through a client of boto3: the user's own, which stays open, or our own."""

    def __init__(self, client: BedrockRuntimeClient, model: str, *, is_ours: bool) -> None:
        self._client = client
        self._model = model
        self._is_ours = is_ours

    @property
    def region(self) -> str:
        """Where the model is asked."""
        return self._client.meta.region_name

    def invoke(self, body: bytes) -> bytes:
        """The answer to one request; blocks. Raises what the client does."""
        answer = self._client.invoke_model(
            modelId=self._model,
            body=QuietBytes(body),
            accept="application/json",
            contentType="application/json",
        )
        return answer["body"].read()

    def close(self) -> None:
        """Let the client's connections go, if it is ours."""
        if self._is_ours:
            self._client.close()
