"""LocalAurora: a server, the proxy in front of it and the RDS API, put together."""

from __future__ import annotations

import atexit
import math
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
from typing import TYPE_CHECKING, Literal, Self, get_args

from langgraph_aurora_store.errors import AuroraStoreError
from langgraph_aurora_store.local import rds_api
from langgraph_aurora_store.local import roles_and_databases as roles
from langgraph_aurora_store.local.admission import Admission, Answer
from langgraph_aurora_store.local.authority import Authority
from langgraph_aurora_store.local.instances import Demoted, Instances, Role
from langgraph_aurora_store.local.proxy_control import Proxy
from langgraph_aurora_store.local.server import ADMIN, ServerVersion, StopMode
from langgraph_aurora_store.local.temporary_state import exported, kept_directory
from langgraph_aurora_store.local.tokens import Keys, TokenScope, random_text
from langgraph_aurora_store.validation import check, one_of, within

if TYPE_CHECKING:
    import boto3

Cut = Literal["reset", "close"]


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
    - A reader (``readers=1``) is a streaming replica behind an endpoint of its own, with a lag of
      ``reader_lag_s``; ``failover()`` promotes it. Without one the reader endpoint leads to the
      writer, as Aurora's does.
    - Methods bring about what a cluster does to its clients: ``failover``, ``restart``, ``pause``,
      ``cut_connections``, ``silence_connections``, ``drop_reply_of_commit``, and the properties
      ``delay_s``, ``stalled`` and ``connections_per_s``.

    What it does not imitate: IAM policies (a good signature is enough), the API's own signature
    check, one storage below all instances, RDS Proxy, parameter groups, and Aurora's own functions
    and extensions other than pgvector. docs/local-aurora.md has the whole list.

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
        reader_port: the same for the reader endpoint, whose port differs from ``port`` here only.
        readers: 0 or 1; a reader takes about half a second more to start.
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
        reader_port: int = 0,
        readers: int = 0,
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
        self._requested_ports = {
            "writer": within("port", port, 0, 65_535),
            "reader": within("reader_port", reader_port, 0, 65_535),
        }
        self._readers = within("readers", readers, 0, 1)
        self._clock = clock
        self._export = export
        self._keys = Keys.of_session(keys_of) if keys_of else Keys.made_up(session_token)
        self._owner: int | None = None
        self._parts: Parts | None = None
        self._stack = ExitStack()

    def __repr__(self) -> str:
        where = f"{self.endpoint}:{self.port}" if self._parts else "not running"
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
            endpoint=self.endpoint,
            reader_endpoint=self.reader_endpoint,
            ports=self._requested_ports,
            region=self.region,
            version=self.version,
            keys=self._keys,
            clock=self._clock,
            describe=self._describe,
        )
        stack.callback(self._forget)
        self._parts = parts
        roles.create_both(parts.instances.writer, user=self.user, database=self.database)
        if self._readers:
            parts.instances.add_reader()
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
        """TCP port of the writer endpoint."""
        return self._up.proxy.ports["writer"]

    @property
    def reader_port(self) -> int:
        """TCP port of the reader endpoint."""
        return self._up.proxy.ports["reader"]

    @property
    def sslrootcert(self) -> str:
        """Path of the throw-away authority's certificate, for libpq's ``sslrootcert``."""
        return str(self._up.root)

    @property
    def admin_dsn(self) -> str:
        """Connection string of the superuser to ``database`` on the writer, past the proxy."""
        return self.admin_dsn_for(self.database)

    @property
    def reader_admin_dsn(self) -> str:
        """Connection string of the superuser to ``database`` on the reader, past the proxy."""
        return self._up.instances.named("reader").dsn(self.database)

    def admin_dsn_for(self, database: str) -> str:
        """Connection string of the superuser to any database on the writer, past the proxy."""
        return self._up.instances.writer.dsn(database)

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
        return self._up.proxy.connections.count()

    @property
    def refusals(self) -> Counter[str]:
        """How many clients were refused, by reason; a copy.

        The reasons: ``plain-text``, ``reserved-user`` (rdsadmin), those of a token (``garbage``,
        ``wrong-action``, ``wrong-host``, ``wrong-port``, ``wrong-user``, ``wrong-service``,
        ``wrong-region``, ``wrong-access-key``, ``wrong-session-token``, ``bad-signature``,
        ``expired``, ``not-yet-valid``), ``iam-disabled``, ``intermittent`` (``refuse_next``),
        ``throttled`` (``connections_per_s``), and the SQLSTATE of what the server itself refused:
        ``28P01`` for a wrong password, ``57P03`` while it starts.
        """
        return self._up.admission.counted()

    @property
    def tokens(self) -> tuple[str, ...]:
        """SHA-256 of each token that was shown, good or not, in order; never the tokens."""
        return tuple(self._up.admission.tokens)

    def cut_connections(self, how: Cut = "reset") -> int:
        """End every connection through the proxy and return how many there were, once gone.

        A server process notices when it next reads or writes, as behind a real network.

        Args:
            how: ``reset`` sends TCP RST, ``close`` sends FIN without a word of PostgreSQL's or
                TLS's before it, as a host that was shut down.
        """
        one_of("how", how, get_args(Cut))
        connections = self._up.proxy.connections
        return connections.cut() if how == "reset" else connections.close()

    def silence_connections(
        self, *, keep_sessions: bool = False, reset_after_s: float | None = None
    ) -> int:
        """Have nothing pass on the open connections any more and return how many there are.

        They stay open until they are cut; new ones work. The kernel still acknowledges what a
        client sends, so ``tcp_user_timeout`` and keepalives do not notice: a host that has
        vanished cannot be imitated on a loopback device without changing the machine's firewall.
        ``reset_after_s`` does what they would.

        Args:
            reset_after_s: reset the connections so long after, as the client's own kernel would
                after its ``tcp_user_timeout`` (3 s with this package's pools); None for never.
            keep_sessions: leave the sessions on the server, with what they have locked, as a
                network does that loses packets both ways; else the server ends them.
        """
        if reset_after_s is not None:
            within("reset_after_s", reset_after_s, 0, 86_400, whole=False)
        after_s = math.inf if reset_after_s is None else reset_after_s
        connections = self._up.proxy.connections
        return connections.silence(keep_sessions=keep_sessions, reset_after_s=after_s)

    def drop_reply_of_commit(self, count: int = 1) -> None:
        """Lose the server's answer to the next ``count`` commits, and cut those connections.

        The server has committed before the client's connection is reset, so the client cannot
        tell. Statements that commit by themselves count when they change rows. ``replies_dropped``
        counts what was lost.
        """
        self._up.admission.policy.drop_replies = within("count", count, 0, 1_000_000)
        self._up.proxy.controls.set(watched=count > 0)

    @property
    def replies_dropped(self) -> int:
        """How many commits were not told to their client, see ``drop_reply_of_commit``."""
        return self._up.admission.dropped

    def refuse_next(self, count: int = 1) -> None:
        """Refuse the next ``count`` good tokens as if they were bad, as RDS does at times."""
        self._up.admission.policy.refuse_next = count

    @property
    def connections_per_s(self) -> float | None:
        """How many clients may sign in by token within a second; None for no limit.

        Those above are refused with ``PAM authentication failed``. Aurora throttles IAM
        authentication beyond about 200 new connections a second (its user guide); that it refuses
        in these words is what users report, and was not compared with a running cluster.
        """
        return self._up.admission.policy.connections_per_s

    @connections_per_s.setter
    def connections_per_s(self, limit: float | None) -> None:
        self._up.admission.throttle(limit)

    def pause(self, *, resume_s: float | None = 1.0) -> None:
        """Pause like Serverless v2 scaled to zero: the next client wakes it and waits so long.

        A real cluster pauses only when nothing is connected and takes "approximately 15 seconds"
        to resume (Aurora user guide); this one cuts what is connected. Clients are accepted and
        not answered, until ``resume_s`` seconds after the first of them, or for None until
        ``resume()``.
        """
        self._up.admission.pause(resume_s)
        self._up.proxy.controls.set(asleep=True)
        self._up.proxy.connections.cut()

    def resume(self) -> None:
        """Wake a paused cluster at once; does nothing to another."""
        self._up.admission.resume()
        self._up.proxy.controls.set(asleep=False)

    def add_reader(self) -> None:
        """Make a reader; blocks until it follows the writer, about half a second.

        Raises:
            AuroraStoreError: there is one.
        """
        self._up.instances.add_reader()

    def remove_reader(self) -> None:
        """Remove the reader with its connections; its endpoint then leads to the writer."""
        self._up.instances.remove_reader()

    @property
    def has_reader(self) -> bool:
        """Whether there is a reader now."""
        return self._up.instances.reader is not None

    @property
    def reader_lag_s(self) -> float:
        """How long after its commit on the writer a transaction is seen on the reader, in seconds.

        It holds for each reader from then on. By recovery_min_apply_delay: PostgreSQL delays
        commits, and promotion applies at once what was delayed.
        """
        return self._up.instances.lag_s

    @reader_lag_s.setter
    def reader_lag_s(self, seconds: float) -> None:
        self._up.instances.lag_s = within("reader_lag_s", seconds, 0, 86_400, whole=False)

    def failover(self, *, demoted: Demoted = "gone", endpoint_delay_s: float = 0.0) -> None:
        """Promote the reader; blocks until it accepts writes. Nothing committed is lost.

        Without a delay the endpoints lead to the new writer when this returns. ``add_reader()``
        makes the reader that the next failover needs.

        Args:
            demoted: ``gone`` resets the connections of the old writer and removes it.
                ``read-only`` makes it the reader: a standby of the new writer, which answers
                SQLSTATE 25006 to every write. Idle connections to it stay open and are not told;
                those in a transaction or waiting for an answer are reset. Only sessions opened
                while there was a reader can stay, and they keep their prepared statements but
                neither settings made by SET nor locks, temporary tables or LISTEN.
            endpoint_delay_s: how long the writer endpoint still leads to the old writer, as a
                name in DNS does: to a reset where it is gone, else to a read-only session.

        Raises:
            AuroraStoreError: there is no reader.
        """
        one_of("demoted", demoted, get_args(Demoted))
        within("endpoint_delay_s", endpoint_delay_s, 0, 86_400, whole=False)
        self._up.instances.failover(demoted=demoted, endpoint_delay_s=endpoint_delay_s)

    def restart(
        self, mode: StopMode = "fast", *, instance: Role = "writer", down_s: float = 0.0
    ) -> None:
        """Restart an instance; blocks until it is up again. Nothing committed is lost.

        Args:
            mode: ``fast`` tells each client 57P01 first, ``immediate`` is a crash with recovery.
            instance: ``writer`` or ``reader``.
            down_s: how long it stays away; its clients are reset meanwhile.

        Raises:
            AuroraStoreError: there is no such instance.
        """
        one_of("mode", mode, get_args(StopMode))
        one_of("instance", instance, get_args(Role))
        within("down_s", down_s, 0, 86_400, whole=False)
        self._up.instances.restart(instance, mode, down_s=down_s)

    @property
    def delay_s(self) -> float:
        """Seconds added to each round trip between client and server, opening included."""
        return self._up.proxy.controls.read().delay_s

    @delay_s.setter
    def delay_s(self, seconds: float) -> None:
        self._up.proxy.controls.set(delay_s=seconds)

    @property
    def stalled(self) -> bool:
        """Whether the link is a black hole: connections stay open and nothing passes.

        New ones are accepted by the kernel and get no answer. The kernel still acknowledges what
        is sent, so ``tcp_user_timeout`` does not notice.
        """
        return self._up.proxy.controls.read().stalled

    @stalled.setter
    def stalled(self, stalled: bool) -> None:
        self._up.proxy.controls.set(stalled=stalled)

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
        """Turn back what was turned: delay, stall, pause, lag, what is to come, certificate, API.

        Connections, counts, roles, databases and instances stay. Endpoints lead where they should.
        """
        self._up.proxy.controls.set(delay_s=0.0, stalled=False, asleep=False, watched=False)
        self._up.admission.reset()
        self._up.instances.settle()
        if self.reader_lag_s:
            self.reader_lag_s = 0.0
        self.describe_denied = False
        self.present()

    def create_user(self, name: str, *, password: str | None = None) -> None:
        """Make a role: granted ``rds_iam`` without a password, else logging in with it."""
        roles.create_user(self._up.instances.writer, name, password=password)

    def set_password(self, name: str, password: str) -> None:
        """Change a role's password, as a rotation would."""
        roles.set_password(self._up.instances.writer, name, password)

    def create_database(
        self, name: str, *, owner: str | None = None, template: str = "template1"
    ) -> None:
        """Make another database, owned by ``user`` unless told otherwise.

        ``template="template0"`` makes one without the extension ``vector``; only the superuser
        may add it there.
        """
        roles.create_database(
            self._up.instances.writer, name, owner=owner or self.user, template=template
        )

    def drop_database(self, name: str) -> None:
        """Drop a database and end its connections; no error where there is none."""
        roles.drop_database(self._up.instances.writer, name)

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
            has_reader=self.has_reader,
        )
        return rds_api.answer(form, facts)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a running local cluster consists of."""

    instances: Instances
    proxy: Proxy
    admission: Admission
    authority: Authority
    root: Path
    api: rds_api.ApiServer

    def present(self, hosts: Sequence[str], *, trusted: bool = True, expired: bool = False) -> None:
        """Have the proxy present a new certificate for these hosts."""
        authority = self.authority if trusted else Authority.create("Another root")
        self.proxy.present(authority.issue(dict.fromkeys(hosts), expired=expired))

    def answer(self, question: Mapping[str, object]) -> Answer:
        """Answer the proxy's process, and have it stop asking about commits once all are lost."""
        answer = self.admission.answer(question)
        if question["ask"] == "commit" and not self.admission.policy.drop_replies:
            self.proxy.controls.set(watched=False)
        return answer


