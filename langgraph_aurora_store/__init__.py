"""Long-term memory for LangGraph and LangMem agents on Amazon Aurora PostgreSQL."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from langgraph_aurora_store.version import __version__

if TYPE_CHECKING:
    from langgraph_aurora_store.aio import AsyncAuroraStore
    from langgraph_aurora_store.connect.credentials import (
        IamCredentials,
        PasswordCredentials,
        SecretsManagerCredentials,
    )
    from langgraph_aurora_store.connect.settings import PoolSettings
    from langgraph_aurora_store.embeddings import BedrockEmbeddings, OpenAIEmbeddings
    from langgraph_aurora_store.store import AuroraStore

__all__ = [
    "AsyncAuroraStore",
    "AuroraStore",
    "BedrockEmbeddings",
    "IamCredentials",
    "OpenAIEmbeddings",
    "PasswordCredentials",
    "PoolSettings",
    "SecretsManagerCredentials",
    "__version__",
]

# Imported when first asked for: most programs use one of the stores and neither of the rest.
_ON_DEMAND = {
    "AsyncAuroraStore": "aio",
    "AuroraStore": "store",
    "BedrockEmbeddings": "embeddings",
    "IamCredentials": "connect.credentials",
    "OpenAIEmbeddings": "embeddings",
    "PasswordCredentials": "connect.credentials",
    "PoolSettings": "connect.settings",
    "SecretsManagerCredentials": "connect.credentials",
}


def __getattr__(name: str) -> object:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ON_DEMAND[name]}"), name)
