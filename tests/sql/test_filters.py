"""The filter language: as InMemoryStore has it where it has it, and by table where it has not."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.store.memory import _compare_values

from langgraph_aurora_store.errors import InvalidFilterError
from langgraph_aurora_store.local import LocalAurora
from langgraph_aurora_store.sql.filters import compile_filter

HOSTILE = [
    "\\u0000",
    "a\\\\u0000",
    "a'b",
    'a"b',
    "a\\b",
    "%s",
    "%(f0)s",
    "100%",
    "{}",
    "{a}",
    "$",
    "a b",
    "",
    "'; DROP TABLE store; --",
    "\u00e9\U0001f600",
    "a\nb",
    "a\tb",
    "->>",
    "?",
    "@>",
    "null",
    "0",
    "-1",
    ":x",
    "$$",
    "[0]",
]


@pytest.fixture(scope="module")
def connection(aurora: LocalAurora) -> Iterator[psycopg.Connection]:
    """A connection to the server: a filter needs values, and no table."""
    with psycopg.connect(aurora.admin_dsn, autocommit=True) as connection:
        yield connection


def matching(
    connection: psycopg.Connection, filter_: dict[str, Any], values: list[dict[str, Any]]
) -> list[int]:
    """Which of the values a filter holds for, in order."""
    condition = compile_filter(filter_)
    documents = [json.dumps(value) for value in values]
    rows = connection.execute(
        "WITH s AS (SELECT d::jsonb AS value, n FROM unnest(%(values)b::text[]) WITH ORDINALITY"
        f" AS u (d, n)) SELECT n - 1 FROM s WHERE {condition.sql} ORDER BY n",
        {**condition.params, "values": documents},
    )
    return [n for (n,) in rows]


def holds(connection: psycopg.Connection, filter_: dict[str, Any], value: dict[str, Any]) -> bool:
    return bool(matching(connection, filter_, [value]))


# Numbers within what both a float and InMemoryStore's float() hold exactly, and text that is a
# number for both or for neither.
numbers = st.integers(-(2**53), 2**53) | st.floats(
    -1e9, 1e9, allow_nan=False, allow_subnormal=False, width=32
)
small_numbers = st.integers(-3, 3) | st.sampled_from([-1.5, 0.0, 0.5, 1.0, 2.0])
texts = st.text("ab%_'\"\\{}é", max_size=3) | st.integers(-20, 20).map(str) | st.just("1.50")
keys = st.sampled_from(["a", "b", "c", "a'b", 'x"y', "%s", "{k}", "\\"])
scalars = st.none() | small_numbers | numbers | texts
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3)
)
comparisons = st.dictionaries(
    st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), small_numbers | numbers, min_size=1, max_size=2
)
equalities = st.dictionaries(st.sampled_from(["$eq", "$ne"]), documents, min_size=1, max_size=2)
conditions = st.recursive(
    scalars | comparisons | equalities,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=2),
)
values = st.dictionaries(keys, documents, max_size=4)


def in_memory(value: dict[str, Any], filter_: dict[str, Any]) -> bool:
    """InMemoryStore's answer; what it cannot compare does not match."""
    return all(_holds(value.get(key), wanted) for key, wanted in filter_.items())


def _holds(value: Any, wanted: Any) -> bool:
    """As ``_compare_values``, with an error where a comparison fails kept to that comparison."""
    if isinstance(wanted, dict) and not any(key.startswith("$") for key in wanted):
        return isinstance(value, dict) and all(_holds(value.get(k), v) for k, v in wanted.items())
    if isinstance(wanted, dict):
        return all(_operator_holds(value, {key: operand}) for key, operand in wanted.items())
    if isinstance(wanted, list):
        is_list = isinstance(value, list) and len(value) == len(wanted)
        return is_list and all(map(_holds, value, wanted))
    return _compare_values(value, wanted)


def _operator_holds(value: Any, wanted: dict[str, Any]) -> bool:
    try:
        return _compare_values(value, wanted)
    except (TypeError, ValueError):
        return False


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    stored=st.lists(values, min_size=1, max_size=12),
    filter_=st.dictionaries(keys, conditions, max_size=3),
)
def test_a_filter_matches_what_it_matches_in_memory(
    connection: psycopg.Connection, stored: list[dict[str, Any]], filter_: dict[str, Any]
) -> None:
    """InMemoryStore is the oracle for equality, comparison, nesting and missing members."""
    expected = [n for n, value in enumerate(stored) if in_memory(value, filter_)]
    assert matching(connection, filter_, stored) == expected


