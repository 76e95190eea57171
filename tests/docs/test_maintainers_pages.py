"""The pages for maintainers name what exists, and the picture is that of today's imports."""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from docs import draw_rooms
from tests.test_shape import PACKAGE

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "docs" / "architecture.md"]
NAMED = re.compile(r"`([^`\n]+)`")
A_FOLDER = re.compile(r"[\w.-]+(/[\w.-]+)*/")
A_NAME = re.compile(r"([A-Z]\w*[a-z]\w*|_?[a-z]\w*_\w+)(\(\))?")


def named(page: Path) -> list[str]:
    """What stands between backticks, outside of blocks of code."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return NAMED.findall(prose)


@cache
def code() -> str:
    """Everything that is written in Python here."""
    folders = (PACKAGE, ROOT / "tests", ROOT / "docs")
    return "\n".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))


def test_the_folders_that_the_pages_name_exist() -> None:
    """In the repository, or in the package; test_readme.py looks for the files and links."""
    folders = [name for page in PAGES for name in named(page) if A_FOLDER.fullmatch(name)]
    assert folders
    assert [f for f in folders if not ((ROOT / f).is_dir() or (PACKAGE / f).is_dir())] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_classes_and_functions_that_a_page_names_exist(page: Path) -> None:
    """A test is defined; another name is one that the code uses."""
    names = named(page)
    tests = [name for name in names if name.startswith("test_")]
    others = [
        name for name in names if re.fullmatch(r"[A-Z]\w*[a-z]\w*|_?[a-z]\w*_\w+(\(\))?", name)
    ]
    assert tests
    assert [name for name in tests if f"def {name}(" not in code()] == []
    assert [n for n in others if not re.search(rf"\b{n.removesuffix('()')}\b", code())] == []


def test_the_examples_run() -> None:
    """The flow answered by hand and the text of a search, one after the other as on the page."""
    flow, search = re.findall(r"```python\n(.*?)```", PAGES[-1].read_text(), re.DOTALL)
    exec(compile(flow + search, "architecture.md", "exec"), {"__name__": "page"})


def test_the_picture_is_drawn_from_todays_imports() -> None:
    """``python docs/draw_rooms.py`` draws it again."""
    is_current = draw_rooms.PICTURE.read_text() == draw_rooms.svg()
    assert is_current, "imports or a room's first line have changed: python docs/draw_rooms.py"


def test_the_picture_shows_every_room() -> None:
    """A folder of the package, and a module at its top that does something."""
    shown = set(draw_rooms.rooms())
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    assert shown == (folders | modules) - draw_rooms.LEFT_OUT


def test_pre_commit_runs_what_ci_runs_of_lint() -> None:
    """One list of checks, in the Makefile."""
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (hook,) = repository["hooks"]
    assert hook["entry"] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_each_finding_is_in_the_table_and_pinned() -> None:
    """One script, one row, and versions that do not move."""
    folder = ROOT / "findings"
    scripts = sorted(path.name for path in folder.glob("*.sh"))
    assert re.findall(r"^\| \[.*?\]\((.*?)\)", (folder / "README.md").read_text(), re.M) == scripts
    for name in scripts:
        text = (folder / name).read_text()
        assert text.startswith("#!/usr/bin/env bash\n# "), name
        assert "==" in text, name
        assert "langgraph_aurora_store" not in text, name
