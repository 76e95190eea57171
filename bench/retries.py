"""What retries cost when nothing goes wrong: 2,000 puts, gets and searches with and without them.

``python -m bench.retries``. In alternating order, by the fastest tenth: other work on the machine
then weighs on both alike.
"""

import time
from collections.abc import Callable
from statistics import quantiles
from typing import Any

from langgraph_aurora_store import AuroraStore, RetrySettings
from langgraph_aurora_store.local import LocalAurora
from tests.support.store_kinds import Letters

CALLS = 2_000
NS = ("a", "b")

Call = Callable[[AuroraStore, int], object]
CALLED: dict[str, Call] = {
    "put, nothing embedded": lambda s, n: s.put(NS, f"k{n % 500}", {"n": n}, index=False),
    "put, one text embedded": lambda s, n: s.put(NS, f"k{n % 500}", {"text": f"note {n}"}),
    "get": lambda s, n: s.get(NS, f"k{n % 500}"),
    "search by meaning": lambda s, n: s.search(("a",), query=f"note {n}", limit=10),
}


def main() -> None:
    """Print one line for each kind of call."""
    with LocalAurora() as cluster:
        stores = [made(cluster, retry) for retry in (None, RetrySettings())]
        stores[0].setup()
        for name, call in CALLED.items():
            without, with_them = (quantiles(times, n=10)[0] for times in timed(stores, call))
            print(
                f"{name:24} {without * 1e6:7.0f} us without, {with_them * 1e6:7.0f} us with"
                f" retries: {100 * (with_them / without - 1):+.1f} %"
            )
        for store in stores:
            store.close()


def made(cluster: LocalAurora, retry: RetrySettings | None) -> AuroraStore:
    """A store of the cluster's database."""
    options: Any = {"index": {"dims": 8, "embed": Letters(), "fields": ["text"]}, "retry": retry}
    return AuroraStore.from_cluster(
        cluster.identifier,
        user=cluster.user,
        database=cluster.database,
        session=cluster.session,
        sslrootcert=cluster.sslrootcert,
        **options,
    )


def timed(stores: list[AuroraStore], call: Call) -> list[list[float]]:
    """Seconds of each call, for each store."""
    seconds: list[list[float]] = [[] for _ in stores]
    for n in range(CALLS):
        for which in (0, 1) if n % 2 else (1, 0):
            began = time.perf_counter()
            call(stores[which], n)
            seconds[which].append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main()
