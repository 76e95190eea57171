"""Several queries at once: what LangChain's ``Embeddings`` has no method for."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class EmbedsQueries(Protocol):
    """An ``Embeddings`` that also takes many queries in one call; a store uses it where it can.

    The vectors come in the queries' order, as those of ``embed_query`` would.
    """

    def embed_queries(self, texts: list[str]) -> list[list[float]]:
        """A vector to search with for each text; blocks."""
        ...

    async def aembed_queries(self, texts: list[str]) -> list[list[float]]:
        """The same, without blocking the event loop."""
        ...
