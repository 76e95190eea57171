"""What `make demo` runs: a memory made in one process and recalled in another.

Without AURORA_CLUSTER it starts a local Aurora; without a key for a model, a scripted one.
"""

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

HERE = Path(__file__).parent
console = Console()


def main() -> None:
    started = time.monotonic()
    with ExitStack() as stack:
        environment = os.environ | choose_database(stack) | choose_models(stack)
        run("remember.py", "A first process. Ada tells the agent what she likes.", environment)
        run("recall.py", "A second process, with a new store and new tokens.", environment)
        run("inspect_tables.py", "What lies in the database.", environment)
    print(f"\nDone in {time.monotonic() - started:.1f} s.")


def choose_database(stack: ExitStack) -> dict[str, str]:
    """The real cluster where AURORA_CLUSTER names one, else a local Aurora."""
    if cluster := os.environ.get("AURORA_CLUSTER"):
        print(f"Database: the Aurora cluster {cluster!r}, which AURORA_CLUSTER names.")
        return {}
    from langgraph_aurora_store.local import LocalAurora

    print("Database: a local Aurora, started for this run: PostgreSQL with pgvector, verified TLS,")
    print("          IAM tokens that are checked. No AWS account is used. For a real cluster set")
    print("          AURORA_CLUSTER, AURORA_USER and AURORA_DATABASE.")
    return dict(stack.enter_context(LocalAurora(export=False)).environment)


def choose_models(stack: ExitStack) -> dict[str, str]:
    """OpenAI's models where there is a key for them, else a scripted stand-in."""
    if os.environ.get("OPENAI_API_KEY"):
        print("Models:   OpenAI's, as OPENAI_API_KEY is set.")
        return {}
    from scripted_model import script

    from langgraph_aurora_store.local.openai import LocalOpenAI

    print("Models:   a script and hashed words, behind the OpenAI protocol on this machine. The")
    print("          openai and langmem clients are the real ones. For OpenAI's own models set")
    print("          OPENAI_API_KEY.")
    return stack.enter_context(LocalOpenAI(script)).environment


def run(program: str, title: str, environment: dict[str, str]) -> None:
    console.print()
    console.rule(f"[bold]{title}", align="left")
    sys.stdout.flush()
    subprocess.run([sys.executable, HERE / program], env=environment, check=True)  # noqa: S603 - our own files


if __name__ == "__main__":
    main()
