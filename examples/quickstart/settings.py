"""Which models the quickstart uses; any that langchain's init_chat_model and the store know."""

import os

CHAT_MODEL = os.environ.get("EXAMPLE_CHAT_MODEL", "openai:gpt-4.1-mini")
EMBEDDING_MODEL = os.environ.get("EXAMPLE_EMBEDDING_MODEL", "openai:text-embedding-3-small")
