"""A batch as a flow: what it asks, in how many round trips, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.store.base import (
    GetOp,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchItem,
    SearchOp,
)
from langgraph.store.memory import InMemoryStore

from langgraph_aurora_store.config import IndexSettings
from langgraph_aurora_store.errors import ConfigurationError, InvalidItemError
from langgraph_aurora_store.local import LocalAurora
from langgraph_aurora_store.sql.batch import complete, prepare, run, split
from langgraph_aurora_store.sql.flow import Embed, Rows, Transaction, Vectors
from langgraph_aurora_store.sql.namespace_operations import count_under
from langgraph_aurora_store.sql.store_tables import StoreTables
from langgraph_aurora_store.sql.vector_search import LargeNamespaces
from tests.support.flow_runner import drive
from tests.support.sql_session import SqlSession, embed, made

TABLES = StoreTables(index=IndexSettings(dims=2, fields=("text",)))


@pytest.fixture(scope="module")
def shared(aurora: LocalAurora) -> Iterator[SqlSession]:
    with made(aurora, "plans") as session:
        yield session


@pytest.fixture
def session(shared: SqlSession) -> SqlSession:
    """A session on empty tables."""
    shared.sql("TRUNCATE store, store_vectors")
    return shared


# by hand, without a database


def test_a_flow_can_be_answered_by_hand() -> None:
    """The flow is pure: rows in, items out, no matter where they come from."""
    flow = run([GetOp(("a", "b"), "k"), GetOp(("c",), "k")], TABLES)
    step = next(flow)
    assert isinstance(step, Transaction)
    (statement,) = step.statements
    assert statement.params == {"prefixes": ["a.b", "c"], "keys": ["k", "k"]}
    with pytest.raises(StopIteration) as stop:
        flow.send([Rows([(2, {"v": 1}, "2026-01-01", "2026-01-02", False)])])
    missing, found = stop.value.value
    assert missing is None
    assert (found.namespace, found.key, found.value) == (("c",), "k", {"v": 1})


def test_an_empty_batch_asks_nothing() -> None:
    """Neither a connection nor a vector."""
    with pytest.raises(StopIteration) as stop:
        next(run([], TABLES))
    assert stop.value.value == []


def test_a_batch_embeds_its_texts_and_queries_at_once() -> None:
    """With where each text comes from, which reports name."""
    flow = run(
        [
            PutOp(("n",), "b", {"text": "one"}),
            PutOp(("n",), "a", {"text": "two"}),
            PutOp(("n",), "c", {"text": "two"}),
            SearchOp((), query="three"),
        ],
        TABLES,
    )
    next(flow)
    asked = flow.send([Rows()])
    assert isinstance(asked, Embed)
    assert asked.documents == ("two", "one")
    assert asked.queries == ("three",)
    assert asked.labels == ((("n",), "a", "text"), (("n",), "b", "text"))
    search = flow.send(Vectors([[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0]]))
    assert isinstance(search, Transaction)


def test_what_fails_in_embedding_leaves_nothing_to_write() -> None:
    """The error passes through the flow, which yields no step more."""
    flow = run([PutOp(("n",), "k", {"text": "x"})], TABLES)
    next(flow)
    flow.send([Rows()])
    with pytest.raises(OSError, match="no model"):
        flow.throw(OSError("no model"))
    with pytest.raises(StopIteration):
        next(flow)


@pytest.mark.parametrize("at_most", [1, 2, 3, 50])
def test_parts_settle_every_operation_once(session: SqlSession, at_most: int) -> None:
    """Each finishes its own, and together they do what the batch would."""
    session.run(*(PutOp(("old",), f"k{i}", {"text": f"t{i}"}) for i in range(3)))
    session.run(PutOp(("gone",), "k", {"text": "t"}))
    ops = [
        *(PutOp(("n",), f"k{i % 9}", {"text": f"t{i}"}) for i in range(14)),
        *(SearchOp(("old",), query=f"t{i % 3}", limit=1) for i in range(5)),
        GetOp(("old",), "k2"),
        SearchOp(("old",), query=" ", limit=1),
        PutOp(("gone",), "k", None),
    ]
    prepared = drive(prepare(ops, session.tables), session.connection, embed, session.steps)
    parts = split(prepared, at_most)
    assert len(parts) == min(at_most, (9 + 1 + 5) // 4)
    results: dict[int, Any] = {}
    for part in reversed(parts):
        done = drive(complete(part, session.tables, LargeNamespaces()), session.connection)
        results |= dict(zip(part.positions, done, strict=True))
        for key in range(9):
            positions = {position for position in range(14) if position % 9 == key}
            assert not positions & set(part.positions) or positions <= set(part.positions)
    assert sorted(results) == list(range(len(ops)))
    assert [results[position][0].key for position in range(14, 19)] == [
        "k0",
        "k1",
        "k2",
        "k0",
        "k1",
    ]
    assert (results[19].key, results[20][0].key) == ("k2", "k0")
    values = {item.key: item.value["text"] for item in session.search("n")}
    assert values == {f"k{i % 9}": f"t{i}" for i in range(14)}
    assert session.sql("SELECT count(*) FROM store_vectors WHERE prefix = 'n'") == [(9,)]
    assert session.search("gone") == []


def test_an_operation_of_another_kind_is_refused() -> None:
    """By its name."""
    with pytest.raises(TypeError, match="tuple"):
        next(run([("n", "k")], TABLES))  # type: ignore[list-item]


@pytest.mark.parametrize("key", [1, None, "a\x00b"])
def test_a_key_that_no_item_can_have_is_refused(key: Any) -> None:
    """A get of it is a mistake of the caller's too."""
    with pytest.raises(InvalidItemError, match=r"in \('n',\)"):
        next(run([GetOp(("n",), key)], TABLES))


