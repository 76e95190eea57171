"""The steps of a flow, and their replies.

A flow is a generator that yields steps and receives their replies; an executor performs them.
Flows are pure: the blocking and the asyncio executor run the same one, and a test can answer it by
hand. An executor throws what a step raised into the flow, at the ``yield`` that asked
for it, so that a flow can clean up or choose another way.

```
Transaction  statements, one transaction, one round trip    -> list[Rows], one per statement
Autocommit   one statement outside a transaction            -> Rows
Sleep        seconds to wait, no connection used meanwhile  -> None
Embed        texts, while no connection is held             -> Vectors
```
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

from psycopg.sql import SQL, Composed

T = TypeVar("T")

Row: TypeAlias = tuple[Any, ...]
Params: TypeAlias = Sequence[Any] | Mapping[str, Any]


class Marking(NamedTuple):
    """How a transaction is marked (see `commit_mark_sql`); its first statement makes the mark.

    That statement gets ``mark_writer`` and ``mark_number`` as parameters, as do these two texts:
    ``outcome`` reads the writer's last number and its counts, ``cleanup`` deletes old marks.
    """

    outcome: str
    cleanup: str


class Statement(NamedTuple):
    """One SQL statement and its parameters, as ``cursor.execute`` takes them."""

    sql: str | SQL | Composed
    params: Params = ()


class Rows(list[Row]):
    """The rows a statement returned, as tuples; ``touched`` is the number of rows it touched."""

    __slots__ = ("touched",)

    def __init__(self, rows: Sequence[Row] = (), touched: int = 0) -> None:
        super().__init__(rows)
        self.touched = touched


class Transaction(NamedTuple):
    """Statements to run in order as one transaction in one round trip: all sent, then all read.

    Either all of them take effect or none; ``writes`` says that they are to have an effect. The
    reply is a list of ``Rows``, one per statement, empty where it returns none; of a marked one
    that an earlier attempt committed, it is the outcome that the mark recorded, or empty.

    A write may be run again after a lost reply if it is marked by ``marking``, or if
    ``is_idempotent``: then a repetition changes nothing. ``is_optional`` is for one that a
    read-only server may refuse. ``needs_writer`` is for a read whose answer must not be old.
    """

    statements: tuple[Statement, ...]
    writes: bool = False
    marking: Marking | None = None
    is_idempotent: bool = False
    is_optional: bool = False
    needs_writer: bool = False


class Autocommit(NamedTuple):
    """A statement that cannot run in a transaction, such as ``CREATE INDEX CONCURRENTLY``.

    A flow that yields one expects all its steps on one connection.
    """

    statement: Statement


class Sleep(NamedTuple):
    """Time to let pass before the flow goes on, in seconds."""

    seconds: float


class Label(NamedTuple):
    """Where a text comes from: the first item and field of the batch that hold it."""

    namespace: tuple[str, ...]
    key: str
    field: str


class Embed(NamedTuple):
    """Distinct texts to turn into vectors; ``labels`` are those of ``documents``, in order."""

    documents: tuple[str, ...]
    queries: tuple[str, ...]
    labels: tuple[Label, ...] = ()


class Vectors(NamedTuple):
    """The embeddings of an ``Embed``, as the model returned them and in the order asked."""

    documents: Sequence[Sequence[float]] = ()
    queries: Sequence[Sequence[float]] = ()


Step: TypeAlias = Transaction | Autocommit | Sleep | Embed
Flow: TypeAlias = Generator[Step, Any, T]
