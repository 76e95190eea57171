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
from tests.support.sql_session import DIMS, INDEX, SqlSession, connected, embed, made

SECRET = "do not show this"


class Word(StrEnum):
    MILK = "milk"


class Model(BaseModel):
    field: int = 1


@pytest.fixture(scope="module")
def shared(aurora: LocalAurora) -> Iterator[SqlSession]:
    with made(aurora, "writes") as session:
        yield session


@pytest.fixture
def session(shared: SqlSession) -> SqlSession:
    """A session on empty tables."""
    shared.sql("TRUNCATE store, store_vectors")
    shared.steps = []
    return shared


def vectors_of(session: SqlSession, key: str = "k") -> dict[str, Any]:
    """Where the vectors of an item stand, by field."""
    rows = session.sql("SELECT field_name, ctid FROM store_vectors WHERE key = %s", key)
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
    session: SqlSession, value: Any, field: str
) -> None:
    """Also what the same batch would have done before it, and without a step."""
    session.put("old", {"a": 1})
    with pytest.raises(InvalidItemError) as caught:
        session.run(PutOp(("n",), "old", None), PutOp(("n", "m"), "bad key", value))
    assert not session.steps
    assert session.get("old") is not None
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
    session: SqlSession, changes: dict[str, Any]
) -> None:
    """A key that is no text, an index= that would index nothing, a ttl that is no time."""
    with pytest.raises(InvalidItemError, match=r"in \('n',\)"):
        session.run(PutOp(("n",), "k", {"text": "x"})._replace(**changes))
    assert not session.steps


@pytest.mark.parametrize("label", ["a.b", "", "\x00", "\ud800", 1])
def test_a_namespace_that_cannot_be_stored_is_refused(session: SqlSession, label: Any) -> None:
    """In every operation, with LangGraph's own error."""
    for op in (
        PutOp((label,), "k", {}),
        GetOp((label,), "k"),
        SearchOp((label,)),
    ):
        with pytest.raises(InvalidNamespaceError):
            session.run(op)
    assert not session.steps


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
def test_a_value_comes_back_as_it_was_put(session: SqlSession, value: dict[str, Any]) -> None:
    """Every JSON value, whatever the size of its numbers; the argument is not touched."""
    before = copy.deepcopy(value)
    session.put("k", value, index=False)
    item = session.get("k")
    assert item is not None
    assert item.value == before == value


def test_a_value_may_be_nested_500_levels_deep(session: SqlSession) -> None:
    """It is stored, embedded, read and found as any other; one level more is refused."""
    value = {"text": [deep(497)]}
    assert str(value).count("{") + 1 == 500
    session.put("k", value, index=["$"])
    item = session.get("k")
    assert item is not None
    assert item.value == value == session.search("n", query="a")[0].value
    with pytest.raises(InvalidItemError, match=r"'k' in \('n',\): nested more than 500 levels"):
        session.put("k", {"more": value})


def test_a_stack_that_is_full_is_no_recursion_error(session: SqlSession) -> None:
    """However few frames there are left: the item is written, or refused with its name."""
    room = sys.getrecursionlimit() - len(inspect.stack(0))

    def plan_at(frames: int) -> bool:
        if frames:
            return plan_at(frames - 1)
        with suppress(InvalidItemError):
            next(run([PutOp(("n",), "the key", deep(400), index=["$"])], session.tables))
            return True
        return False

    written = {plan_at(frames) for frames in range(room - 500, room - 60, 10)}
    assert True in written


def test_mappings_and_tuples_are_stored_and_embedded_as_json(session: SqlSession) -> None:
    """At every level: what is embedded is what a get returns, whatever class it was put as."""
    as_put: Any = UserDict(o=MappingProxyType({"p": ("tea", Word.MILK)}), w=Word.MILK)
    as_json = {"o": {"p": ["tea", "milk"]}, "w": "milk"}
    paths = ["o.p[*]", "o", "w", "$"]
    session.put("k", as_put, index=paths)
    embedded = session.embedded
    item = session.get("k")
    assert item is not None
    assert item.value == as_json
    assert "milk" in embedded
    session.put("k", as_json, index=paths)
    assert not session.embedded
    assert len(vectors_of(session)) == 5
    assert len(embedded) == 4