# round trips


def test_gets_of_many_namespaces_are_one_statement(session: SqlSession) -> None:
    """Found or not, twice the same or not, each has its answer, and its own value."""
    positions = [((f"n{i}", "x"), f"k{i}") for i in range(10)]
    session.run(*(PutOp(ns, key, {"at": [ns[0]]}) for ns, key in positions))
    gets = [GetOp(ns, key) for ns, key in positions]
    found = session.run(*gets, GetOp(("n0", "x"), "none"), gets[0])
    assert [len(run.statements) for run in session.runs] == [1]
    assert [item and (item.namespace, item.key) for item in found] == [
        *positions,
        None,
        positions[0],
    ]
    found[0].value["at"].append("changed")
    assert found[-1].value == {"at": ["n0"]}


def test_a_namespace_given_as_a_list_is_answered_as_a_tuple(session: SqlSession) -> None:
    """As an item has it from every other read."""
    session.run(PutOp(["n", "m"], "k", {"text": "a"}))  # type: ignore[arg-type]
    gotten, (found,), (near,) = session.run(
        GetOp(["n", "m"], "k"),  # type: ignore[arg-type]
        SearchOp(["n", "m"]),  # type: ignore[arg-type]
        SearchOp(["n", "m"], query="a"),  # type: ignore[arg-type]
    )
    assert gotten.namespace == found.namespace == near.namespace == ("n", "m")


def test_reads_without_vectors_share_a_round_trip(session: SqlSession) -> None:
    """Gets, the newest items and namespaces."""
    session.put("k", {"v": 1})
    item, items, more, namespaces = session.run(
        GetOp(("n",), "k"), SearchOp(("n",)), SearchOp(()), ListNamespacesOp()
    )
    assert len(session.runs) == 1
    assert item.value == {"v": 1}
    assert [i.key for i in items] == [i.key for i in more] == ["k"]
    assert namespaces == [("n",)]


def test_reads_see_what_was_there_before_the_batch(session: SqlSession) -> None:
    """As in the parent and in memory, wherever in the batch they stand."""
    session.put("k", {"text": "old"})
    _, item, recent, near, listed = session.run(
        PutOp(("n",), "k", {"text": "new"}),
        GetOp(("n",), "k"),
        SearchOp(()),
        SearchOp((), query="new"),
        ListNamespacesOp(),
    )
    assert item.value == recent[0].value == near[0].value == {"text": "old"}
    assert listed == [("n",)]
    changed = session.get("k")
    assert changed is not None
    assert changed.value == {"text": "new"}


