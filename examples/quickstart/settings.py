"""Which models the quickstart uses: OpenAI's with a key, Bedrock's with AWS credentials."""

import os

CHAT_MODEL = os.environ.get("QUICKSTART_CHAT_MODEL", "openai:gpt-4.1-mini")
EMBEDDING_MODEL = os.environ.get("QUICKSTART_EMBEDDING_MODEL", "openai:text-embedding-3-small")
