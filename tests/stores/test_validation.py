"""What a caller passes wrongly is refused at once: as our error, with the value and the fix."""

import string
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from langgraph_aurora_store import (
    AsyncAuroraSaver,
    AsyncAuroraStore,
    AuroraSaver,
    AuroraStore,
)
from langgraph_aurora_store.connect.credentials import (
    PasswordCredentials,
    SecretsManagerCredentials,
)
from langgraph_aurora_store.connect.pool_settings import PoolSettings
from langgraph_aurora_store.embeddings import BedrockEmbeddings, OpenAIEmbeddings
from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.execution.retry import RetrySettings
from local_services.openai_service import embed

HOST = "m.cluster-c0ffee.us-east-1.rds.amazonaws.com"
LONG = "a" * 64
OPENAI_MODEL, BEDROCK_MODEL = "text-embedding-3-small", "amazon.titan-embed-text-v2:0"
POOLS: dict[Any, Any] = {
    AuroraStore: ConnectionPool(open=False),
    AsyncAuroraStore: AsyncConnectionPool(open=False),
}


def embedder(texts: list[str]) -> list[list[float]]:
    return [embed(text, 16) for text in texts]


def index(**changes: Any) -> dict[str, Any]:
    return {"index": {"embed": embedder, "dims": 16, **changes}}


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "misspelt embed": ({"index": {"embd": embedder}}, ["'embd'", "did you mean 'embed'"]),
    "no embed": ({"index": {"dims": 16}}, ["embed", "bedrock:"]),
    "index as text": ({"index": "bedrock:x"}, ["'bedrock:x'", "{'embed':"]),
    "index as list": ({"index": ["text"]}, ["index=", "list", "{'embed':"]),
    "ttl as a number": ({"ttl": 60}, ["60", "{'default_ttl': 60}"]),
    "ttl of nothing": ({"ttl": 0}, ["ttl=0 ", "default_ttl"]),
    "ttl beyond the server's numbers": ({"ttl": {"default_ttl": 1e300}}, ["1e+300", "default_ttl"]),
    "sweeps beyond time": ({"ttl": {"sweep_interval_minutes": 1e9}}, ["sweep_interval_minutes"]),
    "embed as a number": (index(embed=5), ["embed", "5"]),
    "embed as a class": (index(embed=string.Formatter), ["embed", "Formatter", "instance"]),
    "embed of nobody": (index(embed="nope:model"), ["'nope:model'", "openai", "bedrock"]),
    "dims as text": (index(dims="1536"), ["dims", "'1536'"]),
    "dims as text of a known model": (
        {"index": {"embed": "openai:text-embedding-3-small", "dims": "1536"}},
        ["dims", "'1536'"],
    ),
    "fields of an unknown model": (
        {"index": {"embed": embedder, "fields": 7}},
        ["fields", "7"],
    ),
    "bracket left open": (index(fields=["a[*"]), ["'a[*'", "bracket"]),
    "brace left open": (index(fields=["a.{b,c"]), ["'a.{b,c'", "bracket"]),
    "index that is none": (index(fields=["a[x]"]), ["'a[x]'", "[0]"]),
    "session as text": ({"session": "x"}, ["session", "str", "boto3.Session"]),
    "credentials as text": ({"credentials": "a-secret"}, ["PasswordCredentials", "str"]),
    "cluster as a number": ({"cluster": 5}, ["cluster", "5"]),
    "port out of range": ({"port": 99_999}, ["port", "99999", "65535"]),
    "port as text": ({"port": "5432"}, ["port", "'5432'"]),
    "port as a truth": ({"port": True}, ["port", "True"]),
    "schema of nothing": ({"schema": ""}, ["schema", "''"]),
    "schema with NUL": ({"schema": "a\0b"}, ["schema", "NUL"]),
    "schema too long": ({"schema": LONG}, ["schema", "63"]),
    "schema as a number": ({"schema": 5}, ["schema", "5"]),
    "user with NUL": ({"user": "a\0b"}, ["user", "NUL"]),
    "user of nothing": ({"user": ""}, ["user", "AURORA_USER"]),
    "database with NUL": ({"database": "a\0b"}, ["database", "NUL"]),
    "database as a number": ({"database": 5}, ["database", "5"]),
    "availability zone as region": ({"region": "us-east-1a"}, ["us-east-1a", "us-east-1"]),
    "alias of a long label": (
        {"cluster": f"{LONG}.example.com", "endpoint": HOST},
        ["63"],
    ),
    "a URL as user": ({"user": "postgresql://u:a-secret@h/\0"}, ["user", "str"]),
    "a client as embed": (index(embed=["a-secret"]), ["embed", "list"]),
    "index of numbers": ({"index": {1: 2}}, ["unknown key 1", "embed"]),
    **{
        f"{name} with {what}": ({name: f"a{character}b"}, [name, "control character"])
        for name in ("schema", "user", "database")
        for what, character in {
            "a line break": "\n",
            "a carriage return": "\r",
            "an escape": "\x1b",
            "a next line": "\x85",
            "a line separator": "\u2028",
        }.items()
    },
    "application name too long": ({"application_name": LONG}, ["application_name", "63"]),
    "application name with an umlaut": ({"application_name": "ü"}, ["'ü'", "ASCII"]),
    "application name of nothing": ({"application_name": ""}, ["''", "1 to 63"]),
    "identifier with an underscore": (
        {"cluster": "agent_memory"},
        ["'agent_memory'", "63 letters, digits and single hyphens"],
    ),
    "identifier with a blank": ({"cluster": "agent memory"}, ["'agent memory'", "single hyphens"]),
    "deserializer as text": ({"deserializer": "json"}, ["deserializer", "'json'", "function"]),
    "trust store of nothing": ({"sslrootcert": ""}, ["sslrootcert= names ''", "leave it out"]),
    "pool of nothing": ({"pool": ""}, ["pool=''", "'service'"]),
    "pool as a number": ({"pool": 5}, ["pool", "5", "'service'"]),
}
KEPT = {"cluster": HOST, "user": "u", "database": "d"}


