"""The page on embeddings says what the code does."""

import inspect
import re
from pathlib import Path

import pytest

from langgraph_aurora_store.embeddings import BedrockEmbeddings, OpenAIEmbeddings
from langgraph_aurora_store.embeddings.formats import WIRE_FORMATS
from langgraph_aurora_store.embeddings.models import MODELS, Model
from langgraph_aurora_store.embeddings.text_lengths import CHARS_PER_TOKEN

PAGE = (Path(__file__).parents[2] / "docs" / "embeddings.md").read_text(encoding="utf-8")


def model_row(model: Model) -> str:
    wire_format = model.wire_format
    limits = [f"{wire_format.max_chars:,} characters"] if wire_format.max_chars else []
    limits += [f"{wire_format.max_tokens:,} tokens"] if wire_format.max_tokens else []
    batch = f"{wire_format.texts:,}"
    if wire_format.request_tokens:
        batch += f" and {wire_format.request_tokens:,} tokens"
    told = " / ".join(f"`{word}`" for word in wire_format.purposes if word) or "no"
    return (
        f"| `{wire_format.provider}:{model.id}` | {model.choice} | {', '.join(limits)} | {batch} "
        f"| {told} | {model.source} |"
    )


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.id)
def test_each_model_has_its_row(model: Model) -> None:
    """The table of models is the table of the code; the missing row is in the failure."""
    assert model_row(model) in PAGE.splitlines()


def test_no_other_model_has_a_row() -> None:
    """A model that is gone from the code is gone from the page."""
    rows = re.findall(r"^\| `((?:bedrock|openai):[^`]+)`", PAGE, re.MULTILINE)
    assert rows == [f"{model.wire_format.provider}:{model.id}" for model in MODELS.values()]


@pytest.mark.parametrize("embeddings", [BedrockEmbeddings, OpenAIEmbeddings])
def test_each_option_is_told_with_its_default(embeddings: type) -> None:
    """Every parameter of the two classes is in the table of options, as it is."""
    for name, parameter in inspect.signature(embeddings).parameters.items():
        if parameter.default is None or name == "model":
            assert f"| `{name}`" in PAGE
        else:
            assert f"| `{name}={parameter.default!r}`".replace("'", '"') in PAGE, name


def test_each_family_is_named() -> None:
    """The families are listed, for describing a model of one's own."""
    assert [name for name in WIRE_FORMATS if f"`{name}`" not in PAGE] == []


def test_the_estimate_is_told() -> None:
    """The page gives the estimate that a cut is made by."""
    assert f"{CHARS_PER_TOKEN} characters a token" in PAGE


def test_the_examples_run() -> None:
    """The Python on the page runs as it stands, up to the first request."""
    for example in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(example, "docs/embeddings.md", "exec"), {})
