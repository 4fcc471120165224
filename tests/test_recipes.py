"""Recipes are what the papers say, budgets convert exactly, and a small run's losses are those that were stored."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unmask.cli import main
from unmask.cli.train import told_of_machine
from unmask.data import prepare
from unmask.families.tables import SMDM_SIZES
from unmask.files import read_lines
from unmask.objectives import AnyOrder, LambdaDCE, NextToken
from unmask.recipes import RECIPES, SOURCES, ar, on_its_data, smdm
from unmask.train import Optimiser, TrainConfig, train
from unmask.train.budget import measured_rate, memory, steps_for
from unmask.transformer import Transformer, TransformerConfig

DATA = Path(os.environ.get("UNMASK_DATA", "../shared/data")) / "fixtures"
SIZE = TransformerConfig(vocab=64, layers=2, heads=2, width=32)
CONFIG = TrainConfig(network=SIZE, data="d", length=16, batch=4, short_batches=0.1)


def counted(config: TransformerConfig) -> int:
    return sum(p.numel() for p in Transformer(config, seed=None).parameters())  # on the meta device


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_on_the_meta_device(name: str):
    network = RECIPES[name]().network
    assert counted(network) == network.parameters()["total"]


def test_the_family_has_its_published_parameter_counts():
    path = DATA / "smdm/family.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    published = json.loads(path.read_text())
    assert {f"Diff_LLaMA_{size}M" for size in SMDM_SIZES} == set(published)
    for size in SMDM_SIZES:
        mdm, row = smdm(size).network, published[f"Diff_LLaMA_{size}M"]
        found = (mdm.layers, mdm.heads, mdm.width, mdm.mlp_width, mdm.groups)
        keys = ("n_layer", "n_head", "n_embd", "intermediate_size", "n_query_groups")
        assert found == tuple(row[key] for key in keys)
        assert (counted(mdm), mdm.parameters()["non_embedding"]) == (row["params"], row["non_embedding"])
        assert ar(size).network == replace(mdm, causal=True)


@pytest.mark.parametrize(("name", "extra"), [("small", 768 + 1), ("medium", 1024 + 1)])
def test_radds_networks_have_their_published_parameter_counts(name: str, extra: int):
    """Theirs have one output row and bias more, the mask's, which is never predicted."""
    path = DATA / "radd/real_shapes.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    row = json.loads(path.read_text())[name]
    buffers = 32  # its rotary frequencies are not parameters
    assert counted(RECIPES[f"radd-{name}"]().network) + extra in (row["params"], row["params"] - buffers)


def test_the_papers_settings():
    radd, mdm, arm = (RECIPES[name]() for name in ("radd-small", "smdm-170", "ar-170"))
    assert (radd.batch, radd.length, radd.steps, radd.ema, radd.network.dropout) == (512, 1024, 400_000, 0.9999, 0.02)
    assert [radd.optimiser.at(step, radd.steps) for step in (2499, 2500, 399_999)] == [3e-4] * 3
    assert (mdm.batch, mdm.length, mdm.short_batches) == (256, 2048, 0.01)
    assert mdm.optimiser.at(mdm.steps, mdm.steps) == pytest.approx(2e-5)
    assert mdm.optimiser.warmup == max(100, mdm.steps // 100)
    assert (type(mdm.objective), type(arm.objective)) == (LambdaDCE, NextToken)
    assert replace(arm, network=mdm.network, objective=mdm.objective, name=mdm.name, short_batches=0.01) == mdm
    for name in RECIPES:
        if name.startswith("smdm"):
            assert RECIPES[name]().cost()["flops_6nd"] == pytest.approx(1e20, rel=1e-3)
    with pytest.raises(ValueError, match="SMDM has no size 7"):
        smdm(7)


def test_missing_data_are_answered_by_the_command_that_makes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="unmask prepare --source hf://Skylion007/openwebtext"):
        on_its_data(RECIPES["radd-small"]())
    assert {RECIPES[name]().data for name in RECIPES} == set(SOURCES)


# ---- budgets


