"""Prints what the tests need beside the package, at the versions of constraints.txt."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """One requirement a line, for a resolver that would else take the oldest of each."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    versions = {name.lower(): version for name, version in pins.items()}
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    for tool in groups["test"]:
        print(f"{tool}=={versions[tool.partition('[')[0].lower()]}")


if __name__ == "__main__":
    main()
