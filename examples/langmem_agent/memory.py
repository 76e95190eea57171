"""The memory of the blocking programs: a store, and a manager that reads conversations."""

from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.store.base import GetOp
from langmem import create_memory_store_manager
from schemas import Fact, Preference
from settings import CHAT_MODEL, EMBEDDING_MODEL

from langgraph_aurora_store import AuroraStore

# The cluster, user and database come from AURORA_CLUSTER, AURORA_USER and AURORA_DATABASE.
store = AuroraStore.from_cluster(index={"embed": EMBEDDING_MODEL, "fields": ["content"]})

# With store=, for a manager without one keeps the first it ever sees. The tools of the agent write
# elsewhere, for a manager cannot read what they store.
manager = create_memory_store_manager(
    CHAT_MODEL,
    schemas=[Preference, Fact],
    namespace=("profile", "{user_id}"),
    store=store,
    enable_deletes=True,  # LangMem's default is to insert and update only
)


class LostMemoryError(RuntimeError):
    """A memory that the manager reported was not stored."""


class Learner(Runnable[dict[str, Any], list[dict[str, Any]]]):
    """The manager, for blocking code: raises when a memory it reports did not arrive.

    LangMem's blocking ``invoke`` reports success without looking at the outcome of its writes.
    The store has logged each lost one at ERROR, with the reason.
    """

    namespace = manager.namespace  # what ReflectionExecutor asks for

    def invoke(
        self,
        input: dict[str, Any],  # noqa: A002 - the name upstream gives it
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Update the memories of the configured user from ``input["messages"]``."""
        reported = manager.invoke(input, config, **kwargs)
        found = store.batch([GetOp(put["namespace"], put["key"]) for put in reported])
        for put, item in zip(reported, found, strict=True):
            if item is None or item.value != put["value"]:
                raise LostMemoryError(f"not stored: {put['namespace']}, {put['key']}")
        return reported


learner = Learner()
