"""Dry runs say what the work then takes and leave nothing behind; and every command speaks to machines."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from test_cli import fails, make_material
from torch.utils.flop_counter import FlopCounterMode

from unmask.checkpoint import load
from unmask.cli import COMMANDS, main
from unmask.evaluate import write
from unmask.likelihood import log_likelihood
from unmask.recipes import RECIPES
from unmask.rehearsal import rehearsed
from unmask.sampling import Tweedie


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Path:
    """A model, a judge, texts, questions, and tokens."""
    folder = tmp_path_factory.mktemp("there")
    make_material(folder)
    return folder


def scored(counted, told, run: Path, rows: int = 40):
    model = load(run)
    x_0 = torch.randint(256, (rows, 17), generator=torch.Generator().manual_seed(0))
    return log_likelihood(counted(model), x_0, draws=8, batch=16, progress=told)


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_work_that_is_left_is_scaled_to_the_whole(there, seconds):
    """Left after its first call, or done: the same evaluations and FLOPs, those of the work itself."""
    cost = rehearsed(lambda counted, told: scored(counted, told, there / "run"), seconds)
    with FlopCounterMode(display=False) as flops:
        estimate = scored(lambda model: model, None, there / "run")
    assert cost.evaluations == pytest.approx(estimate.evaluations)
    assert cost.flops == pytest.approx(flops.get_total_flops(), rel=0.1 if seconds == 0 else 1e-9)
    assert cost.seconds > 0


@pytest.mark.parametrize("name", ["run", "arm"])
def test_writing_is_counted_as_it_is(there, name):
    """Also through an ARM's cache; the FLOPs of a cached row are a token's, not a text's."""
    model = load(there / name)
    cost = rehearsed(lambda counted, told: write(counted(model), ["{{9}}"] * 6, progress=told), 1e9)
    assert cost.evaluations == sum(record["nfe"] for record in write(model, ["{{9}}"] * 6))
    assert (cost.flops < cost.evaluations * model.network.config.forward_flops(10, 1) / 2) == (name == "arm")
    few = rehearsed(lambda counted, told: write(counted(model), ["{{9}}"] * 6, progress=told), 0.0)
    assert few.evaluations == pytest.approx(cost.evaluations)


def test_writing_in_few_steps_costs_less(there):
    model, steps = load(there / "run"), Tweedie(steps=3)
    cost = rehearsed(lambda counted, told: write(counted(model), ["{{9}}"] * 6, steps, progress=told), 1e9)
    assert cost.evaluations == sum(record["nfe"] for record in write(model, ["{{9}}"] * 6, steps)) <= 18


COMMON = ["--dry-run", "--json"]
DRY = {
    "perplexity": "evaluate perplexity --checkpoint run --data data --length 16 --draws 8",
    "order": "evaluate perplexity --checkpoint run --data data --length 8 --order confidence",
    "generation": "evaluate generation --checkpoint run --judge arm --count 4 --length 8",
    "answers": "evaluate answers --checkpoint run --questions rows.jsonl --out a --block 12",
    "sample": "sample --checkpoint run --count 3 --length 8 --out samples.json",
    "demo": "demo --scale.steps 2",
    "audit": "audit random-order --draws 1000",
}


@pytest.mark.parametrize("command", DRY)
def test_a_dry_run_tells_and_leaves_nothing(there, capsys, monkeypatch, command):
    monkeypatch.chdir(there)
    monkeypatch.setattr("unmask.rehearsal.SECONDS", 0.1)
    monkeypatch.setattr("unmask.cli.demo.rate_here", lambda device: 1e9)
    before = sorted(there.rglob("*"))
    main([*DRY[command].split(), *COMMON])
    cost = json.loads(capsys.readouterr().out)
    assert list(cost) == ["evaluations", "flops", "seconds"]
    assert min(cost["evaluations"], cost["seconds"]) > 0
    main([*DRY[command].split(), "--dry-run"])
    said = capsys.readouterr()
    assert said.out == ""
    assert "network evaluations" in said.err
    assert sorted(there.rglob("*")) == before
    if command == "generation":
        assert cost["evaluations"] == pytest.approx(4 * 8 + 4, rel=0.2)


def test_matching_has_no_cost_beforehand(there, capsys):
    words = ["sample", "--checkpoint", there / "run", "--regex", "a", "--matching", "--dry-run", "--length", "2"]
    assert "--dry-run: how often --matching tries" in fails(capsys, *words)


def test_a_dry_run_of_training_has_its_time(there, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unmask.cli.train.rate_here", lambda device: 1e9)
    words = ["train", "tiny", "--data", str(there / "data"), "--steps", "7", "--dry-run", "--json"]
    main(words)
    record = json.loads(capsys.readouterr().out)
    assert record["seconds"] == pytest.approx(record["flops_true"] / 1e9)
    assert record["tokens"] == 7 * RECIPES["tiny"]().batch * RECIPES["tiny"]().length
    assert not list(tmp_path.iterdir())


def test_training_preparing_and_reporting_speak_to_machines(there, capsys, tmp_path):
    small = ["--batch", "2", "--length", "8", "--steps", "2", "--layers", "1", "--width", "32", "--heads", "2"]
    small += ["--validation-sequences", "2", "--warmup", "0"]
    main(["train", "tiny", "--data", str(there / "data"), "--out", str(tmp_path / "run"), *small, "--json"])
    record = json.loads(capsys.readouterr().out)
    assert (record["run"], record["step"], record["steps"]) == (str(tmp_path / "run"), 2, 2)
    assert record["validation"]["nats_per_token"] > 0
    main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html"), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record == {"report": str(tmp_path / "page.html"), "runs": 1, "rows": 0, "samples": 0}
    words = ["prepare", "--source", str(there / "text.txt"), "--out", str(tmp_path / "d"), "--tokenizer", "bytes"]
    main([*words, "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["split"] for row in rows] == ["train", "validation"]
    main([*words, "--dry-run", "--json"])
    assert json.loads(capsys.readouterr().out)["tokens"] == pytest.approx(sum(row["tokens"] for row in rows), rel=0.01)


def names(kind: type) -> set[str]:
    """Options of a command, those of its parts too."""
    fields = dataclasses.fields(kind)
    below = [each.type for each in fields if isinstance(each.type, type) and dataclasses.is_dataclass(each.type)]
    more = [each.type.__origin__ for each in fields if hasattr(each.type, "__origin__")]
    kinds = [each for each in (*below, *more) if isinstance(each, type) and dataclasses.is_dataclass(each)]
    return {each.name for each in fields}.union(*map(names, kinds))


@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if name not in ("evaluate", "convert", "push", "completion")]
)
def test_every_command_speaks_to_machines(command):
    """But for those that print a path, an address or a script; those of evaluate are seen above."""
    assert "json" in names(COMMANDS[command].load(["tiny"] if command == "train" else []))