def test_a_search_result_is_a_search_item(session: SqlSession) -> None:
    """With all its columns."""
    session.put("k", {"text": "a"})
    (item,) = session.search("n", query="a")
    assert isinstance(item, SearchItem)
    assert (item.namespace, item.key, item.value) == (("n",), "k", {"text": "a"})
    assert item.score == pytest.approx(1)
    assert item.created_at == item.updated_at
    assert item.created_at.tzinfo is not None


# namespaces

labels = st.sampled_from(["a", "b", "a-b", "a b", "A", "é", "a_", "%", "a/", "*x", "z\n"])
namespaces = st.lists(labels, min_size=1, max_size=4).map(tuple)
patterns = st.lists(labels | st.just("*"), max_size=3).map(tuple)
conditions = st.lists(
    st.builds(MatchCondition, st.sampled_from(["prefix", "suffix"]), patterns), max_size=2
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    stored=st.lists(namespaces, max_size=12),
    conditions=conditions,
    depth=st.none() | st.integers(1, 4),
    page=st.tuples(st.integers(0, 5), st.integers(0, 3)),
)
def test_namespaces_are_listed_as_in_memory(
    session: SqlSession,
    stored: list[tuple[str, ...]],
    conditions: list[MatchCondition],
    depth: int | None,
    page: tuple[int, int],
) -> None:
    """Truncated, matched, ordered label by label, and cut into pages."""
    session.sql("TRUNCATE store, store_vectors")
    memory = InMemoryStore()
    puts = [PutOp(namespace, "k", {}) for namespace in stored]
    memory.batch(puts)
    session.run(*puts)
    limit, offset = page
    for op in (
        ListNamespacesOp(tuple(conditions), depth, limit=100),
        ListNamespacesOp(tuple(conditions), depth, limit, offset),
    ):
        assert session.run(op) == memory.batch([op])


@pytest.mark.parametrize("match_type", ["prefix", "suffix"])
def test_every_pattern_matches_whole_labels_literally(
    session: SqlSession, match_type: Literal["prefix", "suffix"]
) -> None:
    """Of up to three, ``*`` among them: as in memory, whatever a label means in a pattern."""
    some = ["a", "b", "ab", "a+"]
    puts = [PutOp(ns, "k", {}) for n in (1, 2, 3) for ns in product(some, repeat=n)]
    ops = [
        ListNamespacesOp((MatchCondition(match_type, pattern),), depth, limit=100)
        for n in (1, 2, 3)
        for pattern in product([*some, "*"], repeat=n)
        for depth in (None, 1)
    ]
    memory = InMemoryStore()
    memory.batch(puts)
    session.run(*puts)
    for op, found, expected in zip(ops, session.run(*ops), memory.batch(ops), strict=True):
        assert found == expected, op


def test_a_namespace_that_does_not_match_hides_none_that_does(session: SqlSession) -> None:
    """Though both are cut to the same."""
    session.run(PutOp(("a", "b"), "k", {}), PutOp(("a", "c"), "k", {}), PutOp(("b", "b"), "k", {}))
    suffix = MatchCondition("suffix", ("c",))
    assert session.run(ListNamespacesOp((suffix,), max_depth=1)) == [[("a",)]]


def test_a_namespace_may_go_on_with_the_lowest_character_there_is(session: SqlSession) -> None:
    """Right above a namespace come those that are longer by a control character."""
    stored = [("a",), ("a\x01",), ("a\x01\x01",), ("a", "\x01"), ("a\x02",), ("b",)]
    session.run(*(PutOp(namespace, "k", {}) for namespace in stored))
    assert session.run(ListNamespacesOp()) == [sorted(stored)]
    top = [("a",), ("a\x01",), ("a\x01\x01",), ("a\x02",), ("b",)]
    assert session.run(ListNamespacesOp(max_depth=1)) == [top]