def test_the_last_operation_on_a_key_counts(session: SqlSession) -> None:
    """As in InMemoryStore, whether it puts or deletes."""
    session.put("b", {"v": 0})
    session.run(
        PutOp(("n",), "a", {"v": 1}),
        PutOp(("n",), "b", {"v": 1}),
        PutOp(("n",), "a", None),
        PutOp(("n",), "c", None),
        PutOp(("n",), "c", {"v": 2}),
        PutOp(("n",), "b", {"v": 3}),
    )
    found = session.run(*(GetOp(("n",), key) for key in "abc"))
    assert [item and item.value for item in found] == [None, {"v": 3}, {"v": 2}]


@pytest.mark.parametrize("position", ["namespace", "key", "field"])
def test_what_is_too_long_for_an_index_is_named_and_nothing_is_written(
    session: SqlSession, position: str
) -> None:
    """It fails on the server, and the delete and the put before it do not happen either."""
    session.put("old", {"text": "a"})
    too_long = random.Random(1).randbytes(1400).hex()
    namespace, key, field = ("n",), "the key", "text"
    if position == "namespace":
        namespace = ("n", too_long)
    elif position == "key":
        key = too_long
    else:
        field = too_long
    with pytest.raises(InvalidItemError, match=r" 28\d\d bytes") as caught:
        session.run(
            PutOp(("n",), "old", None),
            PutOp(("n",), "a", {"text": "b"}),
            PutOp(namespace, key, {field: SECRET}, index=[field]),
        )
    assert isinstance(caught.value.__cause__, psycopg.errors.ProgramLimitExceeded)
    assert ("the key" if position != "key" else too_long[:50]) in str(caught.value)
    assert len(str(caught.value)) < 700
    assert SECRET not in str(caught.value)
    assert session.get("a") is None
    assert session.get("old") is not None
    assert list(vectors_of(session, "old")) == ["text"]


def test_a_long_key_that_can_be_compressed_is_taken(session: SqlSession) -> None:
    """The server says what it can hold: the parent's items may have such keys."""
    key = "long " * 1_000
    session.put(key, {"text": "a"})
    assert session.get(key) is not None


def test_a_limit_that_is_not_the_items_is_the_servers_to_tell(session: SqlSession) -> None:
    """Of an index of the user's own, for one."""
    session.sql("CREATE INDEX theirs ON store ((value ->> 'text'))")
    try:
        with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="theirs"):
            session.put("k", {"text": random.Random(1).randbytes(4000).hex()}, index=False)
    finally:
        session.sql("DROP INDEX theirs")


def test_a_value_too_long_for_jsonb_is_named() -> None:
    """Before it is sent: it would take half a minute to be refused."""
    flow = run([PutOp(("n",), "the key", {"a": "x" * 2**28})], StoreTables())
    with pytest.raises(InvalidItemError, match=r"'the key' in .* 268435465 characters") as caught:
        next(flow)
    assert len(str(caught.value)) < 200


def test_any_number_of_puts_is_one_transaction_with_one_text(session: SqlSession) -> None:
    """More than 65,535 parameters' worth; the same SQL as for one."""
    session.run(PutOp(("n",), "one", {"v": 1}))
    (one,) = session.runs
    session.run(*(PutOp(("n",), f"k{i}", {"v": i}) for i in range(20_000)))
    (many,) = session.runs
    assert [s.sql for s in many.statements] == [s.sql for s in one.statements]
    assert session.sql("SELECT count(*) FROM store") == [(20_001,)]


@pytest.mark.parametrize("path", ["text[", "l[x]", "{a", "  "])
def test_a_path_that_can_find_nothing_is_named(session: SqlSession, path: str) -> None:
    """As in the store's configuration; nothing is written."""
    with pytest.raises(InvalidItemError, match="index= path") as caught:
        session.put("k", {"text": "a", "l": ["b"]}, index=[path])
    assert repr(path) in str(caught.value)
    assert session.get("k") is None


