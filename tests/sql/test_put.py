"""Putting and deleting: all or nothing, nothing left over, nothing done twice."""

from __future__ import annotations

import copy
import inspect
import math
import random
import re
import sys
import threading
from collections import UserDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.store.base import (
    NOT_PROVIDED,
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchOp,
)
from pydantic import BaseModel

from langgraph_aurora_store.errors import EmbeddingResponseError, InvalidItemError
from langgraph_aurora_store.execution import pgvector_types
from langgraph_aurora_store.local import LocalAurora
from langgraph_aurora_store.sql.batch import run
from langgraph_aurora_store.sql.flow import Embed, Rows, Transaction, Vectors
from langgraph_aurora_store.sql.namespace_operations import count_under, delete_under
from langgraph_aurora_store.sql.store_tables import StoreTables
from tests.support.flow_runner import drive
from tests.support.sql_session import DIMS, INDEX, Engine, connected, embed, made

SECRET = "do not show this"


class Word(StrEnum):
    MILK = "milk"


class Model(BaseModel):
    field: int = 1


@pytest.fixture(scope="module")
def shared(aurora: LocalAurora) -> Iterator[Engine]:
    with made(aurora, "writes") as engine:
        yield engine


@pytest.fixture
def engine(shared: Engine) -> Engine:
    """An engine on empty tables."""
    shared.sql("TRUNCATE store, store_vectors")
    shared.steps = []
    return shared


def vectors_of(engine: Engine, key: str = "k") -> dict[str, Any]:
    """Where the vectors of an item stand, by field."""
    rows = engine.sql("SELECT field_name, ctid FROM store_vectors WHERE key = %s", key)
    return dict(rows)


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"a": {"b": ["x", f"{SECRET}\x00"]}}, "a.b[1]"),
        ({"a": f"{SECRET}\ud800"}, "a"),
        ({"a": {"\x00": 1}}, "a"),
        ({"\udfff": 1}, "$"),
        ({"a": math.nan}, "a"),
        ({"a": [1.0, -math.inf]}, "a[1]"),
        ({"a": datetime.now(UTC)}, "a"),
        ({"a": uuid4()}, "a"),
        ({"a": Decimal("1.5")}, "a"),
        ({"a": {1, 2}}, "a"),
        ({"a": b"x"}, "a"),
        ({"a": Model()}, "a"),
        ({"a": {(1, 2): 2}}, "a"),
        ({"a": MappingProxyType({"b": [()], "c": ({"d": b""},)})}, "a.c[0].d"),
        ({"a": object()}, "a"),
        (cyclic(), ""),
        (deep(100_000), ""),
        ({"a": 10**5000}, ""),
        ([("a", 1)], ""),
        (Model(), ""),
        ("text", ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_cannot_be_stored_is_named_and_nothing_is_written(
    engine: Engine, value: Any, field: str
) -> None:
    """Also what the same batch would have done before it, and without a step."""
    engine.put("old", {"a": 1})
    with pytest.raises(InvalidItemError) as caught:
        engine.run(PutOp(("n",), "old", None), PutOp(("n", "m"), "bad key", value))
    assert not engine.steps
    assert engine.get("old") is not None
    message = str(caught.value)
    assert "'bad key' in ('n', 'm')" in message
    assert not field or repr(field) in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "changes",
    [
        {"key": 1},
        {"key": None},
        {"key": "a\x00"},
        {"key": "\ud800"},
        {"index": "text"},
        {"index": True},
        {"index": [1]},
        {"index": ["\x00"]},
        {"ttl": "5"},
        {"ttl": True},
        {"ttl": -1},
        {"ttl": math.nan},
        {"ttl": math.inf},
        {"ttl": 2**31},
        {"ttl": NOT_PROVIDED},
    ],
    ids=str,
)
def test_an_operation_that_cannot_be_meant_is_refused(
    engine: Engine, changes: dict[str, Any]
) -> None:
    """A key that is no text, an index= that would index nothing, a ttl that is no time."""
    with pytest.raises(InvalidItemError, match=r"in \('n',\)"):
        engine.run(PutOp(("n",), "k", {"text": "x"})._replace(**changes))
    assert not engine.steps


