"""Embeddings beside LangChain's, with the real SDKs, against local services in their own processes.

Each service takes 50 ms for any request. The left column is ``langchain_aws.BedrockEmbeddings`` or
``langchain_openai.OpenAIEmbeddings`` as they come, on the same texts in the same run; the floor
calls the SDK in as many threads as there may be requests, and nothing else.
"""

import asyncio
import logging
import math
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import median
from time import perf_counter

import boto3
import orjson
from botocore.config import Config
from langchain_aws import BedrockEmbeddings as LangChainBedrock
from langchain_openai import OpenAIEmbeddings as LangChainOpenAI
from pydantic import SecretStr

from bench.table import Row, as_markdown, timed_ms
from langgraph_aurora_store.embeddings import BedrockEmbeddings, OpenAIEmbeddings

LATENCY_S = 0.05
CONCURRENCY = 16
TITAN = "amazon.titan-embed-text-v2:0"
COHERE = "cohere.embed-english-v3"
SMALL = "text-embedding-3-small"
KEY = "sk-local-0123456789"  # the key the local service knows
SESSION = boto3.Session("AKIDEXAMPLE", "secret", region_name="us-east-1")


def rows(cluster: object = None) -> list[Row]:  # noqa: ARG001  # as every part of the benchmark
    """All figures in milliseconds; needs no database."""
    # LangChain logs each response's metadata at INFO.
    logging.getLogger("langchain_aws").setLevel(logging.WARNING)
    with service("bedrock") as bedrock, service("openai") as openai:
        return [*titan(bedrock), *cohere(bedrock), *small(openai), *again(bedrock)]


@contextmanager
def service(name: str) -> Iterator[str]:
    """The address of a local service, running in a process of its own."""
    command = [sys.executable, "-m", f"tests.support.{name}_service", "--latency", str(LATENCY_S)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


def titan(url: str) -> list[Row]:
    """A model that takes one text a request."""
    texts = memories(200)
    ours = BedrockEmbeddings(TITAN, session=SESSION, endpoint_url=url)
    theirs = LangChainBedrock(client=client(url), model_id=TITAN)
    with ThreadPoolExecutor(CONCURRENCY) as threads:
        direct = client(url)
        floor = timed(lambda: list(threads.map(lambda text: invoke(direct, text), texts)))
    least = math.ceil(len(texts) / CONCURRENCY) * LATENCY_S * 1000
    most = 1.1 * len(texts) / CONCURRENCY * LATENCY_S * 1000
    sync = timed(lambda: ours.embed_documents(texts))
    loop = atimed(lambda: ours.aembed_documents(texts))
    aim = f"≤ {most:.1f} (13 rounds take {least:.0f})"
    return [
        Row(
            "200 texts, Titan v2, beside LangChain",
            "ms",
            sync,
            timed(lambda: theirs.embed_documents(texts), runs=1),
            floor=floor,
            floor_is="boto3 in 16 threads",
            aim=aim,
            holds=sync <= most,
        ),
        Row(
            "the same, asyncio",
            "ms",
            loop,
            atimed(lambda: theirs.aembed_documents(texts), runs=1),
            floor=floor,
            floor_is="boto3 in 16 threads",
            aim=aim,
            holds=loop <= most,
        ),
    ]


def cohere(url: str) -> list[Row]:
    """A model that takes 96 texts a request."""
    texts = memories(960)
    ours = BedrockEmbeddings(COHERE, session=SESSION, endpoint_url=url)
    theirs = LangChainBedrock(client=client(url), model_id=COHERE)
    return [
        Row(
            "960 texts, Cohere v3, beside LangChain",
            "ms",
            timed(lambda: ours.embed_documents(texts)),
            timed(lambda: theirs.embed_documents(texts), runs=3),
        )
    ]


def small(url: str) -> list[Row]:
    """OpenAI, whose requests hold many texts."""

    def theirs() -> LangChainOpenAI:
        # Bound to the event loop it was first used in, so each measurement has its own.
        return LangChainOpenAI(
            model=SMALL,
            api_key=SecretStr(KEY),
            base_url=f"{url}/v1",
            check_embedding_ctx_length=False,
        )

    ours = OpenAIEmbeddings(SMALL, api_key=KEY, base_url=f"{url}/v1")
    found = []
    for texts in (memories(200), memories(5000)):
        found += [
            Row(
                f"{len(texts):,} texts, OpenAI 3-small, beside LangChain",
                "ms",
                timed(partial(ours.embed_documents, texts), runs=5),
                timed(partial(theirs().embed_documents, texts), runs=5),
            ),
            Row(
                "the same, asyncio",
                "ms",
                atimed(partial(ours.aembed_documents, texts), runs=5),
                atimed(partial(theirs().aembed_documents, texts), runs=5),
            ),
        ]
    return found


def again(url: str) -> list[Row]:
    """A query that was asked before, as LangMem does for every window."""
    ours = BedrockEmbeddings(TITAN, session=SESSION, endpoint_url=url)
    theirs = LangChainBedrock(client=client(url), model_id=TITAN)
    return [
        Row(
            "a query asked before, Titan v2, beside LangChain",
            "ms",
            timed(lambda: ours.embed_query("tea"), runs=9),
            timed(lambda: theirs.embed_query("tea"), runs=9),
        )
    ]


def memories(count: int) -> list[str]:
    """Distinct texts of the length of a memory."""
    return [
        f"memory {number}: likes {number % 7} sugars in tea, and walks at {number % 24} o'clock"
        for number in range(count)
    ]


def client(url: str) -> object:
    """A boto3 client whose connection pool is as wide as ours."""
    pool = Config(max_pool_connections=CONCURRENCY)
    return SESSION.client("bedrock-runtime", endpoint_url=url, config=pool)


def invoke(direct: object, text: str) -> list[float]:
    """One request with nothing around it."""
    body = orjson.dumps({"inputText": text, "dimensions": 1024, "normalize": True})
    answer = direct.invoke_model(modelId=TITAN, body=body)  # type: ignore[attr-defined]  # boto3
    return list(orjson.loads(answer["body"].read())["embedding"])


def timed(work: Callable[[], object], *, runs: int = 11) -> float:
    """The median duration of a call in milliseconds, after one that makes the client."""
    return timed_ms(work, runs=runs, warm_up=1)


def atimed(work: Callable[[], Awaitable[object]], *, runs: int = 11) -> float:
    """`timed` for a coroutine function, all calls on one event loop."""

    async def durations() -> list[float]:
        found = []
        for _ in range(runs + 1):
            begun = perf_counter()
            await work()
            found.append(perf_counter() - begun)
        return found[1:]

    return median(asyncio.run(durations())) * 1000


if __name__ == "__main__":
    print(__doc__)
    print(as_markdown(rows()).replace("PostgresStore", "LangChain").replace("AuroraStore", "ours"))
