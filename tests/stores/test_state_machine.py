"""Any sequence of operations leaves a store in the state that ``oracle.Oracle`` says.

The machine runs on both twins, on one database that each example empties first.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import starmap
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from langgraph.store.base import (
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    SearchItem,
    SearchOp,
)

from langgraph_aurora_store.local import LocalAurora
from tests.support.store_kinds import DIMS, Letters, opened, set_up
from tests.support.store_oracle import Address, Oracle

DATABASE = "state_machine"
INDEX = {"dims": DIMS, "embed": Letters(), "fields": ["text", "notes[*].text"]}
EXAMPLES = 1_050  # for each twin
STEPS = 10
EVERYTHING = 1_000

Call = Callable[..., Any]

labels = st.sampled_from(["a", "b", "a_b", "a%", "aX"])
namespaces = st.sampled_from([("a",), ("a", "b"), ("a", "b", "c"), ("a_b",), ("a%", "b")])
prefixes = st.sampled_from([(), (), (), ("a",), ("a",), ("a", "b"), ("a_b",), ("none",)])
keys = st.sampled_from(["k1", "k2", "%"])
texts = st.sampled_from(["tea", "ate", "green tea", "milk", "cocoa", "é漢🙂", "", " \n"])
numbers = st.sampled_from([-1, 0, 9, 10, 100, 2.5, 1e10, "9", "10"])
tags = st.sampled_from(["red", "blue", None, ["red"], {"red": 1}])
HOSTILE = 'it\'s "$" %s'
values = st.fixed_dictionaries(
    {"text": texts | st.lists(texts, max_size=2), "tag": tags},
    optional={
        "n": numbers,
        "notes": st.lists(st.fixed_dictionaries({"text": texts}), max_size=3),
        "meta": st.fixed_dictionaries({}, optional={"lang": texts, "n": numbers}),
        HOSTILE: st.booleans(),
    },
)
indexes = st.sampled_from(
    [None, None, None, False, [], ["tag"], ["meta.lang"], ["notes[0].text", "text"], ["text[*]"]]
)
ranges = st.dictionaries(
    st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), st.sampled_from([-1, 9, 10, 50.5]), min_size=1
)
equalities = st.sampled_from([{"$ne": 10}, {"$eq": 9}, {"$eq": "9"}, 10, 2.5, None])
conditions_on = {
    "n": ranges | equalities,
    "tag": tags | st.sampled_from([{}, {"$ne": "blue"}, {"$ne": None}]),
    "meta": st.fixed_dictionaries({}, optional={"n": ranges | equalities, "lang": texts}),
    "notes": st.sampled_from([[], [{"text": "tea"}], [{}], [{}, {"text": {"$ne": "tea"}}]]),
    HOSTILE: st.booleans(),
}
parts = st.one_of(
    st.fixed_dictionaries({name: condition}) for name, condition in conditions_on.items()
)
filters = parts | st.builds(lambda one, other: one | other, parts, parts)
some_filter = st.builds(lambda is_none, some: None if is_none else some, st.booleans(), filters)
queries = st.sampled_from(["tea", "green", "milk", "z", " "])
pages = st.sampled_from([(10, 0), (100, 0), (100, 1), (1, 0), (2, 1), (3, 3), (0, 0)])
ttls = st.sampled_from([None, None, 0.5, 10, 1.5])
paths = st.lists(labels | st.just("*"), max_size=2).map(tuple)
conditions = st.lists(
    st.builds(MatchCondition, st.sampled_from(["prefix", "suffix"]), paths), max_size=2
).map(tuple)

puts = st.builds(PutOp, namespaces, keys, values, indexes, ttls)
deletes = st.builds(PutOp, namespaces, keys, st.none())
gets = st.builds(GetOp, namespaces, keys, st.booleans())
searches = st.builds(
    lambda prefix, filter_, page, query: SearchOp(prefix, filter_, *page, query),
    prefixes,
    some_filter,
    pages,
    st.none() | queries,
)
listings = st.builds(
    lambda matches, depth, page: ListNamespacesOp(matches, depth, *page),
    conditions,
    st.sampled_from([None, 1, 2, 5]),
    pages,
)


class StoreMachine(RuleBasedStateMachine):
    """Does the same to a store and to the oracle; ``call`` is a blocking call of the store's."""

    examples = 0

    def __init__(self, call: Call, sql: psycopg.Connection) -> None:
        super().__init__()
        type(self).examples += 1
        self.call, self.sql = call, sql
        self.oracle = Oracle(index=INDEX)
        self.dead: set[Address] = set()
        """Expired, and not swept yet."""
        self.born: dict[Address, Any] = {}
        """The ``created_at`` of each living item, once seen."""
        self.ttls: dict[Address, float | None] = {}
        """In minutes, of each item that is or was there."""

    @initialize(ops=st.lists(puts, min_size=4, max_size=8))
    def begin(self, ops: list[PutOp]) -> None:
        self.sql.execute("DELETE FROM store")
        self.call("batch", ops)
        self.note(ops)

    # what is done to both

    @rule(op=puts | deletes)
    def write_one(self, op: PutOp) -> None:
        if op.value is None:
            self.call("delete", op.namespace, op.key)
        else:
            self.call("put", op.namespace, op.key, op.value, index=op.index, ttl=op.ttl)
        self.note([op])

    @rule(ops=st.lists(st.one_of(puts, deletes, gets, searches, listings), min_size=2, max_size=6))
    def batch(self, ops: list[Op]) -> None:
        """Reads see what was before the batch, writes come last, the last one on a key wins."""
        answers = self.call("batch", ops)
        for op, answer in zip(ops, answers, strict=True):
            if isinstance(op, PutOp):
                assert answer is None
            else:
                self.compare(op, answer)
        self.note([op for op in ops if isinstance(op, PutOp)])

    @rule(op=gets)
    def get(self, op: GetOp) -> None:
        self.compare(op, self.call("get", op.namespace, op.key, refresh_ttl=op.refresh_ttl))

    @rule(op=searches)
    def search(self, op: SearchOp) -> None:
        prefix, filter_, limit, offset, query, _ = op
        page = {"limit": limit, "offset": offset}
        self.compare(op, self.call("search", prefix, query=query, filter=filter_, **page))

    def teardown(self) -> None:
        """In the end, everything is found by every kind of read."""
        everything = SearchOp((), limit=EVERYTHING)
        by_meaning = everything._replace(query="tea")
        ops = [everything, by_meaning, ListNamespacesOp(), *starmap(GetOp, self.oracle.addresses())]
        for op, answer in zip(ops, self.call("batch", ops), strict=True):
            self.compare(op, answer)

    @rule(op=listings)
    def list_namespaces(self, op: ListNamespacesOp) -> None:
        (answer,) = self.call("batch", [op])
        self.compare(op, answer)

    @rule(prefix=prefixes, filter_=some_filter)
    def count(self, prefix: tuple[str, ...], filter_: dict[str, Any] | None) -> None:
        assert self.call("count", prefix, filter=filter_) == len(self.matching(prefix, filter_))

    @rule(prefix=prefixes.filter(bool))
    def delete_namespace(self, prefix: tuple[str, ...]) -> None:
        doomed = self.matching(prefix)
        assert self.call("delete_namespace", prefix) == len(doomed)
        self.note([PutOp(*address, None) for address in doomed])
        self.dead = {(ns, key) for ns, key in self.dead if ns[: len(prefix)] != prefix}

    @rule(one=filters, other=filters)
    def combine_filters(self, one: dict[str, Any], other: dict[str, Any]) -> None:
        """What InMemoryStore cannot say follows from what it can."""
        every, first, second = (self.matching((), filter_) for filter_ in (None, one, other))
        for filter_, expected in [
            (one, first),
            ({"$and": [one, other]}, first & second),
            ({"$or": [one, other]}, first | second),
            ({"$not": {"$or": [one, {"$not": other}]}}, (every - first) & second),
        ]:
            found = self.call("search", (), filter=filter_, limit=EVERYTHING)
            assert {(item.namespace, item.key) for item in found} == expected

    # time

    @precondition(lambda self: self.oracle.addresses())
    @rule(number=st.integers(0, 99))
    def expire(self, number: int) -> None:
        address = self.pick(number)
        self.set_expiry(address, "-1 microsecond")
        self.note([PutOp(*address, None)])
        self.dead.add(address)

    @rule()
    def sweep(self) -> None:
        assert self.call("sweep_ttl") == len(self.dead)
        self.dead.clear()

    @precondition(lambda self: self.oracle.addresses())
    @rule(number=st.integers(0, 99), refresh=st.booleans(), by_search=st.booleans())
    def read_when_nearly_expired(self, number: int, refresh: bool, by_search: bool) -> None:
        """A refreshing read restarts an item's life, another one does not touch it."""
        namespace, key = address = self.pick(number)
        ttl = self.ttls[address]
        if ttl is None:
            return
        self.set_expiry(address, "20 seconds")
        if by_search:
            self.call("search", namespace, limit=EVERYTHING, refresh_ttl=refresh)
        else:
            self.call("get", namespace, key, refresh_ttl=refresh)
        assert self.minutes_left(address) == pytest.approx(ttl if refresh else 1 / 3, abs=0.05)

    # what holds after every step

    @invariant()
    def nothing_else_is_stored(self) -> None:
        rows, vectors = self.sql.execute(
            "SELECT (SELECT count(*) FROM store), (SELECT count(*) FROM store_vectors AS v"
            " JOIN store USING (prefix, key) WHERE expires_at > now() OR expires_at IS NULL)"
        ).fetchone()
        assert rows == len(self.oracle.addresses()) + len(self.dead)
        assert vectors == self.oracle.vectors()

    # the two sides

    def note(self, ops: list[PutOp]) -> None:
        """Have the oracle do what the store has done."""
        last = {(op.namespace, op.key): op for op in ops}
        self.oracle.batch(list(last.values()))
        self.dead -= last.keys()
        for address, op in last.items():
            self.ttls[address] = op.ttl
            if op.value is None:
                self.born.pop(address, None)

    def compare(self, op: GetOp | SearchOp | ListNamespacesOp, answer: Any) -> None:
        (expected,) = self.oracle.batch([op])
        if isinstance(op, ListNamespacesOp):
            assert answer == expected
        elif isinstance(op, GetOp):
            self.same([answer] if answer else [], [expected] if expected else [])
        elif op.query and op.query.strip():
            self.same_ranking(op, answer, expected)
        else:
            self.same(answer, expected)

    def same(self, items: list[Item], expected: list[Item]) -> None:
        assert [(i.namespace, i.key, i.value) for i in items] == [
            (i.namespace, i.key, i.value) for i in expected
        ]
        for item in items:
            born = self.born.setdefault((item.namespace, item.key), item.created_at)
            assert item.created_at == born <= item.updated_at

    def same_ranking(
        self, op: SearchOp, items: list[SearchItem], expected: list[SearchItem]
    ) -> None:
        """Equal up to the order of what scores the same, which rounding decides."""
        (ranked,) = self.oracle.batch([op._replace(limit=EVERYTHING, offset=0)])
        scores = {(item.namespace, item.key): item.score for item in ranked}
        assert [i.score for i in items] == pytest.approx([i.score for i in expected], abs=1e-5)
        addresses = [(item.namespace, item.key) for item in items]
        assert len(set(addresses)) == len(addresses)
        for item, address in zip(items, addresses, strict=True):
            assert item.score == pytest.approx(scores[address], abs=1e-5)

    def matching(
        self, prefix: tuple[str, ...], filter_: dict[str, Any] | None = None
    ) -> set[Address]:
        found = self.oracle.search(prefix, filter=filter_, limit=EVERYTHING)
        return {(item.namespace, item.key) for item in found}

    def pick(self, number: int) -> Address:
        addresses = self.oracle.addresses()
        return addresses[number % len(addresses)]

    def set_expiry(self, address: Address, after: str) -> None:
        self.sql.execute(
            "UPDATE store SET expires_at = clock_timestamp() + %s::interval"
            " WHERE prefix = %s AND key = %s",
            (after, ".".join(address[0]), address[1]),
        )

    def minutes_left(self, address: Address) -> float:
        row = self.sql.execute(
            "SELECT extract(epoch FROM expires_at - now()) / 60 FROM store"
            " WHERE prefix = %s AND key = %s",
            (".".join(address[0]), address[1]),
        ).fetchone()
        return float(row[0])


