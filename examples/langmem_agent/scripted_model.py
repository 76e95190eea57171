"""A scripted chat model for machines without an API key: rules in place of a language model.

It plays both parts that LangMem and the agent ask of a model: keeping memories up to date from a
conversation, and keeping notes with tools. It knows nothing else.
"""

import json
import re

from local_services.openai_service import ChatReply, ChatRequest, ToolCall

HUMAN_TURN = re.compile(r"=+ Human Message =+\s+(.*?)(?=\n=+ |</session|\Z)", re.S)
INSTANCE = re.compile(r'<instance id=(\S+) schema_type="(\w+)">\n(.*?)\n</instance>', re.S)
LIKING = re.compile(r"I like ([^.]+)\.")
HOME = re.compile(r"I (?:live in|moved to) ([^.]+)\.")
FORGOTTEN = re.compile(r"Forget what I said about ([^.]+)\.")
WISH = re.compile(r"(Note that|Correct my note:|Drop my note on) (.+)\.$")


def script(request: ChatRequest) -> ChatReply:
    """Answer as LangMem's memory model when it offers the schemas, else as the agent."""
    return maintain(request) if "Preference" in request.tools else keep_notes(request)


def maintain(request: ChatRequest) -> ChatReply:
    """Insert what is new, patch what has changed, remove what is to be forgotten."""
    said = " ".join(HUMAN_TURN.findall(request.said_by("user")[-1]))
    existing = INSTANCE.findall("\n".join(request.said_by("system")))
    calls = [
        ToolCall("Preference", {"topic": topic, "opinion": "likes it"})
        for topic in LIKING.findall(said)
    ]
    homes = [key for key, _, content in existing if "The user lives in" in content]
    for place in HOME.findall(said):
        statement = f"The user lives in {place}."
        calls.append(patch(homes[0], statement) if homes else fact(statement))
    for topic in FORGOTTEN.findall(said):
        calls += [
            ToolCall("RemoveDoc", {"json_doc_id": key})
            for key, _, content in existing
            if topic in content
        ]
    return ChatReply(tool_calls=tuple(calls))


def fact(statement: str) -> ToolCall:
    return ToolCall("Fact", {"statement": statement})


def patch(key: str, statement: str) -> ToolCall:
    change = {"op": "replace", "path": "/statement", "value": statement}
    return ToolCall(
        "PatchDoc", {"json_doc_id": key, "planned_edits": "a new home", "patches": [change]}
    )


def keep_notes(request: ChatRequest) -> ChatReply:
    """Search before changing or answering; then say what was done or found."""
    role, text = request.messages[-1]
    wish, matter = wished(request.said_by("user")[-1])
    if role == "user" and wish == "Note that":
        return ChatReply(tool_calls=(ToolCall("manage_memory", {"content": matter}),))
    if role == "user":
        return ChatReply(tool_calls=(ToolCall("search_memory", {"query": matter, "limit": 1}),))
    if not text.startswith("["):
        return ChatReply("Done.")
    found = json.loads(text)
    if wish and found:
        action = "update" if wish.startswith("Correct") else "delete"
        change = {"action": action, "id": found[0]["key"], "content": matter}
        return ChatReply(tool_calls=(ToolCall("manage_memory", change),))
    notes = "; ".join(item["value"]["content"] for item in found)
    return ChatReply(f"Your notes say: {notes or 'nothing'}.")


def wished(text: str) -> tuple[str, str]:
    """What a message asks for and what about; a plain question asks for nothing."""
    found = WISH.search(text)
    return (found[1], found[2]) if found else ("", text)
