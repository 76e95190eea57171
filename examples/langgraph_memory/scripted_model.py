"""A scripted chat model for machines without an API key: rules in place of a language model.

It calls the agent's tools as asked and repeats what they answer. It knows nothing else.
"""

import re

from local_services.openai_service import ChatReply, ChatRequest, ToolCall

WISH = re.compile(r"remember that (.+?)\.?$", re.I)


def script(request: ChatRequest) -> ChatReply:
    """Call remember or recall for a new message, and answer once a tool has."""
    role, text = request.messages[-1]
    if role == "tool":
        return ChatReply("Noted." if text == "remembered" else f"I know: {text}")
    if wish := WISH.search(text):
        return ChatReply(tool_calls=(ToolCall("remember", {"text": f"The user says: {wish[1]}"}),))
    return ChatReply(tool_calls=(ToolCall("recall", {"query": text}),))
