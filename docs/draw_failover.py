"""Draws what callers see at a failover: ``python docs/draw_failover.py`` writes the SVG.

The data is that of a real run, which ``python -m bench.failover 16 ours timeline`` writes: for each
tenth of a second how many calls ended and how long the longest took, and when the faults were.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("failover.json")
PICTURE = Path(__file__).parent / "images" / "failover.svg"

WIDTH, LEFT, RIGHT, TOP = 900, 70, 20, 96
LANE, GAP, LINE = 110, 34, 15
COLOURS = {"read": "#4a7fb5", "write": "#c0703a"}
FAULT = "#b03030"


def picture(data: dict[str, Any]) -> str:
    """The SVG of a run."""
    end = max(number for some in data["calls"].values() for number, _, _ in some) + 1
    scale = (WIDTH - LEFT - RIGHT) / (end * data["bin_s"])
    height = TOP + 2 * (LANE + GAP) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        *_faults(data["faults"], scale, height),
    ]
    for lane, kind in enumerate(("write", "read")):
        bottom = TOP + lane * (LANE + GAP) + LANE
        parts += _lane(kind, data["calls"][kind], bottom, data["bin_s"] * scale)
    parts += _axis(end * data["bin_s"], scale, height)
    return "\n".join([*parts, "</svg>", ""])


def _faults(faults: list[list[Any]], scale: float, height: int) -> Iterator[str]:
    for number, (name, begin, end) in enumerate(faults):
        x, wide = LEFT + begin * scale, max(2.0, (end - begin) * scale)
        y = 16 + number % 5 * LINE
        yield (
            f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{height - 30 - y}" '
            f'fill="{FAULT}" fill-opacity="0.15"/>'
        )
        anchor = "end" if x > WIDTH * 0.7 else "start"
        at = f'x="{x:.1f}" y="{y}" fill="{FAULT}" text-anchor="{anchor}"'
        yield f"<text {at}>{escape(name)}</text>"


def _lane(kind: str, bins: list[list[float]], bottom: int, width: float) -> Iterator[str]:
    most = max(count for _, count, _ in bins)
    yield f'<text x="8" y="{bottom - LANE + 10}">{kind}s per</text>'
    yield f'<text x="8" y="{bottom - LANE + 24}">0.1 s, of</text>'
    yield f'<text x="8" y="{bottom - LANE + 38}">{most:.0f}</text>'
    for number, count, longest in bins:
        tall = LANE * count / most
        yield (
            f'<rect x="{LEFT + number * width:.1f}" y="{bottom - tall:.1f}" '
            f'width="{width * 0.85:.1f}" height="{tall:.1f}" fill="{COLOURS[kind]}">'
            f"<title>{count:.0f} {kind}s, the longest {longest * 1000:.0f} ms</title></rect>"
        )
    worst = max(longest for _, _, longest in bins)
    yield f'<text x="{LEFT}" y="{bottom + 14}">longest {kind}: {worst:.2f} s</text>'


def _axis(seconds: float, scale: float, height: int) -> Iterator[str]:
    for second in range(0, int(seconds) + 1, 2):
        x = LEFT + second * scale
        yield f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{second} s</text>'


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(picture(json.loads(DATA.read_text())))


if __name__ == "__main__":
    main()
