"""The audit: its laws are those enumerated apart from it, right samplers pass, and each known fault is found."""

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from unmask import cli
from unmask.audit import (
    EVERY,
    BlocksLaw,
    CoinsLaw,
    OrderLaw,
    RandomOrderLaw,
    TokensOnly,
    audit,
    stated_law,
    tweedie,
)
from unmask.audit.checking import chi_square, total_variation
from unmask.corruption import Cosine, LogLinear
from unmask.draws import TOKEN, categorical, keyed_uniforms
from unmask.sampling import (
    Blocks,
    Confidence,
    Draw,
    Entropy,
    Greedy,
    LowConfidence,
    Margin,
    RandomOrder,
    Remasking,
    Tweedie,
    expected_nfe,
    sample,
)
from unmask.sampling.adaptive import best, one_stage
from unmask.world import InconsistentTable, Wide
from unmask.wrappers import Biased, Guided

L, M = 4, 3
LAW = r"chi-square p|total variation"
INCONSISTENT = {"inconsistent": InconsistentTable(3, L, seed=9)}
QUICK = {"worlds": INCONSISTENT, "wide": None, "draws": 2000}


# --- right ones pass --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", EVERY, ids=repr)
def test_the_packages_policies_pass(policy):
    audit(policy, **QUICK).check()


@pytest.mark.parametrize("policy", [Tweedie(1024), RandomOrder(3), Greedy(3), Blocks(3, Margin())], ids=repr)
def test_the_packages_policies_pass_on_the_wide_world(policy):
    audit(policy, worlds={}, draws=4000).check()


def identity(asked: Tensor, p: Tensor) -> Tensor:
    return asked


def surest(asked: Tensor, p: Tensor) -> Tensor:
    """The surest position of each row."""
    return best(p.amax(-1), asked, torch.ones(len(p), dtype=torch.long))


class Wrote(NamedTuple):
    tokens: Tensor
    nfe: Tensor


@dataclass(frozen=True)
class ByHand:
    """The plain published loop: at every step coins, predictions of the rows with heads, a choice, tokens.

    With `hazard` 1/(steps left) and all that is asked it is tau-leaping; with hazard 1 and `surest`, confidence.
    """

    steps: int
    hazard: Callable[[int, int], float] = lambda step, steps: 1 / (steps - step)
    keep: Callable[[Tensor, Tensor], Tensor] = identity
    column: bool = False  # the choice sees probabilities among which is the mask's
    late: bool = False  # evaluations are counted after the step, in rows that still have a mask
    prompt: bool = True  # given tokens are kept

    def __call__(self, network, canvases, *, seed, sequences, batch):
        tokens, nfe = canvases.clone(), torch.zeros(len(canvases), dtype=torch.long)
        for start in range(0, len(canvases), batch):
            rows = slice(start, start + batch)
            self.write(network, tokens[rows], nfe[rows], seed, list(sequences)[rows])
        return Wrote(tokens, nfe)

    def write(self, network, x, nfe, seed, numbers) -> None:
        for step in range(self.steps):
            coin, u = keyed_uniforms(seed, numbers, (2, x.shape[1]), TOKEN, step).unbind(1)
            open_ = (x == network.mask_id) if self.prompt else torch.arange(x.shape[1]).expand(x.shape) == step
            asked = open_ & (coin < self.hazard(step, self.steps))
            run = asked.any(-1).nonzero().squeeze(-1)
            if not len(run):
                continue
            logits = network(x[run], torch.arange(len(run) * x.shape[1])).double()
            p = torch.cat([logits, -2 * logits[:, :1]], -1).softmax(-1) if self.column else logits.softmax(-1)
            kept = self.keep(asked[run], p[:, : network.vocab].reshape(len(run), x.shape[1], -1))
            drawn = categorical(logits, u[run].flatten()).view(len(run), -1)
            x[run] = torch.where(kept, drawn, x[run])
            nfe[run] += (x[run] == network.mask_id).any(-1) if self.late else 1


