"""What can be typed to a local Aurora that runs as a command: one line, one method."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from langgraph_aurora_store.errors import AuroraStoreError
from langgraph_aurora_store.local.aurora import LocalAurora


class Command(NamedTuple):
    """One command: its arguments' names and kinds, and the method it calls."""

    arguments: tuple[tuple[str, Callable[[str], Any]], ...]
    required: int
    does: str
    run: Callable[..., object]


def _seconds(text: str) -> float:
    return float(text)


def _switch(text: str) -> bool:
    return {"on": True, "off": False}[text]


def _limit(text: str) -> float | None:
    return None if text == "off" else float(text)


def _fail_over(cluster: LocalAurora, demoted: Any = "gone", delay_s: float = 0.0) -> None:
    cluster.failover(demoted=demoted, endpoint_delay_s=delay_s)


def _restart(
    cluster: LocalAurora, mode: Any = "fast", instance: Any = "writer", down_s: float = 0.0
) -> None:
    cluster.restart(mode, instance=instance, down_s=down_s)


def _status(cluster: LocalAurora) -> str:
    reader = "a reader" if cluster.has_reader else "no reader"
    refused = ", ".join(f"{count} {reason}" for reason, count in cluster.refusals.items())
    return (
        f"{cluster.open_connections} connections open, {cluster.accepted} accepted,"
        f" refused: {refused or 'none'}; {reader}"
    )


COMMANDS: Mapping[str, Command] = {
    "failover": Command(
        (("gone|read-only", str), ("endpoint-delay-s", _seconds)),
        0,
        "promote the reader",
        _fail_over,
    ),
    "restart": Command(
        (("fast|immediate", str), ("writer|reader", str), ("down-s", _seconds)),
        0,
        "restart an instance",
        _restart,
    ),
    "add-reader": Command((), 0, "make a reader", LocalAurora.add_reader),
    "remove-reader": Command((), 0, "remove the reader", LocalAurora.remove_reader),
    "lag": Command(
        (("seconds", _seconds),),
        1,
        "how far the reader is behind",
        lambda cluster, s: setattr(cluster, "reader_lag_s", s),
    ),
    "pause": Command(
        (("resume-s", _seconds),),
        0,
        "scale to zero; wakes so long after the next client, or by resume",
        lambda cluster, s=None: cluster.pause(resume_s=s),
    ),
    "resume": Command((), 0, "wake a paused cluster", LocalAurora.resume),
    "throttle": Command(
        (("per-second|off", _limit),),
        1,
        "refuse more new connections than this",
        lambda cluster, limit: setattr(cluster, "connections_per_s", limit),
    ),
    "cut": Command((("reset|close", str),), 0, "end every connection", LocalAurora.cut_connections),
    "silence": Command(
        (("reset-after-s", _seconds),),
        0,
        "let open connections hang",
        lambda cluster, s=None: cluster.silence_connections(reset_after_s=s),
    ),
    "stall": Command(
        (("on|off", _switch),),
        1,
        "let nothing pass, on new connections neither",
        lambda cluster, on: setattr(cluster, "stalled", on),
    ),
    "delay": Command(
        (("seconds", _seconds),),
        1,
        "added to each round trip",
        lambda cluster, s: setattr(cluster, "delay_s", s),
    ),
    "lose-replies": Command(
        (("count", int),), 0, "lose the answers to commits", LocalAurora.drop_reply_of_commit
    ),
    "refuse": Command((("count", int),), 0, "refuse good tokens", LocalAurora.refuse_next),
    "reset": Command((), 0, "turn back what was turned", LocalAurora.reset),
    "status": Command((), 0, "connections, refusals and instances", _status),
}


def run(cluster: LocalAurora, line: str) -> str:
    """Run one line and say what came of it; an error of the user's or the cluster's is a text."""
    try:
        name, *words = shlex.split(line)
        command = COMMANDS[name]
    except (KeyError, ValueError):
        return f"unknown: {line.strip()[:60]!r}; commands are\n{usage()}"
    if not command.required <= len(words) <= len(command.arguments):
        return f"usage: {_form(name)}"
    try:
        kinds = [kind for _, kind in command.arguments]
        given = [kind(word) for kind, word in zip(kinds, words, strict=False)]
    except (KeyError, ValueError):
        return f"usage: {_form(name)}"
    try:
        done = command.run(cluster, *given)
    except AuroraStoreError as error:
        return f"error: {error}"
    return "done" if done is None else str(done)


def usage() -> str:
    """Every command, a line each."""
    return "\n".join(f"  {_form(name):<55} {COMMANDS[name].does}" for name in COMMANDS)


def _form(name: str) -> str:
    command = COMMANDS[name]
    words = [words for words, _ in command.arguments]
    optional = [f"[{text}]" for text in words[command.required :]]
    return " ".join([name, *(f"<{text}>" for text in words[: command.required]), *optional])
