"""Who connects, and with what."""

import asyncio
import copy
import json
import logging
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import botocore.session
import pytest
from botocore.credentials import RefreshableCredentials
from moto import mock_aws

from langgraph_aurora_store import AsyncAuroraStore, AuroraStore, PoolSettings
from langgraph_aurora_store.aws.session import default_session
from langgraph_aurora_store.connect.cluster_lookup import Endpoint
from langgraph_aurora_store.connect.connection_factory import connection_factory
from langgraph_aurora_store.connect.credentials import (
    IamCredentials,
    Login,
    PasswordCredentials,
    Secret,
    SecretsManagerCredentials,
    parse_secret,
)
from langgraph_aurora_store.errors import ConfigurationError, CredentialsError
from tests.support.credential_sources import HANG, HANG_UP, StandIn, http
from tests.support.signing_clock import set_signing_clock

USER = "o'brien ?&=%/:@"
PASSWORD = "p ?&=%/:@'\\"
ENDPOINT = Endpoint(
    "mem.cluster-c0ffee.eu-west-1.rds.amazonaws.com", 5432, "writer", "eu-west-1", "memory"
)


@pytest.fixture
def session() -> boto3.Session:
    return boto3.Session("AKIATEST", "secret-key", "session-token", region_name="us-east-1")


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore's clock stands still, so that two signatures can be compared."""
    noon = datetime(2026, 1, 1, 12)  # noqa: DTZ001 - botocore's own clock is naive
    set_signing_clock(monkeypatch, noon)


@pytest.mark.parametrize("user", ["langmem", USER])
def test_token_is_the_one_boto3_makes(frozen: None, session: boto3.Session, user: str) -> None:
    """Byte for byte, for names that need escaping too."""
    token = IamCredentials(session).login(ENDPOINT, user).password
    expected = session.client("rds").generate_db_auth_token(
        ENDPOINT.host, ENDPOINT.port, user, "eu-west-1"
    )
    assert token == expected
    fields = parse_qs(urlsplit(f"//{token}").query)
    assert fields["DBUser"] == [user]
    assert fields["X-Amz-Expires"] == ["900"]


def test_botocore_session_signs_like_a_boto3_one(frozen: None, session: boto3.Session) -> None:
    """Either kind of session is taken."""
    bare = botocore.session.Session()
    bare.set_credentials("AKIATEST", "secret-key", "session-token")
    assert IamCredentials(bare).login(ENDPOINT, "u") == IamCredentials(session).login(ENDPOINT, "u")


def test_default_session_is_the_environments(
    frozen: None, session: boto3.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a session botocore's own chain is asked, on first use."""
    credentials = IamCredentials()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-key")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session-token")
    assert credentials.login(ENDPOINT, "u") == IamCredentials(session).login(ENDPOINT, "u")


def test_one_default_session_serves_until_something_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Tokens and embeddings share it; other variables or a file written to since get another."""
    profile = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))

    def write(key: str) -> None:
        profile.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=s\n")

    def key() -> str:
        [found] = parse_qs(IamCredentials().login(ENDPOINT, "u").password)["X-Amz-Credential"]
        return found.partition("/")[0]

    write("AKIAONE")
    first = default_session()
    assert (default_session() is first, key()) == (True, "AKIAONE")
    write("AKIAOTHER")
    assert (default_session() is first, key()) == (False, "AKIAOTHER")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATHIRD")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    assert key() == "AKIATHIRD"


def test_a_key_that_was_renewed_signs_the_next_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a restart: in the credentials' file, then in the environment."""
    profile = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    credentials = IamCredentials()

    def write(key: str) -> None:
        profile.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=s\n")

    def token() -> str:
        return credentials.login(ENDPOINT, "u").password

    write("AKIAONE")
    assert "AKIAONE" in token()
    write("AKIAOTHER")
    assert "AKIAOTHER" in token()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATHIRD")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    assert "AKIATHIRD" in token()


