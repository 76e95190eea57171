"""Keeps texts and credentials out of the SDKs' own DEBUG logs.

botocore logs a request's parameters, its headers and the canonical request it signs, and older
openai clients the request's options, each with the texts or a credential in it. Their DEBUG
records are dropped while a request of this package is under way in the same thread or task, and
only then; everything else they log is left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from typing_extensions import override

_under_way: ContextVar[bool] = ContextVar("langgraph_aurora_store_request", default=False)

BOTOCORE_LOGGERS = (
    "botocore.auth",
    "botocore.endpoint",
    "botocore.httpsession",
    "botocore.parsers",
    "botocore.retries.standard",
    "botocore.retryhandler",
    "botocore.tokens",
)
OPENAI_LOGGERS = ("openai", "openai._base_client", "openai._legacy_response")


class _WhileUnderWay(logging.Filter):
    @override
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG or not _under_way.get()


_FILTER = _WhileUnderWay()


def silence(loggers: tuple[str, ...]) -> None:
    """Attach the filter to these loggers, once."""
    for name in loggers:
        logging.getLogger(name).addFilter(_FILTER)


@contextmanager
def under_way() -> Iterator[None]:
    """Mark the block as a request of this package, in this thread or task."""
    token = _under_way.set(True)
    try:
        yield
    finally:
        _under_way.reset(token)


class QuietBytes(bytes):
    """A request body that does not print itself wherever a log line would."""

    @override
    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"

    __str__ = __repr__
