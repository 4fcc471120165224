"""The audit's laws are the ones enumerated apart from it."""

import itertools
import math
from typing import NamedTuple, get_args

import pytest
import torch
from enumeration import costs, every, in_steps, independent_steps, law, opened, random_orders
from test_adaptive import BY_PREDICTION
from test_adaptive import law as law_by_prediction
from torch import Tensor

from unmask.audit import (
    EVERY,
    BlocksLaw,
    IndependentLaw,
    OrderLaw,
    PlansLaw,
    RandomOrderLaw,
    RatedLaw,
    audit,
    coins,
    euler,
    follow,
    stated_law,
    tweedie,
)
from unmask.audit.checking import WORLDS as AUDITED
from unmask.audit.checking import _canvases
from unmask.audit.stated import own_law
from unmask.corruption import Cosine, Geometric, LogLinear
from unmask.sampling import (
    AdaptivePolicy,
    Blocks,
    Draw,
    Entropy,
    Euler,
    Greedy,
    LeftToRight,
    LowConfidence,
    Margin,
    Planned,
    RandomOrder,
    Rated,
    Remasking,
    Speculative,
    expected_nfe,
)
from unmask.world import InconsistentTable, JointTable

V, L, M = 3, 4, 3
WORLDS = {"joint": JointTable(V, L, seed=2), "inconsistent": InconsistentTable(V, L, seed=5)}
FREE, GIVEN = (M, M, M, M), (M, 1, M, M)

BY_CONFIDENCE = Remasking(2, cap=0.9, by_confidence=True)
ONE_CALL = [policy for policy in EVERY if not isinstance(policy, Speculative)]


def of_sequences(truth) -> Tensor:
    """The law as probabilities of every sequence."""
    return torch.tensor([truth.sequences.get(tuple(row), 0.0) for row in every(V, L).tolist()], dtype=torch.float64)


PLANNED = {
    "random order": (RandomOrderLaw(), random_orders),
    "random order, 2 and 3 a step": (RandomOrderLaw(2), lambda at: random_orders(at, 2)),
    "left to right": (OrderLaw(), lambda at: [(1.0, in_steps(at))]),
    "backward": (OrderLaw((-1, -2, -3, 0)), lambda at: [(1.0, in_steps(at[::-1]))]),
    "third first, two a step": (OrderLaw((2,), 2), lambda at: [(1.0, in_steps(sorted(at, key=lambda i: i != 2), 2))]),
    "tau-leaping": (tweedie(3, LogLinear()), lambda at: independent_steps(at, [1 / 3] * 3)),
    "uneven steps": (IndependentLaw((0.2, 0.75, 1.0)), lambda at: independent_steps(at, [0.2, 0.6, 0.2])),
    "all at once": (tweedie(1, Cosine()), lambda at: [(1.0, [list(at)])]),
}


@pytest.mark.parametrize("canvas", [FREE, GIVEN], ids=["free", "given"])
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", PLANNED)
def test_planned_laws_are_the_enumerated_ones(name, world, canvas):
    stated, plans = PLANNED[name]
    row = torch.tensor(canvas)
    listed = plans(opened(row, M))
    truth = follow(stated, WORLDS[world], canvas)
    assert torch.allclose(of_sequences(truth), law(listed, costs(WORLDS[world], L), row), atol=1e-12)
    mean, square = (sum(p * len(plan) ** k for p, plan in listed) for k in (1, 2))
    assert truth.nfe == pytest.approx(mean, rel=1e-12)
    assert truth.variance == pytest.approx(square - mean**2, abs=1e-12)


@pytest.mark.parametrize("canvas", [FREE, GIVEN], ids=["free", "given"])
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("policy", BY_PREDICTION, ids=repr)
def test_laws_by_prediction_are_the_enumerated_ones(policy, world, canvas):
    truth = follow(stated_law(policy), WORLDS[world], canvas)
    assert torch.allclose(of_sequences(truth), law_by_prediction(WORLDS[world], policy, list(canvas)), atol=1e-12)


