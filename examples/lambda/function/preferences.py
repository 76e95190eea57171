"""What is remembered of a user: preferences, in the shape in which LangMem keeps memories."""

from collections.abc import Iterator
from typing import Any, Literal

import settings
from langchain_core.runnables import Runnable
from langgraph.store.base import GetOp, PutOp, SearchItem, SearchOp
from langmem.knowledge.extraction import ExtractedMemory
from lifetime import let_sleep
from pydantic import BaseModel, Field
from web import HttpError, Request

from langgraph_aurora_store import AuroraStore

USERS = ("users",)
LIMIT = 10


class Preference(BaseModel):
    """One thing that the user likes, dislikes or wants. Call this once for each."""

    topic: str = Field(description="What it is about, in a few words")
    category: str = Field(description="The field it belongs to, such as technology, food, travel")
    interest_level: Literal["low", "medium", "high"] = Field(description="How much they care")
    description: str = Field(description="The preference in one sentence, true by itself")


def namespace_of(user_id: str) -> tuple[str, ...]:
    """Where a user's preferences are."""
    return ("preferences", user_id)


def register(store: AuroraStore, user_ids: list[str]) -> None:
    """Make users known; to do it again changes nothing that matters."""
    store.batch([PutOp(USERS, user_id, {}, index=False) for user_id in user_ids])


def recall(store: AuroraStore, request: Request) -> list[SearchItem]:
    """The user's preferences that the prompt is nearest to.

    One batch, so one round trip tells both whether the user is known and what of them. A user of
    whom nothing is known has no preferences, and is answered.

    Raises:
        HttpError: 404, where only registered users are answered, and this one is not.
    """
    namespace = namespace_of(request.user_id)
    user, known = store.batch(
        [GetOp(USERS, request.user_id), SearchOp(namespace, query=request.prompt, limit=LIMIT)]
    )
    let_sleep(store)  # now: a model that fails or hangs may end the invocation
    if user is None and settings.REGISTERED_USERS_ONLY:
        raise HttpError(404, "unknown_user", f"no user {request.user_id!r} is registered")
    return known


def learn(
    store: AuroraStore,
    manager: Runnable,
    request: Request,
    known: list[SearchItem],
    answer: str,
) -> None:
    """Let LangMem read the exchange, and write what changed in one transaction.

    ``create_memory_store_manager`` would write too, but its ``invoke`` never looks whether its
    writes succeeded (langmem 0.0.30). Here a failure raises, and nothing is half-written.
    """
    memories = manager.invoke(
        {
            "messages": [
                {"role": "user", "content": request.prompt},
                {"role": "assistant", "content": answer},
            ],
            "existing": [(it.key, it.value["kind"], it.value["content"]) for it in known],
        }
    )
    if changes := list(_changes(namespace_of(request.user_id), known, memories)):
        store.batch(changes)


def _changes(
    namespace: tuple[str, ...], known: list[SearchItem], memories: list[ExtractedMemory]
) -> Iterator[PutOp]:
    before = {item.key: item.value for item in known}
    for key, content in memories:
        value: dict[str, Any] | None = None  # which deletes
        if isinstance(content, Preference):
            value = {"kind": "Preference", "content": content.model_dump(mode="json")}
        elif isinstance(content, dict):
            continue  # LangMem hands back what it left as it was
        if value != before.get(key):
            yield PutOp(namespace, key, value)
