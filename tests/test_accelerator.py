"""On another device than the CPU: the same results, nothing left behind, and no waiting that was not asked for."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import accelerator
import pytest
import torch
from accelerator import THERE, is_there, waits
from settings import prepared_words, small

from unmask.checkpoint import load
from unmask.cli import main
from unmask.conditioned import Conditioned, ConditionedConfig
from unmask.data import byte_tokenizer
from unmask.draws import widest
from unmask.grammar import regex
from unmask.likelihood import decoder_log_likelihood, log_likelihood, ordered_log_likelihood
from unmask.network import Network
from unmask.objectives import AnyOrder, LambdaDCE, TimeDCE, TimeDSE
from unmask.sampling import (
    Blocks,
    Confidence,
    Constraint,
    Draw,
    Entropy,
    EntropyBound,
    Greedy,
    LeftToRight,
    LowConfidence,
    Margin,
    RandomOrder,
    Rated,
    Remasking,
    Speculative,
    Threshold,
    Tweedie,
    draw_plan,
    sample,
)
from unmask.train import Optimiser, train
from unmask.transformer import Transformer, TransformerConfig
from unmask.wrappers import Biased, Guided

VOCAB, MASK = 258, 258
MDM = TransformerConfig(VOCAB, layers=2, heads=2, width=32)
ARM = replace(MDM, causal=True)
TIMED = ConditionedConfig(VOCAB, layers=2, heads=2, width=32, condition=8, reading="score")
CANVASES = [torch.tensor([5] * (2 + i) + [MASK] * (8 - i)) for i in range(4)]
POLICIES = [
    *(Blocks(4, Confidence()), Confidence(2), Entropy(), EntropyBound(3.0), Greedy(4), LeftToRight(), LowConfidence(4)),
    *(Margin(), RandomOrder(), Rated(Tweedie(4)), Remasking(6), Speculative(), Threshold(0.02), Tweedie(4)),
]


def twice(config: TransformerConfig | ConditionedConfig, dtype=torch.float64) -> tuple[Network, Network]:
    """A random network, here and there."""
    networks = []
    for device in ("cpu", THERE):
        network = Conditioned(config) if isinstance(config, ConditionedConfig) else Transformer(config, seed=7)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in network.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
        networks.append(network.to(device, dtype).eval().requires_grad_(False))
    return networks[0], networks[1]


def test_there_is_another_place():
    weight = torch.ones(3, device=THERE)
    assert is_there(weight + 1)
    assert (weight * 2).tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(RuntimeError, match=r"one tensor lies there, one of shape \(3,\) on the CPU"):
        weight + torch.ones(3)
    with waits() as waited:
        weight.sum().item()
    assert waited == ["_local_scalar_dense"]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_samples_are_those_of_here(policy):
    for draw in (Draw(), Draw(0.7, top_k=9, top_p=0.9)):
        here, there = (sample(network, CANVASES, policy, draw=draw, seed=3, batch=3) for network in twice(MDM))
        assert [row.tolist() for row in there.tokens] == [row.tolist() for row in here.tokens]
        assert there.nfe.tolist() == here.nfe.tolist()


def without_float64(monkeypatch) -> None:
    """There as on Apple's GPUs."""

    def narrow(device: torch.device) -> torch.dtype:
        return torch.float32 if device.type == THERE else torch.float64

    monkeypatch.setattr(accelerator, "LACKING", {torch.float64})
    for module in [module for name, module in sys.modules.items() if name.startswith("unmask")]:
        if getattr(module, "widest", None) is widest:
            monkeypatch.setattr(module, "widest", narrow)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_draws_are_in_float64_where_the_device_has_none(policy, monkeypatch):
    """They are the same, bit for bit: of the same logits, on the host."""
    (_, there), kinds, adjust = twice(MDM, torch.float32), set(), Draw.adjust
    monkeypatch.setattr(Draw, "adjust", lambda *of: (kinds.add((law := adjust(*of)).dtype), law)[1])

    def found() -> tuple[list, ...]:
        samples = sample(there, CANVASES, policy, draw=Draw(0.7, top_k=9, top_p=0.9), seed=3, batch=3)
        return [row.tolist() for row in samples.tokens], [row.tolist() for row in samples.confidence]

    wide = found()
    without_float64(monkeypatch)
    assert found() == wide
    assert kinds == {torch.float64}


