"""What users rely on, written once and held by every store: both twins, each way to connect."""

import asyncio
import collections
import datetime
import decimal
import math
import random
import uuid
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchItem,
    SearchOp,
)
from langgraph.store.memory import InMemoryStore
from langgraph.store.postgres import PostgresStore

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from langgraph_aurora_store.errors import (
    ConfigurationError,
    InvalidFilterError,
    InvalidItemError,
)
from langgraph_aurora_store.local import LocalAurora
from tests.support.store_kinds import (
    CLUSTER_KINDS,
    DIMS,
    KINDS,
    PIPELINE_KINDS,
    Letters,
    Twin,
    opened,
    owner_dsn,
    set_up,
)

INDEX = {"dims": DIMS, "embed": Letters(), "fields": ["text"]}
TTL = {"refresh_on_read": True}
DATABASE = "contract"

HOSTILE = [
    "'; DROP TABLE store; --",
    '"',
    "%s %(prefix)s %% {0} {store}",
    "\\",
    "a\nb\t",
    "*",
    "a$1",
    "null",
    " ",
    "?&=%/:@'",
    "é́漢字🙂\u200b",
]
LOOKALIKES = ["a", "a_b", "aXb", "a%b", "a%", "a\\b", "ab", "A", "a-b"]


@pytest.fixture(scope="module")
def sql(aurora: LocalAurora) -> Iterator[psycopg.Connection]:
    """The superuser's connection to a database whose tables are set up once."""
    with set_up(aurora, DATABASE, index=INDEX) as conn:
        yield conn


@pytest.fixture(params=[*KINDS, *CLUSTER_KINDS, *PIPELINE_KINDS])
async def store(
    request: pytest.FixtureRequest, aurora: LocalAurora, sql: psycopg.Connection
) -> AsyncIterator[Twin]:
    sql.execute("TRUNCATE store CASCADE")
    async with opened(request.param, aurora, DATABASE, index=INDEX, ttl=TTL) as twin:
        yield twin


def keys(items: list[SearchItem]) -> list[str]:
    return [item.key for item in items]


def expire(sql: psycopg.Connection, key: str) -> None:
    done = sql.execute("UPDATE store SET expires_at = now() - interval '1 s' WHERE key = %s", [key])
    assert done.rowcount == 1


def minutes_left(sql: psycopg.Connection, key: str) -> float | None:
    """How long an item has to live, as it is stored."""
    query = "SELECT extract(epoch FROM expires_at - now()) / 60 FROM store WHERE key = %s"
    (left,) = sql.execute(query, [key]).fetchone() or (None,)
    return None if left is None else float(left)


# items


async def test_a_value_comes_back_as_it_was_put(store: Twin) -> None:
    """Every JSON type survives, and the item says where it lies and when it was written."""
    value = {
        "text": "tea",
        "n": 1,
        "big": 2**70,
        "x": 0.1,
        "yes": True,
        "none": None,
        "list": [1, "two", [], {}],
        "nested": {"a": {"b": []}},
        "": "empty key",
    }
    await store.put(("users", "ann"), "likes", value)
    item = await store.get(("users", "ann"), "likes")
    assert type(item) is Item
    assert item.value == value
    assert (item.namespace, item.key) == (("users", "ann"), "likes")
    age = datetime.datetime.now(datetime.UTC) - item.created_at
    assert datetime.timedelta(minutes=-1) < age < datetime.timedelta(minutes=1)
    assert item.updated_at == item.created_at


async def test_an_absent_item_is_none(store: Twin) -> None:
    """Neither an unknown key nor a key of another namespace is found."""
    await store.put(("a", "b"), "k", {})
    assert await store.get(("a", "b"), "other") is None
    assert await store.get(("a",), "k") is None
    assert await store.get(("a", "b", "c"), "k") is None


async def test_an_update_keeps_created_at_and_moves_updated_at(store: Twin) -> None:
    """The second put replaces the value as a whole."""
    await store.put(("a",), "k", {"old": 1, "both": 1})
    before = await store.get(("a",), "k")
    await store.put(("a",), "k", {"both": 2})
    after = await store.get(("a",), "k")
    assert after.value == {"both": 2}
    assert after.created_at == before.created_at
    assert after.updated_at > before.updated_at