@settings(max_examples=150, deadline=None)
@given(
    stored=st.lists(values, min_size=1, max_size=12),
    filter_=st.dictionaries(keys, conditions, max_size=3),
)
def test_a_filter_and_its_negation_share_the_items(
    connection: psycopg.Connection, stored: list[dict[str, Any]], filter_: dict[str, Any]
) -> None:
    """Every condition is true or false of every value, never unknown."""
    kept = matching(connection, {"$and": [filter_]}, stored)
    dropped = matching(connection, {"$not": filter_}, stored)
    assert sorted(kept + dropped) == list(range(len(stored)))


@settings(max_examples=150, deadline=None)
@given(
    stored=st.lists(values, min_size=1, max_size=12),
    left=st.dictionaries(keys, conditions, min_size=1, max_size=2),
    right=st.dictionaries(keys, conditions, min_size=1, max_size=2),
)
def test_and_is_intersection_and_or_is_union(
    connection: psycopg.Connection,
    stored: list[dict[str, Any]],
    left: dict[str, Any],
    right: dict[str, Any],
) -> None:
    """The logical operators combine what the parts match."""
    of_left, of_right = (
        set(matching(connection, left, stored)),
        set(matching(connection, right, stored)),
    )
    assert set(matching(connection, {"$and": [left, right]}, stored)) == of_left & of_right
    assert set(matching(connection, {"$or": [left, right]}, stored)) == of_left | of_right


@settings(max_examples=100, deadline=None)
@given(
    stored=st.lists(documents, min_size=1, max_size=10), operands=st.lists(documents, max_size=4)
)
def test_in_is_any_equality(
    connection: psycopg.Connection, stored: list[Any], operands: list[Any]
) -> None:
    """``$in`` matches what ``$eq`` matches for one of its operands, ``$nin`` the others."""
    items = [{"k": value} for value in stored] + [{}]
    one_by_one = {n for o in operands for n in matching(connection, {"k": {"$eq": o}}, items)}
    assert set(matching(connection, {"k": {"$in": operands}}, items)) == one_by_one
    others = set(range(len(items))) - one_by_one
    assert set(matching(connection, {"k": {"$nin": operands}}, items)) == others


