"""``python -m langgraph_aurora_store.local``: a local Aurora until interrupted."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langgraph_aurora_store.local.aurora import LocalAurora

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Read the options and serve."""
    try:
        _serve(_options())
    except KeyboardInterrupt:  # before the server listens for it
        sys.exit(130)


def _options() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m langgraph_aurora_store.local",
        description="Run a local Aurora until interrupted and print what to export.",
        epilog="Each line of standard input is a command, 'help' lists them: failover, restart, "
        "pause, cut, silence, lose-replies, throttle, lag and others. docs/local-aurora.md tells "
        "what each imitates.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--identifier", default="local-aurora", help="name of the cluster")
    parser.add_argument("--user", default="langmem", help="role granted rds_iam")
    parser.add_argument("--database", default="memory", help="database the role owns")
    parser.add_argument("--region", default="us-east-1", help="region tokens are good for")
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1, 0: any")
    parser.add_argument("--readers", type=int, default=0, choices=(0, 1), help="streaming replicas")
    parser.add_argument("--version", type=int, default=16, choices=(16, 18), help="PostgreSQL's")
    return vars(parser.parse_args())


def _serve(options: dict[str, Any]) -> None:
    # Imported here, so that an interrupt or a missing package during the import is reported
    # without a traceback.
    from langgraph_aurora_store.errors import AuroraStoreError

    try:
        from langgraph_aurora_store.local.aurora import LocalAurora

        _run_until_stopped(LocalAurora(**options, export=False))
    except AuroraStoreError as error:
        sys.exit(f"error: {error}")


def _run_until_stopped(cluster: LocalAurora) -> None:
    # A shell starts background commands with SIGINT ignored, and Python then leaves it ignored.
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    with suppress(KeyboardInterrupt), cluster:
        for line in exports(cluster):
            print(line, flush=True)  # noqa: T201 - the command's output
        _obey(cluster)
        while True:
            signal.pause()


def _obey(cluster: LocalAurora) -> None:
    """Run each line of standard input until its end; the answers are comments for a shell."""
    from langgraph_aurora_store.local.stdin_commands import run

    while _may_read():
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            for answer in run(cluster, line).splitlines():
                print(f"# {answer}", flush=True)  # noqa: T201 - the command's output


def _may_read() -> bool:
    # A terminal stops a background process that reads from it.
    try:
        return not sys.stdin.isatty() or os.tcgetpgrp(0) == os.getpgrp()
    except (OSError, ValueError, AttributeError):  # standard input is closed
        return False


def exports(cluster: LocalAurora) -> Iterator[str]:
    """Lines for a POSIX shell that lead its programs to the cluster."""
    environment = cluster.environment
    for name, value in environment.items():
        yield f"export {name}={shlex.quote(value)}"
    if "AWS_SESSION_TOKEN" not in environment:
        yield "unset AWS_SESSION_TOKEN"  # one left over would belong to other keys
    yield (
        f"# {cluster.identifier} is up at {cluster.endpoint}:{cluster.port}, for readers at"
        f" {cluster.reader_endpoint}:{cluster.reader_port}, until Ctrl-C: "
        "paste these lines into another shell, then AuroraStore.from_cluster() finds it"
    )


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
