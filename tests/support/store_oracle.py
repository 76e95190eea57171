"""LangGraph's InMemoryStore as an oracle: what our stores must answer, and where they differ."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from langgraph.store.base import Item, ListNamespacesOp, Op, PutOp, Result, SearchOp
from langgraph.store.memory import InMemoryStore, _compare_values

Address = tuple[tuple[str, ...], str]


class Oracle(InMemoryStore):
    """InMemoryStore, and everything in which a store of ours deliberately differs from it.

    1. An update keeps ``created_at``, and forgets every vector of the old value.
    2. A text that stands twice in a batch is embedded once; there it is an error.
    3. Blank text is not embedded, and a blank query is none.
    4. Without a query the newest come first; there it is the order of insertion.
    5. With a query only items that have a vector are found; there others fill the page.
    6. A value that cannot be compared with a filter's operand does not match; there it raises.
    7. A namespace is listed as long as it holds an item; there, once it was spoken of.
    8. Expired items are gone. It knows no ttl: its user deletes them.

    Beyond what this class can show: NUL characters, lone surrogates, NaN and values that are not
    JSON are refused; text compares with text; ``True`` is not ``1``; ``$in``, ``$contains`` and
    the rest of the filter language exist.
    """

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        return super().batch([_without_blank_query(op) for op in ops])

    def vectors(self) -> int:
        """How many texts have a vector."""
        return sum(len(paths) for keys in self._vectors.values() for paths in keys.values())

    def addresses(self) -> list[Address]:
        """Of every item, in order."""
        return sorted((ns, key) for ns, items in self._data.items() for key in items)

    def _extract_texts(self, put_ops: dict[Address, PutOp]) -> dict[str, list[Any]]:
        for namespace, key in put_ops:
            self._vectors[namespace].pop(key, None)
        texts = super()._extract_texts(put_ops)
        return {text: places for text, places in texts.items() if text.strip()}

    def _insertinmem_store(
        self, to_embed: dict[str, list[Any]], embeddings: list[list[float]]
    ) -> None:
        for places, embedding in zip(to_embed.values(), embeddings, strict=True):
            for namespace, key, path in places:
                self._vectors[namespace][key][path] = embedding

    def _apply_put_ops(self, put_ops: dict[Address, PutOp]) -> None:
        old = {(ns, key): self._data[ns].get(key) for ns, key in put_ops}
        super()._apply_put_ops(put_ops)
        now = datetime.now(UTC)
        for namespace, key in put_ops:
            if item := self._data[namespace].get(key):
                before = old[namespace, key]
                item.created_at = before.created_at if before else now
                item.updated_at = now

    def _filter_items(self, op: SearchOp) -> list[tuple[Item, list[list[float]]]]:
        depth = len(op.namespace_prefix)
        found = [
            (item, list(self._vectors[namespace].get(item.key, {}).values()))
            for namespace, items in self._data.items()
            for item in items.values()
            if namespace[:depth] == op.namespace_prefix and _matches(item, op.filter or {})
        ]
        found.sort(key=lambda pair: (".".join(pair[0].namespace), pair[0].key))
        if op.query:
            return [pair for pair in found if pair[1]]
        return sorted(found, key=lambda pair: pair[0].updated_at, reverse=True)

    def _handle_list_namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        for namespace in [ns for ns, items in self._data.items() if not items]:
            del self._data[namespace]
        return super()._handle_list_namespaces(op)


def _without_blank_query(op: Op) -> Op:
    if isinstance(op, SearchOp) and op.query and op.query.isspace():
        return op._replace(query=None)
    return op


def _matches(item: Item, filter_: dict[str, Any]) -> bool:
    try:
        return all(_compare_values(item.value.get(key), part) for key, part in filter_.items())
    except (TypeError, ValueError):
        return False
