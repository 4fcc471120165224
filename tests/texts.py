"""What the tests of the data pipeline share."""

from collections.abc import Callable
from pathlib import Path

import pytest

POEM = "The fog comes on little cat feet.\n\nIt sits looking, over harbour and city: naïve 日本語 🐈.\n\n"
FOUR_SIGMA = 3.2e-5  # the upper tail of a normal beyond four standard deviations


def refused(call: Callable[[], object], *words: str) -> None:
    """The call raises a ValueError of one line that holds the words."""
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def library(folder: Path, names: list[str]) -> str:
    """A folder of small text files of these names."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.txt").write_text(f"{name}: {POEM * 2} <|end|> {name}.", encoding="utf-8")
    return str(folder)
