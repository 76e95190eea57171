"""A batch of LangGraph operations as one flow.

As in the parent, and in ``InMemoryStore``, a batch reads first and writes last, whatever the order
of its operations: reads see the state before the batch. Everything is checked and converted before
the first statement, and all writes are one transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import psycopg
from langgraph.store.base import (
    GetOp,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchOp,
)

from langgraph_aurora_store.sql import get, put, search
from langgraph_aurora_store.sql import namespace_operations as namespaces
from langgraph_aurora_store.sql.addresses import check_labels
from langgraph_aurora_store.sql.commit_mark_sql import marking
from langgraph_aurora_store.sql.flow import Flow, Rows, Statement, Transaction
from langgraph_aurora_store.sql.get import Address, Get
from langgraph_aurora_store.sql.pages import paged
from langgraph_aurora_store.sql.put import Put, Writes
from langgraph_aurora_store.sql.search import Search
from langgraph_aurora_store.sql.store_tables import StoreTables
from langgraph_aurora_store.sql.texts import Text, request
from langgraph_aurora_store.sql.vector_search import LargeNamespaces, nearest
from langgraph_aurora_store.sql.vector_values import Embedded, checked

if TYPE_CHECKING:
    from pgvector import HalfVector, Vector

logger = logging.getLogger(__name__)

# Fewer operations than these are not worth a round trip and a transaction of their own.
_LEAST_PART = 4


class Batch(NamedTuple):
    """A batch's operations, checked and sorted by kind."""

    size: int
    gets: list[Get]
    searches: list[Search]
    listings: list[tuple[int, Statement]]
    writes: Writes


class Prepared(NamedTuple):
    """A batch of which all is done that needs no vector, and all texts are embedded.

    ``positions`` are those of the operations that it completes, ``results`` the results of the
    whole batch as far as they are known, ``to_refresh`` the items read whose TTL is to be
    refreshed, and
    ``new`` the texts to write.
    """

    batch: Batch
    positions: Sequence[int]
    results: list[Result]
    to_refresh: list[Address]
    new: tuple[Text, ...]
    vectors: Embedded

    def drop(self, gone: Collection[int]) -> tuple[Prepared, list[int]]:
        """The same without the operations at these positions, and the positions to prepare again.

        Where the last operation on a key is gone, an earlier one counts again.
        """
        searches = [s for s in self.batch.searches if s.position not in gone]
        puts = self.batch.writes.puts
        lost = {position for put in puts if put.positions[-1] in gone for position in put.positions}
        part = _part(self, searches, tuple(put for put in puts if put.positions[-1] not in gone))
        positions = [
            position for position in self.positions if position not in gone and position not in lost
        ]
        again = [
            position for position in self.positions if position in lost and position not in gone
        ]
        return part._replace(positions=positions, to_refresh=self.to_refresh), again


def validate(op: Op, tables: StoreTables) -> None:
    """Raise what is wrong with an operation by itself, as `prepare` would."""
    _parse([op], tables)


def run(
    ops: Iterable[Op], tables: StoreTables, sizes: LargeNamespaces | None = None
) -> Flow[list[Result]]:
    """Perform a batch; the result holds one entry per operation, in order.

    ``sizes`` remembers from one batch to the next which namespaces are large.

    Raises:
        As `prepare`.
    """
    prepared = yield from prepare(ops, tables)
    return (yield from complete(prepared, tables, sizes or LargeNamespaces()))


def prepare(ops: Iterable[Op], tables: StoreTables) -> Flow[Prepared]:
    """Check a batch, read what needs no vector, and embed.

    Raises:
        InvalidItemError, InvalidNamespaceError, InvalidFilterError, ConfigurationError: for an
            operation that cannot be performed; nothing was read or written.
        EmbeddingResponseError: for unusable vectors; nothing was written.
    """
    batch = _parse(ops, tables)
    results: list[Result] = [None] * batch.size
    new, to_refresh = yield from _read_at_once(batch, results, tables)
    queries = [s.query for s in batch.searches if s.query is not None]
    vectors = yield from _embed(new, queries, tables)
    return Prepared(batch, range(batch.size), results, to_refresh, new, vectors)


def complete(prepared: Prepared, tables: StoreTables, sizes: LargeNamespaces) -> Flow[list[Result]]:
    """Search by meaning, and write; the results are those of its positions, in their order."""
    batch, positions, results, to_refresh, new, vectors = prepared
    to_refresh = to_refresh + (yield from _read_by_meaning(batch, vectors, results, tables, sizes))
    if to_refresh:
        yield from _refresh(to_refresh, tables)
    if batch.writes.puts:
        yield from _write(batch.writes, new, vectors, tables)
    return [results[position] for position in positions]


