"""Calling an asyncio store from blocking code: on its event loop, from another thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from langgraph_aurora_store.errors import WrongLoopError

T = TypeVar("T")

# A loop that has run no callback for this long is blocked, maybe by the caller of this very call.
BLOCKED_AFTER_S = 5.0


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop of this thread, if it runs one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def call_from_thread(
    make: Callable[[], Coroutine[Any, Any, T]],
    loop: asyncio.AbstractEventLoop | None,
    name: str = "AsyncAuroraStore",
) -> T:
    """Run a coroutine on ``loop`` and wait for it, from a thread that runs no loop itself.

    ``name`` is that of the class whose method it is.

    Raises:
        WrongLoopError: this thread runs a loop, or ``loop`` does not run, or is blocked.
    """
    blocking_name = name.removeprefix("Async")
    if running_loop() is not None:
        raise WrongLoopError(
            f"a blocking method of {name} was called on a thread that runs an event loop; await its"
            f" async twin there, whose name begins with an a, or use {blocking_name}"
        )
    if loop is None or not loop.is_running():
        raise WrongLoopError(
            f"a blocking method of {name} needs the event loop that it was used on to be running"
            f" in another thread, and none is; use {blocking_name} in blocking code"
        )
    future = asyncio.run_coroutine_threadsafe(make(), loop)
    while True:
        heartbeat = threading.Event()
        loop.call_soon_threadsafe(heartbeat.set)
        try:
            return future.result(BLOCKED_AFTER_S)
        except concurrent.futures.TimeoutError:
            if future.done():
                raise  # the operation's own TimeoutError
            if not heartbeat.is_set():
                future.cancel()
                raise WrongLoopError(
                    f"the event loop of this {name} has been blocked for"
                    f" {BLOCKED_AFTER_S:g} s, perhaps by the very code that waits for this call;"
                    f" use {blocking_name} in blocking code, or await the async methods"
                ) from None