def test_nothing_new_is_read_while_nothing_has_changed() -> None:
    """A refusal that has other causes asks no service for credentials again."""
    loads = []

    class Counting(boto3.Session):
        def get_credentials(self) -> Any:
            loads.append(self)
            return super().get_credentials()

    credentials = IamCredentials(Counting("AKIAONE", "s"))
    credentials.login(ENDPOINT, "u")
    credentials.refused()
    credentials.login(ENDPOINT, "u")
    assert len(loads) == 1


def test_no_token_is_signed_without_credentials() -> None:
    """The message says where they may come from; found later, they are used."""
    bare = botocore.session.Session()
    credentials = IamCredentials(bare)
    with pytest.raises(CredentialsError, match=r"no AWS credentials found; pass session="):
        credentials.login(ENDPOINT, "u")
    bare.set_credentials("AKIATEST", "secret-key")
    assert "AKIATEST" in credentials.login(ENDPOINT, "u").password


def test_unknown_profile_is_named() -> None:
    """What botocore says about its configuration is passed on as an error of ours."""
    with pytest.raises(CredentialsError, match=r"nowhere"):
        IamCredentials(botocore.session.Session(profile="nowhere")).login(ENDPOINT, "u")


def test_region_missing_everywhere_is_told() -> None:
    """An alias with its endpoint in no region: region= or AWS_REGION helps."""
    bare = botocore.session.Session()
    bare.set_credentials("AKIATEST", "secret-key")
    endpoint = Endpoint("db.internal", 5432, "alias")
    with pytest.raises(ConfigurationError, match=r"'db\.internal'; pass region= or set AWS_REGION"):
        IamCredentials(bare, environ={}).login(endpoint, "u")
    token = IamCredentials(bare, environ={"AWS_REGION": "eu-west-2"}).login(endpoint, "u")
    assert "eu-west-2" in token.password


def test_credentials_that_sign_are_refreshed_by_botocore() -> None:
    """A role's keys run out while the signer is kept: the next token is signed with new ones."""
    clock = Clock(datetime.now(UTC))
    minted: list[str] = []

    def refresh() -> dict[str, str]:
        minted.append(f"ASIA{len(minted)}")
        return {
            "access_key": minted[-1],
            "secret_key": "s",
            "token": "t",
            "expiry_time": (clock() + timedelta(hours=1)).isoformat(),
        }

    role = RefreshableCredentials.create_from_metadata(
        refresh(), refresh_using=refresh, method="test"
    )
    role._time_fetcher = clock  # botocore's own seam, which its constructor alone exposes
    bare = botocore.session.Session()
    bare._credentials = role
    credentials = IamCredentials(bare)
    assert "ASIA0" in credentials.login(ENDPOINT, "u").password
    clock.now += timedelta(minutes=59)
    assert "ASIA1" in credentials.login(ENDPOINT, "u").password


def test_source_of_credentials_that_fails_is_told_as_ours() -> None:
    """A refresh that fails, as when an SSO login has run out, is a CredentialsError."""
    from botocore.exceptions import CredentialRetrievalError

    def fail() -> dict[str, str]:
        raise CredentialRetrievalError(provider="sso", error_msg="the login has expired")

    bare = botocore.session.Session()
    bare._credentials = RefreshableCredentials(
        "ASIA0", "s", "t", datetime.now(UTC) - timedelta(1), fail, "test"
    )
    with pytest.raises(CredentialsError, match=r"the login has expired"):
        IamCredentials(bare).login(ENDPOINT, "u")


