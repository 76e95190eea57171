"""Bring a database to what the store needs: one flow for both twins, safe to repeat.

The flow looks before it touches anything, so a role that may create nothing passes where there is
nothing to do. What is missing is made by one process at a time, under a session-level advisory
lock that is polled and never waited for: a waiter inside ``pg_advisory_lock`` would hold a
snapshot, which ``CREATE INDEX CONCURRENTLY`` waits for in turn. What is new is made in one
transaction; indexes on tables that are in use are built concurrently, one by one. Versions are
recorded last. So a process killed at any point leaves what the next one recognises and completes.

A transaction-mode pooler hands each statement another session and may keep the lock on one of
them, and RDS Proxy pins the connection: run ``setup()`` on the cluster's own endpoint. A lock that
was left behind ends the wait of the next ``setup()`` with an error that names its session.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, TypeAlias, TypeVar

import psycopg
from psycopg import errors, sql

from langgraph_aurora_store.errors import SchemaError
from langgraph_aurora_store.sql.flow import Autocommit, Flow, Sleep, Statement, Transaction
from langgraph_aurora_store.sql.schema.definitions import as_text, fewest_vectors
from langgraph_aurora_store.sql.schema.diff import SchemaDiff, inspect_diff
from langgraph_aurora_store.sql.schema.introspection import VECTORS, DatabaseState
from langgraph_aurora_store.sql.store_tables import StoreTables
from langgraph_aurora_store.validation import brief

T = TypeVar("T")
# Compares the database with what is wanted, reading only.
Look: TypeAlias = Callable[[], Flow[SchemaDiff]]
# Applications filter by the name of 0.1.0.
logger = logging.getLogger("langgraph_aurora_store.sql.schema")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
# A table that is in use is locked for a moment only, or not at all: statements that come after a
# waiting ALTER TABLE would wait behind it.
LOCK_TIMEOUT = "2s"
ATTEMPTS = 30
# A holder of the lock that builds no index is done or gives up within 30 attempts of 3 s.
LONGEST_WAIT_S = 120.0
UNLOCK_ATTEMPTS = 50
# What another session can cause, a parent's setup() for instance, and what a second look settles.
_RACES = (
    errors.DeadlockDetected,
    errors.DuplicateObject,
    errors.DuplicateSchema,
    errors.DuplicateTable,
    errors.LockNotAvailable,
    errors.UniqueViolation,
)
_BY_AN_ADMINISTRATOR = (
    "an administrator runs the SQL of ddl() once, grants included, and then the store's role"
    " needs no right to create anything"
)
_WAYS_OUT: dict[type[psycopg.Error], str] = {
    errors.InsufficientPrivilege: _BY_AN_ADMINISTRATOR,
    errors.ReadOnlySqlTransaction: "connect to the cluster's writer endpoint",
    errors.ActiveSqlTransaction: "pass a connection with autocommit=True",
    errors.FeatureNotSupported: "this server cannot run the store",
    errors.UndefinedFile: "pgvector is not installed on this server",
}
# Limits that a role or a database may carry by default; transaction_timeout is PostgreSQL 17's.
_LIMITS = """
SELECT name, setting FROM pg_catalog.pg_settings
WHERE name IN ('statement_timeout', 'lock_timeout', 'transaction_timeout') AND setting <> '0'::text
"""
_SET = """
SELECT pg_catalog.set_config(name, setting, false)
FROM unnest(%s::text[], %s::text[]) AS x (name, setting)
"""
# The progress view shows every session's builds to every role; a query's text only to members.
_HOLDER = """
SELECT l.pid, a.usename::text, a.application_name,
    EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index AS p WHERE p.pid = l.pid)
    OR coalesce(a.query LIKE 'DROP INDEX CONCURRENTLY%%'::text AND a.state = 'active'::text, false)
FROM pg_catalog.pg_locks AS l LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory'::text AND l.granted AND l.objsubid = 1::smallint
    AND l.classid = %s::bigint::oid AND l.objid = %s::bigint::oid
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d
        WHERE d.datname = pg_catalog.current_database())
