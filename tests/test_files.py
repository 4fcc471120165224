"""Files appear whole or not at all; metrics survive a crash; JSON says what is wrong with it."""

import errno
import io
import json
import math
import os
import re
import stat
import time
from pathlib import Path

import pytest
from rich.console import Console

from unmask.files import alone, atomic, finite, read_json, read_lines, writable, write_json
from unmask.log import Metrics, progress


def test_a_crash_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")

    def crash() -> None:
        with atomic(path) as file:
            file.write("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        crash()
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("", encoding="utf-8")
    write_json(tmp_path / "ours.json", {})
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("plain", "ours.json")]
    assert modes[0] == modes[1]


def test_where_no_file_can_be_put_is_known_before(tmp_path):
    (tmp_path / "file").write_text("mine")
    writable(None)
    writable(tmp_path / "file")
    writable(tmp_path / "new" / "newer" / "file")
    with pytest.raises(ValueError, match="is a folder; name a file in it"):
        writable(tmp_path)
    with pytest.raises(ValueError, match=r"cannot write .*new \(Not a directory\): choose another place"):
        writable(tmp_path / "file" / "new")
    if Path("/proc").is_dir():
        with pytest.raises(ValueError, match=r"cannot write /proc/new \("):
            writable(Path("/proc/new"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_json_has_no_word_for_nan(tmp_path):
    write_json(tmp_path / "a.json", {"x": math.nan, "y": [1.5, math.inf], "z": {"ü": -math.inf}})
    assert read_json(tmp_path / "a.json") == {"x": None, "y": [1.5, None], "z": {"ü": None}}
    assert finite((1, 2.0)) == [1, 2.0]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe{}", b"3"])
def test_what_is_no_json_object(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_metrics_go_on_after_a_crash(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"kind": "train", "step": i, "loss": 1.0} for i in range(1, 6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "tra', encoding="utf-8")
    assert read_lines(path) == rows
    metrics = Metrics(path, 3)
    metrics.write({"kind": "train", "step": 4, "loss": math.nan})
    metrics.close()
    assert [(row["step"], row["loss"]) for row in read_lines(path)] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, None)]


@pytest.mark.parametrize("line", ["nonsense", "[1]", "3"])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        read_lines(path)


def test_progress_off_a_terminal(capsys, monkeypatch):
    """Nothing of short work; of long work a line every ten seconds, with rate and time left, not counting from before
    it was resumed.
    """
    now = [100.0]
    monkeypatch.setattr("unmask.log.time.monotonic", lambda: now[0])

    def lines(seconds: float, done: range) -> list[str]:
        with progress("work", "tokens", each=500) as report:
            for i in done:
                now[0] += seconds
                report(i, 100, "note")
        return capsys.readouterr().err.splitlines()

    assert lines(0.09, range(1, 101)) == []
    long = lines(1.0, range(1, 101))
    assert len(long) == 10
    assert long[0] == "work 10/100 note 500 tokens/s, 1 min 30 s left"
    assert lines(5.0, range(61, 101))[0] == "work 62/100 note 100 tokens/s, 3 min 10 s left"
    with progress("work", "bytes") as report:
        for stage in (10, 100):  # the second is slower, and has a rate of its own
            for i in range(1, 12):
                now[0] += stage / 10
                report(i, 20)
    assert capsys.readouterr().err.splitlines()[:3] == [
        "work 10/20 1 bytes/s, 10 s left",
        "work 1/20",
        "work 2/20 0.1 bytes/s, 3 min left",
    ]
    with progress("work", "bytes") as report:
        for done in (5, 1, 1):  # the second stage is at its first piece for long
            now[0] += 10
            report(done, 20)
    assert capsys.readouterr().err.splitlines() == ["work 5/20", "work 1/20", "work 1/20"]


def test_progress_on_a_terminal_has_a_rate(monkeypatch):
    import unmask.log

    screen = Console(force_terminal=True, width=200, file=io.StringIO())
    monkeypatch.setattr(unmask.log, "console", screen)
    with progress("work", "tokens", each=500) as report:
        for i in range(1, 101):
            report(i, 100, "note")
            time.sleep(0.001)
    said = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", screen.file.getvalue())  # type: ignore[attr-defined]
    assert re.search(r"work .* 100/100 .*[\d.]+ [KM] tokens/s.* note", said)


def test_two_cannot_hold_one_file(tmp_path):
    """Also from within one process; who held it is named, and nothing stays behind."""
    path = tmp_path / "new" / ".lock"
    with alone(path, "it: in use"):
        with (
            pytest.raises(ValueError, match=f"it: in use by process {os.getpid()} on .*: wait for it"),
            alone(path, "it: in use"),
        ):
            pass
        assert path.exists()
    assert not path.parent.exists(), "it was made for this alone"
    with alone(path, "it: in use"):
        (path.parent / "kept").touch()
    (path.parent / "kept").unlink()
    path.parent.rmdir()
    path.parent.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot write in .*new"), alone(path, "it: in use"):
        pass


def test_a_folder_that_takes_no_file_is_told_of(tmp_path, monkeypatch):
    """As /proc. Planted fault: it was taken for one that another process removes, for ever."""
    tries = iter(range(100))

    def refused(path: Path, *_: object) -> int:
        next(tries)  # StopIteration: no end
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    monkeypatch.setattr("unmask.files.os.open", refused)
    with pytest.raises(ValueError, match="cannot write in"), alone(tmp_path / ".lock", "it: in use"):
        pass