WRAPPED: dict[str, Callable[[Network], Network]] = {
    "guided": lambda network: Guided.of(network, CANVASES, 1.5, absent=0),
    "biased": lambda network: Biased(network, {7: -torch.inf, 9: 2.0}),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("config", [MDM, ARM], ids=["MDM", "ARM"])
def test_so_are_those_of_wrapped_networks(name, config):
    here, there = (sample(WRAPPED[name](network), CANVASES, LeftToRight(), seed=4) for network in twice(config))
    assert [row.tolist() for row in there.tokens] == [row.tolist() for row in here.tokens]


def test_so_are_those_of_networks_of_other_kinds():
    """One that keeps keys and values, and one that is told the level."""
    for config, policy in ((ARM, LeftToRight()), (TIMED, Rated(Tweedie(8))), (TIMED, RandomOrder())):
        here, there = (sample(network, CANVASES, policy, seed=5, batch=3) for network in twice(config))
        assert [row.tolist() for row in there.tokens] == [row.tolist() for row in here.tokens]


@pytest.mark.filterwarnings("ignore:torch.searchsorted")  # a tensor there does not know how its numbers lie
def test_so_are_those_held_to_a_pattern():
    constraint = Constraint(regex(byte_tokenizer(), "[0-9]+(,[0-9]+)*"))
    for policy in (RandomOrder(2), Confidence()):
        here, there = (sample(each, CANVASES, policy, seed=6, constraint=constraint) for each in twice(MDM))
        assert [row.tolist() for row in there.tokens] == [row.tolist() for row in here.tokens]


@pytest.mark.filterwarnings("ignore:torch.searchsorted")
def test_nothing_else_needs_float64_there(monkeypatch, data, tmp_path):
    """Wrapped networks, networks of other kinds, a pattern, likelihoods, training."""
    without_float64(monkeypatch)
    _, mdm = twice(MDM, torch.float32)
    for wrap in WRAPPED.values():
        sample(wrap(mdm), CANVASES, LeftToRight())
    for config, policy in ((ARM, LeftToRight()), (TIMED, Rated(Tweedie(8)))):
        sample(twice(config, torch.float32)[1], CANVASES, policy)
    sample(mdm, CANVASES, Confidence(), constraint=Constraint(regex(byte_tokenizer(), "[0-9]+")))
    x_0 = torch.full((1, 12), 7)
    log_likelihood(mdm, x_0, draws=16)
    ordered_log_likelihood(mdm, x_0, draw_plan(RandomOrder(), x_0 == 7))
    decoder_log_likelihood(mdm, x_0, x_0 == 7, Confidence())
    for objective in (AnyOrder(), LambdaDCE(), TimeDCE(), TimeDSE()):
        train(small(data, steps=2, device=THERE, objective=objective), tmp_path / type(objective).__name__)
    train(small(data, steps=2, device=THERE, causal=True), tmp_path / "arm")


def test_likelihoods_are_those_of_here_and_wait_once():
    x_0 = torch.randint(VOCAB, (1, 12), generator=torch.Generator().manual_seed(2))
    maskable = torch.arange(12)[None] > 2
    plan = draw_plan(RandomOrder(), maskable, seed=1)
    for of, times in (
        (lambda network: log_likelihood(network, x_0, maskable, draws=32), 1),
        (lambda network: ordered_log_likelihood(network, x_0, plan), 1),
        (lambda network: decoder_log_likelihood(network, x_0, maskable, Confidence()), 3 * 9),
    ):
        here, there = twice(MDM)
        with waits() as waited:
            found = of(there).nats
        assert found == pytest.approx(of(here).nats, rel=1e-12)
        assert len(waited) == times


def test_a_call_of_sampling_waits_for_what_it_wrote_alone():
    """The tokens and how sure they were; where to write next is known on the host."""
    _, there = twice(MDM)
    with waits() as waited:
        samples = sample(there, [CANVASES[0]] * 3, RandomOrder(), batch=3)
    assert len(waited) == 2 * int(samples.nfe.max())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepared_words(tmp_path_factory.mktemp("there"))


MUON = Optimiser(rate=1e-2, warmup=5, muon=True)
RUNS = {
    "k-dce": {"ema": 0.5, "accumulate": 2, "short_batches": 0.3},
    "lambda-dce": {"objective": LambdaDCE(), "recompute": True},
    "t-dce": {"objective": TimeDCE(), "documents_apart": True},
    "t-dse": {"objective": TimeDSE()},
    "arm": {"causal": True},
    "muon": {"optimiser": MUON},
}


@pytest.mark.parametrize("name", RUNS)
def test_training_is_that_of_here(name, data, tmp_path):
    """Interrupted and gone on with. (Muon's orthogonal steps are computed in bfloat16.)"""
    runs = {}
    for device in ("cpu", THERE):
        config = small(data, **{"dropout": 0.0, "steps": 6, "save_every": 3, **RUNS[name]}, device=device)
        train(replace(config, minutes=1e-9), tmp_path / device)
        train(config, tmp_path / device)
        runs[device] = load(tmp_path / device).network.state_dict()
    for key, weight in runs["cpu"].items():
        torch.testing.assert_close(runs[THERE][key], weight, atol=5e-3 if name == "muon" else 2e-4, rtol=0)


def test_a_step_waits_for_its_numbers_alone(data, tmp_path):
    counts = []
    for steps in (10, 20):
        with waits() as waited:
            train(small(data, steps=steps, device=THERE, validate_every=50, save_every=50), tmp_path / str(steps))
        counts.append(len(waited))
    assert counts[1] - counts[0] == 10


def test_training_in_fewer_bits_and_with_adapters(data, tmp_path):
    train(small(data, steps=2, device=THERE, precision="bfloat16"), tmp_path / "run")
    train(small(data, steps=2, device=THERE, init=str(tmp_path / "run"), lora=2), tmp_path / "adapted")
    adapted = load(tmp_path / "adapted", device=THERE).network
    assert all(is_there(weight) for weight in adapted.parameters())


def test_every_command_takes_a_device(capsys, data, tmp_path):
    run, judge, asked = tmp_path / "run", tmp_path / "judge", tmp_path / "asked.jsonl"
    train(small(data, steps=2, device=THERE), run)
    train(small(data, steps=2, device=THERE, causal=True), judge)
    asked.write_text('{"prompt": "one", "response": " two"}\n')
    common = ("--checkpoint", str(run), "--device", THERE)
    for words, said in (
        (("sample", *common, "--prompt", "one", "--length", "8"), "NFE 8"),
        (("evaluate", "perplexity", *common, "--data", str(data)), "upper bound"),
        (("evaluate", "generation", *common, "--judge", str(judge), "--count", "2", "--length", "8"), "entropy"),
        (
            ("evaluate", "answers", *common, "--questions", str(asked), "--out", str(tmp_path / "a.jsonl")),
            "exact match",
        ),
    ):
        main([*words])
        assert said in capsys.readouterr().out
