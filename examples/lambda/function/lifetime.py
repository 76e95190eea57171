"""What is particular to a sandbox: bounded phases, and being frozen between two invocations."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

from langgraph_aurora_store import AuroraStore

logger = logging.getLogger(__name__)

_threads = ThreadPoolExecutor(thread_name_prefix="bounded")


def finish_within(seconds: float, what: str, action: Callable[[], object]) -> bool:
    """Whether an action has succeeded within so many seconds; if not, the log says why.

    One that takes longer is not stopped: it goes on for as long as the sandbox is not frozen.
    """
    future = _threads.submit(action)
    if not wait([future], timeout=max(seconds, 0.0)).done:
        logger.error("%s has not finished within %.1f s", what, seconds)
        return False
    if error := future.exception():
        logger.error("%s failed: %s", what, error, exc_info=error)
        return False
    return True


def let_sleep(store: AuroraStore) -> None:
    """Start the server's clock for this session's idleness, at the cost of one round trip.

    A session that ends with a psycopg pipeline, as a search or a write of the store does, is not
    counted as idle by PostgreSQL's ``idle_session_timeout``; after a plain statement it is. So the
    session of a frozen sandbox ends in time, and the cluster can pause.
    """
    with store.connection() as connection:
        connection.execute("", prepare=False)
