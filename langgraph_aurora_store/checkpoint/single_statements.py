"""Storing, copying and deleting: each one statement, which may be repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from psycopg.types.json import Jsonb

from langgraph_aurora_store.checkpoint import serialization, statements
from langgraph_aurora_store.checkpoint.statements import in_schema
from langgraph_aurora_store.errors import ConcurrentRunError
from langgraph_aurora_store.sql.flow import Flow, Statement, Transaction


class Put(NamedTuple):
    """A checkpoint to be stored, and the configuration that finds it again."""

    params: dict[str, Any]
    config: RunnableConfig

    def store(self, schema: str | None, *, if_free: bool) -> Flow[None]:
        """Store it; with ``if_free``, only where its parent is the latest of its thread.

        Raises:
            ConcurrentRunError: the parent is not.
        """
        has_blobs = "blobs" in self.params
        if not if_free:
            query = statements.PUT_WITH_BLOBS if has_blobs else statements.PUT
            yield from execute(Statement(query, self.params), schema)
            return
        query = statements.PUT_WITH_BLOBS_IF_FREE if has_blobs else statements.PUT_IF_FREE
        thread = self.params["thread"]
        place = f"{schema} {thread} {self.params['ns']}"
        lock = Statement(statements.LOCK_THREAD, (statements.LOCK_CLASS, place))
        statement = Statement(in_schema(query, schema), self.params)
        _, stored = yield Transaction((lock, statement), writes=True, is_idempotent=True)
        if not stored.touched:
            raise ConcurrentRunError(
                f"thread {thread[:100]!r} has a later checkpoint than the one that this run went on"
                " from, so another run writes to it; nothing was stored: run again from the"
                " thread's latest checkpoint, or allow forks by concurrent_runs='allow'"
            )


def put(
    config: RunnableConfig,
    checkpoint: Checkpoint,
    metadata: CheckpointMetadata,
    new_versions: ChannelVersions,
    serde: SerializerProtocol,
) -> Put:
    """Serialise a checkpoint; no connection is needed for it.

    Raises:
        InvalidCheckpointError: a value cannot be stored.
    """
    configurable = config["configurable"]
    thread, ns = str(configurable["thread_id"]), configurable["checkpoint_ns"]
    row, blobs = serialization.parts(checkpoint, new_versions, serde)
    found = serialization.row_metadata(config, metadata)
    params: dict[str, Any] = {
        "thread": thread,
        "ns": ns,
        "id": checkpoint["id"],
        "parent": configurable.get("checkpoint_id"),
        "row": Jsonb(row),
        "metadata": Jsonb(found),
    }
    if blobs:
        columns = map(list, zip(*blobs, strict=True))
        params |= zip(("channels", "versions", "types", "blobs"), columns, strict=True)
    next_config: RunnableConfig = {
        "configurable": {
            "thread_id": thread,
            "checkpoint_ns": ns,
            "checkpoint_id": checkpoint["id"],
        }
    }
    return Put(params, next_config)


def put_writes(
    config: RunnableConfig,
    writes: Sequence[tuple[str, Any]],
    task_id: str,
    task_path: str,
    serde: SerializerProtocol,
) -> Statement | None:
    """Serialise a task's writes; ``None`` where there are none."""
    known = serialization.writes(writes, serde)
    if not known:
        return None
    configurable = config["configurable"]
    place = (
        str(configurable["thread_id"]),
        configurable["checkpoint_ns"],
        configurable["checkpoint_id"],
    )
    replaces = serialization.are_replaced(writes)
    query = statements.REPLACE_WRITES if replaces else statements.KEEP_WRITES
    return Statement(query, (*place, task_id, task_path, *map(list, zip(*known, strict=True))))


def delete_threads(thread_ids: Sequence[str]) -> Statement:
    """Delete everything of these threads."""
    return Statement(statements.DELETE_THREADS, {"threads": [str(it) for it in thread_ids]})


def copy_thread(source: str, target: str) -> Statement:
    """Copy everything of a thread to another; what is there already stays."""
    return Statement(statements.COPY_THREAD, {"source": str(source), "target": str(target)})


def execute(statement: Statement | None, schema: str | None) -> Flow[None]:
    """Run what was prepared, as one transaction in one round trip."""
    if statement is not None:
        query = in_schema(statement.sql, schema)
        yield Transaction((Statement(query, statement.params),), writes=True, is_idempotent=True)
