"""The second process: nothing is shared with the first but the database."""

from agent import ask, store

with store:
    for user in ("ada", "grace"):
        text = "Suggest three topics I should read about."
        print(f"{user + ':':6} {text}")
        print(f"agent: {ask(user, text)}")
