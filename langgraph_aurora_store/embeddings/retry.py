"""When to try a request again: decides, never sleeps."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple, Protocol

from langgraph_aurora_store.errors import AuroraStoreError

FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 8.0


class Clock(Protocol):
    """Time and chance, so that a test can supply its own."""

    def now(self) -> float:
        """Seconds that only ever grow."""

    def chance(self) -> float:
        """A number from 0 up to 1."""

    def sleep(self, seconds: float, stop: threading.Event) -> None:
        """Block for this long, or until ``stop`` is set."""

    async def asleep(self, seconds: float) -> None:
        """Sleep without blocking the event loop."""


class SystemClock:
    """The machine's monotonic clock and a random source of its own."""

    def __init__(self) -> None:
        self._random = random.Random()  # noqa: S311  # jitter, no secret

    def now(self) -> float:
        """Seconds of ``time.monotonic``."""
        return time.monotonic()

    def chance(self) -> float:
        """A number from 0 up to 1."""
        return self._random.random()

    def sleep(self, seconds: float, stop: threading.Event) -> None:
        """Block for this long, or until ``stop`` is set."""
        stop.wait(seconds)

    async def asleep(self, seconds: float) -> None:
        """``asyncio.sleep``."""
        await asyncio.sleep(seconds)


class Failure(NamedTuple):
    """One failed attempt, explained: the error a user would get, and whether to try again.

    ``code`` is the service's short word for it, where it has one. ``remedy`` is what to do when
    trying again did not help. ``too_long`` says that the service found a text over its limit;
    ``fits`` is then the share of the text that would have been accepted, as far as the service
    said so.
    """

    error: AuroraStoreError
    transient: bool = False
    code: str = ""
    remedy: str = ""
    retry_after_s: float | None = None
    too_long: bool = False
    fits: float | None = None


class RetryBudget:
    """One request's attempts: exponential backoff with full jitter, within a deadline.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter
    """

    def __init__(self, clock: Clock, deadline_s: float) -> None:
        self._clock = clock
        self._deadline_s = deadline_s
        self._started = clock.now()
        self.attempts = 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first attempt began."""
        return self._clock.now() - self._started

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self._deadline_s - self.elapsed_s

    def delay_after(self, failure: Failure) -> float | None:
        """Seconds to wait before the next attempt, or None where there should be none."""
        self.attempts += 1
        if not failure.transient:
            return None
        longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (self.attempts - 1))
        delay = self._clock.chance() * longest + (failure.retry_after_s or 0.0)
        return delay if self.elapsed_s + delay < self._deadline_s else None


class RateLimitedWarning:
    """Lets one of many warnings through per ``period_s``."""

    def __init__(self, clock: Clock, period_s: float = 1.0) -> None:
        self._clock = clock
        self._period_s = period_s
        self._last = -math.inf
        self._lock = threading.Lock()

    def is_due(self) -> bool:
        """Whether it is time for the next one, which this then is."""
        now = self._clock.now()
        with self._lock:
            is_due = now - self._last >= self._period_s
            if is_due:
                self._last = now
            return is_due


def asks_for_retry(headers: Mapping[str, str], *, default: bool) -> bool:
    """What a response says of trying again by ``x-should-retry``, or ``default``.

    OpenAI and services that speak its protocol send it; their own clients let it decide.
    """
    lowered = {name.lower(): value.lower() for name, value in headers.items()}
    return {"true": True, "false": False}.get(lowered.get("x-should-retry", ""), default)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds a response asks to wait, in any of the forms in use, or None.

    RFC 9110, 10.2.3: a number of seconds or a date, which is compared with the response's own
    ``Date``; OpenAI also sends ``retry-after-ms``.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    try:
        if "retry-after-ms" in lowered:
            return max(0.0, float(lowered["retry-after-ms"]) / 1000)
        if "retry-after" not in lowered:
            return None
        return max(0.0, float(lowered["retry-after"]))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(lowered["retry-after"])
        return max(0.0, (until - parsedate_to_datetime(lowered["date"])).total_seconds())
    except (KeyError, TypeError, ValueError):
        return None
