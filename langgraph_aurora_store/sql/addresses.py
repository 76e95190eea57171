"""Namespaces and keys as the tables hold them."""

from __future__ import annotations

from typing import TypeAlias

from langgraph.store.base import InvalidNamespaceError, Op, validate_op_namespace

from langgraph_aurora_store.errors import InvalidItemError
from langgraph_aurora_store.sql.json_values import at, is_storable
from langgraph_aurora_store.validation import brief

Namespace: TypeAlias = tuple[str, ...]

# Characters of a message of LangGraph's, which quotes a label and its whole namespace.
_LONGEST_MESSAGE = 500


def check_labels(op: Op) -> None:
    """LangGraph's check of an operation's namespaces, its message cut to what can be read.

    Raises:
        InvalidNamespaceError: for a label that no namespace may hold.
    """
    try:
        validate_op_namespace(op)
    except InvalidNamespaceError as error:
        said = str(error)
        if len(said) <= _LONGEST_MESSAGE:
            raise
        half = _LONGEST_MESSAGE // 2
        raise InvalidNamespaceError(f"{said[:half]}...{said[-half:]}") from None


def prefix_of(namespace: Namespace) -> str:
    """The text the tables hold for a namespace: its labels, joined by dots.

    Raises:
        InvalidNamespaceError: for a label that PostgreSQL cannot hold, or a text in place of a
            tuple, which would be one of its letters.
    """
    if isinstance(namespace, str):
        raise InvalidNamespaceError(f"a namespace is a tuple of labels, not {brief(namespace)}")
    prefix = ".".join(namespace)
    if not is_storable(prefix):
        raise InvalidNamespaceError(
            "Namespace labels cannot contain NUL characters or lone surrogates. Got"
            f" {brief(namespace)}"
        )
    return prefix


def namespace_of(prefix: str) -> Namespace:
    """The namespace a text of the tables stands for."""
    return tuple(prefix.split(".")) if prefix else ()


def checked_key(namespace: Namespace, key: object) -> str:
    """A key as given, if the tables can hold it.

    Raises:
        InvalidItemError: for a key that is not text, or text that cannot be stored.
    """
    if not isinstance(key, str):
        raise InvalidItemError(f"{at(namespace, key)}: the key must be text")
    if not is_storable(key):
        raise InvalidItemError(
            f"{at(namespace, key)}: the key holds a NUL character or a lone surrogate"
        )
    return key
