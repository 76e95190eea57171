"""The same entrypoint and graph under asyncio; it finds what the first process stored."""

import asyncio
from typing import TypedDict
from uuid import NAMESPACE_OID, uuid5

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_store
from langgraph.func import entrypoint
from langgraph.graph import END, START, StateGraph
from settings import EMBEDDING_MODEL

from langgraph_aurora_store import AsyncAuroraStore

# Made outside of any event loop, used on whichever runs.
store = AsyncAuroraStore.from_cluster(index={"embed": EMBEDDING_MODEL, "fields": ["text"]})


@entrypoint(store=store, checkpointer=InMemorySaver())
async def take_note(note: dict[str, str], *, previous: int | None = None) -> int:
    """Store a note for good; count the notes of this thread in its checkpoint."""
    key = str(uuid5(NAMESPACE_OID, note["text"]))
    await get_store().aput(("notes", note["user_id"]), key, {"text": note["text"]})
    return (previous or 0) + 1


class Question(TypedDict, total=False):
    user_id: str
    text: str
    notes: list[str]
    answer: str


async def recall(question: Question) -> Question:
    namespace = ("notes", question["user_id"])
    found = await get_store().asearch(namespace, query=question["text"], limit=1)
    return {"notes": [item.value["text"] for item in found]}


async def reply(question: Question) -> Question:
    notes = question["notes"]
    return {"answer": f"You told me: {notes[0]}" if notes else "You never told me."}


answer = (
    StateGraph(Question)
    .add_node(recall)
    .add_node(reply)
    .add_edge(START, "recall")
    .add_edge("recall", "reply")
    .add_edge("reply", END)
    .compile(store=store, checkpointer=InMemorySaver())
)


async def note(user_id: str, text: str) -> None:
    config = {"configurable": {"thread_id": f"wednesday-{user_id}"}}
    await take_note.ainvoke({"user_id": user_id, "text": text}, config)
    print(f"thread wednesday: {user_id}: {text}")


async def ask(user_id: str, text: str) -> None:
    config = {"configurable": {"thread_id": f"thursday-{user_id}"}}
    state = await answer.ainvoke({"user_id": user_id, "text": text}, config)
    print(f"thread thursday:  {user_id}: {text} {state['answer']}")


async def main() -> None:
    async with store:
        await store.setup()
        await asyncio.gather(
            note("grace", "I live in Porto."),
            note("linus", "I live on a boat."),
        )
        await ask("ada", "What is my dog called?")
        await asyncio.gather(ask("grace", "Where do I live?"), ask("linus", "Where do I live?"))


if __name__ == "__main__":
    asyncio.run(main())