def test_a_token_s_file_that_is_missing_is_told_as_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in a pod whose service account is not mounted."""
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/agent")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CredentialsError, match=r"missing"):
        IamCredentials(botocore.session.Session()).login(ENDPOINT, "u")


def test_sixteen_threads_sign_at_once() -> None:
    """Pool workers share the credentials, which are loaded once."""
    loads = []

    class Counting(boto3.Session):
        def get_credentials(self) -> Any:
            loads.append(threading.get_ident())
            return super().get_credentials()

    credentials = IamCredentials(Counting("AKIATEST", "s", region_name="us-east-1"))
    with ThreadPoolExecutor(16) as threads:
        tokens = list(
            threads.map(lambda n: credentials.login(ENDPOINT, f"u{n}").password, range(64))
        )
    assert [f"DBUser=u{n}&" in token for n, token in enumerate(tokens)] == [True] * 64
    assert len(loads) == 1


@pytest.mark.parametrize("credentials", [IamCredentials(), PasswordCredentials("p")])
def test_login_needs_a_user(credentials: Any) -> None:
    """The parameter and the variable are named."""
    with pytest.raises(ConfigurationError, match=r"user= or set AURORA_USER"):
        credentials.login(ENDPOINT, None)


def test_reprs_hide_what_proves_the_user(session: boto3.Session) -> None:
    """Logins, credentials, secrets and connectors can be printed."""
    iam = IamCredentials(session)
    factory = connection_factory("memory", user="u", credentials=PasswordCredentials(PASSWORD))
    shown = repr(
        [iam, iam.login(ENDPOINT, "u"), Login("u", PASSWORD), factory, factory.credentials]
    )
    assert PASSWORD not in shown
    assert "secret-key" not in shown
    assert "X-Amz" not in shown


HOLDERS = [
    PasswordCredentials(PASSWORD),
    Login("u", PASSWORD),
    Secret(PASSWORD, "u"),
    SecretsManagerCredentials("db/langmem"),
    IamCredentials(),
]


@pytest.mark.parametrize("holder", HOLDERS, ids=lambda one: type(one).__name__)
def test_what_holds_a_secret_is_not_pickled(holder: Any) -> None:
    """A pickle would hold it as plain text; a copy is the same object."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(holder, protocol)
    if not isinstance(holder, IamCredentials):
        assert copy.deepcopy([holder])[0] is copy.copy(holder) is holder


class Clock:
    """A clock to step."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def write() -> Iterator[Callable[..., str]]:
    """Write a secret and get its ARN."""
    with mock_aws():
        client = boto3.client("secretsmanager", "eu-west-1", **KEYS)

        def write_(content: object, name: str = "db/langmem") -> str:
            text = content if isinstance(content, str) else json.dumps(content)
            found = [s["Name"] for s in client.list_secrets()["SecretList"]]
            if name in found:
                return client.put_secret_value(SecretId=name, SecretString=text)["ARN"]
            return client.create_secret(Name=name, SecretString=text)["ARN"]

        yield write_


KEYS = {"aws_access_key_id": "AKIATEST", "aws_secret_access_key": "s"}
RDS_JSON = {
    "username": USER,
    "password": PASSWORD,
    "engine": "postgres",
    "host": ENDPOINT.host,
    "port": 6432,
    "dbname": "memory",
    "dbClusterIdentifier": "memory",
}


def secret(arn: str, **given: Any) -> SecretsManagerCredentials:
    return SecretsManagerCredentials(
        arn, session=boto3.Session(**KEYS, region_name="us-east-1"), **given
    )


def test_secret_gives_all_that_a_connection_needs(write: Callable[..., str]) -> None:
    """Host, port, database, user and password of the JSON that RDS writes; nothing else given."""
    factory = connection_factory(credentials=secret(write(RDS_JSON)), environ={})
    parameters = factory.kwargs()
    assert {name: parameters[name] for name in ("host", "port", "dbname", "user", "password")} == {
        "host": ENDPOINT.host,
        "port": 6432,
        "dbname": "memory",
        "user": USER,
        "password": PASSWORD,
    }


def test_parameters_win_over_the_secret_and_the_secret_over_the_environment(
    write: Callable[..., str],
) -> None:
    """The secret knows better than AURORA_*, and the caller better than the secret."""
    environ = {"AURORA_CLUSTER": "other", "AURORA_USER": "other", "AURORA_DATABASE": "other"}
    credentials = secret(write({**RDS_JSON, "port": "6432"}))
    from_secret = connection_factory(credentials=credentials, environ=environ).kwargs()
    assert (from_secret["user"], from_secret["dbname"], from_secret["port"]) == (
        USER,
        "memory",
        6432,
    )
    assert connection_factory(credentials=credentials, port=7000).kwargs()["port"] == 7000
    assert connection_factory(ENDPOINT.host, credentials=credentials).kwargs()["port"] == 6432
    given = connection_factory(
        "mem-1.c0ffee.eu-west-1.rds.amazonaws.com",
        database="given",
        credentials=credentials,
        environ=environ,
    ).kwargs()
    assert given["host"].startswith("mem-1.")
    assert (given["port"], given["dbname"], given["user"]) == (5432, "given", USER)


def test_managed_master_secret_needs_a_cluster(write: Callable[..., str]) -> None:
    """RDS's own secret of the master user has user and password only."""
    credentials = secret(write({"username": "postgres", "password": PASSWORD}))
    with pytest.raises(ConfigurationError, match=r"cluster= or set AURORA_CLUSTER"):
        connection_factory(credentials=credentials, environ={}).kwargs()
    environ = {"AURORA_CLUSTER": ENDPOINT.host, "AURORA_DATABASE": "memory"}
    parameters = connection_factory(credentials=credentials, environ=environ).kwargs()
    assert (parameters["host"], parameters["user"]) == (ENDPOINT.host, "postgres")


