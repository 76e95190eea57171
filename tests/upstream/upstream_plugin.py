"""A pytest plugin for the parent's own tests: puts our classes in place of the parent's.

Loaded by ``test_upstream_suite`` in a process of its own. What is left out is listed here, each
test with its reason.
"""

from __future__ import annotations

import os
import sys

import langgraph.store.postgres
import pytest

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore

LEFT_OUT = {
    "test_omit_expired_disabled_preserves_expired_rows": (
        "asserts the defect that expired items are returned until something sweeps them"
    ),
    "test_omit_expired_refresh_ttl_only_refreshes_live_rows": (
        "expects a write for a read that follows the put at once; we renew when 5 % of the ttl"
        " have passed"
    ),
    "test_abatch_uses_single_pool_checkout": (
        "counts the calls of a private function of the parent's, which we do not call"
    ),
}


def pytest_configure() -> None:
    langgraph.store.postgres.PostgresStore = AuroraStore
    langgraph.store.postgres.AsyncPostgresStore = AsyncAuroraStore


def pytest_sessionstart() -> None:
    """Point their conftest, which pytest has loaded by now, at the local server."""
    sys.modules["tests.conftest"].DEFAULT_URI = os.environ["UPSTREAM_URI"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if item.name.partition("[")[0] in LEFT_OUT]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
