"""The Lambda example: its handlers under the real runtime client, its template and its build."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
import yaml
from langgraph.store.base import PutOp

from langgraph_aurora_store import AuroraStore
from langgraph_aurora_store.local import LocalAurora
from local_services.openai_service import (
    ChatReply,
    ChatRequest,
    LocalOpenAI,
    Script,
    ToolCall,
)
from tests.support import example_runs
from tests.support.bedrock_service import Bedrock, throttled

EXAMPLE = example_runs.EXAMPLES / "lambda"
FUNCTION = EXAMPLE / "function"
sys.path.insert(0, str(EXAMPLE / "local"))

from master import MASTER, make_master  # noqa: E402 - found by the line above
from sandbox import FunctionError, Sandbox, url_event  # noqa: E402
from stand_ins import LocalSecrets, preference, script  # noqa: E402

ROLE = "memory_app"
DATABASE = "lambda_example"
USERS = ["ada", "grace"]
LONGER_THAN_A_CHECK_S = 1.1  # a connection that idled for 1 s is tried before it is used


@dataclass
class Models:
    """The models' script, to be changed by a test; what they were asked."""

    script: Script = script
    asked: list[ChatRequest] = field(default_factory=list)

    def __call__(self, request: ChatRequest) -> ChatReply:
        self.asked.append(request)
        return self.script(request)


@dataclass(frozen=True)
class World:
    """What the functions meet outside of their sandbox."""

    cluster: LocalAurora
    bedrock: Bedrock
    models: Models
    environment: dict[str, str]

    @property
    def admin(self) -> psycopg.Connection[Any]:
        """As the superuser, past the proxy."""
        return psycopg.connect(self.cluster.admin_dsn_for(DATABASE), autocommit=True)

    def preferences(self, user_id: str) -> list[dict[str, str]]:
        """What is stored of a user."""
        query = "SELECT value -> 'content' FROM store WHERE prefix = %s ORDER BY created_at, key"
        with self.admin as conn:
            return [value for (value,) in conn.execute(query, (f"preferences.{user_id}",))]

    def sessions(self) -> int:
        """How many sessions of the function's role the server has."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND datname = %s"
        with self.admin as conn:
            ((count,),) = conn.execute(query, (ROLE, DATABASE)).fetchall()
            return int(count)


@pytest.fixture(scope="module")
def world(aurora: LocalAurora) -> Iterator[World]:
    """A database with nothing in it but what its master user has, and all services."""
    aurora.create_database(DATABASE)
    models = Models()
    secrets = {"master": make_master(aurora, DATABASE), "openai": "sk-local\n"}
    with Bedrock() as bedrock, LocalOpenAI(models) as openai, LocalSecrets(secrets) as manager:
        environment = {
            **aurora.environment,
            **manager.environment,
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": bedrock.url,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AURORA_DATABASE": DATABASE,
            "AURORA_USER": ROLE,
            "EMBEDDING_DEADLINE_S": "2",
            "MASTER_SECRET_ARN": "master",
            "OPENAI_BASE_URL": openai.base_url,
            "OPENAI_SECRET_ARN": "openai",
            "REGISTERED_USERS_ONLY": "true",
        }
        yield World(aurora, bedrock, models, environment)
    aurora.reset()
    aurora.drop_database(DATABASE)
    with psycopg.connect(aurora.admin_dsn, autocommit=True) as admin:
        admin.execute(f"DROP ROLE IF EXISTS {ROLE}, {MASTER}")


@pytest.fixture(scope="module")
def prepared(world: World) -> World:
    """The world after the bootstrap step."""
    with sandbox_of(world, "prepare_database.handler") as bootstrap:
        bootstrap.invoke({"users": USERS})
    return world


@pytest.fixture(scope="module")
def _function(prepared: World) -> Iterator[Sandbox]:
    with sandbox_of(prepared, "handler.handler") as sandbox:
        yield sandbox


@pytest.fixture
def function(_function: Sandbox, prepared: World) -> Iterator[Sandbox]:
    """The function, warm and frozen, for users of whom nothing is known."""
    prepared.models.script = script
    prepared.models.asked.clear()
    prepared.bedrock.reset()
    with prepared.admin as conn:
        conn.execute("DELETE FROM store WHERE prefix LIKE 'preferences.%'")
    yield _function
    prepared.cluster.reset()


def sandbox_of(world: World, handler: str, **environment: str) -> Sandbox:
    return Sandbox(handler, {**world.environment, **environment}, task_root=FUNCTION)


def say(sandbox: Sandbox, prompt: str, user_id: str = "ada", **options: Any) -> dict[str, Any]:
    """Send a prompt that must be answered; return the answer's body."""
    event = url_event(json.dumps({"user_id": user_id, "prompt": prompt}))
    response = sandbox.invoke(event, **options)
    body: dict[str, Any] = json.loads(response["body"])
    assert response["statusCode"] == 200, (body, sandbox.log)
    return body


