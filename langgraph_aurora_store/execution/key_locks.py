"""The order of an event loop's writes to the same key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

from langgraph_aurora_store.errors import PoolTimeoutError

Address: TypeAlias = tuple[str, str]


class KeyLocks:
    """Lets one write of a key at a time begin; bound to the running loop, not thread-safe.

    A lock is held until its write has ended on the server, also when its callers have left: an
    abandoned write cannot overwrite a newer one.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._held: dict[Address, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def holding(self, keys: Sequence[Address]) -> AsyncIterator[None]:
        """Hold the locks of all ``keys``, once those that hold any of them have ended.

        Raises:
            PoolTimeoutError: an earlier write did not end within ``timeout_s``.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                while before := {self._held[key] for key in keys if key in self._held}:
                    await asyncio.wait(before)
        except TimeoutError:
            raise PoolTimeoutError(
                f"an earlier write of the same key has not ended within {self._timeout_s:.2f}"
                " s; see in pg_stat_activity what it waits for"
            ) from None
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held.update(dict.fromkeys(keys, ended))
        try:
            yield
        finally:
            for key in keys:
                del self._held[key]
            ended.set_result(None)