"""


class LockHolder(NamedTuple):
    """The session that has the lock of setup(); ``builds`` says that it is at an index."""

    pid: int
    role: str | None
    application: str | None
    builds: bool


def setup(tables: StoreTables) -> Flow[DatabaseState]:
    """Make what is missing, and return what ``check`` would.

    Raises:
        SchemaDriftError: the vectors are of another shape than the index configuration says.
        SchemaError: as `converge`.
    """
    done = yield from converge(lambda: inspect_diff(tables))
    _tell_deferred(tables, done)
    return done.found


def converge(look: Look) -> Flow[SchemaDiff]:
    """Make what ``look`` finds missing, and return its last finding, of nothing.

    All steps belong on one connection in autocommit mode, held until the flow ends.

    Raises:
        SchemaError: what is missing cannot be made by this role, on this server or in this
            session; or another session keeps the lock of setup() and builds nothing. The
            message has the reason and what to do.
    """
    try:
        return (yield from _converge(look))
    except tuple(_WAYS_OUT) as exc:
        way_out = next(text for kind, text in _WAYS_OUT.items() if isinstance(exc, kind))
        raise SchemaError(f"setup() failed: {_reason(exc)}; {way_out}") from exc


def _converge(look: Look) -> Flow[SchemaDiff]:
    pause_s, waited_s = FIRST_PAUSE_S, 0.0
    todo = yield from look()
    while todo:
        key = _lock_key(todo.found)
        unlock = Statement("SELECT pg_catalog.pg_advisory_unlock(%s)", (key,))
        done = yield from _cleaned_up(unlock, _in_turn(look, key, unlock))
        if done is not None:
            return done
        holder = yield from lock_holder(key)
        waited_s = 0.0 if holder is None or holder.builds else waited_s
        if holder and waited_s >= LONGEST_WAIT_S:
            raise _held_up(holder)
        logger.info("another process sets up the store; looking again in %.2f s", pause_s)
        yield Sleep(pause_s)
        waited_s += pause_s
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        todo = yield from look()
    return todo


def _in_turn(look: Look, key: int, unlock: Statement) -> Flow[SchemaDiff | None]:
    """Do all there is to do, or nothing where another process is at it."""
    ((locked,),) = yield Autocommit(Statement("SELECT pg_catalog.pg_try_advisory_lock(%s)", (key,)))
    if not locked:
        return None
    done = yield from _make_all(look)
    for _ in range(UNLOCK_ATTEMPTS):  # a pooler may have given the lock to another session
        ((is_released,),) = yield Autocommit(unlock)
        if is_released:
            return done
    logger.warning(
        "the lock of setup() stays in a session of the pooler; later calls of setup() will name it."
        " Run setup() on the cluster's own endpoint"
    )
    return done


def lock_holder(key: int) -> Flow[LockHolder | None]:
    """The session that holds the lock; ``None`` when it has just let go."""
    # PostgreSQL shows a key of 64 bits as two unsigned halves.
    halves = divmod(key % 2**64, 2**32)
    rows = yield Autocommit(Statement(_HOLDER, halves))
    return LockHolder(*rows[0]) if rows else None


def _held_up(holder: LockHolder) -> SchemaError:
    application = brief(holder.application or "")
    return SchemaError(
        f"setup() waited {LONGEST_WAIT_S:.0f} s for the lock of another setup(), which the session"
        f" with pid {holder.pid} (application_name {application}, role {brief(holder.role or '')})"
        " holds without building an index. A transaction-mode pooler leaves such a lock behind:"
        f" end that session by SELECT pg_terminate_backend({holder.pid}), and run setup() on the"
        " cluster's own endpoint"
    )


def _make_all(look: Look) -> Flow[SchemaDiff]:
    """Look and make until nothing is missing; what another session got in the way of, again."""
    race: psycopg.Error | None = None
    for _ in range(ATTEMPTS):
        todo = yield from look()
        if not todo:
            return todo
        try:
            yield from _make(todo)
        except _RACES as exc:
            race = exc
            logger.info("setting up again in %.2f s: %s", LONGEST_PAUSE_S, _reason(exc))
            yield Sleep(LONGEST_PAUSE_S)
    missing = ", ".join(part.name for part in todo.parts)
    reason = f": {_reason(race)}" if race else ""
    raise SchemaError(
        f"setup() gave up after {ATTEMPTS} attempts to make {missing}{reason}"
    ) from race


def _make(todo: SchemaDiff) -> Flow[None]:
    if todo.extension:
        yield from _install_pgvector(todo.found)
        return
    statements = [_text(part.create(todo.names)) for part in todo.made]
    if not todo.found.schema_exists:
        name = sql.Identifier(str(todo.found.schema))
        statements.insert(0, _text(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(name)))
    if todo.built:
        yield from _in_one_transaction(statements)
        yield from _without_limits(_build(todo))
        statements = []
    yield from _in_one_transaction(statements + [_text(it) for it in todo.recording])
    for part in todo.parts:
        logger.info("made %s in schema %r", part.name, todo.found.schema)


def _install_pgvector(found: DatabaseState) -> Flow[None]:
    try:
        yield Autocommit(Statement("CREATE EXTENSION IF NOT EXISTS vector"))
    except errors.InsufficientPrivilege as exc:
        raise SchemaError(
            f"role {found.user!r} may not install pgvector in database {found.database!r}:"
            " an administrator runs there, once: CREATE EXTENSION vector"
        ) from exc


def _in_one_transaction(statements: list[Statement]) -> Flow[None]:
    if statements:
        limit = Statement("SELECT pg_catalog.set_config('lock_timeout', %s, true)", (LOCK_TIMEOUT,))
        yield Transaction((limit, *statements), writes=True)


def _build(todo: SchemaDiff) -> Flow[None]:
    for part in todo.built:
        if part.name in todo.found.indexes:
            drop = sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}")
            yield Autocommit(_text(drop.format(todo.names.table(part.name))))
        yield Autocommit(_text(part.create(todo.names, concurrently=True)))


def _without_limits(work: Flow[None]) -> Flow[None]:
    """Lift the role's time limits, under which a large index would never be finished."""
    limits = yield Autocommit(Statement(_LIMITS))
    if not limits:
        yield from work
        return
    names, settings = map(list, zip(*limits, strict=True))
    restore = Statement(_SET, (names, settings))
    yield from _cleaned_up(restore, _lifted(names, work))
    yield Autocommit(restore)


