"""The picture of a failover is drawn from the data of the last measured run."""

import json

from docs import draw_failover


def test_the_picture_is_drawn_from_the_data() -> None:
    """``python docs/draw_failover.py`` draws it again after ``python -m bench.failover``."""
    data = json.loads(draw_failover.DATA.read_text())
    assert draw_failover.PICTURE.read_text() == draw_failover.picture(data)


def test_the_run_that_is_drawn_is_what_the_page_says() -> None:
    """No error to a caller, no read unexplained, nothing embedded twice, and every fault there."""
    data = json.loads(draw_failover.DATA.read_text())
    summary = data["summary"]
    assert data["errors"] == []
    assert summary["errors to callers"] == summary["unexplained reads"] == 0
    assert summary["texts embedded twice"] == 0
    assert summary["faults"].keys() >= {"failover,", "lost", "restart,", "cut"}
    drawn = draw_failover.PICTURE.read_text()
    assert all(name in drawn for name, _, _ in data["faults"])
