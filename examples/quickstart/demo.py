"""What `make demo` runs: a memory made in one process and recalled in another.

Without AURORA_CLUSTER it starts a local Aurora; without a key for a model, a scripted one.
"""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for local_services

from scripted_model import script

from local_services.stand_ins import stand_ins

HERE = Path(__file__).parent
PROGRAMS = {
    "remember.py": "A first process: Ada tells the agent what she likes.",
    "recall.py": "A second process, with a new store and new tokens.",
    "inspect_tables.py": "What lies in the database.",
}


def main() -> None:
    started = time.monotonic()
    with stand_ins(os.environ, script) as services:
        say("Database: ", services.database)
        say("Models:   ", services.models)
        for program, title in PROGRAMS.items():
            print(f"\n=== {title}\n", flush=True)
            done = subprocess.run(  # noqa: S603 - our own files
                [sys.executable, HERE / program],
                env=os.environ | services.environment,
                check=False,
            )
            if done.returncode:  # it has said why
                sys.exit(done.returncode)
    print(f"\nDone in {time.monotonic() - started:.1f} s.")


def say(label: str, text: str) -> None:
    print(textwrap.fill(text, 90, initial_indent=label, subsequent_indent=" " * len(label)))


if __name__ == "__main__":
    main()
