"""A batch of LangGraph operations as one conversation.

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
    validate_op_namespace,
)

from langgraph_aurora_store.sql import get, namespaces, put, search
from langgraph_aurora_store.sql.conditions import paged
from langgraph_aurora_store.sql.flow import Flow, Rows, Statement, Transaction
from langgraph_aurora_store.sql.get import Address, Get
from langgraph_aurora_store.sql.put import Put, Writes
from langgraph_aurora_store.sql.search import Search
from langgraph_aurora_store.sql.tables import StoreTables
from langgraph_aurora_store.sql.texts import Embedded, Text, checked, request
from langgraph_aurora_store.sql.vector_search import LargeNamespaces, nearest
from langgraph_aurora_store.sql.write_marks import marking

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

    ``places`` are those of the operations that it settles, and ``results`` theirs as far as they
    are known; ``due`` are the items read that are due for renewal, ``new`` the texts to write.
    """

    batch: Batch
    places: Sequence[int]
    results: list[Result]
    due: list[Address]
    new: tuple[Text, ...]
    vectors: Embedded

    def without(self, gone: Collection[int]) -> tuple[Prepared, list[int]]:
        """The same without the operations at these places, and the places to prepare anew.

        Where the last operation on a key is gone, an earlier one counts again.
        """
        searches = [s for s in self.batch.searches if s.place not in gone]
        puts = self.batch.writes.puts
        lost = {place for put in puts if put.places[-1] in gone for place in put.places}
        part = _part(self, searches, tuple(put for put in puts if put.places[-1] not in gone))
        places = [place for place in self.places if place not in gone and place not in lost]
        anew = [place for place in self.places if place in lost and place not in gone]
        return part._replace(places=places, due=self.due), anew


def validate(op: Op, layout: StoreTables) -> None:
    """Raise what is wrong with an operation by itself, as `prepare` would."""
    _sorted_out([op], layout)


def converse(
    ops: Iterable[Op], layout: StoreTables, sizes: LargeNamespaces | None = None
) -> Flow[list[Result]]:
    """Perform a batch; the result holds one entry per operation, in order.

    ``sizes`` remembers from one batch to the next which namespaces are large.

    Raises:
        As `prepare`.
    """
    prepared = yield from prepare(ops, layout)
    return (yield from finish(prepared, layout, sizes or LargeNamespaces()))


def prepare(ops: Iterable[Op], layout: StoreTables) -> Flow[Prepared]:
    """Check a batch, read what needs no vector, and embed.

    Raises:
        InvalidItemError, InvalidNamespaceError, InvalidFilterError, ConfigurationError: for an
            operation that cannot be performed; nothing was read or written.
        EmbeddingResponseError: for unusable vectors; nothing was written.
    """
    batch = _sorted_out(ops, layout)
    results: list[Result] = [None] * batch.size
    new, due = yield from _read_at_once(batch, results, layout)
    queries = [s.query for s in batch.searches if s.query is not None]
    vectors = yield from _embed(new, queries, layout)
    return Prepared(batch, range(batch.size), results, due, new, vectors)


def finish(prepared: Prepared, layout: StoreTables, sizes: LargeNamespaces) -> Flow[list[Result]]:
    """Search by meaning, and write; the results are those of its places, in their order."""
    batch, places, results, due, new, vectors = prepared
    due = due + (yield from _read_by_meaning(batch, vectors, results, layout, sizes))
    if due:
        yield from _renew(due, layout)
    if batch.writes.puts:
        yield from _write(batch.writes, new, vectors, layout)
    return [results[place] for place in places]


