"""The clock that botocore signs by, of every version that is allowed."""

from datetime import datetime
from types import SimpleNamespace

import botocore.auth
import pytest


def set_signing_clock(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    """Stop it at a moment, which is naive and in UTC as botocore's own."""
    if hasattr(botocore.auth, "get_current_datetime"):
        monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: moment)
        return

    class Stopped(datetime):  # before botocore 1.41
        @classmethod
        def utcnow(cls) -> datetime:
            return moment

    monkeypatch.setattr("botocore.auth.datetime", SimpleNamespace(datetime=Stopped))
