"""Experiments that begin as checkpoints: which run begins as which, by whose tokenizer, and that it trains."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hubs import as_cache, offline_hub
from settings import prepared_words, small

from unmask.checkpoint import CONFIG, MODEL, convert, describe, load
from unmask.checkpoint.tensors import write_published
from unmask.data import Tokenizer, byte_tokenizer, load_manifest, prepare
from unmask.data.pairs import template_of
from unmask.experiments import Guidance, Tradeoff, Understanding, experiment
from unmask.experiments.beginning import Beginning
from unmask.experiments.running import Cell, told
from unmask.experiments.setting import SETTINGS
from unmask.files import write_json
from unmask.objectives import AnyOrder, NextToken
from unmask.train import train
from unmask.transformer import Transformer, TransformerConfig


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    data = prepared_words(folder)
    return {
        name: str(train(small(data, causal=name == "arm", steps=1, dropout=0.0), folder / name))
        for name in ("mdm", "arm")
    }


def cell(runs: dict[str, str], *, causal: bool) -> Cell:
    config = small(Path(runs["mdm"]).parent / "data", causal=causal, layers=3)
    return Cell("a", replace(config, steps=400))


def test_each_kind_begins_as_its_own(runs):
    beginning = Beginning((runs["arm"], runs["mdm"]))
    for causal, name in ((True, "arm"), (False, "mdm")):
        config = beginning(cell(runs, causal=causal)).config
        assert config.init == runs[name]
        assert config.network.layers == 1
        assert (config.network.causal, config.network.shifted) == (causal, False)
    opened = Beginning((runs["arm"],))(cell(runs, causal=False)).config
    assert opened.init == runs["arm"]
    assert (opened.network.causal, opened.network.shifted) == (False, True)
    weights = opened.initial(Tokenizer.load(Path(opened.data)))
    donor = load(runs["arm"]).network.state_dict()
    assert weights is not None
    assert all(torch.equal(weights[name], donor[name]) for name in donor if name != "embedding.weight")
    with pytest.raises(ValueError, match="bidirectional model begins no ARM: name an ARM as well"):
        Beginning((runs["mdm"],))(cell(runs, causal=True))


def test_nothing_named_changes_nothing_but_steps_and_rate(runs):
    plain = cell(runs, causal=False)
    assert Beginning()(plain) == plain
    config = Beginning(steps=40, rate=1e-4)(plain).config
    assert (config.steps, config.optimiser.rate, config.optimiser.warmup, config.init) == (40, 1e-4, 2, None)
    assert Beginning().tokenizer(Path("nowhere")) is None


def test_what_no_run_can_begin_as(runs, tmp_path: Path):
    with pytest.raises(ValueError, match="two of one kind"):
        Beginning((runs["arm"], runs["arm"] + "/best")).tokenizer(tmp_path)
    other = train(small(Path(runs["mdm"]).parent / "data", steps=1), tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {key: 255 - i for key, i in tokenizer["model"]["vocab"].items() if i < 256} | {
        key: i for key, i in tokenizer["model"]["vocab"].items() if i > 255
    }
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="two tokenizers: name checkpoints of one"):
        Beginning((runs["arm"], str(other))).tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no run folder and no published checkpoint"):
        Beginning((str(tmp_path / "nothing"),)).tokenizer(tmp_path)


def test_a_published_checkpoint_with_rows_to_spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As LLaDA's: rows beyond its tokenizer's, the mask among the tokens; by its address, fine-tuned, loaded again."""
    hub = offline_hub(tmp_path, monkeypatch)
    donor = tmp_path / "donor"
    donor.mkdir()
    network = TransformerConfig(vocab=270, layers=1, heads=2, width=16, mask_id=265)
    write_json(donor / CONFIG, {"name": "donor", "network": describe(network), "requested": {"length": 64}})
    write_published(donor / MODEL, Transformer(network, seed=0).state_dict())
    byte_tokenizer().save(donor)
    as_cache(hub, "someone/llada", convert(donor, tmp_path / "out", "llada"))
    beginning = Beginning(("hf://someone/llada",), steps=2, rate=1e-3)
    asked = tmp_path / "asked.jsonl"
    asked.write_text("\n".join(json.dumps({"prompt": f"{i}+0=", "response": f"{i}"}) for i in range(10, 40)))
    which = Guidance(questions=str(asked), weights=(1.0,), temperatures=(0.0,), beginning=beginning)
    assert experiment(which, "tiny", tmp_path / "runs", source=str(asked)) is not None
    tuned = load(tmp_path / "runs" / "unsupervised-0")
    assert (tuned.vocab, tuned.mask_id, tuned.tokenizer.vocab) == (270, 265, 258)