def wait_until(claim: Callable[[], bool], within_s: float = 20.0) -> None:
    """Look again and again until a claim holds."""
    ended = threading.Event()
    for _ in range(round(within_s / 0.05)):
        if claim():
            return
        ended.wait(0.05)
    raise AssertionError("it never came true")


def stay_frozen() -> None:
    """Let time pass for a frozen sandbox."""
    threading.Event().wait(LONGER_THAN_A_CHECK_S)


class TestConversation:
    """What the function is for."""

    def test_what_a_user_says_is_used_in_a_later_answer(
        self, function: Sandbox, prepared: World
    ) -> None:
        """A preference of one invocation is in the instructions of the next one's model."""
        assert say(function, "Hello! I like cloud services.") == {
            "answer": "Tell me what you like.",
            "remembered": True,
        }
        assert "The user likes cloud services." in say(function, "What about the cloud?")["answer"]
        assert prepared.preferences("ada") == [preference("cloud services").arguments]

    def test_users_do_not_see_each_other(self, function: Sandbox) -> None:
        """Nothing of one user reaches the model when another asks the same."""
        say(function, "I like cloud services.", "ada")
        answer = say(function, "What about the cloud?", "grace")
        assert answer["answer"] == "Tell me what you like."

    def test_the_conversation_is_not_left_with_openai(
        self, function: Sandbox, prepared: World
    ) -> None:
        """The Responses API is asked, with the instructions apart from what the user wrote."""
        say(function, "What about the cloud?")
        answering = prepared.models.asked[0]
        assert answering.said_by("user") == ("What about the cloud?",)
        assert "nothing yet" in answering.said_by("system")[0]

    def test_a_preference_is_updated_in_its_place(self, function: Sandbox, prepared: World) -> None:
        """LangMem's patch of what it was shown changes that item, and makes no other."""
        say(function, "I like cloud services.")
        prepared.models.script = patching
        assert say(function, "The cloud bores me now.")["remembered"]
        assert [it["interest_level"] for it in prepared.preferences("ada")] == ["low"]

    def test_a_preference_is_forgotten(self, function: Sandbox, prepared: World) -> None:
        """LangMem's removal of what it was shown deletes that item."""
        say(function, "I like cloud services.")
        prepared.models.script = removing
        assert say(function, "Forget what I said about the cloud.")["remembered"]
        assert prepared.preferences("ada") == []

    def test_what_did_not_change_is_not_written(self, function: Sandbox, prepared: World) -> None:
        """A prompt that teaches nothing embeds its query only, and writes nothing."""
        say(function, "I like cloud services.")
        prepared.bedrock.reset()
        say(function, "Anything new about the cloud?")
        embedded = [body["inputText"] for body in prepared.bedrock.requests]
        assert embedded == ["Anything new about the cloud?"]

    def test_a_body_in_base64_is_read(self, function: Sandbox) -> None:
        """A Function URL may hand over any body in Base64."""
        body = json.dumps({"user_id": "ada", "prompt": "Grüße"})
        assert function.invoke(url_event(body, as_base64=True))["statusCode"] == 200


def patching(request: ChatRequest) -> ChatReply:
    """A memory model that lowers the interest in the one document it is shown."""
    if "PatchDoc" not in request.tools:
        return script(request)
    shown = "\n".join(text for _, text in request.messages)
    patch = {"op": "replace", "path": "/interest_level", "value": "low"}
    arguments = {"json_doc_id": document_id(shown), "planned_edits": "lower", "patches": [patch]}
    return ChatReply(tool_calls=(ToolCall("PatchDoc", arguments),))


def removing(request: ChatRequest) -> ChatReply:
    """A memory model that removes the one document it is shown."""
    if "RemoveDoc" not in request.tools:
        return script(request)
    shown = "\n".join(text for _, text in request.messages)
    return ChatReply(tool_calls=(ToolCall("RemoveDoc", {"json_doc_id": document_id(shown)}),))


def document_id(shown: str) -> str:
    found = re.search(r"<instance id=([0-9a-f-]{36})", shown)
    assert found, shown
    return found[1]


def body_of(**fields: object) -> str:
    return json.dumps({"user_id": "ada", "prompt": "Hello"} | fields)