def split(prepared: Prepared, at_most: int) -> list[Prepared]:
    """The same in parts for `finish`, of operations that need not take effect together.

    Those on one key share a part, and those that are done already are in the first.
    """
    searches = [s for s in prepared.batch.searches if s.query is not None]
    puts = prepared.batch.writes.puts
    count = min(at_most, (len(searches) + len(puts)) // _LEAST_PART)
    if count < 2:
        return [prepared]
    parts = [_part(prepared, searches[n::count], puts[n::count]) for n in range(count)]
    later = {position for part in parts[1:] for position in part.positions}
    rest = [position for position in prepared.positions if position not in later]
    return [parts[0]._replace(positions=rest, to_refresh=prepared.to_refresh), *parts[1:]]


def _part(prepared: Prepared, searches: list[Search], puts: tuple[Put, ...]) -> Prepared:
    writes = Writes(puts)
    return prepared._replace(
        batch=prepared.batch._replace(searches=searches, writes=writes),
        positions=[s.position for s in searches]
        + [position for put in puts for position in put.positions],
        to_refresh=[],
        new=tuple(set(writes.texts) & set(prepared.new)),
    )


def _parse(ops: Iterable[Op], tables: StoreTables) -> Batch:
    gets: list[Get] = []
    searches: list[Search] = []
    listings: list[tuple[int, Statement]] = []
    puts: list[tuple[int, PutOp]] = []
    size = 0
    for position, op in enumerate(ops):
        size += 1
        check_labels(op)
        if isinstance(op, GetOp):
            gets.append(get.parse(position, op))
        elif isinstance(op, SearchOp):
            searches.append(search.parse(position, paged(op), tables))
        elif isinstance(op, ListNamespacesOp):
            listings.append((position, namespaces.parse(op, tables)))
        elif isinstance(op, PutOp):
            puts.append((position, op))
        else:
            raise TypeError(f"unknown operation type: {type(op).__name__}")
    return Batch(size, gets, searches, listings, put.parse(puts, tables))


def _read_at_once(
    batch: Batch, results: list[Result], tables: StoreTables
) -> Flow[tuple[tuple[Text, ...], list[Address]]]:
    """Read what needs no vector; return the texts to embed and the items whose TTL to refresh."""
    recent = [s for s in batch.searches if s.query is None]
    texts = batch.writes.texts
    statements = [
        *([get.statement(batch.gets, tables)] if batch.gets else []),
        *([put.select_embedded(texts, tables)] if texts else []),
        *([namespaces.PLANNER_SETTINGS] if batch.listings else []),
        *(statement for _, statement in batch.listings),
        *search.recent(recent, tables),
    ]
    if not statements:
        return (), []
    replies: Iterator[Rows] = iter((yield Transaction(tuple(statements))))
    to_refresh: list[Address] = []
    if batch.gets:
        found, to_refresh = get.items(batch.gets, next(replies), tables)
        for position, item in found.items():
            results[position] = item
    new = put.not_embedded(texts, next(replies)) if texts else ()
    if batch.listings:
        next(replies)
    for position, _ in batch.listings:
        results[position] = namespaces.listed(next(replies))
    return new, to_refresh + _take(recent, list(replies), results, tables)


def _embed(
    documents: Sequence[Text], queries: Sequence[str], tables: StoreTables
) -> Flow[Embedded]:
    if tables.index is None or not (documents or queries):
        return Embedded({}, {})
    asked = request(documents, queries)
    return checked(asked, (yield asked), tables.index)


def _read_by_meaning(
    batch: Batch,
    vectors: Embedded,
    results: list[Result],
    tables: StoreTables,
    sizes: LargeNamespaces,
) -> Flow[list[Address]]:
    searches = [s for s in batch.searches if s.query is not None]
    if not searches:
        return []
    # Cosine ranks nothing by a vector without a direction.
    lost = [s for s in searches if _is_lost(vectors.queries[s.query or ""], tables)]
    ranked = [s for s in searches if s not in lost]
    found = yield from nearest(ranked, vectors.queries, tables, sizes)
    to_refresh = _take(ranked, found, results, tables)
    if lost:
        replies = yield Transaction(tuple(search.recent(lost, tables)))
        to_refresh += _take(lost, replies, results, tables)
    return to_refresh


def _take(
    searches: Sequence[Search], replies: Sequence[Rows], results: list[Result], tables: StoreTables
) -> list[Address]:
    """Put the items found in their positions; return those whose TTL is to be refreshed."""
    to_refresh: list[Address] = []
    # Planner settings are answered before the searches.
    for s, rows in zip(searches, replies[len(replies) - len(searches) :], strict=True):
        results[s.position], late = search.items(s, rows, tables)
        to_refresh += late
    return to_refresh


def _is_lost(query: Vector | HalfVector, tables: StoreTables) -> bool:
    return tables.indexed.distance == "cosine" and not any(query.to_list())


def _refresh(to_refresh: Sequence[Address], tables: StoreTables) -> Flow[None]:
    """A reader that may not write still gets what it read."""
    try:
        refresh = (get.refresh(to_refresh, tables),)
        yield Transaction(refresh, writes=True, is_idempotent=True, is_optional=True)
    except (
        psycopg.errors.ReadOnlySqlTransaction,
        psycopg.errors.InsufficientPrivilege,
    ) as exc:
        logger.debug("ttl of %d items not refreshed: %s", len(to_refresh), exc)


def _write(
    writes: Writes, new: Sequence[Text], vectors: Embedded, tables: StoreTables
) -> Flow[None]:
    try:
        yield from _write_all(writes, new, vectors, tables)
    except psycopg.errors.ProgramLimitExceeded as exc:
        if (named := put.too_large(writes)) is None:
            raise
        raise named from exc


def _write_all(
    writes: Writes, new: Sequence[Text], vectors: Embedded, tables: StoreTables
) -> Flow[None]:
    try:
        yield _marked(put.statements(writes, new, vectors.documents, tables), tables)
    except psycopg.errors.DivisionByZero:
        # A vector we meant to keep was replaced by a concurrent write: rely on none of them.
        kept = [text for text in writes.texts if text.text not in vectors.documents]
        more = yield from _embed(kept, (), tables)
        every = vectors.documents | more.documents
        yield _marked(put.statements(writes, writes.texts, every, tables), tables)


def _marked(statements: tuple[Statement, ...], tables: StoreTables) -> Transaction:
    return Transaction(statements, writes=True, marking=marking(tables))
