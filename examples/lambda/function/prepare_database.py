"""The bootstrap step: a function to call once, after the first deployment and after upgrades.

It alone knows the master user's secret. It makes the role that the other function connects as,
with IAM tokens and no password, the tables, and the users named in its event. Running it again
changes nothing that is right.
"""

import os

import boto3
import settings
from preferences import register
from psycopg import Connection, sql
from pydantic import BaseModel, ConfigDict
from web import UserId

from langgraph_aurora_store import AuroraStore
from langgraph_aurora_store.connect.credentials import SecretsManagerCredentials

ROLE = os.environ["AURORA_USER"]
# A session that has idled for this long is ended by the server, so that the cluster can pause.
IDLE_SESSION_TIMEOUT = os.environ.get("IDLE_SESSION_TIMEOUT", "60s")


class Order(BaseModel):
    """What the function is called with."""

    model_config = ConfigDict(extra="forbid", strict=True)

    users: list[UserId] = []


def handler(event: dict, _context: object) -> dict:
    """Prepare the database; ``{"users": ["ada", "grace"]}`` also registers these users."""
    users = Order.model_validate(event).users
    session = boto3.Session()
    credentials = SecretsManagerCredentials(os.environ["MASTER_SECRET_ARN"], session=session)
    index = settings.make_index(session)  # for its dimensions: nothing is embedded here
    with AuroraStore.from_cluster(session=session, credentials=credentials, index=index) as store:
        with store.connection() as connection:
            make_role(connection)
        store.setup()  # the extension, the tables, their indexes
        with store.connection() as connection:
            # What the store's script grants, and no more: the tables are the master user's.
            for line in store.ddl(role=ROLE).splitlines():
                if line.startswith("GRANT "):
                    connection.execute(line)
        register(store, users)
    return {"role": ROLE, "users": users}


def make_role(connection: Connection) -> None:
    """The role: it may log in with IAM tokens only, and idles for so long at most."""
    role = sql.Identifier(ROLE)
    if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (ROLE,)).fetchall():
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
    connection.execute(sql.SQL("GRANT rds_iam TO {}").format(role))
    setting = sql.SQL("ALTER ROLE {} SET idle_session_timeout = {}")
    connection.execute(setting.format(role, sql.Literal(IDLE_SESSION_TIMEOUT)))
