"""Searching: every memory that matches is found, in one order, page after page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from langgraph.store.base import PutOp, SearchItem, SearchOp

from langgraph_aurora_store.config import IndexSettings
from langgraph_aurora_store.errors import ConfigurationError, InvalidFilterError
from langgraph_aurora_store.local import LocalAurora
from langgraph_aurora_store.sql.flow import Embed, Transaction
from langgraph_aurora_store.sql.vector_search import LargeNamespaces
from tests.support.sql_session import DIMS, SqlSession, made

# More than are compared one by one in a table of this size, and fewer.
SIZES = {"large": 6000, "middling": 2000, "small": 300, "tiny": 7}


@pytest.fixture(scope="module")
def shared(aurora: LocalAurora) -> Iterator[SqlSession]:
    with made(aurora, "search") as session:
        yield session


@pytest.fixture
def session(shared: SqlSession) -> SqlSession:
    """A session on empty tables, which knows nothing of them yet."""
    shared.sql("TRUNCATE store, store_vectors")
    shared.sizes = LargeNamespaces()
    return shared


@pytest.fixture(scope="module")
def crowd(aurora: LocalAurora) -> Iterator[Crowd]:
    """Namespaces of all sizes in one table with an HNSW index."""
    with made(aurora, "crowd") as session:
        yield Crowd(session)


class Crowd:
    """Many vectors, of which numpy knows the order too."""

    def __init__(self, session: SqlSession) -> None:
        self.session = session
        generator = np.random.default_rng(7)
        names = [name for name, size in SIZES.items() for _ in range(size)]
        self.names = np.array(names)
        generator.shuffle(self.names)
        self.vectors = generator.normal(size=(len(names), DIMS)).astype("f4")
        rows = [
            (
                f"users.{name}",
                f"k{i}",
                json.dumps({"n": i % 1000, "all": True}),
                str(list(map(float, v))),
            )
            for i, (name, v) in enumerate(zip(self.names, self.vectors, strict=True))
        ]
        columns = dict(zip(("p", "k", "v", "e"), map(list, zip(*rows, strict=True)), strict=True))
        unnest = (
            "unnest(%(p)s::text[], %(k)s::text[], %(v)s::text[], %(e)s::text[]) AS u (p, k, v, e)"
        )
        execute = session.connection.execute
        execute(
            f"INSERT INTO store (prefix, key, value) SELECT p, k, v::jsonb FROM {unnest}", columns
        )
        execute(
            "INSERT INTO store_vectors (prefix, key, field_name, embedding)"
            f" SELECT p, k, 'text', e::vector FROM {unnest}",
            columns,
        )
        execute("ANALYZE")
        ((self.index,),) = session.sql(
            "SELECT indexdef FROM pg_indexes WHERE indexname = 'store_vectors_embedding_idx'"
        )

    def nearest(self, query: str, name: str | None, modulus: int = 1) -> list[str]:
        """The keys of a namespace whose n the modulus divides, nearest first, by comparing all."""
        vector = np.array(json.loads(query))
        cosine = self.vectors @ vector / np.linalg.norm(self.vectors, axis=1)
        numbers = np.arange(len(self.names))
        counts = ((self.names == name) if name else True) & (numbers % 1000 % modulus == 0)
        return [f"k{i}" for i in np.argsort(-cosine) if counts[i]]


QUERIES = ["[1, 0.2, -0.3, 0.1]", "[-0.5, 0.5, 0.5, -0.5]", "[0, 0, -1, 0]", "[0.3, -1, 0.2, 0.9]"]


def as_text(vector: Sequence[float]) -> str:
    return json.dumps([float(each) for each in vector])


def put_chunks(session: SqlSession, items: np.ndarray[Any, Any]) -> None:
    """An item of as many vectors as ``items`` has in each row, in tables whose size is known."""
    session.run(
        *(
            PutOp(("n",), f"k{i}", {"all": [as_text(v) for v in chunks]}, index=["all[*]"])
            for i, chunks in enumerate(items)
        )
    )
    session.sql("ANALYZE")


def keys(items: list[SearchItem]) -> list[str]:
    return [item.key for item in items]


def scores(items: list[SearchItem]) -> list[float]:
    return [item.score for item in items if item.score is not None]


@pytest.mark.parametrize("name", [*SIZES, None])
@pytest.mark.parametrize(("limit", "offset"), [(10, 0), (3, 2), (100, 0), (10, 95)])
def test_a_search_finds_what_there_is(
    crowd: Crowd, name: str | None, limit: int, offset: int
) -> None:
    """As many as asked for, of any namespace; nearest first; nearly all of them the nearest."""
    for query in QUERIES:
        namespace = ("users", name) if name else ()
        items = crowd.session.search(*namespace, query=query, limit=limit, offset=offset)
        expected = crowd.nearest(query, name)[offset : offset + limit]
        assert len(items) == len(expected)
        assert scores(items) == sorted(scores(items), reverse=True)
        assert len(set(keys(items)) & set(expected)) >= 0.9 * len(expected)
        assert {item.namespace for item in items} <= {("users", name or n) for n in SIZES}


@pytest.mark.parametrize("name", [*SIZES, None])
@pytest.mark.parametrize("modulus", [2, 50, 1000])
def test_a_filtered_search_finds_what_there_is(
    crowd: Crowd, name: str | None, modulus: int
) -> None:
    """However few the filter leaves, and in a few round trips."""
    matching = {"n": {"$in": list(range(0, 1000, modulus))}}
    for query in QUERIES:
        namespace = ("users", name) if name else ()
        items = crowd.session.search(*namespace, query=query, filter=matching)
        expected = crowd.nearest(query, name, modulus)[:10]
        assert len(items) == len(expected)
        assert len(set(keys(items)) & set(expected)) >= 0.9 * len(expected)
        assert len(crowd.session.runs) <= 2


@pytest.mark.parametrize("name", ["large", "middling", "small"])
def test_pages_hold_every_item_once(crowd: Crowd, name: str) -> None:
    """Paging through a semantic search neither repeats nor skips."""
    for size in (10, 7):
        pages = [
            crowd.session.search("users", name, query=QUERIES[0], limit=size, offset=offset)
            for offset in range(0, 30 * size, size)
        ]
        found = [key for page in pages for key in keys(page)]
        assert len(found) == len(set(found)) == min(30 * size, SIZES[name])


def test_most_searches_are_one_round_trip(crowd: Crowd) -> None:
    """The query is embedded, then everything is asked at once."""
    for name in (*SIZES, None):
        crowd.session.search(*(("users", name) if name else ()), query=QUERIES[0], limit=5)
        assert [type(step) for step in crowd.session.steps] == [Embed, Transaction]
        if name != "tiny":
            assert crowd.session.steps[0] == Embed((), (QUERIES[0],))


def test_a_large_namespace_is_counted_once_in_a_hundred_searches(crowd: Crowd) -> None:
    """The others know, and find the same."""

    def search(name: str) -> tuple[bool, list[str]]:
        found = crowd.session.search("users", name, query=QUERIES[0])
        return "OFFSET exact_threshold" not in crowd.session.runs[0].statements[1].sql, keys(found)

    crowd.session.sizes = LargeNamespaces()
    first, *others = [search("large") for _ in range(102)]
    assert first == (False, first[1])
    assert others == [(True, first[1])] * 100 + [(False, first[1])]
    assert [search("small")[0] for _ in range(3)] == [False] * 3


def test_only_so_many_namespaces_are_remembered() -> None:
    """They would pile up; those that are forgotten are counted again."""
    sizes = LargeNamespaces()
    for number in range(10_001):
        sizes.remember(f"n{number}", 1.0)
    assert sizes.vectors_per_item("n0") is None
    assert sizes.vectors_per_item("n10000") == 1.0


def test_what_was_counted_tells_how_far_to_scan(session: SqlSession) -> None:
    """Where items have many vectors each, a search meets enough of them in one go."""
    put_chunks(session, np.random.default_rng(8).normal(size=(400, 10, DIMS)))
    for _ in range(3):
        assert len(session.search("n", query="[1, 0, 0, 0]")) == 10
        assert len(session.runs) == 1
    assert session.sizes.vectors_per_item("n") == 15


def test_a_page_behind_a_filter_follows_the_tables_growth(session: SqlSession) -> None:
    """No item is on two pages, though the first search came while the tables were small."""
    session.search("n", query="[1, 0, 0, 0]", filter={"even": True})
    points = np.random.default_rng(9).normal(size=(6000, DIMS))
    session.run(
        *(
            PutOp(("n",), f"k{i}", {"text": as_text(v), "even": i % 2 == 0})
            for i, v in enumerate(points)
        )
    )
    for query in QUERIES:
        pages = [
            session.search("n", query=query, filter={"even": True}, offset=o)
            for o in range(0, 50, 10)
        ]
        assert len({item.key for page in pages for item in page}) == 50


def test_a_large_namespace_may_shrink(session: SqlSession) -> None:
    """Unnoticed, and all that is left is found."""
    session.run(*(PutOp(("n",), f"k{i}", {"text": f"[1, {i}, 1, 1]"}) for i in range(2500)))
    session.run(*(PutOp(("other",), f"k{i}", {"text": f"[1, {i}, 1, 2]"}) for i in range(2500)))
    session.sql("ANALYZE")
    session.search("n", query="[1, 0, 0, 0]")
    session.sql("DELETE FROM store WHERE prefix = 'n' AND key NOT IN ('k7', 'k2000', 'k40')")
    for filter_ in (None, {"text": {"$exists": True}}):
        found = session.search("n", query="[1, 0, 0, 0]", filter=filter_)
        assert keys(found) == ["k7", "k40", "k2000"]
    assert len(session.runs) == 1


@pytest.mark.parametrize(
    ("built_with", "limit", "expected"),
    [(None, 10, 120), (64, 10, 120), (200, 10, 40), (200, 100, 200), (None, 5000, 1000)],
)
def test_a_search_looks_further_in_an_index_built_with_less_care(
    crowd: Crowd, built_with: int | None, limit: int, expected: int
) -> None:
    """Such as the parent's; and as far as the limit asks."""
    session = crowd.session.with_tables(ef_construction=built_with)
    session.search("users", "large", query=QUERIES[0], limit=limit)
    params = session.runs[0].statements[0].params
    assert isinstance(params, Mapping)
    assert params["ef_search"] == str(expected)