async def test_a_deleted_item_is_gone_and_may_be_put_again(store: Twin) -> None:
    """Deleting what is not there is no error; a new item has a new created_at."""
    await store.put(("a",), "k", {"text": "tea"})
    first = await store.get(("a",), "k")
    await store.delete(("a",), "k")
    await store.delete(("a",), "k")
    assert await store.get(("a",), "k") is None
    assert await store.search(("a",), query="tea") == []
    await store.put(("a",), "k", {})
    again = await store.get(("a",), "k")
    assert again.created_at > first.created_at


async def test_putting_none_deletes(store: Twin) -> None:
    """As BaseStore has it."""
    await store.put(("a",), "k", {})
    await store.put(("a",), "k", None)
    assert await store.get(("a",), "k") is None


@pytest.mark.parametrize("text", HOSTILE)
async def test_no_character_of_a_key_label_or_value_means_anything(store: Twin, text: str) -> None:
    """Quotes, placeholders, wildcards and other alphabets are stored, found and listed as such."""
    namespace, value = ("h", text), {text: text, "text": text}
    await store.put(("h", "other"), "other", {"text": "other"})
    await store.put(namespace, text, value)
    assert (await store.get(namespace, text)).value == value
    assert keys(await store.search(namespace)) == [text]
    assert keys(await store.search(("h",), filter={text: text})) == [text]
    assert keys(await store.search(("h",), filter={text: {"$ne": None}})) == [text]
    assert await store.list_namespaces(suffix=(text,)) == (
        [namespace] if text != "*" else [("h", "*"), ("h", "other")]
    )
    assert await store.count(namespace) == 1
    await store.delete(namespace, text)
    assert await store.get(namespace, text) is None
    assert await store.count(("h",)) == 1


@pytest.mark.parametrize(
    "value",
    [
        {"v": "\0"},
        {"\0": 1},
        {"v": "\ud800"},
        {"v": math.nan},
        {"v": math.inf},
        {"v": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)},
        {"v": uuid.UUID(int=1)},
        {"v": decimal.Decimal(1)},
        {"v": b"bytes"},
        {"v": {1, 2}},
        {(1, 2): "key"},
        "text",
    ],
    ids=repr,
)
async def test_a_value_that_is_not_json_is_refused_and_nothing_is_written(
    store: Twin, value: object
) -> None:
    """The error names namespace and key, is a ValueError, and undoes the batch."""
    await store.put(("a",), "kept", {"v": 1})
    with pytest.raises(InvalidItemError, match=r"'the-key' in \('a', 'b'\)") as caught:
        await store.batch(
            [
                PutOp(("a",), "kept", None),
                PutOp(("a",), "new", {}),
                PutOp(("a", "b"), "the-key", value),  # type: ignore[arg-type]
            ]
        )
    assert isinstance(caught.value, ValueError)
    assert keys(await store.search(())) == ["kept"]


async def test_any_mapping_is_stored_and_embedded_as_the_object_it_holds(store: Twin) -> None:
    """Also one within another, and a tuple as an array."""
    value = collections.UserDict(text=collections.UserDict(about=("tea",)))
    await store.put(("a",), "k", value)
    (item,) = await store.search(("a",), query="tea")
    assert item.value == {"text": {"about": ["tea"]}}


async def test_a_value_may_be_nested_500_levels_deep(store: Twin) -> None:
    """Beyond that it is refused with its name, and so is one that holds itself."""
    value: dict[str, object] = {}
    for _ in range(499):
        value = {"text": value}
    await store.put(("a",), "k", value)
    assert (await store.get(("a",), "k")).value == value
    assert (await store.search(("a",), query="text"))[0].value == value
    itself: dict[str, object] = {}
    itself["itself"] = itself
    for refused in ({"text": value}, itself):
        with pytest.raises(InvalidItemError, match=r"'k' in \('a',\): nested more than 500 levels"):
            await store.put(("a",), "k", refused)


@pytest.mark.parametrize("namespace", [(), ("a.b",), ("a", ""), ("langgraph", "x"), ("a", 1)])
async def test_an_invalid_namespace_is_refused(store: Twin, namespace: tuple[str, ...]) -> None:
    """By LangGraph's rules: for labels everywhere, for the whole of a namespace by put()."""
    with pytest.raises(InvalidNamespaceError):
        await store.put(namespace, "k", {})
    if namespace in [("a.b",), ("a", ""), ("a", 1)]:
        for op in (PutOp(namespace, "k", {}), GetOp(namespace, "k"), SearchOp(namespace)):
            with pytest.raises(InvalidNamespaceError):
                await store.batch([PutOp(("a",), "k", {}), op])
    assert await store.search(()) == []


