"""What must be undone however a local cluster ends: its directory and the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from langgraph_aurora_store.local import reaper
from langgraph_aurora_store.local.server import make_directory


@contextmanager
def kept_directory() -> Iterator[Path]:
    """A temporary directory which a reaper removes, with the server in it, at the block's end.

    The end of this process is an end of the block too, whatever ended it.
    """
    directory = make_directory()
    try:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
            [sys.executable, "-I", "-S", reaper.__file__, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        directory.rmdir()
        raise
    with process:
        try:
            yield directory
        finally:
            process.communicate()  # closes its standard input, which is what it waits for


@contextmanager
def exported(values: Mapping[str, str]) -> Iterator[None]:
    """Hold these variables in the environment for the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
