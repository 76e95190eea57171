"""What a user of the server does: run the graph, and use the store API, by langgraph-sdk."""

import asyncio
import sys
from typing import Any

from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient


def client(url: str, user_id: str) -> LangGraphClient:
    return get_client(url=url, headers={"Authorization": f"Bearer {user_id}-key"})


async def say(user: LangGraphClient, text: str) -> None:
    thread = await user.threads.create()
    state: Any = await user.runs.wait(thread["thread_id"], "agent", input={"text": text})
    print(f"{text} {state['answer']}")


async def main(url: str) -> None:
    ada, grace = client(url, "ada"), client(url, "grace")

    print("the graph, a thread for each message:")
    await say(ada, "I live in Lisbon.")
    await say(ada, "Where do I live?")
    await say(grace, "Where do I live?")

    print("the store API:")
    tea = {"text": "Drinks green tea.", "kind": "taste"}
    await ada.store.put_item(["notes", "ada"], key="tea", value=tea)
    print("get:", (await ada.store.get_item(["notes", "ada"], key="tea"))["value"])
    found = await ada.store.search_items(["notes", "ada"], query="which tea?", limit=1)
    print("search by meaning:", [item["value"]["text"] for item in found["items"]])
    found = await ada.store.search_items(["notes", "ada"], filter={"kind": "taste"})
    print("search by filter:", [item["value"]["text"] for item in found["items"]])
    namespaces = await ada.store.list_namespaces(prefix=["notes", "ada"])
    print("namespaces:", namespaces["namespaces"])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
