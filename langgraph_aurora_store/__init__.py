"""Long-term memory for LangGraph and LangMem agents on Amazon Aurora PostgreSQL."""

__version__ = "0.1.0"
