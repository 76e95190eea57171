"""The first process: set up the store, then let Ada talk to the agent."""

from agent import ask, saver, store

with store:
    store.setup()
    saver.setup()
    for text in (
        "Hello! My interests are cloud services, AWS and Azure.",
        "And I am also interested in AI agents.",
    ):
        print(f"ada:   {text}")
        print(f"agent: {ask('ada', text)}")
