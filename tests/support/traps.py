"""Operators and functions of another role on the search path, each an error for its user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product

import psycopg

TYPES = (
    *("text", "varchar", "name", '"char"', "bool", "jsonb", "json", "bytea", "uuid"),
    *("int2", "int4", "int8", "float4", "float8", "numeric", "oid", "regclass"),
    *(
        "timestamptz",
        "timestamp",
        "interval",
        "tstzrange",
        "text[]",
        "jsonb[]",
        "int4[]",
        "bytea[]",
        "tid",
    ),
)
OPERATORS = (
    *(
        "=",
        "<>",
        "<",
        "<=",
        ">",
        ">=",
        "+",
        "-",
        "*",
        "/",
        "||",
        "~",
        "@>",
        "->",
        "->>",
        "#>>",
        "?",
    ),
    *("!~", "~>=~", "~<~", "<=>", "<->", "<#>"),
)
FUNCTIONS = ("lower(tstzrange)", "upper(tstzrange)", "min(float8)", "unnest(text[])")
FUNCTIONS += ("cardinality(text[])", "array_to_string(text[], text)", "ceil(float8)")
FUNCTIONS += ("array_agg(text)", "array_agg(bytea[])", "jsonb_each(jsonb)", "max(text)")
FUNCTIONS += ("jsonb_each_text(jsonb)", "strpos(text, text)", "strpos(text, varchar)")
FUNCTIONS += ("hashtext(text)", "hashtext(varchar)", "convert_to(text, text)")


@contextmanager
def traps_set(admin_dsn: str, *, types: Sequence[str] = TYPES) -> Iterator[None]:
    """Have a role own a schema ``traps`` that holds an operator for each pair of types."""
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("CREATE ROLE mallory")
        try:
            admin.execute("CREATE SCHEMA traps AUTHORIZATION mallory")
            admin.execute("GRANT USAGE ON SCHEMA traps TO PUBLIC")
            admin.execute("SET ROLE mallory; SET search_path = traps, public")
            admin.execute("\n".join(trap_statements(types)))
            yield
        finally:
            admin.execute("RESET ROLE; SET client_min_messages = error")
            admin.execute("DROP SCHEMA IF EXISTS traps CASCADE; DROP ROLE mallory")


def trap_statements(types: Sequence[str]) -> Iterator[str]:
    """What the other role runs: a statement that uses one of these fails."""
    body = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'caught in a trap'; END $$;"
    for left, right in product(types, types):
        yield f"CREATE FUNCTION trap({left}, {right}) RETURNS bool {body}"
        for operator in OPERATORS:
            arguments = f"LEFTARG = {left}, RIGHTARG = {right}"
            yield f"CREATE OPERATOR {operator} (FUNCTION = trap, {arguments});"
    for function in FUNCTIONS:
        yield f"CREATE FUNCTION {function} RETURNS float8 {body}"
