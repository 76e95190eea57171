"""A graph that the server runs: it notes what a user says, and answers from their notes."""

from typing import TypedDict
from uuid import NAMESPACE_OID, uuid5

from langgraph.config import get_config, get_store
from langgraph.graph import END, START, StateGraph


class Message(TypedDict, total=False):
    text: str
    answer: str


async def answer(message: Message) -> Message:
    """The server's own store, on whichever of its threads this runs."""
    store = get_store()
    # Set by the server from what auth.py returned; never taken from the request's body.
    namespace = ("notes", get_config()["configurable"]["langgraph_auth_user_id"])
    text = message["text"]
    if text.endswith("?"):
        found = await store.asearch(namespace, query=text, limit=1)
        return {"answer": found[0].value["text"] if found else "You never told me."}
    await store.aput(namespace, str(uuid5(NAMESPACE_OID, text)), {"text": text})
    return {"answer": "Noted."}


agent = (
    StateGraph(Message).add_node(answer).add_edge(START, "answer").add_edge("answer", END).compile()
)