def test_secret_of_another_user_is_refused(write: Callable[..., str]) -> None:
    """Asking for one user with the password of another cannot succeed."""
    factory = connection_factory(user="langmem", credentials=secret(write(RDS_JSON)), environ={})
    with pytest.raises(ConfigurationError, match=r"password of .*o'brien.*leave user= out"):
        factory.kwargs()


def test_secret_is_read_once_and_again_after_a_refusal(write: Callable[..., str]) -> None:
    """A rotation is seen when the old password is refused, and not before."""
    credentials = secret(write(RDS_JSON))
    assert credentials.login(ENDPOINT, None).password == PASSWORD
    write({**RDS_JSON, "password": "rotated"})
    assert credentials.login(ENDPOINT, None).password == PASSWORD
    credentials.refused()
    assert credentials.login(ENDPOINT, None).password == "rotated"


def test_secret_is_read_in_the_region_of_its_arn(write: Callable[..., str]) -> None:
    """By name it is read where region= or the session says."""
    arn = write(RDS_JSON)
    assert secret(arn).secret().username == USER
    assert secret("db/langmem", region="eu-west-1").secret().username == USER
    with pytest.raises(CredentialsError, match=r"'db/langmem' in region 'us-east-1'.*GetSecretVal"):
        secret("db/langmem").secret()