@pytest.mark.parametrize("kind", ["tokens", "flops", "true_flops"])
@pytest.mark.parametrize("steps", [1, 7, 1234])
def test_a_budget_is_the_cost_of_its_steps(kind: str, steps: int):
    """There and back, for every way of counting."""
    name = {"tokens": "tokens", "flops": "flops_6nd", "true_flops": "flops_true"}[kind]
    cost = replace(CONFIG, steps=steps).cost()[name]
    assert steps_for(CONFIG, **{kind: cost}) == steps
    assert steps_for(CONFIG, **{kind: 3 * cost}) == 3 * steps


def test_6nd_is_n_without_embedding_times_tokens():
    config = replace(CONFIG, short_batches=0.0)
    block = 4 * 32 * 32 + 3 * 32 * 128 + 2 * 32
    flops = 6 * (2 * block + 32) * 16 * 4 * 50
    assert steps_for(config, flops=flops) == 50
    assert steps_for(config, tokens=16 * 4 * 50) == 50


@pytest.mark.parametrize("given", [{}, {"tokens": 1.0, "flops": 1.0}, {"tokens": 0.0}, {"flops": -1.0}])
def test_a_budget_is_one_positive_number(given):
    with pytest.raises(ValueError, match="a budget is one number above 0"):
        steps_for(CONFIG, **given)


def test_memory_of_the_state_is_what_a_step_allocates():
    network = Transformer(SIZE)
    optimiser = torch.optim.AdamW(network.parameters())
    sum(p.sum() for p in network.parameters()).backward()
    optimiser.step()
    moments = [x for state in optimiser.state.values() for x in state.values() if x.dim()]
    held = [*network.parameters(), *(p.grad for p in network.parameters()), *moments]
    assert memory(CONFIG)["state"] == sum(4 * x.numel() for x in held)
    assert memory(replace(CONFIG, ema=0.9))["state"] * 4 == memory(CONFIG)["state"] * 5


def test_the_rate_of_a_machine_is_a_rate():
    assert 1e6 < measured_rate(torch.device("cpu"), "float32", seconds=0.0) < 1e18


# ---- the command line


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    folder = tmp_path_factory.mktemp("text")
    for i in range(8):
        lines = [" ".join(words[(i + j + k) % 10] for k in range(8)) for j in range(30)]
        (folder / f"{i}.txt").write_text("\n".join(lines), encoding="utf-8")
    return prepare(str(folder), tmp_path_factory.mktemp("data") / "d", tokenizer="bytes", validation=0.2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny", "--tokens", "5", "--steps", "4"], "--steps and --tokens: a run has one budget"),
        (["tiny", "--flops=5", "--minutes=4"], "--flops and --minutes: a run has one budget"),
        (["tiny", "--vocab", "5"], "the vocabulary is that of the data"),
        (["tiny", "--causal"], "tiny-ar, ar-113"),
        (["tiny", "--init", "x", "--no-tied", "--width=5"], "--no-tied, --width: a run with --init has the sizes"),
        (["smdm-112"], "did you mean smdm-1"),
        (["tiny", "--flops", "-5", "--dry-run"], "a budget is one number above 0"),
    ],
)
def test_impossible_words(words, message, capsys, data):
    with pytest.raises(SystemExit) as end:
        main(["train", words[0], *(["--data", str(data)] if words[0] == "tiny" else []), *words[1:]])
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_data_that_are_not_prepared(capsys, tmp_path):
    for path, remedy in (
        ("none", "unmask prepare --source YOUR_TEXT --out"),
        ("book.txt", "book.txt --out data/mine,"),
    ):
        (tmp_path / "book.txt").write_text("some text")
        with pytest.raises(SystemExit):
            main(["train", "tiny", "--data", str(tmp_path / path)])
        said = " ".join(capsys.readouterr().err.split())
        assert "no prepared folder" in said
        assert remedy in said


