"""Errors of the server without the rows that they quote.

A detail such as ``Failing row contains (...)`` holds a memory's words, and an error's text is
written into logs and into spans of tracers. Class, SQLSTATE and the names of constraint, table and
column are kept.
"""

from __future__ import annotations

import re

import psycopg
from psycopg.pq import DiagnosticField

# Classes of SQLSTATE whose errors quote no values: connections, transactions, privileges, names,
# resources and interventions; https://www.postgresql.org/docs/current/errcodes-appendix.html
_QUOTING_NO_VALUES = re.compile("0[8A]|25|28|3D|3F|4[02]|5[34578]")
# A text that is wholly the database's own: RAISE in a trigger, or an external routine's.
_WRITTEN_BY_THE_DATABASE = re.compile("P0|3[89]|HV")
# PostgreSQL's function behind RAISE in PL/pgSQL, which may name any SQLSTATE.
_RAISE = "exec_stmt_raise"
_VALUES = re.compile('".*"', re.DOTALL)

_KEPT = {
    "severity": DiagnosticField.SEVERITY,
    "sqlstate": DiagnosticField.SQLSTATE,
    "schema_name": DiagnosticField.SCHEMA_NAME,
    "table_name": DiagnosticField.TABLE_NAME,
    "column_name": DiagnosticField.COLUMN_NAME,
    "datatype_name": DiagnosticField.DATATYPE_NAME,
    "constraint_name": DiagnosticField.CONSTRAINT_NAME,
}


def without_values(exc: psycopg.Error) -> psycopg.Error:
    """The same error, or one of its class without detail, context and quoted values."""
    sqlstate = exc.sqlstate
    if sqlstate is None or exc.diag.sqlstate is None:
        return exc
    if _QUOTING_NO_VALUES.match(sqlstate) and exc.diag.source_function != _RAISE:
        return exc
    text = _text(exc, sqlstate)
    info: dict[int, bytes | None] = {DiagnosticField.MESSAGE_PRIMARY: text.encode()}
    for name, field in _KEPT.items():
        if value := getattr(exc.diag, name):
            info[field] = value.encode()
    return type(exc)(text, info=info, encoding="utf-8")


def _text(exc: psycopg.Error, sqlstate: str) -> str:
    said = exc.diag.message_primary or ""
    if _WRITTEN_BY_THE_DATABASE.match(sqlstate) or exc.diag.source_function == _RAISE:
        return f"{type(exc).__name__} (SQLSTATE {sqlstate}), with a text of the database's own"
    # An integrity error quotes names only; a data error quotes what it could not read.
    return said if sqlstate.startswith(("23", "XX")) else _VALUES.sub('"..."', said)
