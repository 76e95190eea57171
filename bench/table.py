"""A row of figures, and a table of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from time import perf_counter


@dataclass(frozen=True)
class Row:
    """One measurement: the parent's figure, ours, and that of the least that must be done."""

    what: str
    unit: str
    ours: float
    parent: float | None = None
    floor: float | None = None
    floor_is: str = ""
    aim: str = ""
    holds: bool | None = None


def timed_ms(action: Callable[[], object], *, runs: int = 30, warm_up: int = 5) -> float:
    """The median duration of an action in milliseconds."""
    for _ in range(warm_up):
        action()
    durations = []
    for _ in range(runs):
        begun = perf_counter()
        action()
        durations.append(perf_counter() - begun)
    return median(durations) * 1000


def as_markdown(rows: Iterable[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| what | unit | PostgresStore | AuroraStore | floor | aim | holds |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for row in rows:
        floor = f"{_number(row.floor)} ({row.floor_is})" if row.floor is not None else "–"
        holds = {None: "–", True: "yes", False: "**no**"}[row.holds]
        lines.append(
            f"| {row.what} | {row.unit} | {_number(row.parent)} | {_number(row.ours)}"
            f" | {floor} | {row.aim or '–'} | {holds} |"
        )
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if value == int(value) and abs(value) >= 10:
        return f"{int(value):,}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:,.1f}"
