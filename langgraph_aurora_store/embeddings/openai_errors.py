"""What OpenAI's errors mean, and what to do about each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from langgraph_aurora_store.embeddings.redaction import attach_cause, service_words
from langgraph_aurora_store.embeddings.retry import Failure, asks_for_retry, retry_after_s
from langgraph_aurora_store.embeddings.text_lengths import accepted_share, says_too_long
from langgraph_aurora_store.errors import (
    AuroraStoreError,
    EmbeddingAccessError,
    EmbeddingError,
)

if TYPE_CHECKING:
    from openai import APIStatusError

# A 429 that waiting does not heal: OpenAI API guide, "Error codes".
SPENT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})


def explain(error: Exception, *, model: str, secrets: Sequence[str]) -> Failure:
    """The failure behind an exception of ``embeddings.create``, or of reading its answer."""
    if isinstance(error, AuroraStoreError):
        return Failure(error=error)
    import openai

    where = f"OpenAI model {model}"
    if isinstance(error, openai.APIStatusError):
        failure = _refused(error, where, secrets)
    elif isinstance(error, openai.APIConnectionError):
        kind = type(error.__cause__ or error).__name__
        failure = Failure(error=EmbeddingError(f"{where} did not answer ({kind})"), transient=True)
    else:
        said = service_words(str(error), secrets)
        failure = Failure(error=EmbeddingError(f"{where} failed: {type(error).__name__}: {said}"))
    attach_cause(failure.error, error, secrets)
    return failure


def _refused(error: APIStatusError, where: str, secrets: Sequence[str]) -> Failure:
    """OpenAI answered with an error of its own."""
    body = error.body if isinstance(error.body, dict) else {}
    message = str(body.get("message") or error.message)
    said = f"OpenAI said {error.status_code}: {service_words(message, secrets)}"
    spent = str(error.code) in SPENT or str(error.type) in SPENT
    advice = _advice(error.status_code, spent=spent)
    passes = error.status_code in (408, 409, 429) or error.status_code >= 500
    again = asks_for_retry(error.response.headers, default=passes and not advice)
    wait_s = retry_after_s(error.response.headers)
    code = str(error.status_code)
    if advice:
        return Failure(EmbeddingAccessError(f"{where}: {advice}. {said}"), again, code, "", wait_s)
    if passes:
        throttled = error.status_code == 429
        state = "is throttled" if throttled else "is unavailable"
        end = "" if again else ", and not to try again"
        return Failure(
            error=EmbeddingError(f"{where} {state}; {said}{end}"),
            transient=again,
            code=code,
            remedy="Ask for higher limits or lower max_concurrency=" if throttled else "",
            retry_after_s=wait_s,
        )
    if error.status_code in (400, 413, 422) and says_too_long(message):
        refusal = EmbeddingError(
            f"{where} found a text too long; {said}. Shorten it, split it, or pass "
            'truncate="warn" to have it cut'
        )
        return Failure(error=refusal, too_long=True, fits=accepted_share(message))
    refusal = EmbeddingError(f"{where} refused the request; {said}")
    return Failure(error=refusal, transient=again, code=code, retry_after_s=wait_s)


def _advice(status: int, *, spent: bool) -> str:
    """What is missing, where the refusal is about the caller and not about the request."""
    if spent:
        return "the account has no quota left; see its plan and billing"
    if status == 401:
        return "the API key was refused; set OPENAI_API_KEY or pass api_key="
    if status == 403:
        return "the API key's project may not use this model from here; allow it in the project"
    if status == 404:
        return "there is no such model for this key; check its name and base_url="
    return ""