def always(step: int, steps: int) -> float:
    return 1.0


TAU, SURE = ByHand(3), ByHand(L, always, surest)
OF_TAU, OF_SURE = tweedie(3, LogLinear()), stated_law(Confidence())


def test_samplers_written_by_hand_pass():
    audit(TAU, OF_TAU, draws=2000, wide=None).check()
    audit(SURE, OF_SURE, **QUICK).check()


@pytest.mark.parametrize("draw", [Draw(1.7, top_p=0.8), Draw(0.0)], ids=repr)
def test_other_draws_have_other_laws(draw):
    for policy in (RandomOrder(2), LowConfidence(2)):
        audit(policy, draw=draw, **QUICK).check()
    plain = audit(partial(sample, policy=RandomOrder(), draw=draw), RandomOrderLaw(), **QUICK)
    with pytest.raises(AssertionError, match=LAW):
        plain.check()


# --- each known fault is found ----------------------------------------------------------------------------------------


def over_the_batch(asked: Tensor, p: Tensor) -> Tensor:
    """As many of the surest positions as there are rows, wherever they are: published."""
    flat = best(p.amax(-1).flatten()[None], asked.flatten()[None], torch.tensor([len(asked)]))
    return flat.view(asked.shape)


def finish(keep: Callable) -> Callable:
    """What is left at the last step is written, so that only the law is at fault."""
    turn = iter(range(10**9))
    return lambda asked, p: asked if next(turn) % L == L - 1 else keep(asked, p)


FAULTS = {
    "a forgotten reveal": (ByHand(3, lambda step, steps: 1 / (steps + 1 - step)), OF_TAU, "with a mask left"),
    "a prompt overwritten": (ByHand(L, always, prompt=False), OrderLaw(), "given tokens changed"),
    "confidence over the batch": (ByHand(L, always, over_the_batch), OF_SURE, "change with their batch"),
    "confidence with the mask's column": (replace(SURE, column=True), OF_SURE, LAW),
    "evaluations counted after the step": (replace(TAU, late=True), OF_TAU, "the network ran"),
    "another number of steps": (ByHand(4), OF_TAU, LAW),
    "two a step for one": (RandomOrder(2), RandomOrderLaw(), LAW),
    "another order": (Margin(2), stated_law(Confidence(2)), LAW),
    "blocks for none": (Blocks(2, Entropy()), stated_law(Entropy()), LAW),
    "another schedule": (Tweedie(3, Cosine()), OF_TAU, LAW),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name):
    sampler, stated, message = FAULTS[name]
    with pytest.raises(AssertionError, match=message):
        audit(sampler, stated, **QUICK).check()


def test_evaluations_counted_late_are_not_the_laws_either():
    """Even where no counter of rows could tell."""
    result = audit(replace(TAU, late=True), OF_TAU, **QUICK)
    assert any("NFE beyond its limit" in fault for finding in result.findings for fault in finding.faults)


STEPS = 1024


@dataclass(frozen=True)
class Jointly:
    """Published: "still masked" and all tokens in one draw p / noise, noise = -log(u) on a grid of 2^-bits.

    All tokens are equally probable, so the one with the largest of V uniforms decides, and that is
    floor(2^bits U^(1/V)) / 2^bits: the same draw at a cost that a test can pay.
    """

    bits: int

    def __call__(self, network, canvases, *, seed, sequences, batch):
        x, nfe = canvases.clone(), torch.zeros(len(canvases), dtype=torch.long)
        for step in range(STEPS):
            u = keyed_uniforms(seed, sequences, (2, x.shape[1]), TOKEN, step)
            u[:, 1] **= 1 / network.vocab
            noise = -((u * 2**self.bits).floor() / 2**self.bits).log()
            left = STEPS - step
            written = (x == network.mask_id) & (noise[:, 1] * network.vocab * (left - 1) < noise[:, 0])
            run = written.any(-1)
            if bool(run.any()):
                network(x[run], torch.empty(0, dtype=torch.long))
                token = (keyed_uniforms(seed, sequences, x.shape[1:], TOKEN, STEPS + step) * network.vocab).long()
                x, nfe = torch.where(written, token, x), nfe + run
        return Wrote(x, nfe)


