"""A boto3 session whose RDS is the local one; everything else goes where boto3 would send it."""

from __future__ import annotations

import os
from typing import Any

import boto3
import botocore.session
from typing_extensions import override

from langgraph_aurora_store.local.tokens import Keys

# Where botocore looks for a setting: in the configuration file, in the environment, its default.
HERMETIC = {
    "profile": (None, None, None, None),
    "config_file": (None, None, os.devnull, None),
    "credentials_file": (None, None, os.devnull, None),
}


class LocalSession(boto3.Session):
    """A session with the keys of a local Aurora; reads no profile and no file of the user's.

    Args:
        keys: the AWS keys that the proxy verifies tokens with.
        region: the session's region.
        rds_url: where its ``rds`` clients go unless told otherwise.
    """

    def __init__(self, *, keys: Keys, region: str, rds_url: str) -> None:
        core = botocore.session.Session(session_vars=HERMETIC)
        super().__init__(
            aws_access_key_id=keys.access_key,
            aws_secret_access_key=keys.secret_key,
            aws_session_token=keys.session_token,
            region_name=region,
            botocore_session=core,
        )
        self._rds_url = rds_url

    @override
    def client(self, service_name: str, *args: Any, **kwargs: Any) -> Any:
        # endpoint_url is the sixth positional parameter
        if service_name == "rds" and len(args) < 5 and kwargs.get("endpoint_url") is None:
            kwargs["endpoint_url"] = self._rds_url
        return super().client(service_name, *args, **kwargs)  # type: ignore[call-overload]  # one overload per service