def apart(prepared: Prepared, at_most: int) -> list[Prepared]:
    """The same in parts for `finish`, of operations that need not take effect together.

    Those on one key share a part, and those that are done already are in the first.
    """
    searches = [s for s in prepared.batch.searches if s.query is not None]
    puts = prepared.batch.writes.puts
    count = min(at_most, (len(searches) + len(puts)) // _LEAST_PART)
    if count < 2:
        return [prepared]
    parts = [_part(prepared, searches[n::count], puts[n::count]) for n in range(count)]
    later = {place for part in parts[1:] for place in part.places}
    rest = [place for place in prepared.places if place not in later]
    return [parts[0]._replace(places=rest, due=prepared.due), *parts[1:]]


def _part(prepared: Prepared, searches: list[Search], puts: tuple[Put, ...]) -> Prepared:
    writes = Writes(puts)
    return prepared._replace(
        batch=prepared.batch._replace(searches=searches, writes=writes),
        places=[s.place for s in searches] + [place for put in puts for place in put.places],
        due=[],
        new=tuple(set(writes.texts) & set(prepared.new)),
    )


def _sorted_out(ops: Iterable[Op], layout: StoreTables) -> Batch:
    gets: list[Get] = []
    searches: list[Search] = []
    listings: list[tuple[int, Statement]] = []
    puts: list[tuple[int, PutOp]] = []
    size = 0
    for place, op in enumerate(ops):
        size += 1
        validate_op_namespace(op)
        if isinstance(op, GetOp):
            gets.append(get.plan(place, op))
        elif isinstance(op, SearchOp):
            searches.append(search.plan(place, paged(op), layout))
        elif isinstance(op, ListNamespacesOp):
            listings.append((place, namespaces.plan(op, layout)))
        elif isinstance(op, PutOp):
            puts.append((place, op))
        else:
            raise TypeError(f"unknown operation type: {type(op).__name__}")
    return Batch(size, gets, searches, listings, put.plan(puts, layout))


def _read_at_once(
    batch: Batch, results: list[Result], layout: StoreTables
) -> Flow[tuple[tuple[Text, ...], list[Address]]]:
    """What needs no vector; returns the texts to embed and the items due for renewal."""
    recent = [s for s in batch.searches if s.query is None]
    texts = batch.writes.texts
    statements = [
        *([get.statement(batch.gets, layout)] if batch.gets else []),
        *([put.known(texts, layout)] if texts else []),
        *([namespaces.STEERING] if batch.listings else []),
        *(statement for _, statement in batch.listings),
        *search.recent(recent, layout),
    ]
    if not statements:
        return (), []
    replies: Iterator[Rows] = iter((yield Transaction(tuple(statements))))
    due: list[Address] = []
    if batch.gets:
        found, due = get.items(batch.gets, next(replies), layout)
        for place, item in found.items():
            results[place] = item
    new = put.missing(texts, next(replies)) if texts else ()
    if batch.listings:
        next(replies)
    for place, _ in batch.listings:
        results[place] = namespaces.listed(next(replies))
    return new, due + _take(recent, list(replies), results, layout)


def _embed(
    documents: Sequence[Text], queries: Sequence[str], layout: StoreTables
) -> Flow[Embedded]:
    if layout.index is None or not (documents or queries):
        return Embedded({}, {})
    asked = request(documents, queries)
    return checked(asked, (yield asked), layout.index)


def _read_by_meaning(
    batch: Batch,
    vectors: Embedded,
    results: list[Result],
    layout: StoreTables,
    sizes: LargeNamespaces,
) -> Flow[list[Address]]:
    searches = [s for s in batch.searches if s.query is not None]
    if not searches:
        return []
    # Cosine ranks nothing by a vector without a direction.
    lost = [s for s in searches if _is_lost(vectors.queries[s.query or ""], layout)]
    ranked = [s for s in searches if s not in lost]
    found = yield from nearest(ranked, vectors.queries, layout, sizes)
    due = _take(ranked, found, results, layout)
    if lost:
        replies = yield Transaction(tuple(search.recent(lost, layout)))
        due += _take(lost, replies, results, layout)
    return due


def _take(
    searches: Sequence[Search], replies: Sequence[Rows], results: list[Result], layout: StoreTables
) -> list[Address]:
    """Put the items found in their places; returns those due for renewal."""
    due: list[Address] = []
    # What steers the searches is answered before them.
    for s, rows in zip(searches, replies[len(replies) - len(searches) :], strict=True):
        results[s.place], late = search.items(s, rows, layout)
        due += late
    return due


def _is_lost(query: Vector | HalfVector, layout: StoreTables) -> bool:
    return layout.indexed.distance == "cosine" and not any(query.to_list())


def _renew(due: Sequence[Address], layout: StoreTables) -> Flow[None]:
    """A reader that may not write still gets what it read."""
    try:
        renewal = (get.renewal(due, layout),)
        yield Transaction(renewal, writes=True, is_idempotent=True, is_optional=True)
    except (
        psycopg.errors.ReadOnlySqlTransaction,
        psycopg.errors.InsufficientPrivilege,
    ) as exc:
        logger.debug("ttl of %d items not renewed: %s", len(due), exc)


def _write(
    writes: Writes, new: Sequence[Text], vectors: Embedded, layout: StoreTables
) -> Flow[None]:
    try:
        yield from _write_all(writes, new, vectors, layout)
    except psycopg.errors.ProgramLimitExceeded as exc:
        if (named := put.too_large(writes)) is None:
            raise
        raise named from exc


def _write_all(
    writes: Writes, new: Sequence[Text], vectors: Embedded, layout: StoreTables
) -> Flow[None]:
    try:
        yield _marked(put.statements(writes, new, vectors.documents, layout), layout)
    except psycopg.errors.DivisionByZero:
        # A vector we meant to keep was replaced by a concurrent write: rely on none of them.
        kept = [text for text in writes.texts if text.text not in vectors.documents]
        more = yield from _embed(kept, (), layout)
        every = vectors.documents | more.documents
        yield _marked(put.statements(writes, writes.texts, every, layout), layout)


def _marked(statements: tuple[Statement, ...], layout: StoreTables) -> Transaction:
    return Transaction(statements, writes=True, marking=marking(layout))