@pytest.mark.parametrize("key", ["\0", "\ud800", 1, None, b"k"])
async def test_a_key_that_cannot_be_stored_is_refused(store: Twin, key: object) -> None:
    """It would fail in the server, or be written as something that cannot be read back."""
    for op in (PutOp(("a",), key, {}), GetOp(("a",), key)):  # type: ignore[arg-type]
        with pytest.raises(InvalidItemError, match="the key"):
            await store.batch([PutOp(("a",), "k", {}), op])
    assert await store.search(()) == []


async def test_an_item_too_long_for_an_index_is_named_and_fails_alone(store: Twin) -> None:
    """The server would name its own index; a put of the same moment is not concerned."""
    too_long = random.Random(1).randbytes(2_000).hex()
    bad, good = store.put(("a",), too_long, {"text": "tea"}), store.put(("a",), "good", {})
    failed, written = await asyncio.gather(bad, good, return_exceptions=True)
    assert isinstance(failed, InvalidItemError)
    assert too_long[:50] in str(failed)
    assert written is None
    assert await store.get(("a",), too_long) is None
    assert keys(await store.search(("a",))) == ["good"]


async def test_a_key_that_is_a_number_is_its_text(store: Twin) -> None:
    """BaseStore makes it text on the way in and on the way out."""
    await store.put(("a",), 1, {})
    assert (await store.get(("a",), 1)).key == "1"
    await store.delete(("a",), 1)
    assert await store.get(("a",), "1") is None


async def test_a_store_without_an_index_leaves_no_vector_of_what_it_replaces(
    store: Twin, aurora: LocalAurora, sql: psycopg.Connection
) -> None:
    """Another store's search by meaning does not find a value by what it said before."""
    for key in ("updated", "deleted", "untouched"):
        await store.put(("a",), key, {"text": "tea"})
    kind = "asyncio-pool" if store.is_async else "blocking-pool"
    async with opened(kind, aurora, DATABASE) as plain:
        await plain.batch(
            [PutOp(("a",), "updated", {"text": "coal"}), PutOp(("a",), "deleted", None)]
        )
        await plain.put(("a",), "new", {"text": "coal"})
    assert keys(await store.search(("a",), query="tea")) == ["untouched"]
    assert sql.execute("SELECT key FROM store_vectors").fetchall() == [("untouched",)]
    assert sorted(keys(await store.search(("a",)))) == ["new", "untouched", "updated"]


