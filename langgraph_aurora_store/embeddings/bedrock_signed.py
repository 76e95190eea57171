"""InvokeModel signed and sent with botocore's own parts, without its client."""

from __future__ import annotations

import socket
import threading
from typing import Any

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse, prepare_request_dict
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.handlers import add_recursion_detection_header
from botocore.httpsession import URLLib3Session
from botocore.parsers import create_parser
from botocore.response import StreamingBody
from botocore.session import Session
from botocore.utils import get_environ_proxies, percent_encode

from langgraph_aurora_store.embeddings.bedrock_endpoint import Endpoint
from langgraph_aurora_store.embeddings.bedrock_errors import NoSigningError

_JSON = "application/json"
_SOCKET_OPTIONS = [
    # Without it, a request's body waits until its head is acknowledged, which takes 40 ms.
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
]


class SignedRuntime:
    """A model's connections to an endpoint; each call is signed with the credentials of its moment.

    A client of boto3 would send the same request, at three times the CPU, which bounds what many
    threads get done, and after 0.15 s to make it.
    """

    def __init__(
        self,
        session: Session,
        endpoint: Endpoint,
        *,
        model: str,
        region: str,
        user_agent: str,
        timeouts_s: tuple[float, float],
        connections: int,
    ) -> None:
        request: dict[str, Any] = {
            "url_path": f"/model/{percent_encode(model)}/invoke",
            "query_string": "",
            "headers": {"Accept": _JSON, "Content-Type": _JSON},
        }
        prepare_request_dict(request, endpoint.url, user_agent=user_agent)
        http: dict[str, Any] = {  # which botocore's type stubs are too narrow for
            "verify": endpoint.verify,
            "proxies": get_environ_proxies(endpoint.url),
            "timeout": timeouts_s,
            "max_pool_connections": connections,
            "socket_options": _SOCKET_OPTIONS,
        }
        self.region = region
        self._url: str = request["url"]
        self._headers: dict[str, str] = request["headers"]
        self._session = session
        self._lock = threading.Lock()
        self._http = URLLib3Session(**http)

    def invoke(self, body: bytes) -> bytes:
        """The answer to one request; blocks. Raises what a client of botocore raises."""
        headers = self._headers.copy()
        add_recursion_detection_header({"headers": headers})
        request = AWSRequest("POST", self._url, headers, body, stream_output=True)
        SigV4Auth(self._credentials(), "bedrock", self.region).add_auth(request)
        response = self._http.send(request.prepare())
        if response.status_code >= 300:
            raise _refusal(response)
        length: Any = response.headers.get("content-length")
        return StreamingBody(response.raw, length).read()  # all of it, or an error

    def close(self) -> None:
        """Let connections go."""
        self._http.close()

    def _credentials(self) -> ReadOnlyCredentials:
        try:
            with self._lock:  # the first thread to come looks for them
                found = self._session.get_credentials()
            frozen = found.get_frozen_credentials() if found else None
        except Exception as error:
            raise NoSigningError from error
        if frozen is None:
            raise NoSigningError from NoCredentialsError()
        return frozen


def _refusal(response: AWSResponse) -> ClientError:
    """The error that a client raises for this answer."""
    answer = {
        "status_code": response.status_code,
        "headers": response.headers,
        "body": response.content,
    }
    no_shape: Any = None
    try:
        parsed = create_parser("rest-json").parse(answer, no_shape)
    except Exception:  # a gateway in between may answer with anything, and the status is enough
        parsed = _head_of(response)
    return ClientError(parsed, "InvokeModel")


def _head_of(response: AWSResponse) -> Any:
    """What a parser makes of an answer whose body tells nothing."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    kind = headers.get("x-amzn-errortype", str(response.status_code))
    return {
        "Error": {"Code": kind.partition(":")[0], "Message": ""},
        "ResponseMetadata": {"HTTPStatusCode": response.status_code, "HTTPHeaders": headers},
    }
