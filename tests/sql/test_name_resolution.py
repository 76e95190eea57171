"""No object of another role takes part in a statement, whatever lies on the search path.

PostgreSQL takes an operator or function of any schema of the search path, if its argument types fit
better than those of pg_catalog's. So each name is qualified, or meets operands of the very types of
pg_catalog's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pglast
import psycopg
import pytest
from langgraph.store.base import GetOp, ListNamespacesOp, MatchCondition, PutOp, SearchOp
from pglast import ast, enums
from pglast.visitors import Visitor

from langgraph_aurora_store.config import IndexSettings
from langgraph_aurora_store.local import LocalAurora
from langgraph_aurora_store.sql.expiry_sweep import sweep
from langgraph_aurora_store.sql.flow import Autocommit, Flow, Statement, Step, Transaction
from langgraph_aurora_store.sql.namespace_operations import count_under, delete_under
from langgraph_aurora_store.sql.schema.admin_script import ddl
from langgraph_aurora_store.sql.schema.introspection import inspect
from langgraph_aurora_store.sql.schema.setup import lock_holder, setup
from langgraph_aurora_store.sql.store_tables import StoreTables
from tests.support.flow_runner import drive
from tests.support.sql_session import DIMS, SqlSession, embed, made
from tests.support.traps import TYPES, traps_set

FILTERS: list[dict[str, Any]] = [
    {"text": "tea"},
    {"n": {"$eq": 1, "$ne": 2, "$gt": 0, "$gte": 0, "$lt": 9, "$lte": 9}},
    {"text": {"$gt": "a", "$lte": "z"}},
    {"a.b": None, "tags": ["x", {"y": 1}]},
    {"n": {"$in": [1, None, "x"], "$nin": [7], "$exists": True}},
    {"tags": {"$contains": "x"}, "meta": {"$contains": [{"k": 1}]}},
    {"meta": {"k": {"$not": {"$gt": 3}}}},
    {"$or": [{"n": 1}, {"$and": [{"n": 2}, {"$not": {"n": 3}}]}]},
]


@pytest.fixture(scope="module", params=["hnsw", "ivfflat", "flat"])
def session(aurora: LocalAurora, request: pytest.FixtureRequest) -> Iterator[SqlSession]:
    """A store's tables in a database of their own."""
    index = IndexSettings(dims=DIMS, fields=("text",), kind=request.param, distance="l2")
    with made(aurora, "name_resolution", index) as made_session:
        # As a store knows it once it has looked at the database.
        yield made_session.with_tables(pgvector_schema="public")


def use_all(session: SqlSession) -> list[Step]:
    """Perform every kind of operation, and return the steps that it took."""
    namespace, steps = ("users", "ada"), []
    values = [{"text": f"tea {n}", "n": n, "tags": ["x"], "meta": {"k": n}} for n in range(5)]
    puts = [PutOp(namespace, f"k{n}", value, ttl=1.5) for n, value in enumerate(values)]
    prefix = MatchCondition("prefix", ("users", "*"))
    batches: list[list[Any]] = [
        puts,
        [*puts[:2], PutOp(namespace, "k4", None), PutOp(namespace, "k3", {"text": "coffee"})],
        [GetOp(namespace, "k1"), ListNamespacesOp(), ListNamespacesOp((prefix,), max_depth=1)],
        [SearchOp(()), SearchOp(namespace, query="tea"), SearchOp((), query="tea", limit=50)],
        [SearchOp(namespace, filter=each) for each in FILTERS],
        [SearchOp(namespace, filter=each, query="tea") for each in FILTERS],
    ]
    for batch in batches:
        session.run(*batch)
        steps += session.steps
    session.sql("UPDATE store SET expires_at = now() + interval '1 second' WHERE key = 'k1'")
    session.run(GetOp(namespace, "k1", refresh_ttl=True))
    steps += session.steps
    flows: list[Flow[Any]] = [
        count_under(namespace, session.tables, FILTERS[1]),
        sweep(session.tables),
        inspect(session.tables),
        setup(session.tables),
        delete_under(namespace, session.tables),
        lock_holder(0),
    ]
    for flow in flows:
        drive(flow, session.connection, embed, steps)
    return steps


def statements(steps: list[Step]) -> set[str]:
    """The texts of all statements, as the server gets them."""
    found: list[Statement] = []
    for step in steps:
        found += step.statements if isinstance(step, Transaction) else ()
        found += [step.statement] if isinstance(step, Autocommit) else ()
    return {as_sent(str(it.sql)) for it in found}


def as_sent(text: str) -> str:
    """A statement with the server's kind of parameters in place of psycopg's."""
    return re.sub(r"%(\(\w+\))?[sbt]", "$1", text).replace("%%", "%")


class Unqualified(Visitor):
    """Collects names that another schema of the search path could supply."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def visit_FuncCall(self, _: Any, node: ast.FuncCall) -> None:  # noqa: N802 - pglast's name
        names = [part.sval for part in node.funcname]
        is_in_rows = names == ["unnest"] and len(node.args or ()) > 1
        # The parser itself qualifies an unnest of several arrays in FROM.
        if len(names) == 1 and not is_in_rows:
            self.found.append(f"function {names[0]}")

    def visit_RangeVar(self, _: Any, node: ast.RangeVar) -> None:  # noqa: N802 - pglast's name
        if node.relname.startswith("pg_") and node.schemaname != "pg_catalog":
            self.found.append(f"relation {node.relname}")

    def visit_A_Expr(self, _: Any, node: ast.A_Expr) -> None:  # noqa: N802 - pglast's name
        if len(node.name) > 1 or node.kind == enums.A_Expr_Kind.AEXPR_NULLIF:
            return
        for operand in (node.lexpr, node.rexpr):
            if isinstance(operand, ast.ParamRef) or is_bare_text(operand):
                self.found.append(f"operator {node.name[0].sval} of an operand without a type")


def is_bare_text(node: object) -> bool:
    return isinstance(node, ast.A_Const) and isinstance(node.val, ast.String)


def test_every_name_is_qualified_or_has_operands_of_known_types(session: SqlSession) -> None:
    """Of all statements that the operations are made of."""
    texts = statements(use_all(session))
    assert len(texts) > 25
    unqualified = {}
    for text in texts:
        visitor = Unqualified()
        visitor(pglast.parse_sql(text))
        if visitor.found:
            unqualified[text] = visitor.found
    assert unqualified == {}


def test_the_script_for_administrators_qualifies_its_names() -> None:
    """It runs with more rights than the store's own statements."""
    script = ddl(StoreTables(index=IndexSettings(dims=DIMS), schema="memories"), role="app")
    calls = re.findall(r"(?<![\w.])([a-z_]+)\(", re.sub(r"--.*|'[^']*'", "", script))
    allowed = {"nullif", "vector", "prefix", "expires_at", "embedding"}
    assert set(calls) - allowed == set()


@pytest.fixture
def traps(session: SqlSession, aurora: LocalAurora) -> Iterator[None]:
    """Operators and functions of another role in a schema of the search path, for all types."""
    with traps_set(aurora.admin_dsn_for("name_resolution"), types=(*TYPES, "vector", "halfvec")):
        session.sql('SET search_path = "$user", traps, public')
        yield
        session.sql("RESET search_path")


def test_an_operator_of_another_role_is_never_called(session: SqlSession, traps: None) -> None:
    """There is one for each pair of types, ahead of the store's schema on the search path."""
    with pytest.raises(psycopg.errors.RaiseException, match="caught in a trap"):
        session.sql("SELECT '{}'::jsonb #>> '{}'")
    use_all(session)
