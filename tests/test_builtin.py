"""The checkpoints that come with the package: small, whole, described, and better at English than at anything else."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

import unmask
from unmask.checkpoint import CONFIG, MODEL, convert
from unmask.cli import main
from unmask.data import Tokenizer, prepare
from unmask.files import read_json
from unmask.hub import BUILTIN, PRETRAINED, fetched
from unmask.train.config import spent

TEXT = (
    "It was late in the evening when the captain came down to the beach, and the men who had waited there since the "
    "morning rose to meet him. He did not speak at once, but looked at the sea, and then at the sky, as if he would "
    "ask of them what he could not ask of us."
)


@pytest.mark.parametrize("name", BUILTIN)
def test_it_is_small_and_says_what_it_is(name: str):
    folder = fetched(name)
    assert (folder / MODEL).stat().st_size < 15_000_000
    assert not [path for path in PRETRAINED.iterdir() if path.name not in BUILTIN]
    model = unmask.load(name)
    assert {weight.dtype for weight in model.network.parameters()} == {torch.bfloat16}

    card = (folder / "README.md").read_text(encoding="utf-8")
    for told in ("unmask prepare", "unmask train", "6ND", "perplexity", "trigram", "± ", f"--checkpoint {name}"):
        assert told in card


@pytest.mark.parametrize("name", BUILTIN)
def test_it_knows_english(name: str):
    """A passage that it cannot have read costs less than 1.6 nats a byte, and far less than its words turned round."""
    model = unmask.load(name)
    costs = []
    for text in (TEXT, " ".join(reversed(TEXT.split()))):
        x_0 = model.canvas(text)[None]
        costs.append(unmask.log_likelihood(model, x_0, x_0 != model.tokenizer.begin, draws=64))
    assert costs[0].nats / len(TEXT) < 1.6
    error = (costs[0].stderr_mc ** 2 + costs[1].stderr_mc ** 2) ** 0.5
    assert costs[1].nats - costs[0].nats > max(4 * error, 0.1 * costs[0].nats)


@pytest.mark.parametrize("name", BUILTIN)
def test_what_its_card_says_in_python_runs(name: str, capsys: pytest.CaptureFixture):
    card = (fetched(name) / "README.md").read_text(encoding="utf-8")
    exec(card.split("```python")[1].split("```")[0], {})
    assert len(capsys.readouterr().out) > 20


def test_they_are_twins():
    """One tokenizer, one size, equal FLOPs of training: what a comparison of the two rests on."""
    mdm, arm = (unmask.load(name) for name in BUILTIN)
    assert mdm.tokenizer.inner.to_str() == arm.tokenizer.inner.to_str()
    assert (mdm.network.config.causal, arm.network.config.causal) == (False, True)
    assert dataclasses.replace(mdm.network.config, causal=True) == arm.network.config
    first, second = (spent(name)["flops_true"] for name in BUILTIN)
    assert abs(first / second - 1) < 0.01


def test_sample_needs_no_more(capsys: pytest.CaptureFixture):
    main(["sample", "--prompt", "It was", "--length", "6"])
    assert capsys.readouterr().out.startswith("It was")


def test_a_run_begins_from_it(tmp_path: Path):
    """With its tokenizer, and its sizes."""
    (tmp_path / "text.txt").write_text(f"{TEXT}\n\n" * 20, encoding="utf-8")
    data = prepare(str(tmp_path / "text.txt"), tmp_path / "data", tokenizer="builtin", validation=0.2)
    assert Tokenizer.load(data).inner.to_str() == unmask.load("builtin").tokenizer.inner.to_str()
    words = ["train", "tiny", "--data", str(data), "--init", "builtin", "--length", "32", "--batch", "2"]
    words += ["--steps", "0", "--validation-sequences", "2", "--device", "cpu", "--precision", "float32"]
    main([*words, "--out", str(tmp_path / "run")])
    begun, given = unmask.load(tmp_path / "run").network, unmask.load("builtin", dtype=torch.float32).network
    for one, other in zip(begun.parameters(), given.parameters(), strict=True):
        assert torch.equal(one, other)
    config, whole = read_json(tmp_path / "run" / CONFIG), spent("builtin")
    assert (config["budget"]["tokens"], config["before"]) == (0, whole)
    card = (convert(tmp_path / "run", tmp_path / "out", "unmask") / "README.md").read_text()
    assert f"| tokens before | {whole['tokens']:,} |" in card


def test_a_run_of_adapters_of_it_is_loaded(tmp_path: Path):
    """By its name: no path is made of it."""
    (tmp_path / "text.txt").write_text(f"{TEXT}\n\n" * 20, encoding="utf-8")
    data = prepare(str(tmp_path / "text.txt"), tmp_path / "data", tokenizer="builtin", validation=0.2)
    words = ["train", "tiny", "--data", str(data), "--init", "builtin", "--lora", "1", "--length", "16", "--batch", "2"]
    words += ["--steps", "1", "--validation-sequences", "2", "--device", "cpu", "--out", str(tmp_path / "run")]
    main(words)
    assert read_json(tmp_path / "run" / CONFIG)["adapters"]["base"] == "builtin"
    assert unmask.load(tmp_path / "run").network.config.width == unmask.load("builtin").network.config.width


def test_a_run_goes_on_when_what_it_began_as_is_gone(tmp_path: Path):
    """Its own settings say its sizes."""
    (tmp_path / "text.txt").write_text(f"{TEXT}\n\n" * 20, encoding="utf-8")
    data = prepare(str(tmp_path / "text.txt"), tmp_path / "data", tokenizer="builtin", validation=0.2)
    shutil.copytree(fetched("builtin"), donor := tmp_path / "donor")
    words = ["train", "tiny", "--data", str(data), "--init", str(donor), "--length", "32", "--batch", "2"]
    words += ["--steps", "2", "--validation-sequences", "2", "--device", "cpu", "--out", str(tmp_path / "run")]
    main(words)
    shutil.rmtree(donor)
    main(words)
    assert unmask.load(tmp_path / "run").network.config.width == unmask.load("builtin").network.config.width
