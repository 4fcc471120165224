"""Lines of progress, where there is no terminal."""

import time

import pytest

from unmask.log import progress


def test_a_rate_counts_from_what_is_first_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Neither what was done before, nor the time until then, is of this rate; nor that of the stage before."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress("work", "tokens", each=2.0) as told:
        for at, done in ((60.0, 240), (65.0, 250), (80.0, 280), (85.0, 5), (95.0, 15)):
            now = at
            told(done, 300)
    assert capsys.readouterr().err.splitlines() == [
        "work 240/300",
        "work 280/300 4 tokens/s, 10 s left",
        "work 15/300 2 tokens/s, 4 min 45 s left",
    ]
