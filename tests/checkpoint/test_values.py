"""What the parent's savers do to values, and what ours do: the rows S4 to S9 and G3."""

import enum
import logging
import math
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.serde.base import CipherProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from langgraph_aurora_store.checkpoint.serialization import is_large
from langgraph_aurora_store.errors import InvalidCheckpointError
from tests.support.saver_comparison import (
    SaverSide,
    aput,
    checkpoint,
    ours,
    put,
    saver_side,
    thread,
    values_of,
)

__all__ = ["ours", "saver_side"]

SURROGATE = "half \ud800 of a pair"


class Colour(enum.StrEnum):
    RED = "red"


REFUSED_OR_CHANGED = {
    "nul": "a\0b",
    "surrogate": SURROGATE,
    "inf": math.inf,
    "minus inf": -math.inf,
    "whole float": 1e16,
    "minus zero": -0.0,
    "enum": Colour.RED,
}


@pytest.mark.parametrize("name", REFUSED_OR_CHANGED)
def test_s4_s5_values_come_back_as_they_were(saver_side: SaverSide, name: str) -> None:
    """What JSON refuses or changes, in a channel of its own."""
    value = REFUSED_OR_CHANGED[name]
    with saver_side.saver() as saver, saver_side.only_ours(AssertionError, psycopg.DataError):
        put(saver, thread("t"), {"channel": value})
        found = values_of(saver, thread("t"))["channel"]
        assert (type(found), repr(found)) == (type(value), repr(value))


async def test_s4_nan_comes_back(saver_side: SaverSide) -> None:
    async with saver_side.async_saver() as saver:
        with saver_side.only_ours(psycopg.DataError):
            await aput(saver, thread("t"), {"channel": math.nan})
            found = await saver.aget_tuple(thread("t"))
            assert math.isnan(found.checkpoint["channel_values"]["channel"])


@pytest.mark.parametrize(
    "value", [None, True, False, 0, -1, 2**70, 1.5, "", "text", "\u20ac \U0001f600", b"bytes", [1]]
)
def test_plain_values_come_back_on_either_side(saver_side: SaverSide, value: object) -> None:
    with saver_side.saver() as saver:
        put(saver, thread("t"), {"channel": value})
        found = values_of(saver, thread("t"))["channel"]
        assert (type(found), found) == (type(value), value)


def test_s4_a_write_keeps_half_of_a_pair(saver_side: SaverSide) -> None:
    """The parent's serializer makes a question mark of it, in silence."""
    with saver_side.saver() as saver:
        config = put(saver, thread("t"))
        saver.put_writes(config, [("channel", SURROGATE)], "task")
        with saver_side.only_ours():
            assert saver.get_tuple(config).pending_writes == [("task", "channel", SURROGATE)]


def test_s4_a_value_that_cannot_be_serialised_names_its_channel(saver_side: SaverSide) -> None:
    class Strange:
        __slots__ = ()

        def __reduce__(self) -> Any:
            raise NotImplementedError

    with saver_side.saver() as saver:
        with pytest.raises(TypeError) as caught:
            put(saver, thread("t"), {"strange channel": [iter(()), Strange()]})
        with saver_side.only_ours():
            assert "strange channel" in "".join(getattr(caught.value, "__notes__", []))
        assert saver.get_tuple(thread("t")) is None


REFUSED_METADATA = {
    "nested nan": ({"a": {"b": [0, math.nan]}}, r"'a\.b\[1\]' is a number that is not finite"),
    "inf": ({"a": math.inf}, "'a' is a number that is not finite"),
    "surrogate": ({"a": SURROGATE}, "'a' is half of a surrogate pair"),
    "datetime": ({"when": datetime(2026, 1, 1, tzinfo=UTC)}, "'when' is a datetime"),
}


