"""Run the example: each program in a process of its own, on one database.

Without AURORA_CLUSTER it starts a local Aurora; without OPENAI_API_KEY, a scripted model.
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for local_services

from scripted_model import script

from local_services.stand_ins import stand_ins

HERE = Path(__file__).parent
PROGRAMS = {
    "blocking.py": "Blocking: a manager inserts, updates and deletes.",
    "agent.py": "An agent with LangMem's tools, and a manager in the background.",
    "with_asyncio.py": "asyncio: many users at once.",
}


def main() -> None:
    with stand_ins(os.environ, script) as services:
        print(f"Database: {services.database}")
        print(f"Models: {services.models}")
        for program, title in PROGRAMS.items():
            print(f"\n{title}", flush=True)
            done = subprocess.run(  # noqa: S603 - our own files
                [sys.executable, HERE / program],
                env=os.environ | services.environment,
                check=False,
            )
            if done.returncode:  # it has said why
                sys.exit(done.returncode)


if __name__ == "__main__":
    main()
