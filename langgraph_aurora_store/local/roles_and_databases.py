"""Roles and databases as the master user of an Aurora cluster would make them."""

from __future__ import annotations

import psycopg
from psycopg import sql

from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.local.instances import Instances
from langgraph_aurora_store.local.server import Server

# Not pg_has_role(): a superuser has every role, but "+rds_iam" in pg_hba.conf means real members.
MEMBER_OF_RDS_IAM = """
WITH RECURSIVE granted (oid) AS (
    SELECT oid FROM pg_roles WHERE rolname = %s
    UNION
    SELECT m.roleid FROM pg_auth_members m JOIN granted g ON m.member = g.oid
)
SELECT 1 FROM granted JOIN pg_roles USING (oid) WHERE rolname = 'rds_iam'
"""


def furnish(server: Server) -> None:
    """Make the role ``rds_iam``, and pgvector part of every database made from now on."""
    with psycopg.connect(server.dsn("template1"), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
    server.execute("CREATE ROLE rds_iam NOLOGIN")


def has_rds_iam(instances: Instances, name: str) -> bool:
    """Whether a role is a member of ``rds_iam``, directly or through other roles."""
    return bool(instances.ask(MEMBER_OF_RDS_IAM, (name,)))


def create_user(server: Server, name: str, *, password: str | None) -> None:
    """Make a role that logs in with IAM tokens, or with a password where one is given."""
    role = sql.Identifier(name)
    server.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    if password is None:
        server.execute(sql.SQL("GRANT rds_iam TO {}").format(role))
    else:
        set_password(server, name, password)


def set_password(server: Server, name: str, password: str) -> None:
    """Give a role a password."""
    statement = sql.SQL("ALTER ROLE {} PASSWORD {}")
    server.execute(statement.format(sql.Identifier(name), sql.Literal(password)))


def create_database(server: Server, name: str, *, owner: str, template: str) -> None:
    """Copy a database; its owner may create schemas and tables in it."""
    statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}")
    server.execute(statement.format(*map(sql.Identifier, (name, owner, template))))


def create_both(server: Server, *, user: str, database: str) -> None:
    """Make a role for IAM tokens, and its database.

    Raises:
        ConfigurationError: the server takes no such name.
    """
    try:
        create_user(server, user, password=None)
        create_database(server, database, owner=user, template="template1")
    except psycopg.Error as error:
        raise ConfigurationError(
            f"user={user!r} with database={database!r} cannot be made:"
            f" {error.diag.message_primary}; pass others"
        ) from error


def drop_database(server: Server, name: str) -> None:
    """Drop a database, and end its connections."""
    server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
