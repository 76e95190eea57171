"""The function behind a Function URL: `{"user_id", "prompt"}` in, the answer out.

Everything at module level is made once for a sandbox and serves all of its invocations.
"""

import logging
from dataclasses import replace

import boto3
import openai
import psycopg
import settings
from langchain.chat_models import init_chat_model
from langgraph.store.base import SearchItem
from langmem import create_memory_manager
from lifetime import describe, finish_within, let_sleep
from preferences import Preference, learn, recall
from web import HttpError, Request, parse_event, reply

from langgraph_aurora_store import AuroraStore
from langgraph_aurora_store.connect.pool_settings import PoolSettings
from langgraph_aurora_store.errors import AuroraStoreError

INSTRUCTIONS = "Answer briefly. What you know of this user's preferences, from earlier talks:"

logger = logging.getLogger(__name__)

session = boto3.Session()  # one for all, as each one reads botocore's tables again
settings.load_openai_key(session)
# Cluster, role and database come from AURORA_CLUSTER, AURORA_USER and AURORA_DATABASE. A sandbox
# serves one invocation at a time, which needs one connection.
store = AuroraStore.from_cluster(
    session=session,
    pool=replace(PoolSettings.for_lambda(), max_size=1),
    index=settings.make_index(session),
)
client = openai.OpenAI(timeout=settings.MODEL_TIMEOUT_S, max_retries=1)
memory_model = init_chat_model(
    settings.MEMORY_MODEL, timeout=settings.MODEL_TIMEOUT_S, max_retries=1
)
manager = create_memory_manager(memory_model, schemas=[Preference], enable_deletes=True)

# The first connection is made in the init phase. Where that fails, or takes longer than the phase
# may (a paused cluster resumes in 15 s and more), the invocation that follows tries again.
finish_within(settings.INIT_CONNECT_S, "connecting in the init phase", store.open)


def handler(event: dict, context) -> dict:
    """Answer a prompt from what is known of its user, and learn from it."""
    try:
        return reply(200, converse(parse_event(event), context))
    except HttpError as error:
        level = logging.ERROR if error.status >= 500 else logging.INFO
        reason = describe(error.__cause__) if error.__cause__ else error
        logger.log(level, "%d %s: %s", error.status, error.code, reason)
        return error.reply()


def converse(request: Request, context) -> dict:
    """The body of a good answer; ``remembered`` says whether the preferences are up to date."""
    known = find_preferences(request)
    answer = ask(request.prompt, known)

    def remember() -> None:
        try:
            learn(store, manager, request, known, answer)
        finally:
            let_sleep(store)

    # Whatever becomes of the memory, there is an answer, and the time to hand it back.
    left_s = context.get_remaining_time_in_millis() / 1000 - settings.REPLY_S
    what = f"updating the preferences of user {request.user_id!r}"
    return {"answer": answer, "remembered": finish_within(left_s, what, remember)}


def find_preferences(request: Request) -> list[SearchItem]:
    try:
        return recall(store, request)
    except (AuroraStoreError, psycopg.Error) as error:
        message = "the memory cannot be reached; try again"
        raise HttpError(503, "memory_unavailable", message, Retry_After="5") from error


def ask(prompt: str, known: list[SearchItem]) -> str:
    """One answer of OpenAI's Responses API, which is asked to keep none of it."""
    facts = [f"- {item.value['content']['description']}" for item in known] or ["- nothing yet"]
    try:
        response = client.responses.create(
            model=settings.CHAT_MODEL,
            instructions="\n".join([INSTRUCTIONS, *facts]),
            input=prompt,
            store=False,
        )
    except openai.OpenAIError as error:
        message = "the model cannot be reached; try again"
        raise HttpError(502, "model_unavailable", message) from error
    return response.output_text
