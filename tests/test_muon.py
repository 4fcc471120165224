"""Muon in the trainer: the step it takes, whose parameters, and that a run with it is like any other."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint
from safetensors.torch import load_file
from settings import prepared_words, small
from torch.utils.flop_counter import FlopCounterMode

from unmask.files import read_lines
from unmask.train import Optimiser, parallel, train
from unmask.train.budget import memory
from unmask.train.optimiser import hidden_matrices, muon_flops, optimisers
from unmask.transformer import Transformer, TransformerConfig

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
MUON = Optimiser(rate=1e-2, warmup=5, muon=hasattr(torch.optim, "Muon"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepared_words(tmp_path_factory.mktemp("words"))


def network(**changes) -> Transformer:
    return Transformer(TransformerConfig(vocab=20, layers=2, heads=2, width=16, **changes), seed=0)


def stepped(network: Transformer, settings: Optimiser) -> None:
    for each in optimisers(network, settings):
        each.step()


@pytest.mark.parametrize("flavour", ["llama", "dit"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_blocks_matrices_are_muons_and_all_else_is_adamws(flavour, tied):
    """Each parameter has one optimiser; embedding, output layer, norms and biases are not Muon's."""
    net = network(flavour=flavour, tied=tied, qkv_bias=True)
    adamw, muon = (
        [p for group in each.param_groups for p in group["params"]] for each in optimisers(net, Optimiser(muon=True))
    )
    names = {id(p): name for name, p in net.named_parameters()}
    assert sorted(names[id(p)] for p in [*adamw, *muon]) == sorted(names.values())
    kinds = ("qkv", "project", *(("gate_up", "down") if flavour == "llama" else ("up", "down")))
    parts = [("attention" if kind in ("qkv", "project") else "mlp", kind) for kind in kinds]
    expected = {f"blocks.{i}.{part}.{kind}.weight" for i in range(2) for part, kind in parts}
    assert {names[id(p)] for p in muon} == expected
    assert [type(each).__name__ for each in optimisers(net, Optimiser())] == ["AdamW"]


def iterated(s: torch.Tensor) -> torch.Tensor:
    """What five Newton-Schulz iterations a s + b s^3 + c s^5 make of singular values, first divided by their norm."""
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


def test_a_step_keeps_singular_vectors_and_makes_singular_values_near_one():
    """For a gradient U S V' that is known, the weights move by 0.2 sqrt(longer side) x rate along U f(S) V'."""
    net, rate = network(), 1e-2
    before = [p.detach().clone() for p in hidden_matrices(net)]
    generator, known = torch.Generator().manual_seed(3), []
    for p in hidden_matrices(net):
        k = min(p.shape)
        u, v = (torch.linalg.qr(torch.randn(side, k, generator=generator))[0] for side in p.shape)
        s = torch.linspace(0.3, 3.0, k)
        p.grad = u @ torch.diag(s) @ v.T
        known.append((u, s, v))
    stepped(net, Optimiser(rate=rate, weight_decay=0.0, muon=True))
    for p, old, (u, s, v) in zip(hidden_matrices(net), before, known, strict=True):
        step = (old - p.detach()) / (rate * 0.2 * max(p.shape) ** 0.5)
        turned = u.T @ step @ v
        assert torch.allclose(turned.diag(), iterated(s), atol=0.03)  # bfloat16
        assert float((turned - turned.diag().diag()).abs().max()) < 0.03
        assert float((step - u @ turned @ v.T).abs().max()) < 0.02  # nothing outside the gradient's own directions
        found = torch.linalg.svdvals(step)
        assert 0.65 < float(found.min()) <= float(found.max()) < 1.25
        assert float(s.max() / s.min()) > 9  # the gradient's own values are far from equal