async def test_a_statement_that_fails_leaves_its_own_error_and_nothing_in_the_log(
    store: Twin, sql: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Not psycopg's warnings of what came after it, while the rest was still being sent."""
    sql.execute("ALTER TABLE store ADD CONSTRAINT refused CHECK (key <> 'bad')")
    try:
        many = [PutOp(("a",), f"k{i}", {"text": "tea"}) for i in range(3_000)]
        for _ in range(5):
            with pytest.raises(psycopg.errors.CheckViolation):
                await store.batch([PutOp(("a",), "bad", {"text": "tea"}), *many])
    finally:
        sql.execute("ALTER TABLE store DROP CONSTRAINT refused")
    assert [it.getMessage() for it in caplog.records if it.name.startswith("psycopg")] == []
    await store.batch(many)
    assert await store.count(("a",)) == 3_000


# searching


async def test_a_search_returns_the_newest_first(store: Twin) -> None:
    """By the time of the last write, with everything an item has and no score."""
    for key in ("first", "second", "third"):
        await store.put(("a",), key, {"k": key})
    await store.put(("a",), "first", {"k": "again"})
    found = await store.search(("a",))
    assert keys(found) == ["first", "third", "second"]
    assert all(type(item) is SearchItem and item.score is None for item in found)
    assert found[0].value == {"k": "again"}
    assert found[0].created_at < found[1].created_at < found[0].updated_at


@pytest.mark.parametrize("query", [None, "tea"])
async def test_pages_are_full_and_disjoint_even_among_ties(store: Twin, query: str | None) -> None:
    """25 items of one moment and one score come in one order, whatever the page."""
    await store.batch([PutOp(("a",), f"k{i:02}", {"text": "tea"}) for i in range(25)])
    pages = [await store.search(("a",), query=query, limit=4, offset=o) for o in range(0, 28, 4)]
    assert [len(page) for page in pages] == [4, 4, 4, 4, 4, 4, 1]
    assert [key for page in pages for key in keys(page)] == [f"k{i:02}" for i in range(25)]
    assert await store.search(("a",), query=query, limit=0) == []
    assert keys(await store.search(("a",), query=query, limit=100, offset=24)) == ["k24"]


@pytest.mark.parametrize("page", [{"limit": -1}, {"offset": -1}])
async def test_a_page_below_zero_is_refused(store: Twin, page: dict[str, int]) -> None:
    """PostgreSQL would refuse it with an error of its own."""
    with pytest.raises(ConfigurationError, match=next(iter(page))):
        await store.search(("a",), **page)


@pytest.mark.parametrize("most", [2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**30])
async def test_a_page_larger_than_there_can_be_holds_everything(store: Twin, most: int) -> None:
    """As in memory, also beyond what the server can count: ``sys.maxsize`` is a way to say all."""
    await store.batch([PutOp(("a", str(i)), f"k{i}", {"text": "tea"}) for i in range(3)])
    for query in (None, "tea"):
        for filter_ in (None, {"text": "tea"}):
            asked = {"query": query, "filter": filter_}
            every = await store.search(("a",), limit=most, **asked)
            assert sorted(keys(every)) == ["k0", "k1", "k2"]
            found = await store.search(("a",), limit=most, offset=1, **asked)
            assert keys(found) == keys(every)[1:]
            assert await store.search(("a",), limit=most, offset=most, **asked) == []
    assert len(await store.list_namespaces(limit=most, max_depth=most)) == 3
    assert await store.list_namespaces(limit=most, offset=most) == []


@pytest.mark.parametrize("depth", [0, -1, 1.5, "1", True])
async def test_a_depth_that_counts_no_labels_is_refused(store: Twin, depth: object) -> None:
    """Instead of listing something else."""
    with pytest.raises(ConfigurationError, match="max_depth"):
        await store.list_namespaces(max_depth=depth)


async def test_a_prefix_means_whole_labels_and_no_wildcards(store: Twin) -> None:
    """Neither part of a label, nor case, nor ``_``, ``%`` or ``\\`` reaches a neighbour."""
    await store.batch([PutOp((label, "x"), label, {"text": "t"}) for label in LOOKALIKES])
    await store.batch([PutOp((label,), f"{label}/top", {"text": "t"}) for label in LOOKALIKES])
    for label in LOOKALIKES:
        for query in (None, "t"):
            found = await store.search((label,), query=query, limit=100)
            assert sorted(keys(found)) == sorted([label, f"{label}/top"])
            assert keys(await store.search((label, "x"), query=query)) == [label]
        assert await store.count((label,)) == 2
    assert len(await store.search((), limit=100)) == 2 * len(LOOKALIKES)


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ({"tag": "red"}, "ac"),
        ({"tag": "red", "n": 9}, "a"),
        ({"n": {"$gt": 9}}, "bc"),
        ({"n": {"$gte": 9, "$lt": 100}}, "ab"),
        ({"n": {"$ne": 9}}, "bcd"),
        ({"meta": {"lang": "en"}}, "ab"),
        ({"meta": {"lang": {"$ne": "en"}, "deep": {"x": 1}}}, "c"),
        ({"meta.deep.x": 1}, "ac"),
        ({"list": [1, 2]}, "a"),
        ({"list": {"$contains": 2}}, "ab"),
        ({"tag": {"$in": ["blue", "green"]}}, "b"),
        ({"tag": {"$nin": ["blue", "green"]}}, "acd"),
        ({"n": {"$exists": False}}, "d"),
        ({"$or": [{"n": 9}, {"tag": "blue"}]}, "ab"),
        ({"$and": [{"tag": "red"}, {"$not": {"n": 9}}]}, "c"),
        ({"tag": None}, "d"),
        ({}, "abcd"),
        ({"absent": 1}, ""),
    ],
    ids=str,
)
async def test_a_filter_narrows_every_kind_of_search(
    store: Twin, filter_: dict[str, object], expected: str
) -> None:
    """By recency, by meaning and when counting alike; numbers compare as numbers."""
    values = {
        "a": {"n": 9, "tag": "red", "meta": {"lang": "en", "deep": {"x": 1}}, "list": [1, 2]},
        "b": {"n": 10, "tag": "blue", "meta": {"lang": "en"}, "list": [2, 3, 4]},
        "c": {"n": 100, "tag": "red", "meta": {"lang": "de", "deep": {"x": 1, "y": 2}}},
        "d": {"other": 1},
    }
    await store.batch([PutOp(("f",), k, v | {"text": "same"}) for k, v in values.items()])
    assert keys(await store.search(("f",), filter=filter_)) == list(expected)
    assert keys(await store.search(("f",), filter=filter_, query="same")) == list(expected)
    assert await store.count(("f",), filter=filter_) == len(expected)


