"""Fifty users at once through one manager and one agent, under asyncio."""

import asyncio
import time

from langchain.agents import create_agent
from langmem import (
    create_manage_memory_tool,
    create_memory_store_manager,
    create_search_memory_tool,
)
from schemas import Fact, Preference
from settings import CHAT_MODEL, EMBEDDING_MODEL

from langgraph_aurora_store import AsyncAuroraStore

USERS = [f"user-{number}" for number in range(1, 51)]
NOTES = ("notes", "{user_id}")

store = AsyncAuroraStore.from_cluster(index={"embed": EMBEDDING_MODEL, "fields": ["content"]})
manager = create_memory_store_manager(
    CHAT_MODEL,
    schemas=[Preference, Fact],
    namespace=("profile", "{user_id}"),
    store=store,
    enable_deletes=True,
)
agent = create_agent(
    CHAT_MODEL, [create_manage_memory_tool(NOTES), create_search_memory_tool(NOTES)], store=store
)


async def learn(user_id: str) -> None:
    """Under asyncio a write that fails raises here."""
    messages = [
        {"role": "user", "content": f"I like blend {user_id}. I live in {user_id} street."},
        {"role": "assistant", "content": "I see."},
    ]
    await manager.ainvoke({"messages": messages}, {"configurable": {"user_id": user_id}})


async def take_note(user_id: str) -> str:
    request = {"messages": [("user", f"Note that my locker is number {user_id}.")]}
    state = await agent.ainvoke(request, {"configurable": {"user_id": user_id}})
    return state["messages"][-1].text


async def main() -> None:
    async with store:
        await store.setup()
        started = time.monotonic()
        await asyncio.gather(*map(learn, USERS))
        elapsed = time.monotonic() - started
        memories = sum(await asyncio.gather(*(store.acount(("profile", u)) for u in USERS)))
        print(f"{len(USERS)} users at once: {memories} memories in {elapsed:.1f} s")
        first, last, *_ = await asyncio.gather(take_note(USERS[0]), take_note(USERS[-1]))
        print(f"two agents at once: {first} {last}")


if __name__ == "__main__":
    asyncio.run(main())
