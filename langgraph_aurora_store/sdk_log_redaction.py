"""Keeps texts and credentials out of the SDKs' own DEBUG logs.

botocore logs a request's parameters, its headers, the canonical request it signs and answers with
keys in them, and older openai clients the request's options with the texts. Their DEBUG records are
dropped while a call of this package is under way in the same thread or task, and only then; INFO,
WARNING and above always pass, and so does what others log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

from typing_extensions import override

_is_redacting: ContextVar[bool] = ContextVar("langgraph_aurora_store_redacting", default=False)

# Every module of botocore 1.44 that logs; a test walks them, so that a new one shows.
BOTOCORE_LOGGERS = (
    "botocore",
    "botocore.args",
    "botocore.auth",
    "botocore.awsrequest",
    "botocore.client",
    "botocore.compat",
    "botocore.compress",
    "botocore.configprovider",
    "botocore.credentials",
    "botocore.discovery",
    "botocore.endpoint",
    "botocore.endpoint_provider",
    "botocore.handlers",
    "botocore.history",
    "botocore.hooks",
    "botocore.httpchecksum",
    "botocore.httpsession",
    "botocore.loaders",
    "botocore.monitoring",
    "botocore.paginate",
    "botocore.parsers",
    "botocore.plugin",
    "botocore.regions",
    "botocore.response",
    "botocore.retries.adaptive",
    "botocore.retries.special",
    "botocore.retries.standard",
    "botocore.retryhandler",
    "botocore.session",
    "botocore.tokens",
    "botocore.useragent",
    "botocore.utils",
    "botocore.waiter",
)
OPENAI_LOGGERS = (
    "openai",
    "openai._base_client",
    "openai._legacy_response",
    "openai._response",
)
_LOGGERS = {"botocore": BOTOCORE_LOGGERS, "openai": OPENAI_LOGGERS}


class _DropsDebug(logging.Filter):
    @override
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG or not _is_redacting.get()


_FILTER = _DropsDebug()


@contextmanager
def redact_sdk_logs(sdk: str = "botocore") -> Iterator[None]:
    """Drop the DEBUG records of an SDK, ``botocore`` or ``openai``, within this block.

    The block counts for its thread or task; a thread that it starts needs one of its own.
    """
    _attach(sdk)
    token = _is_redacting.set(True)
    try:
        yield
    finally:
        _is_redacting.reset(token)


@cache
def _attach(sdk: str) -> None:
    for name in _LOGGERS[sdk]:
        logging.getLogger(name).addFilter(_FILTER)


class QuietBytes(bytes):
    """A request body that does not print itself wherever a log line or a tracer would."""

    @override
    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"

    __str__ = __repr__
