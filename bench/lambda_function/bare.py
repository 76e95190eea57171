"""The floor: two statements of plain psycopg on a connection that is kept."""

from time import perf_counter

from langgraph_aurora_store.connect.connection import AuroraConnection
from langgraph_aurora_store.connect.connection_factory import connection_factory

conn = AuroraConnection.connect(**connection_factory().kwargs())


def handler(_event: dict, _context: object) -> dict:
    begun = perf_counter()
    conn.execute("SELECT 1").fetchall()
    conn.execute("SELECT 2").fetchall()
    return {"ms": (perf_counter() - begun) * 1000}
