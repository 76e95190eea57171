"""The SQL of checkpoints, on the tables of `langgraph.checkpoint.postgres.base` 3.2."""

from __future__ import annotations

import re
from functools import lru_cache

from langgraph.checkpoint.postgres.base import (
    PRUNE_DELTA_THREADS_SQL,
    SELECT_PENDING_SENDS_SQL,
    SELECT_SQL,
)
from langgraph.checkpoint.serde.types import TASKS
from psycopg import sql

CHECKPOINTS = "checkpoints"
BLOBS = "checkpoint_blobs"
WRITES = "checkpoint_writes"
VERSIONS = "checkpoint_migrations"
TABLES = (CHECKPOINTS, BLOBS, WRITES, VERSIONS)

_TABLE = re.compile(rf"\b(FROM|JOIN|INTO|UPDATE)(\s+)({'|'.join(TABLES)})\b", re.IGNORECASE)


@lru_cache(maxsize=256)
def in_schema(statement: str, schema: str | None) -> str:
    """The statement with its tables taken from a schema; ``None`` leaves the search path's."""
    if schema is None:
        return statement
    place = sql.Identifier(schema).as_string().replace("%", "%%").replace("\\", r"\\")
    return _TABLE.sub(rf"\1\2{place}.\3", statement)


# What the parent's statements call by bare names, and the operators of jsonb that they give a text
# without a type to: either could be an object of another role on the search path.
_FUNCTION = re.compile(r"\b(array_agg|convert_to|jsonb_each|jsonb_each_text)\(")
_KEY = re.compile(r"(->>?|\?) ('[^']*')")


def _qualified(statement: str) -> str:
    """A statement of the parent's in whose names nothing but pg_catalog takes part."""
    return _KEY.sub(r"\1 \2::text", _FUNCTION.sub(r"pg_catalog.\1(", statement))


# The columns of `SELECT`, in order.
COLUMNS = (
    "thread_id",
    "checkpoint",
    "checkpoint_ns",
    "checkpoint_id",
    "parent_checkpoint_id",
    "metadata",
    "channel_values",
    "pending_writes",
)
SELECT = _qualified(SELECT_SQL)
SELECT_ONE = SELECT + "WHERE thread_id = %s AND checkpoint_ns = %s AND checkpoint_id = %s"
SELECT_LATEST = (
    SELECT + "WHERE thread_id = %s AND checkpoint_ns = %s ORDER BY checkpoint_id DESC LIMIT 1"
)
SELECT_SENDS = _qualified(SELECT_PENDING_SENDS_SQL)

# One id may be in several threads and namespaces: copy_thread keeps it.
ORDER = " ORDER BY checkpoint_id DESC, thread_id DESC, checkpoint_ns DESC LIMIT %s"
AFTER = "(checkpoint_id, thread_id, checkpoint_ns) < (%s, %s, %s)"

# One statement: a transaction of its own, in one round trip without a pipeline. ``{free}`` is
# empty, or the condition below.
_PUT_BLOBS = """
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT %(thread)s, %(ns)s, x.*
    FROM unnest(%(channels)s::text[], %(versions)s::text[], %(types)s::text[], %(blobs)s::bytea[])
        AS x{free}
    ON CONFLICT (thread_id, checkpoint_ns, channel, version) DO NOTHING
"""
_PUT = """
INSERT INTO checkpoints
    (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
SELECT %(thread)s, %(ns)s, %(id)s, %(parent)s::text, %(row)s::jsonb, %(metadata)s::jsonb{free}
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id)
DO UPDATE SET checkpoint = excluded.checkpoint, metadata = excluded.metadata
"""
PUT = _PUT.format(free="")
PUT_WITH_BLOBS = f"WITH blobs AS ({_PUT_BLOBS.format(free='')}) {PUT}"

