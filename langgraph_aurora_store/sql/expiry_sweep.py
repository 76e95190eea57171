"""Delete expired items in bounded batches, by one process at a time."""

from __future__ import annotations

from langgraph_aurora_store.sql.flow import Flow, Rows, Statement, Transaction
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
        %s::int, pg_catalog.to_regclass(%s)::oid::int
    ) AS has_lock
), expired AS MATERIALIZED (
    SELECT ctid FROM {store}
    WHERE (SELECT has_lock FROM sweep_lock) AND expires_at <= pg_catalog.now()
    ORDER BY expires_at
    LIMIT %s
    FOR UPDATE SKIP LOCKED
)
DELETE FROM {store} WHERE ctid = ANY (ARRAY (SELECT ctid FROM expired))
"""


def sweep(tables: StoreTables, batch: int = 1000) -> Flow[int]:
    """Delete what has expired, with its vectors, and return how many items that were.

    Each batch is a transaction of its own; the flow ends with the first one that is not full,
    which is also how it ends when another process holds the lock.
    """
    name = regclass_name(tables, STORE)
    statement = Statement(_SWEEP.format(store=tables.store), (_TURN, name, batch))
    swept = 0
    while True:
        replies: list[Rows] = yield Transaction((statement,), writes=True, is_idempotent=True)
        swept += replies[0].touched
        if replies[0].touched < batch:
            return swept
