"""Whether what callers saw of a store can be explained: a checker of histories of registers.

Each key is a register: a write sets it, a read finds it. A history is explained when all of its
operations can be put in one order, in which each read finds what was written last, and which keeps
the order of operations that did not overlap in time (linearizability). A write that failed may have
been applied at any time after it began, or never.

With values that are written once each, no search is needed (P. B. Gibbons and E. Korach, Testing
Shared Memories, SIAM Journal on Computing 26, 1997, theorem 4.9): what happened to a value spans a
zone of time, and two zones must not contradict each other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Literal


@dataclass(frozen=True, slots=True)
class Operation:
    """One call and what came of it; times in seconds of one monotonic clock.

    Args:
        value: written or found, a different one for each write; None for a key that is not there.
        end: of a write that failed, ``inf``: it may be applied later or never.
    """

    kind: Literal["write", "read"]
    key: str
    value: str | None
    begin: float
    end: float

    def __str__(self) -> str:
        until = "?" if self.end == inf else f"{self.end:.3f}"
        return f"{self.kind} of {self.value} from {self.begin:.3f} to {until}"


@dataclass(frozen=True, slots=True)
class _Zone:
    """From the first end to the last begin of the operations on a value, in either order."""

    value: str | None
    first_end: float
    last_begin: float
    of: tuple[Operation, ...]

    @property
    def is_forward(self) -> bool:
        """Whether the value was held all the time from the first end to the last begin."""
        return self.first_end < self.last_begin

    def contradicts(self, other: _Zone) -> bool:
        """Whether both values would have to be held at one time, given that one is forward."""
        return self.first_end < other.last_begin and other.first_end < self.last_begin


def violations(history: Iterable[Operation]) -> list[str]:
    """What no order of the operations explains, key by key; empty where all is well.

    Raises:
        ValueError: a value was written twice to a key, so that its reads tell nothing.
    """
    by_key: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        by_key[operation.key].append(operation)
    return [f"{key}: {words}" for key, some in by_key.items() for words in _of_key(some)]


def _of_key(operations: list[Operation]) -> Iterator[str]:
    writes: dict[str | None, Operation] = {None: Operation("write", "", None, -inf, -inf)}
    reads: defaultdict[str | None, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.kind == "read":
            reads[operation.value].append(operation)
        elif operation.value in writes:
            raise ValueError(f"{operation.value} was written twice")
        else:
            writes[operation.value] = operation
    for value in reads.keys() - writes.keys():
        yield f"{reads[value][0]}, which was never written"
    zones = []
    for value, write in writes.items():
        for read in reads[value]:
            if read.end < write.begin:
                yield f"{read}, before the {write}"
        if write.end < inf or reads[value]:
            of = (write, *reads[value])
            zones.append(_Zone(value, min(o.end for o in of), max(o.begin for o in of), of))
    yield from _contradictions(zones)


def _contradictions(zones: list[_Zone]) -> Iterator[str]:
    # A value that is held from one time to another leaves no room for another that is held, nor
    # for one whose operations all lie within. Sorted, only neighbours need to be compared.
    held = sorted((z for z in zones if z.is_forward), key=lambda zone: zone.first_end)
    pairs = list(pairwise(held))
    first_ends = [zone.first_end for zone in held]
    for zone in zones:
        before = bisect_left(first_ends, zone.last_begin)
        if not zone.is_forward and before:
            pairs.append((held[before - 1], zone))
    for zone, other in pairs:
        if zone.contradicts(other):
            yield f"{_shown(other)} cannot be ordered with {_shown(zone)}"


def _shown(zone: _Zone) -> str:
    return "; ".join(map(str, (*zone.of[:3], *zone.of[-1:])))
