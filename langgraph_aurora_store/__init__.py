"""Long-term memory for LangGraph and LangMem agents on Amazon Aurora PostgreSQL."""

from langgraph_aurora_store.aio import AsyncAuroraStore
from langgraph_aurora_store.store import AuroraStore
from langgraph_aurora_store.version import __version__

__all__ = ["AsyncAuroraStore", "AuroraStore", "__version__"]