def _lifted(names: list[str], work: Flow[None]) -> Flow[None]:
    yield Autocommit(Statement(_SET, (names, ["0"] * len(names))))
    yield from work


def _cleaned_up(cleanup: Statement, work: Flow[T]) -> Flow[T]:
    """Transaction ``cleanup`` where ``work`` failed, without hiding why it did."""
    try:
        return (yield from work)
    except GeneratorExit:  # the executor left, and no further step would be answered
        raise
    except BaseException:
        with suppress(psycopg.Error):
            yield Autocommit(cleanup)
        raise


def _tell_deferred(tables: StoreTables, todo: SchemaDiff) -> None:
    if tables.index and todo.deferred:
        logger.warning(
            "index %s is not built yet: call setup() again, as the tables' owner, when %s"
            " holds about %d vectors, or run: %s; until then searches are exact and slower",
            todo.deferred.name,
            VECTORS,
            fewest_vectors(tables.index, 0),
            todo.deferred.create(todo.names, concurrently=True).as_string(),
        )


def _lock_key(found: DatabaseState) -> int:
    """One key for each schema of each database, in the 64 bits an advisory lock has."""
    name = f"langgraph-aurora-store setup {found.database} {found.schema}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)


def _reason(exc: psycopg.Error) -> str:
    return exc.diag.message_primary or str(exc)


def _text(statement: sql.Composable) -> Statement:
    return Statement(as_text(statement))
