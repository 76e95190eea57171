"""An entrypoint that takes notes and a graph that answers from them, in blocking code.

A checkpointer remembers one thread; the store is what all threads of all processes share.
"""

from typing import TypedDict
from uuid import NAMESPACE_OID, uuid5

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_store
from langgraph.func import entrypoint
from langgraph.graph import END, START, StateGraph
from settings import EMBEDDING_MODEL

from langgraph_aurora_store import AuroraStore

# The cluster, user and database come from AURORA_CLUSTER, AURORA_USER and AURORA_DATABASE.
store = AuroraStore.from_cluster(index={"embed": EMBEDDING_MODEL, "fields": ["text"]})


@entrypoint(store=store, checkpointer=InMemorySaver())
def take_note(note: dict[str, str], *, previous: int | None = None) -> int:
    """Store a note for good; count the notes of this thread in its checkpoint."""
    # A key made from the text: the same note twice is one memory.
    key = str(uuid5(NAMESPACE_OID, note["text"]))
    get_store().put(("notes", note["user_id"]), key, {"text": note["text"]})
    return (previous or 0) + 1


class Question(TypedDict, total=False):
    user_id: str
    text: str
    notes: list[str]
    answer: str


def recall(question: Question) -> Question:
    found = get_store().search(("notes", question["user_id"]), query=question["text"], limit=1)
    return {"notes": [item.value["text"] for item in found]}


def reply(question: Question) -> Question:
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


def main() -> None:
    with store:
        store.setup()
        for text in ("I live in Lisbon.", "My dog is called Rex."):
            count = take_note.invoke(
                {"user_id": "ada", "text": text}, {"configurable": {"thread_id": "monday"}}
            )
            print(f"thread monday:  ada: {text} ({count} in this thread)")
        for user_id in ("ada", "grace"):
            state = answer.invoke(
                {"user_id": user_id, "text": "Where do I live?"},
                {"configurable": {"thread_id": f"tuesday-{user_id}"}},
            )
            print(f"thread tuesday: {user_id}: Where do I live? {state['answer']}")


if __name__ == "__main__":
    main()