REFUSED = [
    pytest.param(url_event(None), 400, "invalid_request", "empty", id="no body"),
    pytest.param(url_event("{not JSON"), 400, "invalid_request", "Invalid JSON", id="no JSON"),
    pytest.param(url_event('["ada"]'), 400, "invalid_request", "object", id="no object"),
    pytest.param(
        url_event('{"user_id": "ada"}'), 400, "invalid_request", "prompt: Field", id="no prompt"
    ),
    pytest.param(
        url_event('{"prompt": "Hello"}'), 400, "invalid_request", "user_id: Field", id="no user"
    ),
    pytest.param(url_event(body_of(prompt=7)), 400, "invalid_request", "string", id="a number"),
    pytest.param(url_event(body_of(prompt=" ")), 400, "invalid_request", "text", id="blank"),
    pytest.param(url_event(body_of(prompt="\0")), 400, "invalid_request", "NUL", id="NUL"),
    pytest.param(
        url_event(body_of(prompt="\ud800")), 400, "invalid_request", "JSON", id="lone surrogate"
    ),
    pytest.param(
        url_event(body_of(user_id="a.b")), 400, "invalid_request", "user_id: ", id="full stop"
    ),
    pytest.param(url_event(body_of(mood="?")), 400, "invalid_request", "mood: ", id="misspelt"),
    pytest.param(
        {**url_event("%%%"), "isBase64Encoded": True},
        400,
        "invalid_request",
        "Base64",
        id="broken Base64",
    ),
    pytest.param(
        {**url_event("/+8="), "isBase64Encoded": True},
        400,
        "invalid_request",
        "JSON",
        id="Base64 of no text",
    ),
    pytest.param(
        {**url_event("é"), "isBase64Encoded": True}, 400, "invalid_request", "Base64", id="no ASCII"
    ),
    *(
        pytest.param(event, 400, "invalid_event", "Function URL", id=f"invoked with {event}")
        for event in ({"user_id": "ada"}, [1], "hi", {"requestContext": {"http": None}})
    ),
    pytest.param(url_event(body_of(user_id="zoe")), 404, "unknown_user", "'zoe'", id="unknown"),
    pytest.param(url_event(None, method="GET"), 405, "method_not_allowed", "POST", id="GET"),
    pytest.param(
        url_event(body_of(prompt="x" * 8001)), 413, "prompt_too_long", "8000", id="too long"
    ),
]


class TestRegistration:
    """Who is answered, by a setting."""

    def test_a_new_user_is_answered_and_remembered_unless_registration_is_asked_for(
        self, function: Sandbox, prepared: World
    ) -> None:
        """Nothing is known of them at first, and what they say is used afterwards."""
        assert function.request({"user_id": "new", "prompt": "Hello"})[0] == 404
        with sandbox_of(prepared, "handler.handler", REGISTERED_USERS_ONLY="false") as open_to_all:
            first = say(open_to_all, "Hello! I like tea.", "new")
            assert first == {"answer": "Tell me what you like.", "remembered": True}
            assert "The user likes tea." in say(open_to_all, "Which tea?", "new")["answer"]


class TestBadInput:
    """What the function refuses, and that it says why."""

    @pytest.mark.parametrize(("event", "status", "code", "part"), REFUSED)
    def test_bad_input_is_refused_with_its_reason(
        self, function: Sandbox, prepared: World, event: dict, status: int, code: str, part: str
    ) -> None:
        """A 4xx whose JSON body says what is wrong; no model is asked, nothing is written."""
        response = function.invoke(event)
        error = json.loads(response["body"])["error"]
        assert (response["statusCode"], error["code"]) == (status, code)
        assert part in error["message"]
        assert prepared.models.asked == []

    def test_a_refusal_does_not_repeat_what_was_sent(self, function: Sandbox) -> None:
        """Neither the answer nor the log holds a refused prompt."""
        secret = "my card is 4111-1111"
        answer = function.request({"user_id": "ada", "prompt": secret * 1000, "x": secret})
        assert secret not in json.dumps(answer) + function.log

    def test_the_longest_prompt_is_answered(self, function: Sandbox) -> None:
        """The limit itself is no error."""
        say(function, "cloud " * 1333)


class TestFailures:
    """What fails behind the function, and what becomes of the answer."""

    def test_a_failed_write_keeps_the_answer_and_is_logged(
        self, function: Sandbox, prepared: World
    ) -> None:
        """The database refuses the write: the answer goes out, and the log says what was lost."""
        with prepared.admin as conn, without_right(conn, "INSERT ON store"):
            answer = say(function, "I like cloud services.")
        assert answer == {"answer": "Tell me what you like.", "remembered": False}
        (line,) = errors(function, "updating the preferences of user 'ada' failed")
        assert "InsufficientPrivilege (SQLSTATE 42501)" in line

    def test_a_memory_model_that_fails_keeps_the_answer(
        self, function: Sandbox, prepared: World
    ) -> None:
        """LangMem's model is down: the same."""
        prepared.models.script = only_answering(raise_an_error)
        assert say(function, "I like tea.")["remembered"] is False

    def test_a_memory_model_that_hangs_keeps_the_answer(
        self, function: Sandbox, prepared: World
    ) -> None:
        """It would outlast the invocation: the answer goes out before the invocation's end."""
        hanging = threading.Event()
        prepared.models.script = only_answering(lambda _request: hanging.wait(30))
        assert say(function, "I like tea.", timeout_s=3)["remembered"] is False
        hanging.set()
        assert errors(function, "has not finished within")

    def test_an_embedding_that_fails_after_the_answer_writes_nothing(
        self, function: Sandbox, prepared: World
    ) -> None:
        """Bedrock embeds the prompt but not the preference: no item is left without its vector."""
        refusal = replace(throttled(), status=403)
        refusal = replace(refusal, headers={"x-amzn-errortype": "AccessDeniedException"})

        def learning(request: ChatRequest) -> ChatReply:
            prepared.bedrock.next(refusal)
            return script(request)

        prepared.models.script = only_answering(learning)
        assert say(function, "I like cloud services.")["remembered"] is False
        assert prepared.preferences("ada") == []

    def test_a_memory_that_cannot_be_read_is_a_503(
        self, function: Sandbox, prepared: World
    ) -> None:
        """Nothing is answered without the memory; the caller is told to come again."""
        with prepared.admin as conn, without_right(conn, "SELECT ON store"):
            response = function.invoke(url_event(body_of()))
        assert response["statusCode"] == 503
        assert response["headers"]["Retry-After"]
        assert json.loads(response["body"])["error"]["code"] == "memory_unavailable"
        assert "permission denied" not in response["body"]
        assert errors(function, "InsufficientPrivilege (SQLSTATE 42501)")

    def test_a_failure_that_quotes_the_user_is_logged_by_its_class(
        self, function: Sandbox, prepared: World
    ) -> None:
        """PostgreSQL's refusal repeats the row; a model's error what it was sent."""
        check = "CHECK (value::text NOT LIKE '%secret garden%')"
        with prepared.admin as conn:
            conn.execute(f"ALTER TABLE store ADD CONSTRAINT tame {check}")
            try:
                assert say(function, "I like my secret garden.")["remembered"] is False
            finally:
                conn.execute("ALTER TABLE store DROP CONSTRAINT tame")
        assert errors(function, "CheckViolation (SQLSTATE 23514)")
        prepared.models.script = quoting
        assert function.request({"user_id": "ada", "prompt": "my secret garden"})[0] == 502
        assert errors(function, "InternalServerError")
        assert "secret garden" not in function.log

    def test_a_throttled_embedding_is_a_503_within_the_invocation(
        self, function: Sandbox, prepared: World
    ) -> None:
        """Bedrock throttles for longer than a caller waits: its retries end before that."""
        prepared.bedrock.next(*[throttled()] * 50)
        status, body = function.request({"user_id": "ada", "prompt": "Never asked before"})
        assert (status, body["error"]["code"]) == (503, "memory_unavailable")

    def test_a_model_that_cannot_answer_is_a_502(self, function: Sandbox, prepared: World) -> None:
        """The failure of the service is told apart from the caller's."""
        prepared.models.script = raise_an_error
        status, body = function.request({"user_id": "ada", "prompt": "Hello"})
        assert (status, body["error"]["code"]) == (502, "model_unavailable")


def raise_an_error(_request: ChatRequest) -> ChatReply:
    raise ConnectionAbortedError


def quoting(request: ChatRequest) -> ChatReply:
    raise ValueError(f"cannot answer {request.messages}")


def only_answering(learn: Callable[[ChatRequest], Any]) -> Script:
    """The assistant answers as ever; LangMem's model does something else."""
    return lambda request: learn(request) if "Preference" in request.tools else script(request)


@contextmanager
def without_right(conn: psycopg.Connection[Any], right: str) -> Iterator[None]:
    conn.execute(f"REVOKE {right} FROM {ROLE}")
    try:
        yield
    finally:
        conn.execute(f"GRANT {right} TO {ROLE}")


def errors(sandbox: Sandbox, part: str) -> list[str]:
    """The lines at ERROR that hold a text, of the last invocation's log."""
    lines = (json.loads(line) for line in sandbox.last_log.splitlines() if line.startswith("{"))
    return [str(line) for line in lines if line["level"] == "ERROR" and part in line["message"]]


class TestSandbox:
    """Init, being frozen, and what happens to connections meanwhile."""

    def test_connections_cut_while_frozen_cost_no_answer(
        self, function: Sandbox, prepared: World
    ) -> None:
        """The next invocation notices, and connects again."""
        say(function, "I like cloud services.")
        assert prepared.cluster.cut_connections() > 0
        stay_frozen()
        assert "likes cloud services" in say(function, "What about the cloud?")["answer"]

    @pytest.mark.parametrize("resume_s", [1.0, 15.0])
    def test_a_cluster_that_resumes_is_waited_for(
        self, function: Sandbox, prepared: World, resume_s: float
    ) -> None:
        """Paused while the sandbox was frozen, it takes its time, and the answer comes."""
        say(function, "I like cloud services.")
        prepared.cluster.pause(resume_s=resume_s)
        stay_frozen()
        answer = say(function, "What about the cloud?")
        assert "likes cloud services" in answer["answer"]
        assert answer["remembered"]

    @pytest.mark.parametrize(
        ("user_id", "status", "model"),
        [
            pytest.param("ada", 200, script, id="answered"),
            pytest.param("zoe", 404, script, id="unknown user"),
            pytest.param("ada", 502, raise_an_error, id="no answer"),
            pytest.param("ada", 200, "hanging", id="memory model hangs"),
        ],
    )
    def test_the_session_of_a_frozen_sandbox_ends(
        self, function: Sandbox, prepared: World, user_id: str, status: int, model: Any
    ) -> None:
        """The server ends it by the role's idle_session_timeout, so that the cluster can pause."""
        released = threading.Event()
        if model == "hanging":
            model = only_answering(lambda _request: released.wait(30))
        prepared.models.script = model
        prepared.cluster.cut_connections()
        stay_frozen()
        with prepared.admin as conn:
            conn.execute(f"ALTER ROLE {ROLE} SET idle_session_timeout = '1s'")
        try:
            event = url_event(body_of(user_id=user_id, prompt="What about the cloud?"))
            assert function.invoke(event, timeout_s=3)["statusCode"] == status
        finally:
            with prepared.admin as conn:
                conn.execute(f"ALTER ROLE {ROLE} SET idle_session_timeout = '60s'")
        wait_until(lambda: prepared.sessions() == 0)
        released.set()
        prepared.models.script = script
        say(function, "What about the cloud?")

    def test_the_first_connection_is_made_during_init(self, prepared: World) -> None:
        """Before any event arrives, the server has a session of the function's role."""
        prepared.cluster.cut_connections()
        wait_until(lambda: prepared.sessions() == 0)
        with sandbox_of(prepared, "handler.handler"):
            assert prepared.sessions() == 1

    def test_an_init_that_cannot_connect_is_reported_and_made_good(self, prepared: World) -> None:
        """IAM is off during init: the log says so, and the next invocation connects."""
        prepared.cluster.iam_enabled = False
        try:
            with sandbox_of(prepared, "handler.handler") as sandbox:
                assert errors(sandbox, "failed: IamAuthenticationDisabledError: IAM database auth")
                prepared.cluster.iam_enabled = True
                assert say(sandbox, "Hello")["remembered"]
        finally:
            prepared.cluster.iam_enabled = True

    def test_init_does_not_wait_for_a_silent_cluster(self, prepared: World) -> None:
        """It ends within its own limit, and the invocation that follows goes on waiting."""
        prepared.cluster.pause(resume_s=2)
        try:
            with sandbox_of(prepared, "handler.handler", INIT_CONNECT_S="0.2") as sandbox:
                assert errors(sandbox, "connecting in the init phase has not finished within 0.2 s")
                assert say(sandbox, "Hello")["remembered"]
        finally:
            prepared.cluster.reset()

    def test_a_missing_setting_fails_the_init_by_name(self, prepared: World) -> None:
        """Lambda is told what to set, instead of every caller."""
        environment = {**prepared.environment, "AURORA_CLUSTER": ""}
        with (
            pytest.raises(FunctionError, match="AURORA_CLUSTER"),
            Sandbox("handler.handler", environment, task_root=FUNCTION),
        ):
            pass

    def test_no_secret_is_logged(self, function: Sandbox, prepared: World) -> None:
        """Neither OpenAI's key, nor a token, nor what a user said."""
        say(function, "I like my secret garden.")
        assert "sk-local" not in function.log
        assert "X-Amz-Signature" not in function.log
        assert "secret garden" not in function.log


