"""Run the function on this machine: `make run`, or `make serve` to talk to it with curl.

A local Aurora, a scripted model and a local Secrets Manager take the place of the services, unless
OPENAI_API_KEY is set: then the models are OpenAI's. What runs is the code that is deployed, under
Lambda's own runtime interface client, frozen between invocations.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from langgraph_aurora_store.local import LocalAurora

sys.path.append(str(Path(__file__).parents[2]))  # for local_services

from master import make_master
from sandbox import Sandbox, url_event
from stand_ins import LocalSecrets, script

from local_services.openai_service import LocalOpenAI

FUNCTION = Path(__file__).parent.parent / "function"
USERS = ["ada", "grace"]
FROZEN_S = 1.5  # after more than a second a connection is tried before it is used
# Aurora user guide: a paused cluster resumes in approximately 15 seconds.
RESUME_S = float(os.environ.get("LAMBDA_RESUME_S", "15"))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--serve", type=int, metavar="PORT", help="serve the Function URL")
    options.add_argument("--task-root", type=Path, default=FUNCTION, help="such as build/function")
    options.add_argument("--python", default=sys.executable, help="one that has awslambdaric")
    chosen = options.parse_args()
    with ExitStack() as stack:
        cluster = stack.enter_context(LocalAurora(user="nobody", export=False))
        environment = stack.enter_context(services(cluster))
        start = partial(
            Sandbox,
            environment=environment,
            task_root=chosen.task_root.absolute(),
            python=chosen.python,
        )
        title = "the bootstrap function makes role, tables and users"
        with step(title), start("prepare_database.handler") as bootstrap:
            print("  ", bootstrap.invoke({"users": USERS}))
        with step("a cold start, with the first connection in its init phase"):
            sandbox = stack.enter_context(start("handler.handler"))
        if chosen.serve:
            serve(sandbox, chosen.serve)
        else:
            show(sandbox, cluster)


@contextmanager
def services(cluster: LocalAurora) -> Iterator[dict[str, str]]:
    """All that the functions see in their environment, as in `template.yaml`."""
    key = os.environ.get("OPENAI_API_KEY")
    secrets = {"master": make_master(cluster, cluster.database), "openai": key or "none is needed"}
    with LocalSecrets(secrets) as manager, LocalOpenAI(script) as models:
        yield {
            **cluster.environment,
            **manager.environment,
            **({} if key else {"OPENAI_BASE_URL": models.base_url}),
            "AURORA_USER": "memory_app",
            "MASTER_SECRET_ARN": "master",
            "OPENAI_SECRET_ARN": "openai",
            "EMBEDDING_MODEL": "openai:text-embedding-3-small",
            "REGISTERED_USERS_ONLY": "true",
        }


def show(sandbox: Sandbox, cluster: LocalAurora) -> None:
    with step("Ada says what she likes, and it is remembered"):
        ask(sandbox, "ada", "Hello! I like cloud services.")
        ask(sandbox, "ada", "What should I read about the cloud?")
    with step("Grace has said nothing yet"):
        ask(sandbox, "grace", "What should I read about the cloud?")
    with step("requests that are refused"):
        ask(sandbox, "nobody", "Who am I?")
        post(sandbox, '{"user_id": "ada"}')
    with step(f"the cluster pauses meanwhile, and takes {RESUME_S:g} s to resume"):
        cluster.pause(resume_s=RESUME_S)
        time.sleep(FROZEN_S)
        ask(sandbox, "ada", "What should I read about the cloud?")


def ask(sandbox: Sandbox, user_id: str, prompt: str) -> None:
    print(f"   {user_id}: {prompt}")
    report(sandbox.request({"user_id": user_id, "prompt": prompt}))


def post(sandbox: Sandbox, body: str) -> None:
    print(f"   POST {body}")
    report(sandbox.request(body))


def report(answer: tuple[int, dict]) -> None:
    print("  ", *answer)


@contextmanager
def step(title: str) -> Iterator[None]:
    print(f"\n-- {title}")
    started = time.monotonic()
    yield
    print(f"   ({time.monotonic() - started:.2f} s)")


def serve(sandbox: Sandbox, port: int) -> None:
    """Be the Function URL: one request at a time, as one sandbox does."""

    class FunctionUrl(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            response = sandbox.invoke(url_event(body or None, method=self.command))
            self.send_response(response["statusCode"])
            for name, value in response["headers"].items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(response["body"].encode() + b"\n")

        do_GET = do_PUT = do_PATCH = do_DELETE = do_POST  # noqa: N815 - the base class's names

    body = json.dumps({"user_id": "ada", "prompt": "I like tea."})
    print(f"\nTry: curl -d '{body}' http://127.0.0.1:{port}/\nCtrl-C ends it.")
    try:
        HTTPServer(("127.0.0.1", port), FunctionUrl).serve_forever()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