@pytest.mark.parametrize(
    ("filter_", "yes", "no"),
    [
        ({"n": {"$gt": 9}}, [{"n": 10}, {"n": 100}, {"n": 9.5}], [{"n": 9}, {"n": None}, {}]),
        ({"n": {"$gt": 9}}, [{"n": "10"}, {"n": " 1e3 "}], [{"n": "9"}, {"n": "x"}, {"n": ""}]),
        ({"n": {"$gte": 5, "$lte": 20}}, [{"n": 5}, {"n": 10}, {"n": 20.0}], [{"n": 4}, {"n": 21}]),
        ({"n": {"$gt": 0}}, [{"n": 1}], [{"n": True}, {"n": [1]}, {"n": {"x": 1}}]),
        ({"n": {"$lt": 2**70}}, [{"n": 2**70 - 1}], [{"n": 2**70}, {"n": 2**70 + 1}]),
        ({"n": {"$lt": math.inf}}, [{"n": 1e308}], [{"n": "x"}]),
        ({"t": {"$gt": "b"}}, [{"t": "c"}, {"t": "b "}, {"t": "é"}], [{"t": "B"}, {"t": "b"}]),
        ({"t": {"$lt": "10"}}, [{"t": "1"}, {"n": 0, "t": 9}], [{"t": "9"}, {"t": 10}]),
        ({"t": {"$gte": "2026-01-01"}}, [{"t": "2026-02-01"}], [{"t": "2025-12-31"}, {"t": 3000}]),
        ({"b": True}, [{"b": True}], [{"b": 1}, {"b": "true"}, {}]),
        ({"b": 1}, [{"b": 1}, {"b": 1.0}], [{"b": True}, {"b": "1"}]),
        ({"b": {"$ne": False}}, [{"b": True}, {"b": 0}, {}], [{"b": False}]),
        ({"x": None}, [{}, {"x": None}], [{"x": 0}, {"x": ""}, {"x": []}]),
        ({"x": {"$ne": None}}, [{"x": 0}], [{}, {"x": None}]),
        ({"x": {}}, [{"x": {}}, {"x": {"y": 1}}], [{"x": []}, {"x": 1}, {}]),
        ({"x": {"$eq": {}}}, [{"x": {}}], [{"x": {"y": 1}}, {}]),
        (
            {"x": {"a": {"$gt": 1}}},
            [{"x": {"a": 2, "b": 0}}],
            [{"x": {"a": 1}}, {"x": 2}, {"a": 2}],
        ),
        (
            {"x": [1, 2]},
            [{"x": [1, 2]}, {"x": [1.0, 2]}],
            [{"x": [2, 1]}, {"x": [1, 2, 3]}, {"x": [1]}],
        ),
        ({"x": [{"a": 1}]}, [{"x": [{"a": 1, "b": 2}]}], [{"x": [{"a": 2}]}, {"x": [{"a": 1}, 1]}]),
        ({"x": []}, [{"x": []}], [{"x": [1]}, {"x": {}}, {"x": ""}, {}]),
        ({"x": {"$exists": True}}, [{"x": 1}, {"x": None}], [{}, {"y": 1}]),
        ({"x": {"$exists": False}}, [{}], [{"x": None}]),
        ({"x": {"y": {"$exists": False}}}, [{"x": {}}], [{"x": {"y": None}}, {}, {"x": 1}]),
        (
            {"x": {"$in": [1, "a", None]}},
            [{"x": 1.0}, {"x": "a"}, {"x": None}, {}],
            [{"x": True}, {"x": "b"}],
        ),
        ({"x": {"$in": []}}, [], [{"x": 1}, {}]),
        ({"x": {"$nin": [1, None]}}, [{"x": 2}, {"x": True}], [{"x": 1}, {"x": None}, {}]),
        ({"x": {"$in": {"a", "b"}}}, [{"x": "a"}], [{"x": "c"}]),
        (
            {"x": {"$contains": "a"}},
            [{"x": ["b", "a"]}, {"x": "cat"}],
            [{"x": ["ab"]}, {"x": {"a": 1}}, {"x": "b"}, {}],
        ),
        ({"x": {"$contains": ["a", 1]}}, [{"x": [1, "b", "a"]}], [{"x": ["a"]}, {"x": "a1"}, {}]),
        ({"x": {"$contains": 5}}, [{"x": [5.0]}], [{"x": 5}, {"x": "5"}, {"x": [[5]]}]),
        ({"x": {"$contains": None}}, [{"x": [None]}], [{"x": None}, {}]),
        (
            {"x": {"$contains": {"a": [1]}}},
            [{"x": [0, {"a": [1, 2], "b": 3}]}, {"x": [{"a": [1]}]}],
            [{"x": [{"a": 1}]}, {"x": [{"a": [2]}]}, {"x": {"a": [1]}}],
        ),
        (
            {"x": {"$gt": 1}},
            [{"x": text} for text in ("5", " 5\t", "\v5\f", "\r\n+5", "5.", ".5e1")],
            [{"x": text} for text in ("\u20035", "\u3000 5", "5\u2028", "\u0665", "5 5")],
        ),
        ({"x": {"$not": {"$gt": 5}}}, [{"x": 5}, {"x": "a"}, {}], [{"x": 6}]),
        ({"x": {"$not": 5}}, [{"x": 6}, {}], [{"x": 5}]),
        (
            {"x": {"$or": [{"$lt": 0}, {"$gt": 9}, "a"]}},
            [{"x": -1}, {"x": 10}, {"x": "a"}],
            [{"x": 5}],
        ),
        ({"x": {"$and": [{"$gt": 0}, {"$lt": 9}]}}, [{"x": 5}], [{"x": 9}, {"x": 0}]),
        ({"$or": [{"a": 1}, {"b": 2}], "c": 3}, [{"a": 1, "c": 3}], [{"a": 1}, {"c": 3}]),
        ({"$not": {"a": 1, "b": 2}}, [{"a": 1}, {}], [{"a": 1, "b": 2}]),
        (
            {"$and": [{"owner": {"$eq": "u"}}, {"with": {"$contains": "v"}}]},
            [{"owner": "u", "with": ["v"]}],
            [{"owner": "u"}],
        ),
        (
            {"m.a": 1},
            [{"m": {"a": 1}}, {"m.a": 1}],
            [{"m": {"a": 2}}, {"m.a": 2, "m": {"a": 1}}, {"m": [{"a": 1}]}],
        ),
        ({"m.a": {"$gt": 1}}, [{"m": {"a": 2}}, {"m.a": 2}], [{"m.a": 0, "m": {"a": 2}}]),
        ({"m.a": {"$exists": True}}, [{"m": {"a": None}}, {"m.a": None}], [{"m": {}}, {"m": 1}]),
        ({"m": {"a.b": 1}}, [{"m": {"a": {"b": 1}}}, {"m": {"a.b": 1}}], [{"m.a.b": 1}]),
        ({"l.0": 1}, [{"l": {"0": 1}}], [{"l": [1]}]),
    ],
)
def test_a_filter_means_what_the_table_says(
    connection: psycopg.Connection,
    filter_: dict[str, Any],
    yes: list[dict[str, Any]],
    no: list[dict[str, Any]],
) -> None:
    """What InMemoryStore lacks, and where JSON's types decide: documented in ``sql/filters.py``."""
    assert matching(connection, filter_, yes + no) == list(range(len(yes)))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_keys_and_values_stay_values(connection: psycopg.Connection, text: str) -> None:
    """No character of a key or an operand means anything to SQL or JSON."""
    stored = [{text: text}, {text: text + "x"}, {"other": text}, {text: {text: [text]}}]
    if not text.startswith("$"):
        assert matching(connection, {text: text}, stored) == [0]
        assert matching(connection, {text: {text: [text]}}, stored) == [3]
        assert matching(connection, {text: {"$gte": text}}, stored) == [0, 1]
        assert 0 in matching(connection, {text: {"$contains": text}}, stored)
    assert matching(connection, {"other": {"$in": [text]}}, stored) == [2]


