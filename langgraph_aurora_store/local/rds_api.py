"""The one call of the RDS API that finding a cluster needs: DescribeDBClusters over HTTP.

The shape is that of the query protocol, API version 2014-10-31 (RDS API reference,
"DescribeDBClusters", "DBCluster"). Signatures are not checked here; the proxy checks tokens.
"""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qsl
from uuid import uuid4
from xml.sax.saxutils import escape

from typing_extensions import override

NAMESPACE = "http://rds.amazonaws.com/doc/2014-10-31/"
ACCOUNT = "123456789012"  # the account of the examples in the AWS documentation


@dataclass(frozen=True, slots=True)
class Facts:
    """What DescribeDBClusters tells about a cluster."""

    identifier: str
    arn: str
    resource_id: str
    endpoint: str
    reader_endpoint: str
    port: int
    database: str
    engine_version: str
    iam_enabled: bool
    denied: bool
    has_reader: bool = False


class Answer(NamedTuple):
    """An HTTP status and a body in XML."""

    status: int
    body: str


def answer(form: Mapping[str, str], facts: Facts) -> Answer:
    """What RDS would answer to this form."""
    action = form.get("Action", "")
    if action != "DescribeDBClusters":
        return _failure(400, "InvalidAction", f"a local Aurora does not implement {action}")
    wanted = form.get("DBClusterIdentifier")
    if facts.denied:
        text = (
            f"User: arn:aws:iam::{ACCOUNT}:user/local is not authorized to perform: "
            f"rds:DescribeDBClusters on resource: {facts.arn} because no identity-based policy "
            "allows the rds:DescribeDBClusters action"
        )
        return _failure(403, "AccessDenied", text)
    if wanted not in {None, facts.identifier, facts.arn}:
        return _failure(404, "DBClusterNotFoundFault", f"DBCluster {wanted} not found.")
    return Answer(200, _success(facts))


def _failure(status: int, code: str, text: str) -> Answer:
    return Answer(
        status,
        f'<ErrorResponse xmlns="{NAMESPACE}"><Error><Type>Sender</Type><Code>{code}</Code>'
        f"<Message>{escape(text)}</Message></Error><RequestId>{uuid4()}</RequestId>"
        "</ErrorResponse>",
    )


def _success(facts: Facts) -> str:
    members = "".join(
        f"<DBClusterMember>{_elements(_member(facts, number))}</DBClusterMember>"
        for number in range(1, 3 if facts.has_reader else 2)
    )
    cluster = {
        "DBClusterIdentifier": facts.identifier,
        "DBClusterArn": facts.arn,
        "DbClusterResourceId": facts.resource_id,
        "DatabaseName": facts.database,
        "Endpoint": facts.endpoint,
        "ReaderEndpoint": facts.reader_endpoint,
        "Port": str(facts.port),
        "Status": "available",
        "Engine": "aurora-postgresql",
        "EngineVersion": facts.engine_version,
        "EngineMode": "provisioned",
        "IAMDatabaseAuthenticationEnabled": str(facts.iam_enabled).lower(),
        "MultiAZ": "false",
    }
    return (
        f'<DescribeDBClustersResponse xmlns="{NAMESPACE}"><DescribeDBClustersResult><DBClusters>'
        f"<DBCluster>{_elements(cluster)}<DBClusterMembers>{members}</DBClusterMembers></DBCluster>"
        "</DBClusters></DescribeDBClustersResult>"
        f"<ResponseMetadata><RequestId>{uuid4()}</RequestId></ResponseMetadata>"
        "</DescribeDBClustersResponse>"
    )


def _member(facts: Facts, number: int) -> dict[str, str]:
    return {
        "DBInstanceIdentifier": f"{facts.identifier}-instance-{number}",
        "IsClusterWriter": str(number == 1).lower(),
        "DBClusterParameterGroupStatus": "in-sync",
        "PromotionTier": "1",
    }


def _elements(values: Mapping[str, str]) -> str:
    return "".join(f"<{name}>{escape(value)}</{name}>" for name, value in values.items())


class ApiServer(ThreadingHTTPServer):
    """Serves the call on a loopback port of its own."""

    daemon_threads = False

    def __init__(self, answer: Callable[[Mapping[str, str]], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer

    @override
    def server_bind(self) -> None:
        # Not HTTPServer's own, which looks the address up in the DNS.
        socketserver.TCPServer.server_bind(self)

    @property
    def url(self) -> str:
        """For ``endpoint_url`` or ``AWS_ENDPOINT_URL_RDS``."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve for the block."""
        thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer
    timeout = 10

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, text = self.server.answer(dict(parse_qsl(body.decode())))
        payload = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass
