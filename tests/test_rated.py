"""Samplers of score networks: the published steps, literally, against what is drawn."""

import itertools
import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from enumeration import Score, check_law, every, number
from torch import Tensor

from unmask.audit import IndependentLaw, RatedLaw, audit, stated_law
from unmask.audit.checking import worlds_for
from unmask.corruption import Cosine, Geometric, rate
from unmask.likelihood import decoder_log_likelihood
from unmask.network import Reading
from unmask.sampling import Euler, RandomOrder, Rated, Tweedie, sample
from unmask.world import InconsistentTable

WORLD = InconsistentTable(2, 3, seed=4)


@dataclass
class Timed:
    """A score network that looks at its level: the world's log q, shifted more the more is masked."""

    world: InconsistentTable = WORLD
    causal = False
    normalised = False
    vocab = 2
    mask_id = 2

    def logits(self, tokens: Tensor, level: Tensor) -> Tensor:
        at = torch.arange(tokens.numel())
        shift = torch.sin(1.0 + number(tokens, 3).double())
        log_q = self.world(tokens, at).view(*tokens.shape, 2)
        return (1 + level[:, None, None]) * log_q + (level * shift)[:, None, None]

    def __call__(self, tokens, at, *, then=None, rows=None, level=None) -> Reading:
        assert level is not None, "a network that wants time must be told it"
        logits = self.logits(tokens, level.double()).flatten(0, 1)[at]
        return logits if then is None else then(logits, slice(0, len(at)))


def published_step(policy: Rated, step: int, logits: list[float]) -> list[float]:
    """Probabilities of each token, and of staying masked, by SEDD's formulas with s = exp(logit) / (e^sigma - 1).

    Tweedie: p(v) = (e^dsigma - 1) s_v; Euler: dt sigma'(t) s_v. What exceeds one is cut.
    """
    schedule, steps = policy.steps.schedule, policy.steps.steps
    t, s = (torch.tensor(1 - i / steps, dtype=torch.float64) for i in (step, step + 1))
    sigma_t, sigma_s = (-schedule.alpha(x).log() for x in (t, s))
    score = [math.exp(x) / float(torch.expm1(sigma_t)) for x in logits]
    if step == steps - 1:
        rates = [x / sum(score) for x in score]
    elif isinstance(policy.steps, Tweedie):
        rates = [float(torch.expm1(sigma_t - sigma_s)) * x for x in score]
    else:
        rates = [float((t - s) * rate(schedule, t) / schedule.alpha(t)) * x for x in score]
    total = max(1.0, sum(rates))
    rates = [x / total for x in rates]
    return [*rates, 1 - sum(rates)]


def law_of(policy: Rated, network: Timed, canvas: tuple[int, ...]) -> Tensor:
    """P of each finished sequence: every step's transitions, position by position, summed over all paths."""
    mass = {canvas: 1.0}
    for step in range(policy.steps.steps):
        level = policy.levels()[step][None]
        after: dict[tuple[int, ...], float] = {}
        for here, p in mass.items():
            logits = network.logits(torch.tensor([here]), level)[0].tolist()
            moves = [
                published_step(policy, step, logits[i]) if token == 2 else [float(v == token) for v in range(3)]
                for i, token in enumerate(here)
            ]
            for there in itertools.product(range(3), repeat=len(here)):
                chance = math.prod(move[v] for move, v in zip(moves, there, strict=True))
                after[there] = after.get(there, 0.0) + p * chance
        mass = {there: p for there, p in after.items() if p > 0}
    return torch.tensor([mass.get(tuple(x), 0.0) for x in every(2, len(canvas)).tolist()], dtype=torch.float64)


