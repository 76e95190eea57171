"""What a user may choose of any embedding service."""

from __future__ import annotations

from dataclasses import dataclass

from langgraph_aurora_store.embeddings.families import Truncate
from langgraph_aurora_store.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The choices that every service of this package shares; validated when made.

    ``max_concurrency`` bounds the requests under way at a time. ``deadline_s`` is the time within
    which a request may be tried again, ``timeout_s`` bounds one attempt, so a request ends at the
    latest ``timeout_s`` after its deadline. ``truncate`` says whether a text over the model's
    limit is cut with a warning or an error. ``query_cache_size`` is the number of query vectors
    kept in memory, 0 for none.
    """

    max_concurrency: int = 16
    deadline_s: float = 60.0
    timeout_s: float = 15.0
    truncate: Truncate = "warn"
    query_cache_size: int = 128

    def __post_init__(self) -> None:
        """Refuse what could not work."""
        if self.max_concurrency < 1:
            raise ConfigurationError(f"max_concurrency={self.max_concurrency}: pass 1 or more")
        if self.deadline_s <= 0 or self.timeout_s <= 0:
            raise ConfigurationError(
                f"deadline_s={self.deadline_s}, timeout_s={self.timeout_s}: pass seconds above 0"
            )
        if self.truncate not in ("warn", "error"):
            raise ConfigurationError(f'truncate={self.truncate!r}: pass "warn" or "error"')
        if self.query_cache_size < 0:
            raise ConfigurationError(
                f"query_cache_size={self.query_cache_size}: pass 0 to keep none"
            )
