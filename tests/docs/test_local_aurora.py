"""The page on the local Aurora: its example runs, its names exist, its commands are all."""

import re
from pathlib import Path

import pytest

from langgraph_aurora_store.local import LocalAurora
from langgraph_aurora_store.local.stdin_commands import COMMANDS

PAGE = (Path(__file__).parents[2] / "docs" / "local-aurora.md").read_text()


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, without AWS."""
    [example] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(example, "local-aurora.md", "exec"), {"__name__": "page"})


def test_the_commands_are_those_of_the_shell() -> None:
    """Each is in the table, with the method that it calls."""
    table = PAGE.partition("| command |")[2].partition("\n\n")[0]
    listed = [
        name for cell in re.findall(r"^\| (.*?) \| ", table, re.M) for name in cell.split("`")
    ]
    first_words = {name.split()[0] for name in listed if name.strip(" ,-")}
    assert first_words == COMMANDS.keys()


def test_the_names_of_the_page_exist() -> None:
    """Methods and properties of the class."""
    called = set(re.findall(r"`([a-z_]+)\(", PAGE)) | {"reader_lag_s", "connections_per_s"}
    called |= {"delay_s", "stalled", "reader_port", "refusals", "describe_denied", "sslrootcert"}
    assert len(called) > 15
    assert [name for name in called if not hasattr(LocalAurora, name)] == []
