"""What can be set from outside, and the one secret: OpenAI's key."""

import os

from langgraph_aurora_store.embeddings import BedrockEmbeddings, OpenAIEmbeddings

EMBEDDING_MODEL = os.environ.get("EMBEDDING_MODEL", "bedrock:amazon.titan-embed-text-v2:0")
CHAT_MODEL = os.environ.get("CHAT_MODEL", "gpt-4.1-mini")
MEMORY_MODEL = os.environ.get("MEMORY_MODEL", "openai:gpt-4.1-mini")

MAX_PROMPT_CHARS = 8_000
# Whether only users that the bootstrap function was told of are answered.
REGISTERED_USERS_ONLY = os.environ.get("REGISTERED_USERS_ONLY", "false") == "true"
MODEL_TIMEOUT_S = 15.0
EMBEDDING_DEADLINE_S = float(os.environ.get("EMBEDDING_DEADLINE_S", "10"))
# Lambda ends an init phase after 10 s, and the imports take their share of it.
INIT_CONNECT_S = float(os.environ.get("INIT_CONNECT_S", "4"))
# Kept of an invocation's time, to hand the answer back.
REPLY_S = 1.0


def make_index(session):
    """What the store embeds, and with what; retries end well within an invocation."""
    provider, _, model = EMBEDDING_MODEL.partition(":")
    if provider == "openai":
        embed = OpenAIEmbeddings(model, deadline_s=EMBEDDING_DEADLINE_S)
    else:
        embed = BedrockEmbeddings(model, session=session, deadline_s=EMBEDDING_DEADLINE_S)
    return {"embed": embed, "fields": ["content"]}


def load_openai_key(session):
    """Put the key where OpenAI's clients look: from OPENAI_SECRET_ARN, unless it is there.

    So it stands neither in the template nor in the function's configuration.
    """
    if "OPENAI_API_KEY" not in os.environ:
        if "OPENAI_SECRET_ARN" not in os.environ:
            raise RuntimeError("set OPENAI_SECRET_ARN to the ARN of a secret that is OpenAI's key")
        secrets = session.client("secretsmanager")
        secret = secrets.get_secret_value(SecretId=os.environ["OPENAI_SECRET_ARN"])
        os.environ["OPENAI_API_KEY"] = secret["SecretString"].strip()