class TestIdleSessions:
    """What PostgreSQL counts as idle: the reason why the function ends with a plain statement."""

    def test_only_a_plain_statement_starts_the_idle_clock(
        self, prepared: World, database: Any
    ) -> None:
        """Of two sessions, one that ended with a pipelined write, and a later one that ended with
        a plain statement, the server ends the second and keeps the first."""
        with prepared.admin as conn:
            conn.execute(f"ALTER DATABASE {database.name} SET idle_session_timeout = '1s'")
        stores = [
            AuroraStore.from_cluster(
                prepared.cluster.identifier,
                user=prepared.cluster.user,
                database=database.name,
                session=prepared.cluster.session,
                sslrootcert=prepared.cluster.sslrootcert,
                pool="lambda",
            )
            for _ in range(2)
        ]
        with stores[0] as first, stores[1] as second:
            first.setup()
            pids = []
            for store, is_plain in ((first, False), (second, True)):
                with store.connection() as conn:
                    pids.append(conn.info.backend_pid)
                for _ in range(2):  # the first write of a connection is followed by a plain one
                    store.batch([PutOp(("users",), "ada", {}), PutOp(("users",), "zoe", None)])
                if is_plain:
                    with store.connection() as conn:
                        conn.execute("", prepare=False)

            def alive() -> list[bool]:
                with prepared.admin as admin:
                    query = "SELECT pid FROM pg_stat_activity WHERE datname = %s"
                    living = {pid for (pid,) in admin.execute(query, (database.name,))}
                return [pid in living for pid in pids]

            wait_until(lambda: not alive()[1])
            assert alive() == [True, False]


class TestBootstrap:
    """What the bootstrap step leaves behind."""

    def test_the_role_has_no_password_and_logs_in_with_tokens(self, prepared: World) -> None:
        """It is granted rds_iam, and that is all it can log in by."""
        query = """
            SELECT rolpassword IS NULL, rolsuper OR rolcreaterole OR rolcreatedb,
                   pg_has_role(oid, 'rds_iam', 'MEMBER')
            FROM pg_authid WHERE rolname = %s
        """
        with prepared.admin as conn:
            assert conn.execute(query, (ROLE,)).fetchall() == [(True, False, True)]

    def test_the_role_can_make_nothing(self, prepared: World) -> None:
        """It owns nothing, may create nothing, and cannot forge what was recorded."""
        owned = "SELECT count(*) FROM pg_class WHERE relowner = %s::regrole"
        rights = """
            SELECT has_schema_privilege(%(role)s, 'public', 'CREATE'),
                   has_table_privilege(%(role)s, 'store_migrations', 'INSERT, UPDATE, DELETE'),
                   has_table_privilege(%(role)s, 'store', 'TRUNCATE')
        """
        with prepared.admin as conn:
            assert conn.execute(owned, (ROLE,)).fetchall() == [(0,)]
            assert conn.execute(rights, {"role": ROLE}).fetchall() == [(False, False, False)]

    def test_the_role_is_granted_what_the_store_s_script_grants(self, prepared: World) -> None:
        """Each right on each table, and none on a table that is not the store's."""
        index = {"embed": "bedrock:amazon.titan-embed-text-v2:0"}
        script = AuroraStore.from_cluster("any", user="any", region="us-east-1", index=index).ddl(
            role=ROLE
        )
        granted = {
            (table.strip('"'), right.strip())
            for rights, table in re.findall(r"^GRANT ([A-Z, ]+) ON (\S+) TO ", script, re.M)
            for right in rights.split(",")
        }
        query = """SELECT table_name, privilege_type FROM information_schema.role_table_grants
                   WHERE grantee = %s"""
        with prepared.admin as conn:
            conn.execute("CREATE TABLE IF NOT EXISTS invoices ()")
            conn.execute("ALTER TABLE invoices OWNER TO " + MASTER)
            with sandbox_of(prepared, "prepare_database.handler") as bootstrap:
                bootstrap.invoke({})
            assert set(conn.execute(query, (ROLE,)).fetchall()) == granted
            conn.execute("DROP TABLE invoices")

    def test_it_may_run_again(self, function: Sandbox, prepared: World) -> None:
        """The second run adds users, and loses nothing."""
        say(function, "I like cloud services.")
        with sandbox_of(prepared, "prepare_database.handler") as bootstrap:
            done = bootstrap.invoke({"users": ["ada", "linus"]})
        assert done == {"role": ROLE, "users": ["ada", "linus"]}
        assert "likes cloud services" in say(function, "What about the cloud?")["answer"]
        assert say(function, "Hello", "linus")["remembered"]

    @pytest.mark.parametrize(
        "order", [{"users": "ada"}, {"users": ["a.b"]}, {"user": ["ada"]}, {"users": None}]
    )
    def test_users_that_could_not_ask_are_not_made(
        self, prepared: World, order: dict[str, Any]
    ) -> None:
        """Nor is a misspelt order taken for one without users."""
        bootstrap = sandbox_of(prepared, "prepare_database.handler")
        with bootstrap, pytest.raises(FunctionError, match="user"):
            bootstrap.invoke(order)
        with prepared.admin as conn:
            query = "SELECT count(*) FROM store WHERE prefix = 'users' AND length(key) = 1"
            assert conn.execute(query).fetchall() == [(0,)]


