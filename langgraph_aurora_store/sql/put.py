"""Writing and deleting items and their vectors, all of a batch in one transaction.

Rows are locked in one order of keys, whatever a batch does to them, so that batches wait for each
other but never in a circle. A write of a key's vectors holds the key's row in ``store``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from langgraph.store.base import PutOp

from langgraph_aurora_store.errors import InvalidItemError
from langgraph_aurora_store.sql.addresses import checked_key, namespace_of, prefix_of
from langgraph_aurora_store.sql.commit_mark_sql import mark
from langgraph_aurora_store.sql.conditions import ADDRESSES, given
from langgraph_aurora_store.sql.flow import Rows, Statement
from langgraph_aurora_store.sql.json_values import LONGEST, at, to_json, too_long
from langgraph_aurora_store.sql.store_tables import StoreTables
from langgraph_aurora_store.sql.texts import Text, checked_index, texts_of
from langgraph_aurora_store.validation import brief

if TYPE_CHECKING:
    from pgvector import HalfVector, Vector

# nbtree.h, BTMaxItemSize: 2,704 bytes, of which the row's and its columns' headers take some.
_SHORTEST_TOO_LONG = 2680

# ttl_minutes is an INT.
_LONGEST_TTL_MINUTES = 2**31 - 1

# In a batch that also deletes, a key to delete is written first like the others: that takes its
# lock in its turn, whether the row exists or is being made by someone else.
_UPSERT = """
INSERT INTO {store} AS s (prefix, key, value, created_at, updated_at,
                          expires_at, ttl_minutes, lifetime)
SELECT w.prefix, w.key, w.value::jsonb, pg_catalog.now(), pg_catalog.now(), w.expires_at,
       CASE WHEN w.ttl IS NOT NULL THEN greatest(1, pg_catalog.ceil(w.ttl)) END::int,
       CASE WHEN w.ttl <> greatest(1, pg_catalog.ceil(w.ttl))
            THEN pg_catalog.tstzrange(pg_catalog.now(), w.expires_at) END
FROM (
    SELECT *, pg_catalog.now() + ttl * interval '1 minute' AS expires_at
    FROM {rows}
         WITH ORDINALITY AS u (prefix, key, value, ttl, position)
) AS w
ORDER BY w.position
ON CONFLICT (prefix, key) DO UPDATE SET
    value = excluded.value,
    created_at = CASE WHEN s.expires_at <= pg_catalog.now() THEN excluded.created_at
                      ELSE s.created_at END,
    updated_at = excluded.updated_at,
    expires_at = excluded.expires_at,
    ttl_minutes = excluded.ttl_minutes,
    lifetime = excluded.lifetime
"""

_DELETE = """
WITH {mark}doomed AS MATERIALIZED (
    SELECT s.prefix, s.key
    FROM {addresses} WITH ORDINALITY AS w (prefix, key, position)
    JOIN {store} AS s ON s.prefix = w.prefix AND s.key = w.key
    ORDER BY w.position
    FOR UPDATE OF s
)
DELETE FROM {store} AS s USING doomed WHERE s.prefix = doomed.prefix AND s.key = doomed.key
"""

_KNOWN = """
SELECT w.position
FROM {texts}
     WITH ORDINALITY AS w (prefix, key, field, digest, position)
JOIN {vectors} AS v ON v.prefix = w.prefix AND v.key = w.key AND v.field_name = w.field
WHERE v.content_hash = w.digest AND v.hashed_at = v.updated_at
"""

# Between the first look and this transaction someone else may have written another text's vector.
# Then the division fails, and everything with it.
_STILL_KNOWN = """
SELECT 1 / (pg_catalog.count(*) = pg_catalog.cardinality(%(prefixes)b::text[]))::int
FROM ({known}) AS known
"""

_DELETE_STALE_VECTORS = """
DELETE FROM {vectors} AS v
USING {addresses} AS w (prefix, key)
WHERE v.prefix = w.prefix AND v.key = w.key AND NOT EXISTS (
    SELECT FROM {kept}
        AS k (prefix, key, field)
    WHERE k.prefix = v.prefix AND k.key = v.key AND k.field = v.field_name
)
"""

_UPSERT_VECTORS = """
INSERT INTO {vectors} AS v (prefix, key, field_name, embedding, content_hash,
                            hashed_at, model_hash, created_at, updated_at)
