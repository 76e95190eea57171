"""Which embedding model made a vector, so that another one's is never taken for it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

# What the embedding classes of LangChain's packages call their model. One of these tells it.
_NAMES = (
    "model",
    "model_id",
    "model_name",
    "model_path",
    "deployment",
    "azure_deployment",
    "endpoint_name",
    "repo_id",
)
# What else there changes a vector of the same model.
_SETTINGS = (
    "dimensions",
    "dimensionality",
    "output_dimension",
    "output_dimensionality",
    "normalize",
    "task_type",
    "doc_embed_type",
    "query_instruction",
    "embed_instruction",
    "model_kwargs",
    "encode_kwargs",
)
# Another server may mean another model by the same name.
_SERVERS = (
    "base_url",
    "openai_api_base",
    "api_base",
    "azure_endpoint",
    "endpoint_url",
    "inference_server_url",
)
# As in the repr that an object has of its own accord, which differs in each process.
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")


def identify(embeddings: object) -> str | None:
    """The class of an embedding model, the model's name and its settings; ``None`` without a name.

    Of the class's module the package alone counts, so that a class may move within it.
    """
    named = _given(embeddings, _NAMES)
    if not any(isinstance(name, str) and name for _, name in named):
        return None
    kind = type(embeddings)
    package = kind.__module__.partition(".")[0]
    servers = [(name, _public(url)) for name, url in _given(embeddings, _SERVERS)]
    return f"{package}.{kind.__qualname__} {[*named, *_given(embeddings, _SETTINGS), *servers]!r}"


def _given(embeddings: object, attributes: tuple[str, ...]) -> list[tuple[str, object]]:
    pairs = ((name, _read(embeddings, name)) for name in attributes)
    return [(name, value) for name, value in pairs if value is not None]


def _read(embeddings: object, attribute: str) -> object:
    """An attribute's value, or None where there is none that another process would find too."""
    try:
        value: object = getattr(embeddings, attribute, None)
        is_lasting = not _ADDRESS.search(repr(value))
    except Exception:  # a property of a user's class may raise anything
        return None
    return value if is_lasting else None


def _public(url: object) -> str:
    """A server's address without what may be a password or a key in it."""
    try:
        parts = urlsplit(str(url))
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
