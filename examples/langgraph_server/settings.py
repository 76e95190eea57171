"""Which model embeds; any that the store knows."""

import os

EMBEDDING_MODEL = os.environ.get("EXAMPLE_EMBEDDING_MODEL", "openai:text-embedding-3-small")