@pytest.mark.parametrize("label", ["a.b", "", "\x00", "\ud800", 1])
def test_a_namespace_that_cannot_be_stored_is_refused(engine: Engine, label: Any) -> None:
    """In every operation, with LangGraph's own error."""
    for op in (
        PutOp((label,), "k", {}),
        GetOp((label,), "k"),
        SearchOp((label,)),
    ):
        with pytest.raises(InvalidNamespaceError):
            engine.run(op)
    assert not engine.steps


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(-1e15, 1e15)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("ab\u00e9'\"\\%{}."), inner),
    max_leaves=12,
)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(value=st.dictionaries(st.text("ab\u00e9'\"\\%{}. \n"), json_values, max_size=4))
def test_a_value_comes_back_as_it_was_put(engine: Engine, value: dict[str, Any]) -> None:
    """Every JSON value, whatever the size of its numbers; the argument is not touched."""
    before = copy.deepcopy(value)
    engine.put("k", value, index=False)
    item = engine.get("k")
    assert item is not None
    assert item.value == before == value


def test_a_value_may_be_nested_500_levels_deep(engine: Engine) -> None:
    """It is stored, embedded, read and found as any other; one level more is refused."""
    value = {"text": [deep(497)]}
    assert str(value).count("{") + 1 == 500
    engine.put("k", value, index=["$"])
    item = engine.get("k")
    assert item is not None
    assert item.value == value == engine.search("n", query="a")[0].value
    with pytest.raises(InvalidItemError, match=r"'k' in \('n',\): nested more than 500 levels"):
        engine.put("k", {"more": value})


def test_a_stack_that_is_full_is_no_recursion_error(engine: Engine) -> None:
    """However few frames there are left: the item is written, or refused with its name."""
    room = sys.getrecursionlimit() - len(inspect.stack(0))

    def plan_at(frames: int) -> bool:
        if frames:
            return plan_at(frames - 1)
        with suppress(InvalidItemError):
            next(run([PutOp(("n",), "the key", deep(400), index=["$"])], engine.tables))
            return True
        return False

    written = {plan_at(frames) for frames in range(room - 500, room - 60, 10)}
    assert True in written


def test_mappings_and_tuples_are_stored_and_embedded_as_json(engine: Engine) -> None:
    """At every level: what is embedded is what a get returns, whatever class it was put as."""
    as_put: Any = UserDict(o=MappingProxyType({"p": ("tea", Word.MILK)}), w=Word.MILK)
    as_json = {"o": {"p": ["tea", "milk"]}, "w": "milk"}
    paths = ["o.p[*]", "o", "w", "$"]
    engine.put("k", as_put, index=paths)
    embedded = engine.embedded
    item = engine.get("k")
    assert item is not None
    assert item.value == as_json
    assert "milk" in embedded
    engine.put("k", as_json, index=paths)
    assert not engine.embedded
    assert len(vectors_of(engine)) == 5
    assert len(embedded) == 4


def test_the_last_operation_on_a_key_counts(engine: Engine) -> None:
    """As in InMemoryStore, whether it puts or deletes."""
    engine.put("b", {"v": 0})
    engine.run(
        PutOp(("n",), "a", {"v": 1}),
        PutOp(("n",), "b", {"v": 1}),
        PutOp(("n",), "a", None),
        PutOp(("n",), "c", None),
        PutOp(("n",), "c", {"v": 2}),
        PutOp(("n",), "b", {"v": 3}),
    )
    found = engine.run(*(GetOp(("n",), key) for key in "abc"))
    assert [item and item.value for item in found] == [None, {"v": 3}, {"v": 2}]


@pytest.mark.parametrize("position", ["namespace", "key", "field"])
def test_what_is_too_long_for_an_index_is_named_and_nothing_is_written(
    engine: Engine, position: str
) -> None:
    """It fails on the server, and the delete and the put before it do not happen either."""
    engine.put("old", {"text": "a"})
    too_long = random.Random(1).randbytes(1400).hex()
    namespace, key, field = ("n",), "the key", "text"
    if position == "namespace":
        namespace = ("n", too_long)
    elif position == "key":
        key = too_long
    else:
        field = too_long
    with pytest.raises(InvalidItemError, match=r" 28\d\d bytes") as caught:
        engine.run(
            PutOp(("n",), "old", None),
            PutOp(("n",), "a", {"text": "b"}),
            PutOp(namespace, key, {field: SECRET}, index=[field]),
        )
    assert isinstance(caught.value.__cause__, psycopg.errors.ProgramLimitExceeded)
    assert ("the key" if position != "key" else too_long[:50]) in str(caught.value)
    assert len(str(caught.value)) < 700
    assert SECRET not in str(caught.value)
    assert engine.get("a") is None
    assert engine.get("old") is not None
    assert list(vectors_of(engine, "old")) == ["text"]


