"""LocalAurora: the parts put together."""

from __future__ import annotations

import os
import secrets
import string
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from psycopg import sql

from langgraph_aurora_store.errors import AuroraStoreError
from langgraph_aurora_store.local import api, keeper, server
from langgraph_aurora_store.local.admission import Admission, Policy
from langgraph_aurora_store.local.authority import Authority
from langgraph_aurora_store.local.gate import Gate
from langgraph_aurora_store.local.server import Server, ServerVersion
from langgraph_aurora_store.local.tokens import Door, Keys

if TYPE_CHECKING:
    import boto3

# Not pg_has_role(): a superuser has every role, but pg_hba.conf's "+rds_iam" means real members.
MEMBER_OF_RDS_IAM = """
WITH RECURSIVE granted (oid) AS (
    SELECT oid FROM pg_roles WHERE rolname = %s
    UNION
    SELECT m.roleid FROM pg_auth_members m JOIN granted g ON m.member = g.oid
)
SELECT 1 FROM granted JOIN pg_roles USING (oid) WHERE rolname = 'rds_iam'
"""


class LocalAurora:
    """A cluster for development and tests."""

    def __init__(
        self,
        identifier: str = "local-aurora",
        *,
        user: str = "langmem",
        database: str = "memory",
        region: str = "us-east-1",
        endpoint: str = "localhost",
        reader_endpoint: str | None = None,
        port: int = 0,
        version: ServerVersion = 16,
        session_token: str | None = None,
        clock: Callable[[], float] = time.time,
        export: bool = True,
    ) -> None:
        self.identifier = identifier
        self.user = user
        self.database = database
        self.region = region
        self.endpoint = endpoint
        self.reader_endpoint = reader_endpoint or endpoint
        self.version = version
        self.resource_id = f"cluster-{_random(string.ascii_uppercase + string.digits, 26)}"
        self.arn = f"arn:aws:rds:{region}:{api.ACCOUNT}:cluster:{identifier}"
        self.describe_denied = False
        self.describe_calls = 0
        self._port = port
        self._export = export
        self._clock = clock
        self._keys = Keys(
            access_key=f"AKIA{_random(string.ascii_uppercase + '234567', 16)}",
            secret_key=secrets.token_urlsafe(30),
            session_token=session_token,
        )
        self._owner = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        if self._owner:
            raise AuroraStoreError("this local Aurora was started before; make another one")
        self._owner = os.getpid()
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()

    def _start(self, stack: ExitStack) -> None:
        directory = stack.enter_context(_kept_directory())
        self._server = Server(directory, version=self.version)
        with self._server.initializing():
            self._gate = Gate(
                directory, server=self._server.socket, port=self._port, answer=self._answer
            )
            stack.callback(self._gate.close)
            self._admission = Admission(
                door=Door(frozenset({self.endpoint, self.reader_endpoint}), self.port, self.region),
                keys=self._keys,
                clock=self._clock,
                has_rds_iam=self._has_rds_iam,
                reserved=server.ADMIN,
            )
            self._authority = Authority.create("Local Aurora root")
            self._root = directory / "root.pem"
            self._root.write_bytes(self._authority.pem())
            self.present()
            self._api = api.ApiServer(self._describe)
            stack.enter_context(self._api.running())
            stack.enter_context(self._gate.running())
            stack.callback(self._admission.close)
        stack.enter_context(self._server.running())
        self._furnish()
        if self._export:
            stack.enter_context(_exported(self._exports))

    def _furnish(self) -> None:
        import psycopg

        with psycopg.connect(self._server.dsn("template1"), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
        self._server.execute("CREATE ROLE rds_iam NOLOGIN")
        self.create_user(self.user)
        self.create_database(self.database)

    def close(self) -> None:
        if self._owner == os.getpid():
            self._stack.close()

    # what it is

    @property
    def port(self) -> int:
        return self._gate.port

    @property
    def sslrootcert(self) -> str:
        return str(self._root)

    @property
    def admin_dsn(self) -> str:
        return self.admin_dsn_for(self.database)

    def admin_dsn_for(self, database: str) -> str:
        return self._server.dsn(database)

    @property
    def session(self) -> boto3.Session:
        from langgraph_aurora_store.local.session import LocalSession

        return LocalSession(keys=self._keys, region=self.region, rds_url=self._api.url)

    @property
    def environment(self) -> dict[str, str]:
        token = self._keys.session_token
        return {
            **self._exports,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ACCESS_KEY_ID": self._keys.access_key,
            "AWS_SECRET_ACCESS_KEY": self._keys.secret_key,
            **({"AWS_SESSION_TOKEN": token} if token else {}),
            "AWS_ENDPOINT_URL_RDS": self._api.url,
        }

    @property
    def _exports(self) -> dict[str, str]:
        return {
            "AURORA_CLUSTER": self.identifier,
            "AURORA_USER": self.user,
            "AURORA_DATABASE": self.database,
            "PGSSLROOTCERT": self.sslrootcert,
        }

    # what it saw

    @property
    def accepted(self) -> int:
        return self._admission.accepted

    @property
    def refusals(self) -> Counter[str]:
        return Counter(self._admission.refusals)

    @property
    def tokens(self) -> tuple[str, ...]:
        return tuple(self._admission.tokens)

    # what it does

    def cut_connections(self) -> int:
        return self._gate.cut()

    def refuse_next(self, count: int = 1) -> None:
        self._admission.policy.refuse_next = count

    def pause(self, *, resume_s: float = 1.0) -> None:
        self._admission.pause(resume_s)
        self._gate.cut()

    @property
    def delay_s(self) -> float:
        return self._gate.dials.read()[0]

    @delay_s.setter
    def delay_s(self, seconds: float) -> None:
        self._gate.dials.turn(seconds, stalled=self.stalled)

    @property
    def stalled(self) -> bool:
        return self._gate.dials.read()[1]

    @stalled.setter
    def stalled(self, stalled: bool) -> None:
        self._gate.dials.turn(self.delay_s, stalled=stalled)

    @property
    def iam_enabled(self) -> bool:
        return self._admission.policy.iam_enabled

    @iam_enabled.setter
    def iam_enabled(self, enabled: bool) -> None:
        self._admission.policy.iam_enabled = enabled

    def present(self, host: str | None = None, *, trusted: bool = True) -> None:
        authority = self._authority if trusted else Authority.create("Somebody else's root")
        own = ["localhost", *sorted({self.endpoint, self.reader_endpoint} - {"localhost"})]
        self._gate.present(authority.issue([host] if host else own))

    def reset(self) -> None:
        """Turn back what was turned: delay, stall, refusals to come, certificate, the API."""
        self._gate.dials.turn(0.0, stalled=False)
        self._admission.policy = Policy()
        self.describe_denied = False
        self.present()

    # roles and databases

    def create_user(self, name: str, *, password: str | None = None) -> None:
        role = sql.Identifier(name)
        self._server.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        if password is None:
            self._server.execute(sql.SQL("GRANT rds_iam TO {}").format(role))
        else:
            self.set_password(name, password)

    def set_password(self, name: str, password: str) -> None:
        self._server.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(name), sql.Literal(password))
        )

    def create_database(
        self, name: str, *, owner: str | None = None, template: str = "template1"
    ) -> None:
        self._server.execute(
            sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}").format(
                *(sql.Identifier(part) for part in (name, owner or self.user, template))
            )
        )

    def drop_database(self, name: str) -> None:
        self._server.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )

    # the parts' callbacks

    def _answer(self, question: Mapping[str, object]) -> Mapping[str, object]:
        return self._admission.answer(question)

    def _has_rds_iam(self, name: str) -> bool:
        return bool(self._server.execute(MEMBER_OF_RDS_IAM, (name,)))

    def _describe(self, form: Mapping[str, str]) -> api.Answer:
        self.describe_calls += 1
        facts = api.Facts(
            identifier=self.identifier,
            arn=self.arn,
            resource_id=self.resource_id,
            endpoint=self.endpoint,
            reader_endpoint=self.reader_endpoint,
            port=self.port,
            database=self.database,
            engine_version={16: "16.8", 18: "18.1"}[self.version],
            iam_enabled=self.iam_enabled,
            denied=self.describe_denied,
        )
        return api.answer(form, facts)


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))


@contextmanager
def _kept_directory() -> Iterator[Path]:
    """A temporary directory that a keeper removes, with the server in it, when the block ends."""
    directory = server.make_directory()
    process = subprocess.Popen(  # noqa: S603 - this interpreter, our own module
        [sys.executable, "-I", "-S", keeper.__file__, str(directory)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield directory
    finally:
        if process.stdin:
            process.stdin.close()
        process.wait()


@contextmanager
def _exported(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
