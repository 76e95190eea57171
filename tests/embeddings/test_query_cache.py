"""The cache of query vectors: bounded in bytes, and no text is kept."""

import gc

from langgraph_aurora_store.embeddings.query_cache import QueryCache
from tests.support import bedrock_service as bedrock
from tests.support import openai_service as openai
from tests.support.embedding_rigs import bedrock_rig, openai_rig

QUESTION = "does Ada have the illness that she asked about"


def reachable_text(owner: object) -> set[str]:
    """Every text that can be reached from an object, as a dump of memory would show it."""
    seen: dict[int, object] = {}
    pending = [owner]
    while pending:
        found = pending.pop()
        if id(found) not in seen and not isinstance(found, type):
            seen[id(found)] = found
            pending += gc.get_referents(found)
    return {found for found in seen.values() if isinstance(found, str)}


def test_the_text_of_a_question_is_not_kept() -> None:
    """Not in the cache itself; two caches name one text differently."""
    one, other = QueryCache(4), QueryCache(4)
    for cache in (one, other):
        cache.put(QUESTION, [1.0, 2.0])
        assert cache.get(QUESTION) == [1.0, 2.0]
        assert cache.get(QUESTION + "?") is None
    assert QUESTION not in reachable_text(one._vectors)
    assert set(one._vectors) != set(other._vectors)


def test_an_embeddings_object_keeps_no_question_of_a_user() -> None:
    """Neither service, after a query that is answered from the cache afterwards."""
    with bedrock.Bedrock() as one, openai.OpenAI() as two:
        for rig in (bedrock_rig(one, "sync"), openai_rig(two, "sync")):
            embeddings = rig.embeddings(query_cache_size=8)
            text = "".join([QUESTION, " again"])
            first = embeddings.embed_query(text)
            assert embeddings.embed_query(text) == first
            assert len(rig.service.requests) == 1
            assert text not in reachable_text(embeddings._queries)
            embeddings.close()


def test_vectors_are_bounded_in_bytes() -> None:
    """The oldest go first, however many the cache may hold; a single one may be too large."""
    cache = QueryCache(1_000_000, max_bytes=800)
    for number in range(50):
        cache.put(f"question {number}", [float(number)] * 10)
    kept = [number for number in range(50) if cache.get(f"question {number}") is not None]
    assert kept == list(range(40, 50))
    cache.put("question 49", [0.0] * 10)
    assert cache.get("question 40") == [40.0] * 10
    cache.put("long", [0.0] * 101)
    assert cache.get("long") is None
    cache.put("short", [1.0])
    assert cache.get("short") == [1.0]


def test_a_size_of_none_keeps_nothing() -> None:
    """Not even a digest."""
    cache = QueryCache(0)
    cache.put(QUESTION, [1.0])
    assert cache.get(QUESTION) is None
    assert not cache._vectors
