"""Examples run as a user runs them: by the command of their README, in a process of their own."""

import os
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import psycopg
from psycopg.rows import dict_row

from tests.support.database import Database

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(
    program: Path, environment: dict[str, str], *, timeout_s: float = 100
) -> subprocess.CompletedProcess[str]:
    """What a program printed; an exit status other than 0 is an error that shows all of it."""
    done = subprocess.run(
        [sys.executable, program],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, f"{program} failed:\n{done.stdout}\n{done.stderr}"
    return done


def documented_program(example: str) -> Path:
    """The program of the one command that an example's README names."""
    readme = (EXAMPLES / example / "README.md").read_text()
    commands = re.findall(r"^    python (\S+)$", readme, re.M)
    assert len(commands) == 1, f"the README names {len(commands)} commands"
    return ROOT / commands[0]


def environment_of(database: Database) -> dict[str, str]:
    """How another process finds and enters a test's own database."""
    return database.cluster.environment | {"AURORA_DATABASE": database.name}


def load(file: Path) -> ModuleType:
    """A module of an example and what it imports of its folder, kept from those of the others."""
    spec = spec_from_file_location(f"{file.parent.name}_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    folder = str(file.parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
        for name, loaded in list(sys.modules.items()):
            if (getattr(loaded, "__file__", None) or "").startswith(folder + os.sep):
                del sys.modules[name]
    return module


def memories(database: Database) -> list[dict[str, object]]:
    """Every row of the store, seen past the proxy by the superuser."""
    with psycopg.connect(database.admin_dsn, row_factory=dict_row) as conn:
        return conn.execute("SELECT prefix, key, value FROM store ORDER BY prefix, key").fetchall()