@pytest.mark.parametrize(
    "content", ["hunter2", '"hunter2"', "{'password': 'hunter2'}", {"username": "hunter2"}, "[]"]
)
def test_secret_of_another_shape_is_told_without_its_content(
    write: Callable[..., str], content: object
) -> None:
    """What stands in a secret does not appear in an error, however wrong it is."""
    with pytest.raises(CredentialsError, match=r"not the JSON that RDS writes") as caught:
        secret(write(content)).secret()
    assert "hunter2" not in shown(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize("text", ["hunter2", '{"pass": "hunter2"}', "[" * 100_000 + "hunter2"])
def test_a_malformed_secret_is_in_no_local_of_its_error(text: str) -> None:
    """As a traceback printed with its locals would show."""
    with pytest.raises(CredentialsError) as caught:
        parse_secret("db/langmem", text)
    inner = caught.value.__traceback__.tb_next  # below this test's own frame
    assert "hunter2" not in shown(caught.value.with_traceback(inner))


@pytest.mark.parametrize("wrong", [{"port": "²"}, {"port": "9" * 5000}, {"username": 5, "host": 7}])
def test_what_is_wrong_beside_a_secrets_password_is_left_out(wrong: dict[str, object]) -> None:
    """An error of the conversion would show the password among its locals."""
    found = parse_secret("db/langmem", json.dumps({"password": PASSWORD, **wrong}))
    assert found == Secret(PASSWORD)


@pytest.mark.parametrize("rotated", [f"{USER}_clone", "another"])
def test_a_secret_that_alternates_between_users_is_followed(
    write: Callable[..., str], rotated: str
) -> None:
    """With user= given: a rotation to the other user loses no connection."""
    credentials = secret(write(RDS_JSON))
    factory = connection_factory(user=USER, credentials=credentials, environ={})
    assert factory.kwargs()["user"] == USER
    write({**RDS_JSON, "username": rotated, "password": "rotated"})
    credentials.refused()
    kwargs = factory.kwargs()
    assert (kwargs["user"], kwargs["password"]) == (rotated, "rotated")


def test_a_secret_may_be_at_its_other_user_from_the_start(write: Callable[..., str]) -> None:
    """A process that starts after a rotation gets the clone of the user that it names."""
    credentials = secret(write({**RDS_JSON, "username": f"{USER}_clone"}))
    factory = connection_factory(user=USER, credentials=credentials, environ={})
    assert factory.kwargs()["user"] == f"{USER}_clone"


@pytest.mark.parametrize(
    ("answer", "says", "is_transient"),
    [
        (HANG, "has not answered yet.*VPC endpoint", True),
        (HANG_UP, "could not be read", True),
        (http(500), "could not be read", True),
        (
            http(400, '{"__type": "ThrottlingException", "message": "slow"}'),
            "(Throttling|not answered yet)",
            True,
        ),
        (http(400, '{"__type": "AccessDeniedException", "message": "no"}'), "GetSecret", False),
        (http(200, {"SecretString": "hunter2"}), "not the JSON that RDS writes", False),
        (http(200, "hunter2"), "not the JSON that RDS writes", False),
    ],
    ids=["hangs", "hangs up", "500", "throttles", "denies", "malformed", "no JSON"],
)
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_secret_that_cannot_be_read_is_told_in_time(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    mode: str,
    answer: str,
    says: str,
    is_transient: bool,
) -> None:
    """Passing trouble is waited for within the caller's time; nothing of an answer is shown.

    botocore tries a second time after up to a second, which then is what has not answered yet.
    """
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    settings = PoolSettings(min_size=0, timeout_s=1 if is_transient else 20)
    with StandIn(lambda _: answer) as service:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", service.url)
        given = {"credentials": secret("db/langmem"), "database": "d", "pool": settings}
        begun = time.monotonic()
        with pytest.raises(CredentialsError, match=rf"'db/langmem'.*{says}") as caught:
            ASKERS[mode](given)
        assert time.monotonic() - begun < settings.timeout_s + 2
    assert caught.value.is_transient == is_transient
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in caplog.text


def ask(given: dict[str, Any]) -> None:
    store = AuroraStore.from_cluster(ENDPOINT.host, **given)
    try:
        store.get(("a",), "k")
    finally:
        store.close()


async def ask_async(given: dict[str, Any]) -> None:
    store = AsyncAuroraStore.from_cluster(ENDPOINT.host, **given)
    try:
        await store.aget(("a",), "k")
    finally:
        await store.close()


ASKERS = {"sync": ask, "async": lambda given: asyncio.run(ask_async(given))}


def shown(error: BaseException) -> str:
    """What a traceback with locals prints, of frames of this package and below."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    inner = [frame for frame in frames if not frame.f_code.co_filename.endswith(__file__)]
    return repr(error) + "".join(repr(frame.f_locals) for frame in inner)
