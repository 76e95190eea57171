"""What a user may choose of any embedding service."""

from __future__ import annotations

from dataclasses import dataclass

from langgraph_aurora_store.embeddings.formats import Truncate
from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.validation import brief, within

MOST_CONCURRENT = 1024
MOST_QUERIES = 1_000_000
SHORTEST_S = 0.001
LONGEST_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The choices that every service of this package shares; validated when made.

    ``max_concurrency`` bounds the requests under way at a time. ``deadline_s`` is the time within
    which a request may be tried again, ``timeout_s`` bounds one attempt, so a request ends at the
    latest ``timeout_s`` after its deadline. ``truncate`` says whether a text over the model's
    limit is cut with a warning or an error. ``query_cache_size`` is the number of query vectors
    kept in memory, 0 for none; they take 32 MiB at most, and no text is kept.
    """

    max_concurrency: int = 16
    deadline_s: float = 60.0
    timeout_s: float = 15.0
    truncate: Truncate = "warn"
    query_cache_size: int = 128

    def __post_init__(self) -> None:
        """Refuse what could not work."""
        within("max_concurrency", self.max_concurrency, 1, MOST_CONCURRENT)
        within("deadline_s", self.deadline_s, SHORTEST_S, LONGEST_S, whole=False)
        within("timeout_s", self.timeout_s, SHORTEST_S, LONGEST_S, whole=False)
        within("query_cache_size", self.query_cache_size, 0, MOST_QUERIES)
        if self.truncate not in ("warn", "error"):
            raise ConfigurationError(f'truncate={brief(self.truncate)}: pass "warn" or "error"')
