"""A configuration that differs from the database is refused, with both values and a way out."""

import re

import psycopg
import pytest

from langgraph_aurora_store.config import IndexSettings
from langgraph_aurora_store.errors import SchemaDriftError, SchemaError
from langgraph_aurora_store.sql.schema.drift import check
from langgraph_aurora_store.sql.schema.setup import setup
from langgraph_aurora_store.sql.store_tables import StoreTables
from tests.support.flow_runner import drive
from tests.support.relations import connect, index_definition, parent, relations

AS_IT_IS = {"dims": 3, "vector_type": "vector", "distance": "cosine", "kind": "hnsw"}
DIFFERENCES = [
    ({"dims": 4}, r"means embeddings of vector\(4\), but .* holds vector\(3\)"),
    ({"vector_type": "halfvec"}, r"of halfvec\(3\), but .* holds vector\(3\)"),
    ({"dims": 3072, "vector_type": "halfvec"}, r"of halfvec\(3072\), but .* holds vector\(3\)"),
    ({"distance": "l2"}, "kind 'hnsw' and distance_type 'l2', but .* 'hnsw' for 'cosine'"),
    ({"distance": "inner_product"}, "distance_type 'inner_product', but .* for 'cosine'"),
    ({"kind": "ivfflat"}, "kind 'ivfflat' .* is of kind 'hnsw'"),
    ({"kind": "flat"}, "kind 'flat' .* is of kind 'hnsw'"),
]


def tables(**settings):
    return StoreTables(index=IndexSettings(**{**AS_IT_IS, **settings}))


@pytest.fixture
def owner(database):
    """The owner's connection to a database that holds vectors of three dimensions by cosine."""
    with connect(database.owner_dsn) as conn:
        drive(setup(tables()), conn)
        yield conn


@pytest.mark.parametrize("flow", [setup, check])
@pytest.mark.parametrize(("settings", "message"), DIFFERENCES)
def test_a_difference_is_named_and_nothing_is_touched(owner, flow, settings, message):
    """At setup() and at first use, before a put fails or a search misses."""
    before = relations(owner)
    with pytest.raises(SchemaDriftError, match=message) as caught:
        drive(flow(tables(**settings)), owner)
    assert "configure" in str(caught.value)
    assert "setup()" in str(caught.value)
    assert isinstance(caught.value, psycopg.ProgrammingError)
    assert relations(owner) == before


@pytest.mark.parametrize(("settings", "message"), DIFFERENCES)
def test_the_statements_of_the_message_settle_it(owner, settings, message):
    """An operator runs what the message says, then setup(), and the configuration holds."""
    other = tables(**settings)
    with pytest.raises(SchemaDriftError, match=message) as caught:
        drive(check(other), owner)
    for statement in re.findall(r"(?:DROP|TRUNCATE|ALTER)[^;]*", str(caught.value)):
        owner.execute(statement)
    drive(setup(other), owner)
    drive(check(other), owner)


def test_vectors_of_the_same_length_survive_a_change_of_type(database, owner):
    """Only a change of dimensions asks for new embeddings."""
    with parent(database.owner_dsn) as store:
        store.put(("a",), "k", {"text": "hello"})
    with pytest.raises(SchemaDriftError) as caught:
        drive(check(tables(vector_type="halfvec")), owner)
    assert "TRUNCATE" not in str(caught.value)
    for statement in re.findall(r"(?:DROP|ALTER)[^;]*", str(caught.value)):
        owner.execute(statement)
    assert owner.execute("SELECT embedding::text FROM store_vectors").fetchall() == [("[5,1,2]",)]


def test_the_parents_table_differs_like_ours(database):
    """What the parent set up with another metric is told apart from what is configured."""
    with parent(database.owner_dsn, distance_type="l2") as store:
        store.setup()
    with connect(database.owner_dsn) as conn, pytest.raises(SchemaDriftError, match="for 'l2'"):
        drive(setup(tables()), conn)


def test_a_dropped_extension_is_told_and_the_statements_of_the_message_settle_it(database, owner):
    """It took the column of embeddings along; a store without an index needs none."""
    with connect(database.admin_dsn) as admin:
        admin.execute("DROP EXTENSION vector CASCADE")
        admin.execute("CREATE EXTENSION vector")
    for flow in (setup, check):
        with pytest.raises(SchemaError, match="has lost its column 'embedding'") as caught:
            drive(flow(tables()), owner)
    drive(check(StoreTables()), owner)
    owner.execute(*re.findall(r"DROP TABLE [^;]*", str(caught.value)))
    drive(setup(tables()), owner)
    drive(check(tables()), owner)


def test_an_index_by_another_name_counts(owner):
    """An operator may have built the right one beside ours, or instead of it."""
    owner.execute("DROP INDEX store_vectors_embedding_idx")
    owner.execute("CREATE INDEX by_hand ON store_vectors USING hnsw (embedding vector_cosine_ops)")
    drive(setup(tables()), owner)
    assert index_definition(owner, "store_vectors_embedding_idx") is None


def test_one_index_of_several_is_enough(owner):
    """A table may serve two metrics while a team moves from one to the other."""
    owner.execute("CREATE INDEX by_hand ON store_vectors USING hnsw (embedding vector_l2_ops)")
    drive(check(tables()), owner)
    drive(check(tables(distance="l2")), owner)


def test_build_parameters_are_no_difference(owner):
    """They change how an index was built, not what it answers."""
    drive(check(tables(m=32, ef_construction=128)), owner)


def test_a_store_without_index_works_beside_vectors(owner):
    """It neither reads nor writes them, so their shape is not its business."""
    drive(check(StoreTables()), owner)
