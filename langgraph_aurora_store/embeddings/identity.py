"""Which embedding model made a vector, so that another one's is never taken for it."""

from __future__ import annotations

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
    "model_kwargs",
    "encode_kwargs",
)


def identify(embeddings: object) -> str | None:
    """The class of an embedding model, the model's name and its settings; ``None`` without a name.

    Of the class's module the package alone counts, so that a class may move within it.
    """
    named = _given(embeddings, _NAMES)
    if not any(isinstance(name, str) and name for _, name in named):
        return None
    kind = type(embeddings)
    package = kind.__module__.partition(".")[0]
    return f"{package}.{kind.__qualname__} {[*named, *_given(embeddings, _SETTINGS)]!r}"


def _given(embeddings: object, attributes: tuple[str, ...]) -> list[tuple[str, object]]:
    pairs = ((name, getattr(embeddings, name, None)) for name in attributes)
    return [(name, value) for name, value in pairs if value is not None]
