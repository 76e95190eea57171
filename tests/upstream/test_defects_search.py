"""What the parent's search gets wrong and ours right: the rows S1 to S15 of what was measured."""

import math
import random
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from langgraph.store.base import PutOp

from langgraph_aurora_store.errors import InvalidFilterError
from tests.support.parent_comparison import Document, Side, Vector, side
from tests.support.store_kinds import DIMS, Letters, Table

__all__ = ["side"]

WITH_LETTERS = {"index": {"dims": DIMS, "embed": Letters(), "fields": ["text"]}}
# As a large table has it by itself: the scan of the vector index looks cheapest.
BY_VECTOR_INDEX = {"enable_sort": "off", "enable_seqscan": "off", "enable_bitmapscan": "off"}


def around(angle: float, count: int, seed: int) -> Iterator[Vector]:
    """Vectors of 8 dimensions, close to one direction of the first two."""
    draw = random.Random(seed)
    for _ in range(count):
        noise = [draw.gauss(0, 0.02) for _ in range(6)]
        turned = angle + draw.uniform(0, 0.2)
        yield [math.cos(turned), math.sin(turned), *noise]


def crowd(namespace: str, angle: float, count: int) -> Iterator[Document]:
    """Items of one vector each."""
    for i, vector in enumerate(around(angle, count, seed=len(namespace))):
        yield (namespace,), f"{namespace}{i}", {"n": i}, [vector]


def asking(vector: Vector, **index: Any) -> dict[str, Any]:
    """Settings of a store whose query "q" is this vector."""
    texts = {"q": vector, "zero": [0.0] * 8, "one": vector}
    texts |= {f"version {i}": [*vector[:-1], i / 1000] for i in range(81)}
    embed = Table(texts)
    return {"index": {"dims": len(vector), "embed": embed, "fields": ["text"], **index}}


EAST = [1.0, *[0.0] * 7]


def test_s1_a_namespace_is_found_beside_larger_ones(side: Side) -> None:
    """S1: the parent filters the first 40 candidates of the whole table, so none may be left."""
    with side.store(**asking(EAST)):
        side.fill([*crowd("big", 0.0, 2500), *crowd("small", 1.0, 2500)])
    side.configure(**BY_VECTOR_INDEX)
    with side.store(is_set_up=True, **asking(EAST)) as store, side.only_ours(match="assert 0 =="):
        assert len(store.search(("small",), query="q", limit=10)) == 10


def test_s1_what_a_filter_leaves_is_found(side: Side) -> None:
    """S1: likewise for a filter that few items pass."""
    with side.store(**asking(EAST)):
        side.fill(crowd("a", 0.0, 2500))
    side.configure(**BY_VECTOR_INDEX)
    with side.store(is_set_up=True, **asking(EAST)) as store, side.only_ours(match="assert 0 =="):
        assert len(store.search(("a",), query="q", filter={"n": 2400})) == 1


def test_s2_a_limit_above_40_is_met(side: Side) -> None:
    """S2: the parent's searches never leave the 40 candidates of pgvector's default."""
    with side.store(**asking(EAST)):
        side.fill(crowd("a", 0.0, 2500))
    side.configure(**BY_VECTOR_INDEX)
    with side.store(is_set_up=True, **asking(EAST)) as store, side.only_ours(match="assert 40 =="):
        assert len(store.search((), query="q", limit=100)) == 100


def test_s3_what_was_rewritten_hides_nobody(side: Side) -> None:
    """S3: the index entries of old versions fill the parent's 40 candidates."""
    with side.store(**asking(EAST)) as store:
        side.fill(crowd("a", 0.3, 2500))
        side.sql("ALTER TABLE store_vectors SET (autovacuum_enabled = off)")
        for version in range(81):
            store.put(("b",), "k", {"text": f"version {version}"})
    side.configure(**BY_VECTOR_INDEX)
    with side.store(is_set_up=True, **asking(EAST)) as store, side.only_ours():
        found = store.search((), query="q", limit=10)
        assert len(found) == 10
        assert found[0].key == "k"


def test_s4_pages_go_on_to_the_end(side: Side) -> None:
    """S4: the parent's inner limit forgets the offset: pages of 10, 10, 1, 0, 0 ..."""
    with side.store(**asking(EAST)) as store:
        side.fill(crowd("a", 0.0, 100))
        with side.only_ours(match=r"\[10, 10, 1, 0, 0"):
            pages = [store.search(("a",), query="q", offset=o) for o in range(0, 100, 10)]
            assert [len(page) for page in pages] == [10] * 10
            assert len({item.key for page in pages for item in page}) == 100