@pytest.mark.parametrize(
    ("op", "met"),
    [
        (ListNamespacesOp(max_depth=1), 3),
        (ListNamespacesOp((MatchCondition("prefix", ("1",)),)), 200),
        (ListNamespacesOp((MatchCondition("prefix", ("1", "*")),), max_depth=1), 1),
    ],
    ids=["depth", "prefix", "both"],
)
def test_a_listing_probes_for_no_more_than_it_has_to(
    session: SqlSession, op: ListNamespacesOp, met: int
) -> None:
    """One probe passes all that is cut to the same, and none leaves the prefix."""
    session.sql(
        "INSERT INTO store (prefix, key, value)"
        " SELECT i % 3 || '.' || i, 'k', '{}' FROM generate_series(1, 600) AS i"
    )
    session.run(op)
    _, listing = session.runs[0].statements
    explain = "EXPLAIN (ANALYZE, TIMING off, SUMMARY off, COSTS off) " + listing.sql
    plan = [row[0] for row in session.connection.execute(explain, listing.params)]
    (recursion,) = [line for line in plan if "Recursive Union" in line]
    # Where it begins, and what it meets.
    assert f"rows={1 + met} " in recursion, plan


@pytest.mark.parametrize("count", [19_999, 20_000, 20_001])
def test_as_many_namespaces_as_are_probed_are_listed(session: SqlSession, count: int) -> None:
    """And one less, and one more."""
    session.sql(
        "INSERT INTO store (prefix, key, value)"
        " SELECT 'u.' || i, 'k', '{}' FROM generate_series(1, %s) AS i",
        count,
    )
    for conditions in ((), (MatchCondition("prefix", ("u",)),)):
        (found,) = session.run(ListNamespacesOp(conditions, limit=30_000))
        assert len(found) == count


def test_more_namespaces_than_are_probed_are_listed(session: SqlSession) -> None:
    """Where one look at every row is cheaper than a probe for each namespace."""
    session.sql(
        "INSERT INTO store (prefix, key, value)"
        " SELECT 'u.' || i || '.' || i % 2, 'k', '{}' FROM generate_series(1, 21000) AS i"
    )
    session.run(PutOp(("u", "expired"), "k", {}, ttl=0), PutOp(("v",), "k", {}))
    prefix = MatchCondition("prefix", ("u",))
    (everything,) = session.run(ListNamespacesOp((prefix,), limit=30_000))
    assert len(everything) == 21_000
    assert everything == sorted(everything)
    (first,) = session.run(ListNamespacesOp(limit=2))
    assert first == everything[:2] == [("u", "1", "1"), ("u", "10", "0")]
    (odd,) = session.run(
        ListNamespacesOp((prefix, MatchCondition("suffix", ("1",))), max_depth=2, limit=30_000)
    )
    assert len(odd) == 10_500
    (top,) = session.run(ListNamespacesOp(max_depth=1))
    assert top == [("u",), ("v",)]


@pytest.mark.parametrize(
    "op",
    [
        ListNamespacesOp(max_depth=0),
        ListNamespacesOp(limit=-1),
        ListNamespacesOp(offset=-1),
        ListNamespacesOp((MatchCondition("infix", ("a",)),)),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_a_listing_that_means_nothing_is_refused(op: ListNamespacesOp) -> None:
    """Before anything is asked."""
    with pytest.raises(ConfigurationError):
        next(run([op], TABLES))


def test_items_are_counted_by_namespace_and_filter(session: SqlSession) -> None:
    """In a namespace and below it; everywhere, in the empty one."""
    for i in range(6):
        session.run(PutOp(("a", f"b{i % 2}"), f"k{i}", {"n": i}), PutOp(("ab",), f"k{i}", {"n": i}))
    for namespace, filter_, expected in (
        (("a",), None, 6),
        (("a", "b0"), None, 3),
        (("a",), {"n": {"$gt": 3}}, 2),
        ((), {"n": {"$gt": 3}}, 4),
        ((), None, 12),
        (("c",), None, 0),
    ):
        flow = count_under(namespace, session.tables, filter_)
        assert drive(flow, session.connection) == expected
