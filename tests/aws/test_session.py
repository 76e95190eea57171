"""One AWS session: which it is, which region it says, how long its keys are waited for."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import boto3
import botocore.session
import pytest
from botocore.credentials import CredentialProvider, Credentials, RefreshableCredentials

from langgraph_aurora_store.aws.session import AwsSession
from langgraph_aurora_store.aws.single_flight import wait_at_most
from langgraph_aurora_store.connect.cluster_lookup import Cluster, Endpoint
from langgraph_aurora_store.connect.credentials import IamCredentials, SecretsManagerCredentials
from langgraph_aurora_store.embeddings import BedrockEmbeddings
from langgraph_aurora_store.errors import (
    ConfigurationError,
    CredentialsError,
    EmbeddingError,
)
from tests.support.bedrock_service import Bedrock
from tests.support.credential_sources import (
    HANG,
    SOURCES,
    StandIn,
    Surroundings,
    http,
    keys,
    set_up,
)

pytestmark = pytest.mark.usefixtures("sessions_without_moto")

TITAN = "amazon.titan-embed-text-v2:0"
ENDPOINT = Endpoint("x.cluster-c0ffee.eu-west-1.rds.amazonaws.com", 5432, "writer", "eu-west-1")


@pytest.fixture(autouse=True)
def _no_default_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Surroundings:
    return Surroundings(tmp_path, monkeypatch)


def signer_of(session: Any = None) -> str:
    """Whose key signs a token."""
    [found] = parse_qs(IamCredentials(session).login(ENDPOINT, "u").password)["X-Amz-Credential"]
    return found.partition("/")[0]


# the region

PROFILE = (
    "[profile agent]\nregion = eu-central-1\naws_access_key_id = AKIAPROFILE\n"
    "aws_secret_access_key = s\n"
)
BOTH = {"AWS_REGION": "us-west-2", "AWS_DEFAULT_REGION": "ap-south-1"}
REGIONS = [
    ("session", BOTH, "sa-east-1"),
    ("AWS_REGION", BOTH, "us-west-2"),
    ("AWS_DEFAULT_REGION", {"AWS_DEFAULT_REGION": "ap-south-1"}, "ap-south-1"),
    ("profile", {}, "eu-central-1"),
]


@pytest.mark.parametrize(("place", "variables", "region"), REGIONS)
def test_database_secret_and_bedrock_are_in_one_region(
    around: Surroundings,
    place: str,
    variables: dict[str, str],
    region: str,
) -> None:
    """A chosen session, AWS_REGION, AWS_DEFAULT_REGION, the profile: the first that says one."""
    around.profile(PROFILE)
    around.set(**variables)
    session = boto3.Session("AKIA", "s", region_name="sa-east-1") if place == "session" else None
    found = AwsSession(session).region()
    assert found is not None
    assert (found.name, place in found.source) == (region, True)
    elsewhere = Endpoint("db.internal", 5432, "alias")
    token = parse_qs(IamCredentials(session).login(elsewhere, "u").password)
    assert f"/{region}/rds-db/" in token["X-Amz-Credential"][0]
    with Bedrock(region=region) as service:
        BedrockEmbeddings(TITAN, session=session, endpoint_url=service.url).embed_query("tea")
        assert f"/{region}/bedrock/" in service.headers[0]["authorization"]
    asked: list[str] = []

    def answer(request: str) -> str:
        asked.append(request)
        return http(400, '{"__type": "ResourceNotFoundException"}')

    with StandIn(answer) as service:
        around.set(AWS_ENDPOINT_URL_SECRETS_MANAGER=service.url)
        with pytest.raises(CredentialsError):
            SecretsManagerCredentials("db/agent", session=session).secret()
    assert f"/{region}/secretsmanager/" in asked[0]


def test_an_error_about_a_region_says_where_it_came_from(around: Surroundings) -> None:
    """A lookup that fails, a model that is not offered, a name that is none."""
    around.set(AWS_REGION="eu-south-9", AWS_ACCESS_KEY_ID="A", AWS_SECRET_ACCESS_KEY="s")
    with StandIn(lambda _: http(500)) as service:
        around.set(AWS_ENDPOINT_URL_RDS=service.url)
        with pytest.raises(Exception, match=r"'eu-south-9' \(from AWS_REGION\)"):
            Cluster("memory").writer()
    refusal = http(404, '{"message": "Could not resolve the foundation model"}')
    refusal = refusal.replace(
        "Connection", "x-amzn-errortype: ResourceNotFoundException\r\nConnection"
    )
    with StandIn(lambda _: refusal) as service:
        embeddings = BedrockEmbeddings(TITAN, endpoint_url=service.url)
        with pytest.raises(EmbeddingError, match=r"'eu-south-9' \(from AWS_REGION\)"):
            embeddings.embed_query("tea")
    around.set(AWS_REGION="eu south")
    for call in (Cluster("memory").writer, lambda: BedrockEmbeddings(TITAN).embed_query("tea")):
        with pytest.raises(ConfigurationError, match=r"'eu south', from AWS_REGION"):
            call()


def test_no_region_says_where_one_was_looked_for() -> None:
    """For the database, a secret and Bedrock alike."""
    calls = (
        Cluster("memory").writer,
        SecretsManagerCredentials("db/agent").secret,
        lambda: BedrockEmbeddings(TITAN).embed_query("tea"),
    )
    for call in calls:
        with pytest.raises(
            ConfigurationError, match=r"session, AWS_REGION, AWS_DEFAULT_REGION and the profile"
        ):
            call()


# the default session


def test_boto3s_default_session_is_honoured_where_it_was_set_up(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a profile, explicit keys or credentials of its own, whatever the environment holds."""
    around.set(AWS_ACCESS_KEY_ID="AKIAENVIRON", AWS_SECRET_ACCESS_KEY="s")
    around.set(AWS_CONFIG_FILE=str(around.write("config", PROFILE)), AWS_REGION="us-west-2")
    assert signer_of() == "AKIAENVIRON"
    boto3.setup_default_session(profile_name="agent")
    assert signer_of() == "AKIAPROFILE"
    assert AwsSession().region() == ("eu-central-1", "the session")
    boto3.setup_default_session(aws_access_key_id="AKIAEXPLICIT", aws_secret_access_key="s")
    assert signer_of() == "AKIAEXPLICIT"
    with Bedrock(region="us-west-2") as service:
        BedrockEmbeddings(TITAN, endpoint_url=service.url).embed_query("tea")
        assert "Credential=AKIAEXPLICIT/" in service.headers[0]["authorization"]
    core = botocore.session.Session()
    core._credentials = renewing(timedelta(hours=1))
    boto3.setup_default_session(botocore_session=core)
    assert signer_of() == "ASIAHELD"


