"""Long-term memory for LangGraph and LangMem agents on Amazon Aurora PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langgraph_aurora_store.lazy_imports import lazy_attributes
from langgraph_aurora_store.version import __version__

if TYPE_CHECKING:
    from langgraph_aurora_store.aio import AsyncAuroraStore
    from langgraph_aurora_store.checkpoint.aio import AsyncAuroraSaver
    from langgraph_aurora_store.checkpoint.saver import AuroraSaver
    from langgraph_aurora_store.connect.credentials import (
        IamCredentials,
        PasswordCredentials,
        SecretsManagerCredentials,
    )
    from langgraph_aurora_store.connect.pool_settings import PoolSettings
    from langgraph_aurora_store.embeddings import BedrockEmbeddings, OpenAIEmbeddings
    from langgraph_aurora_store.execution.retry import RetrySettings
    from langgraph_aurora_store.label_encoding import decode_label, encode_label
    from langgraph_aurora_store.store import AuroraStore

__all__ = [
    "AsyncAuroraSaver",
    "AsyncAuroraStore",
    "AuroraSaver",
    "AuroraStore",
    "BedrockEmbeddings",
    "IamCredentials",
    "OpenAIEmbeddings",
    "PasswordCredentials",
    "PoolSettings",
    "RetrySettings",
    "SecretsManagerCredentials",
    "__version__",
    "decode_label",
    "encode_label",
]

# Imported when first asked for: most programs use one of the stores and neither of the rest.
__getattr__ = lazy_attributes(
    __name__,
    {
        "AsyncAuroraSaver": "checkpoint.aio",
        "AsyncAuroraStore": "aio",
        "AuroraSaver": "checkpoint.saver",
        "AuroraStore": "store",
        "BedrockEmbeddings": "embeddings",
        "IamCredentials": "connect.credentials",
        "OpenAIEmbeddings": "embeddings",
        "PasswordCredentials": "connect.credentials",
        "PoolSettings": "connect.pool_settings",
        "RetrySettings": "execution.retry",
        "SecretsManagerCredentials": "connect.credentials",
        "decode_label": "label_encoding",
        "encode_label": "label_encoding",
    },
)
