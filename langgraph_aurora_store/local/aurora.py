"""LocalAurora: a server, the proxy in front of it and the RDS API, put together."""

from __future__ import annotations

import atexit
import os
import string
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from langgraph_aurora_store.errors import AuroraStoreError
from langgraph_aurora_store.local import rds_api, roles
from langgraph_aurora_store.local.auth import Admission, Keys, TokenScope, random_text
from langgraph_aurora_store.local.authority import Authority
from langgraph_aurora_store.local.cleanup import exported, kept_directory
from langgraph_aurora_store.local.proxy import Proxy
from langgraph_aurora_store.local.server import ADMIN, Server, ServerVersion
from langgraph_aurora_store.validation import check, within

if TYPE_CHECKING:
    import boto3


class LocalAurora:
    """A cluster for development and tests: no AWS account, no Docker, up in about a second.

    A real PostgreSQL with pgvector runs in a temporary directory, and a proxy on a loopback port
    stands in front of it. What it imitates, after the Amazon Aurora user guide and PostgreSQL's
    manual; it was never compared with a running cluster:

    - The proxy refuses a client without TLS in PostgreSQL's own words, and presents the certificate
      of a throw-away authority (``sslrootcert``), so that ``sslmode=verify-full`` is meant.
    - A member of ``rds_iam`` is asked for a clear-text password and must answer with a token whose
      signature, keys, host, port, user, region and age (15 minutes) are right. Otherwise ``PAM
      authentication failed for user "…"``, and ``refusals`` counts why. A password does not help
      such a user: IAM authentication takes precedence.
    - Any other role has its password checked by the server itself (SCRAM). A role that does not
      exist is refused like a wrong password.
    - ``rds:DescribeDBClusters`` answers for this identifier or ARN, by ``session`` and over HTTP.

    What it does not imitate: IAM policies (a good signature is enough), the API's own signature
    check, limits on new connections per second, storage and failover, RDS Proxy, parameter groups,
    and Aurora's own functions and extensions other than pgvector.

    Use it as a context manager, or ``start()`` and ``close()`` it; either blocks for less than a
    second or two. Several can run at once. When the owning process ends, even by SIGKILL, the
    server is stopped and the directory removed. Properties and methods are thread-safe; a process
    forked from the owner may use them no more than the endpoint, and closes nothing.

    Args:
        identifier: what DescribeDBClusters knows it by.
        user: a role granted ``rds_iam``, owner of ``database``.
        database: made with the extension ``vector`` in it.
        region: the only region tokens are good for.
        endpoint: host name in the certificate and in tokens; ``localhost`` resolves by itself,
            another one needs ``hostaddr=127.0.0.1`` on the client's side.
        reader_endpoint: like ``endpoint``, which it is when left out.
        port: TCP port on 127.0.0.1; 0 takes one that is free.
        version: major version of PostgreSQL.
        session_token: makes the keys temporary ones, whose tokens must carry this session token.
        keys_of: let the keys that this session has now sign, in place of made-up ones, so that a
            process can use the cluster and AWS. They are compared here and sent nowhere.
        clock: seconds since the epoch by which the age of tokens is measured.
        export: set ``AURORA_CLUSTER``, ``AURORA_USER``, ``AURORA_DATABASE`` and ``PGSSLROOTCERT``
            in ``os.environ`` while it is up.

    Raises:
        MissingExtraError: ``pip install 'langgraph-aurora-store[local]'`` has not been run.
    """

    describe_denied = False
    """Whether DescribeDBClusters answers AccessDenied."""
    describe_calls = 0
    """How often the RDS API was called."""

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
        keys_of: boto3.Session | None = None,
        clock: Callable[[], float] = time.time,
        export: bool = True,
    ) -> None:
        check(identifier=identifier, region=region)
        check(user=user, database=database, reads_environment=False)
        self.identifier = identifier
        self.user, self.database = user, database
        self.region = region
        self.endpoint = endpoint
        self.reader_endpoint = reader_endpoint or endpoint
        self.version = version
        self.resource_id = f"cluster-{random_text(string.ascii_uppercase + string.digits, 26)}"
        self.arn = f"arn:aws:rds:{region}:{rds_api.ACCOUNT}:cluster:{identifier}"
        self._requested_port = within("port", port, 0, 65_535)
        self._clock = clock
        self._export = export
        self._keys = Keys.of_session(keys_of) if keys_of else Keys.made_up(session_token)
        self._owner: int | None = None
        self._parts: Parts | None = None
        self._stack = ExitStack()

    def __repr__(self) -> str:
        where = f"{self.endpoint}:{self._parts.proxy.port}" if self._parts else "not running"
        return f"<LocalAurora {self.identifier!r} {where}>"

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
        """Start everything; blocks until a client can connect."""
        if self._owner is not None:
            raise AuroraStoreError(f"{self!r} was started before; make another one")
        self._owner = os.getpid()
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        atexit.register(self.close)  # for a program that ends without closing it

    def _start(self, stack: ExitStack) -> None:
        parts = assemble(
            stack,
            hosts=(self.endpoint, self.reader_endpoint),
            port=self._requested_port,
            region=self.region,
            version=self.version,
            keys=self._keys,
            clock=self._clock,
            describe=self._describe,
        )
        stack.callback(self._forget)
        self._parts = parts
        roles.create_both(parts.server, user=self.user, database=self.database)
        if self._export:
            stack.enter_context(exported(self._exports(parts)))

    def _forget(self) -> None:
        self._parts = None

    def close(self) -> None:
        """Stop everything and remove every trace; does nothing the second time."""
        if self._owner == os.getpid():
            atexit.unregister(self.close)
            self._stack.close()

    @property
    def _up(self) -> Parts:
        if self._parts is None:
            raise AuroraStoreError(f"{self!r}; use it in a with block or call start()")
        return self._parts

    @property
    def port(self) -> int:
        """The proxy's TCP port."""
        return self._up.proxy.port

    @property
    def sslrootcert(self) -> str:
        """Path of the throw-away authority's certificate, for libpq's ``sslrootcert``."""
        return str(self._up.root)

    @property
    def admin_dsn(self) -> str:
        """Connection string of the superuser to ``database``, past the proxy."""
        return self.admin_dsn_for(self.database)

    def admin_dsn_for(self, database: str) -> str:
        """Connection string of the superuser to any database, past the proxy."""
        return self._up.server.dsn(database)

    @cached_property
    def session(self) -> boto3.Session:
        """A session with the keys that the proxy accepts, whose ``rds`` clients ask this cluster.

        It reads neither profiles nor files of the user's.
        """
        from langgraph_aurora_store.local.aws_session import LocalSession

        return LocalSession(keys=self._keys, region=self.region, rds_url=self._up.api.url)

    @property
    def environment(self) -> dict[str, str]:
        """What another process needs in its environment to find and enter the cluster."""
        token = self._keys.session_token
        return {
            **self._exports(self._up),
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,  # the one boto3 reads
            "AWS_ACCESS_KEY_ID": self._keys.access_key,
            "AWS_SECRET_ACCESS_KEY": self._keys.secret_key,
            **({"AWS_SESSION_TOKEN": token} if token else {}),
            "AWS_ENDPOINT_URL_RDS": self._up.api.url,
        }

    def _exports(self, parts: Parts) -> dict[str, str]:
        return {
            "AURORA_CLUSTER": self.identifier,
            "AURORA_USER": self.user,
            "AURORA_DATABASE": self.database,
            "PGSSLROOTCERT": str(parts.root),
        }

    @property
    def accepted(self) -> int:
        """How many clients were authenticated since the start."""
        return self._up.admission.accepted

    @property
    def open_connections(self) -> int:
        """How many authenticated clients are connected through the proxy now."""
        return self._up.proxy.open_connections

    @property
    def refusals(self) -> Counter[str]:
        """How many clients were refused, by reason; a copy.

        The reasons: ``plain-text``, ``reserved-user`` (rdsadmin), those of a token (``garbage``,
        ``wrong-action``, ``wrong-host``, ``wrong-port``, ``wrong-user``, ``wrong-service``,
        ``wrong-region``, ``wrong-access-key``, ``wrong-session-token``, ``bad-signature``,
        ``expired``, ``not-yet-valid``), ``iam-disabled``, ``intermittent`` (``refuse_next``), and
        the SQLSTATE of what the server itself refused, ``28P01`` for a wrong password.
        """
        return self._up.admission.counted()

    @property
    def tokens(self) -> tuple[str, ...]:
        """SHA-256 of each token that was shown, good or not, in order; never the tokens."""
        return tuple(self._up.admission.tokens)

    def cut_connections(self) -> int:
        """Reset every connection through the proxy (TCP RST) and return how many there were.

        A server process notices when it next reads or writes, as behind a real network.
        """
        return self._up.proxy.cut()

    def refuse_next(self, count: int = 1) -> None:
        """Refuse the next ``count`` good tokens as if they were bad, as RDS does at times."""
        self._up.admission.policy.refuse_next = count

    def pause(self, *, resume_s: float = 1.0) -> None:
        """Pause like Serverless v2 scaled to zero: the next client wakes it and waits so long.

        A real cluster pauses only when nobody is connected and takes "approximately 15 seconds"
        to resume (Aurora user guide); this one cuts who is connected, and clients wait after TLS.
        """
        self._up.admission.pause(resume_s)
        self._up.proxy.cut()

    @property
    def delay_s(self) -> float:
        """Seconds added to each round trip between client and server, opening included."""
        return self._up.proxy.controls.read()[0]

    @delay_s.setter
    def delay_s(self, seconds: float) -> None:
        self._up.proxy.controls.turn(seconds, stalled=self.stalled)

    @property
    def stalled(self) -> bool:
        """Whether the link is a black hole: connections stay open and nothing passes.

        The kernel still acknowledges what is sent, so ``tcp_user_timeout`` does not notice.
        """
        return self._up.proxy.controls.read()[1]

    @stalled.setter
    def stalled(self, stalled: bool) -> None:
        self._up.proxy.controls.turn(self.delay_s, stalled=stalled)

    @property
    def iam_enabled(self) -> bool:
        """Whether IAM database authentication is on: for the proxy and in DescribeDBClusters."""
        return self._up.admission.policy.iam_enabled

    @iam_enabled.setter
    def iam_enabled(self, enabled: bool) -> None:
        self._up.admission.policy.iam_enabled = enabled

    def present(
        self, host: str | None = None, *, trusted: bool = True, expired: bool = False
    ) -> None:
        """Change the certificate that new connections see; without arguments the right one.

        Args:
            host: issue it for this host name only.
            trusted: False has an authority issue it that is not in ``sslrootcert``.
            expired: True has it good until a minute ago.
        """
        own = (self.endpoint, self.reader_endpoint)
        self._up.present((host,) if host else own, trusted=trusted, expired=expired)

    def reset(self) -> None:
        """Turn back what was turned: delay, stall, pause, refusals to come, certificate, API.

        Connections, counts, roles and databases stay.
        """
        self._up.proxy.controls.turn(0.0, stalled=False)
        self._up.admission.reset()
        self.describe_denied = False
        self.present()

    def create_user(self, name: str, *, password: str | None = None) -> None:
        """Make a role: granted ``rds_iam`` without a password, else logging in with it."""
        roles.create_user(self._up.server, name, password=password)

    def set_password(self, name: str, password: str) -> None:
        """Change a role's password, as a rotation would."""
        roles.set_password(self._up.server, name, password)

    def create_database(
        self, name: str, *, owner: str | None = None, template: str = "template1"
    ) -> None:
        """Make another database, owned by ``user`` unless told otherwise.

        ``template="template0"`` makes one without the extension ``vector``; only the superuser
        may add it there.
        """
        roles.create_database(self._up.server, name, owner=owner or self.user, template=template)

    def drop_database(self, name: str) -> None:
        """Drop a database with everybody connected to it; no error where there is none."""
        roles.drop_database(self._up.server, name)

    def _describe(self, form: Mapping[str, str]) -> rds_api.Answer:
        self.describe_calls += 1
        facts = rds_api.Facts(
            identifier=self.identifier,
            arn=self.arn,
            resource_id=self.resource_id,
            endpoint=self.endpoint,
            reader_endpoint=self.reader_endpoint,
            port=self.port,
            database=self.database,
            engine_version=str(self.version),
            iam_enabled=self.iam_enabled,
            denied=self.describe_denied,
        )
        return rds_api.answer(form, facts)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a running local cluster consists of."""

    server: Server
    proxy: Proxy
    admission: Admission
    authority: Authority
    root: Path
    api: rds_api.ApiServer

    def present(self, hosts: Sequence[str], *, trusted: bool = True, expired: bool = False) -> None:
        """Have the proxy present a new certificate for these hosts."""
        authority = self.authority if trusted else Authority.create("Another root")
        self.proxy.present(authority.issue(dict.fromkeys(hosts), expired=expired))


def assemble(
    stack: ExitStack,
    *,
    hosts: Sequence[str],
    port: int,
    region: str,
    version: ServerVersion,
    keys: Keys,
    clock: Callable[[], float],
    describe: Callable[[Mapping[str, str]], rds_api.Answer],
) -> Parts:
    """Make and start everything; ``stack`` undoes it."""
    directory = stack.enter_context(kept_directory())
    server = Server(directory, version=version)
    with server.initializing():
        # All this is done before initdb is.
        proxy = stack.enter_context(Proxy(directory, port=port))
        admission = Admission(
            scope=TokenScope(frozenset(map(str.lower, hosts)), proxy.port, region),
            keys=keys,
            clock=clock,
            has_rds_iam=lambda name: roles.has_rds_iam(server, name),
            reserved=ADMIN,
        )
        authority = Authority.create("Local Aurora root")
        root = directory / "root.pem"
        root.write_bytes(authority.pem())
        parts = Parts(server, proxy, admission, authority, root, rds_api.ApiServer(describe))
        parts.present(hosts)
        stack.enter_context(parts.api.running())
        stack.enter_context(proxy.running(server.socket, admission.answer))
        stack.callback(admission.close)
    stack.enter_context(server.running())
    roles.furnish(server)
    return parts
