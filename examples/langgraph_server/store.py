"""The server's long-term memory: a store for each of its threads, and the tables made once.

The server enters `store` on the event loop of each thread that runs graphs, and leaves it when it
stops. It calls no setup(), sweeps nothing, and leaves index and TTL to the store itself.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from settings import EMBEDDING_MODEL

from langgraph_aurora_store import AsyncAuroraStore, PoolSettings

# One pool per thread: with BG_JOB_ISOLATED_LOOPS that is one for each job the server runs at a time
# (N_JOBS_PER_WORKER, 10) and the API's own, so up to 11 times 4 connections for each process.
POOL = PoolSettings(min_size=0, max_size=4)


@asynccontextmanager
async def store() -> AsyncIterator[AsyncAuroraStore]:
    """What langgraph.json names."""
    # The cluster, user and database come from AURORA_CLUSTER, AURORA_USER and AURORA_DATABASE.
    async with AsyncAuroraStore.from_cluster(
        pool=POOL, index={"embed": EMBEDDING_MODEL, "fields": ["text"]}
    ) as opened:
        await opened.setup()  # safe from all threads and processes at once
        yield opened