async def test_a_filter_that_means_nothing_is_refused(store: Twin) -> None:
    """Rather than matching everything, or nothing."""
    for filter_ in ({"n": {"$near": 1}}, {"$nor": []}, {"n": {"$gt": None}}, {"n": {"$in": 1}}):
        with pytest.raises(InvalidFilterError):
            await store.search(("a",), filter=filter_)


async def test_a_query_ranks_by_meaning(store: Twin) -> None:
    """Nearest first, scores falling; what has no text is not found, what has it is."""
    await store.put(("a",), "same", {"text": "aaaa"})
    await store.put(("a",), "near", {"text": "aaab"})
    await store.put(("a",), "far", {"text": "bbbb"})
    await store.put(("a",), "blank", {"text": " "})
    await store.put(("a",), "none", {"other": "aaaa"})
    await store.put(("b",), "elsewhere", {"text": "aaaa"})
    found = await store.search(("a",), query="aaaa")
    assert keys(found) == ["same", "near", "far"]
    scores = [item.score for item in found]
    assert scores[0] == pytest.approx(1, abs=1e-6)
    assert scores == sorted(scores, reverse=True)
    assert len({round(score, 3) for score in scores}) == 3
    assert len(await store.search(("a",), query=" ")) == 5, "a blank query is none"


async def test_index_false_keeps_an_item_from_queries_only(store: Twin) -> None:
    """It is found by recency and filter; an update with index=False forgets the old text."""
    await store.put(("a",), "hidden", {"text": "tea"}, index=False)
    await store.put(("a",), "once-seen", {"text": "tea"})
    assert keys(await store.search(("a",), query="tea")) == ["once-seen"]
    await store.put(("a",), "once-seen", {"text": "tea"}, index=False)
    assert await store.search(("a",), query="tea") == []
    assert keys(await store.search(("a",))) == ["once-seen", "hidden"]


async def test_an_index_list_names_what_an_item_is_found_by(store: Twin) -> None:
    """In place of the configured fields; lists of texts, nested paths and ``$`` included."""
    value = {"text": "aaaa", "title": "bbbb", "chunks": [{"t": "cccc"}, {"t": "dddd"}]}
    for paths, best in [
        (None, "aaaa"),
        (["title"], "bbbb"),
        (["chunks[*].t"], "dddd"),
        (["chunks[0].t"], "cccc"),
        (["title", "chunks[-1].t"], "dddd"),
    ]:
        await store.put(("a",), "k", value, index=paths)
        for text in ("aaaa", "bbbb", "cccc", "dddd"):
            (found,) = await store.search(("a",), query=text)
            is_indexed = text == best or (paths, text) in [
                (["chunks[*].t"], "cccc"),
                (["title", "chunks[-1].t"], "bbbb"),
            ]
            assert (found.score > 0.99) is is_indexed, (paths, text)
    await store.put(("a",), "k", {"only": "eeee"}, index=["$"])
    assert len(await store.search(("a",), query="eeee")) == 1


async def test_an_index_that_is_no_list_is_refused(store: Twin) -> None:
    """A single path would be taken for a list of letters, and index nothing."""
    for index in ("text", [1], {"text": True}):
        with pytest.raises(InvalidItemError, match="index="):
            await store.put(("a",), "k", {"text": "tea"}, index=index)


# namespaces