# Whether nothing was stored since the parent; or this very checkpoint was, by an earlier attempt.
_FREE = """
free AS MATERIALIZED (
    SELECT WHERE NOT EXISTS (
        SELECT FROM checkpoints
        WHERE thread_id = %(thread)s AND checkpoint_ns = %(ns)s
        AND checkpoint_id > coalesce(%(parent)s::text, '')
    ) OR EXISTS (
        SELECT FROM checkpoints
        WHERE thread_id = %(thread)s AND checkpoint_ns = %(ns)s AND checkpoint_id = %(id)s
    )
)
"""
_IF_FREE = " WHERE EXISTS (SELECT FROM free)"
PUT_IF_FREE = f"WITH {_FREE} {_PUT.format(free=_IF_FREE)}"
PUT_WITH_BLOBS_IF_FREE = f"""
WITH {_FREE}, blobs AS ({_PUT_BLOBS.format(free=_IF_FREE)}) {_PUT.format(free=_IF_FREE)}
"""
# Held to the end of the transaction: of two runs, the second sees what the first one has stored.
LOCK_THREAD = "SELECT pg_catalog.pg_advisory_xact_lock(%s, pg_catalog.hashtext(%s))"
LOCK_CLASS = 0x6C676370

PUT_WRITES = """
INSERT INTO checkpoint_writes
    (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
SELECT %s, %s, %s, %s, %s, x.*
FROM unnest(%s::int[], %s::text[], %s::text[], %s::bytea[]) AS x
ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
"""
KEEP_WRITES = PUT_WRITES + "DO NOTHING"
REPLACE_WRITES = (
    PUT_WRITES
    + "DO UPDATE SET channel = excluded.channel, type = excluded.type, blob = excluded.blob"
)

DELETE_THREADS = """
WITH blobs AS (
    DELETE FROM checkpoint_blobs WHERE thread_id = ANY(%(threads)s)
), writes AS (
    DELETE FROM checkpoint_writes WHERE thread_id = ANY(%(threads)s)
)
DELETE FROM checkpoints WHERE thread_id = ANY(%(threads)s)
"""

COPY_THREAD = """
WITH blobs AS (
    INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
    SELECT %(target)s, checkpoint_ns, channel, version, type, blob
    FROM checkpoint_blobs WHERE thread_id = %(source)s
    ON CONFLICT DO NOTHING
), writes AS (
    INSERT INTO checkpoint_writes
        (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
    SELECT %(target)s, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob
    FROM checkpoint_writes WHERE thread_id = %(source)s
    ON CONFLICT DO NOTHING
)
INSERT INTO checkpoints
    (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata)
SELECT %(target)s, checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata
FROM checkpoints WHERE thread_id = %(source)s
ON CONFLICT DO NOTHING
"""

# Children of what goes lose their parent, as with the parent's prune().
_DELETE_DOOMED = """
children AS (
    UPDATE checkpoints SET parent_checkpoint_id = NULL
    FROM doomed d
    WHERE checkpoints.thread_id = d.thread_id AND checkpoints.checkpoint_ns = d.checkpoint_ns
    AND checkpoints.parent_checkpoint_id = d.checkpoint_id
    AND (checkpoints.thread_id, checkpoints.checkpoint_ns, checkpoints.checkpoint_id)
        NOT IN (SELECT thread_id, checkpoint_ns, checkpoint_id FROM doomed)
), writes AS (
    DELETE FROM checkpoint_writes USING doomed d
    WHERE checkpoint_writes.thread_id = d.thread_id
    AND checkpoint_writes.checkpoint_ns = d.checkpoint_ns
    AND checkpoint_writes.checkpoint_id = d.checkpoint_id
), heads AS (
    DELETE FROM checkpoints USING doomed d
    WHERE checkpoints.thread_id = d.thread_id
    AND checkpoints.checkpoint_ns = d.checkpoint_ns
    AND checkpoints.checkpoint_id = d.checkpoint_id
)
"""

