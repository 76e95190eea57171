"""What `make demo` runs, as a newcomer would see it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.bedrock_service import Bedrock

DEMO = Path(__file__).parents[2] / "examples" / "quickstart" / "demo.py"


def demo(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, DEMO],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_demo_recalls_in_another_process_what_one_user_said() -> None:
    """Ada's memories make her answer, Grace gets none of them, and the rows are shown."""
    shown = demo()
    said = [line.partition("agent: ")[2] for line in shown.splitlines() if "agent: " in line]
    to_ada, to_grace = said[-2:]
    interests = ("cloud services", "AWS", "Azure", "AI agents")
    assert sum(interest in to_ada for interest in interests) == 3
    assert not any(interest in to_grace for interest in interests)
    assert shown.count("chat.ada") >= 8
    assert "The thread of ada holds 4 lines." in shown
    assert "The thread of grace holds 0 lines." in shown
    assert shown.count("chat with ada") >= 3
    assert "local Aurora" in shown


def test_demo_embeds_with_bedrock_where_there_are_aws_credentials() -> None:
    """It says so, and the local Aurora accepts tokens signed with those credentials."""
    with Bedrock() as bedrock:
        shown = demo(
            AWS_ACCESS_KEY_ID="AKIAIOSFODNN7EXAMPLE",
            AWS_SECRET_ACCESS_KEY="not a real one ?&=%/:@'",
            AWS_ENDPOINT_URL_BEDROCK_RUNTIME=bedrock.url,
        )
        assert "amazon.titan-embed-text-v2:0" in shown
        assert set(bedrock.models) == {"amazon.titan-embed-text-v2:0"}
        assert "1024" in shown