POLICIES = [Rated(Tweedie(3)), Rated(Euler(3)), Rated(Tweedie(2, Cosine())), Rated(Euler(4, Geometric(1e-3, 5.0)))]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_samples_follow_the_published_steps(policy: Rated):
    """At each step's own level; a sampler that forgets Z fails the same comparison."""
    network, draws = Timed(), 6_000
    truth = law_of(policy, network, (2, 2, 2))
    assert float(truth.sum()) == pytest.approx(1)
    samples = sample(network, torch.full((draws, 3), 2), policy, seed=1, batch=draws)
    check_law(samples.tokens, truth, 2)

    @dataclass
    class Forgetful(Timed):
        normalised = True

    other = sample(Forgetful(), torch.full((draws, 3), 2), policy, seed=1, batch=draws)
    with pytest.raises(AssertionError):
        check_law(other.tokens, truth, 2)


def test_audit_of_a_score_network():
    """The law by enumeration, on a world without a level; tau-leaping's own plan is another law there."""
    worlds = {"score": Score(InconsistentTable(3, 4, seed=9), scale=1.0)}
    for policy in (Rated(Tweedie(3)), Rated(Euler(3, Cosine()))):
        assert isinstance(stated_law(policy), RatedLaw)
        audit(policy, worlds=worlds, wide=None, draws=6000).check()
    planned = stated_law(Tweedie(3))
    assert isinstance(planned, IndependentLaw)
    assert not audit(Rated(Tweedie(3)), planned, worlds=worlds, wide=None, draws=6000).passed


def test_an_audit_sees_whether_the_sum_of_a_prediction_is_used():
    """By default: steps that are planned are another law where the network's predictions are ratios."""
    stated = stated_law(Rated(Tweedie(2)))
    worlds = worlds_for(stated)
    assert {name for name, world in worlds.items() if not world.normalised} == {"score"}
    assert all(world.normalised for world in worlds_for(IndependentLaw((1.0,))).values())
    with pytest.raises(AssertionError, match=r"score, free .* chi-square"):
        audit(partial(sample, policy=Tweedie(2)), stated, draws=1000, wide=None).check()
    audit(Rated(Tweedie(2)), worlds={"score": worlds["score"]}, draws=1000, wide=None).check()


def test_euler_steps_that_are_too_large_are_cut_after_the_sum():
    """min(1, h Z), h being above 1 in the first steps of the geometric schedule, and Z below it."""
    policy = Rated(Euler(6, Geometric()))
    assert float(policy.steps.hazards().amax()) > 1
    audit(policy, wide=None).check()


def test_evaluations_are_the_steps_until_the_last_token():
    canvas = torch.tensor([[2, 1, 2], [1, 0, 1], [0, 2, 0]])
    samples = sample(Timed(), canvas, Rated(Tweedie(6)), seed=3)
    for row, reveal, nfe in zip(canvas, samples.reveal, samples.nfe, strict=True):
        assert int(nfe) == int(reveal.max()) + 1
        assert torch.equal(reveal >= 0, row == 2)
        assert int(nfe) <= 6
    assert int(samples.nfe[1]) == 0


def test_a_sequence_is_the_same_in_any_batch():
    canvas = torch.full((12, 3), 2)
    whole = sample(Timed(), canvas, Rated(Tweedie(5)), seed=2, batch=12)
    for batch in (1, 5):
        again = sample(Timed(), canvas, Rated(Tweedie(5)), seed=2, batch=batch)
        assert all(torch.equal(a, b) for a, b in zip(whole.tokens, again.tokens, strict=True))
        assert torch.equal(whole.nfe, again.nfe)


def test_what_it_cannot_be_asked():
    canvas = torch.full((1, 3), 2)
    with pytest.raises(ValueError, match="leave out the end token and the constraint"):
        sample(Timed(), canvas, Rated(), end=1)
    with pytest.raises(ValueError, match="Rated has no likelihood in closed form"):
        decoder_log_likelihood(WORLD, torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool), Rated())
    assert "at the network's own rates" in Rated().exact_for
    assert sample(WORLD, canvas, RandomOrder()).calls == 3
