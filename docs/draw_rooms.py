"""Draws the rooms of the package from its imports: ``python docs/draw_rooms.py`` writes the SVG.

A room is a folder, or a module at the top. It stands one line above the highest room that it
imports from. An arrow is left out where a longer way by other arrows says the same.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "langgraph_aurora_store"
PICTURE = Path(__file__).parent / "images" / "rooms.svg"
LEFT_OUT = {"__init__", "lazy_imports", "version"}  # they say nothing of how the package works

WIDTH, GAP, LINE = 250, 22, 16
TEXT_COLUMNS, MARGIN, ROW_GAP = 33, 20, 42


class Room(NamedTuple):
    """What is drawn of a room: its purpose, the rooms it imports from, and foreign packages."""

    name: str
    purpose: str
    below: frozenset[str]
    foreign: frozenset[str]


def rooms() -> dict[str, Room]:
    """Every room of the package, by name."""
    found = {}
    for path in sorted(PACKAGE.iterdir()):
        folder = path / "__init__.py"
        entry = folder if folder.exists() else path
        if entry.suffix != ".py" or path.stem in LEFT_OUT:
            continue
        modules = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        imported = {name for module in modules for name in _imported(ast.parse(module.read_text()))}
        own = {_room(name) for name in imported if name.partition(".")[0] == PACKAGE.name}
        foreign = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names
        purpose = (ast.get_docstring(ast.parse(entry.read_text())) or "").partition("\n")[0]
        found[path.stem] = Room(
            path.stem,
            purpose.replace("`", ""),
            frozenset(own - {path.stem, ""} - LEFT_OUT),
            frozenset(foreign - {PACKAGE.name, "typing_extensions"}),
        )
    return found


def _room(name: str) -> str:
    return name.removeprefix(PACKAGE.name).lstrip(".").partition(".")[0]


def _imported(tree: ast.AST) -> Iterator[str]:
    """What is imported when the code runs; an import for types alone draws no arrow."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE.name:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        else:
            yield from _imported(node)


def level(room: Room, known: dict[str, Room]) -> int:
    """How many rooms stand below it, one on the other."""
    return 1 + max((level(known[name], known) for name in room.below if name in known), default=-1)


def reached(room: Room, known: dict[str, Room]) -> set[str]:
    """The rooms that it imports from, and those that they import from."""
    below = [known[name] for name in room.below if name in known]
    return {other.name for other in below}.union(*(reached(other, known) for other in below))


def arrows(known: dict[str, Room]) -> list[tuple[str, str]]:
    """From each room to those below it that no other one below it reaches."""
    return [
        (room.name, name)
        for room in known.values()
        for name in sorted(room.below & known.keys())
        if not any(name in reached(known[other], known) for other in room.below & known.keys())
    ]


def svg() -> str:
    """The picture, the same for the same imports."""
    known = rooms()
    rows: dict[int, list[Room]] = {}
    for room in known.values():
        rows.setdefault(level(room, known), []).append(room)
    columns = max(len(row) for row in rows.values())
    width = 2 * MARGIN + columns * WIDTH + (columns - 1) * GAP
    boxes: dict[str, tuple[int, int, int]] = {}
    drawn: list[str] = []
    top = MARGIN
    for number in sorted(rows, reverse=True):
        row = rows[number]
        left = (width - len(row) * WIDTH - (len(row) - 1) * GAP) // 2
        height = max(LINE * len(_lines(room)) + 14 for room in row)
        for place, room in enumerate(row):
            x = left + place * (WIDTH + GAP)
            boxes[room.name] = (x, top, height)
            drawn += _box(room, x, top, height)
        top += height + ROW_GAP
    lines = [_arrow(boxes[one], boxes[other]) for one, other in arrows(known)]
    return "\n".join([*_head(width, top - ROW_GAP + MARGIN), *lines, *drawn, "</svg>", ""])


def _head(width: int, height: int) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        "<title>Rooms of langgraph_aurora_store, and which imports from which</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
        ' markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#5b6b7b"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]


def _lines(room: Room) -> list[tuple[str, str]]:
    is_folder = (PACKAGE / room.name).is_dir()
    foreign = ", ".join(sorted(room.foreign))
    return [
        (f"{room.name}/" if is_folder else f"{room.name}.py", 'font-weight="bold" font-size="13"'),
        *((line, "") for line in textwrap.wrap(room.purpose, TEXT_COLUMNS)),
        *((line, 'fill="#8a5a00"') for line in textwrap.wrap(foreign, TEXT_COLUMNS)),
    ]


def _box(room: Room, x: int, y: int, height: int) -> Iterator[str]:
    fill = "#e8f0fa" if (PACKAGE / room.name).is_dir() else "#f3f3f3"
    yield (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{height}" rx="6" fill="{fill}"'
        ' stroke="#5b6b7b"/>'
    )
    for number, (text, style) in enumerate(_lines(room), 1):
        yield f'<text x="{x + 8}" y="{y + 4 + LINE * number}" {style}>{escape(text)}</text>'


def _arrow(one: tuple[int, int, int], other: tuple[int, int, int]) -> str:
    x, y = one[0] + WIDTH // 2, one[1] + one[2]
    to_x, to_y = other[0] + WIDTH // 2, other[1]
    middle = (y + to_y) // 2
    return (
        f'<path d="M{x} {y}C{x} {middle} {to_x} {middle} {to_x} {to_y}" fill="none"'
        ' stroke="#5b6b7b" marker-end="url(#tip)"/>'
    )


if __name__ == "__main__":
    PICTURE.write_text(svg())