def test_a_dry_run_refuses_another_tokenizer(capsys, data):
    with pytest.raises(SystemExit):
        main(["train", "tiny", "--data", str(data), "--init", "builtin", "--dry-run"])
    said = " ".join(capsys.readouterr().err.split())
    assert "another tokenizer than this run's: prepare the data with its own, by unmask prepare --tokenizer" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--track", "wandb"], "track wandb: not installed: pip install wandb"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["--mirror", "bogus://x"], "mirror bogus://x"),
        ([], "exists and holds something else"),
    ],
)
def test_a_dry_run_refuses_what_training_would(capsys, data, tmp_path, monkeypatch, words, message):
    """Planted fault: it looked at the data alone."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    out = tmp_path if not words else tmp_path / "new"
    (tmp_path / "mine").touch()
    with pytest.raises(SystemExit) as end:
        main(["train", "tiny", "--data", str(data), "--out", str(out), *words, "--dry-run"])
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()


def test_a_dry_run_says_what_a_machine_needs(data):
    config = replace(RECIPES["tiny"](), data=str(data), accumulate=2, batch=64)
    total = config.network.parameters()["total"] / 2**18
    said = told_of_machine(config, 4)
    assert "64 sequences a step = 4 processes x 8 x accumulate 2\n" in said
    assert f"weights {total:,.1f} MiB + gradients {total:,.1f} MiB + moments {2 * total:,.1f} MiB" in said
    assert f"{4 * total:,.1f} MiB a process under ddp, {total:,.1f} MiB a process under fsdp" in said
    assert "1 process x 32 x accumulate 2\n" in told_of_machine(config, 1)


@pytest.mark.parametrize("name", ["tiny", "smdm-19", "ar-2121"])
def test_a_budget_on_the_command_line(name, capsys, data):
    main(["train", name, "--data", str(data), "--tokens", "1e9", "--short-batches", "0", "--dry-run"])
    config = RECIPES[name]()
    steps = round(1e9 / config.batch / config.length)
    assert f"{steps:,} steps" in " ".join(capsys.readouterr().err.split())


def test_the_minutes_of_a_run(data, tmp_path, capsys):
    """It stops, saved, after a step, and the same settings go on."""
    network = replace(SIZE, vocab=258)
    config = replace(CONFIG, network=network, data=str(data), minutes=1e-9, device="cpu", precision="float32", steps=3)
    for step in (1, 2):
        train(config, tmp_path / "run")
        assert f"minutes are over after step {step}" in " ".join(capsys.readouterr().err.split())
    assert [row["step"] for row in read_lines(tmp_path / "run/metrics.jsonl") if row["kind"] == "train"] == [1, 2]


def test_the_list_of_recipes(capsys, monkeypatch):
    monkeypatch.setattr("unmask.cli.recipes.measured_rate", lambda device, precision: 1e12)
    monkeypatch.setattr("unmask.cli.recipes.best_precision", lambda device: "float32")
    main(["recipes", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["recipe"] for row in rows] == list(RECIPES)
    for row in rows:
        assert row["seconds"] == row["flops_true"] / 1e12
        assert row["parameters"] == RECIPES[row["recipe"]]().network.parameters()["total"]
    main(["recipes"])
    assert "smdm-2121" in capsys.readouterr().out


# ---- a golden trajectory

GOLDEN = [6.75107, 5.2554, 5.13961, 4.40814, 3.83167, 4.06806, 4.12442, 3.26006, 3.40621, 3.11951, 3.1551, 2.74707]


def trajectory(data: Path, out: Path, **changes) -> list[float]:
    """The losses of 12 steps of a tiny recipe, in float32."""
    config = TrainConfig(
        network=TransformerConfig(vocab=258, layers=2, heads=2, width=32),
        data=str(data),
        objective=AnyOrder(importance=0.5),
        length=32,
        batch=8,
        steps=12,
        optimiser=Optimiser(rate=1e-2, warmup=3),
        precision="float32",
        device="cpu",
    )
    train(replace(config, **changes), out)
    return [row["loss"] for row in read_lines(out / "metrics.jsonl") if row["kind"] == "train"]


def test_the_losses_of_a_small_run_are_those_that_were_stored(data, tmp_path):
    """Data, masks, network, loss, optimiser and schedule as they were; another seed or rate is told apart."""
    assert trajectory(data, tmp_path / "a") == pytest.approx(GOLDEN, rel=1e-3)
    assert trajectory(data, tmp_path / "b", seed=1) != pytest.approx(GOLDEN, rel=1e-3)
    assert trajectory(data, tmp_path / "c", optimiser=Optimiser(rate=1.1e-2, warmup=3)) != pytest.approx(
        GOLDEN, rel=1e-3
    )