def test_what_postgresql_cannot_hold_equals_nothing(connection: psycopg.Connection) -> None:
    """A NUL character or a lone surrogate in a key or operand is stored nowhere."""
    for text in ("\x00", "a\x00b", "\ud800"):
        assert not holds(connection, {"k": text}, {"k": "a"})
        assert not holds(connection, {text: 1}, {"k": 1})
        assert holds(connection, {"k": {"$ne": text}}, {"k": "a"})
        assert holds(connection, {text: {"$exists": False}}, {"k": "a"})
        assert not holds(connection, {"k": {"$contains": text}}, {"k": "a"})
        assert holds(connection, {"k": {"$in": [text, "a"]}}, {"k": "a"})


@pytest.mark.parametrize(
    ("filter_", "named"),
    [
        ({"n": {"$regex": "x"}}, "$regex"),
        ({"n": {"$gt": 1, "x": 2}}, "'x'"),
        ({"$nor": [{"a": 1}]}, "$nor"),
        ({"$eq": 1}, "$eq"),
        ({"n": {"$gt": None}}, "$gt"),
        ({"n": {"$lt": True}}, "$lt"),
        ({"n": {"$lte": [1]}}, "$lte"),
        ({"n": {"$gte": math.nan}}, "$gte"),
        ({"n": {"$gt": Decimal(1)}}, "$gt"),
        ({"m": {"n": {"$gt": {}}}}, "'m.n'"),
        ({"n": math.nan}, "'n'"),
        ({"n": {"$eq": datetime.now(UTC)}}, "datetime"),
        ({"n": {"$in": "abc"}}, "$in"),
        ({"n": {"$in": [object()]}}, "object"),
        ({"n": {"$exists": 1}}, "$exists"),
        ({"$and": []}, "$and"),
        ({"$or": {"a": 1}}, "$or"),
        ({"$or": [1]}, "$or"),
        ({"$not": 1}, "$not"),
        ({1: 2}, "1"),
        ({"n": {"m": {2: 3}}}, "2"),
        ([("a", 1)], "list"),
    ],
)
def test_a_filter_that_means_nothing_is_named(filter_: Any, named: str) -> None:
    """An unknown operator or an operand that cannot be compared is a ValueError that names it."""
    with pytest.raises(InvalidFilterError) as caught:
        compile_filter(filter_)
    assert named in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_filter_that_holds_itself_is_refused() -> None:
    """A cycle ends in an error of ours."""
    filter_: dict[str, Any] = {}
    filter_["a"] = filter_
    with pytest.raises(InvalidFilterError, match="holds itself"):
        compile_filter(filter_)


