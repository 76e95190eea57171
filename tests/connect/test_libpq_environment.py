"""What of libpq's environment reaches a connection: what we set wins, and the rest is refused."""

import re
from pathlib import Path
from typing import Any

import psycopg.pq
import pytest

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from langgraph_aurora_store.connect.connection_factory import connection_factory
from langgraph_aurora_store.connect.credentials import PasswordCredentials
from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.local import LocalAurora
from tests.support import pool_cases as pools
from tests.support.pool_cases import Open, connect

clock = pools.clock
cluster = pools.cluster
open_pool = pools.open_pool
stepped_cluster = pools.stepped_cluster

DOCS = Path(__file__).parents[2] / "docs" / "connecting.md"
HOST = "m.cluster-c0ffee.us-east-1.rds.amazonaws.com"

# A value of each variable that would break or bend a connection, were it to count.
BENDING = {
    "PGAPPNAME": "langgraph-aurora-store",  # counts, see below
    "PGCHANNELBINDING": "require",
    "PGCLIENTENCODING": "LATIN1",
    "PGCONNECT_TIMEOUT": "-",
    "PGDATABASE": "nowhere",
    "PGGSSDELEGATION": "1",
    "PGGSSENCMODE": "require",
    "PGGSSLIB": "none",
    "PGHOST": "nowhere.invalid",
    "PGHOSTADDR": "203.0.113.1",
    "PGKRBSRVNAME": "none",
    "PGLOADBALANCEHOSTS": "random",
    "PGMAXPROTOCOLVERSION": "latest",
    "PGMINPROTOCOLVERSION": "latest",
    "PGOPTIONS": "-c search_path=pg_catalog -c default_transaction_read_only=on",
    "PGPASSFILE": "/nowhere",
    "PGPASSWORD": "wrong",
    "PGPORT": "1",
    "PGREQUIREAUTH": "none",
    "PGREQUIREPEER": "root",
    "PGSSLCERT": __file__,
    "PGSSLCERTMODE": "require",
    "PGSSLCOMPRESSION": "1",
    "PGSSLKEY": __file__,
    "PGSSLMAXPROTOCOLVERSION": "TLSv1.1",
    "PGSSLMINPROTOCOLVERSION": "TLSv1",
    "PGSSLMODE": "disable",
    "PGSSLNEGOTIATION": "direct",
    "PGSSLSNI": "0",
    "PGTARGETSESSIONATTRS": "standby",
    "PGUSER": "nobody",
}
# These count: each makes a connection stricter, or is refused by name.
COUNTING = {"PGSSLROOTCERT", "PGSSLCRL", "PGSSLCRLDIR", "PGSERVICE"}
# These are in no list of libpq's: they have no parameter.
WITHOUT_PARAMETER = {
    "PGSERVICEFILE": "/nowhere",
    "PGSYSCONFDIR": "/nowhere",
    "PGREQUIRESSL": "0",
    "PGDATESTYLE": "German",
    "PGTZ": "Asia/Tokyo",
    "PGGEQO": "off",
}
SESSION = """
SELECT current_user, current_database(), current_schemas(false)::text,
    current_setting('client_encoding'), current_setting('application_name'),
    current_setting('transaction_read_only'), 'ü€'
"""


def known() -> set[str]:
    defaults = psycopg.pq.Conninfo.get_defaults()
    return {default.envvar.decode() for default in defaults if default.envvar}


def test_every_variable_that_libpq_knows_is_decided_on() -> None:
    """An upgrade of libpq that brings another one fails here first; the docs have a row of each."""
    assert known() <= set(BENDING) | COUNTING
    documented = set(re.findall(r"`(PG[A-Z_]+)`", DOCS.read_text()))
    assert set(BENDING) | COUNTING | set(WITHOUT_PARAMETER) <= documented


@pytest.mark.parametrize(("variable", "value"), {**BENDING, **WITHOUT_PARAMETER}.items(), ids=str)
def test_variable_changes_nothing_about_a_connection(
    cluster: LocalAurora,
    open_pool: Open,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
) -> None:
    """The same user, database, schemas, encoding and rights, in TLS 1.2 or later."""
    monkeypatch.setenv(variable, value)
    [connection] = (pool := open_pool(connect(cluster))).hold(1)
    assert connection.info.host == "localhost"
    assert connection.info.parameter_status("client_encoding") == "UTF8"
    row = pool.fetch(f"SELECT ARRAY[{SESSION.strip().removeprefix('SELECT')}]::text[]")
    name, database = cluster.user, cluster.database
    application = "langgraph-aurora-store"
    assert row == [name, database, "{public}", "UTF8", application, "off", "ü€"]