def test_a_long_key_that_can_be_compressed_is_taken(engine: Engine) -> None:
    """The server says what it can hold: the parent's items may have such keys."""
    key = "long " * 1_000
    engine.put(key, {"text": "a"})
    assert engine.get(key) is not None


def test_a_limit_that_is_not_the_items_is_the_servers_to_tell(engine: Engine) -> None:
    """Of an index of the user's own, for one."""
    engine.sql("CREATE INDEX theirs ON store ((value ->> 'text'))")
    try:
        with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="theirs"):
            engine.put("k", {"text": random.Random(1).randbytes(4000).hex()}, index=False)
    finally:
        engine.sql("DROP INDEX theirs")


def test_a_value_too_long_for_jsonb_is_named() -> None:
    """Before it is sent: it would take half a minute to be refused."""
    flow = run([PutOp(("n",), "the key", {"a": "x" * 2**28})], StoreTables())
    with pytest.raises(InvalidItemError, match=r"'the key' in .* 268435465 characters") as caught:
        next(flow)
    assert len(str(caught.value)) < 200


def test_any_number_of_puts_is_one_transaction_with_one_text(engine: Engine) -> None:
    """More than 65,535 parameters' worth; the same SQL as for one."""
    engine.run(PutOp(("n",), "one", {"v": 1}))
    (one,) = engine.runs
    engine.run(*(PutOp(("n",), f"k{i}", {"v": i}) for i in range(20_000)))
    (many,) = engine.runs
    assert [s.sql for s in many.statements] == [s.sql for s in one.statements]
    assert engine.sql("SELECT count(*) FROM store") == [(20_001,)]


@pytest.mark.parametrize("path", ["text[", "l[x]", "{a", "  "])
def test_a_path_that_can_find_nothing_is_named(engine: Engine, path: str) -> None:
    """As in the store's configuration; nothing is written."""
    with pytest.raises(InvalidItemError, match="index= path") as caught:
        engine.put("k", {"text": "a", "l": ["b"]}, index=[path])
    assert repr(path) in str(caught.value)
    assert engine.get("k") is None


def test_a_text_is_no_namespace(engine: Engine) -> None:
    """It would be one of its letters, and nobody would find what is in there."""
    for op in (PutOp("chat", "k", {}), GetOp("chat", "k"), SearchOp("chat")):  # type: ignore[arg-type]
        with pytest.raises(InvalidNamespaceError, match="'chat'"):
            engine.run(op)
    assert engine.sql("SELECT count(*) FROM store") == [(0,)]


# vectors


def test_types_of_the_same_name_in_other_schemas_do_no_harm(engine: Engine) -> None:
    """A table is a type too."""
    engine.sql("CREATE SCHEMA cad CREATE TABLE vector (x int) CREATE TABLE halfvec (x int)")
    try:
        names = [name for name, *_ in engine.sql(pgvector_types.TYPES)]
        assert sorted(names) == ["halfvec", "vector"]
    finally:
        engine.sql("DROP SCHEMA cad CASCADE")


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"value": {"text": "a"}}, {"value": {"text": "b"}, "index": False}),
        ({"value": {"text": "a"}}, {"value": {"other": "b"}}),
        ({"value": {"text": "a"}}, {"value": {"text": " \n"}}),
        ({"value": {"text": "a"}}, {"value": {"text": "a", "x": "b"}, "index": ["x"]}),
        (
            {"value": {"l": ["a", "b", "c"]}, "index": ["l[*]"]},
            {"value": {"l": ["a"]}, "index": ["l[*]"]},
        ),
        ({"value": {"text": "a"}, "index": ["$"]}, {"value": {"text": "a"}}),
        ({"value": {"text": "a"}}, {"value": None}),
    ],
    ids=[
        "index-false",
        "field-dropped",
        "field-blank",
        "other-index",
        "list-shrinks",
        "whole",
        "deleted",
    ],
)
def test_no_vector_of_the_old_value_is_left(
    engine: Engine, first: dict[str, Any], then: dict[str, Any]
) -> None:
    """After an update the table holds the vectors that a first put would have made."""
    engine.run(PutOp(("n",), "k", **first))
    engine.run(PutOp(("n",), "k", **then))
    updated = set(vectors_of(engine))
    engine.run(PutOp(("n",), "fresh", **then))
    assert updated == set(vectors_of(engine, "fresh"))


