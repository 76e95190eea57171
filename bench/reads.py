"""Reading by key and by namespace: round trips over a slow link, and large tables."""

from statistics import median
from time import perf_counter
from typing import Any

import psycopg
from langgraph.store.base import GetOp

from bench.data import embeddings
from bench.stores import Given, both, fresh_database
from bench.table import Row, timed_ms
from langgraph_aurora_store.local import LocalAurora

LINK_S = 0.02
FIRST, MANY = 10_000, 1_000_000
NAMESPACES = 5_000
DIMS = 16

FILL = """
INSERT INTO store (prefix, key, value)
SELECT 'user.' || (%(skipped)s + n %% %(namespaces)s) || '.facts', 'key' || n, jsonb_build_object('n', n)
FROM generate_series(%(first)s::int, %(last)s::int) AS n
"""
FILL_VECTORS = """
INSERT INTO store_vectors (prefix, key, field_name, embedding)
SELECT prefix, key, 'text',
       (SELECT array_agg(sin((value->>'n')::int * d::float8)::real) FROM generate_series(1, %(dims)s) AS d)
FROM store WHERE (value->>'n')::int BETWEEN %(first)s AND %(last)s
"""


def rows(cluster: LocalAurora) -> list[Row]:
    return [*gets(cluster), *large(cluster)]


def gets(cluster: LocalAurora) -> list[Row]:
    cluster.create_user("bench", password="bench")
    with fresh_database(cluster, "bench_gets") as dsn:
        with both(dsn) as stores:
            for number in range(10):
                stores["ours"].put((f"ns{number}",), "k", {"n": number})
            with psycopg.connect(cluster.admin_dsn_for("bench_gets"), autocommit=True) as admin:
                admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO bench")
        through_proxy = psycopg.conninfo.make_conninfo(
            host="localhost",
            port=cluster.port,
            user="bench",
            password="bench",
            dbname="bench_gets",
            sslmode="require",
        )
        with both_connected(through_proxy) as stores:
            operations = [GetOp((f"ns{number}",), "k") for number in range(10)]
            trips: dict[str, dict[str, float]] = {}
            for name, store in stores.items():
                cluster.delay_s = 0
                fast_one = timed_ms(lambda s=store: s.get(("ns1",), "k"), runs=20)
                fast_ten = timed_ms(lambda s=store: s.batch(operations), runs=20)
                cluster.delay_s = LINK_S
                slow_one = timed_ms(lambda s=store: s.get(("ns1",), "k"), runs=7, warm_up=1)
                slow_ten = timed_ms(lambda s=store: s.batch(operations), runs=7, warm_up=1)
                cluster.delay_s = 0
                trips[name] = {
                    "one": (slow_one - fast_one) / (LINK_S * 1000),
                    "ten": (slow_ten - fast_ten) / (LINK_S * 1000),
                }
    what = "over a link of 20 ms"
    return [
        Row(
            f"one get {what}", "round trips", trips["ours"]["one"], trips["parent"]["one"], 1, "one"
        ),
        Row(
            f"ten gets in ten namespaces {what}",
            "round trips",
            trips["ours"]["ten"],
            trips["parent"]["ten"],
            1,
            "one",
            "≤ 2.2",
            trips["ours"]["ten"] <= 2.2,
        ),
    ]


def both_connected(dsn: str) -> Any:
    """Both stores on tables that are there."""
    from contextlib import contextmanager

    from langgraph.store.postgres import PostgresStore

    from bench.stores import pool
    from langgraph_aurora_store import AuroraStore

    @contextmanager
    def made() -> Any:
        with pool(dsn, 1) as theirs, pool(dsn, 1) as own:
            yield {"parent": PostgresStore(theirs), "ours": AuroraStore(own)}

    return made()


def large(cluster: LocalAurora) -> list[Row]:
    asked = {f"q{i}": v.tolist() for i, v in enumerate(embeddings(20, DIMS, seed=7))}
    index = {"embed": Given(asked), "dims": DIMS, "fields": ["text"]}
    speeds: dict[str, dict[int, float]] = {"parent": {}, "ours": {}}
    with fresh_database(cluster, "bench_large") as dsn, both(dsn, index) as stores:
        for size in (FIRST, MANY):
            fill(dsn, size)
            for name, store in stores.items():
                speeds[name][size] = user_search_ms(store, asked)
        listing = {
            name: timed_ms(
                lambda s=store: s.list_namespaces(max_depth=2, limit=NAMESPACES), runs=5, warm_up=1
            )
            for name, store in stores.items()
        }
        listed = {
            n: len(s.list_namespaces(max_depth=2, limit=NAMESPACES)) for n, s in stores.items()
        }
        assert listed["ours"] == listed["parent"], listed
    growth = {name: found[MANY] / found[FIRST] for name, found in speeds.items()}
    what = "search in one user's namespace of 200"
    return [
        Row(f"{what}, table of 10k", "ms", speeds["ours"][FIRST], speeds["parent"][FIRST]),
        Row(f"{what}, table of 1M", "ms", speeds["ours"][MANY], speeds["parent"][MANY]),
        Row(
            f"{what}: growth",
            "×",
            growth["ours"],
            growth["parent"],
            aim="≤ 1.5 ×",
            holds=growth["ours"] <= 1.5,
        ),
        Row(
            f"list_namespaces(max_depth=2), 1M rows, {NAMESPACES:,} namespaces",
            "ms",
            listing["ours"],
            listing["parent"],
            aim="≤ 100 ms",
            holds=listing["ours"] <= 100,
        ),
    ]


def user_search_ms(store: Any, asked: dict[str, Any]) -> float:
    durations = []
    for query in [*asked, *asked]:
        begun = perf_counter()
        store.search(("user", "7"), query=query, limit=10)
        durations.append((perf_counter() - begun) * 1000)
    return median(durations[len(asked) :])


def fill(dsn: str, size: int) -> None:
    """Grow to ``size`` rows, of which user 7 has 200."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SET maintenance_work_mem = '1GB'")
        [(definition,)] = conn.execute(
            "SELECT indexdef FROM pg_indexes WHERE indexname = 'store_vectors_embedding_idx'"
        ).fetchall()
        conn.execute("DROP INDEX store_vectors_embedding_idx")
        [(there,)] = conn.execute("SELECT count(*) FROM store").fetchall()
        # The first fifty namespaces, of 200 rows each, stay as they are when the table grows.
        namespaces = (
            {"skipped": 0, "namespaces": 50}
            if size <= FIRST
            else {"skipped": 50, "namespaces": NAMESPACES - 50}
        )
        span = {"first": there + 1, "last": size, "dims": DIMS, **namespaces}
        conn.execute(FILL, span)
        conn.execute(FILL_VECTORS, span)
        conn.execute(definition)
        conn.execute("ANALYZE")