@pytest.fixture(scope="module")
def sql(aurora: LocalAurora) -> Iterator[psycopg.Connection]:
    with set_up(aurora, DATABASE, index=INDEX) as conn:
        yield conn


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["blocking-connection", "asyncio-pool"])
def test_any_sequence_of_operations_does_what_the_oracle_says(
    kind: str, aurora: LocalAurora, sql: psycopg.Connection, record_property: Callable[..., None]
) -> None:
    """Puts, updates, deletes, index lists, ttls, filters, pages and namespaces, in any order."""
    StoreMachine.examples, began = 0, time.monotonic()
    with asyncio.Runner() as runner:
        manager = opened(kind, aurora, DATABASE, index=INDEX, ttl={"refresh_on_read": True})
        twin = runner.run(manager.__aenter__())

        def call(name: str, *args: Any, **kwargs: Any) -> Any:
            if not twin.is_async:
                return getattr(twin.store, name)(*args, **kwargs)
            return runner.run(_awaited(getattr(twin, name)(*args, **kwargs)))

        run_state_machine_as_test(
            lambda: StoreMachine(call, sql),
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                # Ten steps read well as they are; to shrink them takes longer than all the rest.
                phases=[Phase.generate],
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
        runner.run(_awaited(manager.__aexit__(None, None, None)))
    record_property("examples", StoreMachine.examples)
    record_property("seconds", round(time.monotonic() - began))
    assert StoreMachine.examples >= EXAMPLES


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