DELETE_RUNS = f"""
WITH doomed AS MATERIALIZED (
    SELECT thread_id, checkpoint_ns, checkpoint_id FROM checkpoints
    WHERE metadata @> ANY(%(runs)s::jsonb[])
    ORDER BY checkpoint_id
    LIMIT %(batch)s
), {_DELETE_DOOMED}
SELECT pg_catalog.count(*), pg_catalog.array_agg(DISTINCT thread_id) FROM doomed
"""

# A blob that no checkpoint refers to cannot be read. A checkpoint and its blobs come by one
# statement.
DELETE_UNUSED_BLOBS = """
WITH used AS MATERIALIZED (
    SELECT DISTINCT c.thread_id, c.checkpoint_ns, v.key, v.value
    FROM checkpoints c
    CROSS JOIN LATERAL pg_catalog.jsonb_each_text(
        c.checkpoint -> 'channel_versions'::text
    ) AS v
    WHERE c.thread_id = ANY(%(threads)s) AND v.value IS NOT NULL
), unused AS MATERIALIZED (
    SELECT ctid FROM checkpoint_blobs
    WHERE thread_id = ANY(%(threads)s)
    AND (thread_id, checkpoint_ns, channel, version)
        NOT IN (SELECT thread_id, checkpoint_ns, key, value FROM used)
    LIMIT %(batch)s
)
DELETE FROM checkpoint_blobs WHERE ctid = ANY (ARRAY (SELECT ctid FROM unused))
"""

_DELTA_THREADS = _qualified(PRUNE_DELTA_THREADS_SQL).replace("%s", "%(threads)s")
DELTA_THREADS = f"SELECT thread_id FROM ({_DELTA_THREADS}) AS delta ORDER BY thread_id"

# As the parent's `_keep_latest` decides, for any number of threads and of checkpoints to keep. All
# parts of one statement see one snapshot, so what a run saves meanwhile is neither seen nor
# deleted. NOT IN is planned as a hash, whatever the estimates are. The namespaces of ended subgraph
# calls go first: whether a call has ended is read from the root's checkpoint that it started from.
PRUNE = f"""
WITH delta AS MATERIALIZED ({_DELTA_THREADS}
), ranked AS MATERIALIZED (
    SELECT thread_id, checkpoint_ns, checkpoint_id,
           pg_catalog.row_number() OVER (
               PARTITION BY thread_id, checkpoint_ns ORDER BY checkpoint_id DESC
           ) AS place
    FROM checkpoints
    WHERE thread_id = ANY(%(threads)s) AND thread_id NOT IN (SELECT thread_id FROM delta)
), kept AS MATERIALIZED (
    SELECT thread_id, checkpoint_ns, checkpoint_id FROM ranked
    WHERE place <= %(keep)s
    OR (%(cutoff)s::text IS NOT NULL
        AND (checkpoint_id >= %(cutoff)s::text OR checkpoint_id !~ '{{uuid6}}'))
), sends AS MATERIALIZED (
    -- Before v4, a checkpoint reads its pending sends from its parent's writes.
    SELECT k.thread_id, k.checkpoint_ns, c.parent_checkpoint_id AS checkpoint_id
    FROM kept k
    CROSS JOIN LATERAL (
        SELECT c.parent_checkpoint_id FROM checkpoints c
        WHERE c.thread_id = k.thread_id AND c.checkpoint_ns = k.checkpoint_ns
        AND c.checkpoint_id = k.checkpoint_id
        AND (c.checkpoint ->> 'v'::text)::int < 4 AND c.parent_checkpoint_id IS NOT NULL
        LIMIT 1
    ) AS c
    WHERE EXISTS (
        SELECT FROM checkpoint_writes w
        WHERE w.thread_id = k.thread_id AND w.checkpoint_ns = k.checkpoint_ns
        AND w.checkpoint_id = c.parent_checkpoint_id AND w.channel = '{TASKS}'
    )
), call AS MATERIALIZED (
    SELECT r.thread_id, r.checkpoint_ns
    FROM ranked r
    CROSS JOIN LATERAL (
        SELECT c.metadata -> 'parents'::text ->> ''::text AS id FROM checkpoints c
        WHERE c.thread_id = r.thread_id AND c.checkpoint_ns = r.checkpoint_ns
        AND c.checkpoint_id = r.checkpoint_id
        LIMIT 1
    ) AS root
    WHERE r.place = 1 AND pg_catalog.strpos(r.checkpoint_ns, ':') > 0
    AND EXISTS (
        SELECT FROM checkpoints c
        WHERE c.thread_id = r.thread_id AND c.checkpoint_ns = '' AND c.checkpoint_id = root.id
    )
    AND (r.thread_id, root.id) NOT IN (
        SELECT thread_id, checkpoint_id FROM kept WHERE checkpoint_ns = ''
        UNION ALL SELECT thread_id, checkpoint_id FROM sends WHERE checkpoint_ns = ''
    )
), doomed AS MATERIALIZED (
    SELECT r.thread_id, r.checkpoint_ns, r.checkpoint_id
    FROM ranked r
    LEFT JOIN call USING (thread_id, checkpoint_ns)
    WHERE call.thread_id IS NOT NULL
    OR ((r.thread_id, r.checkpoint_ns, r.checkpoint_id)
            NOT IN (SELECT thread_id, checkpoint_ns, checkpoint_id FROM kept)
        AND (r.thread_id, r.checkpoint_ns, r.checkpoint_id)
            NOT IN (SELECT thread_id, checkpoint_ns, checkpoint_id FROM sends))
    ORDER BY call.thread_id IS NULL, r.checkpoint_id
    LIMIT %(batch)s
), writes_of_calls AS (
    DELETE FROM checkpoint_writes USING call
    WHERE checkpoint_writes.thread_id = call.thread_id
    AND checkpoint_writes.checkpoint_ns = call.checkpoint_ns
), {_DELETE_DOOMED}
SELECT (SELECT pg_catalog.count(*) FROM doomed),
       ARRAY (SELECT thread_id FROM delta ORDER BY thread_id)
"""

