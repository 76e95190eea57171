"""The agent: what you would write. It remembers what users say and answers with what it knows."""

from langchain.chat_models import init_chat_model
from langgraph.func import entrypoint
from langmem import create_memory_store_manager
from settings import CHAT_MODEL, EMBEDDING_MODEL

from langgraph_aurora_store import AuroraStore

# The cluster, user and database come from AURORA_CLUSTER, AURORA_USER and AURORA_DATABASE.
# Nothing connects before the first use, so this is safe at import time.
store = AuroraStore.from_cluster(index={"embed": EMBEDDING_MODEL, "fields": ["content"]})
model = init_chat_model(CHAT_MODEL)
manager = create_memory_store_manager(CHAT_MODEL, namespace=("chat", "{user_id}"), store=store)


@entrypoint(store=store)
def chat(request: dict[str, str]) -> str:
    """Answer one message of one user, with that user's memories, then learn from it."""
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
    return reply


def ask(user_id: str, text: str) -> str:
    """Send one message as one user."""
    return chat.invoke({"user_id": user_id, "text": text}, {"configurable": {"user_id": user_id}})
