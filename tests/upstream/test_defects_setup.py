"""What the parent's expiry and its setup get wrong and ours right."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from langgraph_aurora_store.errors import ConfigurationError, SchemaDriftError
from tests.support.parent_comparison import Side, side
from tests.support.store_kinds import DIMS, Letters

__all__ = ["side"]

LONG_S = 60.0


def index(**changes: Any) -> dict[str, Any]:
    """Settings of an indexed store."""
    config = {"dims": DIMS, "embed": Letters(), "fields": ["text"], **changes}
    config["embed"] = Letters(config["dims"])
    return {"index": config}


# expiry


@pytest.mark.parametrize("ttl", [0.5, 1.5, 2.25])
def test_ttl_a_fraction_of_a_minute_survives_a_renewal(side: Side, ttl: float) -> None:
    """The parent rounds it into an INT: 0.5 becomes 0, and the first read ends the item."""
    with side.store(ttl={}) as store:
        store.put(("a",), "k", {}, ttl=ttl)
        side.sql("UPDATE store SET expires_at = now() + interval '1 s'")
        store.get(("a",), "k", refresh_ttl=True)
        ((left,),) = side.sql("SELECT extract(epoch FROM expires_at - now()) / 60 FROM store")
        with side.only_ours():
            assert float(left) == pytest.approx(ttl, abs=0.1)


def test_ttl_an_expired_item_is_not_returned(side: Side) -> None:
    """The parent returns it, and lists its namespace, until somebody sweeps."""
    with side.store(ttl={}, **index()) as store:
        store.put(("a",), "k", {"text": "tea"}, ttl=10)
        side.sql("UPDATE store SET expires_at = now() - interval '1 s'")
        for read in (
            lambda: store.get(("a",), "k", refresh_ttl=False),
            lambda: store.search(("a",), refresh_ttl=False),
            lambda: store.search(("a",), query="tea", refresh_ttl=False),
            lambda: store.list_namespaces(),
        ):
            with side.only_ours():
                assert not read()


def test_ttl_an_expired_item_is_not_revived(side: Side) -> None:
    """The parent's next read gives it another life."""
    with side.store(ttl={}) as store:
        store.put(("a",), "k", {}, ttl=10)
        side.sql("UPDATE store SET expires_at = now() - interval '1 s'")
        store.get(("a",), "k")
        store.search(("a",))
        with side.only_ours():
            assert side.sql("SELECT expires_at < now() FROM store") == [(True,)]


def test_ttl_reads_write_when_it_matters(side: Side) -> None:
    """20 searches over fresh items: the parent rewrites every row in every search."""
    with side.store(ttl={}) as store:
        for i in range(200):
            store.put(("a",), f"{i}", {"text": "x" * 500}, ttl=10)
        ((before,),) = side.sql("SELECT pg_current_wal_insert_lsn()")
        for _ in range(20):
            assert len(store.search(("a",), limit=200)) == 200
    with side.only_ours():
        query = "SELECT pg_current_wal_insert_lsn() - %s::pg_lsn < 200000"
        assert side.sql(query, before) == [(True,)]


# setup


def test_setup_succeeds_in_many_processes_at_once(side: Side) -> None:
    """Each on a connection of its own; most of the parent's fail, in one of several ways."""
    meeting = threading.Barrier(8)

    def set_up() -> None:
        dsn = side.database.owner_dsn
        with side.blocking_class.from_conn_string(dsn, **index()) as store:
            meeting.wait(LONG_S)
            store.setup()

    with ThreadPoolExecutor(8) as executor:
        calls = [executor.submit(set_up) for _ in range(8)]
    with side.only_ours(psycopg.Error):
        for call in calls:
            call.result()


