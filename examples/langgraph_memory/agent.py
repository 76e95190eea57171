"""An agent of langchain with two memory tools, called blocking and under asyncio.

A tool finds the store of the agent by get_store(), and the user in the configuration.
"""

import asyncio
from uuid import NAMESPACE_OID, uuid5

from langchain.agents import create_agent
from langchain.tools import tool
from langgraph.config import get_config, get_store
from settings import CHAT_MODEL, EMBEDDING_MODEL

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore

INDEX = {"embed": EMBEDDING_MODEL, "fields": ["text"]}
PROMPT = "You are brief. Remember what the user tells of themselves; recall before you answer."


def namespace() -> tuple[str, ...]:
    return ("notes", get_config()["configurable"]["user_id"])


def key_for(text: str) -> str:
    return str(uuid5(NAMESPACE_OID, text))


@tool
def remember(text: str) -> str:
    """Remember one fact about the user, as a sentence of its own."""
    get_store().put(namespace(), key_for(text), {"text": text})
    return "remembered"


@tool
def recall(query: str) -> str:
    """Recall facts about the user that are relevant to the query."""
    found = get_store().search(namespace(), query=query, limit=3)
    return "\n".join(item.value["text"] for item in found) or "nothing"


@tool("remember")
async def aremember(text: str) -> str:
    """Remember one fact about the user, as a sentence of its own."""
    await get_store().aput(namespace(), key_for(text), {"text": text})
    return "remembered"


@tool("recall")
async def arecall(query: str) -> str:
    """Recall facts about the user that are relevant to the query."""
    found = await get_store().asearch(namespace(), query=query, limit=3)
    return "\n".join(item.value["text"] for item in found) or "nothing"


def request(text: str) -> dict[str, list[tuple[str, str]]]:
    return {"messages": [("user", text)]}


def blocking() -> None:
    with AuroraStore.from_cluster(index=INDEX) as store:
        store.setup()
        agent = create_agent(CHAT_MODEL, [remember, recall], system_prompt=PROMPT, store=store)
        ada = {"configurable": {"user_id": "ada"}}
        for text in ("Please remember that I play the cello.", "What do you know of my cello?"):
            reply = agent.invoke(request(text), ada)["messages"][-1].text
            print(f"ada: {text}\nagent: {reply}")


async def under_asyncio() -> None:
    async with AsyncAuroraStore.from_cluster(index=INDEX) as store:
        agent = create_agent(CHAT_MODEL, [aremember, arecall], system_prompt=PROMPT, store=store)

        async def ask(user_id: str, text: str) -> None:
            config = {"configurable": {"user_id": user_id}}
            reply = (await agent.ainvoke(request(text), config))["messages"][-1].text
            print(f"{user_id}: {text}\nagent: {reply}")

        await ask("grace", "Please remember that I play the cello in a trio.")
        await asyncio.gather(
            ask("ada", "What do you know of my cello?"),
            ask("grace", "What do you know of my cello?"),
        )


if __name__ == "__main__":
    blocking()
    asyncio.run(under_asyncio())
