"""A database of one test."""

from dataclasses import dataclass

import psycopg

from langgraph_aurora_store.local import LocalAurora


@dataclass(frozen=True, slots=True)
class Database:
    """A database of one test: owned by the cluster's user, with pgvector and nothing else."""

    cluster: LocalAurora
    name: str

    @property
    def admin_dsn(self) -> str:
        """As the superuser, past the proxy: for looking at what is there."""
        return self.cluster.admin_dsn_for(self.name)

    @property
    def owner_dsn(self) -> str:
        """As the application's role, past the proxy: for tests that are not about connecting."""
        return psycopg.conninfo.make_conninfo(self.admin_dsn, user=self.cluster.user)
