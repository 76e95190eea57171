"""LangGraph operations as SQL: pure functions and flows that do no I/O."""
