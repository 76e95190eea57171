"""docs/checkpoints.md: its examples run as they stand."""

import re
from pathlib import Path

import pytest

from tests.support.database import Database
from tests.support.store_kinds import in_process

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_run(database: Database, number: int) -> None:
    """Each in a process of its own, which knows the cluster by its environment."""
    told = in_process(database, EXAMPLES[number])
    assert told == ("2 messages\n" if number == 0 else "")
