"""An agent with LangMem's tools, whose conversations a manager reads in the background."""

from langchain.agents import create_agent
from langmem import ReflectionExecutor, create_manage_memory_tool, create_search_memory_tool
from memory import learner, store
from settings import CHAT_MODEL

NOTES = ("notes", "{user_id}")
PROMPT = "You are brief. Keep the user's notes with your tools, and search them before you answer."

agent = create_agent(
    CHAT_MODEL,
    [create_manage_memory_tool(NOTES), create_search_memory_tool(NOTES)],
    system_prompt=PROMPT,
    store=store,
)


def converse(user_id: str, *texts: str) -> list[object]:
    """One conversation; returns its messages."""
    messages: list[object] = []
    for text in texts:
        messages = agent.invoke(
            {"messages": [*messages, {"role": "user", "content": text}]},
            {"configurable": {"user_id": user_id}},
        )["messages"]
        print(f"{user_id}: {text}\nagent: {messages[-1].text}")
    return messages


def main() -> None:
    # The executor's thread keeps the process alive until the block is left.
    with store, ReflectionExecutor(learner, store=store) as background:
        store.setup()
        conversation = converse(
            "grace",
            "Note that the spare key is in the shed.",
            "Correct my note: the spare key is under the mat.",
            "Note that the boiler needs a check in May.",
            "Drop my note on the boiler.",
            "Where is the spare key? By the way, I like sailing.",
        )
        # A configuration of its own, for the executor writes into it; a thread_id, for without
        # one each submission cancels the one before, of any user.
        learned = background.submit(
            {"messages": conversation},
            {"configurable": {"user_id": "grace"}},
            thread_id="grace-monday",
        )
        # Waited for: leaving the block with work under way can hang.
        print(f"learned in the background: {[put['value'] for put in learned.result(60)]}")


if __name__ == "__main__":
    main()
