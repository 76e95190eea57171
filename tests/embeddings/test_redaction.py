"""Quotations of what was sent are found in a service's message, in bounded time."""

import asyncio
import json
import random
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from langgraph_aurora_store.embeddings import redaction
from langgraph_aurora_store.embeddings.redaction import attach_cause, quotes, service_words
from langgraph_aurora_store.errors import EmbeddingError
from tests.support import openai_service as openai
from tests.support.embedding_rigs import openai_rig

LINE = "the memory of a user who likes tea and paints a boat in Turin every spring"
WORDS = LINE.split()
LONGEST_S = 0.5  # about 0.01 s of a quiet machine's time; a product of the lengths takes seconds


def texts_of(count: int, words: int, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=words)) for _ in range(count)]


def reversed_words(length: int) -> str:
    """A message that quotes nothing, and shares some letters with every text."""
    return " ".join(word[::-1] for word in texts_of(1, length)[0].split())[:length]


@given(
    st.text(max_size=60), st.text(min_size=12, max_size=40), st.text(max_size=60), st.integers(0)
)
@example("Invalid 'input': ", 'Frida said: "I paint', "…", 0)
@example("", "à jamais\nà jamais", "", 5)
@example("", "\ud800abcdefghijkl", "", 0)
def test_every_run_of_twelve_characters_is_found(
    before: str, secret: str, after: str, place: int
) -> None:
    """Wherever the run begins in the text, and in the message, raw or as JSON spells it."""
    start = place % (len(secret) - 11)
    run = secret[start : start + 12]
    assert quotes(before + run + after, [secret])
    spelt = json.dumps(secret)[1:-1]
    at = place % (len(spelt) - 11)
    assert quotes(before + spelt[at : at + 12] + after, [secret])


@given(st.text("ab ", max_size=80), st.lists(st.text("ab ", min_size=1, max_size=40), max_size=4))
def test_what_shares_no_run_is_shown(message: str, secrets: list[str]) -> None:
    """For texts of plain letters the answer is that of comparing every run with every text."""
    runs = [message[start : start + 12] for start in range(len(message) - 11)]
    long = any(run in secret for run in runs for secret in secrets)
    padded = f"<{message}>"
    short = any(
        padded[at : at + len(secret)] == secret
        and not padded[at - 1].isalnum()
        and not padded[at + len(secret)].isalnum()
        for secret in secrets
        if len(secret) < 12
        for at in range(1, len(padded) - len(secret))
    )
    assert quotes(message, secrets) == (long or short)


def test_what_lies_behind_the_head_is_not_shown() -> None:
    """A long message is looked through, and shown, at its beginning only."""
    message = "too busy " + " " * 8000 + "secret words of a user"
    shown = service_words(message, ["secret words of a user"])
    assert shown == "too busy…"
    error = EmbeddingError("failed")
    attach_cause(error, ValueError("x" * 20_000), [])
    assert error.__cause__ is None


@pytest.mark.parametrize("count", [400, 2048])
def test_a_long_message_about_many_texts_is_looked_through_at_once(count: int) -> None:
    """64 kB of message, a megabyte of texts, or as many short ones as a request may hold."""
    texts = texts_of(count, 500 if count == 400 else 1)
    texts = [f"{text} {number}" for number, text in enumerate(texts)]
    message = reversed_words(65_536)
    started = time.process_time()
    assert not quotes(message[: redaction.LONGEST_HEAD], texts)
    assert service_words(message, texts).startswith(message[:100])
    assert time.process_time() - started < LONGEST_S


def test_a_message_of_one_letter_is_looked_through_at_once() -> None:
    """Every place of it resembles every place of every text, and no run is shared."""
    texts = [("0" * 11 + str(number % 9 + 1)) * 160 for number in range(500)]
    begun = time.perf_counter()
    assert not quotes("0" * 11 + "x" + "x0" * 2_000, texts)
    assert not quotes("x".join(["0" * 11] * 340), texts)
    assert quotes("0" * 4_096, [*texts, "0" * 12])
    assert time.perf_counter() - begun < 4 * LONGEST_S


async def test_the_event_loop_goes_on_while_a_failure_is_explained() -> None:
    """A refusal of 64 kB to a request of 400 texts of 2 kB holds the loop up for a moment only."""
    with openai.OpenAI() as service:
        embeddings = openai_rig(service, "async").embeddings(deadline_s=1)
        service.next(openai.error(422, reversed_words(65_536)))
        longest, running = 0.0, True

        async def watch() -> None:
            nonlocal longest
            while running:
                started = time.perf_counter()
                await asyncio.sleep(0)
                longest = max(longest, time.perf_counter() - started)

        watching = asyncio.ensure_future(watch())
        with pytest.raises(EmbeddingError, match="422"):
            await embeddings.aembed_documents(texts_of(128, 400, seed=1))
        running = False
        await watching
    assert longest < LONGEST_S