@pytest.mark.parametrize("name", REFUSED_METADATA)
def test_s4_metadata_that_json_cannot_hold_is_named(saver_side: SaverSide, name: str) -> None:
    """Before anything is written, and without its value."""
    metadata, message = REFUSED_METADATA[name]
    with saver_side.saver() as saver:
        with (
            saver_side.only_ours(psycopg.DataError, TypeError),
            pytest.raises(InvalidCheckpointError, match=message),
        ):
            put(saver, thread("t"), {"items": [1]}, metadata=metadata)
        if saver_side.is_ours:
            assert saver_side.sql("SELECT count(*) FROM checkpoint_blobs") == [(0,)]


def test_s4_nul_is_dropped_from_all_metadata(saver_side: SaverSide) -> None:
    """The parent drops it from the texts at the top, and fails on others."""
    with saver_side.saver() as saver, saver_side.only_ours(psycopg.DataError):
        put(saver, thread("t"), metadata={"top": "\0a", "below": {"k": ["b\0"]}})
        found = saver.get_tuple(thread("t")).metadata
        assert found == {"top": "a", "below": {"k": ["b"]}}


def test_g3_an_unchanged_text_is_stored_once(saver_side: SaverSide) -> None:
    """The parent writes it into the row of each checkpoint."""
    text = "x" * 10_000
    with saver_side.saver() as saver:
        config = put(saver, thread("t"), {"text": text})
        for _ in range(20):
            made = checkpoint({"text": text})
            config = saver.put(config, made, {}, {})
        assert values_of(saver, config) == {"text": text}
        with saver_side.only_ours():
            (size,) = saver_side.sql("SELECT sum(length(checkpoint::text)) FROM checkpoints")[0]
            assert size < len(text)
        with saver_side.only_ours():
            assert saver_side.sql("SELECT count(*) FROM checkpoint_blobs") == [(1,)]


def switched(side: SaverSide, saver: Any) -> Any:
    """The other side's saver on the same pool."""
    return SaverSide(not side.is_ours, side.database).saver_class(saver.conn)


def test_g3_a_text_that_the_other_side_stored_is_not_lost(saver_side: SaverSide) -> None:
    """Where the parent inlined it there is no blob, though the text has not changed since."""
    values = {"text": "kept", "number": 1.5, "items": ["kept"], "none": None, "flag": True}
    with saver_side.saver() as first:
        second = switched(saver_side, first)
        config = put(first, thread("t"), values)
        for saver in (second, first, second):
            assert values_of(saver, config) == values
            config = saver.put(config, checkpoint(values), {}, {})
            saver.prune(["t"])
            assert values_of(first, config) == values_of(second, config) == values


def test_the_two_classes_continue_each_others_threads(saver_side: SaverSide) -> None:
    """Writes, sends of before v4, namespaces and lists as well."""
    with saver_side.saver() as first:
        second = switched(saver_side, first)
        config = put(first, thread("t"), {"text": "a"}, v=2)
        second.put_writes(config, [("__pregel_tasks", "send"), ("text", "b")], "task")
        child = put(second, config, {"text": "b"}, versions={"text": "2"}, v=2)
        put(first, thread("t", checkpoint_ns="inner"), {"n": 1})
        for saver in (first, second):
            assert saver.get_tuple(config).pending_writes[1] == ("task", "text", "b")
            assert values_of(saver, child) == {"text": "b", "__pregel_tasks": ["send"]}
            listed = [it.checkpoint["channel_values"] for it in saver.list(thread("t"))]
            assert listed == [{"text": "b", "__pregel_tasks": ["send"]}, {"text": "a"}]


