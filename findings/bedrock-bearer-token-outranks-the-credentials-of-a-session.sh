#!/usr/bin/env bash
# boto3 1.44.5: a Bedrock client made from a session with explicit keys signs with neither when the
# environment has AWS_BEARER_TOKEN_BEDROCK: the token is sent in their place, so that calls run as
# another identity than the code names. Remedy: Config(auth_scheme_preference="sigv4"), or unset it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip --disable-pip-version-check install -qq \
  boto3==1.44.5

"$work/venv/bin/python" - <<'PYTHON'
import io
import os
import sys

import boto3
from botocore.awsrequest import AWSResponse
from botocore.config import Config

os.environ["AWS_BEARER_TOKEN_BEDROCK"] = "a-token-of-the-environment"
session = boto3.Session("AKIAEXAMPLE", "secret-key-of-the-code", region_name="us-east-1")


class Body(io.BytesIO):
    def stream(self):
        yield self.read()


def sent(**options):
    """How a call would authenticate; it is answered here and never leaves the process."""
    seen = []

    def answer(request, **_):
        header = request.headers["Authorization"]
        seen.append(header if isinstance(header, str) else header.decode())
        return AWSResponse(request.url, 200, {"Content-Type": "application/json"}, Body(b"{}"))

    client = session.client("bedrock-runtime", **options)
    client.meta.events.register("before-send.bedrock-runtime", answer)
    client.invoke_model(modelId="amazon.titan-embed-text-v2:0", body=b"{}")
    return seen[0].partition(" ")[0]


by_default = sent()
preferred = sent(config=Config(auth_scheme_preference="sigv4"))
print(f"seen: a session with explicit keys sends {by_default}; with the preference {preferred}")
sys.exit(0 if (by_default, preferred) == ("Bearer", "AWS4-HMAC-SHA256") else "changed")
PYTHON
