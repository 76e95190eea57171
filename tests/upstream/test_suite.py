"""The parent's own tests of its stores, run with our classes in place of the parent's.

The files come from the sdist of the installed langgraph-checkpoint-postgres and are not part of
this repository: ``make .venv/.upstream`` fetches them. What is left out, and why, is in
``upstream_plugin.LEFT_OUT``.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from langgraph_aurora_store.local import LocalAurora
from tests.support.database import Database
from tests.upstream.upstream_plugin import LEFT_OUT

HERE = Path(__file__).parent
VERSION = importlib.metadata.version("langgraph-checkpoint-postgres")
TESTS = Path(sys.prefix, "upstream", VERSION, "tests")
STORES = {"test_store.py": 180, "test_async_store.py": 90}
SAVERS = {
    # Without test_conformance_delta.py, which asks for a capability that the conformance tests of
    # LangGraph 0.0.2 do not know.
    "test_sync.py": 16,
    "test_async.py": 18,
    "test_prune.py": 66,
    "test_delta_pagination.py": 13,
    "test_delta_plain_value_seed.py": 5,
}
EXPECTED = STORES | SAVERS
"""How many tests of each file pass at least."""


def uri_of(dsn: str) -> str:
    """A connection string in the form that the parent's tests take apart at its slashes."""
    parts = psycopg.conninfo.conninfo_to_dict(dsn)
    where = f"host={quote(str(parts['host']), safe='')}&port={parts['port']}"
    return f"postgresql://{parts['user']}@/{parts['dbname']}?{where}"


def libpq_variables(uri: str) -> dict[str, str]:
    """The same connection as libpq's environment variables."""
    parts = psycopg.conninfo.conninfo_to_dict(uri)
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
    return {variable: str(parts[name]) for name, variable in names.items()}


class Run:
    """One file of the parent's tests, in a process of its own."""

    def __init__(self, file: str, log: Path, uri: str) -> None:
        self.log = log
        options = ["-p", "upstream_plugin", "-p", "no:cacheprovider", "-p", "no:randomly"]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *options, "--asyncio-mode=auto", f"tests/{file}"],
                cwd=TESTS.parent,
                env={
                    **os.environ,
                    **libpq_variables(uri),
                    "PYTHONPATH": str(HERE),
                    "UPSTREAM_URI": uri,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )


@pytest.fixture(scope="module")
def runs(aurora: LocalAurora, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """The stores' two files at a time."""
    assert TESTS.is_dir(), f"{TESTS} is missing; run: make .venv/.upstream"
    logs = tmp_path_factory.mktemp("upstream")
    started = {file: Run(file, logs / f"{file}.log", uri_of(aurora.admin_dsn)) for file in STORES}
    yield started
    for run in started.values():
        run.process.kill()
        run.process.wait()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("file", STORES)
def test_the_parents_tests_pass_on_our_stores(runs: dict[str, Run], file: str) -> None:
    """Whatever the parent promises by its tests holds here, but for what is left out by name."""
    check_passed(runs[file], file)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("file", SAVERS)
def test_the_parents_tests_pass_on_our_savers(
    database: Database, tmp_path: Path, file: str
) -> None:
    """Likewise, on a database of their own: each test deletes every checkpoint first."""
    check_passed(Run(file, tmp_path / "log", uri_of(database.admin_dsn)), file)


def check_passed(run: Run, file: str) -> None:
    """Whether as many tests passed as there are known to be."""
    status, output = run.process.wait(), run.log.read_text()
    passed = re.search(r"(\d+) passed", output)
    assert status == 0, output[-20_000:]
    assert passed
    assert int(passed[1]) >= EXPECTED[file], "fewer tests ran than the file is known to hold"


def test_what_is_left_out_is_there() -> None:
    """No entry outlives its test."""
    source = "".join((TESTS / file).read_text() for file in EXPECTED)
    for name in LEFT_OUT:
        assert f"def {name.partition('[')[0]}(" in source
