"""Several queries at once share requests, and each is the query it would be alone."""

import asyncio

import boto3
import pytest

from langgraph_aurora_store import BedrockEmbeddings
from langgraph_aurora_store.embeddings.base import EmbedsQueries
from tests.support.bedrock_service import Bedrock

QUERIES = ["cats", "dogs", "cats", "a third thing"]


def embeddings(service: Bedrock, model: str) -> BedrockEmbeddings:
    return BedrockEmbeddings(
        model,
        session=boto3.Session("AKIAIOSFODNN7EXAMPLE", "secret", region_name="us-east-1"),
        endpoint_url=service.url,
    )


@pytest.mark.parametrize("is_async", [False, True], ids=["blocking", "asyncio"])
def test_queries_share_one_request_where_the_model_takes_many(*, is_async: bool) -> None:
    """Three distinct queries are one request of Cohere's, marked as queries, asked once only."""
    with Bedrock() as service:
        model = embeddings(service, "cohere.embed-english-v3")
        assert isinstance(model, EmbedsQueries)
        for _ in range(2):
            found = (
                asyncio.run(model.aembed_queries(QUERIES))
                if is_async
                else model.embed_queries(QUERIES)
            )
        [request] = service.requests
        assert request["texts"] == ["cats", "dogs", "a third thing"]
        assert request["input_type"] == "search_query"
        assert found == [model.embed_query(query) for query in QUERIES]
        assert found[0] is not found[2]
        model.close()