SELECT w.prefix, w.key, w.field, w.embedding, w.digest,
       pg_catalog.now(), %(model_hash)s::bytea, pg_catalog.now(), pg_catalog.now()
FROM {embedded} AS w (prefix, key, field, digest, embedding)
ON CONFLICT (prefix, key, field_name) DO UPDATE SET
    embedding = excluded.embedding,
    content_hash = excluded.content_hash,
    hashed_at = excluded.hashed_at,
    model_hash = excluded.model_hash,
    updated_at = excluded.updated_at
"""


class Put(NamedTuple):
    """One row to write, or to delete where ``value`` is ``None``; ``ttl`` is in minutes.

    ``positions`` are those in the batch of the operations on its key, of which it is the last.
    """

    prefix: str
    key: str
    value: str | None
    ttl: float | None
    texts: tuple[Text, ...]
    positions: tuple[int, ...] = ()


class Writes(NamedTuple):
    """What a batch leaves behind: the last operation on each key, in the order of locking."""

    puts: tuple[Put, ...]

    @property
    def texts(self) -> tuple[Text, ...]:
        """All texts that get a vector."""
        return tuple(text for put in self.puts for text in put.texts)


def parse(ops: Iterable[tuple[int, PutOp]], tables: StoreTables) -> Writes:
    """Check and convert every operation, given with its place, and keep the last on each key.

    Raises:
        InvalidItemError: for an operation that cannot be stored.
        InvalidNamespaceError: for a namespace that cannot be stored.
    """
    last: dict[tuple[str, str], Put] = {}
    for position, op in ops:
        put = _put(op, tables)
        earlier = last.get((put.prefix, put.key))
        positions = (*earlier.positions, position) if earlier else (position,)
        last[put.prefix, put.key] = put._replace(positions=positions)
    return Writes(tuple(last[address] for address in sorted(last)))


def select_embedded(texts: Sequence[Text], tables: StoreTables) -> Statement:
    """Which of these texts have their vectors already: the reply holds positions from 1."""
    return Statement(_sql(tables).known, _columns(texts))


def not_embedded(texts: Sequence[Text], rows: Rows) -> tuple[Text, ...]:
    """The texts that `select_embedded` did not find."""
    found = {position for (position,) in rows}
    return tuple(text for i, text in enumerate(texts, start=1) if i not in found)


def statements(
    writes: Writes,
    new: Collection[Text],
    vectors: dict[str, Vector | HalfVector],
    tables: StoreTables,
) -> tuple[Statement, ...]:
    """The whole transaction; ``new`` are the texts to write with their ``vectors``.

    It fails with ``division_by_zero`` when one of the other texts has lost its vector meanwhile.
    """
    sql = _sql(tables)
    puts = [put for put in writes.puts if put.value is not None]
    doomed = [put for put in writes.puts if put.value is None]
    steps = [Statement(sql.upsert, _rows(writes.puts if doomed else puts))] if puts else []
    if doomed:
        steps.append(Statement(sql.delete if puts else sql.marked_delete, _addresses(doomed)))
    # Without an index a value has no texts, and so it keeps none of the vectors that a store with
    # one has made of the key's former value.
    if puts and (tables.index is not None or tables.has_vectors):
        texts, fresh = writes.texts, set(new)
        kept = [text for text in texts if text not in fresh]
        if kept:
            steps.append(Statement(sql.still_known, _columns(kept)))
        steps.append(Statement(sql.delete_stale_vectors, _addresses(puts) | _kept(texts)))
        if new:
            embeddings = [vectors[text.text] for text in new]
            columns = _columns(list(new)) | {"embeddings": embeddings}
            steps.append(
                Statement(sql.upsert_vectors, {**columns, "model_hash": tables.model_hash})
            )
    return tuple(steps)


def too_large(writes: Writes) -> InvalidItemError | None:
    """Which item the server could not hold, where one is large enough for that.

    It cannot be told beforehand: it is the compressed index row that has to fit.
    """
    longest = max(writes.puts, key=_address_bytes)
    largest = max(writes.puts, key=lambda put: len(put.value or ""))
    if (size := _address_bytes(longest)) >= _SHORTEST_TOO_LONG:
        where = at(namespace_of(longest.prefix), longest.key)
        return InvalidItemError(
            f"{where}: namespace, key and field's name take {size} bytes; a row of a PostgreSQL"
            f" index holds about {_SHORTEST_TOO_LONG}, and more only where they can be compressed"
        )
    if largest.value and 4 * len(largest.value) > LONGEST:
        where = at(namespace_of(largest.prefix), largest.key)
        return InvalidItemError(f"{where}: {too_long(largest.value)}")
    return None


def _address_bytes(put: Put) -> int:
    field = max((text.field for text in put.texts), key=len, default="")
    return len(f"{put.prefix}{put.key}{field}".encode())


def _put(op: PutOp, tables: StoreTables) -> Put:
    namespace, prefix = tuple(op.namespace), prefix_of(op.namespace)
    key = checked_key(namespace, op.key)
    if op.value is None:
        return Put(prefix, key, None, None, ())
    checked_index(op.index, namespace, key)
    try:
        document = to_json(op.value, namespace, key)
        texts = texts_of(namespace, key, document, op.index, tables)
    except RecursionError as exc:
        raise InvalidItemError(
            f"{at(namespace, key)}: the value is nested too deeply for the stack that is left"
        ) from exc
    return Put(prefix, key, document, _ttl(op), texts)


def _ttl(op: PutOp) -> float | None:
    ttl: object = op.ttl
    if ttl is None:
        return None
    minutes = ttl if isinstance(ttl, (int, float)) and not isinstance(ttl, bool) else math.nan
    # Comparisons are false for NaN.
    if not 0 <= minutes <= _LONGEST_TTL_MINUTES:
        raise InvalidItemError(
            f"{at(op.namespace, op.key)}: ttl= is minutes from 0 to {_LONGEST_TTL_MINUTES},"
            f" or None for ever, not {brief(ttl)}"
        )
    return float(minutes)


def _addresses(puts: Sequence[Put]) -> dict[str, list[object]]:
    return {"prefixes": [put.prefix for put in puts], "keys": [put.key for put in puts]}


def _rows(puts: Sequence[Put]) -> dict[str, list[object]]:
    values = [put.value if put.value is not None else "{}" for put in puts]
    return _addresses(puts) | {"values": list(values), "ttls": [put.ttl for put in puts]}


def _columns(texts: Sequence[Text]) -> dict[str, list[object]]:
    return {
        "prefixes": [".".join(text.namespace) for text in texts],
        "keys": [text.key for text in texts],
        "fields": [text.field for text in texts],
        "digests": [text.digest for text in texts],
    }


def _kept(texts: Sequence[Text]) -> dict[str, list[object]]:
    columns = _columns(texts)
    return {f"kept_{name}": columns[name] for name in ("prefixes", "keys", "fields")}


class _Texts(NamedTuple):
    upsert: str
    delete: str
    marked_delete: str
    known: str
    still_known: str
    delete_stale_vectors: str
    upsert_vectors: str


@lru_cache
def _sql(tables: StoreTables) -> _Texts:
    texts = {"prefixes": "text", "keys": "text", "fields": "text", "digests": "bytea"}
    names = {
        "store": tables.store,
        "vectors": tables.vectors,
        "addresses": ADDRESSES,
        "rows": given(prefixes="text", keys="text", values="text", ttls="float8"),
        "texts": given(**texts),
        "kept": given(kept_prefixes="text", kept_keys="text", kept_fields="text"),
        "embedded": given(**texts, embeddings=tables.embedding_type) if tables.index else "",
    }
    known, marks = _KNOWN.format(**names), mark(tables)
    return _Texts(
        (f"WITH {marks}" + _UPSERT.format(**names) if marks else _UPSERT.format(**names)),
        _DELETE.format(mark="", **names),
        _DELETE.format(mark=f"{marks},\n" if marks else "", **names),
        known,
        _STILL_KNOWN.format(known=known),
        _DELETE_STALE_VECTORS.format(**names),
        _UPSERT_VECTORS.format(**names),
    )