def test_a_text_is_no_namespace(session: SqlSession) -> None:
    """It would be one of its letters, and no search would find what is in there."""
    for op in (PutOp("chat", "k", {}), GetOp("chat", "k"), SearchOp("chat")):  # type: ignore[arg-type]
        with pytest.raises(InvalidNamespaceError, match="'chat'"):
            session.run(op)
    assert session.sql("SELECT count(*) FROM store") == [(0,)]


# vectors


def test_types_of_the_same_name_in_other_schemas_do_no_harm(session: SqlSession) -> None:
    """A table is a type too."""
    session.sql("CREATE SCHEMA cad CREATE TABLE vector (x int) CREATE TABLE halfvec (x int)")
    try:
        names = [name for name, *_ in session.sql(pgvector_types.TYPES)]
        assert sorted(names) == ["halfvec", "vector"]
    finally:
        session.sql("DROP SCHEMA cad CASCADE")


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
    session: SqlSession, first: dict[str, Any], then: dict[str, Any]
) -> None:
    """After an update the table holds the vectors that a first put would have made."""
    session.run(PutOp(("n",), "k", **first))
    session.run(PutOp(("n",), "k", **then))
    updated = set(vectors_of(session))
    session.run(PutOp(("n",), "fresh", **then))
    assert updated == set(vectors_of(session, "fresh"))


def test_fields_are_named_as_the_parent_names_them(session: SqlSession) -> None:
    """``$`` is the whole value, also in an operation's own list; several texts are numbered."""
    value = {"text": "a", "l": ["b", " ", "c"], "o": {"p": 1}}
    session.put("k", value, index=["$", "l[*]", "o.p", "missing", "l[0]"])
    assert set(vectors_of(session)) == {"$", "l[*].0", "l[*].2", "o.p", "l[0]"}
    assert '{"l": ["b", " ", "c"], "o": {"p": 1}, "text": "a"}' in session.embedded


def test_equal_texts_are_embedded_once(session: SqlSession) -> None:
    """Within an item and across a batch."""
    session.run(
        PutOp(("n",), "a", {"text": "same", "x": "same"}, index=["text", "x"]),
        PutOp(("n",), "b", {"text": "same"}),
        PutOp(("n",), "c", {"text": "other"}),
    )
    assert session.embedded == ["same", "other"]
    assert session.sql("SELECT count(DISTINCT embedding), count(*) FROM store_vectors") == [(2, 4)]


def test_unchanged_text_is_neither_embedded_nor_rewritten(session: SqlSession) -> None:
    """The item is updated all the same; only what changed is embedded."""
    session.put("k", {"text": "a", "x": "b", "n": 1}, index=["text", "x"])
    before = vectors_of(session)
    session.put("k", {"text": "a", "x": "b", "n": 2}, index=["text", "x"])
    assert not session.embedded
    assert vectors_of(session) == before
    session.put("k", {"text": "a", "x": "c"}, index=["text", "x"])
    assert session.embedded == ["c"]
    after = vectors_of(session)
    assert after["text"] == before["text"]
    assert after["x"] != before["x"]


def test_a_vector_that_the_parent_wrote_is_not_taken_for_ours(session: SqlSession) -> None:
    """The parent leaves the hash as it was, so the hash counts for our own write only."""
    session.put("k", {"text": "a"})
    session.sql("UPDATE store_vectors SET embedding = '[9,9,9,9]', updated_at = clock_timestamp()")
    session.put("k", {"text": "a"})
    assert session.embedded == ["a"]
    assert session.search("n", query="a")[0].score == pytest.approx(1)


def test_another_model_embeds_again(session: SqlSession) -> None:
    """The same text under another model's name is another vector."""
    session.put("k", {"text": "a"})
    other = session.with_tables(embedding_id="other")
    other.put("k", {"text": "a"})
    assert other.embedded == ["a"]
    other.put("k", {"text": "a"})
    assert not other.embedded


