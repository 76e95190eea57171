"""What the SDKs log while a call of this package is under way."""

import importlib.util
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import botocore
import openai
import pytest

from langgraph_aurora_store.sdk_log_redaction import (
    BOTOCORE_LOGGERS,
    OPENAI_LOGGERS,
    redact_sdk_logs,
)


def loggers_of(package: Path) -> set[str]:
    """The names of the loggers that a package's modules make for themselves."""
    found = set()
    for file in package.rglob("*.py"):
        text = file.read_text(errors="replace")
        name = ".".join(file.relative_to(package.parent).with_suffix("").parts)
        if re.search(r"getLogger\(\s*__name__", text):
            found.add(name.removesuffix(".__init__"))
        found |= set(re.findall(r"getLogger\(['\"]([\w.]+)['\"]\)", text))
    return found


def test_every_logger_of_the_sdks_is_covered() -> None:
    """A module that logs in a later version shows here."""
    botocores = Path(str(importlib.util.find_spec("botocore").origin)).parent
    assert loggers_of(botocores) - {"bcdocs"} == set(BOTOCORE_LOGGERS)
    openais = Path(openai.__file__).parent
    sends_none = {"openai.lib", "openai.cli"}
    found = {name for name in loggers_of(openais) if not name.startswith(tuple(sends_none))}
    assert set(OPENAI_LOGGERS) <= found
    assert botocore.__version__.startswith("1.")


@pytest.mark.parametrize("sdk", ["botocore", "openai"])
def test_debug_is_dropped_and_warnings_pass(sdk: str, caplog: pytest.LogCaptureFixture) -> None:
    """In the block, and in its thread only."""
    caplog.set_level(logging.DEBUG)
    names = BOTOCORE_LOGGERS if sdk == "botocore" else OPENAI_LOGGERS

    def log(text: str) -> None:
        for name in names:
            logging.getLogger(name).debug("debug %s", text)
            logging.getLogger(name).warning("warning %s", text)

    with redact_sdk_logs(sdk):  # type: ignore[arg-type]  # one of the two
        log("within")
        with ThreadPoolExecutor(1) as threads:
            threads.submit(log, "elsewhere").result()
    log("after")
    said = [record.getMessage() for record in caplog.records]
    assert said.count("debug within") == 0
    for text in ("warning within", "debug elsewhere", "warning elsewhere", "debug after"):
        assert said.count(text) == len(names)
