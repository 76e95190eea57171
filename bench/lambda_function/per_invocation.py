"""The same with a store and `setup()` for each invocation, as one writes it at first."""

import os
from contextlib import AbstractContextManager
from time import perf_counter

import boto3
from langgraph.store.postgres import PostgresStore
from psycopg.conninfo import make_conninfo
from vectors import INDEX, embed

from langgraph_aurora_store import AuroraStore

rds = boto3.client("rds")
writer = rds.describe_db_clusters(DBClusterIdentifier=os.environ["AURORA_CLUSTER"])["DBClusters"][0]


def parent() -> AbstractContextManager[PostgresStore]:
    host, port, user = writer["Endpoint"], writer["Port"], os.environ["AURORA_USER"]
    token = rds.generate_db_auth_token(DBHostname=host, Port=port, DBUsername=user)
    return PostgresStore.from_conn_string(
        make_conninfo(
            host=host,
            port=port,
            user=user,
            password=token,
            dbname=os.environ["AURORA_DATABASE"],
            sslmode="verify-full",
            sslrootcert=os.environ["PGSSLROOTCERT"],
        ),
        index={**INDEX, "embed": embed},
    )


def ours() -> AbstractContextManager[AuroraStore]:
    return AuroraStore.from_cluster(index={**INDEX, "embed": embed})


def call(make, event: dict) -> dict:
    begun = perf_counter()
    with make() as store:
        store.setup()
        store.search(("bench", "user"), query=event["text"], limit=5)
        store.put(("bench", "user"), event["key"], {"text": event["text"]})
    return {"ms": (perf_counter() - begun) * 1000}


def of_parent(event: dict, _context: object) -> dict:
    return call(parent, event)


def of_ours(event: dict, _context: object) -> dict:
    return call(ours, event)
