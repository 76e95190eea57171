"""A warm invocation of a Lambda function, the store's part of it: one search and one put.

Under `awslambdaric`, in a sandbox that is frozen between invocations, with a link that adds to each
round trip what a link between Lambda and Aurora may: 1 ms within a region is usual.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import median

from bench.table import Row
from langgraph_aurora_store import AuroraStore
from langgraph_aurora_store.local import LocalAurora

HERE = Path(__file__).parent / "lambda_function"
sys.path += [str(HERE), str(Path(__file__).parent.parent / "examples/lambda/local")]

from sandbox import Sandbox  # noqa: E402 - the example's, found by the line above
from vectors import INDEX, embed  # noqa: E402

DELAYS_MS = (0, 1, 4)
# Round trips are counted by what a long one adds.
COUNTING_MS = 25
RUNS = 30
FROZEN_RUNS = 8
LONG_FREEZE_S = 1.1  # after one second of idleness a connection is tried before it is used
DATABASE = "bench_lambda"
# Measured for LangGraph's store kept at module level: 9.3 ms at 1 ms, and 37.1 made anew.
AIM_MS = 9.3

_numbers = count(1)


def rows(cluster: LocalAurora) -> list[Row]:
    """The figures; at 1 ms, where the aim is, against the parent's store made anew."""
    with database(cluster) as environment:
        measured = {
            name: measure(cluster, environment, handler)
            for name, handler in {
                "ours": "at_module_level.handler",
                "anew": "per_invocation.of_ours",
                "parent": "per_invocation.of_parent",
                "floor": "bare.handler",
            }.items()
        }
        thawed = after_a_long_freeze(cluster, environment)
    ours, anew, parent, floor = measured.values()
    found = [
        Row(
            f"warm Lambda invocation, search + put, {delay} ms added to a round trip",
            "ms",
            ours[delay],
            parent[delay],
            floor[delay],
            "two bare statements",
            aim=f"≤ ⅓, < {AIM_MS}" if delay == 1 else "≤ ⅓",
            holds=ours[delay] <= parent[delay] / 3 and (delay != 1 or ours[delay] < AIM_MS),
        )
        for delay in DELAYS_MS
    ]
    found.append(
        Row(
            "the same, 1 ms, a store and setup() for each invocation",
            "ms",
            anew[1],
            parent[1],
            aim=f"≥ 3 × {ours[1]:.1f}",
            holds=anew[1] >= 3 * ours[1],
        )
    )
    found.append(Row("the same, 1 ms, frozen for more than a second before", "ms", thawed))
    trips = {name: round_trips(times) for name, times in measured.items()}
    found.append(
        Row(
            "round trips of a warm Lambda invocation",
            "trips",
            trips["ours"],
            trips["parent"],
            trips["floor"],
            "two bare statements",
            aim="≤ 3",
            holds=round(trips["ours"]) <= 3,
        )
    )
    return found


@contextmanager
def database(cluster: LocalAurora) -> Iterator[dict[str, str]]:
    """The environment of functions whose database is set up and holds a few memories."""
    cluster.create_database(DATABASE)
    environment = {**cluster.environment, "AURORA_DATABASE": DATABASE}
    try:
        with AuroraStore.from_cluster(
            cluster.identifier,
            user=cluster.user,
            database=DATABASE,
            session=cluster.session,
            sslrootcert=cluster.sslrootcert,
            index={**INDEX, "embed": embed},
        ) as store:
            store.setup()
            for number in range(50):
                store.put(("bench", "user"), f"old {number}", {"text": f"I like thing {number}"})
        yield environment
    finally:
        cluster.delay_s = 0
        cluster.drop_database(DATABASE)


def measure(cluster: LocalAurora, environment: dict[str, str], handler: str) -> dict[int, float]:
    """The median of an invocation in milliseconds, by the milliseconds added to a round trip."""
    found = {}
    with Sandbox(handler, environment, task_root=HERE) as sandbox:
        for delay in (*DELAYS_MS, COUNTING_MS):
            cluster.delay_s = delay / 1000
            runs = RUNS if delay != COUNTING_MS else RUNS // 4
            found[delay] = median([call(sandbox) for _ in range(3 + runs)][3:])
        cluster.delay_s = 0
    return found


def round_trips(times: dict[int, float]) -> float:
    """How often the added time was paid."""
    return (times[COUNTING_MS] - times[0]) / COUNTING_MS


def after_a_long_freeze(cluster: LocalAurora, environment: dict[str, str]) -> float:
    """The median when the connection has idled for so long that it is tried before use."""
    cluster.delay_s = 0.001
    pause = threading.Event()
    times = []
    with Sandbox("at_module_level.handler", environment, task_root=HERE) as sandbox:
        call(sandbox)
        for _ in range(FROZEN_RUNS):
            pause.wait(LONG_FREEZE_S)
            times.append(call(sandbox))
    cluster.delay_s = 0
    return median(times)


def call(sandbox: Sandbox) -> float:
    number = next(_numbers)
    return float(sandbox.invoke({"key": str(number), "text": f"I like subject {number}"})["ms"])


if __name__ == "__main__":
    from bench.table import as_markdown

    with LocalAurora(export=False) as local:
        print(as_markdown(rows(local)))
