"""A local Aurora that stays up until it is interrupted, for other processes to use."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TextIO

from langgraph_aurora_store.local.aurora import LocalAurora
from langgraph_aurora_store.local.server import ServerVersion

_ENDS = (signal.SIGINT, signal.SIGTERM)


def serve(
    *,
    identifier: str = "local-aurora",
    user: str = "langmem",
    database: str = "memory",
    region: str = "us-east-1",
    port: int = 0,
    version: ServerVersion = 16,
    output: TextIO | None = None,
) -> None:
    """Run a local Aurora until SIGINT or SIGTERM; print what another shell must export.

    Call it from the main thread: it takes over both signals for as long as it runs.
    """
    # A shell has what it runs in the background ignore SIGINT, and Python then leaves it at that.
    previous = {number: signal.signal(number, _interrupt) for number in _ENDS}
    try:
        with (
            suppress(KeyboardInterrupt),
            LocalAurora(
                identifier,
                user=user,
                database=database,
                region=region,
                port=port,
                version=version,
                export=False,
            ) as cluster,
        ):
            for line in instructions(cluster):
                print(line, file=output or sys.stdout, flush=True)
            while True:
                signal.pause()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def instructions(cluster: LocalAurora) -> Iterator[str]:
    """Lines for a POSIX shell."""
    environment = cluster.environment
    for name, value in environment.items():
        yield f"export {name}={shlex.quote(value)}"
    if "AWS_SESSION_TOKEN" not in environment:
        yield "unset AWS_SESSION_TOKEN"  # left over, it would belong to other keys
    yield (
        f"# {cluster.identifier} is up at {cluster.endpoint}:{cluster.port} until Ctrl-C: "
        "paste these lines into another shell, then AuroraStore.from_cluster() finds it"
    )


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
