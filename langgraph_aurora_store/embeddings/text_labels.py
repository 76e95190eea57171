"""What a text belongs to, so that a warning can name its memory and never its words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_labels: ContextVar[Sequence[str]] = ContextVar("langgraph_aurora_store_text_labels", default=())


@contextmanager
def text_labels(labels: Sequence[str]) -> Iterator[None]:
    """Name the texts of the embedding calls made inside the block, by position.

    ``labels[i]`` describes the i-th text passed to ``embed_documents`` or its async twin, for
    example ``"namespace ('chat', 'u1') key 'k'"``. Belongs to the current thread or task, and to
    the calls it makes; any ``Embeddings`` may be called in it, those of this package read it.
    A label is written to logs and errors as it is: put no text in it.
    """
    token = _labels.set(labels)
    try:
        yield
    finally:
        _labels.reset(token)


def label_of(position: int) -> str:
    """The label of the text at ``position``, or its number where it has none."""
    labels = _labels.get()
    return labels[position] if position < len(labels) else f"text {position + 1}"