def test_fields_are_named_as_the_parent_names_them(engine: Engine) -> None:
    """``$`` is the whole value, also in an operation's own list; several texts are numbered."""
    value = {"text": "a", "l": ["b", " ", "c"], "o": {"p": 1}}
    engine.put("k", value, index=["$", "l[*]", "o.p", "missing", "l[0]"])
    assert set(vectors_of(engine)) == {"$", "l[*].0", "l[*].2", "o.p", "l[0]"}
    assert '{"l": ["b", " ", "c"], "o": {"p": 1}, "text": "a"}' in engine.embedded


def test_equal_texts_are_embedded_once(engine: Engine) -> None:
    """Within an item and across a batch."""
    engine.run(
        PutOp(("n",), "a", {"text": "same", "x": "same"}, index=["text", "x"]),
        PutOp(("n",), "b", {"text": "same"}),
        PutOp(("n",), "c", {"text": "other"}),
    )
    assert engine.embedded == ["same", "other"]
    assert engine.sql("SELECT count(DISTINCT embedding), count(*) FROM store_vectors") == [(2, 4)]


def test_unchanged_text_is_neither_embedded_nor_rewritten(engine: Engine) -> None:
    """The item is updated all the same; only what changed is embedded."""
    engine.put("k", {"text": "a", "x": "b", "n": 1}, index=["text", "x"])
    before = vectors_of(engine)
    engine.put("k", {"text": "a", "x": "b", "n": 2}, index=["text", "x"])
    assert not engine.embedded
    assert vectors_of(engine) == before
    engine.put("k", {"text": "a", "x": "c"}, index=["text", "x"])
    assert engine.embedded == ["c"]
    after = vectors_of(engine)
    assert after["text"] == before["text"]
    assert after["x"] != before["x"]


def test_a_vector_that_the_parent_wrote_is_not_taken_for_ours(engine: Engine) -> None:
    """The parent leaves the hash as it was, so the hash counts for our own write only."""
    engine.put("k", {"text": "a"})
    engine.sql("UPDATE store_vectors SET embedding = '[9,9,9,9]', updated_at = clock_timestamp()")
    engine.put("k", {"text": "a"})
    assert engine.embedded == ["a"]
    assert engine.search("n", query="a")[0].score == pytest.approx(1)


def test_another_model_embeds_again(engine: Engine) -> None:
    """The same text under another model's name is another vector."""
    engine.put("k", {"text": "a"})
    other = engine.with_tables(embedding_id="other")
    other.put("k", {"text": "a"})
    assert other.embedded == ["a"]
    other.put("k", {"text": "a"})
    assert not other.embedded


def test_a_vector_replaced_in_between_is_embedded_again(engine: Engine) -> None:
    """Someone else's text of the same key comes between our look and our write."""
    engine.put("k", {"text": "a", "x": "same"}, index=["text", "x"])
    flow = run([PutOp(("n",), "k", {"text": "a", "x": "new"}, index=["text", "x"])], engine.tables)
    look = next(flow)
    assert isinstance(look, Transaction)
    rows = [Rows(engine.connection.execute(s.sql, s.params).fetchall()) for s in look.statements]
    engine.put("k", {"text": "theirs"})
    ask = flow.send(rows)
    assert isinstance(ask, Embed)
    assert ask.documents == ("new",)
    steps = [ask]

    def rest() -> Any:
        reply = yield from flow_from(ask, flow)
        return reply

    drive(rest(), engine.connection, embed, steps)
    assert [step.documents for step in steps if isinstance(step, Embed)][-1] == ("a",)
    fields = dict(engine.sql("SELECT field_name, embedding::text FROM store_vectors"))
    assert set(fields) == {"text", "x"}
    assert engine.search("n", query="a")[0].score == pytest.approx(1)
    assert engine.search("n", query="new")[0].score == pytest.approx(1)