def test_the_mask_and_all_tokens_in_one_float32_draw():
    stated = tweedie(STEPS, LogLinear())
    audit(Jointly(53), stated, worlds={}, draws=10_000).check()
    with pytest.raises(AssertionError, match="NFE beyond its limit"):
        audit(Jointly(24), stated, worlds={}, draws=10_000).check()


@dataclass(frozen=True)
class Gumbel:
    """Tokens by noise on a grid of 2^-bits, one step for all; the sure token against the best of the flat tail."""

    bits: int

    def __call__(self, network, canvases, *, seed, sequences, batch):
        network(canvases, torch.empty(0, dtype=torch.long))
        for_all = len(canvases)
        u = keyed_uniforms(seed, sequences, (3, canvases.shape[1]), TOKEN)
        u[:, 1] **= 1 / (network.vocab - 1)
        noise = -((u * 2**self.bits).floor() / 2**self.bits).log()
        ratio = network.sure / (1 - network.sure) * (network.vocab - 1)
        tail = 1 + (u[:, 2] * (network.vocab - 1)).long()
        tokens = torch.where(noise[:, 1] * ratio < noise[:, 0], tail, 0)
        return Wrote(tokens, torch.ones(for_all, dtype=torch.long))


def test_float32_noise_loses_the_tail_behind_a_sure_token():
    options = {"worlds": {}, "wide": Wide(sure=1 - 1 / 1024), "draws": 1_000_000}
    audit(Gumbel(53), **options).check()
    with pytest.raises(AssertionError, match="tokens: chi-square"):
        audit(Gumbel(24), **options).check()


def half_precision(network, canvases, *, seed, sequences, batch):
    """Gumbel noise in bfloat16 over all tokens: not simulated."""
    network(canvases, torch.empty(0, dtype=torch.long))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(canvases.numel(), network.vocab, generator=generator).bfloat16()
    tokens = (-(-noise.log()).log()).argmax(-1).view(canvases.shape)
    return Wrote(tokens, torch.ones(len(canvases), dtype=torch.long))


def test_half_precision_noise_is_not_flat():
    with pytest.raises(AssertionError, match="tokens: chi-square"):
        audit(half_precision, worlds={}, draws=2000).check()


# --- yours ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EndsFirst:
    """The README's policy."""

    exact_for = "the chain rule from both ends inward"

    def plan(self, open_, u):
        position = torch.arange(open_.shape[-1])
        steps = torch.minimum(position, position.flip(0)) * 2 + (position > position.flip(0))
        return steps.expand(open_.shape)


@dataclass(frozen=True)
class Coupled:
    """Plans over the whole batch."""

    exact_for = "no stated law"

    def plan(self, open_, u):
        return u.flatten().argsort().argsort().view(open_.shape) // (len(open_) + 1)


@dataclass(frozen=True)
class Second:
    """An adaptive policy of a user's: the second surest first."""

    over: bool = False
    looks_at_draws = False
    exact_for = "no stated law: the second surest first"
    plan = one_stage
    score = Confidence.score

    def choose(self, score, asked, turn, total):
        if self.over and len(score) > 1:
            return asked & (score == score.masked_fill(~asked, -torch.inf).amax(-1, keepdim=True))
        return best(score, asked, torch.full_like(turn, 2)) & ~(best(score, asked, (asked.sum(-1) > 1).long()))


