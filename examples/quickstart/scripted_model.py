"""A scripted chat model for machines without an API key: rules in place of a language model.

It plays both parts that LangMem and the agent ask of a model: extracting what a user says about
their interests, and answering from the memories it is shown. It knows nothing else.
"""

import re

from local_services.openai_service import ChatReply, ChatRequest, ToolCall

INTERESTS = re.compile(r"(?:my interests are|I am (?:also )?interested in) ([^.!?\n]+)", re.I)
HUMAN_TURN = re.compile(r"=+ Human Message =+\s+(.*?)(?=\n=+ |</session|\Z)", re.S)
MEMORY = re.compile(r"^- The user is interested in (.+)$", re.M)


def script(request: ChatRequest) -> ChatReply:
    """Answer as LangMem's memory model when it offers the Memory tool, else as the agent."""
    return remember(request) if "Memory" in request.tools else answer(request)


def remember(request: ChatRequest) -> ChatReply:
    """One Memory call for each interest the user named."""
    said = " ".join(HUMAN_TURN.findall(request.said_by("user")[-1]))
    interests = (
        interest
        for sentence in INTERESTS.findall(said)
        for interest in re.split(r",\s*|\s+and\s+", sentence)
        if interest
    )
    return ChatReply(
        tool_calls=tuple(
            ToolCall("Memory", {"content": f"The user is interested in {interest}"})
            for interest in interests
        )
    )


def answer(request: ChatRequest) -> ChatReply:
    """What the agent says, from the memories its system prompt lists."""
    interests = MEMORY.findall("\n".join(request.said_by("system")))
    if "three topics" not in request.said_by("user")[-1]:
        return ChatReply("Noted. I will remember that.")
    if not interests:
        return ChatReply("I know nothing about you yet. What are you interested in?")
    topics = "; ".join(f"what is new in {interest}" for interest in interests[:3])
    return ChatReply(f"Because you told me what you like: {topics}.")
