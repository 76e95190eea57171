"""What 20,000 operations with 49 cuts leave behind, in objects and in memory.

``python -m bench leaks``. Each store runs in a process of its own, so that nothing else counts.
"""

import asyncio
import gc
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.failover import DIMS, CountingEmbedder
from bench.table import Row
from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from langgraph_aurora_store.local import LocalAurora

OPERATIONS, CUT_EVERY = 20_000, 400
WARM_AT = 2_000  # caches are full, and five cuts made
AIM_PERCENT = 3.0
NS = ("a", "b")

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def rows(_: LocalAurora) -> list[Row]:
    """Both kinds of store: by how much objects and memory have grown since the warm-up."""
    found = []
    for kind in ("blocking", "asyncio"):
        command = [sys.executable, "-m", "bench.leaks", kind]
        finished = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        warm, end = json.loads(finished.stdout)
        for key, unit in (("objects", "%"), ("resident KiB", "%")):
            grown = 100 * (end[key] / warm[key] - 1)
            what = f"{kind}, 20,000 operations with {end['cuts']} cuts: growth of {key}"
            what += f" from {warm[key]:,} after 2,000"
            found.append(Row(what, unit, grown, aim="≤ 3", holds=grown <= AIM_PERCENT))
    return found


def calls() -> Iterator[Call]:
    """Puts, gets, searches and deletes of 200 keys."""
    for n in range(OPERATIONS):
        key = f"k{n % 200}"
        yield (
            ("put", (NS, key, {"text": f"note {n % 97}"}), {}),
            ("get", (NS, key), {}),
            ("search", (NS,), {"query": f"note {n % 97}", "limit": 5}),
            ("delete", (NS, key), {}) if n % 40 == 3 else ("get", (NS, key), {}),
        )[n % 4]


class Gauge:
    """Cuts all connections every so many operations, and takes the two measurements."""

    def __init__(self, cluster: LocalAurora) -> None:
        self._cluster = cluster
        self._cuts = 0
        self.found: list[dict[str, int]] = []

    def before(self, number: int) -> None:
        """Call it before each operation, with the count of those done."""
        if number == WARM_AT:
            self.measure()
        if number and number % CUT_EVERY == 0:
            self._cluster.cut_connections("close" if number % (2 * CUT_EVERY) else "reset")
            self._cuts += 1

    def measure(self) -> None:
        """Count what the process holds now."""
        gc.collect()
        found = {"objects": len(gc.get_objects()), "resident KiB": resident_kib()}
        self.found.append(found | {"cuts": self._cuts})


def resident_kib() -> int:
    """The process's memory without its pages of files, which come and go as it is read."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1])


def arguments(cluster: LocalAurora) -> dict[str, Any]:
    """Of a store of the cluster's database."""
    return {
        "cluster": cluster.identifier,
        "user": cluster.user,
        "database": cluster.database,
        "session": cluster.session,
        "sslrootcert": cluster.sslrootcert,
        "index": {"dims": DIMS, "embed": CountingEmbedder(), "fields": ["text"]},
    }


def blocking(cluster: LocalAurora) -> list[dict[str, int]]:
    """The measurements of a blocking store."""
    gauge = Gauge(cluster)
    with AuroraStore.from_cluster(**arguments(cluster)) as store:
        store.setup()
        for number, (method, positional, named) in enumerate(calls()):
            gauge.before(number)
            getattr(store, method)(*positional, **named)
        gauge.measure()
    return gauge.found


def asynchronous(cluster: LocalAurora) -> list[dict[str, int]]:
    """The measurements of an asyncio store."""

    async def main() -> list[dict[str, int]]:
        gauge = Gauge(cluster)
        async with AsyncAuroraStore.from_cluster(**arguments(cluster)) as store:
            await store.setup()
            for number, (method, positional, named) in enumerate(calls()):
                gauge.before(number)
                await getattr(store, f"a{method}")(*positional, **named)
            gauge.measure()
        return gauge.found

    return asyncio.run(main())


KINDS: dict[str, Callable[[LocalAurora], list[dict[str, int]]]] = {
    "blocking": blocking,
    "asyncio": asynchronous,
}


def main() -> None:
    """``python -m bench.leaks blocking|asyncio``: the two measurements as JSON."""
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    with LocalAurora(export=False) as cluster:
        print(json.dumps(KINDS[sys.argv[1]](cluster)))


if __name__ == "__main__":
    main()