def test_a_policy_of_yours():
    result = audit(EndsFirst(), law=OrderLaw((0, 3, 1, 2)), **QUICK)
    result.check()
    assert "OrderLaw" in result.law
    result = audit(EndsFirst(), **QUICK)
    with pytest.raises(AssertionError, match=r"the stated law +not checked: give `law`"):
        result.check()
    assert not result.passed
    assert [finding.world for finding in result.findings if finding.faults] == ["the stated law"]
    assert result.law == f"its own plans and choices, row by row; {EndsFirst.exact_for}"
    with pytest.raises(AssertionError, match=LAW):
        audit(EndsFirst(), law=OrderLaw(), **QUICK).check()
    with pytest.raises(AssertionError, match="change with their batch"):
        audit(Coupled(), **QUICK).check()
    audit(Blocks(2, EndsFirst()), law=BlocksLaw(2, OrderLaw((0, 3, 1, 2))), **QUICK).check()
    audit(Second(), **QUICK).check()
    audit(Blocks(2, Second()), **QUICK).check()
    with pytest.raises(AssertionError, match=LAW):
        audit(Second(over=True), **QUICK).check()


def test_without_a_law_only_what_every_law_asks():
    result = audit(SURE, **QUICK)
    result.check()
    assert result.law == "no law stated: only what every law asks"
    assert all(finding.distance is None and finding.stated is None for finding in result.findings)
    for name in ("a forgotten reveal", "a prompt overwritten", "confidence over the batch"):
        with pytest.raises(AssertionError, match=FAULTS[name][2]):
            audit(FAULTS[name][0], **QUICK).check()
    with pytest.raises(AssertionError, match="the network ran"):
        audit(replace(TAU, late=True), **QUICK).check()


def test_speculation_states_its_tokens_only():
    result = audit(RandomOrder(), TokensOnly(RandomOrderLaw()), **QUICK)
    result.check()
    assert result.findings[0].stated is None


@pytest.mark.parametrize(
    "result",
    [
        lambda x: x,
        lambda x: Wrote(x[:, :-1], torch.ones(len(x))),
        lambda x: Wrote(x.double(), torch.ones(len(x), dtype=torch.long)),
        lambda x: Wrote(x, torch.ones(len(x), 1, dtype=torch.long)),
        lambda x: Wrote(x, None),
    ],
)
def test_what_is_no_sampler_is_refused_in_one_line(result):
    with pytest.raises(ValueError, match=r"the sampler gave a \w+ back that is no result: its `tokens` must be"):
        audit(lambda network, canvases, **options: result(canvases), **QUICK)
    with pytest.raises(ValueError, match="RandomOrder is a class: audit one of it"):
        audit(RandomOrder, **QUICK)


WRITTEN, ERASED = (0.5, 0.4, 1.0), (0.3, 0.5, 0.0)


def remasking(network, canvases, *, seed, sequences, batch):
    """A loop in which written tokens are erased again."""
    x, nfe = canvases.clone(), torch.zeros(len(canvases), dtype=torch.long)
    given = canvases != M
    for step, (hazard, erased) in enumerate(zip(WRITTEN, ERASED, strict=True)):
        heads, tails, u = keyed_uniforms(seed, sequences, (3, L), TOKEN, step).unbind(1)
        reveal, gone = (x == M) & (heads < hazard), (x != M) & ~given & (tails < erased)
        run = reveal.any(-1)
        drawn = categorical(network(x[run], torch.arange(int(run.sum()) * L)), u[run].flatten()).view(-1, L)
        x[run] = torch.where(reveal[run], drawn, x[run])
        x[gone] = M
        nfe += run
    return Wrote(x, nfe)


def erasing(erased) -> CoinsLaw:
    """What the loop follows, if it erases with these chances."""
    return CoinsLaw(3, lambda t, open_, written: dict.fromkeys(open_, WRITTEN[t]) | dict.fromkeys(written, erased[t]))


def test_a_law_may_erase():
    audit(remasking, erasing(ERASED), **QUICK).check()
    with pytest.raises(AssertionError, match=LAW):
        audit(remasking, erasing((0.0, 0.0, 0.0)), **QUICK).check()