class Template(yaml.SafeLoader):
    """CloudFormation's YAML, its functions as one-key mappings."""


def _function_of_cloudformation(loader: Template, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        return {suffix: loader.construct_scalar(node)}
    return {suffix: loader.construct_sequence(node, deep=True)}


Template.add_multi_constructor("!", _function_of_cloudformation)


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load((EXAMPLE / "template.yaml").read_text(), Template)
    return loaded


def resource(template: dict[str, Any], name: str) -> dict[str, Any]:
    properties: dict[str, Any] = template["Resources"][name]["Properties"]
    return properties


def rights(template: dict[str, Any], name: str) -> dict[str, Any]:
    """What a function may do, by action."""
    (policy,) = resource(template, name)["Policies"]
    assert {statement["Effect"] for statement in policy["Statement"]} == {"Allow"}
    return {statement["Action"]: statement["Resource"] for statement in policy["Statement"]}


class TestTemplate:
    """What would be deployed, as far as it can be told without an account."""

    def test_cfn_lint_finds_nothing(self) -> None:
        """Neither an error nor a warning."""
        command = [Path(sys.executable).parent / "cfn-lint", EXAMPLE / "template.yaml"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr

    @pytest.mark.skipif(shutil.which("sam") is None, reason="the SAM command is not installed")
    def test_sam_validates_it(self) -> None:
        """SAM's own check, which transforms the template first."""
        command = ["sam", "validate", "--lint", "--template-file", str(EXAMPLE / "template.yaml")]
        environment = {**os.environ, "SAM_CLI_TELEMETRY": "0", "AWS_DEFAULT_REGION": "us-east-1"}
        subprocess.run(command, check=True, env=environment)

    def test_the_cluster_scales_to_zero_and_takes_iam_tokens(
        self, template: dict[str, Any]
    ) -> None:
        """With a writer, and a reader ready to take its place."""
        cluster = resource(template, "Cluster")
        assert cluster["ServerlessV2ScalingConfiguration"]["MinCapacity"] == 0
        assert cluster["EnableIAMDatabaseAuthentication"] is True
        assert cluster["DeletionProtection"] == {"Ref": "DeletionProtection"}
        assert template["Parameters"]["DeletionProtection"]["Default"] == "true"
        for name in ("Writer", "Reader"):
            instance = resource(template, name)
            assert instance["DBInstanceClass"] == "db.serverless"
            assert instance["PromotionTier"] in (0, 1)
            assert instance["PubliclyAccessible"] is False

    def test_the_function_has_exactly_the_rights_it_needs(self, template: dict[str, Any]) -> None:
        """One database role of one cluster, one model, one secret."""
        assert rights(template, "Function") == {
            "rds-db:connect": {
                "Sub": "arn:${AWS::Partition}:rds-db:${AWS::Region}:${AWS::AccountId}"
                ":dbuser:${Cluster.DBClusterResourceId}/${DatabaseRole}"
            },
            "bedrock:InvokeModel": {
                "Sub": "arn:${AWS::Partition}:bedrock:${AWS::Region}"
                "::foundation-model/${EmbeddingModelId}"
            },
            "secretsmanager:GetSecretValue": {"Ref": "OpenAiSecretArn"},
        }

    def test_only_the_bootstrap_reads_the_master_s_secret(self, template: dict[str, Any]) -> None:
        """RDS makes and keeps that password; nothing else in the template is given it."""
        secret = {"GetAtt": "Cluster.MasterUserSecret.SecretArn"}
        assert rights(template, "Bootstrap") == {"secretsmanager:GetSecretValue": secret}
        assert resource(template, "Cluster")["ManageMasterUserPassword"] is True
        text = (EXAMPLE / "template.yaml").read_text()
        assert text.count("MasterUserSecret") == 2
        assert not re.search(r"MasterUserPassword:\s*\S", text.replace("ManageMaster", ""))
        assert "{{resolve:" not in text

    def test_the_function_url_asks_for_iam(self, template: dict[str, Any]) -> None:
        """Unless the deployer says otherwise."""
        url = resource(template, "Function")["FunctionUrlConfig"]
        assert url["AuthType"] == {"Ref": "FunctionUrlAuthType"}
        assert template["Parameters"]["FunctionUrlAuthType"]["Default"] == "AWS_IAM"
        public = [template["Resources"][name] for name in ("PublicUrl", "PublicInvocation")]
        assert [permission["Condition"] for permission in public] == ["IsPublic"] * 2
        actions = {permission["Properties"]["Action"] for permission in public}
        assert actions == {"lambda:InvokeFunctionUrl", "lambda:InvokeFunction"}

    def test_logs_end(self, template: dict[str, Any]) -> None:
        """Both functions log to a group with a retention."""
        for name in ("Function", "Bootstrap"):
            group = resource(template, name)["LoggingConfig"]["LogGroup"]["Ref"]
            assert resource(template, group)["RetentionInDays"] == {"Ref": "LogRetentionDays"}

    def test_the_runtime_is_the_build_s(self, template: dict[str, Any]) -> None:
        """Python and processor of template and build are the same."""
        function = template["Globals"]["Function"]
        assert function["Runtime"] == "python{}.{}".format(*build().RUNTIME)
        assert function["Architectures"] == ["arm64"]
        assert function["CodeUri"] == "build/function"

    def test_every_setting_of_the_code_is_in_the_template(self, template: dict[str, Any]) -> None:
        """What the handlers read from their environment without a default is set there."""
        common = template["Globals"]["Function"]["Environment"]["Variables"]
        set_for = {
            name: {*common, *resource(template, name)["Environment"]["Variables"]}
            for name in ("Function", "Bootstrap")
        }
        aurora = {"AURORA_CLUSTER", "AURORA_DATABASE", "AURORA_USER"}
        assert {*aurora, "OPENAI_SECRET_ARN"} <= set_for["Function"]
        assert {*aurora, "MASTER_SECRET_ARN"} <= set_for["Bootstrap"]


def build() -> ModuleType:
    """The build script as a module."""
    return example_runs.load(EXAMPLE / "build.py")


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """Wheels of two packages: one that is needed, and one that the runtime has."""
    directory = tmp_path / "wheels"
    directory.mkdir()
    for name in ("needed", "botocore"):
        info = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "def here():\n    return __file__\n")
            wheel.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
            )
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    (tmp_path / "requirements.txt").write_text("needed\nbotocore\n")
    return directory


