"""docs/searching.md: what it shows is what a store answers."""

from __future__ import annotations

import doctest
from pathlib import Path

from langgraph_aurora_store import AuroraStore
from langgraph_aurora_store.local import LocalAurora
from tests.support.store_kinds import DIMS, Letters, owner_dsn, set_up

PAGE = Path(__file__).parents[2] / "docs" / "searching.md"


def test_the_page_shows_what_a_store_answers(aurora: LocalAurora) -> None:
    """Each example as it stands, in order, on empty tables."""
    index = {"embed": Letters(), "dims": DIMS, "fields": ["content"]}
    with (
        set_up(aurora, "searching", index=index),
        AuroraStore.from_conn_string(owner_dsn(aurora, "searching"), index=index) as store,
    ):
        text = PAGE.read_text(encoding="utf-8").replace("```", "")
        test = doctest.DocTestParser().get_doctest(text, {"store": store}, PAGE.name, None, 0)
        told: list[str] = []
        outcome = doctest.DocTestRunner(verbose=False).run(test, out=told.append)
    assert outcome.attempted >= 10
    assert outcome.failed == 0, "".join(told)
