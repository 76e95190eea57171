"""Writers and readers, threads and tasks, through failovers, restarts, cuts and lost replies."""

import asyncio
import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

import psycopg
from langchain_core.embeddings import Embeddings
from langgraph.store.base import Item, SearchItem
from langgraph.store.postgres import PostgresStore
from langgraph.store.postgres.aio import AsyncPostgresStore

from bench.table import Row
from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from langgraph_aurora_store.local import LocalAurora
from tests.support.history_checker import Operation, violations

DIMS = 3
KEYS, FOLDERS = 40, 8
PAUSE_S = 0.005  # of a worker between two calls
STOP_TIMEOUT_S = 60.0
DATA = Path(__file__).parent.parent / "docs" / "failover.json"


class CountingEmbedder(Embeddings):
    """Costs nothing and counts how often each text is embedded."""

    def __init__(self) -> None:
        self.embedded: Counter[str] = Counter()

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        self.embedded.update(texts)
        return [[1.0, float(len(text)), 0.5] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return [1.0, float(len(text)), 0.5]

    async def aembed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        return self.embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        return self.embed_query(text)


@dataclass(frozen=True)
class Fault:
    """What was done to the cluster, in seconds since the start."""

    name: str
    begin: float
    end: float  # when the writer accepted again and its endpoint led to it


@dataclass
class Record:
    """What callers saw."""

    history: list[Operation] = field(default_factory=list)
    errors: list[tuple[float, str, str]] = field(default_factory=list)  # when, of whom, the text
    written: dict[str, list[float]] = field(default_factory=dict)  # when, by kind of caller
    faults: list[Fault] = field(default_factory=list)
    duplicates: int = 0
    longest_s: float = 0.0
    retries: int = 0
    connections: int = 0
    replies_lost: int = 0
    embedded: Counter[str] = field(default_factory=Counter)
    is_over: bool = False  # the cluster ends, and calls that hang with it

    def note(self, who: str, begin: float, found: list[Operation], error: str | None) -> None:
        """Add one call."""
        if self.is_over:
            return
        now = time.monotonic()
        self.longest_s = max(self.longest_s, now - begin)
        self.history += found
        if error is not None:
            self.errors.append((now, who, error))
        elif found and found[0].kind == "write":
            self.written.setdefault(who, []).append(now)

    @property
    def recoveries_s(self) -> list[float]:
        """For each fault and kind of caller: when the first write succeeded that ended later."""
        found = []
        for fault in self.faults:
            for times in self.written.values():
                later = [t for t in times if t > fault.end]
                found.append(later[0] - fault.end if later else inf)
        return found

    def summary(self) -> dict[str, Any]:
        """The figures of the run."""
        return {
            "operations": len(self.history),
            "faults": dict(Counter(fault.name.partition(" ")[0] for fault in self.faults)),
            "replies lost": self.replies_lost,
            "retries seen in the log": self.retries,
            "connections opened": self.connections,
            "errors to callers": len(self.errors),
            "by reason": dict(Counter(text[:90] for _, _, text in self.errors).most_common(8)),
            "unexplained reads": len(violations(self.history)),
            "items found twice": self.duplicates,
            "texts embedded twice": sum(count > 1 for count in self.embedded.values()),
            "recovery median s": round(median(self.recoveries_s), 3) if self.faults else None,
            "recovery worst s": round(max(self.recoveries_s), 3) if self.faults else None,
            "longest call s": round(self.longest_s, 2),
        }


def folder(key: int) -> tuple[str, str]:
    return ("soak", str(key % FOLDERS))


class Caller:
    """One worker's calls: what it does next, and what that says about the keys."""

    def __init__(self, record: Record, who: str, number: int, *, writes: bool) -> None:
        self.record, self.who, self.number, self.writes = record, who, number, writes
        self.count = 0
        self.begin = 0.0
        self.is_busy = False

    def next(self) -> tuple[str, tuple[Any, ...]]:
        """A method's name and arguments."""
        self.count += 1
        key = (self.number * 7 + self.count * 13) % KEYS
        self.begin = time.monotonic()
        self.is_busy = True
        self.key = key
        self.value = f"{self.who} {self.number} wrote {self.count}"
        if self.writes:
            return "put", (folder(key), str(key), {"text": self.value})
        if self.count % 5:
            return "get", (folder(key), str(key))
        return "search", (folder(key),)

    def done(self, result: Item | list[SearchItem] | None) -> None:
        end = time.monotonic()
        self.is_busy = False
        if self.writes:
            found = [Operation("write", str(self.key), self.value, self.begin, end)]
        elif isinstance(result, list):
            seen = {item.key: item.value["text"] for item in result}
            self.record.duplicates += len(result) - len(seen)
            keys = [str(key) for key in range(KEYS) if key % FOLDERS == self.key % FOLDERS]
            found = [Operation("read", k, seen.get(k), self.begin, end) for k in keys]
        else:
            value = result.value["text"] if result else None
            found = [Operation("read", str(self.key), value, self.begin, end)]
        self.record.note(self.who, self.begin, found, None)

    def pending(self) -> list[Operation]:
        """The write that has not ended, if there is one."""
        if not (self.is_busy and self.writes):
            return []
        return [Operation("write", str(self.key), self.value, self.begin, inf)]

    def failed(self, error: Exception) -> None:
        maybe = self.pending()
        self.is_busy = False
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        self.record.note(self.who, self.begin, maybe, text)


def work(caller: Caller, store: AuroraStore | PostgresStore, stop: threading.Event) -> None:
    while not stop.is_set():
        name, arguments = caller.next()
        try:
            result = getattr(store, name)(*arguments)
        except Exception as error:
            caller.failed(error)
        else:
            caller.done(result)
        time.sleep(PAUSE_S)


async def work_async(
    caller: Caller, store: AsyncAuroraStore | AsyncPostgresStore, stop: threading.Event
) -> None:
    while not stop.is_set():
        name, arguments = caller.next()
        try:
            result = await getattr(store, f"a{name}")(*arguments)
        except Exception as error:
            caller.failed(error)
        else:
            caller.done(result)
        await asyncio.sleep(PAUSE_S)


# faults


def failover(cluster: LocalAurora, demoted: str, delay_s: float = 0.0) -> float:
    """Returns how long the writer endpoint stays behind."""
    if not cluster.has_reader:
        cluster.add_reader()
    cluster.failover(demoted=demoted, endpoint_delay_s=delay_s)  # type: ignore[arg-type]
    return delay_s


def restart(cluster: LocalAurora, mode: str, down_s: float = 0.0) -> float:
    cluster.restart(mode, down_s=down_s)  # type: ignore[arg-type]
    return 0.0


def cut(cluster: LocalAurora, how: str) -> float:
    cluster.cut_connections(how)  # type: ignore[arg-type]
    return 0.0


def lose_replies(cluster: LocalAurora, count: int) -> float:
    cluster.drop_reply_of_commit(count)
    return 0.0


def silence(cluster: LocalAurora) -> float:
    cluster.silence_connections(reset_after_s=3.0)  # the store's own tcp_user_timeout
    return 0.0


Plan = Sequence[tuple[str, Callable[[LocalAurora], float]]]

FAILOVERS: Plan = (
    ("failover, the writer gone", partial(failover, demoted="gone")),
    ("failover, the writer read-only", partial(failover, demoted="read-only")),
    (
        "failover, the writer read-only, its endpoint 1 s late",
        partial(failover, demoted="read-only", delay_s=1.0),
    ),
    (
        "failover, the writer gone, its endpoint 1 s late",
        partial(failover, demoted="gone", delay_s=1.0),
    ),
    ("failover, the writer read-only", partial(failover, demoted="read-only")),
)
RESTARTS: Plan = (
    ("restart, fast", partial(restart, mode="fast")),
    ("restart, a crash", partial(restart, mode="immediate")),
    ("restart, fast, 1 s away", partial(restart, mode="fast", down_s=1.0)),
    ("restart, a crash, 1 s away", partial(restart, mode="immediate", down_s=1.0)),
    ("restart, fast", partial(restart, mode="fast")),
)
RESET: Plan = (("cut by a reset", partial(cut, how="reset")),)
CLOSED: Plan = (("cut without a word", partial(cut, how="close")),)
LOST: Plan = (("lost replies to 4 commits", partial(lose_replies, count=4)),)
SILENT: Plan = (("silent links", silence),)

LONG: Plan = tuple(
    fault
    for number in range(5)
    for fault in (
        *FAILOVERS[number : number + 1],
        *LOST,
        *RESET,
        *RESTARTS[number : number + 1],
        *CLOSED,
        *(SILENT if number % 2 == 0 else ()),
    )
)
SHORT: Plan = (
    FAILOVERS[1],
    *LOST,
    RESTARTS[1],
    *RESET,
    FAILOVERS[0],
    *CLOSED,
    *SILENT,
)


TIMELINE: Plan = (FAILOVERS[1], FAILOVERS[2], *LOST, FAILOVERS[0], RESTARTS[3], *RESET)


def inflict(
    cluster: LocalAurora, plan: Plan, record: Record, duration_s: float, started: float
) -> None:
    """The faults of the plan, evenly spread; the last has as much time as the others."""
    for number, (name, bring_about) in enumerate(plan, 1):
        due = started + number * duration_s / (len(plan) + 1)
        time.sleep(max(0.0, due - time.monotonic()))
        begin = time.monotonic()
        late_s = bring_about(cluster)
        record.faults.append(Fault(name, begin, time.monotonic() + late_s))
    time.sleep(max(0.0, started + duration_s - time.monotonic()))


# stores


@contextmanager
def ours(cluster: LocalAurora, embedder: Embeddings) -> Iterator[tuple[Any, Callable[[], Any]]]:
    """A store with its tables, and what makes one for asyncio."""
    found = {
        "cluster": cluster.identifier,
        "user": cluster.user,
        "database": cluster.database,
        "session": cluster.session,
        "sslrootcert": cluster.sslrootcert,
        "index": {"embed": embedder, "dims": DIMS, "fields": ["text"]},
    }
    with AuroraStore.from_cluster(**found) as store:
        store.setup()
        yield store, lambda: AsyncAuroraStore.from_cluster(**found)


@contextmanager
def parents(cluster: LocalAurora, embedder: Embeddings) -> Iterator[tuple[Any, Callable[[], Any]]]:
    """The same of the parent's, with a password and pools."""
    cluster.create_user("parent", password="secret")
    with psycopg.connect(cluster.admin_dsn, autocommit=True) as admin:
        admin.execute("GRANT CREATE ON SCHEMA public TO parent")
    dsn = (
        f"postgresql://parent:secret@{cluster.endpoint}:{cluster.port}/{cluster.database}"
        f"?sslmode=verify-full&sslrootcert={quote(cluster.sslrootcert, safe='')}"
    )
    settings: dict[str, Any] = {
        "pool_config": {"min_size": 2, "max_size": 8},
        "index": {"embed": embedder, "dims": DIMS, "fields": ["text"]},
    }
    with PostgresStore.from_conn_string(dsn, **settings) as store:
        store.setup()
        yield store, lambda: AsyncPostgresStore.from_conn_string(dsn, **settings)


class _Retries(logging.Handler):
    """Counts what the store logs of its retries."""

    def __init__(self, record: Record) -> None:
        super().__init__(logging.DEBUG)
        self._record = record

    def emit(self, record: logging.LogRecord) -> None:
        self._record.retries += "again" in record.getMessage()


def soak(
    plan: Plan,
    *,
    duration_s: float,
    stores: Callable[[LocalAurora, Embeddings], Any] = ours,
    writers: int = 4,
    readers: int = 4,
) -> Record:
    """Run the plan against so many threads and as many tasks of each kind; what they saw."""
    record, embedder, stop = Record(), CountingEmbedder(), threading.Event()
    with ExitStack() as stack:
        cluster = stack.enter_context(LocalAurora(readers=1, export=False))
        store, make_async = stack.enter_context(stores(cluster, embedder))
        stack.enter_context(counted_retries(record))
        blocking = callers(record, "thread", writers, readers)
        tasks = callers(record, "task", writers, readers)
        works = [partial(work, caller, store, stop) for caller in blocking]
        works.append(partial(run_tasks, tasks, make_async, stop))
        threads = [threading.Thread(target=each, daemon=True) for each in works]
        for thread in threads:
            thread.start()
        try:
            inflict(cluster, plan, record, duration_s, time.monotonic())
        finally:
            stop.set()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        record.is_over = True
        for caller in (*blocking, *tasks):
            record.history += caller.pending()
            if caller.is_busy:
                record.errors.append((time.monotonic(), caller.who, "a call did not end"))
        record.history += final_reads(cluster)
        record.connections = cluster.accepted
        record.replies_lost = cluster.replies_dropped
        record.embedded = embedder.embedded
    return record


@contextmanager
def counted_retries(record: Record) -> Iterator[None]:
    logger, handler = logging.getLogger("langgraph_aurora_store"), _Retries(record)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def callers(record: Record, who: str, writers: int, readers: int) -> list[Caller]:
    count = writers + readers
    return [Caller(record, who, number, writes=number < writers) for number in range(count)]


def run_tasks(tasks: list[Caller], make_store: Callable[[], Any], stop: threading.Event) -> None:
    async def main() -> None:
        async with make_store() as store:
            await asyncio.gather(*(work_async(caller, store, stop) for caller in tasks))

    asyncio.run(main())


def final_reads(cluster: LocalAurora) -> Iterator[Operation]:
    """What lies in the tables at the end."""
    now = time.monotonic()
    with psycopg.connect(cluster.admin_dsn) as admin:
        found = dict(admin.execute("SELECT key, value ->> 'text' FROM store").fetchall())
    for key in map(str, range(KEYS)):
        yield Operation("read", key, found.get(key), now, now + 1)


def rows(_: LocalAurora) -> list[Row]:
    """Both stores through the long plan; the data of ours is kept for the page on failovers."""
    duration_s = 60.0
    records = {
        "parent": soak(LONG, duration_s=duration_s, stores=parents),
        "ours": soak(LONG, duration_s=duration_s),
    }
    found = {name: record.summary() for name, record in records.items()}
    print(json.dumps(found, indent=1), file=sys.stderr)
    keep(soak(TIMELINE, duration_s=16.0))

    def row(what: str, unit: str, key: str, most: float) -> Row:
        return Row(
            f"8 writers and 8 readers for 60 s with {len(LONG)} faults: {what}",
            unit,
            found["ours"][key],
            found["parent"][key],
            aim=f"≤ {most:g}",
            holds=found["ours"][key] <= most,
        )

    return [
        row("errors to callers", "calls", "errors to callers", 0),
        row("reads that no order of writes explains", "reads", "unexplained reads", 0),
        row("texts embedded twice", "texts", "texts embedded twice", 0),
        row("first write after a fault, median", "s", "recovery median s", 1),
        row("longest call", "s", "longest call s", 30),
    ]


BIN_S = 0.1


def keep(record: Record, path: Path = DATA) -> None:
    """Write what the timeline is drawn from: each tenth of a second's calls, and the faults."""
    start = min(operation.begin for operation in record.history)
    bins: dict[str, dict[int, list[float]]] = {"read": {}, "write": {}}
    for operation in record.history:
        if operation.end < inf and operation.begin < max(f.end for f in record.faults) + 3:
            number = int((operation.end - start) / BIN_S)
            took = operation.end - operation.begin
            bins[operation.kind].setdefault(number, []).append(took)
    data = {
        "summary": record.summary(),
        "bin_s": BIN_S,
        "faults": [
            [f.name, round(f.begin - start, 3), round(f.end - start, 3)] for f in record.faults
        ],
        "calls": {
            kind: [[number, len(took), round(max(took), 4)] for number, took in sorted(of.items())]
            for kind, of in bins.items()
        },
        "errors": [round(when - start, 3) for when, _, _ in record.errors],
    }
    path.write_text(json.dumps(data, separators=(",", ":")) + "\n")


def main() -> None:
    """``python -m bench.failover [seconds] [ours|parent] [short|long|timeline]``."""
    seconds, who, length = [*sys.argv[1:], *("60", "ours", "long")[len(sys.argv) - 1 :]]
    record = soak(
        {"short": SHORT, "long": LONG, "timeline": TIMELINE}[length],
        duration_s=float(seconds),
        stores=parents if who == "parent" else ours,
    )
    print(json.dumps(record.summary(), indent=1))
    if length == "timeline":
        keep(record)
    for words in violations(record.history)[:10]:
        print(words)


if __name__ == "__main__":
    main()
