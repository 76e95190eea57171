"""What an error of botocore means: one table of codes, and what may pass by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

# Errors common to all AWS services, the API reference of each service that is asked here
# (InvokeModel, DescribeDBClusters, GetSecretValue, AssumeRole), and botocore's retries/standard.py.
THROTTLED = frozenset(
    {
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "TooManyRequestsException",
    }
)
UNAVAILABLE = frozenset(
    {
        "IDPCommunicationError",
        "InternalError",
        "InternalServerException",
        "InternalServiceError",
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
DENIED = frozenset(
    {"AccessDenied", "AccessDeniedException", "NotAuthorized", "UnauthorizedOperation"}
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


def code_and_status(error: ClientError) -> tuple[str, int]:
    """The service's word for an error, and the HTTP status; 0 where there was none."""
    code = str(error.response.get("Error", {}).get("Code", "unknown error"))
    return code, int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_passing_answer(code: str, status: int) -> bool:
    """Whether a service that answered so may answer well shortly, with nothing changed."""
    return code in THROTTLED | UNAVAILABLE or status in (408, 429) or status >= 500


def is_lost(error: Exception) -> bool:
    """Whether a connection failed, and not what was to go over it."""
    from botocore import exceptions as aws
    from urllib3.exceptions import HTTPError

    if type(error) is aws.HTTPClientError:  # whatever else botocore's HTTP layer met with
        return isinstance(error.kwargs.get("error"), OSError | HTTPError)
    lost = (
        aws.HTTPClientError,
        aws.ConnectionError,
        aws.IncompleteReadError,
        HTTPError,
        ConnectionError,
        TimeoutError,
    )
    return isinstance(error, lost) and not isinstance(error, aws.SSLError)


def is_passing(error: Exception) -> bool:
    """Whether a call of the SDK that failed so may succeed shortly, with nothing changed."""
    from botocore.exceptions import ClientError

    if isinstance(error, ClientError):
        return is_passing_answer(*code_and_status(error))
    return is_lost(error)
