"""Run the example: the server as `langgraph dev` runs it, and a client that uses it.

Without AURORA_CLUSTER it starts a local Aurora; without OPENAI_API_KEY, a stand-in for the
embedding model.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

sys.path.append(str(Path(__file__).parents[1]))  # for local_services

from local_services.stand_ins import stand_ins

HERE = Path(__file__).parent
INSTALL = "pip install 'langgraph-aurora-store[all]' 'langgraph-cli[inmem]'"
START_S = 60
STOP_S = 15


@contextmanager
def serving(
    environment: Mapping[str, str], *, folder: Path = HERE, workers: int = 1
) -> Iterator[str]:
    """`langgraph dev` on a free port; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = ["--no-browser", "--no-reload", f"--port={port}", f"--n-jobs-per-worker={workers}"]
    server = subprocess.Popen(  # noqa: S603 - our own files
        [sys.executable, "-m", "langgraph_cli", "dev", *options],
        cwd=folder,
        env=environment,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_it_answers(url, server)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_it_answers(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/ok").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the server did not start; its own output above says why")


def main() -> None:
    if importlib.util.find_spec("langgraph_cli") is None:
        raise SystemExit(f"the server is not installed; {INSTALL}")
    with stand_ins(os.environ) as services:
        print(f"Database: {services.database}")
        print(f"Models: {services.models}", flush=True)
        environment = os.environ | services.environment
        with serving(environment | {"LOG_LEVEL": "WARNING"}) as url:
            client = [sys.executable, HERE / "client.py", url]
            sys.exit(subprocess.run(client, check=False).returncode)  # noqa: S603


if __name__ == "__main__":
    main()