def test_each_search_of_a_batch_is_steered_by_its_own_limit(crowd: Crowd) -> None:
    """Else what it finds, and its pages, would depend on who asks beside it."""
    asked = [
        SearchOp(("users", "large"), query=QUERIES[0], limit=100),
        SearchOp(("users", "large"), query=QUERIES[1], limit=10),
        SearchOp(("users", "large"), query=QUERIES[2], limit=10, filter={"all": True}),
        SearchOp(("users", "small"), query=QUERIES[0], limit=10),
    ]
    together = [keys(items) for items in crowd.session.run(*asked)]
    params = [dict(statement.params) for run in crowd.session.runs for statement in run.statements]
    steered = [(p["ef_search"], p["scan_tuples"]) for p in params if "ef_search" in p]
    assert steered == [("120", "20000"), ("120", str(2**31 - 1)), ("200", "20000")]
    assert together == [keys(crowd.session.run(one)[0]) for one in asked]


def test_a_search_leaves_no_setting_behind(crowd: Crowd) -> None:
    """What steers the planner ends with the transaction."""
    before = crowd.session.sql("SELECT name, setting FROM pg_settings WHERE context = 'user'")
    crowd.session.search(query=QUERIES[0], filter={"n": 1})
    crowd.session.search("users", "large", query=QUERIES[0])
    crowd.session.search("users", "large")
    after = crowd.session.sql("SELECT name, setting FROM pg_settings WHERE context = 'user'")
    assert after == before


