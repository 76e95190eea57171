#!/usr/bin/env bash
# langgraph 1.2.22: a graph that was compiled with a store of its own does not see it when another
# graph runs it as a node. It sees the outer graph's store, or None, without a warning. Remedy: give
# the store to the outermost graph.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip --disable-pip-version-check install -qq \
  langgraph==1.2.22

"$work/venv/bin/python" - <<'PYTHON'
import sys

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.store.memory import InMemoryStore

seen = []


def remember(state: dict, runtime: Runtime) -> dict:
    """A node that notes which store it is given."""
    seen.append(runtime.store)
    return {}


def compiled(node, store=None):
    graph = StateGraph(dict)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    graph.add_edge("node", END)
    return graph.compile(store=store)


own = InMemoryStore()
inner = compiled(remember, own)
inner.invoke({})
compiled(inner).invoke({})
compiled(inner, InMemoryStore()).invoke({})
names = ["its own" if store is own else "none" if store is None else "another" for store in seen]
print(f"seen by a graph compiled with a store: alone {names[0]}, as a node {names[1]}, as a node of"
      f" a graph with a store {names[2]}")
sys.exit(0 if names == ["its own", "none", "another"] else "changed")
PYTHON
