"""What Bedrock's and botocore's errors mean, and what to do about each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from langgraph_aurora_store.aws.regions import partition_of
from langgraph_aurora_store.embeddings.redaction import attach_cause, service_words
from langgraph_aurora_store.embeddings.requests import accepted_share, says_too_long
from langgraph_aurora_store.embeddings.retry import Failure, retry_after_s
from langgraph_aurora_store.errors import (
    AuroraStoreError,
    EmbeddingAccessError,
    EmbeddingError,
)

if TYPE_CHECKING:
    from botocore.exceptions import ClientError, EndpointConnectionError

# InvokeModel, "Errors" in the Amazon Bedrock API reference; and those common to all AWS services.
THROTTLED = frozenset({"SlowDown", "Throttling", "ThrottlingException", "TooManyRequestsException"})
UNAVAILABLE = frozenset(
    {
        "InternalServerException",
        "InternalFailure",
        "ModelErrorException",
        "ModelNotReadyException",
        "ModelTimeoutException",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "ServiceUnavailableException",
    }
)
REFUSED_CREDENTIALS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
# The ARN of a provisioned or custom model, or of an application's profile, hides the model.
_READABLE_ARN = re.compile(r"^arn:[\w-]+:bedrock:[^:]*:\d*:(?:foundation-model|inference-profile)/")
_PROFILE = re.compile(r"^([a-z]{2,6}(?:-gov)?)\.(.+)$")


class NoSigningError(Exception):
    """A request could not be signed: credentials could not be had, as the cause tells."""


def explain(error: Exception, *, model: str, region: str, texts: Sequence[str]) -> Failure:
    """The fault behind an exception of ``invoke_model``, or of reading its answer."""
    if isinstance(error, AuroraStoreError):
        return Failure(error=error)
    from botocore.exceptions import ClientError, HTTPClientError

    secrets = texts
    if type(error) is HTTPClientError and "header" in str(error):
        secrets = [*texts, str(error)]  # http.client quotes a header's value, such as a token
    if isinstance(error, NoSigningError):
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
        fault = _unsigned(error, model, region, texts)
    elif not isinstance(error, ClientError):
        fault = _unanswered(error, model, region, secrets)
    elif error.operation_name == "InvokeModel":
        fault = _refused(error, model, region, texts)
    else:  # a client asks for credentials within the call
        fault = _unsigned(error, model, region, texts)
    attach_cause(fault.error, error, secrets)
    return fault


def _unsigned(error: Exception, model: str, region: str, texts: Sequence[str]) -> Failure:
    """Credentials could not be obtained, from STS or wherever else they come from."""
    from botocore.exceptions import ClientError

    where = f"Bedrock model {model} in {region}: AWS credentials could not be obtained"
    said = service_words(str(error), texts)
    if isinstance(error, ClientError):
        code, status = _code_and_status(error)
        if _is_passing(code, status):
            return Failure(error=EmbeddingError(f"{where}: {said}"), transient=True, code=code)
        return Failure(
            error=EmbeddingAccessError(
                f"{where}: {said}. See the role and its trust policy, and the credentials or the "
                "token that it is asked for with"
            )
        )
    if _is_lost(error):
        unanswered = f"{where}: what gives them did not answer ({type(error).__name__})"
        return Failure(error=EmbeddingError(unanswered), transient=True)
    return Failure(
        error=EmbeddingAccessError(
            f"{where}: {type(error).__name__}: {said}. Give the process a role or a profile, or "
            "pass session="
        )
    )


def _code_and_status(error: ClientError) -> tuple[str, int]:
    code = str(error.response.get("Error", {}).get("Code", "unknown error"))
    return code, int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _is_passing(code: str, status: int) -> bool:
    return code in THROTTLED | UNAVAILABLE or status in (408, 429) or status >= 500


def _is_lost(error: Exception) -> bool:
    """Whether a connection failed, and not what was to go over it."""
    from botocore import exceptions as aws
    from urllib3.exceptions import HTTPError

    if type(error) is aws.HTTPClientError:  # whatever else botocore's HTTP layer met with
        return isinstance(error.kwargs.get("error"), OSError | HTTPError)
    lost = (aws.HTTPClientError, aws.ConnectionError, aws.IncompleteReadError, HTTPError)
    return isinstance(error, lost) and not isinstance(error, aws.SSLError)


def _refused(error: ClientError, model: str, region: str, texts: Sequence[str]) -> Failure:
    """Bedrock answered with an error of its own."""
    code, status = _code_and_status(error)
    message = str(error.response.get("Error", {}).get("Message", ""))
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    where = f"Bedrock model {model} in {region}"
    said = f"Bedrock said {code}: {service_words(message, texts) or 'nothing more'}"
    if _is_passing(code, status):
        state = "is throttled" if code in THROTTLED else "is unavailable"
        return Failure(
            error=EmbeddingError(f"{where} {state}; {said}"),
            transient=True,
            code=code,
            remedy="Ask for a higher quota or lower max_concurrency=" if code in THROTTLED else "",
            retry_after_s=retry_after_s(dict(headers)),
        )
    if code == "ValidationException" and says_too_long(message):
        refusal = EmbeddingError(
            f"{where} found a text too long; {said}. Shorten it, split it, or pass "
            'truncate="warn" to have it cut'
        )
        return Failure(error=refusal, too_long=True, fits=accepted_share(message))
    advice = _advice(code, message, model, region)
    if advice:
        return Failure(error=EmbeddingAccessError(f"{where}: {advice}. {said}"))
    return Failure(error=EmbeddingError(f"{where} refused the request; {said}"))


def _advice(code: str, message: str, model: str, region: str) -> str:
    """What is missing, where the refusal is about the caller and not about the request."""
    if code in REFUSED_CREDENTIALS:
        return (
            "the AWS credentials were refused; refresh them, and see that they belong to this "
            "partition and that the machine's clock is right"
        )
    if code in ("AccessDeniedException", "AccessDenied"):
        return (
            f"access denied. Allow bedrock:InvokeModel on {' and '.join(_arns(model, region))}, "
            "and see that the account has access to the model in this region"
        )
    base = _base(model)
    profile = "" if base.startswith("arn:") else f", such as '{_geography(region)}.{base}'"
    if "on-demand throughput" in message:
        return (
            "this model is served through inference profiles only; put a geography in front of "
            f"its id{profile}, or pass a profile's ARN with base_model="
        )
    unknown = "model identifier is invalid" in message or "model ID" in message
    if code == "ResourceNotFoundException" or (code == "ValidationException" and unknown):
        return (
            "not offered there to this account. Check the id, pass region= of a region that offers "
            f"it, or use a cross-region profile where there is one{profile}"
        )
    return ""


def _unanswered(error: Exception, model: str, region: str, texts: Sequence[str]) -> Failure:
    """No answer came, or none that could be read."""
    from botocore import exceptions as aws

    where = f"Bedrock model {model} in {region}"
    kind = type(error).__name__
    if isinstance(error, _credential_errors()):
        return _unsigned(error, model, region, texts)
    if isinstance(error, aws.EndpointConnectionError) and _is_nowhere(error, region):
        return Failure(
            error=EmbeddingAccessError(
                f"{where}: there is no Bedrock endpoint known in {region!r}; pass region= of a "
                "region that offers the model, or endpoint_url="
            )
        )
    if _is_lost(error):
        return Failure(error=EmbeddingError(f"{where} did not answer ({kind})"), transient=True)
    return Failure(
        error=EmbeddingError(f"{where} failed: {kind}: {service_words(str(error), texts)}")
    )


def _credential_errors() -> tuple[type[Exception], ...]:
    from botocore import exceptions as aws

    return (
        aws.NoCredentialsError,
        aws.PartialCredentialsError,
        aws.CredentialRetrievalError,
        aws.NoAuthTokenError,
        aws.ProfileNotFound,
        aws.SSOError,
        aws.TokenRetrievalError,
        aws.UnauthorizedSSOTokenError,
    )


def _is_nowhere(error: EndpointConnectionError, region: str) -> bool:
    """Whether AWS's own host name was looked for in a region that botocore knows nothing of."""
    import botocore.session

    session = botocore.session.get_session()
    known = (
        session.get_available_regions("bedrock", partition)
        for partition in session.get_available_partitions()
    )
    own_name = "amazonaws" in str(error.kwargs.get("endpoint_url"))
    return own_name and all(region not in regions for regions in known)


