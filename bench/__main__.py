"""Run the benchmark and write its table: ``python -m bench [part ...]``."""

import argparse
import os
import platform
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

from bench.table import Row, as_markdown
from langgraph_aurora_store.local import LocalAurora

PARTS = (
    "concurrency",
    "search",
    "writes",
    "reads",
    "startup",
    "embeddings",
    "lambda_warm",
    "lambda_cold",
)
RESULTS = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def main() -> None:
    arguments = argparse.ArgumentParser(prog="bench", description=__doc__)
    arguments.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all of them")
    parts = arguments.parse_args().parts or PARTS
    found: list[Row] = []
    with LocalAurora(export=False) as cluster:
        server = f"PostgreSQL {cluster.version}"
        for part in parts:
            begun = perf_counter()
            found += import_module(f"bench.{part}").rows(cluster)
            print(f"{part}: {perf_counter() - begun:.0f} s", file=sys.stderr)
    table = as_markdown(found)
    print(table)
    if tuple(parts) == PARTS:
        RESULTS.write_text(HEAD.format(where=where(server)) + table)
        print(f"written to {RESULTS.relative_to(Path.cwd())}", file=sys.stderr)


HEAD = """# Benchmarks

`make bench` measures this store and LangGraph's `PostgresStore` side by side, in one run, on the
same server and data, and writes this page. Recall is held against an exact scan; data is seeded.
Trust the ratios more than the times: the server runs without fsync, on the machine that measures.

{where}

"""


def where(server: str) -> str:
    packages = ", ".join(
        f"{name} {version(name)}"
        for name in ("langgraph-checkpoint-postgres", "psycopg", "pgvector")
    )
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {server}, {packages}."


if __name__ == "__main__":
    main()
