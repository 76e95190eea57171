"""Labels made of any text: reversible, without collisions, and taken by every store."""

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from langgraph.store.base import InvalidNamespaceError
from langgraph.store.memory import InMemoryStore

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore, decode_label, encode_label
from tests.support.database import Database
from tests.support.store_kinds import arguments

USERS = ["ada@example.com", "ada@example~2Ecom", "42", "4.2", "", "langgraph", "a%b_c", "Ёлка\\\n"]
ANY_TEXT = st.text(st.characters(codec=None))


@given(ANY_TEXT)
@example("")
@example("langgraph")
@example("~")
@example("~6Canggraph")
@example("\ud800.\0")
def test_a_label_is_legal_and_gives_its_text_back(text: str) -> None:
    """LangGraph takes it as any label of a namespace, the first included."""
    label = encode_label(text)
    assert decode_label(label) == text
    InMemoryStore().put((label,), "k", {})
    assert not re.search(r"[.%\\\x00-\x1f\x7f]", label)
    label.encode()


@given(ANY_TEXT, ANY_TEXT)
@example("a.b", "a~2Eb")
@example("", "~")
def test_two_texts_have_two_labels(one: str, other: str) -> None:
    """Neither takes the other's memories."""
    assert (encode_label(one) == encode_label(other)) == (one == other)


@given(ANY_TEXT)
def test_a_label_of_something_else_is_refused(label: str) -> None:
    """What decodes is exactly what encodes."""
    try:
        text = decode_label(label)
    except InvalidNamespaceError:
        return
    assert encode_label(text) == label


@pytest.mark.parametrize("label", ["a.b", "a~2eb", "~41", "~FF", "a~", "langgraph", "", 42, None])
def test_what_no_text_has_as_its_label_is_refused(label: Any) -> None:
    """Spelt otherwise, cut off, or no text."""
    with pytest.raises(InvalidNamespaceError, match="no label"):
        decode_label(label)


@pytest.mark.parametrize("value", [42, None, b"ada", ("ada",)])
def test_what_is_no_text_is_refused_with_the_remedy(value: Any) -> None:
    """A number and its spelling would else be one user."""
    with pytest.raises(InvalidNamespaceError, match=r"str\(\)"):
        encode_label(value)


def test_plain_names_stay_as_they_are() -> None:
    """A label that is in use already needs no change."""
    for text in ("ada", "user-1_B", "user@host", "søren", "a b", "0f3c"):
        assert encode_label(text) == text
    assert encode_label("ada@example.com") == "ada@example~2Ecom"


async def test_each_user_has_memories_of_their_own(database: Database) -> None:
    """In both stores, by get, by search and in the list of namespaces."""
    with AuroraStore.from_cluster(**arguments(database)) as store:
        store.setup()
        for user in USERS:
            store.put((encode_label(user), "notes"), "k", {"user": user})
        for user in USERS:
            assert [it.value["user"] for it in store.search((encode_label(user),))] == [user]
        listed = store.list_namespaces()
        assert {decode_label(namespace[0]) for namespace in listed} == set(USERS)
    async with AsyncAuroraStore.from_cluster(**arguments(database)) as store:
        for user in USERS:
            found = await store.aget((encode_label(user), "notes"), "k")
            assert found is not None
            assert found.value["user"] == user
