"""OpenTelemetry's psycopg instrumentor sees the statements as they are, its comments included."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from langgraph_aurora_store import AuroraStore
from langgraph_aurora_store.local import LocalAurora
from tests.support.database import Database
from tests.support.store_kinds import (
    CLUSTER_KINDS,
    DIMS,
    KINDS,
    Letters,
    arguments,
    opened,
    set_up,
)

DATABASE = "instrumented"
NAMESPACE = ("users", "ada")
COMMENTED = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%traceparent%'"


@pytest.fixture(scope="module")
def cluster(aurora: LocalAurora) -> Iterator[LocalAurora]:
    """The session's cluster, with a store's tables in a database of this module's."""
    with set_up(aurora, DATABASE, index={"embed": Letters(), "dims": DIMS}):
        yield aurora


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """What the instrumentor records of connections made meanwhile, with comments switched on."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = PsycopgInstrumentor()
    classes = (psycopg.Connection, psycopg.AsyncConnection)
    originals = [vars(cls)["connect"] for cls in classes]
    instrumentor.instrument(tracer_provider=provider, enable_commenter=True)
    yield exporter
    instrumentor.uninstrument()
    for cls, original in zip(classes, originals, strict=True):
        # It leaves a method bound to psycopg's class, by which subclasses connect as that one.
        cls.connect = original
    provider.shutdown()


@pytest.mark.parametrize("kind", [*KINDS, *CLUSTER_KINDS])
async def test_every_operation_works_with_comments_in_its_statements(
    kind: str, cluster: LocalAurora, spans: InMemorySpanExporter
) -> None:
    """A statement of another type than text would reach the server as Python writes it."""
    index = {"embed": Letters(), "dims": DIMS}
    async with opened(kind, cluster, DATABASE, index=index) as store:
        await store.setup()
        await store.put(NAMESPACE, "likes", {"text": "tea"})
        assert (await store.get(NAMESPACE, "likes")).value == {"text": "tea"}
        assert [item.key for item in await store.search(NAMESPACE, query="tea")] == ["likes"]
        assert [item.key for item in await store.search(NAMESPACE)] == ["likes"]
        assert await store.list_namespaces() == [NAMESPACE]
        assert await store.count(NAMESPACE) == 1
        await store.delete(NAMESPACE, "likes")
        assert await store.get(NAMESPACE, "likes") is None
        assert await store.delete_namespace(NAMESPACE) == 0
        assert await store.sweep_ttl() == 0
    names = {span.name for span in spans.get_finished_spans()}
    assert {"SELECT", "INSERT", "WITH"} <= names
    assert DATABASE not in names, "a span named after its database is one of a statement unread"


@pytest.mark.parametrize("kind", CLUSTER_KINDS)
async def test_span_of_a_refused_write_holds_no_value(
    kind: str, cluster: LocalAurora, spans: InMemorySpanExporter
) -> None:
    """PostgreSQL's detail would quote the failing row, and the span is written where it rises."""
    texts: list[str] = []
    async with opened(kind, cluster, DATABASE) as store:
        with psycopg.connect(cluster.admin_dsn_for(DATABASE), autocommit=True) as admin:
            admin.execute("ALTER TABLE store ADD CONSTRAINT no_locker CHECK (key <> 'locker')")
            try:
                # The write is a pipeline's, where it is a matter of time which statement's
                # execute, or the pipeline's end without a span, raises the error.
                for _ in range(100):
                    with pytest.raises(psycopg.errors.CheckViolation):
                        await store.put(NAMESPACE, "locker", {"text": "the code is 7431"})
                    events = [event for span in spans.get_finished_spans() for event in span.events]
                    texts = [str(dict(event.attributes or {})) for event in events]
                    if texts:
                        break
            finally:
                admin.execute("ALTER TABLE store DROP CONSTRAINT no_locker")
    assert any("no_locker" in text for text in texts)
    assert not any("7431" in text for text in texts)


def test_statements_that_differ_by_their_comment_are_not_prepared(
    cluster: LocalAurora, spans: InMemorySpanExporter
) -> None:
    """A trace's id in the comment makes each text new, and each would stay with the server."""
    database = Database(cluster, DATABASE)
    with AuroraStore.from_cluster(**arguments(database)) as store:
        for number in range(20):
            with trace.use_span(a_span_of_trace(number + 1)):
                store.get(NAMESPACE, "likes")
        with store.connection() as conn:
            query = (
                "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%traceparent%'"
            )
            ((prepared,),) = conn.execute(query, prepare=False).fetchall()
    assert len(spans.get_finished_spans()) >= 20
    assert prepared == 0


def a_span_of_trace(trace_id: int) -> trace.Span:
    """A span that is recorded elsewhere and whose id statements are to carry."""
    return trace.NonRecordingSpan(
        trace.SpanContext(trace_id, span_id=7, is_remote=True, trace_flags=trace.TraceFlags(1))
    )