class Shifted(CipherProtocol):
    """A cipher that anyone can break, which leaves no text as it was."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "shifted", bytes((byte + 1) % 256 for byte in plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        return bytes((byte - 1) % 256 for byte in ciphertext)


@pytest.mark.parametrize("value", ["4111 1111 1111 1111", 4111_1111_1111_1111, 0.41111111])
def test_s6_with_a_cipher_no_value_is_stored_in_clear(saver_side: SaverSide, value: object) -> None:
    """Not even where an older checkpoint had it in clear, or the value has not changed."""
    serde = EncryptedSerializer(Shifted())
    with saver_side.saver(serde=serde) as saver:
        put(saver, thread("t"), {"card": value, "flag": True})
        saver.put(thread("t"), checkpoint({"card": value, "flag": True}), {}, {})
        assert values_of(saver, thread("t")) == {"card": value, "flag": True}
        with saver_side.only_ours():
            rows = saver_side.sql("SELECT checkpoint::text FROM checkpoints")
            assert not any("1111" in row for (row,) in rows)


def test_s6_a_value_that_would_bypass_the_cipher_is_refused(saver_side: SaverSide) -> None:
    """A channel without a version has no blob, so the parent writes it into the row."""
    with (
        saver_side.saver(serde=EncryptedSerializer(Shifted())) as saver,
        saver_side.only_ours(pytest.fail.Exception),
        pytest.raises(InvalidCheckpointError, match="channel 'card' has no version"),
    ):
        put(saver, thread("t"), {"card": "4111"}, versions={})


def test_a_value_without_a_version_is_kept_as_the_parent_keeps_it(saver_side: SaverSide) -> None:
    """In the row, where a blob could not be found."""
    with saver_side.saver() as saver:
        put(saver, thread("t"), {"text": "a", "number": 1.5}, versions={})
        assert values_of(saver, thread("t")) == {"text": "a", "number": 1.5}
        with pytest.raises((InvalidCheckpointError, psycopg.DataError)):
            put(saver, thread("u"), {"text": "a\0"}, versions={})


async def test_s7_a_strict_serializer_is_taken_everywhere(saver_side: SaverSide) -> None:
    """The parent's blocking from_conn_string takes none."""
    serde = JsonPlusSerializer(allowed_msgpack_modules=[])
    dsn = saver_side.database.owner_dsn
    async with saver_side.async_saver_class.from_conn_string(dsn, serde=serde) as made:
        assert made.serde is serde
    with (
        saver_side.only_ours(TypeError),
        saver_side.saver_class.from_conn_string(dsn, serde=serde) as saver,
    ):
        assert saver.serde is serde


def test_s9_a_thread_is_found_by_a_whole_number(saver_side: SaverSide) -> None:
    with saver_side.saver() as saver:
        config = put(saver, thread(17), {"items": [1]})
        saver.put_writes(config, [("items", [2])], "task")
        with saver_side.only_ours(psycopg.errors.UndefinedFunction):
            found = saver.get_tuple(thread(17))
            assert found.checkpoint["channel_values"] == {"items": [1]}
            assert len(found.pending_writes) == 1
            assert len(list(saver.list(thread(17)))) == 1
            assert saver.get_delta_channel_history(config=thread(17), channels=["items"])
            saver.delete_thread(17)
            assert saver.get_tuple(thread(17)) is None


async def test_s9_by_the_asyncio_saver_too(saver_side: SaverSide) -> None:
    async with saver_side.async_saver() as saver:
        await aput(saver, thread(17), {"items": [1]})
        with saver_side.only_ours(psycopg.errors.UndefinedFunction):
            assert await saver.aget_tuple(thread(17)) is not None
            assert len([it async for it in saver.alist(thread(17))]) == 1
            assert await saver.aget_delta_channel_history(config=thread(17), channels=["items"])


def test_errors_hold_no_value(ours: SaverSide, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the message nor the log, at any level."""
    caplog.set_level(logging.DEBUG)
    with ours.saver(serde=EncryptedSerializer(Shifted())) as saver:
        for given in ({"versions": {}}, {"metadata": {"secret": math.nan, "n": {"s": SURROGATE}}}):
            with pytest.raises(InvalidCheckpointError) as caught:
                put(saver, thread("t"), {"channel": SURROGATE}, **given)
            assert "half \\ud800" not in str(caught.value)
    assert "half \\ud800" not in caplog.text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], False),
        (["x" * 100, [1, 2, {"a": b"b"}]], False),
        (["x" * 40_000], True),
        ([["x" * 1000] * 40], True),
        ([{"deep": [{"er": "x" * 40_000}]}], True),
        ([list(range(1000))], True),
        ([object()] * 40, True),
    ],
)
def test_what_is_large_is_guessed(values: list[Any], expected: bool) -> None:
    assert is_large(values) is expected
