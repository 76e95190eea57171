"""The agent: what you would write. It remembers what users say and answers with what it knows."""

from langchain.chat_models import init_chat_model
from langgraph.func import entrypoint
from langmem import create_memory_store_manager
from settings import CHAT_MODEL, EMBEDDING_MODEL

from langgraph_aurora_store import AuroraStore

# The cluster, user and database come from AURORA_CLUSTER, AURORA_USER and AURORA_DATABASE.
# Nothing connects before the first use, so this is safe at import time.
store = AuroraStore.from_cluster(index={"embed": EMBEDDING_MODEL, "fields": ["content"]})
# What was said, by thread, is kept in the same database on the same connections.
saver = store.checkpointer()
model = init_chat_model(CHAT_MODEL)
manager = create_memory_store_manager(CHAT_MODEL, namespace=("chat", "{user_id}"), store=store)


@entrypoint(store=store, checkpointer=saver)
def chat(request: dict[str, str], *, previous: list[str] | None = None) -> list[str]:
    """Answer one message of one user, with that user's memories, then learn from it.

    Returns the thread so far, questions and answers in turn, which is also its state.
    """
    memories = store.search(("chat", request["user_id"]), query=request["text"], limit=5)
    known = "\n".join(f"- {item.value['content']['content']}" for item in memories)
    reply = model.invoke(
        [
            ("system", f"Answer briefly. What you remember of this user:\n{known or '- nothing'}"),
            ("user", request["text"]),
        ]
    ).text
    manager.invoke(
        {
            "messages": [
                {"role": "user", "content": request["text"]},
                {"role": "assistant", "content": reply},
            ]
        }
    )
    return [*(previous or []), request["text"], reply]


def ask(user_id: str, text: str) -> str:
    """Send one message as one user."""
    return chat.invoke({"user_id": user_id, "text": text}, thread(user_id))[-1]


def said_before(user_id: str) -> list[str]:
    """What the user's thread holds: questions and answers in turn."""
    return chat.get_state(thread(user_id)).values or []


def thread(user_id: str) -> dict[str, dict[str, str]]:
    """The configuration of a user's only thread."""
    return {"configurable": {"user_id": user_id, "thread_id": f"chat with {user_id}"}}