def flow_from(step: Any, flow: Any) -> Any:
    """A flow that goes on with a step already yielded."""
    try:
        while True:
            try:
                reply = yield step
            except Exception as exc:
                step = flow.throw(exc)
            else:
                step = flow.send(reply)
    except StopIteration as stop:
        return stop.value


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ([], "0 vectors for 1 texts"),
        ([[1.0] * DIMS] * 2, "2 vectors for 1 texts"),
        ([[1.0] * (DIMS + 1)], "5 dimensions; the index holds 4"),
        ([[]], "0 dimensions"),
        ([[1.0, 2.0, 3.0, math.nan]], "NaN or infinity"),
        ([[1.0, 2.0, 3.0, 1e300]], "NaN or infinity"),
        ([["a", "b", "c", "d"]], "no number"),
        ([["1.0", "2.0", "3.0", "4.0"]], "no number"),
        ([[None] * DIMS], "no number"),
    ],
)
def test_an_unusable_vector_is_named_and_nothing_is_written(
    engine: Engine, answer: Any, complaint: str
) -> None:
    """The wrong number, the wrong length, or what is no finite number."""
    flow = run([PutOp(("n",), "the key", {"text": SECRET})], engine.tables)
    next(flow)
    flow.send([Rows()])
    with pytest.raises(EmbeddingResponseError, match=complaint) as caught:
        flow.send(Vectors(answer))
    assert SECRET not in str(caught.value)
    if "1 texts" not in complaint:
        assert "'the key' in ('n',), field 'text'" in str(caught.value)


@pytest.mark.parametrize("number", [70_000.0, "1.0", None])
def test_what_halfvec_cannot_hold_is_refused(engine: Engine, number: Any) -> None:
    """Its largest number is 65,504; every version of pgvector-python is asked alike."""
    halves = engine.with_tables(index=replace(INDEX, vector_type="halfvec"))
    flow = run([PutOp(("n",), "k", {"text": SECRET})], halves.tables)
    next(flow)
    flow.send([Rows()])
    with pytest.raises(EmbeddingResponseError, match="no number within halfvec's range"):
        flow.send(Vectors([[1.0] * (DIMS - 1) + [number]]))


def test_a_store_without_an_index_embeds_nothing(engine: Engine) -> None:
    """Neither by default nor where an operation asks for it."""
    plain = engine.with_tables(index=None)
    plain.put("k", {"text": "a"}, index=["text"])
    assert not plain.embedded
    assert len(plain.runs) == 1


def test_a_put_without_texts_is_one_round_trip(engine: Engine) -> None:
    """There is nothing to look up first."""
    for options in ({"index": False}, {"index": []}):
        engine.put("k", {"text": "a"}, **options)
        assert len(engine.runs) == 1
    engine.put("k", None)
    assert len(engine.runs) == 1


# concurrency