def test_a_vector_replaced_in_between_is_embedded_again(session: SqlSession) -> None:
    """Someone else's text of the same key comes between our look and our write."""
    session.put("k", {"text": "a", "x": "same"}, index=["text", "x"])
    flow = run([PutOp(("n",), "k", {"text": "a", "x": "new"}, index=["text", "x"])], session.tables)
    look = next(flow)
    assert isinstance(look, Transaction)
    rows = [Rows(session.connection.execute(s.sql, s.params).fetchall()) for s in look.statements]
    session.put("k", {"text": "theirs"})
    ask = flow.send(rows)
    assert isinstance(ask, Embed)
    assert ask.documents == ("new",)
    steps = [ask]

    def rest() -> Any:
        reply = yield from flow_from(ask, flow)
        return reply

    drive(rest(), session.connection, embed, steps)
    assert [step.documents for step in steps if isinstance(step, Embed)][-1] == ("a",)
    fields = dict(session.sql("SELECT field_name, embedding::text FROM store_vectors"))
    assert set(fields) == {"text", "x"}
    assert session.search("n", query="a")[0].score == pytest.approx(1)
    assert session.search("n", query="new")[0].score == pytest.approx(1)


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
        ([None], "no list of numbers"),
        ([1.0], "of type float"),
    ],
)
def test_an_unusable_vector_is_named_and_nothing_is_written(
    session: SqlSession, answer: Any, complaint: str
) -> None:
    """The wrong number, the wrong length, or what is no finite number."""
    flow = run([PutOp(("n",), "the key", {"text": SECRET})], session.tables)
    next(flow)
    flow.send([Rows()])
    with pytest.raises(EmbeddingResponseError, match=complaint) as caught:
        flow.send(Vectors(answer))
    assert SECRET not in str(caught.value)
    if "1 texts" not in complaint:
        assert "'the key' in ('n',), field 'text'" in str(caught.value)


@pytest.mark.parametrize("number", [70_000.0, "1.0", None])
def test_what_halfvec_cannot_hold_is_refused(session: SqlSession, number: Any) -> None:
    """Its largest number is 65,504; every version of pgvector-python is asked alike."""
    halves = session.with_tables(index=replace(INDEX, vector_type="halfvec"))
    flow = run([PutOp(("n",), "k", {"text": SECRET})], halves.tables)
    next(flow)
    flow.send([Rows()])
    with pytest.raises(EmbeddingResponseError, match="no number within halfvec's range"):
        flow.send(Vectors([[1.0] * (DIMS - 1) + [number]]))


def test_a_store_without_an_index_embeds_nothing(session: SqlSession) -> None:
    """Neither by default nor where an operation asks for it."""
    plain = session.with_tables(index=None)
    plain.put("k", {"text": "a"}, index=["text"])
    assert not plain.embedded
    assert len(plain.runs) == 1


def test_a_put_without_texts_is_one_round_trip(session: SqlSession) -> None:
    """There is nothing to look up first."""
    for options in ({"index": False}, {"index": []}):
        session.put("k", {"text": "a"}, **options)
        assert len(session.runs) == 1
    session.put("k", None)
    assert len(session.runs) == 1


# concurrency


def test_concurrent_batches_never_deadlock(session: SqlSession, aurora: LocalAurora) -> None:
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
                mine = SqlSession(connection, session.tables)
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
    session: SqlSession, aurora: LocalAurora, work: list[PutOp] | str
) -> None:
    """Whatever the order of the operations, of the rows in the table and of the plan."""
    session.put("b", {"text": "b"})
    session.put("a", {"text": "a"})
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
                drive(delete_under(("n",), session.tables), connection)
            else:
                SqlSession(connection, session.tables).run(*work)

    with ThreadPoolExecutor() as threads, connected(aurora, "writes") as holder:
        with holder.transaction():
            holder.execute(lock, mine["a"])
            done = threads.submit(run)
            while session.sql(waiting)[0][1] == 0:
                assert not done.done()
            assert session.connection.execute(lock, mine["b"]).fetchall() == [("b",)]
        done.result()


