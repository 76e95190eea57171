"""``python -m langgraph_aurora_store.local``: a local Aurora until interrupted."""

from __future__ import annotations

import argparse
import sys
from typing import Any


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
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--identifier", default="local-aurora", help="name of the cluster")
    parser.add_argument("--user", default="langmem", help="role granted rds_iam")
    parser.add_argument("--database", default="memory", help="database the role owns")
    parser.add_argument("--region", default="us-east-1", help="region tokens are good for")
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1, 0: any")
    parser.add_argument("--version", type=int, default=16, choices=(16, 18), help="PostgreSQL's")
    return vars(parser.parse_args())


def _serve(options: dict[str, Any]) -> None:
    from langgraph_aurora_store.errors import AuroraStoreError

    try:
        from langgraph_aurora_store.local.shell import serve  # which may lack its packages

        serve(**options)
    except AuroraStoreError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
