"""What torch before 2.9 lacks is missed where it is asked for, and nowhere else."""

import subprocess
import sys

import pytest

WITHOUT_MUON = "import torch; del torch.optim.Muon; from unmask.cli import main; main({!r})"


@pytest.mark.parametrize("words", [["report", "--help"], ["experiment", "caching", "--help"]])
def test_commands_start_without_muon(words: list[str]):
    done = subprocess.run([sys.executable, "-c", WITHOUT_MUON.format(words)], capture_output=True, text=True)
    assert "usage: unmask" in done.stdout, done.stderr
