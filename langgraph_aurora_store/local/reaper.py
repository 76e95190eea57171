"""Clean up after a local Aurora however its owner ended: run as a script, standard library only.

Standard input is a pipe that only the owner holds: its end means that the owner has closed the
cluster or has died, even by SIGKILL. Then PostgreSQL is stopped and the directory removed.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

POLL_S = 0.02
OWNER_CHECK_S = 1.0
PATIENCE_S = 5.0


def main() -> None:
    """Wait for the owner's end, then clean up the directory given as the only argument."""
    # An interrupt is meant for the owner; its end is noticed here in any case.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wait_for_end_of(os.getppid())
    clean_up(Path(sys.argv[1]))


def wait_for_end_of(owner: int) -> None:
    """Return when standard input ends or the owner is no longer this process's parent."""
    # A process forked from the owner holds a copy of the pipe, so the parent is watched too.
    while os.getppid() == owner:
        readable, _, _ = select.select([sys.stdin.fileno()], [], [], OWNER_CHECK_S)
        if readable:
            return


def clean_up(directory: Path) -> None:
    """Stop every server below ``directory`` and remove it, until it is gone."""
    deadline = time.monotonic() + 2 * PATIENCE_S
    while directory.exists() and time.monotonic() < deadline:
        for pid_file in directory.glob("*/*/postmaster.pid"):
            stop_server(pid_file)
        shutil.rmtree(directory, ignore_errors=True)
        # An initdb that was under way may have written meanwhile.
        time.sleep(POLL_S)


def stop_server(pid_file: Path) -> None:
    """Stop a server at once (SIGQUIT: immediate shutdown), by SIGKILL if it does not listen."""
    with suppress(OSError, ValueError, IndexError):
        pid = int(pid_file.read_text().splitlines()[0])
        os.kill(pid, signal.SIGQUIT)
        deadline = time.monotonic() + PATIENCE_S
        while pid_file.exists() and time.monotonic() < deadline:
            time.sleep(POLL_S)
            os.kill(pid, 0)
        if pid_file.exists():
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
