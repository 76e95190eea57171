"""The README is true: its examples run as they stand."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest

from langgraph_aurora_store import errors
from langgraph_aurora_store.embeddings.models import MODELS
from langgraph_aurora_store.local import LocalAurora
from tests.support.bedrock_service import Bedrock

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "langgraph_aurora_store"
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "findings" / "README.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "examples").glob("*/README.md"),
]
SNIPPET, ASYNCIO, TESTING = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """A cluster of the README's name, and Bedrock."""
    with LocalAurora("agent-memory", export=False) as cluster, Bedrock() as bedrock:
        yield {**cluster.environment, "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": bedrock.url}


def run(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_snippet_recalls_what_it_put(environment: dict[str, str]) -> None:
    """The ten lines on the first screen run, through Bedrock's protocol."""
    assert "cloud services" in run(SNIPPET, environment)


def test_the_asyncio_example_runs(environment: dict[str, str]) -> None:
    """With nothing but the environment to go by."""
    assert "cloud services" in run(ASYNCIO, environment)


def test_the_example_of_a_test_runs() -> None:
    """A user's own test on a local Aurora, connections cut and all."""
    run(TESTING, {})


def test_the_table_of_embeddings_is_that_of_the_code() -> None:
    """Every model that is known is listed, with its dimensions, the default first."""
    listed = {
        name.partition(":")[2]: dims
        for names, dims in re.findall(r"^\| (`(?:bedrock|openai):.*?) \| (.*?) \|$", README, re.M)
        for name in re.findall(r"`(.*?)`", names)
    }
    assert listed == {name: model.choice for name, model in MODELS.items()}


# what the pages point to


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_points_to_is_there(page: Path) -> None:
    """Relative links, files named in code, and names of the package."""
    text = page.read_text()
    links = re.findall(r"\]\((?!https?://)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    files = re.findall(r"`([\w./-]+\.(?:py|md|pem|toml|yaml|json))`", text)
    assert [name for name in files if not is_there(page, name)] == []
    names = set(re.findall(r"\b(langgraph_aurora_store(?:\.\w+)+)", text))
    assert [name for name in names if not is_in_package(name)] == []


def is_there(page: Path, name: str) -> bool:
    """Beside the page, in the repository or in the package; a bare name anywhere in an example."""
    places = [page.parent, ROOT, ROOT / "langgraph_aurora_store"]
    return any((place / name).exists() for place in places) or any(
        (ROOT / "examples").glob(f"*/{name}")
    )


def is_in_package(name: str) -> bool:
    """A module, something in one, or a logger of a name of its own."""
    if any(f'getLogger("{name}")' in path.read_text() for path in PACKAGE.rglob("*.py")):
        return True
    with suppress(ImportError):
        import_module(name)
        return True
    module, _, attribute = name.rpartition(".")
    with suppress(ImportError):
        return hasattr(import_module(module), attribute)
    return False


def test_every_error_is_drawn_in_their_tree() -> None:
    """The README points to it."""
    names = [name for name, it in vars(errors).items() if isinstance(it, type)]
    assert [name for name in names if name not in (errors.__doc__ or "")] == []
