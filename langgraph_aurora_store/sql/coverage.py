"""Whether the vectors in the database are those that a search by meaning needs.

A search finds no item without a vector, and ranks by chance what another model has embedded.
Neither is an error of any statement, so both are counted when a store first uses its tables:
exactly in a small table, by a sample of its pages in a large one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from langgraph.store.base import tokenize_path

from langgraph_aurora_store.sql.conditions import ALIVE
from langgraph_aurora_store.sql.flow import Flow, Statement, Transaction
from langgraph_aurora_store.sql.store_tables import StoreTables

# 4 MB of each table: some 5,000 items of 800 bytes, read in milliseconds.
_SAMPLED_PAGES = 500

_PERCENT = """
(SELECT least(100::float8, 100::float8 * {pages}::float8 * 8192::float8
              / greatest(pg_catalog.pg_relation_size('{name}'::regclass), 1)::float8))
"""

_COVERAGE = """
SELECT {items_percent}, items.counted, items.without_vector,
       {vectors_percent}, vectors.counted, vectors.of_another_model
FROM (
    SELECT pg_catalog.count(*) AS counted,
           pg_catalog.count(*) FILTER (WHERE NOT EXISTS (
               SELECT FROM {vectors} AS v WHERE v.prefix = s.prefix AND v.key = s.key
           )) AS without_vector
    FROM {store} AS s TABLESAMPLE SYSTEM ({items_percent})
    WHERE {alive} AND {has_text}
) AS items, (
    SELECT pg_catalog.count(*) AS counted,
           pg_catalog.count(*) FILTER (
               WHERE v.model_hash <> %(model_hash)s::bytea AND v.hashed_at = v.updated_at
           ) AS of_another_model
    FROM {vectors} AS v TABLESAMPLE SYSTEM ({vectors_percent})
) AS vectors
"""

# What has text to embed, as `texts_of` finds it: no null, and no text of white space only.
_IS_TEXT = """ ? ((@.type() == "string" && @ like_regex "\\\\S")
 || (@.type() != "string" && @.type() != "null"))"""


class Coverage(NamedTuple):
    """Items with text in the indexed fields, and vectors; estimates where a table was sampled.

    ``of_another_model`` are vectors that a store with another embedding model has written.
    """

    items: int
    without_vector: int
    vectors: int
    of_another_model: int
    is_sampled: bool


def inspect_coverage(tables: StoreTables) -> Flow[Coverage]:
    """Count, in one round trip that reads 500 pages of each table at most."""
    ((row,),) = yield Transaction((statement(tables),))
    items_percent, items, without_vector, vectors_percent, vectors, of_another_model = row
    of_items, of_vectors = 100 / items_percent, 100 / vectors_percent
    return Coverage(
        items=round(items * of_items),
        without_vector=round(without_vector * of_items),
        vectors=round(vectors * of_vectors),
        of_another_model=round(of_another_model * of_vectors),
        is_sampled=min(items_percent, vectors_percent) < 100,
    )


def statement(tables: StoreTables) -> Statement:
    """The statement that counts."""
    paths = list(dict.fromkeys(path for f in tables.indexed.fields for path in json_paths(f)))
    exists = "pg_catalog.jsonb_path_exists(s.value, %(path{})s::jsonpath)"
    text = _COVERAGE.format(
        store=tables.store,
        vectors=tables.vectors,
        alive=ALIVE,
        items_percent=_percent(tables.store),
        vectors_percent=_percent(tables.vectors),
        has_text=f"({' OR '.join(exists.format(n) for n in range(len(paths)))})",
    )
    params = {f"path{n}": path + _IS_TEXT for n, path in enumerate(paths)}
    return Statement(text, {**params, "model_hash": tables.model_hash})


def json_paths(field: str) -> Iterator[str]:
    """A path of LangGraph's to a field, as PostgreSQL's; several where it names several fields."""
    paths = ["$"]
    for step in [] if field == "$" else tokenize_path(field):
        paths = [path + way for path in paths for way in _ways(step)]
    yield from paths


def _ways(step: str) -> Iterator[str]:
    if step == "*":
        yield ".**{1}"
    elif step.startswith("{"):
        yield from (f".{json.dumps(name.strip())}" for name in step[1:-1].split(","))
    elif step.startswith("[-"):
        yield f"[last - {int(step[2:-1]) - 1}]"
    elif step.startswith("["):
        yield step
    else:
        yield f".{json.dumps(step)}"


def _percent(table: str) -> str:
    return _PERCENT.format(pages=_SAMPLED_PAGES, name=table.replace("'", "''"))
