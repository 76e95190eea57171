"""A record in the log of each write that failed, for callers that never look.

LangMem runs a blocking manager's writes in an executor and reads no results: there the log is all
that remains of a lost memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from langgraph.store.base import Op, PutOp

from langgraph_aurora_store.errors import AuroraStoreError
from langgraph_aurora_store.execution.retry import may_have_written
from langgraph_aurora_store.validation import brief

# Applications filter by the name of 0.1.0.
logger = logging.getLogger("langgraph_aurora_store.lost_writes")

# A batch may hold thousands; these are named, the others counted.
_NAMED = 10
_LONGEST_REASON = 2_000


@contextmanager
def write_failures_logged(ops: Sequence[Op]) -> Iterator[None]:
    """Log at ERROR which writes of ``ops`` were lost when the block raises; the error passes on.

    The record names namespaces, keys and the reason, never a value.
    """
    try:
        yield
    except Exception as exc:
        log_failed_writes(ops, exc)
        raise


def log_failed_writes(ops: Sequence[Op], exc: BaseException) -> None:
    """Log at ERROR which writes of ``ops`` were lost to ``exc``; nothing where it has none."""
    writes = [op for op in ops if isinstance(op, PutOp)]
    if not writes:
        return
    named = "; ".join(
        f"{'delete' if op.value is None else 'put'} of namespace {brief(op.namespace)},"
        f" key {brief(op.key)}"
        for op in writes[:_NAMED]
    )
    more = f"; and {len(writes) - _NAMED} more" if len(writes) > _NAMED else ""
    outcome = "perhaps not written" if may_have_written(exc) else "not written"
    logger.error("%s: %s%s; reason: %s", outcome, named, more, _reason(exc))


def _reason(exc: BaseException) -> str:
    """The error's class, and its message where the message holds no value for sure."""
    name = type(exc).__qualname__
    if isinstance(exc, AuroraStoreError):
        return f"{name}: {str(exc)[:_LONGEST_REASON]}"
    # The server's own messages may quote the row.
    sqlstate = getattr(exc, "sqlstate", None)
    return f"{name} (SQLSTATE {sqlstate})" if sqlstate else name