def test_namespaces_are_deleted_and_listed_in_the_order_of_code_points(session: SqlSession) -> None:
    """As batches write and memory lists. The database of the tests has no other order to show."""
    (deletion,) = next(delete_under(("n",), session.tables)).statements
    assert 'ORDER BY s.prefix COLLATE "C", s.key COLLATE "C"' in deletion.sql
    *_, listing = next(run([ListNamespacesOp()], session.tables)).statements
    assert 'ORDER BY labels COLLATE "C"' in listing.sql


def _operation(generator: random.Random, key: str, turn: int) -> PutOp | GetOp:
    kind = generator.random()
    if kind < 0.2:
        return GetOp(("n",), key)
    value = None if kind < 0.5 else {"text": f"text {turn % 5}"}
    return PutOp(("n",), key, value, ttl=0.001 if kind > 0.8 else None)


# expiry


def age(session: SqlSession, key: str, minutes: float) -> None:
    """Let time have passed for an item."""
    session.sql(
        "UPDATE store SET expires_at = expires_at - %s * interval '1 minute' WHERE key = %s",
        minutes,
        key,
    )


def life(session: SqlSession, key: str) -> timedelta:
    ((left,),) = session.sql("SELECT expires_at - clock_timestamp() FROM store WHERE key = %s", key)
    assert isinstance(left, timedelta)
    return left


@pytest.mark.parametrize("ttl", [0.5, 0.01, 1.5, 1, 90, 90.25])
def test_a_ttl_is_exact_also_after_a_renewal(session: SqlSession, ttl: float) -> None:
    """Fractions of a minute too; the parent's whole minutes stand beside it for the parent."""
    session.put("k", {}, ttl=ttl)
    rows = session.sql("SELECT expires_at - updated_at, ttl_minutes FROM store")
    assert rows == [(timedelta(minutes=ttl), max(1, math.ceil(ttl)))]
    age(session, "k", ttl * 0.9)
    assert session.get("k") is not None
    assert len(session.runs) == 2
    assert life(session, "k") == pytest.approx(timedelta(minutes=ttl), abs=timedelta(seconds=2))
    assert life(session, "k") <= timedelta(minutes=ttl)


def test_a_ttl_of_nothing_is_over_at_once(session: SqlSession) -> None:
    """And one minute to the parent, whose column has nothing shorter."""
    with session.connection.transaction():
        session.put("k", {}, ttl=0)
        assert session.get("k") is None
        assert session.search("n") == []
    rows = session.sql("SELECT expires_at = updated_at, ttl_minutes FROM store")
    assert rows == [(True, 1)]


def test_the_longest_ttl_is_what_the_parents_column_holds(session: SqlSession) -> None:
    """Some four thousand years."""
    session.put("k", {}, ttl=2**31 - 1)
    assert session.sql("SELECT ttl_minutes FROM store") == [(2**31 - 1,)]
    assert session.get("k") is not None


@pytest.mark.parametrize("ttl", [90, 90.5, None])
def test_an_update_sets_the_ttl_anew(session: SqlSession, ttl: float | None) -> None:
    """Longer, or none: nothing of the former one is left, exact or in whole minutes."""
    whole = None if ttl is None else math.ceil(ttl)
    exact = None if ttl == whole else timedelta(minutes=ttl or 0)
    for former in (10, 10.5):
        session.put("k", {}, ttl=former)
        session.put("k", {}, ttl=ttl)
        rows = session.sql(
            "SELECT (expires_at - updated_at) / 60, ttl_minutes, upper(lifetime) - lower(lifetime)"
            " FROM store"
        )
        assert rows == [(ttl and timedelta(seconds=ttl), whole, exact)]


def test_the_parents_ttl_counts_after_the_parents_write(session: SqlSession) -> None:
    """It writes whole minutes and leaves our column as it was."""
    session.put("k", {}, ttl=0.5)
    session.sql(
        "UPDATE store SET updated_at = clock_timestamp(), ttl_minutes = 1,"
        " expires_at = clock_timestamp() + interval '40 seconds'"
    )
    assert session.get("k") is not None
    assert life(session, "k") > timedelta(seconds=50)


