"""The README is true: its examples run as they stand."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from services.bedrock import Bedrock

from langgraph_aurora_store.embeddings.models import MODELS
from langgraph_aurora_store.local import LocalAurora

README = (Path(__file__).parent.parent / "README.md").read_text()
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
