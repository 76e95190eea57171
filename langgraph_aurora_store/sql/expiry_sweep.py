"""Delete expired items in bounded batches, by one process at a time."""

from __future__ import annotations

from langgraph_aurora_store.sql.commit_mark_sql import counting_mark, marking
from langgraph_aurora_store.sql.flow import Flow, Statement, Transaction
from langgraph_aurora_store.sql.schema.introspection import STORE, regclass_name
from langgraph_aurora_store.sql.store_tables import StoreTables

# One key space of PostgreSQL's advisory locks takes a class and an object: the class is this
# store's, the object is the table's OID, so each database and schema has a lock of its own.
_TURN = 0x6C617368

# The lock lasts for the statement's own transaction, so a process that dies cannot keep it. Rows
# that a writer or a refreshing reader holds are left to the next sweep. A row that was locked here
# cannot move, so it is deleted where it stands.
_SWEEP = """
WITH sweep_lock AS MATERIALIZED (
    SELECT pg_catalog.pg_try_advisory_xact_lock(
        %(turn)s::int, pg_catalog.to_regclass(%(table)s)::oid::int
    ) AS has_lock
), expired AS MATERIALIZED (
    SELECT ctid FROM {store}
    WHERE (SELECT has_lock FROM sweep_lock) AND expires_at <= pg_catalog.now()
    ORDER BY expires_at
    LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM {store} WHERE ctid = ANY (ARRAY (SELECT ctid FROM expired)) RETURNING true
){mark}
SELECT {count} FROM deleted
"""
_COUNT = "pg_catalog.count(*)"


def sweep(tables: StoreTables, batch: int = 1000) -> Flow[int]:
    """Delete what has expired, with its vectors, and return how many items that were.

    Each batch is a transaction of its own; the flow ends with the first one that is not full,
    which is also how it ends when another process holds the lock.
    """
    marks = counting_mark(tables, counts=_COUNT, rows="deleted")
    text = _SWEEP.format(store=tables.store, mark=f",\n{marks}" if marks else "", count=_COUNT)
    params = {"turn": _TURN, "table": regclass_name(tables, STORE), "batch": batch}
    swept = 0
    while True:
        (((deleted,),),) = yield Transaction(
            (Statement(text, params),), writes=True, is_idempotent=True, marking=marking(tables)
        )
        swept += int(deleted)
        if deleted < batch:
            return swept
