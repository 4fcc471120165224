"""What all tests share.

Examples that hypothesis makes are the same in every run: a failure can be repeated, and none comes by chance.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings

from unmask.experiments import running
from unmask.log import Report

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, int]]]:
    """What experiments tell of their progress while they measure, (done, total) by what is said of the work."""
    told: dict[str, list[tuple[int, int]]] = {}

    @contextmanager
    def progress(title: str) -> Iterator[Report]:
        yield lambda done, total, note="": told.setdefault(title, []).append((done, total))

    monkeypatch.setattr(running, "progress", progress)
    return told
