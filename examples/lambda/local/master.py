"""The master user of a local Aurora: what `MasterUsername` of the template gets from RDS."""

import json
import secrets

import psycopg
from psycopg import sql

from langgraph_aurora_store.local import LocalAurora

MASTER = "postgres_admin"


def make_master(cluster: LocalAurora, database: str) -> str:
    """Make it the owner of a database, and return its secret, as RDS writes it.

    It is a superuser here: `rds_superuser` may grant `rds_iam` without being a member, which
    PostgreSQL 16 allows no other role.
    """
    password = secrets.token_urlsafe(24)
    cluster.create_user(MASTER, password=password)
    master = sql.Identifier(MASTER)
    with psycopg.connect(cluster.admin_dsn_for(database), autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER ROLE {} SUPERUSER").format(master))
        change = sql.SQL("ALTER DATABASE {} OWNER TO {}")
        admin.execute(change.format(sql.Identifier(database), master))
    return json.dumps({"username": MASTER, "password": password})