def test_a_search_works_where_nothing_can_be_written(crowd: Crowd) -> None:
    """A read-only session, as on a reader."""
    crowd.session.sql("SET default_transaction_read_only = on")
    try:
        assert len(crowd.session.search("users", "large", query=QUERIES[0])) == 10
        assert len(crowd.session.search("users", "large")) == 10
    finally:
        crowd.session.sql("SET default_transaction_read_only = off")


@pytest.mark.parametrize(
    "changes",
    [
        {"iterative_scan": False},
        {"index": IndexSettings(dims=DIMS, kind="flat")},
        {"index": IndexSettings(dims=DIMS, kind="ivfflat")},
        {"pgvector_schema": "public"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["large", "small", None])
def test_a_search_finds_as_much_without_iterative_scans(
    crowd: Crowd, changes: dict[str, Any], name: str | None
) -> None:
    """On pgvector before 0.8, without an index, or with another than the configured one."""
    session = crowd.session.with_tables(**changes)
    namespace = ("users", name) if name else ()
    for filter_ in (None, {"n": {"$lt": 20}}):
        items = session.search(*namespace, query=QUERIES[0], limit=50, filter=filter_)
        allowed = [
            key
            for key in crowd.nearest(QUERIES[0], name)
            if not filter_ or int(key[1:]) % 1000 < 20
        ]
        assert len(items) == min(50, len(allowed))
        assert len(set(keys(items)) & set(allowed[:50])) >= 0.9 * len(items)


@pytest.mark.parametrize("vector_type", ["vector", "halfvec"])
@pytest.mark.parametrize("kind", ["hnsw", "ivfflat", "flat"])
def test_each_kind_of_index_serves(aurora: LocalAurora, vector_type: Any, kind: Any) -> None:
    """On its own tables, from the first put to a page of results."""
    index = IndexSettings(dims=DIMS, fields=("text",), vector_type=vector_type, kind=kind)
    with made(aurora, "kinds", index) as session:
        session.run(*(PutOp(("n",), f"k{i}", {"text": f"[1, {i}, 0, 0]"}) for i in range(30)))
        found = session.search("n", query="[1, 0, 0, 0]", limit=5, offset=1)
        assert keys(found) == ["k1", "k2", "k3", "k4", "k5"]


def test_a_search_asks_enough_lists_of_an_ivfflat(crowd: Crowd) -> None:
    """The server's own default is one of a hundred, whose vectors are few of the nearest."""
    index = IndexSettings(dims=DIMS, kind="ivfflat")
    session = crowd.session.with_tables(index=index, lists=100)
    session.sql("DROP INDEX store_vectors_embedding_idx")
    session.sql(
        "CREATE INDEX lists ON store_vectors USING ivfflat (embedding vector_cosine_ops)"
        " WITH (lists = 100)"
    )
    try:
        found = {q: set(keys(session.search("users", "large", query=q))) for q in QUERIES}
    finally:
        session.sql("DROP INDEX lists")
        session.sql(crowd.index)
    for query, some in found.items():
        assert len(some & set(crowd.nearest(query, "large")[:10])) >= 9


@pytest.mark.parametrize(
    ("distance", "score"),
    [("cosine", 0.6), ("l2", -math.sqrt(13)), ("inner_product", 9.0)],
)
def test_a_score_is_higher_for_what_is_nearer(
    aurora: LocalAurora, distance: Any, score: float
) -> None:
    """Cosine similarity, the negative distance, or the inner product: the parent's scores."""
    with made(aurora, "scores", IndexSettings(dims=DIMS, distance=distance, fields=("text",))) as e:
        e.run(
            PutOp(("n",), "a", {"text": "[3, 4, 0, 0]"}),
            PutOp(("n",), "b", {"text": "[-3, -4, 0, 0]"}),
        )
        near, far = e.search("n", query="[3, 0, 0, 0]" if distance != "l2" else "[0, 2, 0, 0]")
        assert (near.key, far.key) == ("a", "b")
        assert near.score == pytest.approx(score)
        assert far.score is not None
        assert far.score < score


@pytest.mark.parametrize("distance", ["l2", "inner_product"])
def test_a_query_of_zeros_has_distances_of_these_kinds(aurora: LocalAurora, distance: Any) -> None:
    """Only by cosine is it near to nothing."""
    with made(aurora, "origin", IndexSettings(dims=DIMS, distance=distance, fields=("text",))) as e:
        e.run(*(PutOp(("n",), f"k{i}", {"text": f"[{3 - i}, 0, 0, 0]"}) for i in range(3)))
        found = e.search("n", query="[0, 0, 0, 0]")
        assert scores(found) == ([-1, -2, -3] if distance == "l2" else [0, 0, 0])


def test_documents_of_many_chunks_leave_room_for_others(session: SqlSession) -> None:
    """Ten documents are ten documents, each at the score of its best chunk."""
    index = ["chunks[*]"]
    for d in range(30):
        chunks = [f"[1, {d / 100}, {c / 1000}, 0]" for c in range(40)]
        session.run(PutOp(("n",), f"d{d:02}", {"chunks": chunks}, index=index))
    found = session.search("n", query="[1, 0, 0, 0]")
    assert keys(found) == [f"d{d:02}" for d in range(10)]
    assert scores(found)[0] == pytest.approx(1)
    assert keys(session.search("n", query="[1, 0, 0, 0]", limit=30, offset=10)) == [
        f"d{d:02}" for d in range(10, 30)
    ]


def test_a_walk_widens_until_enough_documents_are_met(session: SqlSession) -> None:
    """One document's many vectors are the nearest of all, and five documents are asked for."""
    generator = np.random.default_rng(3)
    points = generator.normal(size=(2000, DIMS))
    # Away from the crowd, so that all of it is met first.
    points = points[points[:, 0] < 0.5 * np.linalg.norm(points, axis=1)]
    crowd = np.array([1, 0, 0, 0]) + 0.02 * generator.normal(size=(400, DIMS))
    session.run(
        PutOp(("n",), "crowd", {"chunks": [as_text(v) for v in crowd]}, index=["chunks[*]"]),
        *(PutOp(("n",), f"k{i}", {"text": as_text(v)}) for i, v in enumerate(points)),
    )
    session.sql("ANALYZE")
    found = session.search("n", query="[1, 0, 0, 0]", limit=5)
    cosine = points[:, 0] / np.linalg.norm(points, axis=1)
    assert keys(found) == ["crowd", *(f"k{i}" for i in np.argsort(-cosine)[:4])]
    assert 2 <= len(session.runs) <= 4


def test_a_walk_scores_an_item_by_its_best_vector(session: SqlSession) -> None:
    """Also when it was met by another one."""
    points = np.random.default_rng(4).normal(size=(1000, 2, DIMS))
    put_chunks(session, points)
    found = session.search("n", query="[1, 0, 0, 0]", limit=500)
    best = (points[:, :, 0] / np.linalg.norm(points, axis=2)).max(axis=1)
    for item in found:
        assert item.score == pytest.approx(best[int(item.key[1:])], abs=1e-6)
    assert scores(found) == sorted(scores(found), reverse=True)


def test_rewritten_items_hide_nobody(session: SqlSession) -> None:
    """Dead entries of the index stand where the query points."""
    session.run(*(PutOp(("n",), f"k{i}", {"text": f"[1, {i}, 1, 1]"}) for i in range(2500)))
    for i in range(120):
        session.run(PutOp(("n",), "often", {"text": f"[-1, {i / 1000}, 0, 0]"}))
    session.sql("ANALYZE")
    found = session.search(query="[-1, 0, 0, 0]")
    assert len(found) == 10
    assert found[0].key == "often"


def test_expired_items_hide_nobody(session: SqlSession) -> None:
    """A crowd that has expired and is not swept yet stands nearest."""
    old = [PutOp(("n",), f"o{i}", {"text": f"[1, {i / 10_000}, 0, 0]"}, ttl=5) for i in range(2500)]
    new = [PutOp(("n",), f"k{i}", {"text": f"[1, 1, {i}, 0]"}) for i in range(20)]
    session.run(*old, *new)
    session.sql("UPDATE store SET expires_at = now() - interval '1 second' WHERE key ~ '^o'")
    session.sql("ANALYZE")
    assert keys(session.search("n", query="[1, 0, 0, 0]", limit=3)) == ["k0", "k1", "k2"]


def test_a_zero_vector_never_ranks(session: SqlSession) -> None:
    """It has no direction; and a query without one ranks nothing and finds the newest."""
    session.put("zero", {"text": "[0, 0, 0, 0]"})
    session.put("a", {"text": "[1, 0, 0, 0]"})
    session.put("b", {"text": "[-1, 0, 0, 0]"})
    assert keys(session.search("n", query="[1, 0, 0, 0]")) == ["a", "b"]
    lost = session.search("n", query="[0, 0, 0, 0]", limit=2)
    assert [(item.key, item.score) for item in lost] == [("b", None), ("a", None)]


@pytest.mark.parametrize("kind", ["hnsw", "flat"])
@pytest.mark.parametrize("others", [0, 2500], ids=["compared", "walked"])
@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product"])
def test_a_stored_zero_vector_never_ranks(
    aurora: LocalAurora, distance: Any, others: int, kind: Any
) -> None:
    """By no metric, though two of them have a distance to it; the parent may have stored one."""
    index = IndexSettings(dims=DIMS, distance=distance, kind=kind, fields=("text",))
    with made(aurora, "zeros", index) as session:
        points = np.random.default_rng(5).normal(size=(others + 3, DIMS))
        points[:, 0] = -1 - abs(points[:, 0])
        session.run(*(PutOp(("n",), f"k{i}", {"text": as_text(v)}) for i, v in enumerate(points)))
        session.put("zero", {"text": "[0.5, 0, 0, 0]"})
        session.sql("ANALYZE")
        query = "[0.1, 0, 0, 0]"  # nearer to zero than to all others
        assert keys(session.search("n", query=query, limit=1)) == ["zero"]
        session.sql("UPDATE store_vectors SET embedding = '[0,0,0,0]' WHERE key = 'zero'")
        for filter_ in (None, {"text": {"$exists": True}}):
            found = session.search("n", query=query, limit=3, filter=filter_)
            assert len(found) == 3
            assert "zero" not in keys(found)
            assert None not in scores(found)


def test_ties_have_one_order(session: SqlSession) -> None:
    """By namespace and key, in recency and in nearness, over all pages."""
    expected = sorted(((f"n{i % 3}",), f"{'kK-_é'[i % 5]}{i}") for i in range(60))
    session.run(*(PutOp(ns, key, {"text": "same"}) for ns, key in reversed(expected)))
    for options in ({}, {"query": "same"}):
        pages = [session.search(limit=7, offset=o, **options) for o in range(0, 63, 7)]
        assert [(i.namespace, i.key) for page in pages for i in page] == expected


def test_ties_that_are_walked_have_one_order(session: SqlSession) -> None:
    """The same as of those compared one by one."""
    expected = sorted((("n",), f"{'kK-_éz'[i % 6]}{i}") for i in range(60))
    session.run(*(PutOp(("n",), f"x{i}", {"text": f"[-1, {i / 100}, 1, 0]"}) for i in range(2500)))
    session.run(*(PutOp(ns, key, {"text": "[1, 0, 0, 0]"}) for ns, key in reversed(expected)))
    session.sql("ANALYZE")
    for size in (10, 60):
        pages = [
            session.search(query="[1, 0, 0, 0]", limit=size, offset=o) for o in range(0, 60, size)
        ]
        assert [(i.namespace, i.key) for page in pages for i in page] == expected


def test_the_order_of_ties_is_no_language_s(crowd: Crowd) -> None:
    """The same on every server, and after an upgrade of the operating system's collations."""
    crowd.session.run(SearchOp((), query=QUERIES[0]), SearchOp(("users",)), SearchOp((), limit=3))
    compared = crowd.session.with_tables(index=IndexSettings(dims=DIMS, kind="flat"))
    compared.search(query=QUERIES[0], filter={"n": 2000})
    texts = [
        str(statement.sql)
        for step in (*crowd.session.runs, *compared.runs)
        for statement in step.statements
    ]
    orders = [order for text in texts for order in re.findall(r"ORDER BY [^()]*?key[^()]*", text)]
    # Not where it only brings an item's rows together.
    pages = [order for order in orders if not re.match(r"ORDER BY \w*\.?prefix, ", order)]
    assert len(pages) >= 6
    for order in pages:
        assert re.search(r'prefix COLLATE "C", \w*\.?key COLLATE "C"', order)


def test_without_a_query_the_newest_come_first(session: SqlSession) -> None:
    """A blank query is none, and nothing is embedded for it."""
    for key in "abc":
        session.put(key, {"text": key})
    for query in (None, "", " \n"):
        assert keys(session.search("n", query=query)) == ["c", "b", "a"]
        assert [type(step) for step in session.steps] == [Transaction]


def test_neighbours_of_a_namespace_are_not_in_it(session: SqlSession) -> None:
    """Only labels that are equal in full, whatever characters they hold."""
    inside = [("a_",), ("a_", "x"), ("a_", "%"), ("a_", "/")]
    outside = [("a",), ("a_x",), ("a_-", "x"), ("ab", "x"), ("A_",), ("a_/",), ("b", "a_"), ("%",)]
    session.run(*(PutOp(ns, "k", {"text": "t"}) for ns in inside + outside))
    for options in ({}, {"query": "t"}, {"query": "t", "filter": {"text": "t"}}):
        found = session.search("a_", limit=50, **options)
        assert sorted(item.namespace for item in found) == sorted(inside)


def test_a_search_filters_with_and_without_a_query(session: SqlSession) -> None:
    """By the same language."""
    session.run(
        *(
            PutOp(("n",), f"k{i}", {"text": f"t{i}", "n": i, "tags": ["x"] * (i % 2)})
            for i in range(20)
        )
    )
    wanted = {"n": {"$gte": 9, "$lt": 13}, "tags": {"$contains": "x"}}
    for query in (None, "t1"):
        assert sorted(keys(session.search("n", query=query, filter=wanted))) == ["k11", "k9"]


def test_a_query_without_an_index_is_ignored(session: SqlSession) -> None:
    """As by the parent and InMemoryStore, which LangMem and LangGraph Server send one to."""
    without = session.with_tables(index=None)
    for key in ("a", "b", "c"):
        without.put(key, {"text": key})
    assert keys(without.search("n", query="a")) == keys(without.search("n")) == ["c", "b", "a"]
    assert [item.score for item in without.search("n", query="a")] == [None, None, None]


def test_a_query_that_is_no_text_is_refused(session: SqlSession) -> None:
    """Before anything is asked."""
    with pytest.raises(ConfigurationError, match="query="):
        session.search("n", query=5)


@pytest.mark.parametrize("page", [{"limit": -1}, {"offset": -1}, {"limit": 1.5}, {"limit": True}])
def test_a_page_that_no_list_has_is_refused(session: SqlSession, page: dict[str, Any]) -> None:
    """Before anything is asked."""
    with pytest.raises(ConfigurationError, match=next(iter(page))):
        session.search("n", **page)
    assert not session.steps


def test_a_limit_of_nothing_asks_for_no_vector(session: SqlSession) -> None:
    """It finds nothing, and embeds nothing."""
    session.put("k", {"text": "a"})
    assert session.search("n", query="a", limit=0) == []
    assert not any(isinstance(step, Embed) for step in session.steps)


def test_a_filter_is_checked_before_anything_is_asked(session: SqlSession) -> None:
    """Also before the query is embedded."""
    with pytest.raises(InvalidFilterError):
        session.search("n", query="a", filter={"n": {"$near": 1}})
    assert not session.steps


def test_searches_of_a_batch_share_a_round_trip(session: SqlSession) -> None:
    """Their queries too are embedded together, equal ones once."""
    session.put("a", {"text": "a"})
    session.put("b", {"text": "b"})
    found = session.run(
        SearchOp(("n",), query="a", limit=1),
        SearchOp((), query="b", limit=1, filter={"text": "b"}),
        SearchOp(("n",), query="a", limit=1, offset=1),
    )
    assert [[item.key for item in items] for items in found] == [["a"], ["b"], ["b"]]
    assert [type(step) for step in session.steps] == [Embed, Transaction]
    assert session.steps[0] == Embed((), ("a", "b"))


def test_scores_do_not_rise_within_a_page(crowd: Crowd) -> None:
    """Also where an index scan returns items out of order."""
    for offset in (0, 20, 200):
        page = crowd.session.search("users", "middling", query=QUERIES[3], limit=200, offset=offset)
        assert all(a >= b for a, b in pairwise(scores(page)))
        assert len(page) == 200
