"""Adapters: nothing at first, alone in being trained and saved, and merged into the weights when they are loaded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from settings import prepared_words, small

from unmask import load
from unmask.checkpoint import convert
from unmask.checkpoint.adapting import fingerprint
from unmask.cli import main
from unmask.data import prepare
from unmask.files import read_lines
from unmask.lora import ALL, ALPHA, attach, count, merged
from unmask.objectives import AnyOrder
from unmask.train import Optimiser, train
from unmask.train.budget import memory
from unmask.transformer import Transformer, TransformerConfig

SIZES = TransformerConfig(vocab=20, layers=2, heads=2, width=16)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[Path, Path]:
    """(data, a run that has learnt a little of them)"""
    folder = tmp_path_factory.mktemp("base")
    data = prepared_words(folder)
    return data, train(small(data, steps=40), folder / "base")


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Path:
    """Text that the base has never seen, in its tokenizer."""
    folder = tmp_path_factory.mktemp("others")
    (folder / "text.txt").write_text("\n".join(f"AB{i % 2}AB{i % 2}AB" * 4 for i in range(200)), encoding="utf-8")
    return prepare(str(folder / "text.txt"), folder / "data", tokenizer="bytes", validation=0.2)


def adapting(base: tuple[Path, Path], **changes):
    data, run = base
    return replace(small(data, init=str(run), seed=1, optimiser=Optimiser(rate=3e-2, warmup=5)), lora=4, **changes)


def network(flavour: str = "llama", **changes) -> Transformer:
    """Its output layer is drawn too, that what comes before it is seen."""
    net = Transformer(replace(SIZES, flavour=flavour, **changes), seed=0)
    if net.output is not None:
        torch.nn.init.normal_(net.output.weight, generator=torch.Generator().manual_seed(1))
    return net


def logits(net: Transformer) -> torch.Tensor:
    tokens = torch.randint(20, (3, 7), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return net(tokens, torch.tensor([at for at in range(21) if at % 7]))


def shaken(net: Transformer) -> None:
    """Adapters that say something."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.2)


def parts(net: Transformer) -> tuple[dict, dict]:
    state = net.state_dict()
    adapters = {name: value for name, value in state.items() if ".adapter." in name}
    return {name: value for name, value in state.items() if name not in adapters}, adapters


@pytest.mark.parametrize("flavour", ["llama", "dit"])
def test_fresh_adapters_change_nothing_and_alone_get_a_gradient(flavour):
    plain, net = network(flavour), network(flavour)
    attach(net, 3, ALL, seed=0)
    assert torch.equal(logits(net), logits(plain))
    names = {name for name, p in net.named_parameters() if p.requires_grad}
    first = "gate_up" if flavour == "llama" else "up"
    layers = [f"blocks.{i}.{at}.adapter" for i in (0, 1)
              for at in ("attention.qkv", "attention.project", f"mlp.{first}", "mlp.down")]  # fmt: skip
    assert names == {f"{layer}.{part}" for layer in layers for part in ("down", "up")}
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == count(net.config, 3, ALL)
    x_0 = torch.randint(20, (3, 7), generator=torch.Generator().manual_seed(2))
    u, noise = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64), torch.rand(3, 7, dtype=torch.float64)
    AnyOrder()(net, x_0, x_0 >= 0, u, noise).sum().backward()
    for name, p in net.named_parameters():
        assert (p.grad is not None) == (name in names), name
        if name.endswith("adapter.up"):
            assert float(p.grad.abs().max()) > 0, name


