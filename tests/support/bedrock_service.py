"""Amazon Bedrock Runtime's InvokeModel, for embedding models, on a loopback port.

The shapes are written down here once more, from AWS's documentation and not from the library's
own table, so that each checks the other. `python -m tests.support.bedrock_service --latency 0.05`
runs it in a process of its own.
"""

import argparse
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from tests.support.http_service import RefusedError, Reply, Service, serve
from tests.support.text_vectors import vector_of

_PATH = re.compile(r"^/model/(?P<model>[^/]+)/invoke$")
_SIGNATURE = re.compile(
    r"^AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/(?P<region>[a-z0-9-]+)/bedrock/aws4_request, "
    r"SignedHeaders=[a-z0-9;-]*host[a-z0-9;-]*, Signature=[0-9a-f]{64}$"
)
_PREFIX = re.compile(r"^(us|eu|apac|global|us-gov|jp|au)\.")


def error(code: str, status: int, message: str, **headers: str) -> Reply:
    """An error as Bedrock sends it; underscores in header names are hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"message": message}, {"x-amzn-errortype": code} | named)


def throttled(**headers: str) -> Reply:
    return error(
        "ThrottlingException",
        429,
        "Too many requests, please wait before trying again.",
        **headers,
    )


class Bedrock(Service):
    """A Bedrock that offers its embedding models in one region, and refuses what AWS refuses.

    ``profiles`` are the ARNs it knows, with the model behind each.
    """

    def __init__(
        self,
        *,
        region: str = "us-east-1",
        profiles: Mapping[str, str] | None = None,
        latency_s: float = 0.0,
        port: int = 0,
    ) -> None:
        super().__init__(latency_s=latency_s, port=port)
        self.region = region
        self.profiles = dict(profiles or {})
        self.models: list[str] = []

    def answer(self, path: str, body: dict[str, Any]) -> object:
        model = self._model(path)
        base = self.profiles.get(model, _PREFIX.sub("", model))
        if base not in SHAPES:
            raise RefusedError(
                error("ValidationException", 400, "The provided model identifier is invalid.")
            )
        return SHAPES[base](body)

    def admit(self, path: str, headers: Mapping[str, str]) -> None:
        self.models.append(self._model(path))
        signature = _SIGNATURE.match(headers.get("authorization", ""))
        if not signature or "x-amz-date" not in headers:
            raise RefusedError(
                error("MissingAuthenticationTokenException", 403, "Missing Authentication Token")
            )
        if signature["region"] != self.region:
            raise RefusedError(
                error(
                    "InvalidSignatureException",
                    403,
                    f"Credential should be scoped to a valid region: {self.region}",
                )
            )

    @staticmethod
    def _model(path: str) -> str:
        asked = _PATH.match(path)
        if not asked:
            raise RefusedError(error("UnknownOperationException", 404, "no such operation"))
        return unquote(asked["model"])


def titan_v1(body: dict[str, Any]) -> dict[str, Any]:
    _only(body, "inputText")
    return _titan(body, 1536)


def titan_v2(body: dict[str, Any]) -> dict[str, Any]:
    _only(body, "inputText", "dimensions", "normalize", "embeddingTypes")
    answer = _titan(body, _one_of(body, "dimensions", 1024, 512, 256))
    return answer | {"embeddingsByType": {"float": answer["embedding"]}}


def titan_image(body: dict[str, Any]) -> dict[str, Any]:
    _only(body, "inputText", "embeddingConfig")
    config = body.get("embeddingConfig", {})
    _only(config, "outputEmbeddingLength")
    text = _text(body, "inputText", 100_000)
    dimensions = _one_of(config, "outputEmbeddingLength", 1024, 384, 256)
    _limit_tokens(text, 256)
    return {
        "embedding": vector_of(text, dimensions),
        "inputTextTokenCount": _tokens(text),
        "message": None,
    }


def cohere_v3(body: dict[str, Any]) -> dict[str, Any]:
    _only(body, "texts", "input_type", "truncate", "embedding_types")
    _one_of(body, "truncate", "NONE", "START", "END")
    texts = _cohere_texts(body, max_chars=2048)
    return _cohere(body, [vector_of(text, 1024) for text in texts])


def cohere_v4(body: dict[str, Any]) -> dict[str, Any]:
    _only(
        body,
        "texts",
        "input_type",
        "truncate",
        "embedding_types",
        "output_dimension",
        "max_tokens",
    )
    _one_of(body, "truncate", "NONE", "LEFT", "RIGHT")
    dimensions = _one_of(body, "output_dimension", 1536, 1024, 512, 256)
    texts = _cohere_texts(body, max_chars=10_000_000)
    return _cohere(body, [vector_of(text, dimensions) for text in texts])


def nova(body: dict[str, Any]) -> dict[str, Any]:
    _only(body, "schemaVersion", "taskType", "singleEmbeddingParams")
    if body.get("taskType") != "SINGLE_EMBEDDING":
        raise _malformed("taskType: required, SINGLE_EMBEDDING for synchronous calls")
    params = body.get("singleEmbeddingParams", {})
    _only(params, "embeddingPurpose", "embeddingDimension", "text")
    if params.get("embeddingPurpose") not in NOVA_PURPOSES:
        raise _malformed("singleEmbeddingParams.embeddingPurpose: required")
    _only(params.get("text", {}), "truncationMode", "value")
    mode = _one_of(params["text"], "truncationMode", "NONE", "START", "END")
    text = _text(params["text"], "value", 50_000)
    dimensions = _one_of(params, "embeddingDimension", 3072, 1024, 384, 256)
    found: dict[str, Any] = {"embeddingType": "TEXT", "embedding": vector_of(text, dimensions)}
    if (count := _tokens(text)) > 8192:
        if mode == "NONE":
            _limit_tokens(text, 8192)
        found["truncatedCharLength"] = len(text) * 8192 // count
    return {"embeddings": [found]}


NOVA_PURPOSES = {
    "GENERIC_INDEX",
    "GENERIC_RETRIEVAL",
    "TEXT_RETRIEVAL",
    "IMAGE_RETRIEVAL",
    "VIDEO_RETRIEVAL",
    "DOCUMENT_RETRIEVAL",
    "AUDIO_RETRIEVAL",
    "CLASSIFICATION",
    "CLUSTERING",
}
SHAPES: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "amazon.titan-embed-text-v1": titan_v1,
    "amazon.titan-embed-text-v2:0": titan_v2,
    "amazon.titan-embed-image-v1": titan_image,
    "cohere.embed-english-v3": cohere_v3,
    "cohere.embed-multilingual-v3": cohere_v3,
    "cohere.embed-v4:0": cohere_v4,
    "amazon.nova-2-multimodal-embeddings-v1:0": nova,
}


def _titan(body: dict[str, Any], dimensions: int) -> dict[str, Any]:
    text = _text(body, "inputText", 50_000)
    _limit_tokens(text, 8192)
    return {"embedding": vector_of(text, dimensions), "inputTextTokenCount": _tokens(text)}


def _cohere_texts(body: dict[str, Any], *, max_chars: int) -> list[str]:
    if body.get("input_type") not in (
        "search_document",
        "search_query",
        "classification",
        "clustering",
    ):
        raise _malformed("input_type: required")
    texts = body.get("texts")
    if not isinstance(texts, list) or not 1 <= len(texts) <= 96:
        raise _malformed("#/texts: expected 1 to 96 items")
    for place, text in enumerate(texts):
        if len(text) > max_chars:
            raise _malformed(
                f"#/texts/{place}: expected maxLength: {max_chars}, actual: {len(text)}"
            )
    return texts


def _cohere(body: dict[str, Any], vectors: list[tuple[float, ...]]) -> dict[str, Any]:
    by_type = "embedding_types" in body
    return {
        "id": "00000000-0000-0000-0000-000000000000",
        "texts": body["texts"],
        "embeddings": {"float": vectors} if by_type else vectors,
        "response_type": "embeddings_by_type" if by_type else "embeddings_floats",
    }


def _only(body: dict[str, Any], *names: str) -> None:
    for name in body:
        if name not in names:
            raise _malformed(f"#: extraneous key [{name}] is not permitted")


def _one_of(body: dict[str, Any], name: str, *allowed: Any) -> Any:
    value = body.get(name, allowed[0])
    if value not in allowed:
        raise _malformed(f"#/{name}: {value} is not a valid enum value")
    return value


def _text(body: dict[str, Any], name: str, max_chars: int) -> str:
    text = body.get(name)
    if not isinstance(text, str):
        raise _malformed(f"#/{name}: required")
    if not text:
        raise _malformed("expected minLength: 1, actual: 0")
    if len(text) > max_chars:
        raise _malformed(f"expected maxLength: {max_chars}, actual: {len(text)}")
    return text


def _tokens(text: str) -> int:
    """Words and the pieces of long ones: denser than English prose, as code and numbers are."""
    return sum(1 + len(word) // 8 for word in re.findall(r"\w+|[^\w\s]", text))


def _limit_tokens(text: str, limit: int) -> None:
    if (count := _tokens(text)) > limit:
        raise RefusedError(
            error(
                "ValidationException",
                400,
                f"400 Bad Request: Too many input tokens. Max input tokens: {limit}, "
                f"request input token count: {count} ",
            )
        )


def _malformed(problem: str) -> RefusedError:
    return RefusedError(
        error(
            "ValidationException",
            400,
            f"Malformed input request: {problem}, please reformat your input and try again.",
        )
    )


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    options.add_argument("--port", type=int, default=0)
    chosen = options.parse_args()
    serve(Bedrock(latency_s=chosen.latency, port=chosen.port))