def _arns(model: str, region: str) -> list[str]:
    """The resources that a policy must name for ``model``.

    Amazon Bedrock user guide, "Prerequisites for inference profiles": a cross-region profile needs
    the profile and the model in each region it may send the request to.
    """
    partition = partition_of(region).name
    base = _base(model)
    if model.startswith("arn:"):
        if "inference-profile/" not in model:
            return [model]
        behind = "<the model behind it>" if base.startswith("arn:") else base
        return [model, f"arn:{partition}:bedrock:*::foundation-model/{behind}"]
    if base == model:
        return [f"arn:{partition}:bedrock:{region}::foundation-model/{model}"]
    return [
        f"arn:{partition}:bedrock:{region}:<account>:inference-profile/{model}",
        f"arn:{partition}:bedrock:*::foundation-model/{base}",
    ]


def _geography(region: str) -> str:
    """The prefix of the cross-region profiles that a region most likely belongs to."""
    geographies = {"us-gov-": "us-gov", "us-": "us", "eu-": "eu", "ap-": "apac"}
    return next(
        (geography for start, geography in geographies.items() if region.startswith(start)),
        "global",
    )


def _base(model: str) -> str:
    """The model id in an ARN that shows it, without a geography; two dots tell a profile's id."""
    name = _READABLE_ARN.sub("", model)
    profile = _PROFILE.match(name)
    return profile[2] if profile and "." in profile[2] else name