def test_the_gradient_of_an_adapter_is_that_of_the_merged_weight():
    """By B: s (dL/dW) A', by A: s B' dL/dW; the head gives the same gradients with and without its weight's own."""
    net = network().double()
    attach(net, 3, ("down",), seed=0)
    net.double()
    shaken(net)
    whole = network().double()
    whole.load_state_dict(merged(*parts(net), 3))
    x_0 = torch.randint(20, (3, 7), generator=torch.Generator().manual_seed(2))
    noise = torch.rand(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for each in (net, whole):
        AnyOrder()(each, x_0, x_0 >= 0, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64), noise).sum().backward()
    for ours, theirs in zip(net.blocks, whole.blocks, strict=True):
        adapter, above = ours.mlp.down.adapter, theirs.mlp.down.weight.grad
        assert torch.allclose(adapter.up.grad, ALPHA / 3 * above @ adapter.down.T, rtol=1e-9, atol=1e-12)
        assert torch.allclose(adapter.down.grad, ALPHA / 3 * adapter.up.T @ above, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("changes", [{}, {"causal": True}, {"tied": True, "qkv_bias": True, "kv_heads": 1}])
def test_merging_is_exact(changes):
    """In float64 to rounding; of the weights nothing changes but those that have adapters."""
    net = network(**changes).double()
    attach(net, 3, ("qkv", "gate_up"), seed=0)
    net.double()
    shaken(net)
    weights, adapters = parts(net)
    whole = network(**changes).double()
    whole.load_state_dict(merged(weights, adapters, 3))
    assert torch.allclose(logits(net), logits(whole), rtol=1e-11, atol=1e-11)
    changed = {name for name, value in whole.state_dict().items() if not torch.equal(value, weights[name])}
    assert changed == {f"blocks.{i}.{at}.weight" for i in (0, 1) for at in ("attention.qkv", "mlp.gate_up")}
    assert not torch.allclose(logits(whole), logits(network(**changes).double()), atol=1e-3)
    with pytest.raises(ValueError, match="not of rank 2"):
        merged(weights, adapters, 2)
    with pytest.raises(ValueError, match="does not fit"):
        merged({name: value[:5] for name, value in weights.items()}, adapters, 3)


def test_a_run_saves_adapters_alone_and_is_loaded_merged(base, tmp_path):
    """Small files, the base named by path and fingerprint; loading, and what is converted, are whole models."""
    run = train(adapting(base, steps=30), tmp_path / "run")
    for path in run.rglob("*.safetensors"):
        assert all(".adapter." in name for name in load_file(path)), path
    told = json.loads((run / "config.json").read_text())["adapters"]
    assert told["base"] == str(base[1].resolve())
    model, donor = load(run), load(base[1])
    state, theirs = model.network.state_dict(), donor.network.state_dict()
    assert state.keys() == theirs.keys()
    assert torch.equal(state["embedding.weight"], theirs["embedding.weight"])
    by_hand = merged(theirs, load_file(run / "model.safetensors"), 4)
    assert all(torch.equal(state[name], by_hand[name]) for name in state)
    assert not torch.equal(state["blocks.0.mlp.down.weight"], theirs["blocks.0.mlp.down.weight"])
    convert(run, tmp_path / "whole", "unmask")
    whole = load(tmp_path / "whole").network.state_dict()
    assert all(torch.equal(state[name], whole[name]) for name in state)
    assert "adapters" not in json.loads((tmp_path / "whole" / "config.json").read_text())


def test_the_first_loss_is_the_bases_and_another_text_is_learnt(base, others, tmp_path):
    run = train(adapting((others, base[1]), steps=60), tmp_path / "run")
    plain = train(small(others, init=str(base[1]), seed=1, steps=1), tmp_path / "plain")
    rows, first = (
        [row["loss"] for row in read_lines(at / "metrics.jsonl") if row["kind"] == "train"] for at in (run, plain)
    )
    assert rows[0] == first[0]
    assert sum(rows[-10:]) / 10 < rows[0] / 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resume_is_bitwise(base, tmp_path, monkeypatch, precision):
    from unmask.train.loop import _Run

    config = adapting(base, precision=precision, accumulate=2)
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
    for name in ("model", "state"):
        left, right = (
            load_file(tmp_path / which / "checkpoints" / "00000020" / f"{name}.safetensors")
            for which in ("whole", "cut")
        )
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_a_base_that_is_gone_or_changed_is_told(base, tmp_path):
    data, source = base
    shutil.copytree(source, tmp_path / "base", symlinks=True)
    config = adapting((data, tmp_path / "base"), steps=2)
    run = train(config, tmp_path / "run")
    train(small(data, steps=41, init=str(source), seed=3), tmp_path / "other")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"adapters of .*base, which cannot be had .*put it back"):
        load(run)
    shutil.copytree(tmp_path / "other", tmp_path / "base", symlinks=True)
    with pytest.raises(ValueError, match=r"no longer the checkpoint that it was"):
        load(run)
    with pytest.raises(ValueError, match=r"other settings \(base"):
        train(config, run)


def test_what_it_needs_is_counted_and_what_cannot_be_is_refused(base):
    with_them, without = adapting(base), replace(adapting(base), lora=0)
    network = with_them.network
    saved = memory(without)["state"] - memory(with_them)["state"]
    assert saved == 4 * (3 * network.parameters()["total"] - 4 * with_them.adapters())
    assert 0.6 < with_them.cost()["flops_true"] / without.cost()["flops_true"] < 0.9
    with pytest.raises(ValueError, match="names the checkpoint to adapt by --init"):
        replace(with_them, init=None)
    for changes in ({"ema": 0.9}, {"optimiser": Optimiser(muon=hasattr(torch.optim, "Muon"))}):
        if changes.get("ema") or hasattr(torch.optim, "Muon"):
            with pytest.raises(ValueError, match="no average and no muon"):
                replace(with_them, **changes)
    with pytest.raises(ValueError, match="a rank of 0 or more"):
        replace(with_them, lora_on=())


