"""One local Aurora for the session, and a fresh database in it for each test that asks."""

import itertools
import os
from collections.abc import Iterator

import pytest
from botocore.handlers import BUILTIN_HANDLERS

from langgraph_aurora_store.local import LocalAurora
from tests.support.database import Database

FOREIGN_VARIABLES = ("AURORA_", "AWS_", "OPENAI_", "PG")

_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--server", type=int, choices=(16, 18), default=16, help="major version of PostgreSQL"
    )


@pytest.fixture(autouse=True)
def _hermetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test: neither variables nor the AWS files."""
    for name in os.environ:
        if name.startswith(FOREIGN_VARIABLES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def sessions_without_moto(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once imported, by another test, moto listens to the calls of every session."""
    own = [spec for spec in BUILTIN_HANDLERS if spec[1].__module__.startswith("botocore.")]
    monkeypatch.setattr("botocore.handlers.BUILTIN_HANDLERS", own)


@pytest.fixture(scope="session")
def aurora(request: pytest.FixtureRequest) -> Iterator[LocalAurora]:
    """The session's cluster. What a test turns on it, ``database`` turns back."""
    with LocalAurora(version=request.config.getoption("--server"), export=False) as cluster:
        yield cluster


@pytest.fixture
def database(aurora: LocalAurora) -> Iterator[Database]:
    """A fresh database of its own, dropped afterwards with its connections."""
    fresh = Database(aurora, f"test_{next(_numbers)}")
    aurora.create_database(fresh.name)
    yield fresh
    aurora.reset()
    aurora.drop_database(fresh.name)