def test_concurrent_batches_never_deadlock(engine: Engine, aurora: LocalAurora) -> None:
    """Puts, deletes and renewals of the same few keys, new and old, in any order."""
    keys = [f"k{i}" for i in range(12)]
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        generator = random.Random(seed)
        try:
            with connected(aurora, "writes") as connection:
                pgvector_types.register(
                    connection, connection.execute(pgvector_types.TYPES).fetchall()
                )
                mine = Engine(connection, engine.tables)
                for turn in range(60):
                    chosen = generator.sample(keys, 6)
                    mine.run(*(_operation(generator, key, turn) for key in chosen))
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(
    "work",
    [
        [PutOp(("n",), "b", {"text": "x"}), PutOp(("n",), "a", {"text": "y"})],
        [PutOp(("n",), "b", None), PutOp(("n",), "a", None)],
        [PutOp(("n",), "b", None), PutOp(("n",), "a", {"text": "y"})],
        [PutOp(("n",), "b", {"text": "x"}), PutOp(("n",), "a", None)],
        "namespace",
    ],
    ids=["puts", "deletes", "delete-put", "put-delete", "namespace"],
)
def test_rows_are_locked_in_the_order_of_their_keys(
    engine: Engine, aurora: LocalAurora, work: list[PutOp] | str
) -> None:
    """Whatever the order of the operations, of the rows in the table and of the plan."""
    engine.put("b", {"text": "b"})
    engine.put("a", {"text": "a"})
    mine = {key: {"prefix": "n", "key": key} for key in "ab"}
    lock = "SELECT key FROM store WHERE key = %(key)s FOR UPDATE SKIP LOCKED"
    waiting = (
        "SELECT pg_sleep(0.01), count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    def run() -> None:
        with connected(aurora, "writes") as connection:
            connection.execute("SET enable_nestloop = off")
            pgvector_types.register(connection, connection.execute(pgvector_types.TYPES).fetchall())
            if isinstance(work, str):
                drive(delete_under(("n",), engine.tables), connection)
            else:
                Engine(connection, engine.tables).run(*work)

    with ThreadPoolExecutor() as threads, connected(aurora, "writes") as holder:
        with holder.transaction():
            holder.execute(lock, mine["a"])
            done = threads.submit(run)
            while engine.sql(waiting)[0][1] == 0:
                assert not done.done()
            assert engine.connection.execute(lock, mine["b"]).fetchall() == [("b",)]
        done.result()


def test_namespaces_are_deleted_and_listed_in_the_order_of_code_points(engine: Engine) -> None:
    """As batches write and memory lists. The database of the tests has no other order to show."""
    (deletion,) = next(delete_under(("n",), engine.tables)).statements
    assert 'ORDER BY s.prefix COLLATE "C", s.key COLLATE "C"' in deletion.sql
    *_, listing = next(run([ListNamespacesOp()], engine.tables)).statements
    assert 'ORDER BY labels COLLATE "C"' in listing.sql


def _operation(generator: random.Random, key: str, turn: int) -> PutOp | GetOp:
    kind = generator.random()
    if kind < 0.2:
        return GetOp(("n",), key)
    value = None if kind < 0.5 else {"text": f"text {turn % 5}"}
    return PutOp(("n",), key, value, ttl=0.001 if kind > 0.8 else None)


# expiry


def age(engine: Engine, key: str, minutes: float) -> None:
    """Let time have passed for an item."""
    engine.sql(
        "UPDATE store SET expires_at = expires_at - %s * interval '1 minute' WHERE key = %s",
        minutes,
        key,
    )


def life(engine: Engine, key: str) -> timedelta:
    ((left,),) = engine.sql("SELECT expires_at - clock_timestamp() FROM store WHERE key = %s", key)
    assert isinstance(left, timedelta)
    return left


@pytest.mark.parametrize("ttl", [0.5, 0.01, 1.5, 1, 90, 90.25])
def test_a_ttl_is_exact_also_after_a_renewal(engine: Engine, ttl: float) -> None:
    """Fractions of a minute too; the parent's whole minutes stand beside it for the parent."""
    engine.put("k", {}, ttl=ttl)
    rows = engine.sql("SELECT expires_at - updated_at, ttl_minutes FROM store")
    assert rows == [(timedelta(minutes=ttl), max(1, math.ceil(ttl)))]
    age(engine, "k", ttl * 0.9)
    assert engine.get("k") is not None
    assert len(engine.runs) == 2
    assert life(engine, "k") == pytest.approx(timedelta(minutes=ttl), abs=timedelta(seconds=2))
    assert life(engine, "k") <= timedelta(minutes=ttl)


def test_a_ttl_of_nothing_is_over_at_once(engine: Engine) -> None:
    """And one minute to the parent, whose column has nothing shorter."""
    with engine.connection.transaction():
        engine.put("k", {}, ttl=0)
        assert engine.get("k") is None
        assert engine.search("n") == []
    rows = engine.sql("SELECT expires_at = updated_at, ttl_minutes FROM store")
    assert rows == [(True, 1)]


def test_the_longest_ttl_is_what_the_parents_column_holds(engine: Engine) -> None:
    """Some four thousand years."""
    engine.put("k", {}, ttl=2**31 - 1)
    assert engine.sql("SELECT ttl_minutes FROM store") == [(2**31 - 1,)]
    assert engine.get("k") is not None


@pytest.mark.parametrize("ttl", [90, 90.5, None])
def test_an_update_sets_the_ttl_anew(engine: Engine, ttl: float | None) -> None:
    """Longer, or none: nothing of the former one is left, exact or in whole minutes."""
    whole = None if ttl is None else math.ceil(ttl)
    exact = None if ttl == whole else timedelta(minutes=ttl or 0)
    for former in (10, 10.5):
        engine.put("k", {}, ttl=former)
        engine.put("k", {}, ttl=ttl)
        rows = engine.sql(
            "SELECT (expires_at - updated_at) / 60, ttl_minutes, upper(lifetime) - lower(lifetime)"
            " FROM store"
        )
        assert rows == [(ttl and timedelta(seconds=ttl), whole, exact)]


def test_the_parents_ttl_counts_after_the_parents_write(engine: Engine) -> None:
    """It writes whole minutes and leaves our column as it was."""
    engine.put("k", {}, ttl=0.5)
    engine.sql(
        "UPDATE store SET updated_at = clock_timestamp(), ttl_minutes = 1,"
        " expires_at = clock_timestamp() + interval '40 seconds'"
    )
    assert engine.get("k") is not None
    assert life(engine, "k") > timedelta(seconds=50)


def test_a_read_renews_only_what_is_due(engine: Engine) -> None:
    """Before 5 % of the ttl, and at most an hour, have passed, a read writes nothing."""
    engine.put("short", {}, ttl=100)
    engine.put("long", {}, ttl=60 * 24 * 30)
    for key, early, late in (("short", 4, 2), ("long", 55, 10)):
        age(engine, key, early)
        for op in (GetOp(("n",), key), SearchOp(("n",))):
            engine.run(op)
            assert len(engine.runs) == 1
        age(engine, key, late)
        engine.run(SearchOp(("n",)))
        assert len(engine.runs) == 2
        assert life(engine, key) > timedelta(minutes=99.9)
        engine.run(SearchOp(("n",)))
        assert len(engine.runs) == 1


def test_a_read_that_is_told_so_renews_nothing(engine: Engine) -> None:
    """``refresh_ttl=False``, of a get and of a search."""
    engine.put("k", {"text": "a"}, ttl=10)
    age(engine, "k", 9)
    engine.run(
        GetOp(("n",), "k", refresh_ttl=False),
        SearchOp(("n",), refresh_ttl=False),
        SearchOp(("n",), query="a", refresh_ttl=False),
    )
    assert life(engine, "k") < timedelta(minutes=1)


def test_what_has_expired_is_gone(engine: Engine) -> None:
    """It is neither returned, counted nor listed, and no read brings it back."""
    engine.put("k", {"text": "a"}, ttl=10)
    engine.run(PutOp(("other",), "k", {}, ttl=10))
    age(engine, "k", 11)
    for _ in range(2):
        results = engine.run(
            GetOp(("n",), "k"),
            SearchOp(()),
            SearchOp((), query="a"),
            ListNamespacesOp(),
            ListNamespacesOp((MatchCondition("prefix", ("n",)),)),
        )
        assert results == [None, [], [], [], []]
    assert drive(count_under((), engine.tables), engine.connection) == 0
    assert engine.sql("SELECT count(*) FROM store WHERE expires_at > now()") == [(0,)]


@pytest.mark.parametrize("minutes", [-2, 9], ids=["expired", "renewed"])
def test_what_changes_while_it_is_read_is_not_renewed(engine: Engine, minutes: int) -> None:
    """Between the read and the renewal its time may run out, or another reader renew it."""
    engine.put("k", {}, ttl=10)
    age(engine, "k", 9)
    flow = run([GetOp(("n",), "k")], engine.tables)
    (read,) = next(flow).statements
    rows = engine.connection.execute(read.sql, read.params).fetchall()
    age(engine, "k", -minutes)
    (renewal,) = flow.send([Rows(rows)]).statements
    assert engine.connection.execute(renewal.sql, renewal.params).rowcount == 0
    assert life(engine, "k") < timedelta(minutes=1 + minutes)


def test_a_put_onto_an_expired_item_makes_a_new_one(engine: Engine) -> None:
    """Its age starts anew; that of a living item does not."""
    engine.put("k", {"text": "a"}, ttl=10)
    first = engine.get("k")
    engine.put("k", {"text": "b"}, ttl=10)
    second = engine.get("k")
    age(engine, "k", 11)
    engine.put("k", {"text": "c"})
    third = engine.get("k")
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.created_at == second.created_at < second.updated_at
    assert third.created_at == third.updated_at > second.updated_at


def test_a_reader_that_may_not_write_reads(engine: Engine, aurora: LocalAurora) -> None:
    """Neither a read-only session nor a role without UPDATE fails for want of a renewal."""
    engine.put("k", {"text": "a"}, ttl=10)
    age(engine, "k", 9)
    engine.sql("SET default_transaction_read_only = on")
    try:
        assert engine.get("k") is not None
        assert len(engine.runs) == 1
        assert [item.key for item in engine.search("n", query="a")] == ["k"]
    finally:
        engine.sql("SET default_transaction_read_only = off")
    with psycopg.connect(aurora.admin_dsn_for("writes"), autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS looker")
        connection.execute("CREATE ROLE looker")
        connection.execute("GRANT SELECT ON store TO looker")
        try:
            connection.execute("SET ROLE looker")
            (item,) = Engine(connection, engine.tables).run(GetOp(("n",), "k"))
            assert isinstance(item, Item)
        finally:
            connection.execute("RESET ROLE")
            connection.execute("DROP OWNED BY looker")
            connection.execute("DROP ROLE looker")


def test_a_renewal_waits_for_nobody(engine: Engine, aurora: LocalAurora) -> None:
    """A row that someone is writing is left to them."""
    engine.put("k", {}, ttl=10)
    age(engine, "k", 9)
    engine.sql("SET lock_timeout = '1ms'")
    try:
        with connected(aurora, "writes") as other, other.transaction():
            other.execute("SELECT FROM store FOR UPDATE")
            assert engine.get("k") is not None
    finally:
        engine.sql("SET lock_timeout = 0")
    assert life(engine, "k") < timedelta(minutes=1)


# namespaces as a whole


def test_deleting_a_namespace_leaves_its_neighbours(engine: Engine) -> None:
    """It and what is below it go, vectors too; expired items go uncounted."""
    for labels in (("a",), ("a", "b"), ("a", "b", "c"), ("a-b",), ("ab",), ("A",), ("a_",), ("%",)):
        engine.run(PutOp(labels, "k", {"text": "x"}))
    engine.run(PutOp(("a",), "old", {"text": "x"}, ttl=10))
    age(engine, "old", 11)
    count = drive(count_under(("a",), engine.tables, {"text": "x"}), engine.connection)
    deleted = drive(delete_under(("a",), engine.tables), engine.connection)
    assert count == deleted == 3
    assert engine.run(ListNamespacesOp()) == [[("%",), ("A",), ("a-b",), ("a_",), ("ab",)]]
    assert engine.sql("SELECT count(*) FROM store_vectors") == [(5,)]
    assert drive(delete_under(("_",), engine.tables), engine.connection) == 0


def test_a_large_namespace_is_deleted_in_parts(engine: Engine) -> None:
    """Ten thousand to a transaction, until none is left."""
    engine.sql(
        "INSERT INTO store (prefix, key, value)"
        " SELECT 'big.' || i % 3, 'k' || i, '{}' FROM generate_series(1, 25000) AS i"
    )
    steps: list[Any] = []
    assert drive(delete_under(("big",), engine.tables), engine.connection, seen=steps) == 25_000
    assert len(steps) == 3
    assert engine.sql("SELECT count(*) FROM store") == [(0,)]


def test_the_empty_namespace_is_not_deleted(engine: Engine) -> None:
    """It holds everything: nobody deletes that by an empty variable."""
    with pytest.raises(InvalidNamespaceError):
        drive(delete_under((), engine.tables), engine.connection)


def test_tables_in_a_schema_with_any_name_work(aurora: LocalAurora) -> None:
    """Quotes, percent signs and braces in the schema's name are part of the name."""
    with made(aurora, "schemas") as engine:
        odd = engine.with_tables(schema='od%d "{s}"', index=INDEX)
        odd.sql("""CREATE SCHEMA "od%d ""{s}""\"""")
        odd.set_up()
        odd.put("k", {"text": "a"}, ttl=5)
        assert odd.get("k") is not None
        assert odd.search("n", query="a", filter={"text": "a"})[0].key == "k"
        assert odd.run(ListNamespacesOp(max_depth=1)) == [[("n",)]]
        assert drive(delete_under(("n",), odd.tables), odd.connection) == 1
        assert engine.get("k") is None


# keys inside a value


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ({"ratings": {1: "good"}}, {"ratings": {"1": "good"}}),
        (
            {1: {2.5: [{True: "yes", None: "none"}]}},
            {"1": {"2.5": [{"true": "yes", "null": "none"}]}},
        ),
        ({-1: 0, 10**30: 1}, {"-1": 0, str(10**30): 1}),
    ],
)
def test_keys_that_json_can_write_are_stored_as_json_writes_them(
    engine: Engine, value: dict[Any, Any], stored: dict[str, Any]
) -> None:
    """As by the parent: everything that takes one store takes the other."""
    engine.put("k", value)
    found = engine.get("k")
    assert found is not None
    assert found.value == stored


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"a": {1: "x", "1": "y"}}, "'a'"),
        ({True: 1, "true": 2}, "'$'"),
        ({"a": {math.nan: 1}}, "'a'"),
        ({"a": {10**5000: 1}}, "'a'"),
        ({"a": {(1, 2): 1}}, "'a'"),
        ({"a": {b"x": 1}}, "'a'"),
    ],
)
def test_keys_that_json_cannot_tell_apart_or_write_are_refused(
    engine: Engine, value: dict[Any, Any], field: str
) -> None:
    """The parent keeps the last of two alike, in silence."""
    with pytest.raises(InvalidItemError, match=f"field {re.escape(field)}"):
        engine.put("k", value)
    assert engine.get("k") is None