class MyProvider(CredentialProvider):
    METHOD = CANONICAL_NAME = "mine"

    def load(self) -> Credentials:
        return Credentials("AKIAMINE", "s")


class MyCore(botocore.session.Session):
    def get_credentials(self) -> Credentials:
        return Credentials("AKIAMINE", "s")


class MySession(boto3.Session):
    def get_credentials(self) -> Any:
        return Credentials("AKIAMINE", "s")


def with_own_provider() -> boto3.Session:
    core = botocore.session.Session()
    core.get_component("credential_provider").insert_before("env", MyProvider())
    return boto3.Session(botocore_session=core)


def without_environment(around: Surroundings) -> boto3.Session:
    keys_of_file = "[default]\naws_access_key_id = AKIAMINE\naws_secret_access_key = s\n"
    around.set(AWS_SHARED_CREDENTIALS_FILE=str(around.write("credentials", keys_of_file)))
    core = botocore.session.Session()
    core.get_component("credential_provider").remove("env")
    return boto3.Session(botocore_session=core)


OWN_WAYS: dict[str, Callable[[Surroundings], boto3.Session]] = {
    "a provider": lambda _: with_own_provider(),
    "no provider of the environment": without_environment,
    "a class of botocore's": lambda _: boto3.Session(botocore_session=MyCore()),
    "a class of boto3's": lambda _: MySession(),
}


