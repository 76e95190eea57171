"""Connection strings, as `from_conn_string` takes them: parsed before psycopg quotes them."""

from __future__ import annotations

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict


def check_connection_string(text: str) -> None:
    """Refuse what libpq cannot parse; its own error quotes the place, which may be a password's.

    Raises:
        psycopg.ProgrammingError: the text is no connection string.
    """
    try:
        conninfo_to_dict(text)
    except ProgrammingError:
        pass  # raised outside of the handler, so that libpq's error is no context
    else:
        return
    raise ProgrammingError(
        "the connection string cannot be parsed, and is not shown as it may hold a password: pass"
        " postgresql://USER:PASSWORD@HOST/DATABASE, in which characters such as %, @ and / of a"
        " part are written as %25, %40 and %2F, or name='value' pairs"
    )