def test_setup_mends_an_index_that_was_left_invalid(side: Side) -> None:
    """What an interrupted build leaves: the parent finds it there and records it as done."""
    with side.store(**index()):
        pass
    side.sql(
        "UPDATE pg_index SET indisvalid = false"
        " WHERE indexrelid = 'store_vectors_embedding_idx'::regclass"
    )
    side.sql("DELETE FROM vector_migrations WHERE v = 2")
    with side.store(**index()):
        pass
    with side.only_ours():
        assert side.sql(
            "SELECT indisvalid FROM pg_index"
            " WHERE indexrelid = 'store_vectors_embedding_idx'::regclass"
        ) == [(True,)]


async def test_setup_of_the_asyncio_store_makes_no_index_when_flat(side: Side) -> None:
    """The parent's asyncio twin lacks the line that leaves it out."""
    with side.only_ours(ValueError, match="Invalid index_type"):
        async with side.async_store(**index(ann_index_config={"kind": "flat"})) as store:
            await store.aput(("a",), "k", {"text": "tea"})
            assert len(await store.asearch(("a",), query="tea")) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"dims": 2 * DIMS},
        {"ann_index_config": {"vector_type": "halfvec"}},
        {"distance_type": "l2"},
        {"ann_index_config": {"kind": "ivfflat", "lists": 2}},
    ],
    ids=["dims", "vector type", "metric", "index kind"],
)
@pytest.mark.parametrize("at", ["setup", "first use"])
def test_setup_a_changed_index_is_noticed(side: Side, change: dict[str, Any], at: str) -> None:
    """The parent goes on, until a put fails or for ever: slow, or with scores of another metric."""
    with side.store(**index()):
        pass
    with (
        side.only_ours(pytest.fail.Exception),
        pytest.raises(SchemaDriftError),
        side.store(is_set_up=at == "first use", **index(**change)) as store,
    ):
        store.get(("a",), "k")


def test_setup_takes_more_than_2000_dimensions(side: Side) -> None:
    """As halves; the parent fails when the tables are made, and leaves them."""
    with (
        side.only_ours(psycopg.Error, match="2000 dimensions"),
        side.store(**index(dims=3072)) as store,
    ):
        store.put(("a",), "k", {"text": "tea"})
        assert len(store.search(("a",), query="tea")) == 1


def test_setup_needs_no_right_to_create_when_nothing_is_to_do(side: Side) -> None:
    """The parent asks for CREATE TABLE IF NOT EXISTS, which is refused though it exists."""
    with side.store(**index()):
        pass
    role = f"plain_{side.database.name}"
    side.sql(f"CREATE ROLE {role} LOGIN")
    side.sql(f"GRANT rds_iam TO {role}")
    side.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
    dsn = f"{side.database.admin_dsn} user={role}"
    try:
        with (
            side.only_ours(psycopg.errors.InsufficientPrivilege),
            side.blocking_class.from_conn_string(dsn, **index()) as store,
        ):
            store.setup()
            store.put(("a",), "k", {"text": "tea"})
            assert len(store.search(("a",), query="tea")) == 1
    finally:
        side.sql(f"DROP OWNED BY {role}")
        side.sql(f"DROP ROLE {role}")


@pytest.mark.parametrize(
    "settings",
    [
        index(feilds=["text"]),
        index(distance_typ="l2"),
        index(ann_index_config={"knd": "flat"}),
        {"ttl": {"default_tl": 5}},
    ],
    ids=["fields", "distance_type", "kind", "ttl"],
)
def test_setup_a_misspelt_setting_is_an_error(side: Side, settings: dict[str, Any]) -> None:
    """The parent uses the default without a word."""
    with (
        side.only_ours(pytest.fail.Exception),
        pytest.raises(ConfigurationError, match="known"),
        side.store(**settings),
    ):
        pass


def test_setup_fields_may_be_a_tuple(side: Side) -> None:
    """The parent wants a list."""
    with (
        side.only_ours(ValueError, match="must be a list"),
        side.store(**index(fields=("text", "title"))) as store,
    ):
        store.put(("a",), "k", {"title": "tea"})
        assert store.search(("a",), query="tea")[0].score > 0.99