async def test_namespaces_are_listed_by_prefix_suffix_and_depth(store: Twin) -> None:
    """Distinct, in order, with ``*`` for any one label, truncated to max_depth."""
    every = [
        ("a",),
        ("a", "b"),
        ("a", "b", "c"),
        ("a", "bb"),
        ("a", "x", "c"),
        ("b", "b", "c"),
        ("c", "d", "e", "f"),
    ]
    await store.batch([PutOp(ns, str(i), {}) for ns in every for i in range(2)])
    listed = store.list_namespaces
    assert await listed() == every
    assert await listed(prefix=("a", "b")) == [("a", "b"), ("a", "b", "c")]
    assert await listed(prefix=("a", "*", "c")) == [("a", "b", "c"), ("a", "x", "c")]
    assert await listed(prefix=("*", "b")) == [("a", "b"), ("a", "b", "c"), ("b", "b", "c")]
    assert await listed(suffix=("c",)) == [("a", "b", "c"), ("a", "x", "c"), ("b", "b", "c")]
    assert await listed(suffix=("*", "c"), prefix=("a",)) == [("a", "b", "c"), ("a", "x", "c")]
    assert await listed(max_depth=1) == [("a",), ("b",), ("c",)]
    assert await listed(max_depth=2, prefix=("a",)) == [
        ("a",),
        ("a", "b"),
        ("a", "bb"),
        ("a", "x"),
    ]
    assert await listed(max_depth=9) == every
    assert await listed(limit=2, offset=3) == every[3:5]
    assert await listed(prefix=("none",)) == []
    assert await listed(limit=0) == []


async def test_an_emptied_namespace_is_not_listed(store: Twin) -> None:
    """A namespace is there as long as one of its items is."""
    await store.put(("a",), "k", {})
    await store.put(("b",), "k", {})
    await store.delete(("a",), "k")
    assert await store.list_namespaces() == [("b",)]


async def test_a_namespace_is_counted_and_deleted_with_all_below_it(store: Twin) -> None:
    """But nothing beside it; the empty namespace, which is everything, cannot be deleted."""
    for ns in (("a",), ("a", "b"), ("a", "b", "c"), ("ab",), ("b",)):
        await store.put(ns, "k", {"text": "tea"})
    assert await store.count(()) == 5
    assert await store.count(("a",)) == 3
    assert await store.count(("a", "b"), filter={"text": "tea"}) == 2
    assert await store.delete_namespace(("a", "b")) == 2
    assert await store.list_namespaces() == [("a",), ("ab",), ("b",)]
    assert await store.delete_namespace(("a", "b")) == 0
    assert len(await store.search((), query="tea")) == 3
    with pytest.raises(InvalidNamespaceError):
        await store.delete_namespace(())


# batches


async def test_a_batch_answers_in_order_and_reads_what_was_before_it(store: Twin) -> None:
    """Reads first, writes last, whatever the order of the operations."""
    await store.put(("a",), "k", {"v": "before", "text": "tea"})
    results = await store.batch(
        op
        for op in (
            PutOp(("a",), "k", {"v": "after", "text": "milk"}),
            GetOp(("a",), "k"),
            SearchOp(("a",), query="tea"),
            PutOp(("b",), "k", {}),
            ListNamespacesOp((MatchCondition("prefix", ("*",)),)),
            GetOp(("b",), "k"),
            SearchOp(("a",), filter={"v": "after"}),
            GetOp(("a",), "k"),
        )
    )
    assert results[0] is results[3] is results[5] is None
    assert results[1].value["v"] == results[7].value["v"] == "before"
    assert [item.value["v"] for item in results[2]] == ["before"]
    assert results[4] == [("a",)]
    assert results[6] == []
    assert (await store.get(("a",), "k")).value["v"] == "after"
    assert await store.batch([]) == []


async def test_the_last_operation_on_a_key_wins(store: Twin) -> None:
    """Within one batch, whatever the operations before it."""
    await store.put(("a",), "deleted", {"text": "tea"})
    await store.batch(
        [
            PutOp(("a",), "twice", {"v": 1}),
            PutOp(("a",), "twice", {"v": 2}),
            PutOp(("a",), "deleted", {"v": 1}),
            PutOp(("a",), "deleted", None),
            PutOp(("a",), "kept", None),
            PutOp(("a",), "kept", {"v": 3, "text": "milk"}),
        ]
    )
    found = {item.key: item.value["v"] for item in await store.search(("a",))}
    assert found == {"twice": 2, "kept": 3}
    assert keys(await store.search(("a",), query="tea")) == ["kept"]


