"""The parts of a local cluster, made and started in an order that wastes no time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from langgraph_aurora_store.local import api, roles
from langgraph_aurora_store.local.admission import Admission
from langgraph_aurora_store.local.authority import Authority
from langgraph_aurora_store.local.gate import Gate
from langgraph_aurora_store.local.lifetime import kept_directory
from langgraph_aurora_store.local.server import ADMIN, Server, ServerVersion
from langgraph_aurora_store.local.tokens import Door, Keys


@dataclass(frozen=True, slots=True)
class Parts:
    """What a running local cluster consists of."""

    server: Server
    gate: Gate
    admission: Admission
    authority: Authority
    root: Path
    api: api.ApiServer

    def present(self, hosts: Sequence[str], *, trusted: bool = True, expired: bool = False) -> None:
        """Have the gate present a new certificate for these hosts."""
        authority = self.authority if trusted else Authority.create("Another root")
        self.gate.present(authority.issue(dict.fromkeys(hosts), expired=expired))


def assemble(
    stack: ExitStack,
    *,
    hosts: Sequence[str],
    port: int,
    region: str,
    version: ServerVersion,
    keys: Keys,
    clock: Callable[[], float],
    describe: Callable[[Mapping[str, str]], api.Answer],
) -> Parts:
    """Make and start everything; ``stack`` undoes it."""
    directory = stack.enter_context(kept_directory())
    server = Server(directory, version=version)
    with server.initializing():
        # All this is done before initdb is.
        gate = stack.enter_context(Gate(directory, port=port))
        admission = Admission(
            door=Door(frozenset(map(str.lower, hosts)), gate.port, region),
            keys=keys,
            clock=clock,
            has_rds_iam=lambda name: roles.has_rds_iam(server, name),
            reserved=ADMIN,
        )
        authority = Authority.create("Local Aurora root")
        root = directory / "root.pem"
        root.write_bytes(authority.pem())
        parts = Parts(server, gate, admission, authority, root, api.ApiServer(describe))
        parts.present(hosts)
        stack.enter_context(parts.api.running())
        stack.enter_context(gate.running(server.socket, admission.answer))
        stack.callback(admission.close)
    stack.enter_context(server.running())
    roles.furnish(server)
    return parts
