"""What docs/langmem.md says of LangGraph and LangMem, asked of the versions that are installed."""

import re
import warnings
from pathlib import Path
from typing import TypedDict

import pytest
from langgraph.config import get_store
from langgraph.graph import START, StateGraph
from langgraph.store.memory import InMemoryStore

with warnings.catch_warnings():
    # Of another project: trustcall imports names from where LangGraph 1.0 moved them away.
    warnings.simplefilter("ignore", DeprecationWarning)
    from langmem.errors import ConfigurationError

PAGE = Path(__file__).parents[2] / "docs" / "langmem.md"


class State(TypedDict, total=False):
    seen: object


@pytest.mark.parametrize("has_store", [True, False])
@pytest.mark.parametrize("is_node", [True, False])
def test_the_outermost_graphs_store_counts(*, is_node: bool, has_store: bool) -> None:
    """A graph's own is used where it is invoked alone, and lost below another graph."""
    own, outer = InMemoryStore(), InMemoryStore() if has_store else None
    graph = StateGraph(State).add_node("look", lambda _: {"seen": get_store()})
    inner = graph.add_edge(START, "look").compile(store=own)
    assert inner.invoke({})["seen"] is own
    below = inner if is_node else lambda _: inner.invoke({})
    around = StateGraph(State).add_node("below", below).add_edge(START, "below")
    assert around.compile(store=outer).invoke({})["seen"] is outer


def test_a_missing_user_id_is_no_ordinary_error() -> None:
    """`except Exception`, as in the executor's thread, does not catch it."""
    assert not issubclass(ConfigurationError, Exception)


def test_the_snippets_of_the_page_run() -> None:
    """The label that the comment shows is the one that is made."""
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, dict[str, dict[str, str]]] = {}
    exec(snippet, names)
    assert names["config"]["configurable"]["user_id"] in snippet.partition("# ")[2]