def test_a_base_in_bfloat16_stays_in_it(base, others, tmp_path):
    """The weights take half the memory, the adapters are in float32, and it learns; loaded as the base is stored."""
    from unmask.checkpoint.tensors import write_published

    source, half = base[1], tmp_path / "half"
    half.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(source / name, half / name)
    tensors = {name: value.bfloat16() for name, value in load(source).network.state_dict().items()}
    write_published(half / "model.safetensors", tensors)
    run = train(adapting((others, half), precision="bfloat16", steps=60), tmp_path / "run")
    rows = [row["loss"] for row in read_lines(run / "metrics.jsonl") if row["kind"] == "train"]
    assert sum(rows[-10:]) / 10 < rows[0] / 2
    assert {value.dtype for value in load_file(run / "model.safetensors").values()} == {torch.float32}
    assert {value.dtype for value in load(run).network.state_dict().values()} == {torch.bfloat16}


def test_asked_for_in_float32_it_is_merged_in_float32(base, tmp_path):
    """Small changes of bfloat16 weights would be rounded away."""
    from unmask.checkpoint.tensors import write_published

    half = tmp_path / "half"
    shutil.copytree(base[1], half, symlinks=True)
    tensors = {name: value.bfloat16() for name, value in load(base[1]).network.state_dict().items()}
    write_published(half / "model.safetensors", tensors)
    run = train(adapting((base[0], half), precision="bfloat16", steps=2), tmp_path / "run")
    adapters = load_file(run / "model.safetensors")
    wide = merged({name: value.float() for name, value in tensors.items()}, adapters, 4)
    state = load(run, dtype=torch.float32).network.state_dict()
    assert all(torch.equal(state[name], wide[name]) for name in wide)
    assert any(not torch.equal(value, value.bfloat16().float()) for value in state.values())


def test_a_base_of_adapters_is_known_by_what_it_stores(base, tmp_path, monkeypatch):
    """Not by the weights that come of it, whose last bits are the processor's; older runs, known by these, are read."""
    first = train(adapting(base, steps=2), tmp_path / "first")
    run = train(adapting((base[0], first), steps=2), tmp_path / "run")
    exact = merged

    def elsewhere(*given):
        return {name: value * (1 + 1e-7) for name, value in exact(*given).items()}

    with monkeypatch.context() as patch:
        patch.setattr("unmask.checkpoint.adapting.merged", elsewhere)
        load(run)
    told = json.loads((run / "config.json").read_text())
    told["adapters"]["fingerprint"] = fingerprint(load(first).network.state_dict())
    (run / "config.json").write_text(json.dumps(told))
    load(run)
    told["adapters"]["fingerprint"] = "0" * 32
    (run / "config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"no longer the checkpoint that it was"):
        load(run)
    told = json.loads((first / "config.json").read_text())
    told["adapters"]["base"] = str(run)
    (first / "config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"which is a base of its own") as caught:
        load(run)
    assert len(str(caught.value)) < 1000


def test_the_command_takes_the_bases_network_and_says_what_it_needs(base, tmp_path, capsys):
    """Whatever the recipe's sizes are; a causal base is opened, and adapted where the recipe is causal too."""
    data, source = base
    out = tmp_path / "run"
    words = ["train", "tiny", "--data", str(data), "--init", str(source), "--lora", "2", "--lora-on", "qkv", "down"]
    words += ["--steps", "2", "--batch", "4", "--length", "32", "--precision", "float32", "--device", "cpu"]
    main([*words, "--out", str(out), "--dry-run"])
    expected = 2 * (32 + 96 + 128 + 32)
    assert f"{expected:,} parameters of adapters of rank 2 are trained" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
    main([*words, "--out", str(out)])
    names = set(load_file(out / "model.safetensors"))
    assert {name.split(".")[3] for name in names} == {"qkv", "down"}
    assert load(out).network.config == replace(load(source).network.config, dropout=0.0)


def test_a_causal_base_is_opened_by_adapters(base, tmp_path):
    """The mask's embedding is made anew, the same each time."""
    data, _ = base
    before = small(data, causal=True, steps=10)
    causal = train(before, tmp_path / "causal")
    opened = replace(before.network, causal=False, shifted=True)
    config = replace(small(data, init=str(causal), steps=3), lora=2, network=opened)
    model = load(train(config, tmp_path / "run"))
    rows, theirs = (each.network.embedding.weight for each in (model, load(causal)))
    assert torch.equal(rows[:-1], theirs)
    assert torch.allclose(rows[-1], theirs.mean(0), atol=1e-6)
