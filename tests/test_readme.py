"""The commands and programs of the README and the pages on sampling and data run, in order, on a small text."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from unmask.cli import main

ROOT = Path(__file__).parent.parent
PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/sampling.md", "docs/data.md")}
README = "\n".join(PAGES.values())
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.S)
SMALL = shlex.split("--steps 6 --layers 1 --heads 2 --width 32 --length 32 --batch 4 --precision float32 --device cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder in which a user has some texts."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_texts").mkdir()
    for i in range(5):
        text = f"We must secure the rights of all {i} people, in every State of the Union. " * 12
        (folder / "my_texts" / f"{i}.txt").write_text(text, encoding="utf-8")
    return folder


def run(command: list[str], place: Path) -> str:
    result = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=600, env={**os.environ})
    assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_commands_and_programs(place, monkeypatch: pytest.MonkeyPatch):
    """Every `unmask …` line and every python block, top to bottom; training is cut short by options of its own."""
    monkeypatch.chdir(place)
    ran = 0
    for kind, block in BLOCKS:
        if kind == "python":
            assert run([sys.executable, "-c", block], place).strip()
            ran += 1
            continue
        for line in block.strip().splitlines():
            words = shlex.split(line)
            if words[0] == "unmask":
                extra = SMALL if words[1] == "train" else []
                main([*words[1:], *extra])
                ran += 1
    assert ran >= 10
    assert (place / "runs/mine/report.html").stat().st_size > 10_000


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= targets


def test_links_exist():
    for page, text in PAGES.items():
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_by_hand_learns(tmp_path):
    """The flat loop of examples/ ends below 1 nat a character and writes with three policies."""
    out = run([sys.executable, str(ROOT / "examples/by_hand.py")], tmp_path)
    losses = [float(x) for x in re.findall(r": ([0-9.]+) nats/token", out)]
    assert losses[-1] < 1.0 < losses[0]
    assert out.count("network evaluations") == 3
