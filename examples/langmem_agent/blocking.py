"""A manager that inserts, updates and deletes memories, from one conversation after another."""

from memory import learner, store

CONVERSATIONS = {
    "inserts": "I like green tea. I live in Lisbon.",
    "updates": "I moved to Porto.",
    "deletes": "Forget what I said about green tea.",
}


def main() -> None:
    config = {"configurable": {"user_id": "ada"}}
    with store:
        store.setup()
        for what, text in CONVERSATIONS.items():
            messages = [
                {"role": "user", "content": text},
                {"role": "assistant", "content": "I see."},
            ]
            learner.invoke({"messages": messages}, config)
            print(f"ada: {text} (LangMem {what})")
            for item in store.search(("profile", "ada")):
                print(f"  {item.value['kind']}: {item.value['content']}")


if __name__ == "__main__":
    main()