@pytest.mark.parametrize("policy", [*ONE_CALL, LowConfidence(3), Greedy(2), Greedy(9), BY_CONFIDENCE], ids=repr)
def test_stated_and_own_law_are_one(policy):
    """A law from the definition, and the policy's own plans and choices asked for row by row."""
    world = WORLDS["inconsistent"]
    stated = follow(stated_law(policy), world, FREE)
    own = follow(own_law(policy, FREE, M, 0, range(20_000)), world, FREE)
    inside = getattr(policy, "inside", policy)
    adaptive = hasattr(inside, "choose") or hasattr(inside, "chance")
    error = 1e-12 if adaptive else 0.01  # a planned policy's own plans are 20,000 drawn ones
    assert float((of_sequences(stated) - of_sequences(own)).abs().sum()) / 2 < error
    assert abs(stated.nfe - own.nfe) < 4 * math.sqrt(L / 20_000) or adaptive
    assert sum(own.sequences.values()) == pytest.approx(1)


def test_low_confidence_is_a_sum_over_draws():
    """Two positions, two tokens: every pair of draws, written out."""
    world = InconsistentTable(2, 2, seed=3)
    first = world(torch.tensor([[2, 2]]), torch.arange(2)).exp()
    expected = torch.zeros(2, 2, dtype=torch.float64)
    for a in range(2):
        for b in range(2):
            p = first[0, a] * first[1, b]
            if first[0, a] >= first[1, b]:
                expected[a] += p * world(torch.tensor([[a, 2]]), torch.tensor([1]))[0].exp()
            else:
                expected[:, b] += p * world(torch.tensor([[2, b]]), torch.tensor([0]))[0].exp()
    truth = follow(stated_law(LowConfidence(2)), world, (2, 2))
    for (a, b), p in truth.sequences.items():
        assert p == pytest.approx(float(expected[a, b]), rel=1e-12)


def test_every_policy_has_a_law():
    for kind in (*get_args(Planned | AdaptivePolicy), Blocks, Remasking, Speculative):
        assert stated_law(kind()) is not None
        assert any(isinstance(policy, kind) for policy in EVERY)


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine(), Geometric(0.1, 5.0)], ids=str)
@pytest.mark.parametrize("make", [tweedie, euler])
def test_cost_of_independent_steps_is_the_chains(make, schedule):
    """Mean and variance in closed form, against the enumerated law of the NFE."""
    stated = make(5, schedule)
    assert sum(stated.shares()) == pytest.approx(1)
    truth = follow(stated, WORLDS["joint"], FREE)
    assert stated.cost(4) == pytest.approx((truth.nfe, truth.variance), rel=1e-9)
    assert truth.most == 4
    if make is tweedie:
        assert truth.nfe == pytest.approx(expected_nfe(5, 4, schedule), rel=1e-9)


@pytest.mark.parametrize("draw", [Draw(0.5), Draw(1.7, top_k=2), Draw(top_p=0.6), Draw(0.0)], ids=repr)
def test_of_one_position_the_law_is_the_filtered_prediction(draw):
    world = WORLDS["inconsistent"]
    logits = world(torch.tensor([[M, 0, 1, 2]]), torch.tensor([0]))[0]
    p = torch.zeros(V, dtype=torch.float64)
    p[logits.argmax()] = 1.0
    p = p if draw.temperature == 0 else draw.adjust(logits[None])[0].softmax(0)
    truth = follow(RandomOrderLaw(), world, (M, 0, 1, 2), draw)
    assert truth.sequences == pytest.approx({(v, 0, 1, 2): q for v, q in enumerate(p.tolist()) if q})


