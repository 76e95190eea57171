"""What index= and ttl= mean, and which mistakes in them are refused."""

import pytest

from langgraph_aurora_store.config import IndexSettings, TtlSettings
from langgraph_aurora_store.errors import ConfigurationError

read_index = IndexSettings.from_config
read_ttl = TtlSettings.from_config


def test_defaults_are_the_parents():
    """Nothing but dims: the whole value, cosine, an HNSW index over plain vectors."""
    settings = read_index({"dims": 3, "embed": object()})
    assert settings == IndexSettings(
        dims=3, fields=("$",), distance="cosine", vector_type="vector", kind="hnsw"
    )


@pytest.mark.parametrize("fields", ["text", ["text"], ("text",)])
def test_fields_are_a_path_a_list_or_a_tuple(fields):
    """One path needs no list, and a tuple is as good as a list."""
    assert read_index({"dims": 3, "fields": fields}).fields == ("text",)


def test_no_fields_means_the_whole_value():
    """An empty list is what it is for the parent and for InMemoryStore: everything."""
    assert read_index({"dims": 3, "fields": []}).fields == ("$",)


def test_a_field_named_twice_is_indexed_once():
    """Two vectors of the same field would collide in the table's primary key."""
    assert read_index({"dims": 3, "fields": ["b", "a", "b"]}).fields == ("b", "a")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"dims": 3, "feilds": ["a"]}, r"unknown key 'feilds'; did you mean 'fields'\?"),
        ({"dims": 3, "zzz": 1}, "known: ann_index_config, dims, distance_type, embed, fields"),
        ({"dims": 3, "ann_index_config": {"king": "hnsw"}}, "did you mean 'kind'"),
        ({"dims": 3, "ann_index_config": ["hnsw"]}, "ann_index_config is a mapping"),
        ({"dims": 3, "ann_index_config": {"kind": "hsnw"}}, "one of hnsw, ivfflat, flat"),
        ({"dims": 3, "ann_index_config": {"vector_type": "bit"}}, "one of vector, halfvec"),
        ({"dims": 3, "distance_type": "dot"}, "one of cosine, l2, inner_product, not 'dot'"),
        ({"dims": 3, "fields": 7}, "a path or a list of paths"),
        ({"dims": 3, "fields": ["a", " "]}, "a path that is not text: ' '"),
        ({"dims": 3, "ann_index_config": {"kind": "flat", "m": 8}}, "'m' has no meaning"),
        ({"dims": 3, "ann_index_config": {"lists": 8}}, "'lists' has no meaning"),
        ({"dims": 3, "ann_index_config": {"m": 1}}, "m is a whole number from 2 to 100"),
        (
            {"dims": 3, "ann_index_config": {"m": 40, "ef_construction": 64}},
            "m=40 needs an ef_construction of at least 80, not 64",
        ),
        (
            {"dims": 3, "ann_index_config": {"kind": "ivfflat", "lists": 8, "nlist": 9}},
            "'lists' and 'nlist' are one setting",
        ),
        ({}, "dimensions are unknown"),
        ({"dims": 0}, "dims is a whole number from 1 to 16000, not 0"),
        ({"dims": True}, "dims is a whole number"),
        ({"dims": "3"}, "dims is a whole number"),
        ({"dims": 16_001}, "dims is a whole number"),
    ],
)
def test_a_mistake_is_refused_and_named(index, message):
    """Each mistake is a ConfigurationError, which is a ValueError, that says what to correct."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_index(index)
    assert isinstance(caught.value, ValueError)


def test_what_the_parent_derived_is_not_a_mistake():
    """The parent stores what it derives in a copy of the mapping; that copy can be passed on."""
    assert read_index({"dims": 3, "__tokenized_fields": [], "__estimated_num_vectors": 1}).dims == 3


@pytest.mark.parametrize("key", ["lists", "nlist"])
def test_lists_has_two_spellings(key):
    """pgvector says lists, the parent says nlist."""
    assert read_index({"dims": 3, "ann_index_config": {"kind": "ivfflat", key: 9}}).lists == 9


@pytest.mark.parametrize(("dims", "vector_type"), [(2000, "vector"), (2001, "halfvec")])
def test_vectors_too_long_for_an_index_become_halfvec(dims, vector_type):
    """An index ends at 2,000 dimensions of vector, so longer ones are stored as halfvec."""
    assert read_index({"dims": dims}).vector_type == vector_type


def test_flat_keeps_full_precision_at_any_length():
    """Without an index there is no limit to stay under, so nothing is rounded."""
    assert read_index({"dims": 3072, "ann_index_config": {"kind": "flat"}}).vector_type == "vector"


def test_a_chosen_vector_type_that_cannot_be_indexed_is_refused():
    """What the user wrote is not overruled: the error offers both ways out."""
    with pytest.raises(ConfigurationError, match=r"2000 dimensions of vector.*halfvec.*flat"):
        read_index({"dims": 3072, "ann_index_config": {"vector_type": "vector"}})


def test_over_4000_dims_only_flat_is_left():
    """No index holds that many, and the error does not offer halfvec as a way out."""
    with pytest.raises(ConfigurationError, match="4000 dimensions of halfvec, not 4001") as caught:
        read_index({"dims": 4001})
    assert "'kind': 'flat'" in str(caught.value)
    assert "'vector_type': 'halfvec'" not in str(caught.value)


def test_dims_come_from_the_model_when_the_index_is_silent():
    """A known model spares the user the number."""
    assert read_index({}, 1024).dims == 1024


def test_dims_that_differ_from_the_models_are_refused():
    """Both numbers are in the message."""
    with pytest.raises(ConfigurationError, match=r"512 dims.*returns 1024"):
        read_index({"dims": 512}, 1024)


def test_no_ttl_means_no_expiry():
    """None and an empty mapping are the same."""
    assert read_ttl(None) == read_ttl({}) == TtlSettings()


def test_ttl_takes_fractions_of_a_minute():
    """Half a minute is half a minute."""
    settings = read_ttl({"default_ttl": 0.5, "sweep_interval_minutes": 2, "omit_expired": True})
    assert (settings.default_ttl, settings.sweep_interval_minutes) == (0.5, 2.0)


@pytest.mark.parametrize(
    ("ttl", "message"),
    [
        ({"default_tll": 1}, "did you mean 'default_ttl'"),
        ({"default_ttl": 0}, "a positive number of minutes or None, not 0"),
        ({"default_ttl": float("nan")}, "a positive number"),
        ({"default_ttl": float("inf")}, "a positive number"),
        ({"default_ttl": True}, "a positive number"),
        ({"sweep_interval_minutes": "5"}, "a positive number of minutes or None, not '5'"),
        ({"refresh_on_read": "no"}, "refresh_on_read is True or False, not 'no'"),
    ],
)
def test_a_mistake_in_ttl_is_refused_and_named(ttl, message):
    """Each mistake is a ConfigurationError that says what to correct."""
    with pytest.raises(ConfigurationError, match=message):
        read_ttl(ttl)
