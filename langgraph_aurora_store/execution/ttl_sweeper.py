"""Sweepers delete expired items at an interval, and end with their store."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import weakref
from typing import Protocol

# Applications filter by the name of 0.1.0.
logger = logging.getLogger("langgraph_aurora_store.sweeper")


class Sweepable(Protocol):
    """A blocking store with items that expire."""

    def sweep_ttl(self) -> int:
        """Delete expired items; how many there were."""


class AsyncSweepable(Protocol):
    """The asyncio twin of `Sweepable`."""

    async def sweep_ttl(self) -> int:
        """Delete expired items; how many there were."""


class SweeperThread:
    """Sweeps a blocking store every ``interval_s`` seconds until stopped or the store is gone."""

    def __init__(self, store: Sweepable, interval_s: float) -> None:
        self._store = weakref.ref(store)
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self.future: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.future.add_done_callback(lambda _: self._stopped.set())
        self._thread = threading.Thread(target=self._run, daemon=True, name="aurora-store-sweeper")
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether it goes on sweeping."""
        return self._thread.is_alive() and not self._stopped.is_set()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Stop, and wait for a sweep in progress; whether it ended within ``timeout_s``."""
        self._stopped.set()
        # The last reference to a store may be dropped by its own sweeper.
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s) and self._sweep():
            pass
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(None)

    def _sweep(self) -> bool:
        store = self._store()
        if store is None:
            return False
        try:
            log_sweep(store.sweep_ttl())
        except Exception:
            logger.exception(
                "sweeping expired items failed; trying again in %s s", self._interval_s
            )
        return True


async def sweep_repeatedly(store: weakref.ref[AsyncSweepable], interval_s: float) -> None:
    """The asyncio twin of `SweeperThread`: cancel its task to stop it."""
    while True:
        await asyncio.sleep(interval_s)
        alive = store()
        if alive is None:
            return
        try:
            log_sweep(await alive.sweep_ttl())
        except Exception:
            logger.exception("sweeping expired items failed; trying again in %s s", interval_s)
        del alive


def log_sweep(deleted: int) -> None:
    """Log how many items a sweep deleted, if any."""
    if deleted:
        logger.info("deleted %d expired items", deleted)