@pytest.mark.parametrize(
    "filter_",
    [
        {"$or": [{"a": i} for i in range(40_000)]},
        {"$or": [{}] * 40_000},
        {"a": {"$and": [{"$gt": i} for i in range(40_000)]}},
        {"a": [{"b": i} for i in range(40_000)]},
        {str(i): i for i in range(40_000)},
        {"$and": [{"a." + ".".join("b" * 50): i} for i in range(900)]},
        {"a": {"$in": list(range(200_000))}},
        {"$or": [{"a": {"$nin": list(range(2_000))}} for _ in range(60)]},
    ],
    ids=["or", "empty", "and", "list", "fields", "dots", "in", "nin"],
)
def test_a_filter_of_more_parts_than_the_server_bears_is_refused(filter_: Any) -> None:
    """With the number, instead of minutes of the server's time or an error of the protocol's."""
    with pytest.raises(InvalidFilterError, match="1000"):
        compile_filter(filter_)


def test_a_filter_of_many_parts_or_values_is_taken(connection: psycopg.Connection) -> None:
    """As many as are allowed, and any number of values in one condition."""
    some = {"$or": [{"a": {"$gt": i}} for i in range(1000)]}
    assert holds(connection, some, {"a": 1})
    assert holds(connection, {"a": {"$in": list(range(40_000))}}, {"a": 39_999})
    assert holds(connection, {"a": list(range(40_000))}, {"a": list(range(40_000))})


def test_a_filter_is_not_changed() -> None:
    """Compiling leaves the caller's filter as it was."""
    filter_ = {"$or": [{"a": {"$in": [1, 2]}}], "b.c": [{"d": None}]}
    before = json.dumps(filter_)
    compile_filter(filter_)
    assert json.dumps(filter_) == before


def test_equality_is_served_by_a_gin_index(connection: psycopg.Connection) -> None:
    """Equality on a path stands as containment, and the planner takes the index for it."""
    with connection.transaction(force_rollback=True):
        connection.execute("CREATE TEMP TABLE s (value jsonb)")
        connection.execute("CREATE INDEX by_value ON s USING gin (value jsonb_path_ops)")
        connection.execute("SET LOCAL enable_seqscan = off")
        for filter_ in (
            {"a": 1},
            {"a": {"b": "x"}},
            {"a.b": "x"},
            {"a": [1]},
            {"a": {"$eq": {"b": 1}}},
        ):
            condition = compile_filter(filter_)
            rows = connection.execute(
                f"EXPLAIN SELECT FROM s WHERE {condition.sql}", condition.params
            )
            assert any("by_value" in line for (line,) in rows), filter_


def test_dotted_keys_nested_in_dotted_keys_are_bounded() -> None:
    """Each level doubles the statement: a short filter must not fill the memory."""
    wanted: object = 1
    for _ in range(24):
        wanted = {"a.b": wanted}
    with pytest.raises(InvalidFilterError, match="nested too deeply"):
        compile_filter(wanted)
    assert compile_filter({"a.b": {"c.d": 1}}).sql


def test_the_values_of_in_are_read_once_for_all_items(connection: psycopg.Connection) -> None:
    """A hashed subquery, whatever the number of items: read for each, 40,000 took .2 s an item."""
    condition = compile_filter({"a": {"$in": list(range(40_000))}})
    query = f"""
        EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF)
        SELECT FROM (SELECT jsonb_build_object('a', n) AS value FROM generate_series(1, 500) n) AS s
        WHERE {condition.sql}
    """
    plan = "\n".join(row[0] for row in connection.execute(query, condition.params))
    assert "hashed SubPlan" in plan
    assert re.search(r"ProjectSet \(actual rows=40000(\.00)? loops=1\)", plan), plan


@pytest.mark.parametrize(
    "filter_",
    [
        {"k" * 300_000: {"$nothing": 1}},
        {"$" + "k" * 300_000: 1},
        {"a": {"$" + "k" * 300_000: 1}},
        {"a": {"$in": "v" * 300_000}},
        {"a": {"$exists": "v" * 300_000}},
        {"a": {"$gt": ["v" * 300_000]}},
        {"a": {"$or": "v" * 300_000}},
    ],
)
def test_an_error_quotes_no_more_than_can_be_read(filter_: Any) -> None:
    """Of what a caller passed."""
    with pytest.raises(InvalidFilterError) as raised:
        compile_filter(filter_)
    assert len(str(raised.value)) < 1000
