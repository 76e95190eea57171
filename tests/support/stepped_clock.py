"""A clock that moves only when something sleeps."""

import asyncio
import threading


class SteppedClock:
    """Time that a sleep advances at once; ``sleeps`` holds every one, ``luck`` the random draw."""

    def __init__(self, luck: float = 1.0) -> None:
        self.luck = luck
        self.sleeps: list[float] = []
        self._now = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        return self._now

    def chance(self) -> float:
        return self.luck

    def sleep(self, seconds: float, stop: threading.Event) -> None:
        with self._lock:
            self.sleeps.append(seconds)
            self._now += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds, threading.Event())
        await asyncio.sleep(0)
