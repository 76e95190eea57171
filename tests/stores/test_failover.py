"""Callers go on through failovers, restarts, cuts and lost replies, and what they see holds."""

import pytest

from bench.failover import SHORT, parents, soak


def test_callers_see_nothing_of_what_happens_to_the_cluster():
    """No error, no write lost or undone, nothing embedded twice; threads and tasks together."""
    record = soak(SHORT, duration_s=12, writers=2, readers=2)
    found = record.summary()
    assert found["errors to callers"] == 0, found
    assert found["unexplained reads"] == found["items found twice"] == 0, found
    assert found["texts embedded twice"] == 0, found
    assert found["replies lost"] > 0
    assert len(record.faults) == len(SHORT)
    assert max(record.recoveries_s) < 5, found
    assert found["recovery median s"] < 1


@pytest.mark.parametrize("fault", [SHORT[0]], ids=lambda fault: fault[0])
def test_the_same_is_seen_by_callers_of_the_parent(fault):
    """The parent's get errors, so the run above does to a store what it says."""
    record = soak([fault], duration_s=3, stores=parents, writers=2, readers=2)
    assert record.errors
    assert record.summary()["unexplained reads"] == 0
