"""The second process: nothing is shared with the first but the database."""

from agent import ask, said_before, store

with store:
    for user in ("ada", "grace"):
        print(f"The thread of {user} holds {len(said_before(user))} lines.")
        text = "Suggest three topics I should read about."
        print(f"{user + ':':6} {text}")
        print(f"agent: {ask(user, text)}")