@pytest.mark.parametrize("way", OWN_WAYS)
def test_a_default_session_that_looks_for_keys_in_its_own_way_is_honoured(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """No key of the environment signs in its place."""
    around.set(AWS_ACCESS_KEY_ID="AKIAENVIRON", AWS_SECRET_ACCESS_KEY="s")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", OWN_WAYS[way](around))
    assert signer_of() == "AKIAMINE"


def test_a_default_session_made_by_the_way_hides_no_change(around: Surroundings) -> None:
    """boto3.client(...) makes one of the environment of that moment."""
    around.set(AWS_ACCESS_KEY_ID="AKIAONE", AWS_SECRET_ACCESS_KEY="s")
    boto3.client("sts", region_name="us-east-1")
    around.set(AWS_ACCESS_KEY_ID="AKIATWO")
    assert signer_of() == "AKIATWO"


def test_boto3_is_not_imported_to_look_for_its_default_session() -> None:
    """A process without boto3 stays without it."""
    program = (
        "import os, sys\n"
        "os.environ.update(AWS_ACCESS_KEY_ID='A', AWS_SECRET_ACCESS_KEY='s')\n"
        "from langgraph_aurora_store.aws.session import AwsSession\n"
        "print(AwsSession().credentials().access_key, 'boto3' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "A False\n"


# keys that still hold, sources that are late


def renewing(left: timedelta, answer: object = None) -> RefreshableCredentials:
    """Keys with this long to go, and a renewal that raises, or waits for an event, then gives."""

    def renew() -> dict[str, str]:
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, threading.Event):
            answer.wait(30)
        expiry = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        return {"access_key": "ASIANEW", "secret_key": "s", "token": "t", "expiry_time": expiry}

    return RefreshableCredentials(
        "ASIAHELD", "s", "t", datetime.now(UTC) + left, renew, "container-role"
    )


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
def test_keys_that_hold_are_used_while_their_renewal_fails(
    trouble: str, go_on: threading.Event
) -> None:
    """With 300 s left botocore insists on new ones: tokens and embeddings do with the old."""
    core = botocore.session.Session()
    core._credentials = renewing(
        timedelta(seconds=300), RuntimeError("agent says 500") if trouble == "fails" else go_on
    )
    assert signer_of(core) == "ASIAHELD"
    with Bedrock() as service:
        embeddings = BedrockEmbeddings(
            TITAN, session=core, region="us-east-1", endpoint_url=service.url, deadline_s=20
        )
        assert embeddings.embed_documents([f"memory {number}" for number in range(8)])
        signed = {headers["authorization"].split("/")[0] for headers in service.headers}
    assert signed == {"AWS4-HMAC-SHA256 Credential=ASIAHELD"}


CLUSTER = http(
    200,
    "<DescribeDBClustersResponse><DescribeDBClustersResult><DBClusters><DBCluster>"
    f"<Endpoint>{ENDPOINT.host}</Endpoint>"
    "</DBCluster></DBClusters></DescribeDBClustersResult></DescribeDBClustersResponse>",
)


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
def test_keys_that_hold_sign_for_a_lookup_and_a_secret(
    around: Surroundings, go_on: threading.Event, trouble: str
) -> None:
    """As tokens and embeddings: RDS and Secrets Manager are asked without a renewal."""
    core = botocore.session.Session()
    core._credentials = renewing(
        timedelta(seconds=300), RuntimeError("agent says 500") if trouble == "fails" else go_on
    )
    asked: list[str] = []

    def answer(request: str) -> str:
        asked.append(request)
        secret = http(200, {"SecretString": '{"username": "u", "password": "p"}'})
        return CLUSTER if "DescribeDBClusters" in request else secret

    with StandIn(answer) as service, wait_at_most(10):
        around.set(AWS_ENDPOINT_URL_RDS=service.url, AWS_ENDPOINT_URL_SECRETS_MANAGER=service.url)
        assert Cluster("mem", region="eu-west-1", session=core).writer().host == ENDPOINT.host
        secret = SecretsManagerCredentials("s", region="eu-west-1", session=core)
        assert secret.login(ENDPOINT, None).user == "u"
    assert len(asked) == 2
    assert all("Credential=ASIAHELD/" in request for request in asked)


def test_keys_that_end_before_a_secret_is_read_are_told_as_their_sources_fault(
    around: Surroundings,
) -> None:
    """Not as the secret's, nor as a permission that is lacking."""
    core = botocore.session.Session()
    core._credentials = renewing(timedelta(seconds=300), RuntimeError("agent says 500"))
    reader = SecretsManagerCredentials("s", region="eu-west-1", session=core)
    reader._aws.credentials()
    core._credentials._expiry_time = datetime.now(UTC)
    with pytest.raises(CredentialsError, match="container agent") as caught:
        reader._read("eu-west-1")
    assert "GetSecretValue" not in str(caught.value)


def test_keys_that_have_ended_are_not_used(go_on: threading.Event) -> None:
    """A token signed with them would be refused."""
    core = botocore.session.Session()
    core._credentials = renewing(timedelta(seconds=-1), RuntimeError("agent says 500"))
    with pytest.raises(CredentialsError, match=r"container agent.*RuntimeError"):
        signer_of(core)


def test_one_thread_waits_for_a_source_that_hangs(go_on: threading.Event) -> None:
    """However many callers come, of tokens and of embeddings; all get keys once it answers."""
    core = botocore.session.Session()
    core._credentials = renewing(timedelta(seconds=-1), go_on)
    before = set(threading.enumerate())
    for _ in range(5):
        with wait_at_most(0.01), pytest.raises(CredentialsError, match=r"agent.*no answer yet"):
            AwsSession(core).credentials()
    waiting = set(threading.enumerate()) - before
    assert [thread.name for thread in waiting] == ["langgraph-aurora-store credentials"]
    go_on.set()
    assert signer_of(core) == "ASIANEW"
    assert core._credentials is not None


def test_an_agent_that_was_late_is_waited_for(around: Surroundings) -> None:
    """It answers 500, then nothing, then keys: the embedding comes out right, late."""
    answers = iter([http(500), http(500), http(500), http(200, keys())])
    with Bedrock() as service, StandIn(lambda _: next(answers)) as agent:
        around.set(AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{agent.url}/creds")
        embeddings = BedrockEmbeddings(
            TITAN, region="us-east-1", endpoint_url=service.url, deadline_s=20
        )
        assert embeddings.embed_query("tea")
        assert "Credential=ASIAEXAMPLE/" in service.headers[0]["authorization"]


def test_a_metadata_service_that_was_late_once_is_waited_for(around: Surroundings) -> None:
    """botocore takes a second without an answer for a machine without one."""
    asked: list[str] = []

    def answer(request: str) -> str:
        asked.append(request)
        if len(asked) == 1 or len(asked) == 2:
            return HANG
        if request.startswith("PUT"):
            return http(200, "imds-token")
        path = request.split()[1]
        return http(200, keys() if path.endswith("/agent") else "agent")

    with Bedrock() as service, StandIn(answer) as imds:
        around.environment.delenv("AWS_EC2_METADATA_DISABLED")
        around.set(AWS_EC2_METADATA_SERVICE_ENDPOINT=f"{imds.url}/")
        embeddings = BedrockEmbeddings(
            TITAN, region="us-east-1", endpoint_url=service.url, deadline_s=20
        )
        assert embeddings.embed_query("tea")


# the end of the process

HANGING = next(source for source in SOURCES if source.name == "process: hangs")
ASKING = {
    "database": """
from langgraph_aurora_store import AuroraStore, PoolSettings
store = AuroraStore.from_cluster(
    "x.cluster-abcdefghijkl.us-east-1.rds.amazonaws.com", user="u", database="d",
    pool=PoolSettings(timeout_s=1),
)
ask = lambda: store.get(("a",), "k")
""",
    "embeddings": """
from langgraph_aurora_store.embeddings import BedrockEmbeddings
embeddings = BedrockEmbeddings("amazon.titan-embed-text-v2:0", region="us-east-1", deadline_s=1)
ask = lambda: embeddings.embed_query("tea")
""",
    "asyncio": """
import asyncio
from langgraph_aurora_store.embeddings import BedrockEmbeddings
embeddings = BedrockEmbeddings("amazon.titan-embed-text-v2:0", region="us-east-1", deadline_s=1)
ask = lambda: asyncio.run(embeddings.aembed_query("tea"))
""",
}
ENDS = {
    "error": "",
    "SIGTERM": """
import os, signal, sys, threading
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
""",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("caller", ASKING)
def test_a_process_ends_while_a_source_hangs(around: Surroundings, caller: str, end: str) -> None:
    """Neither an uncaught error nor SIGTERM waits for a credential_process that never ends."""
    with set_up(HANGING, around):
        run = subprocess.run(
            [sys.executable, "-c", f"{ASKING[caller]}{ENDS[end]}\nask()"],
            capture_output=True,
            text=True,
            timeout=25,
            check=False,
        )
    assert ("CredentialsError" in run.stderr) == (end == "error"), run.stderr
    assert run.returncode == (1 if end == "error" else 0)


def test_an_error_of_a_session_of_the_users_is_theirs_with_its_source() -> None:
    """A custom refresh that fails in any way is a CredentialsError that names its kind."""
    core = botocore.session.Session()
    found: Any = renewing(timedelta(seconds=-1), KeyError("Credentials"))
    found.method = "vault"
    core._credentials = found
    with pytest.raises(CredentialsError, match=r"source of the session \('?vault'?\).*Credentials"):
        signer_of(core)