# LangGraph's ids of checkpoints, whose texts are in the order of their times.
UUID6 = "^[0-9a-f]{8}-[0-9a-f]{4}-6[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$"
PRUNE = PRUNE.replace("{uuid6}", UUID6)

# A skip scan of the primary key: one probe for each thread, however many checkpoints it has.
_THREADS = """
WITH RECURSIVE thread (id) AS (
    (SELECT thread_id FROM checkpoints WHERE thread_id > %(after)s ORDER BY thread_id LIMIT 1)
    UNION ALL
    SELECT next.thread_id FROM thread CROSS JOIN LATERAL (
        SELECT c.thread_id FROM checkpoints c WHERE c.thread_id > thread.id
        ORDER BY c.thread_id LIMIT 1
    ) AS next
), page AS MATERIALIZED (
    SELECT id FROM thread LIMIT %(batch)s
)
"""
THREADS_AFTER = f"{_THREADS} SELECT id FROM page ORDER BY id"

DELETE_IDLE_THREADS_AFTER = f"""{_THREADS}
, idle AS MATERIALIZED (
    SELECT id FROM page
    WHERE NOT EXISTS (
        SELECT FROM checkpoints c
        WHERE c.thread_id = page.id
        AND (c.checkpoint_id >= %(cutoff)s OR c.checkpoint_id !~ '{UUID6}')
    )
), blobs AS (
    DELETE FROM checkpoint_blobs USING idle WHERE thread_id = idle.id
), writes AS (
    DELETE FROM checkpoint_writes USING idle WHERE thread_id = idle.id
), heads AS (
    DELETE FROM checkpoints USING idle WHERE thread_id = idle.id
)
SELECT pg_catalog.max(id), (SELECT pg_catalog.count(*) FROM idle) FROM page
"""
