"""Deleting what is no longer wanted, in batches: each a transaction of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from psycopg.types.json import Jsonb

from langgraph_aurora_store.checkpoint import statements
from langgraph_aurora_store.checkpoint.statements import in_schema
from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.sql.flow import Flow, Rows, Statement, Transaction
from langgraph_aurora_store.validation import brief, within

logger = logging.getLogger(__name__)

# How many checkpoints or blobs a transaction deletes, and in how many threads a statement looks.
BATCH, THREADS = 1_000, 100
STRATEGIES = ("keep_latest", "delete")
_MOST_KEPT = 2**31 - 1
# The beginning of the Gregorian calendar, where UUIDs begin, before that of Unix: RFC 9562, 5.6.
_UUID_EPOCH = 0x01B21DD213814000


def first_id_at(moment: datetime) -> str:
    """The least id of a checkpoint made from a moment on, a UUID of version 6 as LangGraph's."""
    ticks = int(moment.timestamp() * 10_000_000) + _UUID_EPOCH
    return f"{ticks >> 28:08x}-{ticks >> 12 & 0xFFFF:04x}-6{ticks & 0xFFF:03x}-0000-000000000000"


def prune(
    thread_ids: Sequence[str] | None,
    *,
    strategy: str,
    keep_last: int,
    older_than: timedelta | None,
    now: datetime,
    schema: str | None,
) -> Flow[None]:
    """Delete checkpoints as `AuroraSaver.prune` says."""
    if isinstance(thread_ids, str):
        raise TypeError("thread_ids must be a sequence of thread IDs, not a str")
    if strategy not in STRATEGIES:
        raise ValueError(f"Unknown prune strategy: {brief(strategy)}")
    if strategy == "delete":
        yield from _delete(thread_ids, keep_last, older_than, schema)
        return
    given = {
        "keep": within("keep_last", keep_last, 1, _MOST_KEPT),
        "cutoff": first_id_at(now - older_than) if older_than is not None else None,
        "batch": BATCH,
    }
    if thread_ids is None:
        yield from _prune_all(given, schema)
    else:
        yield from _prune_named([str(it) for it in thread_ids], given, schema)


def delete_for_runs(run_ids: Sequence[str], schema: str | None) -> Flow[None]:
    """Delete the checkpoints of these runs, their writes, and blobs that nothing else uses."""
    runs = [Jsonb({"run_id": str(it)}) for it in run_ids]
    threads: set[str] = set()
    deleted = BATCH if runs else 0
    while deleted == BATCH:
        given = {"runs": runs, "batch": BATCH}
        ((deleted, of),) = yield from _write(statements.DELETE_RUNS, given, schema)
        threads.update(of or ())
    yield from _delete_unused_blobs(sorted(threads), schema)


def delete_idle_threads(idle_for: timedelta, now: datetime, schema: str | None) -> Flow[int]:
    """Delete the threads without a checkpoint since; how many there were."""
    cutoff = first_id_at(now - idle_for)
    total = 0
    after: str | None = ""
    while after is not None:
        given = {"after": after, "batch": THREADS, "cutoff": cutoff}
        ((after, deleted),) = yield from _write(statements.DELETE_IDLE_THREADS_AFTER, given, schema)
        total += deleted
    return total


def _delete(
    thread_ids: Sequence[str] | None,
    keep_last: int,
    older_than: timedelta | None,
    schema: str | None,
) -> Flow[None]:
    if thread_ids is None or keep_last != 1 or older_than is not None:
        raise ConfigurationError(
            "strategy='delete' deletes whole threads: pass thread_ids= and neither keep_last= nor"
            " older_than="
        )
    if thread_ids:
        threads = [str(it) for it in thread_ids]
        yield from _write(statements.DELETE_THREADS, {"threads": threads}, schema)


def _prune_named(threads: list[str], given: Mapping[str, Any], schema: str | None) -> Flow[None]:
    rows = yield from _read(statements.DELTA_THREADS, {"threads": threads}, schema)
    _refuse_delta([row[0] for row in rows])
    for group in _groups(threads):
        # One may have begun to use a DeltaChannel after the look at all of them.
        _refuse_delta((yield from _prune_group(group, given, schema)))


def _prune_all(given: Mapping[str, Any], schema: str | None) -> Flow[None]:
    after, skipped = "", 0
    while True:
        page = {"after": after, "batch": THREADS}
        rows = yield from _read(statements.THREADS_AFTER, page, schema)
        if not rows:
            break
        threads = [row[0] for row in rows]
        skipped += len((yield from _prune_group(threads, given, schema)))
        after = threads[-1]
    if skipped:
        logger.info("left %d threads whole: they use a DeltaChannel", skipped)


def _prune_group(
    threads: list[str], given: Mapping[str, Any], schema: str | None
) -> Flow[list[str]]:
    """Prune threads; those that use a DeltaChannel are left as they are, and returned."""
    total, deleted, delta = 0, BATCH, []
    while deleted == BATCH:
        params = {"threads": threads, **given}
        ((deleted, delta),) = yield from _write(statements.PRUNE, params, schema)
        total += deleted
    yield from _delete_unused_blobs(threads, schema)
    if total:
        logger.info("deleted %d checkpoints of %d threads", total, len(threads))
    return delta


def _delete_unused_blobs(threads: Sequence[str], schema: str | None) -> Flow[None]:
    for group in _groups(threads):
        deleted = BATCH
        while deleted == BATCH:
            given = {"threads": group, "batch": BATCH}
            rows = yield from _write(statements.DELETE_UNUSED_BLOBS, given, schema)
            deleted = rows.touched


def _refuse_delta(threads: Sequence[str]) -> None:
    """As the parent: a kept checkpoint of theirs is rebuilt from older ones."""
    if threads:
        raise NotImplementedError(
            f"keep_latest can't prune threads that use a DeltaChannel: {', '.join(threads)}"
        )


def _groups(threads: Sequence[str]) -> Iterator[list[str]]:
    return (list(threads[i : i + THREADS]) for i in range(0, len(threads), THREADS))


def _read(query: str, params: Mapping[str, Any], schema: str | None) -> Flow[Rows]:
    (rows,) = yield Transaction((Statement(in_schema(query, schema), params),))
    result: Rows = rows
    return result


def _write(query: str, params: Mapping[str, Any], schema: str | None) -> Flow[Rows]:
    """Deleting once more changes nothing; two that delete the same rows may be in a deadlock."""
    statement = Statement(in_schema(query, schema), params)
    (rows,) = yield Transaction((statement,), writes=True, is_idempotent=True)
    result: Rows = rows
    return result