async def test_a_batch_may_hold_thousands_of_operations(store: Twin) -> None:
    """The parameters of one statement are no limit."""
    await store.batch([PutOp(("n", str(i % 7)), f"{i:05}", {"i": i}) for i in range(3000)])
    results = await store.batch([GetOp(("n", str(i % 7)), f"{i:05}") for i in range(3000)])
    assert [item.value["i"] for item in results] == list(range(3000))


# expiry


async def test_an_expired_item_is_nowhere(store: Twin, sql: psycopg.Connection) -> None:
    """Not got, found, listed, counted or revived by a read, though nothing has swept it yet."""
    await store.put(("a",), "gone", {"text": "tea"}, ttl=10)
    await store.put(("b",), "here", {"text": "tea"}, ttl=10)
    expire(sql, "gone")
    for _ in range(2):  # the first read must not revive it for the second
        assert await store.get(("a",), "gone", refresh_ttl=True) is None
        assert keys(await store.search((), refresh_ttl=True)) == ["here"]
        assert keys(await store.search((), query="tea", refresh_ttl=True)) == ["here"]
        assert await store.list_namespaces() == [("b",)]
        assert await store.count(()) == 1
    assert minutes_left(sql, "gone") < 0


async def test_putting_over_an_expired_item_makes_a_new_one(
    store: Twin, sql: psycopg.Connection
) -> None:
    """What was there before counts as deleted."""
    await store.put(("a",), "k", {"v": 1}, ttl=10)
    first = await store.get(("a",), "k")
    expire(sql, "k")
    await store.put(("a",), "k", {"v": 2})
    item = await store.get(("a",), "k")
    assert item.value == {"v": 2}
    assert item.created_at > first.created_at
    assert minutes_left(sql, "k") is None


async def test_a_read_renews_an_item_unless_told_not_to(
    store: Twin, sql: psycopg.Connection
) -> None:
    """A get and both kinds of search restart the item's life."""
    reads = [
        lambda refresh: store.get(("a",), "k", refresh_ttl=refresh),
        lambda refresh: store.search(("a",), refresh_ttl=refresh),
        lambda refresh: store.search(("a",), query="tea", refresh_ttl=refresh),
    ]
    for read in reads:
        await store.put(("a",), "k", {"text": "tea"}, ttl=10)
        sql.execute("UPDATE store SET expires_at = now() + interval '5 min'")
        assert await read(False)
        assert minutes_left(sql, "k") < 6
        assert await read(True)
        assert minutes_left(sql, "k") > 9
        sql.execute("UPDATE store SET expires_at = now() + interval '5 min'")
        assert await read(None)
        assert minutes_left(sql, "k") > 9, "refresh_on_read is the default"


async def test_a_ttl_is_exact_and_ends_with_the_next_put(
    store: Twin, sql: psycopg.Connection
) -> None:
    """Fractions of minutes live and are renewed as such; a put without ttl is for ever."""
    for ttl in (0.5, 1.5, 90.25):
        await store.put(("a",), "k", {}, ttl=ttl)
        assert minutes_left(sql, "k") == pytest.approx(ttl, abs=0.1)
        sql.execute("UPDATE store SET expires_at = now() + interval '1 s'")
        await store.get(("a",), "k")
        assert minutes_left(sql, "k") == pytest.approx(ttl, abs=0.1)
    await store.put(("a",), "k", {})
    assert minutes_left(sql, "k") is None


