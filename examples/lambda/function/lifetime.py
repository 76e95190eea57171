"""What is particular to a sandbox: bounded phases, and being frozen between two invocations."""

import logging
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import psycopg

from langgraph_aurora_store import AuroraStore
from langgraph_aurora_store.errors import AuroraStoreError

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
        logger.error("%s failed: %s", what, describe(error))
        return False
    return True


def describe(error: BaseException) -> str:
    """An error for the log: its class and place, and its words where they quote no user.

    A database, a model or a validation may repeat what a user said; the store's own errors do not.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].name}:{frames[-1].lineno}" if frames else ""
    if isinstance(error, AuroraStoreError):
        return f"{type(error).__name__}: {error}"
    if isinstance(error, psycopg.Error) and error.sqlstate:
        return f"{type(error).__name__} (SQLSTATE {error.sqlstate}){place}"
    return f"{type(error).__name__}{place}"


def let_sleep(store: AuroraStore) -> None:
    """Start the server's clock for this session's idleness, at the cost of one round trip.

    A session that ends with a psycopg pipeline, as a search or a write of the store does, is not
    counted as idle by PostgreSQL's ``idle_session_timeout``; after a plain statement it is. So the
    session of a frozen sandbox ends in time, and the cluster can pause.
    """
    with store.connection() as connection:
        connection.execute("", prepare=False)