@pytest.mark.parametrize("cls", [AuroraStore, AsyncAuroraStore])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_when_it_is_made(
    cls: type[AuroraStore | AsyncAuroraStore], mistake: str
) -> None:
    """By from_cluster, before anything is contacted; with what was passed and what to pass."""
    given, words = MISTAKES[mistake]
    with pytest.raises(ConfigurationError) as caught:
        cls.from_cluster(**{**KEPT, **given})
    for word in words:
        assert word in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert "a-secret" not in str(caught.value)
    assert len(str(caught.value)) < 700


TEXT = "x" * 300_000
LONG_MISTAKES: dict[str, dict[str, Any]] = {
    **{name: {name: TEXT} for name in ("cluster", "endpoint", "user", "database", "region")},
    **{name: {name: TEXT} for name in ("schema", "application_name", "pool", "port", "index")},
    **{name: {name: TEXT} for name in ("sslmode", "sslrootcert", "ttl", "retry", "read_from")},
    **{name: {name: TEXT} for name in ("session", "credentials", "read_your_writes_s")},
    **{name: index(**{name: TEXT}) for name in ("dims", "distance_type", "ann_index_config")},
    **{name: index(ann_index_config={name: TEXT}) for name in ("kind", "vector_type", "m")},
    **{name: {"ttl": {name: TEXT}} for name in ("default_ttl", "sweep_interval_minutes")},
    "a list": {"port": [TEXT] * 30},
    "a number": {"read_your_writes_s": 10**4000},
    "an unknown key": {"index": {TEXT: 1}},
    "a path": index(fields=[f"{TEXT}[x"]),
    "a model": index(embed=TEXT),
    "a model of OpenAI": index(embed=f"openai:{TEXT}"),
    "a model on Bedrock": index(embed=f"bedrock:{TEXT}"),
    "a model on Bedrock by ARN": index(embed=f"bedrock:arn:{TEXT}"),
    "a model of a stranger": index(embed=f"{TEXT}:model"),
}


@pytest.mark.parametrize("mistake", LONG_MISTAKES)
def test_a_message_quotes_no_more_than_can_be_read(mistake: str) -> None:
    """Of a text that is far too long, wherever it is passed; its cause and its repr included."""
    with pytest.raises(ConfigurationError) as caught:
        AuroraStore.from_cluster(**{**KEPT, **LONG_MISTAKES[mistake]})
    assert len(str(caught.value)) < 1500
    assert len(repr(caught.value)) < 1500