def test_s5_documents_of_many_chunks_leave_room_for_others(side: Side) -> None:
    """S5: the nearest document's 40 chunks take the parent's candidates."""
    with side.store(**asking(EAST)) as store:
        side.fill((("a",), f"k{i}", {}, list(around(i / 30, 40, seed=i))) for i in range(30))
        with side.only_ours():
            assert len(store.search(("a",), query="q", limit=10)) == 10


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"value": {"text": "tea"}}, {"value": {"text": "tea"}, "index": False}),
        ({"value": {"text": "tea"}}, {"value": {"other": "x"}}),
        (
            {"value": {"text": "tea", "t": "zzz"}},
            {"value": {"text": "tea", "t": "zzz"}, "index": ["t"]},
        ),
        (
            {"value": {"l": ["zzz", "tea"]}, "index": ["l[*]"]},
            {"value": {"l": ["zzz", "yyy"][:1]}, "index": ["l[*]"]},
        ),
    ],
    ids=["index=False", "dropped field", "another list", "shorter list"],
)
def test_s6_an_update_forgets_the_old_text(
    side: Side, first: dict[str, Any], then: dict[str, Any]
) -> None:
    """S6: the parent goes on finding it, at a score of 1."""
    with side.store(**WITH_LETTERS) as store:
        store.put(("a",), "k", **first)
        assert store.search(("a",), query="tea")[0].score > 0.999
        store.put(("a",), "k", **then)
        with side.only_ours():
            assert all(item.score < 0.999 for item in store.search(("a",), query="tea"))


def test_s7_a_zero_vector_never_ranks(side: Side) -> None:
    """S7: its score is NaN, which the parent puts first."""
    with side.store(**asking(EAST, ann_index_config={"kind": "flat"})) as store:
        store.put(("a",), "nothing", {"text": "zero"})
        store.put(("a",), "something", {"text": "one"})
        with side.only_ours(match="nothing"):
            assert [item.key for item in store.search(("a",), query="q")] == ["something"]


def test_s8_queries_are_embedded_as_queries(side: Side) -> None:
    """S8: many models embed a question otherwise than a document; the parent asks for documents."""
    model = Letters()
    with side.store(index={"dims": DIMS, "embed": model}) as store:
        store.search(("a",), query="tea")
        with side.only_ours():
            assert (model.queries, model.documents) == (["tea"], [])


def test_s9_pages_of_one_moment_are_disjoint(side: Side) -> None:
    """S9: items of one batch have one updated_at, and the parent's order has no second key."""
    with side.store() as store:
        store.batch([PutOp(("a",), f"k{i}", {}) for i in range(500)])
        pages = [store.search(("a",), limit=10, offset=o) for o in range(0, 500, 10)]
        with side.only_ours():
            assert len({item.key for page in pages for item in page}) == 500


@pytest.mark.parametrize(
    ("condition", "expected"),
    [({"$gt": 9}, {10, 100}), ({"$gte": 5, "$lte": 20}, {9, 10}), ({"$lt": 10}, {1, 9})],
    ids=str,
)
def test_s10_numbers_compare_as_numbers(
    side: Side, condition: dict[str, int], expected: set[int]
) -> None:
    """S10: the parent compares their digits as text (langgraph#7684)."""
    with side.store() as store:
        store.batch([PutOp(("a",), f"{n}", {"n": n}) for n in (1, 9, 10, 100)])
        with side.only_ours():
            found = store.search(("a",), filter={"n": condition})
            assert {item.value["n"] for item in found} == expected


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ({"meta": {"a": 1}}, "x"),
        ({"meta": {"a": {"$ne": 1}}}, "y"),
        ({"n": {}}, ""),
        ({"$and": [{"n": 1}, {"tag": "red"}]}, "x"),
        ({"$or": [{"n": 1}, {"n": 2}]}, "xy"),
        ({"n": {"$in": [1, 3]}}, "x"),
        ({"n": {"$nin": [1, 3]}}, "y"),
        ({"tag": {"$exists": False}}, "y"),
        ({"list": {"$contains": 5}}, "y"),
        ({"n": {"$not": {"$gt": 1}}}, "x"),
    ],
    ids=str,
)
def test_s11_filters_mean_what_they_say(side: Side, filter_: dict[str, Any], expected: str) -> None:
    """S11: nested objects raise on the parent, ``{}`` is ignored and ``$and`` finds nothing."""
    with side.store() as store:
        store.put(("a",), "x", {"n": 1, "tag": "red", "meta": {"a": 1, "b": 2}})
        store.put(("a",), "y", {"n": 2, "meta": {"a": 2}, "list": [4, 5]})
        with side.only_ours(AssertionError, ValueError):
            found = store.search(("a",), filter=filter_)
            assert sorted(item.key for item in found) == list(expected)


