"""The checker of histories passes what can be explained and nothing else."""

from itertools import permutations
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.history_checker import Operation, violations


def write(value: str, begin: float, end: float = inf) -> Operation:
    """Acknowledged at ``end``, or never."""
    return Operation("write", "k", value, begin, end)


def read(value: str | None, begin: float, end: float | None = None) -> Operation:
    return Operation("read", "k", value, begin, begin + 0.5 if end is None else end)


EXPLAINED = {
    "nothing": [],
    "one after another": [read(None, 0), write("a", 1, 2), read("a", 3), write("b", 4, 5)],
    "a write seen before it is acknowledged": [write("a", 1, 9), read("a", 2), read("a", 10)],
    "two writes at once, in the other order": [
        write("a", 1, 5),
        write("b", 2, 4),
        read("b", 4.2, 4.3),
        read("a", 6),
    ],
    "a failed write that was applied": [write("a", 1, 2), write("b", 3), read("b", 5)],
    "a failed write that was not": [write("a", 1, 2), write("b", 3), read("a", 5)],
    "a failed write that was applied late": [
        write("a", 1, 2),
        write("b", 3),
        read("a", 4),
        read("b", 5),
    ],
    "reads at once that disagree": [
        write("a", 1, 2),
        write("b", 3, 6),
        read("b", 4, 5.8),
        read("a", 3.5, 5.9),
    ],
}
BROKEN = {
    "a lost write": ([write("a", 1, 2), write("b", 3, 4), read("a", 5)], "read of a"),
    "a write lost before anything": ([write("a", 1, 2), read(None, 3)], "read of None"),
    "a stale read after a newer one": (
        [write("a", 1, 2), write("b", 3, 9), read("b", 4), read("a", 5)],
        "read of a",
    ),
    "a stale read after one of a failed write": (
        [write("a", 1, 2), write("b", 3), read("b", 4), read("a", 5)],
        "read of a",
    ),
    "a failed write that undoes a later one": (
        [write("a", 1), read("a", 2), write("b", 3, 4), read("b", 5), read("a", 6)],
        "read of b",
    ),
    "a write applied twice": (
        [write("a", 1, 2), write("b", 3, 4), read("b", 5), read("a", 6)],
        "read of b",
    ),
    "a value from nowhere": ([write("a", 1, 2), read("x", 3)], "never written"),
    "a value before its write": ([read("a", 1), write("a", 2, 3)], "before the write of a"),
    "a key that was there and is not": (
        [write("a", 1), read("a", 2), read(None, 3)],
        "read of None",
    ),
}


@pytest.mark.parametrize("history", EXPLAINED.values(), ids=EXPLAINED)
def test_what_can_be_explained_passes(history):
    """Whatever order the operations are listed in."""
    assert violations(history) == []
    assert violations(reversed(history)) == []


@pytest.mark.parametrize(("history", "words"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_explained_is_told(history, words):
    """With the key and the operations that contradict each other."""
    [told] = violations(history)
    assert told.startswith("k: ")
    assert words in told
    assert violations(reversed(history))


def test_keys_are_registers_of_their_own():
    """What is wrong with one says nothing of another."""
    other = Operation("read", "other", None, 5, 6)
    assert violations([write("a", 1, 2), read("a", 3), other]) == []


def test_a_value_must_not_be_written_twice():
    """For then a read does not tell which write it found."""
    with pytest.raises(ValueError, match="a was written twice"):
        violations([write("a", 1, 2), write("a", 3, 4)])


times = st.integers(0, 8)


@st.composite
def histories(draw: st.DrawFn) -> list[Operation]:
    """Few operations, of which many overlap."""
    found = []
    for value in "abc"[: draw(st.integers(1, 3))]:
        begin = draw(times)
        found.append(write(value, begin, draw(st.sampled_from([begin + 1, begin + 3, inf]))))
    for _ in range(draw(st.integers(0, 3))):
        begin = draw(times) + 0.5
        value = draw(st.sampled_from([None, *(o.value for o in found if o.kind == "write")]))
        found.append(read(value, begin, begin + draw(st.integers(1, 3))))
    return found


def is_explained(history: list[Operation]) -> bool:
    """By trying every order, with and without each write that failed."""
    maybe = [o for o in history if o.end == inf]
    for mask in range(2 ** len(maybe)):
        left_out = [o for number, o in enumerate(maybe) if mask >> number & 1]
        if any(map(holds, permutations([o for o in history if o not in left_out]))):
            return True
    return False


def holds(order: tuple[Operation, ...]) -> bool:
    value = None
    for number, operation in enumerate(order):
        if any(later.end < operation.begin for later in order[number + 1 :]):
            return False
        if operation.kind == "write":
            value = operation.value
        elif operation.value != value:
            return False
    return True


@settings(max_examples=150, deadline=None)
@given(histories())
def test_the_checker_agrees_with_trying_every_order(history):
    """On small histories, which are explained about as often as not."""
    assert (violations(history) == []) == is_explained(history)