def test_without_a_gradients_direction_there_is_decay_alone():
    net = network()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    before = [p.detach().clone() for p in hidden_matrices(net)]
    stepped(net, Optimiser(rate=1e-2, weight_decay=0.3, muon=True))
    for p, old in zip(hidden_matrices(net), before, strict=True):
        assert torch.allclose(p, (1 - 1e-2 * 0.3) * old, rtol=1e-6)


def test_its_work_and_memory_are_counted(data):
    """torch's own count of a step's products, and one moment of the matrices less."""
    net = network()
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    with FlopCounterMode(display=False) as counter:
        stepped(net, Optimiser(muon=True))
    assert counter.get_total_flops() == muon_flops(net.config)
    plain, with_muon = small(data), small(data, optimiser=MUON)
    assert with_muon.cost()["flops_true"] - plain.cost()["flops_true"] == pytest.approx(20 * muon_flops(plain.network))
    matrices = hidden_matrices(Transformer(plain.network, seed=None))
    assert memory(plain)["state"] - memory(with_muon)["state"] == 4 * sum(p.numel() for p in matrices)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    last = sorted((folder / "checkpoints").glob("[0-9]*"))[-1]
    return {name: value for path in last.glob("*.safetensors") for name, value in load_file(path).items()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resume_is_bitwise(data, tmp_path, monkeypatch, precision):
    """With accumulation and an average: 20 steps equal 10, a crash, and 10 more, momentum included."""
    from unmask.train.loop import _Run

    config = small(data, optimiser=MUON, precision=precision, ema=0.9, accumulate=2)
    train(config, tmp_path / "whole")
    save = _Run.save

    def crash(self) -> None:
        save(self)
        if self.step == 10:
            raise InterruptedError

    monkeypatch.setattr(_Run, "save", crash)
    with pytest.raises(InterruptedError):
        train(config, tmp_path / "cut")
    monkeypatch.undo()
    train(config, tmp_path / "cut")
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert {"momentum_buffer.blocks.0.mlp.down.weight", "exp_avg_sq.embedding.weight"} <= left.keys()
    assert "exp_avg_sq.blocks.0.mlp.down.weight" not in left


def test_it_learns_and_is_another_run_than_adamws(data, tmp_path):
    for settings in (MUON, replace(MUON, muon=False)):
        train(small(data, optimiser=settings, steps=60, dropout=0.0), tmp_path / str(settings.muon))
    muon, adamw = ([row["loss"] for row in read_lines(tmp_path / name / "metrics.jsonl") if row["kind"] == "train"]
                   for name in ("True", "False"))  # fmt: skip
    assert muon[0] == adamw[0]
    assert muon[-1] != adamw[-1]
    assert sum(muon[-10:]) / 10 < muon[0] - 2


def test_a_run_begun_before_there_was_muon_goes_on(data, tmp_path):
    """Its config.json does not say; that is no Muon."""
    train(small(data, steps=2), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    del config["requested"]["optimiser"]["muon"]
    path.write_text(json.dumps(config))
    train(small(data, steps=2), tmp_path / "run")
    with pytest.raises(ValueError, match=r"other settings \(optimiser"):
        train(small(data, steps=2, optimiser=MUON), tmp_path / "run")


def test_what_cannot_be_is_refused_before_anything_is_written(data, monkeypatch):
    with pytest.raises(ValueError, match=r"whole matrices.*--parallel ddp"):
        small(data, optimiser=MUON, parallel="fsdp")
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match=r"muon: torch .* has none: install torch 2\.9"):
        Optimiser(muon=True)
    assert Optimiser().muon is False


def test_sharding_is_refused_where_its_state_could_not_be_saved(monkeypatch):
    monkeypatch.setattr("unmask.ranks.world", lambda: 2)
    assert parallel.sharded("fsdp")
    monkeypatch.delattr(torch.distributed.checkpoint, "HuggingFaceStorageWriter")
    with pytest.raises(ValueError, match=r"parallel fsdp: torch .* writes no sharded safetensors.*--parallel ddp"):
        parallel.sharded("fsdp")
    assert not parallel.sharded("ddp")
