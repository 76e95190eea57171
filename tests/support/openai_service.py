"""OpenAI's ``POST /v1/embeddings`` on a loopback port.

`python -m tests.support.openai_service --latency 0.05` runs it in a process of its own.
"""

import argparse
import base64
import re
from array import array
from collections.abc import Mapping
from typing import Any

from tests.support.http_service import RefusedError, Reply, Service, serve
from tests.support.text_vectors import vector_of

FULL_DIMENSIONS: Mapping[str, int] = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}
MAX_INPUTS = 2048
MAX_TOKENS = 8192
MAX_REQUEST_TOKENS = 300_000


def error(status: int, message: str, *, code: str | None = None, **headers: str) -> Reply:
    """An error as OpenAI sends it; underscores in header names are hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    kind = "invalid_request_error" if status < 429 else "requests"
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return Reply(status, body, named)


def throttled(**headers: str) -> Reply:
    return error(429, "Rate limit reached for requests", code="rate_limit_exceeded", **headers)


class OpenAI(Service):
    """OpenAI's embeddings for one key."""

    def __init__(
        self, *, key: str = "sk-local-0123456789", latency_s: float = 0.0, port: int = 0
    ) -> None:
        super().__init__(latency_s=latency_s, port=port)
        self.key = key

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def admit(self, path: str, headers: Mapping[str, str]) -> None:
        if path != "/v1/embeddings":
            raise RefusedError(error(404, f"Invalid URL (POST {path})"))
        if headers.get("authorization") != f"Bearer {self.key}":
            raise RefusedError(
                error(
                    401,
                    "Incorrect API key provided: sk-wrong*********7890. You can find your API key "
                    "at https://platform.openai.com/account/api-keys.",
                    code="invalid_api_key",
                )
            )

    def answer(self, path: str, body: dict[str, Any]) -> object:
        model = str(body.get("model"))
        if model not in FULL_DIMENSIONS:
            message = f"The model `{model}` does not exist or you do not have access to it."
            raise RefusedError(error(404, message, code="model_not_found"))
        texts = _texts(body)
        dimensions = _dimensions(body, model)
        return _answer(body, texts, dimensions)


def _texts(body: dict[str, Any]) -> list[str]:
    unknown = set(body) - {"model", "input", "dimensions", "encoding_format", "user"}
    if unknown:
        raise RefusedError(error(400, f"Unknown parameter: '{unknown.pop()}'."))
    texts = [body["input"]] if isinstance(body.get("input"), str) else body.get("input")
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise RefusedError(error(400, "'$.input' is invalid. Please check the API reference."))
    if len(texts) > MAX_INPUTS:
        raise RefusedError(error(400, f"'$.input' is invalid: {len(texts)} is over {MAX_INPUTS}"))
    counts = [tokens(text) for text in texts]
    if max(counts) > MAX_TOKENS:
        message = (
            f"This model's maximum context length is {MAX_TOKENS} tokens, however you requested "
            f"{max(counts)} tokens ({max(counts)} in your prompt; 0 for the completion). "
            "Please reduce your prompt; or completion length."
        )
        raise RefusedError(error(400, message))
    if sum(counts) > MAX_REQUEST_TOKENS:
        message = f"Requested {sum(counts)} tokens, max 300000 tokens per request"
        raise RefusedError(error(400, message, code="max_tokens_per_request"))
    return texts


def _dimensions(body: dict[str, Any], model: str) -> int:
    full = FULL_DIMENSIONS[model]
    dimensions = body.get("dimensions", full)
    if "dimensions" in body and model.endswith("ada-002"):
        raise RefusedError(error(400, "This model does not support specifying dimensions."))
    if not 1 <= dimensions <= full:
        raise RefusedError(error(400, f"Invalid value for 'dimensions' = {dimensions}."))
    return int(dimensions)


def _answer(body: dict[str, Any], texts: list[str], dimensions: int) -> dict[str, Any]:
    vectors = [vector_of(text, dimensions) for text in texts]
    encoded = body.get("encoding_format", "float") == "base64"
    total = sum(map(tokens, texts))
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": place,
                "embedding": _base64(vector) if encoded else vector,
            }
            for place, vector in enumerate(vectors)
        ],
        "model": body["model"],
        "usage": {"prompt_tokens": total, "total_tokens": total},
    }


def _base64(vector: tuple[float, ...]) -> str:
    return base64.b64encode(array("f", vector).tobytes()).decode()


def tokens(text: str) -> int:
    """Words and the pieces of long ones: denser than English prose, as code and numbers are."""
    return sum(1 + len(word) // 8 for word in re.findall(r"\w+|[^\w\s]", text))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    options.add_argument("--port", type=int, default=0)
    chosen = options.parse_args()
    serve(OpenAI(latency_s=chosen.latency, port=chosen.port))