def test_plans_may_be_listed():
    world = WORLDS["inconsistent"]
    both = PlansLaw(((0.25, (0, 1, 2, 3)), (0.75, (1, 1, 0, 0))))
    truth = follow(both, world, FREE)
    expected = law([(0.25, [[0], [1], [2], [3]]), (0.75, [[2, 3], [0, 1]])], costs(world, L), torch.tensor(FREE))
    assert torch.allclose(of_sequences(truth), expected, atol=1e-12)
    assert (truth.nfe, truth.variance, truth.most) == pytest.approx((2.5, 0.75, 4))


class StepByStep(NamedTuple):
    """Independent steps as they are published: coins at each step."""

    hazards: tuple[float, ...]

    def moves(self, at):
        step = at.memory or 0
        for chance, positions in coins(dict.fromkeys(at.open, self.hazards[step])):
            for p, canvas in at.writing(positions):
                yield chance * p, canvas, step + 1


@pytest.mark.parametrize("make", [tweedie, euler])
def test_independent_steps_are_walked_or_summed(make):
    """In blocks too; summed, a thousand steps take no longer than a few."""
    world, summed = InconsistentTable(2, 3, seed=9), make(5, Cosine())
    walked = StepByStep(summed.hazards)
    for one, other in ((summed, walked), (BlocksLaw(2, summed), BlocksLaw(2, walked))):
        a, b = (follow(law, world, (2, 2, 2)) for law in (one, other))
        assert a.sequences == pytest.approx(b.sequences, abs=1e-14)
        assert (a.nfe, a.variance, a.most) == pytest.approx((b.nfe, b.variance, b.most))
    many = follow(make(4096, Cosine()), world, (2, 2, 2))
    assert sum(many.sequences.values()) == pytest.approx(1)
    assert many.nfe == pytest.approx(make(4096, Cosine()).cost(3)[0])


class Halting(NamedTuple):
    """A law with a fault."""

    chance: float
    writes: bool

    def moves(self, at):
        if self.writes or len(at.open) > 1:
            for p, canvas in at.writing(at.open[:1]):
                yield self.chance * p, canvas, None


def test_bad_laws_are_refused():
    with pytest.raises(ValueError, match=r"add up to 0\.[89]"):
        follow(Halting(0.9, True), WORLDS["joint"], FREE)
    with pytest.raises(ValueError, match="with a mask left"):
        follow(Halting(1.0, False), WORLDS["joint"], FREE)
    with pytest.raises(ValueError, match=r"has the chance -0\.\d+, below 0"):
        follow(Halting(-0.5, True), WORLDS["joint"], FREE)
    for hazards, message in (((0.5, 0.5), "leave masks"), ((), "leave masks"), ((1.5, 1.0), "hazard 1.5 is no")):
        with pytest.raises(ValueError, match=message):
            IndependentLaw(hazards)
    for hazards in ((), (-0.5, 1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="at least one, each 0 or more"):
            RatedLaw(hazards)
    with pytest.raises(ValueError, match="take 1000 or more"):
        audit(RandomOrder(), draws=10)


def test_the_audits_world_tells_laws_apart():
    """In total variation, on the free canvas or on those with one token given, which an audit samples."""
    world = AUDITED["inconsistent"]
    # by Tweedie's rates and on a normalised network, Euler's and the network's own are the same law
    kinds = [policy for policy in ONE_CALL if not isinstance(policy, Euler | Rated)]
    more = [Margin(2), Entropy(2), LeftToRight(2), RandomOrder(3), Blocks(2, Entropy()), Blocks(2, Margin())]
    laws = []
    for policy in kinds + more:
        truths = [[follow(stated_law(policy), world, row) for row in rows] for rows in _canvases(world).values()]
        laws.append([torch.cat([of_sequences(truth) for truth in part]) / len(part) for part in truths])
    for one, other in itertools.combinations(laws, 2):
        assert max(float((a - b).abs().sum()) / 2 for a, b in zip(one, other, strict=True)) > 0.06
