"""What a process pays before its first memory."""

import statistics
import subprocess
import sys
from time import perf_counter

from bench.table import Row
from langgraph_aurora_store.local import LocalAurora

PARENT = "import langgraph.store.postgres"
OURS = "from langgraph_aurora_store import AuroraStore"

SIGNING = """
import time, statistics
import botocore.session, botocore.signers
from langgraph_aurora_store.connect.connection_factory import connection_factory
from langgraph_aurora_store import AuroraStore
begun = time.perf_counter()
store = AuroraStore.from_cluster(index={"embed": "openai:text-embedding-3-small"})
made = time.perf_counter() - begun
connector = connection_factory(%r, user="u", database="d")
begun = time.perf_counter()
connector.kwargs()
first = time.perf_counter() - begun
times = []
for _ in range(200):
    begun = time.perf_counter()
    connector.kwargs()
    times.append(time.perf_counter() - begun)
print(made * 1000, first * 1000, statistics.median(times) * 1000)
"""
HOST = "x.cluster-abcdefghijkl.us-east-1.rds.amazonaws.com"


def rows(cluster: LocalAurora) -> list[Row]:
    made, first, warm = map(
        statistics.median, zip(*(signing(cluster) for _ in range(5)), strict=True)
    )
    ours, parent = imports()
    return [
        Row("from_cluster(...)", "ms", made, aim="< 5 ms", holds=made < 5),
        Row("first connection's credentials", "ms", first, aim="≤ 30 ms", holds=first <= 30),
        Row(
            "parameters and token of a later connection",
            "ms",
            warm,
            aim="≤ 0.3 ms",
            holds=warm <= 0.3,
        ),
        Row(
            "import of the store, whole process",
            "ms",
            ours,
            parent,
            aim="≤ 1.1 ×",
            holds=ours <= 1.1 * parent,
        ),
    ]


def signing(cluster: LocalAurora) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", SIGNING % HOST],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(number) for number in done.stdout.split()]


def imports() -> tuple[float, float]:
    """Median milliseconds of both, run in turn so that the machine's moods fall on both."""
    found: dict[str, list[float]] = {OURS: [], PARENT: []}
    for _ in range(11):
        for code, times in found.items():
            begun = perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.append((perf_counter() - begun) * 1000)
    return statistics.median(found[OURS]), statistics.median(found[PARENT])
