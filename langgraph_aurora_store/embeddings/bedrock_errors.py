"""What Bedrock's and botocore's errors mean, and what to do about each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from langgraph_aurora_store.aws import credential_failures as sources
from langgraph_aurora_store.aws.error_codes import (
    DENIED,
    REFUSED_CREDENTIALS,
    THROTTLED,
    code_and_status,
    is_lost,
    is_passing_answer,
)
from langgraph_aurora_store.aws.partitions import partition_of
from langgraph_aurora_store.aws.session import Region
from langgraph_aurora_store.embeddings.redaction import attach_cause, service_words
from langgraph_aurora_store.embeddings.retry import Failure, asks_for_retry, retry_after_s
from langgraph_aurora_store.embeddings.text_lengths import accepted_share, says_too_long
from langgraph_aurora_store.errors import (
    AuroraStoreError,
    CredentialsError,
    EmbeddingAccessError,
    EmbeddingCredentialsError,
    EmbeddingCredentialsMissingError,
    EmbeddingError,
)

if TYPE_CHECKING:
    from botocore.exceptions import ClientError, EndpointConnectionError

# The ARN of a provisioned or custom model, or of an application's profile, hides the model.
_READABLE_ARN = re.compile(r"^arn:[\w-]+:bedrock:[^:]*:\d*:(?:foundation-model|inference-profile)/")
_PROFILE = re.compile(r"^([a-z]{2,6}(?:-gov)?)\.(.+)$")


def explain(error: Exception, *, model: str, region: Region, texts: Sequence[str]) -> Failure:
    """The failure behind an exception of ``invoke_model``, or of reading its answer."""
    from botocore.exceptions import ClientError, HTTPClientError

    if _is_of_credentials(error):  # a client's own
        error = sources.explain(error, sources.SESSION)
    if isinstance(error, CredentialsError):
        return _unsigned(error, f"Bedrock model {model} in {region.name}")
    if isinstance(error, AuroraStoreError):
        return Failure(error=error)
    secrets = texts
    if type(error) is HTTPClientError and "header" in str(error):
        secrets = [*texts, str(error)]  # http.client quotes a header's value, such as a token
    if isinstance(error, ClientError):
        failure = _refused(error, model, region, texts)
    else:
        failure = _unanswered(error, model, region, secrets)
    attach_cause(failure.error, error, secrets)
    return failure


def _unsigned(error: CredentialsError, where: str) -> Failure:
    """Credentials could not be obtained, and `AwsSession` has said why."""
    kind = EmbeddingCredentialsError if error.is_transient else EmbeddingCredentialsMissingError
    failure = kind(f"{where}: {error}")
    failure.is_transient = error.is_transient
    return Failure(error=failure, transient=error.is_transient)


def _refused(error: ClientError, model: str, region: Region, texts: Sequence[str]) -> Failure:
    """Bedrock answered with an error of its own."""
    code, status = code_and_status(error)
    message = str(error.response.get("Error", {}).get("Message", ""))
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    where = f"Bedrock model {model} in {region.name}"
    said = f"Bedrock said {code}: {service_words(message, texts) or 'nothing more'}"
    if is_passing_answer(code, status):
        state = "is throttled" if code in THROTTLED else "is unavailable"
        return Failure(
            error=EmbeddingError(f"{where} {state}; {said}"),
            transient=asks_for_retry(dict(headers), default=True),
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


def _advice(code: str, message: str, model: str, region: Region) -> str:
    """What is missing, where the refusal is about the caller and not about the request."""
    if code in REFUSED_CREDENTIALS:
        return (
            "the AWS credentials were refused; refresh them, and see that they belong to this "
            "partition and that the machine's clock is right"
        )
    if code in DENIED:
        resources = " and ".join(_arns(model, region.name))
        return (
            f"access denied. Allow bedrock:InvokeModel on {resources}, "
            "and see that the account has access to the model in this region"
        )
    base = _base(model)
    profile = "" if base.startswith("arn:") else f", such as '{_geography(region.name)}.{base}'"
    if "on-demand throughput" in message:
        return (
            "this model is served through inference profiles only; put a geography in front of "
            f"its id{profile}, or pass a profile's ARN with base_model="
        )
    unknown = "model identifier is invalid" in message or "model ID" in message
    if code == "ResourceNotFoundException" or (code == "ValidationException" and unknown):
        return (
            f"not offered in {region} to this account. Check the id, pass region= of a region that "
            f"offers it, or use a cross-region profile where there is one{profile}"
        )
    return ""


def _unanswered(error: Exception, model: str, region: Region, texts: Sequence[str]) -> Failure:
    """No answer came, or none that could be read."""
    from botocore import exceptions as aws

    where = f"Bedrock model {model} in {region.name}"
    kind = type(error).__name__
    if isinstance(error, aws.EndpointConnectionError) and _is_nowhere(error, region.name):
        return Failure(
            error=EmbeddingAccessError(
                f"{where}: there is no Bedrock endpoint known in {region}; pass region= of a "
                "region that offers the model, or endpoint_url="
            )
        )
    if is_lost(error):
        return Failure(error=EmbeddingError(f"{where} did not answer ({kind})"), transient=True)
    return Failure(
        error=EmbeddingError(f"{where} failed: {kind}: {service_words(str(error), texts)}")
    )


def _is_of_credentials(error: Exception) -> bool:
    """Whether a client could not be given credentials, within its call of Bedrock."""
    from botocore import exceptions as aws

    if isinstance(error, aws.ClientError):
        return error.operation_name != "InvokeModel"
    kinds = (
        aws.NoCredentialsError,
        aws.PartialCredentialsError,
        aws.CredentialRetrievalError,
        aws.NoAuthTokenError,
        aws.ProfileNotFound,
        aws.SSOError,
        aws.TokenRetrievalError,
        aws.UnauthorizedSSOTokenError,
    )
    return isinstance(error, kinds)


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
