"""Files appear whole or not at all; metrics survive a crash; JSON says what is wrong with it."""

import json
import math
import os
import stat

import pytest

from unmask.files import atomic, finite, read_json, write_json
from unmask.log import Metrics, progress, read_metrics


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
    assert read_metrics(path) == rows
    metrics = Metrics(path, 3)
    metrics.write({"kind": "train", "step": 4, "loss": math.nan})
    metrics.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, None)]


def test_a_bad_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(path)


def test_progress_off_a_terminal_is_quiet_lines(capsys):
    with progress("work") as report:
        for i in range(1, 101):
            report(i, 100, "note")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("work 100/100 note")
