"""A cold start of the Lambda example: what its init phase imports and does, and what of it is ours.

Each step is timed in a new process, in the order of the example's handler. Whatever this package
adds is measured in a process that already has LangGraph and the parent's store.
"""

import compileall
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import langgraph_aurora_store
from bench.table import Row
from langgraph_aurora_store.local import LocalAurora
from tests.support.bedrock_service import Bedrock

RUNS = 9
ADDED_AIM_MS = 110

TIMED = """
import json, os, sys, time
steps = {}
def step(name, action):
    begun = time.perf_counter(), time.process_time()
    action()
    steps[name] = (
        (time.perf_counter() - begun[0]) * 1000, (time.process_time() - begun[1]) * 1000
    )
def run(code):
    return lambda: exec(code, globals())
EMBED = "bedrock:amazon.titan-embed-text-v2:0"
WRITER = "x.cluster-abcdefghijkl.us-east-1.rds.amazonaws.com"
%s
print(json.dumps(steps))
"""
# What a process has that already uses the parent's store.
BEFORE = """
import langgraph.func, langgraph.graph, langgraph.store.postgres
"""
OURS = """
step("import of the package", run("from langgraph_aurora_store import AuroraStore"))
step("making the store", run("store = AuroraStore.from_cluster(index={'embed': EMBED})"))
step("AWS credentials, signer and a token", run('''
from langgraph_aurora_store.connect.connection_factory import connection_factory
connection_factory(WRITER, user="u", database="d").kwargs()
'''))
step("looking up an identifier", run("connection_factory(user='u', database='d').kwargs()"))
step("first connection", run("store.open()"))
step("what calls Bedrock", run("store.embeddings._ready_client()"))
step("first embedding", run("store.embeddings.embed_query('hello')"))
"""
# What LangGraph's own store would need for the same: a token, a connection, a Bedrock model.
PARENT = """
step("boto3 and its rds client", run('''
import boto3
rds = boto3.client("rds")
found = rds.describe_db_clusters(DBClusterIdentifier=os.environ["AURORA_CLUSTER"])["DBClusters"][0]
token = rds.generate_db_auth_token(
    DBHostname=found["Endpoint"], Port=found["Port"], DBUsername=os.environ["AURORA_USER"]
)
'''))
step("langchain_aws", run('''
from langchain_aws import BedrockEmbeddings
embeddings = BedrockEmbeddings(model_id="amazon.titan-embed-text-v2:0")
'''))
"""
WHOLE = """
step("boto3 and its session", run("import boto3; session = boto3.Session()"))
step("Secrets Manager's client, for OpenAI's key", run("session.client('secretsmanager')"))
step("openai and its client", run("import openai; openai.OpenAI()"))
step("LangGraph and the parent's store", run(BEFORE))
step("LangMem and its manager", run('''
from langchain.chat_models import init_chat_model
from langmem import create_memory_manager
create_memory_manager(init_chat_model("openai:gpt-4.1-mini"))
'''))
step("this package", run("from langgraph_aurora_store import AuroraStore"))
step("making the store", run(
    "store = AuroraStore.from_cluster(session=session, index={'embed': EMBED})"
))
step("first connection, its token included", run("store.open()"))
step("first embedding", run("store.embeddings.embed_query('hello')"))
"""
# A function is given the endpoint's name, which needs no lookup; the others' time is the network's
# and the server's, not that of loading code.
ELSEWHERE = ("looking up an identifier", "first connection", "first embedding")


def rows(cluster: LocalAurora) -> list[Row]:
    """The figures: what is added to a process that has LangGraph, and the whole cold start."""
    with environment_of(cluster) as environment:
        ours = timed(BEFORE + OURS, environment)
        parent = timed(BEFORE + PARENT, environment)
        whole = timed(f"BEFORE = {BEFORE!r}\n{WHOLE}", environment)
    added = sum(ms for name, ms in ours.items() if name not in ELSEWHERE)
    found = [
        Row(
            "added to a process that has LangGraph and the parent's store",
            "ms",
            added,
            sum(parent.values()),
            aim=f"≤ {ADDED_AIM_MS}",
            holds=added <= ADDED_AIM_MS,
        )
    ]
    found += [Row(f"- {name}", "ms", ms) for name, ms in ours.items()]
    total = sum(whole.values())
    found.append(Row("cold start of the Lambda example, its init phase", "ms", total))
    found += [Row(f"- {name}, {ms / total:.0%}", "ms", ms) for name, ms in whole.items()]
    return found


def timed(code: str, environment: dict[str, str]) -> dict[str, float]:
    """The median of each step's milliseconds, in processes of their own."""
    runs = [measure(code, environment) for _ in range(RUNS)]
    return {name: median(run[name][0] for run in runs) for name in runs[0]}


def measure(code: str, environment: dict[str, str]) -> dict[str, tuple[float, float]]:
    done = subprocess.run(
        [sys.executable, "-c", TIMED % code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    steps: dict[str, tuple[float, float]] = json.loads(done.stdout)
    return steps


@contextmanager
def environment_of(cluster: LocalAurora) -> Iterator[dict[str, str]]:
    """What the processes see; they load this package compiled, as it is deployed."""
    with tempfile.TemporaryDirectory() as directory, Bedrock() as bedrock:
        source = Path(langgraph_aurora_store.__file__).parent
        shutil.copytree(source, Path(directory) / source.name)
        compileall.compile_dir(directory, quiet=1)
        yield {
            **cluster.environment,
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": bedrock.url,
            "AWS_LAMBDA_FUNCTION_NAME": "bench",
            "OPENAI_API_KEY": "none",
            "PATH": os.defpath,
            "PYTHONPATH": directory,
        }


if __name__ == "__main__":
    from bench.table import as_markdown

    with LocalAurora(export=False) as local:
        print(as_markdown(rows(local)))