def test_a_read_renews_only_what_is_due(session: SqlSession) -> None:
    """Before 5 % of the ttl, and at most an hour, have passed, a read writes nothing."""
    session.put("short", {}, ttl=100)
    session.put("long", {}, ttl=60 * 24 * 30)
    for key, early, late in (("short", 4, 2), ("long", 55, 10)):
        age(session, key, early)
        for op in (GetOp(("n",), key), SearchOp(("n",))):
            session.run(op)
            assert len(session.runs) == 1
        age(session, key, late)
        session.run(SearchOp(("n",)))
        assert len(session.runs) == 2
        assert life(session, key) > timedelta(minutes=99.9)
        session.run(SearchOp(("n",)))
        assert len(session.runs) == 1


def test_a_read_that_is_told_so_renews_nothing(session: SqlSession) -> None:
    """``refresh_ttl=False``, of a get and of a search."""
    session.put("k", {"text": "a"}, ttl=10)
    age(session, "k", 9)
    session.run(
        GetOp(("n",), "k", refresh_ttl=False),
        SearchOp(("n",), refresh_ttl=False),
        SearchOp(("n",), query="a", refresh_ttl=False),
    )
    assert life(session, "k") < timedelta(minutes=1)


def test_what_has_expired_is_gone(session: SqlSession) -> None:
    """It is neither returned, counted nor listed, and no read brings it back."""
    session.put("k", {"text": "a"}, ttl=10)
    session.run(PutOp(("other",), "k", {}, ttl=10))
    age(session, "k", 11)
    for _ in range(2):
        results = session.run(
            GetOp(("n",), "k"),
            SearchOp(()),
            SearchOp((), query="a"),
            ListNamespacesOp(),
            ListNamespacesOp((MatchCondition("prefix", ("n",)),)),
        )
        assert results == [None, [], [], [], []]
    assert drive(count_under((), session.tables), session.connection) == 0
    assert session.sql("SELECT count(*) FROM store WHERE expires_at > now()") == [(0,)]


@pytest.mark.parametrize("minutes", [-2, 9], ids=["expired", "renewed"])
def test_what_changes_while_it_is_read_is_not_renewed(session: SqlSession, minutes: int) -> None:
    """Between the read and the renewal its time may run out, or another reader renew it."""
    session.put("k", {}, ttl=10)
    age(session, "k", 9)
    flow = run([GetOp(("n",), "k")], session.tables)
    (read,) = next(flow).statements
    rows = session.connection.execute(read.sql, read.params).fetchall()
    age(session, "k", -minutes)
    (renewal,) = flow.send([Rows(rows)]).statements
    assert session.connection.execute(renewal.sql, renewal.params).rowcount == 0
    assert life(session, "k") < timedelta(minutes=1 + minutes)


def test_a_put_onto_an_expired_item_makes_a_new_one(session: SqlSession) -> None:
    """Its age starts again; that of a living item does not."""
    session.put("k", {"text": "a"}, ttl=10)
    first = session.get("k")
    session.put("k", {"text": "b"}, ttl=10)
    second = session.get("k")
    age(session, "k", 11)
    session.put("k", {"text": "c"})
    third = session.get("k")
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.created_at == second.created_at < second.updated_at
    assert third.created_at == third.updated_at > second.updated_at


