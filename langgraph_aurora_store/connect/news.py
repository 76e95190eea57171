"""The log of psycopg_pool, without what a pool of ours warns of itself, once for each trouble."""

from __future__ import annotations

import logging


class PoolName(str):
    """A pool's name, by which its lines in the log of psycopg_pool are told from others'."""

    __slots__ = ()

    @classmethod
    def noted(cls, name: str) -> PoolName:
        """The name, for a pool whose repeated lines are left out from now on."""
        logging.getLogger("psycopg.pool").addFilter(_is_news)  # adding it again does nothing
        return cls(name)


def _is_news(record: logging.LogRecord) -> bool:
    # psycopg_pool would repeat the trouble that `Health` warns of with every attempt.
    is_ours = isinstance(record.args, tuple) and any(isinstance(a, PoolName) for a in record.args)
    return not (is_ours and record.msg.startswith(("error connecting", "reconnection attempt")))
