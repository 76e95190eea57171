"""Who may see which memories: the server asks this before each request to its store API."""

from typing import Any

from langgraph_sdk import Auth

auth = Auth()

# Stands for your identity provider: verify a signed token here instead.
USERS = {"ada-key": "ada", "grace-key": "grace"}

# How long an item lives that is put by HTTP without a ttl of its own.
TTL_MINUTES = 365 * 24 * 60


@auth.authenticate
async def authenticate(authorization: str | None) -> str:
    user = USERS.get((authorization or "").removeprefix("Bearer "))
    if user is None:
        raise Auth.exceptions.HTTPException(status_code=401, detail="unknown key")
    return user


@auth.on
async def read_only(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> bool:  # noqa: ARG001
    """What no other handler is about, such as the assistants."""
    return ctx.action in ("read", "search")


@auth.on.threads
async def own_threads(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> dict[str, str]:
    owner = {"owner": ctx.user.identity}
    value.setdefault("metadata", {}).update(owner)
    return owner


@auth.on.store
async def own_memories(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> bool:
    """Below ("notes", user) a user may do everything, elsewhere nothing."""
    return tuple(value["namespace"] or ())[:2] == ("notes", ctx.user.identity)


@auth.on.store.put
async def own_memories_expire(ctx: Auth.types.AuthContext, value: dict[str, Any]) -> bool:
    """The server hands ttl=None on, which means "for ever", so a default is set here."""
    if value["ttl"] is None:
        value["ttl"] = TTL_MINUTES
    return await own_memories(ctx=ctx, value=value)


@auth.on.store.search
async def readable(
    ctx: Auth.types.AuthContext, value: dict[str, Any]
) -> bool | dict[str, dict[str, list[str]]]:
    """In ("team",) a user finds what names them in its list of readers.

    The server joins this filter to the request's own by $and. A list after $contains asks for an
    element of a list; a text would also be found within a text, "ada" in "adam".
    """
    if tuple(value["namespace"])[:1] == ("team",):
        return {"readers": {"$contains": [ctx.user.identity]}}
    return await own_memories(ctx=ctx, value=value)