def assemble(
    stack: ExitStack,
    *,
    endpoint: str,
    reader_endpoint: str,
    ports: Mapping[str, int],
    region: str,
    version: ServerVersion,
    keys: Keys,
    clock: Callable[[], float],
    describe: Callable[[Mapping[str, str]], rds_api.Answer],
) -> Parts:
    """Make and start everything; ``stack`` undoes it."""
    directory = stack.enter_context(kept_directory())
    proxy = stack.enter_context(Proxy(directory, ports=ports))
    instances = Instances(directory, version=version, proxy=proxy)
    hosts = {"writer": (endpoint, reader_endpoint), "reader": (reader_endpoint,)}
    with instances.writer.initializing():
        # All this is done before initdb is.
        admission = Admission(
            scopes={
                name: TokenScope(frozenset(map(str.lower, hosts[name])), port, region)
                for name, port in proxy.ports.items()
            },
            keys=keys,
            clock=clock,
            has_rds_iam=lambda name: roles.has_rds_iam(instances, name),
            reserved=ADMIN,
        )
        authority = Authority.create("Local Aurora root")
        root = directory / "root.pem"
        root.write_bytes(authority.pem())
        api = rds_api.ApiServer(describe)
        parts = Parts(instances, proxy, admission, authority, root, api)
        parts.present(hosts["writer"])
        stack.enter_context(parts.api.running())
        stack.enter_context(proxy.running(parts.answer))
        stack.callback(admission.close)
    stack.enter_context(instances.running())
    roles.furnish(instances.writer)
    return parts