async def test_a_sweep_deletes_what_has_expired_and_nothing_else(
    store: Twin, sql: psycopg.Connection
) -> None:
    """With its vectors, and it says how many items that were."""
    for key in ("gone", "later", "ever"):
        await store.put(("a",), key, {"text": "tea"}, ttl=None if key == "ever" else 10)
    expire(sql, "gone")
    assert await store.sweep_ttl() == 1
    assert await store.sweep_ttl() == 0
    assert sql.execute("SELECT key FROM store ORDER BY 1").fetchall() == [("ever",), ("later",)]
    assert sql.execute("SELECT DISTINCT key FROM store_vectors ORDER BY 1").fetchall() == [
        ("ever",),
        ("later",),
    ]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_configured_ttl_holds_where_none_is_given(
    kind: str, aurora: LocalAurora, sql: psycopg.Connection
) -> None:
    """ttl=None is for ever all the same; refresh_on_read=False leaves reads plain."""
    sql.execute("TRUNCATE store CASCADE")
    ttl = {"default_ttl": 10, "refresh_on_read": False}
    async with opened(kind, aurora, DATABASE, index=INDEX, ttl=ttl) as store:
        await store.put(("a",), "default", {})
        await store.put(("a",), "own", {}, ttl=3)
        await store.put(("a",), "ever", {}, ttl=None)
        assert minutes_left(sql, "default") == pytest.approx(10, abs=0.2)
        assert minutes_left(sql, "own") == pytest.approx(3, abs=0.2)
        assert minutes_left(sql, "ever") is None
        sql.execute("UPDATE store SET expires_at = now() + interval '1 min' WHERE key = 'default'")
        await store.get(("a",), "default")
        await store.search(("a",))
        assert minutes_left(sql, "default") < 2


# with the parent


async def test_the_parent_reads_what_we_wrote_and_we_what_it_wrote(
    store: Twin, aurora: LocalAurora
) -> None:
    """Both work on the same tables at the same time, so a team can switch in either direction."""
    await store.put(("ours",), "k", {"text": "aaaa"}, ttl=10)
    with PostgresStore.from_conn_string(aurora.admin_dsn_for(DATABASE), index=INDEX) as parent:
        parent.setup()
        assert parent.get(("ours",), "k").value == {"text": "aaaa"}
        assert parent.search((), query="aaaa")[0].score == pytest.approx(1, abs=1e-6)
        parent.put(("theirs",), "k", {"text": "bbbb"}, ttl=10)
        parent.put(("ours",), "k", {"text": "cccc"})
    assert (await store.get(("theirs",), "k")).value == {"text": "bbbb"}
    assert (await store.get(("ours",), "k")).value == {"text": "cccc"}
    assert [item.namespace for item in await store.search((), query="cccc")] == [
        ("ours",),
        ("theirs",),
    ]
    await store.put(("ours",), "k", {"text": "aaaa"})
    (best, _) = await store.search((), query="aaaa")
    assert best.score == pytest.approx(1, abs=1e-6), "what was embedded before the parent's put"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_query_without_an_index_is_ignored(
    kind: str, aurora: LocalAurora, sql: psycopg.Connection
) -> None:
    """As by InMemoryStore and the parent: frameworks send a query to every store they are given."""
    memory = InMemoryStore()
    async with opened(kind, aurora, DATABASE) as store:
        for key in ("one", "two"):
            await store.put(("ignored",), key, {"text": key})
            memory.put(("ignored",), key, {"text": key})
        found = await store.search(("ignored",), query="one")
        await store.delete_namespace(("ignored",))
    assert {item.key for item in found} == {"one", "two"}
    assert {item.key for item in memory.search(("ignored",), query="one")} == {"one", "two"}


@pytest.mark.parametrize("kind", [*KINDS, *PIPELINE_KINDS])
async def test_a_store_works_on_the_connection_that_set_it_up(
    kind: str, aurora: LocalAurora
) -> None:
    """Statements that were prepared before or while tables were altered are prepared again."""
    name = f"fresh_{kind.replace('-', '_')}"
    aurora.create_database(name)
    try:
        async with opened(kind, aurora, name, index=INDEX) as store:
            for _ in range(2):
                await store.setup()
                await store.put(("a",), "k", {"text": "tea"})
                assert keys(await store.search(("a",), query="tea")) == ["k"]
    finally:
        aurora.drop_database(name)


async def test_each_batch_is_kept_on_a_connection_without_autocommit(
    aurora: LocalAurora, sql: psycopg.Connection
) -> None:
    """A transaction of its own, from the first on, as on any other connection."""
    sql.execute("TRUNCATE store CASCADE")
    dsn = owner_dsn(aurora, DATABASE)
    with psycopg.connect(dsn) as blocking:
        AuroraStore(blocking, index=INDEX).put(("a",), "blocking", {"text": "tea"})
        async with await psycopg.AsyncConnection.connect(dsn) as on_loop:
            await AsyncAuroraStore(on_loop, index=INDEX).aput(("a",), "asyncio", {"text": "tea"})
            assert sql.execute("SELECT count(*) FROM store").fetchone() == (2,)
