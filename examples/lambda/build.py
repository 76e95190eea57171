"""Build what is deployed: `build/function`, for Python 3.13 on arm64, from wheels alone.

Run it with Python 3.13: the dependencies are resolved for, and compiled by, the version they will
run on. Nothing of it depends on this machine's processor.
"""

import argparse
import compileall
import importlib.util
import py_compile
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RUNTIME = (3, 13)  # python3.13 in template.yaml
# Lambda's python3.13 runs on Amazon Linux 2023, which has glibc 2.34.
PLATFORMS = (*(f"manylinux_2_{minor}" for minor in range(34, 16, -1)), "manylinux2014")
# The runtime has these, as its developer guide says; urllib3, which it has too, is pinned for us.
IN_THE_RUNTIME = ("boto3", "botocore", "jmespath", "s3transfer")
# AWS Lambda developer guide, "Lambda quotas": 250 MB unzipped, layers included.
MAX_BYTES = 250 * 1024 * 1024


class BuildError(Exception):
    """The build does not hold what it should."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--output", type=Path, default=HERE / "build/function")
    options.add_argument("--requirements", type=Path, default=HERE / "requirements.txt")
    options.add_argument("--machine", choices=("aarch64", "x86_64"), default="aarch64")
    options.add_argument("pip_options", nargs="*", help="after --: passed to pip install")
    chosen = options.parse_args()
    require_version(RUNTIME)
    build(chosen.output, chosen.requirements, chosen.machine, chosen.pip_options)
    print(f"{chosen.output}: {size_of(chosen.output) / 1e6:.0f} MB")


def require_version(version: tuple[int, int]) -> None:
    if sys.version_info[:2] != version:
        wanted, found = (".".join(map(str, it[:2])) for it in (version, sys.version_info))
        raise BuildError(f"this is Python {found}: run it with Python {wanted}, which it is for")


def build(output: Path, requirements: Path, machine: str, pip_options: list[str]) -> None:
    """Install, add the function, leave out what the runtime has, compile, and check."""
    shutil.rmtree(output, ignore_errors=True)
    with tempfile.TemporaryDirectory() as wheels:
        library = wheel_of_this_checkout(Path(wheels))
        install(output, [*pip_options, "-r", str(requirements), *library], machine)
    source = HERE / "function"
    shutil.copytree(
        source, output, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in IN_THE_RUNTIME:
        remove(output, name)
    compile_all(output)
    check(output)


def wheel_of_this_checkout(directory: Path) -> list[str]:
    """The library as it lies here; nothing when the example was copied out of its repository."""
    if not (ROOT / "langgraph_aurora_store").is_dir():
        return []
    pip("wheel", "--no-deps", "--wheel-dir", str(directory), str(ROOT))
    return [str(next(directory.glob("langgraph_aurora_store-*.whl")))]


def install(output: Path, what: list[str], machine: str) -> None:
    """Install wheels for the runtime's platform, in this checkout's versions if it is one."""
    constraints = ROOT / "constraints.txt"
    pinned = ["-c", str(constraints)] if constraints.is_file() else []
    platforms = [f"--platform={platform}_{machine}" for platform in PLATFORMS]
    pip(
        "install",
        "--target",
        str(output),
        "--only-binary=:all:",
        "--no-compile",
        *platforms,
        *pinned,
        *what,
    )


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)  # noqa: S603 - this interpreter's pip


def remove(output: Path, name: str) -> None:
    """Take a distribution out again, with its metadata."""
    for path in (output / name, *output.glob(f"{name}-*.dist-info")):
        shutil.rmtree(path, ignore_errors=True)


def compile_all(output: Path) -> None:
    """Compile every module, so that no cold start does.

    A zip's time stamps are not those of the files, so the usual .pyc would be taken for stale; an
    unchecked one is loaded without a look at its source.
    """
    done = compileall.compile_dir(
        output,
        stripdir=str(output),
        prependdir="/var/task",
        quiet=2,
        workers=0,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not done:
        # Templates, and tests of syntax errors: never imported. `check` looks at the rest.
        print("some files are not this version's Python", file=sys.stderr)


def check(output: Path) -> None:
    """Make sure of what the build is for.

    Raises:
        BuildError: naming what is wrong.
    """
    if stale := [str(path.relative_to(output)) for path in uncompiled(output)]:
        raise BuildError(f"not compiled for this version, unchecked: {', '.join(stale[:5])}")
    for name in IN_THE_RUNTIME:
        if (output / name).exists():
            raise BuildError(f"{name} is in the build, and in the runtime")
    if (size := size_of(output)) > MAX_BYTES:
        raise BuildError(f"{size / 1e6:.0f} MB unzipped, of {MAX_BYTES / 1e6:.0f} at most")


def uncompiled(output: Path) -> Iterator[Path]:
    """The modules without bytecode of this version that is loaded unchecked (PEP 552)."""
    unchecked = importlib.util.MAGIC_NUMBER + (0b01).to_bytes(4, "little")
    for source in output.rglob("*.py"):
        compiled = Path(importlib.util.cache_from_source(str(source)))
        if not compiled.is_file() or compiled.read_bytes()[:8] != unchecked:
            yield source


def size_of(output: Path) -> int:
    return sum(path.stat().st_size for path in output.rglob("*") if path.is_file())


if __name__ == "__main__":
    try:
        main()
    except (BuildError, subprocess.CalledProcessError) as error:
        sys.exit(f"no build: {error}")
