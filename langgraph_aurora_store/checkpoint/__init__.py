"""LangGraph's checkpoints on the connections that the store uses."""
