"""Runs watched and compared: what is said is what their files say, while they are written too."""

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from test_cli import fails
from test_report import result_row, write_lines

from unmask.cli import main
from unmask.cli.watch import HEIGHT, WIDTH, curve, fitting
from unmask.files import write_json
from unmask.report.read import find
from unmask.report.runs import progress_of


def write_run(
    folder: Path, *, steps: int = 400, done: int = 400, loss=lambda step: 3.0, rate: float = 1e-3, **more
) -> Path:
    """A run of 100 tokens and 1e6 FLOPs a step, half a second each."""
    folder.mkdir(parents=True)
    asked = {"optimiser": {"rate": rate}, "batch": 4, **more}
    config = {"name": folder.name, "training": {"steps": steps}, "requested": asked, "machine": folder.name}
    write_json(folder / "config.json", config)
    at = lambda step: {"step": step, "tokens": 100 * step, "flops": 1e6 * step, "seconds": step / 2}  # noqa: E731
    rows = [{"kind": "train", **at(step), "loss": loss(step)} for step in range(1, done + 1)]
    if done:
        last = {"nats_per_token": loss(done) + 0.5, "stderr": 0.03, "stderr_texts": 0.04, "bound": "upper bound"}
        rows.append({"kind": "validation", **at(done), **last})
    write_lines(folder / "metrics.jsonl", rows)
    return folder