def test_the_chat_template_comes_with_the_tokenizer(runs, tmp_path: Path):
    source = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    settings = Path(runs["mdm"]) / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": source}))
    folder = Beginning((runs["mdm"],)).tokenizer(tmp_path)
    settings.unlink()
    assert folder is not None
    assert template_of(folder).source == source
    assert Tokenizer.load(folder).inner.to_str() == load(runs["mdm"]).tokenizer.inner.to_str()


def test_two_chat_templates_are_refused(runs, tmp_path: Path):
    settings = Path(runs["mdm"]) / "tokenizer_config.json"
    settings.write_text(
        json.dumps({"chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}"})
    )
    try:
        with pytest.raises(ValueError, match="two chat templates"):
            Beginning((runs["mdm"], runs["arm"])).tokenizer(tmp_path)
    finally:
        settings.unlink()


def test_guidance_that_is_learnt_needs_training(runs, tmp_path: Path):
    with pytest.raises(ValueError, match="steps 0: standard guidance is learnt in training"):
        Guidance(beginning=Beginning((runs["mdm"],), steps=0)).corpus("tiny", "builtin", tmp_path)


def test_pretrained_and_fine_tuned_in_one_command(runs, tmp_path: Path):
    """An MDM opened from the ARM, fine-tuned on sums: pairs are read with its tokenizer, bytes, not by characters."""
    rows = [{"prompt": f"{i:02}+1=", "response": f"{i + 1:02}", "match": "text"} for i in range(60)]
    learnt, asked = tmp_path / "learnt.jsonl", tmp_path / "asked.jsonl"
    learnt.write_text("\n".join(map(json.dumps, rows[:50])))
    asked.write_text("\n".join(map(json.dumps, rows[50:])))
    which = Tradeoff(questions=str(asked), together=(1,), beginning=Beginning((runs["arm"],), steps=2, rate=1e-3))
    out = tmp_path / "out"
    path = experiment(which, "tiny", out, source=str(learnt))
    assert path is not None
    for name in ("arm-1-0", "mdm-1-0"):
        config = json.loads((out / name / "config.json").read_text())["requested"]
        assert (config["init"], config["steps"], config["network"]["width"]) == (runs["arm"], 2, 32)
    assert load_manifest(out / "pairs-1")["tokenizer"]["vocab"] == 258
    said = json.loads(path.read_text())["command"]
    assert f"--questions {asked} --together 1 --init {runs['arm']} --steps 2 --rate 0.001 --scale tiny" in said


def test_checkpoints_are_measured_as_they_are(runs, tmp_path: Path):
    """No step: a run with the weights and the length of each, and one seed, for there is nothing to draw."""
    beginning = Beginning((runs["mdm"], runs["arm"]), steps=0)
    text = tmp_path / "text.txt"
    text.write_text("some words in a row, and more of them " * 200)
    data = prepare(str(text), tmp_path / "data", tokenizer="bytes")
    cells = Understanding(beginning=beginning).plan("laptop", str(data), [])
    assert [cell.name for cell in cells] == ["mdm-0", "arm-0"]
    for cell, name in zip(cells, ("mdm", "arm"), strict=True):
        assert cell.config.length == load(runs[name]).config["requested"]["length"] != SETTINGS["laptop"].length
        out = train(cell.config, tmp_path / name)
        assert train(cell.config, tmp_path / name) == out
        theirs, ours = load(runs[name]).network.state_dict(), load(out).network.state_dict()
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    with pytest.raises(ValueError, match="steps 0 must be at least 1, or 0 of what --init names"):
        replace(cells[0].config, init=None)


def test_every_fine_tuned_claim_takes_checkpoints(runs, tmp_path: Path):
    beginning = Beginning((runs["mdm"], runs["arm"]))
    assert told(Guidance(beginning=beginning)) == ["--init", runs["mdm"], runs["arm"]]
    data = str(Path(runs["mdm"]).parent / "data")
    cells = Understanding(beginning=beginning).plan("tiny", data, [])
    assert [(each.config.init, type(each.config.objective)) for each in cells] == [
        (runs["mdm"], AnyOrder), (runs["arm"], NextToken),
    ]  # fmt: skip
    assert isinstance(cells[0].config.network, TransformerConfig)