def test_all_variables_at_once_change_nothing(
    cluster: LocalAurora, open_pool: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do they by their company."""
    for variable, value in BENDING.items():
        monkeypatch.setenv(variable, value)
    assert open_pool(connect(cluster)).fetch() == cluster.user


@pytest.mark.parametrize("value", ["", "mine"])
@pytest.mark.parametrize("cls", [AuroraStore, AsyncAuroraStore])
def test_service_is_refused_by_name(
    cls: type[AuroraStore | AsyncAuroraStore], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """libpq would read its file whatever is given, and no parameter turns that off."""
    monkeypatch.setenv("PGSERVICE", value)
    with pytest.raises(ConfigurationError, match=r"PGSERVICE is set.*unset it"):
        cls.from_cluster(HOST, user="u", database="d")


def test_service_that_is_set_later_is_refused_by_name(
    cluster: LocalAurora, open_pool: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libpq reads its environment for each connection."""
    factory = connect(cluster)._replace(environ=None)
    monkeypatch.setenv("PGSERVICE", "mine")
    with pytest.raises(ConfigurationError, match="PGSERVICE"):
        open_pool(factory).fetch()


@pytest.mark.parametrize("stray", ["postgresql.crt", "postgresql.key", "root.crl", "root.crt"])
def test_files_in_the_home_are_not_looked_for(
    cluster: LocalAurora,
    open_pool: Open,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    stray: str,
) -> None:
    """RDS asks for no certificate, and a stray one, or half of one, is an error of libpq's."""
    (tmp_path / ".postgresql").mkdir()
    (tmp_path / ".postgresql" / stray).write_text("no certificate\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_pool(connect(cluster)).fetch() == cluster.user


def test_home_that_is_no_directory_is_no_trouble(
    cluster: LocalAurora, open_pool: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As with runAsNonRoot and HOME=/root, nothing there is opened."""
    (tmp_path / ".postgresql").touch()
    for home in (tmp_path, tmp_path / ".postgresql", "/proc/1/root"):
        monkeypatch.setenv("HOME", str(home))
        assert open_pool(connect(cluster)).fetch() == cluster.user


def kwargs(**environ: str) -> dict[str, Any]:
    credentials = PasswordCredentials("p")
    return connection_factory(
        HOST, user="u", database="d", credentials=credentials, environ=environ
    ).kwargs()


def test_what_verifies_more_counts() -> None:
    """A lower bound above ours and lists of revoked certificates are the user's to demand."""
    assert kwargs()["ssl_min_protocol_version"] == "TLSv1.2"
    assert kwargs(PGSSLMINPROTOCOLVERSION="TLSv1.3")["ssl_min_protocol_version"] == "TLSv1.3"
    assert kwargs()["sslcrl"]
    assert "sslcrl" not in kwargs(PGSSLCRL="/revoked.pem")
    assert "sslcrl" not in kwargs(PGSSLCRLDIR="/revoked")


# the application's name


def test_application_name_is_the_parameter_then_the_variable() -> None:
    """application_name wins over PGAPPNAME, which wins over the package's name."""

    def name(given: str | None = None, **environ: str) -> Any:
        credentials = PasswordCredentials("p")
        return connection_factory(
            HOST,
            user="u",
            database="d",
            credentials=credentials,
            application_name=given,
            environ=environ,
        ).kwargs()["application_name"]

    assert name() == "langgraph-aurora-store"
    assert name(PGAPPNAME="") == "langgraph-aurora-store"
    assert name(PGAPPNAME="billing") == "billing"
    assert name("chat", PGAPPNAME="billing") == "chat"
    assert name("chat", PGAPPNAME="ü") == "chat"
    with pytest.raises(ConfigurationError, match=r"PGAPPNAME='ü' is wrong: set 1 to 63 printable"):
        name(PGAPPNAME="ü")
    with pytest.raises(ConfigurationError, match=r"application_name='ü' is wrong: pass"):
        name("ü")


def test_application_name_reaches_the_server(cluster: LocalAurora, open_pool: Open) -> None:
    """Whole, with the longest that is allowed."""
    longest = "a ?&=%/:@'\\" + "x" * 52
    assert len(longest) == 63
    pool = open_pool(connect(cluster, application_name=longest))
    assert pool.fetch("SELECT current_setting('application_name')") == longest