def test_watch_says_what_the_files_say(capsys, tmp_path):
    run = write_run(tmp_path / "half", done=100, loss=lambda step: 4.0 - step / 100)
    main(["watch", str(run)])
    said = capsys.readouterr().out
    assert "half  step 100 of 400 (25%)  10 K tokens  50 s" in said
    assert "loss 3.495 nats/token  validation ≤ 3.500 ± 0.030 at step 100" in said
    assert "200 tokens/s  2 steps/s  2 min 30 s left" in said
    main(["watch", str(run), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert (record["step"], record["steps"], record["seconds_left"]) == (100, 400, 150.0)
    assert record["loss"] == pytest.approx(3.495)
    assert record["validation"]["bound"] == "upper bound"


def test_watch_of_runs_at_any_moment(capsys, tmp_path):
    """Before the first row, in the middle of a row, after a loss that is not finite, done, several."""
    write_run(tmp_path / "new", done=0)
    write_run(tmp_path / "done")
    run = write_run(tmp_path / "torn", done=30)
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    (run / "metrics.jsonl").write_text(text + '{"kind": "train", "st', encoding="utf-8")
    write_run(tmp_path / "bad", done=5, loss=lambda step: math.nan)
    write_json(tmp_path / "done" / "samples.json", {"samples": [{"text": "a text\x1b]0;x", "pieces": []}]})
    main(["watch", str(tmp_path), "--once"])
    said = capsys.readouterr().out
    assert "new  step 0 of 400 (0%)  nothing logged yet" in said
    assert "torn  step 30 of 400" in said
    assert "loss is not finite" in said
    assert "done" in said
    assert "last sample: a text" in said
    assert "\x1b" not in said


def test_the_curve_is_the_loss(tmp_path):
    """A falling line fills the diagonal, a constant one line; ends and extremes are labelled."""
    falling = find([write_run(tmp_path / "a", loss=lambda step: 5 - step / 100)]).runs[0]
    lines = curve(falling)
    assert len(lines) == HEIGHT + 1
    assert lines[0].lstrip().startswith("4.9")
    assert lines[HEIGHT - 1].lstrip().startswith("1.0")
    dots = [[i for i, c in enumerate(line.split("┤")[1]) if c != "\u2800"] for line in lines[:-1]]
    assert [row[0] for row in dots] == sorted(row[0] for row in dots)
    assert dots[0][0] == 0
    assert dots[-1][-1] == WIDTH - 1
    level = curve(find([write_run(tmp_path / "b")]).runs[0])
    assert sum(any(c not in "\u2800" for c in line.split("┤")[1]) for line in level[:-1]) == 1
    assert curve(find([write_run(tmp_path / "c", done=2)]).runs[0]) == []


def test_speed_leaves_pauses_out(tmp_path):
    """A run that was resumed logs seconds that begin where they stopped; a clock that jumps back counts nothing."""
    run = write_run(tmp_path / "a", done=50)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows[25:]:
        row["seconds"] -= 8.0
    write_lines(run / "metrics.jsonl", rows)
    assert progress_of(find([run]).runs[0]).steps_per_second == pytest.approx(2.0)


def test_watch_redraws_until_the_run_is_done(tmp_path):
    """On a terminal; a pseudo-terminal stands in for one."""
    pty = pytest.importorskip("pty")
    run = write_run(tmp_path / "a", done=400)
    out: list[bytes] = []

    def read(descriptor: int) -> bytes:
        import os

        out.append(os.read(descriptor, 1 << 16))
        return b"" if not out[-1] else out[-1]

    code = "from unmask.cli import main; import sys; main(['watch', sys.argv[1], '--every', '0.05'])"
    status = pty.spawn([sys.executable, "-c", code, str(run)], read, lambda _: b"")
    assert status == 0
    assert b"400 of 400" in b"".join(out)


def test_every_run_is_shown_whatever_the_height_of_the_terminal(tmp_path):
    """Curves go first; then a run is one line, its loss in it where the line is wide enough."""
    for i in range(5):
        write_run(tmp_path / f"run-{i}", done=100)
    found = find([tmp_path])
    for height, lines, curves in ((80, 65, True), (64, 20, False), (20, 20, False), (19, 5, False)):
        terminal = Console(width=120, height=height, file=io.StringIO())
        terminal.print(fitting(found, terminal))
        said = terminal.file.getvalue()
        assert said.count("\n") == lines
        assert ("┤" in said) == curves
        assert all(f"run-{i}  step 100 of 400" in said for i in range(5))
        assert said.count("loss 3.000") == 5


def test_two_runs_compared(capsys, tmp_path):
    """Settings that differ and no others; losses at what both reached; validations with their errors."""
    first = write_run(tmp_path / "a", loss=lambda step: 4.0 - step / 400, rate=1e-3)
    second = write_run(tmp_path / "b", done=200, loss=lambda step: 4.5 - step / 400, rate=2e-3, ema=0.9)
    main(["compare", str(first), str(second), "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    changed = {row["setting"]: (row["first"], row["second"]) for row in rows if row["experiment"] == "runs: setting"}
    assert changed == {"optimiser.rate": ("0.001", "0.002"), "ema": (None, "0.9")}
    losses = {row["at"]: row for row in rows if row["experiment"] == "runs: loss"}
    assert {key: row["value"] for key, row in losses.items()} == {"step": 200, "tokens": 20_000, "flops": 2e8}
    for row in losses.values():
        assert row["difference"] == pytest.approx(-0.5)
        assert row["first"] == pytest.approx(4.0 - sum(range(191, 201)) / 10 / 400)  # the last twentieth
    (validation,) = (row for row in rows if row["experiment"] == "runs: validation")
    assert validation["difference"] == pytest.approx(3.5 - 4.5)
    assert validation["stderr"] == pytest.approx(math.hypot(0.03, 0.03, 0.04, 0.04))
    main(["compare", str(first), str(second), "--out", str(tmp_path / "difference.json")])
    said = capsys.readouterr().out
    assert "optimiser.rate" in said
    assert "loss at step 200" in said
    main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")])
    assert "runs: loss" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_young_runs_compare_with_an_error(capsys, tmp_path):
    runs = [write_run(tmp_path / name, done=20, loss=lambda step: 4.0 - step / 400) for name in "ab"]
    main(["compare", *map(str, runs)])
    said = capsys.readouterr().out
    assert "loss at step 20" in said
    assert "not a number" not in said


def test_results_of_two_runs_are_paired(capsys, tmp_path):
    values = {"nats": [10.0, 20.0, 30.0], "tokens": [5, 5, 5], "documents": [0, 1, 2]}
    for name, more in (("a", 0.0), ("b", 1.0)):
        folder = write_run(tmp_path / name)
        nats = [value + more for value in values["nats"]]
        row = result_row(name, "PTB", 9.0, split="test", data="x", tokenizer="t", nats=sum(nats), tokens=15)
        write_json(folder / "result.json", {"rows": [{**row, "values": {**values, "nats": nats}}]})
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (row,) = (row for row in rows if row["experiment"] == "comparison")
    assert row["difference"] == pytest.approx(-3 / 15)
    assert row["paired"] == "3 documents, 3 windows"
    write_json(tmp_path / "b" / "result.json", {"rows": [result_row("b", None, 9.0)]})
    assert "its row of b has no 'corpus'" in fails(capsys, "compare", str(tmp_path / "a"), str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["watch"], "say which"),
        (["watch", "nowhere"], "nowhere: no such file or folder"),
        (["watch", "."], "nothing to report"),
        (["watch", "a", "--every", "0"], "every 0.0 must be positive"),
        (["watch", "a", "--every", "inf"], "every inf must be positive, and a day (86400) at most"),
        (["compare", "a", "nowhere"], "give two run folders or two result files"),
        (["compare", "a", "empty"], "nothing to report"),
    ],
)
def test_runs_that_are_not_there(capsys, tmp_path, monkeypatch, words, message):
    (tmp_path / "empty").mkdir()
    if "a" in words:
        write_run(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *words)


def test_watch_is_quiet_to_a_reader_that_left(tmp_path):
    """`unmask watch … | head -1` ends without a traceback."""
    run = write_run(tmp_path / "a")
    command = f"{sys.executable} -m unmask watch {run} | head -1"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=300)
    assert "Traceback" not in result.stderr
