"""Run the benchmark and write its table: ``python -m bench [part ...]``."""

import argparse
import compileall
import os
import platform
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import psycopg

import langgraph_aurora_store
from bench.table import Row, as_markdown
from langgraph_aurora_store.local import LocalAurora

PARTS = (
    "concurrency",
    "checkpoints",
    "search",
    "writes",
    "reads",
    "startup",
    "embeddings",
    "lambda_warm",
    "lambda_cold",
    "failover",
    "leaks",
)
RESULTS = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def main() -> None:
    arguments = argparse.ArgumentParser(prog="bench", description=__doc__)
    arguments.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all of them")
    parts = arguments.parse_args().parts or PARTS
    # As pip leaves it: some machines write no bytecode, and would compile the checkout each time.
    compileall.compile_dir(Path(langgraph_aurora_store.__file__).parent, quiet=1)
    found: list[Row] = []
    with LocalAurora(export=False) as cluster:
        server = f"PostgreSQL {cluster.version} with pgvector {pgvector(cluster)}"
        for part in parts:
            begun = perf_counter()
            found += import_module(f"bench.{part}").rows(cluster)
            print(f"{part}: {perf_counter() - begun:.0f} s", file=sys.stderr)
    table = as_markdown(found)
    print(table)
    if tuple(parts) == PARTS:
        RESULTS.write_text(HEAD.format(where=where(server)) + table + NOTES)
        print(f"written to {RESULTS.relative_to(Path.cwd())}", file=sys.stderr)


HEAD = """# Benchmarks

`make bench` measures this store and LangGraph's `PostgresStore` side by side, in one run, on the
same server and data, and writes this page. Recall is held against an exact scan; data is seeded.
Trust the ratios more than the times: the server runs without fsync, on the machine that measures.

{where}

"""


NOTES = """
## How to read it

- **Searches beside psycopg**: the floor is one prepared statement by hand, with iterative scans and
  pgvector's default `ef_search` of 40, on the same index. Each query is asked of all three, in each
  order as often: who asks after another finds the way in the processor's caches. The floor has no
  limit to fill: where it finds fewer than 10, it stops.
- **Queries unlike anything stored** are vectors of random direction. All items are nearly equally
  far, and any index finds some of them; there is no aim for this.
- **64 asyncio tasks**: what shares a request to the model comes back at one moment, and its writes
  then queue for the server, which takes most of a millisecond to link each vector into the HNSW
  index; and before a write asks the model, it asks the server whether the text is known. The floor
  does not, and asks the model once for each call, so that its calls come back one by one.
- **Checkpoints** are puts of `AsyncAuroraSaver` beside `AsyncPostgresSaver`, which takes one after
  another whatever the pool's size; each stores the values of three channels, and all of both go through
  the local Aurora's proxy with TLS.
- **200 texts on Titan**, which takes one a request: 13 rounds of 16 requests at 50 ms. What is more
  than 650 ms is the HTTP client's own work and the server's, on the machine's two cores.
- **Cold start**: the sum is import, making the store, credentials with signer and token, and what
  calls Bedrock. The looking up of an identifier, the first connection and the first embedding are
  requests to services, and listed by themselves.
"""


def pgvector(cluster: LocalAurora) -> str:
    """The extension's version; the Python package of the same name has one of its own."""
    with psycopg.connect(cluster.admin_dsn) as conn:
        row = conn.execute(
            "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
        ).fetchone()
    return str(row[0]) if row else "none"


def where(server: str) -> str:
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("langgraph-checkpoint-postgres", "psycopg")
    )
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {server}, {packages}."


if __name__ == "__main__":
    main()