@pytest.mark.parametrize(
    "make",
    [
        lambda: PoolSettings(max_size=TEXT),  # type: ignore[arg-type]
        lambda: RetrySettings(deadline_s=TEXT),  # type: ignore[arg-type]
        lambda: OpenAIEmbeddings(TEXT),
        lambda: OpenAIEmbeddings(OPENAI_MODEL, dimensions=TEXT),  # type: ignore[arg-type]
        lambda: OpenAIEmbeddings(OPENAI_MODEL, family=TEXT),
        lambda: OpenAIEmbeddings(OPENAI_MODEL, truncate=TEXT),  # type: ignore[arg-type]
        lambda: BedrockEmbeddings(BEDROCK_MODEL, base_model=TEXT),
        lambda: BedrockEmbeddings(BEDROCK_MODEL, dimensions=10**4000),
        lambda: BedrockEmbeddings(BEDROCK_MODEL, endpoint_url=TEXT),
        lambda: SecretsManagerCredentials(TEXT, environ={}).secret(),
        lambda: AuroraStore.from_cluster(**KEPT).ddl(role=TEXT),
    ],
)
def test_so_do_those_of_other_settings(make: Callable[[], object]) -> None:
    """Each kind that takes a text."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert len(repr(caught.value)) < 1500


CONTROL_CHARACTERS = ["\n", "\r", "\x0b", "\x1b", "\x85", "\u2028"]


@pytest.mark.parametrize("character", CONTROL_CHARACTERS)
@pytest.mark.parametrize("cls", [AuroraStore, AsyncAuroraStore, AuroraSaver, AsyncAuroraSaver])
def test_no_name_in_a_script_holds_a_control_character(cls: Any, character: str) -> None:
    """Of the role, nor of the schema where a constructor takes it."""
    evil = f"a{character}DROP TABLE audit"
    with pytest.raises(ConfigurationError, match="role="):
        cls.from_cluster(**KEPT).ddl(role=evil)
    pool = AsyncConnectionPool if "Async" in cls.__name__ else ConnectionPool
    with pytest.raises(ConfigurationError, match="schema="):
        cls(pool(open=False), schema=evil)


@pytest.mark.parametrize("name", ["sslmode", "sslrootcert", "pool", "region", "cluster", "schema"])
@pytest.mark.parametrize(
    "text", ["password=a-secret", "postgresql://u:a-secret@h/d", "u:a-secret@h"]
)
def test_a_connection_string_in_a_wrong_place_is_not_shown(name: str, text: str) -> None:
    """It holds a password."""
    with pytest.raises(ConfigurationError) as caught:
        AuroraStore.from_cluster(**{**KEPT, name: f"{text}\n"})
    assert "a-secret" not in str(caught.value)


@pytest.mark.parametrize("cls", [AuroraStore, AsyncAuroraStore, AuroraSaver, AsyncAuroraSaver])
@pytest.mark.parametrize("text", ["postgresql://u:a-secret%@h/d", "password=word a-secret"])
async def test_a_connection_string_that_cannot_be_parsed_is_not_quoted(cls: Any, text: str) -> None:
    """libpq names the place, which is in the password."""
    made = cls.from_conn_string(text)
    is_async = hasattr(made, "__aenter__")
    with pytest.raises(psycopg.ProgrammingError, match="%25") as caught:
        await made.__aenter__() if is_async else made.__enter__()
    assert "a-secret" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


@pytest.mark.parametrize("variable", ["PGSSLROOTCERT", "PGSERVICE", "AURORA_USER", "PGAPPNAME"])
def test_nor_does_a_variable_fill_a_message(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the environment."""
    monkeypatch.setenv(variable, "x" * 60_000)
    with pytest.raises(ConfigurationError) as caught:
        AuroraStore.from_cluster(HOST, database="d").open(timeout_s=1)
    assert variable in str(caught.value)
    assert len(repr(caught.value)) < 1500