def test_s11_an_unknown_operator_is_an_error(side: Side) -> None:
    """S11: outside of a field the parent takes it for a name that no item has."""
    with (
        side.store() as store,
        side.only_ours(pytest.fail.Exception),
        pytest.raises(InvalidFilterError, match=r"\$nor"),
    ):
        store.search(("a",), filter={"$nor": [{"n": 1}]})


def test_s12_ivfflat_is_built_of_what_it_is_to_find(side: Side) -> None:
    """S12: the parent builds its lists of an empty table, and looks into one of them."""
    index = {"kind": "ivfflat", "lists": 50}
    draw = random.Random(12)
    vectors = [[draw.gauss(0, 1) for _ in range(8)] for _ in range(2000)]
    with side.store(**asking(EAST, ann_index_config=index)) as store:
        side.fill(((f"n{i % 3}",), f"{i}", {}, [vector]) for i, vector in enumerate(vectors))
        store.setup()
    side.configure(**BY_VECTOR_INDEX)
    nearest = sorted(range(2000), key=lambda i: -_cosine(vectors[i], EAST))[:20]
    with side.store(is_set_up=True, **asking(EAST, ann_index_config=index)) as store:
        found = {item.key for item in store.search((), query="q", limit=20)}
    with side.only_ours():
        assert len(found & {str(i) for i in nearest}) >= 18


def _cosine(one: Vector, other: Vector) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one)


@pytest.mark.parametrize("query", [None, "tea"])
@pytest.mark.parametrize("ttl", [None, {"refresh_on_read": True}], ids=["without ttl", "ttl"])
def test_s13_reading_works_where_nothing_can_be_written(
    side: Side, ttl: Any, query: str | None
) -> None:
    """S13: every read of the parent's is an UPDATE, which a reader endpoint refuses."""
    with side.store(ttl=ttl, **WITH_LETTERS) as store:
        store.put(("a",), "k", {"text": "tea"}, ttl=ttl and 10)
    side.sql("UPDATE store SET expires_at = now() + interval '1 min' WHERE ttl_minutes > 0")
    side.configure(default_transaction_read_only="on")
    with side.store(is_set_up=True, ttl=ttl, **WITH_LETTERS) as store:
        for read in (lambda: store.get(("a",), "k"), lambda: store.search(("a",), query=query)):
            with side.only_ours(psycopg.errors.ReadOnlySqlTransaction):
                assert read()


def test_s14_equality_is_served_by_a_gin_index(side: Side) -> None:
    """S14: ``value->k = v`` has no index; ``value @> '{"k": v}'`` has."""
    with side.store() as store:
        store.batch([PutOp(("a",), f"{i}", {"n": i, "tag": f"t{i}"}) for i in range(2000)])
    side.sql("CREATE INDEX test_gin ON store USING gin (value jsonb_path_ops)")
    side.sql("ANALYZE store")
    with side.store(is_set_up=True) as store:
        assert len(store.search(("a",), filter={"tag": "t7"})) == 1
        store.conn.execute("SELECT pg_stat_force_next_flush()")
    with side.only_ours(match="assert 0 >"):
        query = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'test_gin'"
        assert side.sql(query)[0][0] > 0


def test_s15_namespaces_are_listed_without_reading_every_item(side: Side) -> None:
    """S15: the parent reads the whole table for a list of ten."""
    with side.store() as store:
        store.batch([PutOp((f"n{i % 10}", "x"), f"{i}", {}) for i in range(5000)])
    side.sql("ANALYZE store")
    before = _rows_read(side)
    with side.store(is_set_up=True) as store:
        assert len(store.list_namespaces(max_depth=1)) == 10
        store.conn.execute("SELECT pg_stat_force_next_flush()")
    with side.only_ours():
        assert _rows_read(side) - before < 500


def _rows_read(side: Side) -> int:
    query = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'store'"
    return side.sql(query)[0][0]