def test_remasking_by_confidence():
    """What is remembered makes many states: three positions."""
    small = {"worlds": {"inconsistent": InconsistentTable(3, 3, seed=9)}, "wide": None, "draws": 4000}
    policy = Remasking(3, cap=0.9, by_confidence=True)
    audit(policy, **small).check()
    with pytest.raises(AssertionError, match=LAW):
        audit(replace(policy, by_confidence=False), stated_law(policy), **small).check()


def test_guidance_and_bias():
    """A wrapped network is a network: its law, and two evaluations a row under guidance."""
    condition = torch.tensor([True, False, False, False]).expand(2000, -1)
    guided = Guided(InconsistentTable(3, L, seed=9), condition, 1.5)
    result = audit(RandomOrder(2), worlds={"guided": guided}, wide=None, draws=2000)
    result.check()
    assert result.findings[0].stated == pytest.approx(4)
    banned = Biased(InconsistentTable(3, L, seed=9), {1: -math.inf, 0: 0.7})
    audit(Confidence(), worlds={"banned": banned}, wide=None, draws=2000).check()
    plain = partial(lambda network, *a, **k: sample(banned, *a, **k), policy=RandomOrder())
    with pytest.raises(AssertionError, match=LAW):
        audit(plain, RandomOrderLaw(), **QUICK).check()


# --- statistics -------------------------------------------------------------------------------------------------------


def test_limits_are_passed_by_right_counts_and_by_no_others():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(60, generator=generator, dtype=torch.float64) ** 3
    stated = dict(enumerate((p / p.sum()).tolist()))
    chances = []
    for _ in range(400):
        counts = Counter(torch.multinomial(p, 5000, True, generator=generator).tolist())
        distance, limit = total_variation(counts, stated)
        assert distance < limit
        chances.append(chi_square(counts, stated))
    deciles = torch.histc(torch.tensor(chances), 10, 0, 1)
    assert chi_square(Counter(dict(enumerate(deciles.long().tolist()))), dict.fromkeys(range(10), 0.1)) > 1e-5
    wrong = Counter(torch.multinomial(p**1.5, 5000, True, generator=generator).tolist())
    assert chi_square(wrong, stated) < 1e-5
    assert total_variation(wrong, stated)[0] > total_variation(wrong, stated)[1]
    assert chi_square(Counter({60: 1, **Counter({0: 500})}), stated) == 0, "the impossible"


# --- the command line -------------------------------------------------------------------------------------------------


def test_command(capsys):
    cli.main(["audit", "--policy", "tweedie", "--steps", "3", "--draws", "1000", "--json", "--temperature", "0.5"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["passed"] for row in rows] == [True] * 7
    assert rows[0]["nfe_stated"] == pytest.approx(expected_nfe(3, 4))
    assert "temperature 0.5" in rows[0]["law"]


def test_command_for_all_and_exit_code(capsys, monkeypatch):
    seen = []

    def fails_once(policy, **options):
        seen.append(policy)
        return audit(RandomOrder(2), RandomOrderLaw(1 if len(seen) == 2 else 2), worlds={}, wide=Wide(50))

    monkeypatch.setattr("unmask.cli.audit.audit", fails_once)
    with pytest.raises(SystemExit) as caught:
        cli.main(["audit", "all"])
    assert caught.value.code == 1
    assert tuple(seen) == EVERY
    out = capsys.readouterr().out
    assert "RandomOrder(tokens=2): RandomOrderLaw(tokens=1)" in out
    assert out.count("passed") == len(EVERY) - 1
    assert "NFE beyond" in out
    seen.clear()
    monkeypatch.setattr(
        "unmask.cli.audit.audit", lambda policy, **options: seen.append(policy) or audit(SURE, worlds={}, wide=None)
    )
    cli.main(["audit"])
    assert tuple(seen) == EVERY


def test_help_says_what_samples_follow(capsys):
    for words in (["sample", "tweedie"], ["audit", "tweedie"]):
        with pytest.raises(SystemExit):
            cli.main([*words, "--help"])
        assert "Samples follow: tau-leaping with 64 steps" in " ".join(capsys.readouterr().out.split())