@pytest.mark.parametrize("timeout_s", ["5", -1, True, float("nan")])
async def test_a_wait_that_makes_no_sense_is_refused(timeout_s: Any) -> None:
    """By either store, before anything is contacted."""
    with pytest.raises(ConfigurationError, match="timeout_s") as caught:
        AuroraStore.from_cluster(**KEPT).open(timeout_s=timeout_s)
    assert repr(timeout_s) in str(caught.value)
    with pytest.raises(ConfigurationError, match="timeout_s"):
        await AsyncAuroraStore.from_cluster(**KEPT).open(timeout_s=timeout_s)


@pytest.mark.parametrize("password", [None, "", 5, b"a-secret", "a-secret\0"])
def test_what_is_no_password_is_refused(password: Any) -> None:
    """When the credentials are made; what was passed is not shown."""
    with pytest.raises(ConfigurationError, match="password") as caught:
        PasswordCredentials(password)
    assert "a-secret" not in str(caught.value)
    PasswordCredentials(" ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("secret_id", None),
        ("secret_id", ""),
        ("secret_id", 5),
        ("region", "us east"),
        ("session", "profile"),
    ],
)
def test_what_leads_to_no_secret_is_refused(name: str, value: Any) -> None:
    """When the credentials are made, not at the first connection."""
    with pytest.raises(ConfigurationError, match=name):
        SecretsManagerCredentials(**{"secret_id": "memory", name: value})


@pytest.mark.parametrize("cls", [AuroraStore, AsyncAuroraStore])
@pytest.mark.parametrize("name", ["index", "ttl", "schema", "deserializer"])
def test_constructors_refuse_the_same(cls: type[AuroraStore | AsyncAuroraStore], name: str) -> None:
    """What both take they check alike."""
    with pytest.raises(ConfigurationError, match=name):
        cls(POOLS[cls], **{name: 5})


@pytest.mark.parametrize("cls", [AuroraStore, AsyncAuroraStore])
def test_what_is_no_connection_is_refused(cls: type[AuroraStore | AsyncAuroraStore]) -> None:
    """A connection string, which may hold a password, nothing, and the other store's pool."""
    other = next(pool for of, pool in POOLS.items() if of is not cls)
    for conn in ("postgresql://u:a-secret@h/d", None, other):
        with pytest.raises(ConfigurationError, match="conn= of type") as caught:
            cls(conn)  # type: ignore[arg-type]  # the point
        assert type(POOLS[cls]).__name__ in str(caught.value)
        assert "a-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_size", "1"),
        ("min_size", 1.5),
        ("min_size", True),
        ("max_size", None),
        ("max_waiting", -1),
        ("timeout_s", "30"),
        ("timeout_s", float("nan")),
        ("timeout_s", float("inf")),
        ("timeout_s", 1e300),
        ("connect_timeout_s", 2.5),
        ("check_after_idle_s", -1),
        ("max_idle_s", None),
        ("tcp_user_timeout_s", "5"),
        ("tcp_user_timeout_s", 10**7),
        ("keepalives_idle_s", 0.5),
        ("keepalives_idle_s", 40_000),
        ("keepalives_count", 0),
    ],
)
def test_a_mistake_in_a_pools_settings_is_named(name: str, value: Any) -> None:
    """What psycopg or the kernel would refuse at the first connection, or wait on for ever."""
    with pytest.raises(ConfigurationError, match=name) as caught:
        PoolSettings(**{name: value})
    assert repr(value) in str(caught.value)


def test_what_is_right_passes() -> None:
    """The edges of each check."""
    PoolSettings(min_size=0, max_waiting=0, check_after_idle_s=None, timeout_s=0.5)
    AuroraStore.from_cluster(
        f"{LONG[1:]}.example.com",
        endpoint=HOST,
        user="o'brien ?&=%/:@",
        database="d",
        region="us-east-1",
        port=65_535,
        schema=LONG[1:],
        ttl={},
        **index(fields=["a[*].b", "c[-1]", "{d,e}.f", "*", "$", "g[0][1]"]),
    )
    for region in ("us-gov-west-1", "cn-north-1", "us-isob-east-1", "eusc-de-east-1"):
        AuroraStore.from_cluster("mine", region=region, user="u")