class TestBuild:
    """What the build puts together; the whole of it needs a registry and Python 3.13."""

    def test_the_build_holds_checked_bytecode_and_not_the_runtime_s_packages(
        self, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Handler and dependencies with unchecked-hash bytecode, and without botocore."""
        script = build()
        # Its own wheel, and pinned versions, come from a registry.
        monkeypatch.setattr(script, "ROOT", tmp_path)
        output = tmp_path / "out"
        options = ["--no-index", f"--find-links={wheels}"]
        script.build(output, tmp_path / "requirements.txt", "aarch64", options)
        assert (output / "handler.py").is_file()
        assert (output / "needed/__init__.py").is_file()
        assert not list(output.glob("botocore*"))
        assert not list(script.uncompiled(output))

    def test_a_build_without_bytecode_is_refused(self, tmp_path: Path) -> None:
        """A module that would be compiled at each cold start is named."""
        (tmp_path / "late.py").write_text("")
        script = build()
        with pytest.raises(script.BuildError, match=r"late\.py"):
            script.check(tmp_path)

    def test_bytecode_that_is_checked_against_time_stamps_is_refused(self, tmp_path: Path) -> None:
        """The kind that Python makes by itself is stale once it was in a zip."""
        import py_compile

        (tmp_path / "stamped.py").write_text("")
        py_compile.compile(str(tmp_path / "stamped.py"))
        script = build()
        with pytest.raises(script.BuildError, match=r"stamped\.py"):
            script.check(tmp_path)

    def test_another_python_is_refused(self) -> None:
        """Its bytecode would be of no use."""
        script = build()
        with pytest.raises(script.BuildError, match=r"run it with Python 2\.7"):
            script.require_version((2, 7))


class TestReadme:
    """What the example's README says."""

    def test_the_command_it_names_runs_the_example(self) -> None:
        """`make run` is that command, and what it starts ends well."""
        assert "make -C examples/lambda run" in (EXAMPLE / "README.md").read_text()
        assert "$(BIN)/python local/run.py" in (EXAMPLE / "Makefile").read_text()
        done = example_runs.run(EXAMPLE / "local/run.py", {"LAMBDA_RESUME_S": "0.5"})
        assert "I know that: The user likes cloud services." in done.stdout
        assert "503" not in done.stdout