def test_a_reader_that_may_not_write_reads(session: SqlSession, aurora: LocalAurora) -> None:
    """Neither a read-only session nor a role without UPDATE fails for want of a renewal."""
    session.put("k", {"text": "a"}, ttl=10)
    age(session, "k", 9)
    session.sql("SET default_transaction_read_only = on")
    try:
        assert session.get("k") is not None
        assert len(session.runs) == 1
        assert [item.key for item in session.search("n", query="a")] == ["k"]
    finally:
        session.sql("SET default_transaction_read_only = off")
    with psycopg.connect(aurora.admin_dsn_for("writes"), autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS looker")
        connection.execute("CREATE ROLE looker")
        connection.execute("GRANT SELECT ON store TO looker")
        try:
            connection.execute("SET ROLE looker")
            (item,) = SqlSession(connection, session.tables).run(GetOp(("n",), "k"))
            assert isinstance(item, Item)
        finally:
            connection.execute("RESET ROLE")
            connection.execute("DROP OWNED BY looker")
            connection.execute("DROP ROLE looker")


def test_a_renewal_waits_for_nobody(session: SqlSession, aurora: LocalAurora) -> None:
    """A row that someone is writing is left to them."""
    session.put("k", {}, ttl=10)
    age(session, "k", 9)
    session.sql("SET lock_timeout = '1ms'")
    try:
        with connected(aurora, "writes") as other, other.transaction():
            other.execute("SELECT FROM store FOR UPDATE")
            assert session.get("k") is not None
    finally:
        session.sql("SET lock_timeout = 0")
    assert life(session, "k") < timedelta(minutes=1)


# namespaces as a whole


def test_deleting_a_namespace_leaves_its_neighbours(session: SqlSession) -> None:
    """It and what is below it go, vectors too; expired items go uncounted."""
    for labels in (("a",), ("a", "b"), ("a", "b", "c"), ("a-b",), ("ab",), ("A",), ("a_",), ("%",)):
        session.run(PutOp(labels, "k", {"text": "x"}))
    session.run(PutOp(("a",), "old", {"text": "x"}, ttl=10))
    age(session, "old", 11)
    count = drive(count_under(("a",), session.tables, {"text": "x"}), session.connection)
    deleted = drive(delete_under(("a",), session.tables), session.connection)
    assert count == deleted == 3
    assert session.run(ListNamespacesOp()) == [[("%",), ("A",), ("a-b",), ("a_",), ("ab",)]]
    assert session.sql("SELECT count(*) FROM store_vectors") == [(5,)]
    assert drive(delete_under(("_",), session.tables), session.connection) == 0


def test_a_large_namespace_is_deleted_in_parts(session: SqlSession) -> None:
    """Ten thousand to a transaction, until none is left."""
    session.sql(
        "INSERT INTO store (prefix, key, value)"
        " SELECT 'big.' || i % 3, 'k' || i, '{}' FROM generate_series(1, 25000) AS i"
    )
    steps: list[Any] = []
    assert drive(delete_under(("big",), session.tables), session.connection, seen=steps) == 25_000
    assert len(steps) == 3
    assert session.sql("SELECT count(*) FROM store") == [(0,)]


def test_the_empty_namespace_is_not_deleted(session: SqlSession) -> None:
    """It holds everything: an empty variable must not delete that."""
    with pytest.raises(InvalidNamespaceError):
        drive(delete_under((), session.tables), session.connection)


def test_tables_in_a_schema_with_any_name_work(aurora: LocalAurora) -> None:
    """Quotes, percent signs and braces in the schema's name are part of the name."""
    with made(aurora, "schemas") as session:
        odd = session.with_tables(schema='od%d "{s}"', index=INDEX)
        odd.sql("""CREATE SCHEMA "od%d ""{s}""\"""")
        odd.set_up()
        odd.put("k", {"text": "a"}, ttl=5)
        assert odd.get("k") is not None
        assert odd.search("n", query="a", filter={"text": "a"})[0].key == "k"
        assert odd.run(ListNamespacesOp(max_depth=1)) == [[("n",)]]
        assert drive(delete_under(("n",), odd.tables), odd.connection) == 1
        assert session.get("k") is None


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
    session: SqlSession, value: dict[Any, Any], stored: dict[str, Any]
) -> None:
    """As by the parent: everything that takes one store takes the other."""
    session.put("k", value)
    found = session.get("k")
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
    session: SqlSession, value: dict[Any, Any], field: str
) -> None:
    """The parent keeps the last of two alike, in silence."""
    with pytest.raises(InvalidItemError, match=f"field {re.escape(field)}"):
        session.put("k", value)
    assert session.get("k") is None
