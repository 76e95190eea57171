"""Marks that tell, after a lost reply, whether a write was committed.

An error on COMMIT, or a link that is lost before its reply, leaves open whether a transaction took
effect. To repeat it blindly would be wrong: it could undo a write that another client made, and had
acknowledged, in the meantime. No comparison of rows can tell either, because a deleted row leaves
nothing to compare. So each write records itself, in its own transaction: the row of its
connection's ``writer`` gets the write's ``number``, which grows from write to write.

Why this is right:

- Mark and write are one transaction: both are there, or neither, also after a failover.
- A repeated write carries the same mark. If an earlier attempt was committed, the row has the
  number already, ``number`` becomes NULL, and the NOT NULL constraint undoes the repetition.
- If an earlier attempt is still running, it holds the lock of the mark's row (or of the key that
  it inserts), and the repetition waits for its end before it decides.
- If an earlier attempt reaches the server late, after the repetition or after the connection's
  later writes, its number is no longer larger, and it is undone.

A repetition that is undone reads ``outcome``, which holds the counts that the reply would have had.
Rows of connections that are gone are deleted after a week.
"""

from __future__ import annotations

from functools import lru_cache

from langgraph_aurora_store.sql.flow import Marking
from langgraph_aurora_store.sql.store_tables import StoreTables

# A number is the client's time in nanoseconds. A retry takes seconds; clocks may differ by days.
_KEPT_NS = 7 * 24 * 3600 * 10**9

_MARK = """mark AS (
    INSERT INTO {marks} AS m (writer, number, outcome)
    {source}
    ON CONFLICT (writer) DO UPDATE SET
        number = CASE WHEN m.number < excluded.number THEN excluded.number END,
        outcome = excluded.outcome
)"""
_VALUES = "VALUES (%(mark_writer)s::bigint, %(mark_number)s::bigint, NULL::bigint[])"
_COUNTED = "SELECT %(mark_writer)s::bigint, %(mark_number)s::bigint, ARRAY[{counts}] FROM {rows}"

_OUTCOME = "SELECT m.number, m.outcome FROM {marks} AS m WHERE m.writer = %(mark_writer)s::bigint"

_CLEANUP = """
DELETE FROM {marks} AS m WHERE m.ctid = ANY (ARRAY (
    SELECT o.ctid FROM {marks} AS o WHERE o.number < %(mark_number)s::bigint - {kept_ns}
    LIMIT 1000 FOR UPDATE SKIP LOCKED
))
"""


@lru_cache
def marking(tables: StoreTables) -> Marking | None:
    """How this store's writes are marked; ``None`` where they are not."""
    if not tables.has_write_marks:
        return None
    return Marking(
        _OUTCOME.format(marks=tables.write_marks),
        _CLEANUP.format(marks=tables.write_marks, kept_ns=_KEPT_NS),
    )


def mark(tables: StoreTables) -> str:
    """The common table expression that marks a write; empty where writes are not marked."""
    if not tables.has_write_marks:
        return ""
    return _MARK.format(marks=tables.write_marks, source=_VALUES)


def counting_mark(tables: StoreTables, *, counts: str, rows: str) -> str:
    """As `mark`, with ``counts`` of ``rows`` as the outcome."""
    if not tables.has_write_marks:
        return ""
    source = _COUNTED.format(counts=counts, rows=rows)
    return _MARK.format(marks=tables.write_marks, source=source)
