"""A pytest plugin for the parent's own tests: puts our classes in place of the parent's.

Loaded by ``test_upstream_suite`` in a process of its own. What is left out is listed here, each
test with its reason.
"""

from __future__ import annotations

import os
import sys

import langgraph.checkpoint.postgres.aio
import langgraph.store.postgres
import pytest

from langgraph_aurora_store import AsyncAuroraSaver, AsyncAuroraStore, AuroraSaver, AuroraStore

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
    **dict.fromkeys(
        [
            "test_keep_latest_keeps_a_checkpoint_saved_while_it_runs[heads]",
            "test_keep_latest_keeps_a_checkpoint_saved_while_it_runs[blobs]",
            "test_keep_latest_refuses_a_thread_that_turns_delta_after_the_batch_check",
            "test_keep_latest_keeps_the_history_of_a_delta_checkpoint_saved_after_the_thread_check",
            "test_keep_latest_keeps_a_checkpoint_saved_meanwhile_whatever_its_id",
        ],
        "acts between two statements of the parent's, where ours is one statement; see"
        " tests/checkpoint/test_pruning.py",
    ),
    **dict.fromkeys(
        [
            f"{test}[shallow]"
            for test in ("test_combined_metadata", "test_search", "test_asearch", "test_null_chars")
        ],
        "of the parent's deprecated shallow savers, which are not ours",
    ),
}


def pytest_configure() -> None:
    langgraph.store.postgres.PostgresStore = AuroraStore
    langgraph.store.postgres.AsyncPostgresStore = AsyncAuroraStore
    langgraph.checkpoint.postgres.PostgresSaver = AuroraSaver
    langgraph.checkpoint.postgres.aio.AsyncPostgresSaver = AsyncAuroraSaver


def pytest_sessionstart() -> None:
    """Point their conftest, which pytest has loaded by now, at the local server."""
    sys.modules["tests.conftest"].DEFAULT_URI = os.environ["UPSTREAM_URI"]
    # The savers' tests append a database's name; the rest is in libpq's variables.
    sys.modules["tests.conftest"].DEFAULT_POSTGRES_URI = "postgresql:///"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [it for it in items if not {it.name, it.name.partition("[")[0]}.isdisjoint(LEFT_OUT)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
