"""Likelihoods are unbiased, their errors are honest, and exact ones are the enumerated chain rule.

Truths are computed apart from the package (enumeration.py); checks are also run on planted faults and must fail there.
"""

import json
import math
from dataclasses import dataclass, replace
from functools import cache, partial

import pytest
import torch
from enumeration import (
    CausalTable,
    Score,
    Spy,
    check_mean,
    costs,
    every,
    expected,
    in_order,
    number,
    opened,
    random_orders,
    score_costs,
)
from scipy.stats import norm

from unmask import ranks
from unmask.corruption import Cosine, Geometric
from unmask.likelihood import (
    Estimate,
    compare,
    conditional,
    decoder_log_likelihood,
    importance_log_likelihood,
    log_likelihood,
    ordered_log_likelihood,
    ordered_surprisal,
    surprisal,
)
from unmask.likelihood.design import deal
from unmask.likelihood.estimate import ratio_variance
from unmask.objectives import AnyOrder, Corruption, LambdaDCE, NextToken, TimeDCE, TimeDSE
from unmask.sampling import (
    Blocks,
    Confidence,
    FixedOrder,
    LeftToRight,
    RandomOrder,
    Rated,
    Remasking,
    Tweedie,
    decode_nats,
    draw_plan,
    inside_of,
)
from unmask.transformer import Transformer, TransformerConfig
from unmask.world import InconsistentTable, JointTable
from unmask.wrappers import Biased, Guided, Plain

WORLDS = [JointTable(3, 3), InconsistentTable(3, 3)]
X = every(3, 3)
ALL = torch.tensor([True, True, True])
# with more masks (31) than draws, so that there is something to draw
LONG = {"joint": JointTable(2, 5), "inconsistent": InconsistentTable(2, 5)}
LONG_X = every(2, 5)


def bound(world, pattern: torch.Tensor = ALL) -> torch.Tensor:
    """The random-order bound of every sequence, by enumeration."""
    x = every(world.vocab, world.length)
    return expected(random_orders(opened(pattern)), costs(world, world.length), x)


@cache
def long_bound(name: str, pattern: str = "11111") -> torch.Tensor:
    return bound(LONG[name], pattern_of(pattern))


def pattern_of(text: str) -> torch.Tensor:
    return torch.tensor([letter == "1" for letter in text])


# --- Monte Carlo ------------------------------------------------------------------------------------------------------

ESTIMATORS = [None, AnyOrder(), AnyOrder(1.0), LambdaDCE(), TimeDCE(Cosine()), TimeDSE(Geometric())]


def check_unbiased(name: str, estimator, pattern: str = "11111", copies: int = 150, **options) -> None:
    """Over copies of every sequence, each with its own number: the mean error of each is within 4 standard errors."""
    x = LONG_X.repeat(copies, 1)
    options = {"draws": 8, "replicates": 2, "seed": 3, **options}
    maskable = pattern_of(pattern).expand(len(x), -1)
    estimate = log_likelihood(LONG[name], x, maskable, estimator=estimator, batch=20_000, **options)
    errors = estimate.per_sequence.view(copies, 32) - long_bound(name, pattern)
    check_mean(errors.mean(-1), 0.0)
    for i in (0, 7, 26):
        check_mean(errors[:, i], 0.0)
    assert math.isclose(estimate.nats, float(estimate.per_sequence.sum()), rel_tol=1e-12)
    claimed = estimate.stderr_mc**2 / copies
    actual = float(errors.square().mean(0).sum())  # the truth is known: copies x 32 squares
    assert 0.8 < claimed / actual < 1.25, f"claims {claimed / actual:.2f} of its variance"


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_log_likelihood_is_unbiased(name: str, estimator):
    check_unbiased(name, estimator)
    check_unbiased(name, estimator, "11011", copies=60)


@pytest.mark.parametrize(("draws", "replicates"), [(2, 2), (6, 2), (9, 3), (20, 4), (30, 2)])
def test_any_number_of_draws_and_replicates_is_unbiased(draws: int, replicates: int):
    """One draw a replicate, odd numbers of strata, almost as many draws as masks."""
    check_unbiased("inconsistent", None, draws=draws, replicates=replicates)


@dataclass(frozen=True)
class Faulty:
    """k-DCE with a planted fault."""

    fault: str

    def corrupt(self, maskable, u, noise) -> Corruption:
        if self.fault == "the left is masked first":
            noise = maskable.long().cumsum(-1) / noise.shape[-1]
        masked, weight, level = AnyOrder(1.0).corrupt(maskable, u, noise)
        if self.fault == "the importance is not paid back":
            weight = maskable.sum(-1) / masked.sum(-1)
        return Corruption(masked, weight, level)


def test_the_check_of_bias_sees_planted_faults(monkeypatch):
    check_unbiased("inconsistent", Faulty("none"))
    for fault in ("the left is masked first", "the importance is not paid back"):
        with pytest.raises(AssertionError, match="standard errors"):
            check_unbiased("inconsistent", Faulty(fault))

    def self_controlled(cells, products, maskable):
        return cells[0] / cells[1].clamp(min=1e-9)

    monkeypatch.setattr("unmask.likelihood.design.controlled", self_controlled)
    with pytest.raises(AssertionError, match="standard errors"):  # a guess from the replicate's own costs
        check_unbiased("joint", None)  # where costs depend on how much is visible, as its weights do


@dataclass(frozen=True)
class Doubled:
    """A loss of a user's, of another weighting."""

    def corrupt(self, maskable, u, noise) -> Corruption:
        masked, weight, level = AnyOrder().corrupt(maskable, u, noise)
        return Corruption(masked, 2 * weight, level)


def test_an_estimator_of_ones_own_is_averaged_as_it_is():
    estimate = log_likelihood(LONG["joint"], LONG_X.repeat(50, 1), estimator=Doubled(), draws=8, batch=20_000)
    check_mean((estimate.per_sequence.view(50, 32) - 2 * long_bound("joint")).mean(-1), 0.0)
    assert estimate.bound == "upper bound"


@dataclass(frozen=True)
class Capped(LambdaDCE):
    """A weight that is cut, as some train with."""

    at: float = 5.0

    def corrupt(self, maskable, u, noise) -> Corruption:
        masked, weight, level = super().corrupt(maskable, u, noise)
        return Corruption(masked, weight.clamp(max=self.at), level)


def test_what_weighs_some_masks_less_is_called_no_bound():
    for each in (Capped(at=math.inf), Capped(power=1.0, at=math.inf), Faulty("none")):
        assert log_likelihood(LONG["joint"], LONG_X[:2], estimator=each, draws=2).bound == "upper bound"
    faults = [Faulty("the left is masked first"), Faulty("the importance is not paid back")]
    for each in (Capped(), Capped(power=1.0, at=10.0), *faults):
        assert log_likelihood(LONG["joint"], LONG_X[:2], estimator=each, draws=2).bound == "no bound"


# --- the design -------------------------------------------------------------------------------------------------------


def hands(levels: list[float], dealt=deal) -> list[dict[tuple[bool, ...], float]]:
    """The law of each draw's set, by enumeration of every ranking of the noise of three draws, of three positions."""
    ranks = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]).double() / 3
    noise = torch.stack([ranks[i] for i in torch.cartesian_prod(*[torch.arange(6)] * 3).unbind(-1)], 1)
    u = torch.tensor(levels, dtype=torch.float64).expand(len(noise), -1)
    draws = dealt(AnyOrder(), torch.ones(len(noise), 3, dtype=torch.bool), u, noise)
    laws = []
    for draw in draws:
        rows = [tuple(row) for row in draw.masked.tolist()]
        laws.append({row: rows.count(row) / len(rows) for row in set(rows)})
    return laws


def check_uniform(laws: list[dict[tuple[bool, ...], float]]) -> None:
    for law in laws:
        sizes = {sum(row) for row in law}
        assert len(sizes) == 1
        assert len(law) == math.comb(3, *sizes)
        assert all(math.isclose(p, 1 / len(law)) for p in law.values()), law


@pytest.mark.parametrize("levels", [[0.0, 0.0, 0.0], [0.0, 0.4, 0.4], [0.4, 0.4, 0.9], [0.0, 0.4, 0.9]], ids=str)
def test_a_dealt_hand_is_uniform(levels: list[float]):
    """Whatever was dealt before: hence each draw alone follows its law, and the mean of all is unbiased."""
    check_uniform(hands(levels))

    def by_name(estimator, maskable, u, noise):  # a rule that tells positions apart
        times = torch.zeros(maskable.shape, dtype=torch.float64)
        draws = []
        for level, each in zip(u.unbind(1), noise.unbind(1), strict=True):
            draws.append(estimator.corrupt(maskable, level, (times + each + torch.tensor([0.0, 0.5, 1.0])) / 9))
            times = times + draws[-1].masked
        return draws

    with pytest.raises(AssertionError):
        check_uniform(hands(levels, by_name))


def test_positions_are_masked_equally_often():
    """After every draw no two positions differ by more than one; independent sets do."""
    generator = torch.Generator().manual_seed(0)
    maskable = torch.rand(50, 20, generator=generator) < 0.8
    levels = torch.rand(50, 12, generator=generator, dtype=torch.float64).sort(-1).values
    noise = torch.rand(50, 12, 20, generator=generator, dtype=torch.float64)
    draws = deal(AnyOrder(0.5), maskable, levels, noise)
    times = torch.stack([draw.masked.long() for draw in draws]).cumsum(0)
    most, least = times.amax(-1), times.masked_fill(~maskable, 99).amin(-1)
    assert int((most - least).max()) == 1
    alone = torch.stack([AnyOrder(0.5).corrupt(maskable, levels[:, m], noise[:, m]).masked.long() for m in range(12)])
    assert int((alone.sum(0).amax(-1) - alone.sum(0).masked_fill(~maskable, 99).amin(-1)).max()) > 2


def test_the_control_is_exact_where_it_knows_the_costs():
    """Constant costs, whatever the weights; and almost so where they are a line in the share masked, not otherwise."""
    flat = log_likelihood(JointTable(2, 5, sharpness=0.0), LONG_X, draws=6)
    assert torch.allclose(flat.per_sequence, torch.full((32,), 5 * math.log(2), dtype=torch.float64), rtol=1e-12)
    assert flat.stderr_mc < 1e-12

    @dataclass(frozen=True)
    class Line:  # every token costs power(share of positions masked), up to normalisation of the law
        power: float
        vocab: int = 2
        mask_id: int = 2
        causal = False
        normalised = True

        def __call__(self, tokens, at, *, then=None, rows=None, level=None):
            share = (tokens == 2).double().mean(-1)[at // tokens.shape[1]]
            yes = -(0.5 + share**self.power)
            logits = torch.stack([(-yes.exp()).log1p(), yes], -1)
            return logits if then is None else then(logits, slice(0, len(at)))

    ones, truth = torch.ones(64, 40, dtype=torch.long), 40 * 0.5 + 41 / 2
    line = log_likelihood(Line(1.0), ones, draws=16)
    assert abs(line.nats / 64 - truth) < 5 * line.stderr_mc / 64 + 1e-9
    assert line.stderr_mc < 0.2 * log_likelihood(Line(4.0), ones, draws=16).stderr_mc


def test_the_design_saves_evaluations():
    """Against independent draws of the same objective, even where costs are random for each canvas (2.2 observed;
    docs/evaluation.md has a trained network's).
    """
    x = LONG_X[[11]].repeat(2000, 1)
    draws = log_likelihood(LONG["inconsistent"], x, draws=16, batch=50_000).per_sequence
    u = torch.rand(2000 * 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = AnyOrder(0.5)(
        LONG["inconsistent"],
        x.repeat(16, 1),
        torch.ones(len(u), 5, dtype=torch.bool),
        u,
        torch.Generator().manual_seed(1),
    ).view(16, 2000)
    assert float(plain.mean(0).var() / draws.var()) > 1.8


@pytest.mark.parametrize("name", LONG)
def test_few_masks_are_enumerated(name: str):
    """The bound itself: nothing is random, and 2^n - 1 rows are run."""
    maskable = torch.stack([pattern_of(text) for text in ("11111", "10110", "00010", "00000")])
    x = LONG_X[[5, 9, 17, 30]]
    spy = Spy(LONG[name])
    estimate = log_likelihood(spy, x, maskable, draws=32, seed=1)
    truth = torch.stack(
        [long_bound(name, text)[i] for text, i in zip(("11111", "10110", "00010"), (5, 9, 17), strict=True)]
    )
    assert torch.allclose(estimate.per_sequence[:3], truth, rtol=1e-12)
    assert (float(estimate.per_sequence[3]), estimate.stderr_mc, estimate.bound) == (0.0, 0.0, "upper bound")
    assert estimate.evaluations == sum(len(tokens) for tokens, _, _ in spy.asked) == 31 + 7 + 1


def test_conditional_is_joint_minus_marginal():
    """On the joint table, with given tokens: log p(x) - log p(given)."""
    world, pattern = WORLDS[0], torch.tensor([True, False, True])
    given = world.log_p - torch.stack([world.log_p[X[:, 1] == v].logsumexp(0) for v in X[:, 1]])
    assert torch.allclose(bound(world, pattern), -given, rtol=1e-12)
    assert torch.allclose(log_likelihood(world, X, pattern.expand(27, -1)).per_sequence, -given, rtol=1e-12)
    plan = draw_plan(LeftToRight(), pattern.expand(27, -1))
    assert torch.allclose(ordered_log_likelihood(world, X, plan).per_sequence, -given, rtol=1e-12)


def test_any_part_given_any_part_is_the_ratio_of_marginals():
    """Hidden positions are summed out of a joint law, in every estimator; on another world they are not."""
    world, x = LONG["joint"], LONG_X
    target, given = pattern_of("01010").expand(32, -1), pattern_of("10000").expand(32, -1)
    seen, maskable = conditional(x, target, given, world.mask_id)

    def marginal(keep: torch.Tensor) -> torch.Tensor:
        agree = ((x[:, None] == x) | ~keep).all(-1)
        return torch.stack([world.log_p[row].logsumexp(0) for row in agree])

    truth = marginal(given) - marginal(target | given)
    assert torch.allclose(log_likelihood(world, seen, maskable).per_sequence, truth, rtol=1e-12)
    plan = torch.where(maskable, torch.tensor([0, 1, 0, 0, 0]), -1)
    assert torch.allclose(ordered_log_likelihood(world, seen, plan).per_sequence, truth, rtol=1e-12)
    assert not torch.allclose(log_likelihood(world, x, maskable).per_sequence, truth, rtol=1e-2), "all else given"
    estimate = log_likelihood(world, seen, maskable, estimator=LambdaDCE(), draws=400, batch=20_000)
    low, high = estimate.interval(0.9999)
    assert low < float(truth.sum()) < high
    with pytest.raises(ValueError, match="both target and given"):
        conditional(x, target, target, world.mask_id)


def student_interval(estimate: Estimate) -> tuple[float, float]:
    return estimate.interval(0.95)


def normal_interval(estimate: Estimate) -> tuple[float, float]:
    half = float(norm.ppf(0.975)) * estimate.stderr_mc
    return estimate.nats - half, estimate.nats + half


def plain_welch(estimate: Estimate) -> tuple[float, float]:
    """Welch and Satterthwaite without the correction for squares of estimates."""
    v = estimate.replicates.var(-1)
    freedom = float(v.sum() ** 2 * (estimate.replicates.shape[1] - 1) / v.square().sum())
    return replace(estimate, freedom=freedom).interval(0.95)


def check_coverage(
    name: str, which: list[int], patterns: list[str], interval=student_interval, repetitions: int = 3000, **options
) -> None:
    """The 95% interval holds the truth in 93 to 97% of repetitions: +-5 standard deviations of 3000 of them.

    One call scores all repetitions, whose texts have numbers of their own.
    """
    x, maskable = LONG_X[which], torch.stack([pattern_of(text) for text in patterns])
    truth = float(sum(long_bound(name, text)[i] for text, i in zip(patterns, which, strict=True)))
    every_one = log_likelihood(
        LONG[name], x.repeat(repetitions, 1), maskable.repeat(repetitions, 1), batch=50_000, **options
    )
    held = 0
    for each in every_one.replicates.split(len(which)):
        low, high = interval(Estimate.of(each, maskable, estimator="", precision=""))
        held += low <= truth <= high
    assert 0.93 < held / repetitions < 0.97, f"covers {held / repetitions:.3f}"


@pytest.mark.parametrize("name", LONG)
def test_interval_covers(name: str):
    check_coverage(name, [0, 5, 11, 17, 23, 26], ["11111"] * 6, draws=16, replicates=4)
    if name == "inconsistent":
        check_coverage(name, [0, 5, 11, 17, 23, 26] * 2, ["11111"] * 12, draws=16, replicates=2)
        check_coverage(name, [0, 5, 11], ["11111"] * 3, draws=24, replicates=4, estimator=LambdaDCE())


def test_interval_needs_the_corrected_freedom():
    with pytest.raises(AssertionError, match=r"covers 0\.9[789]"):
        check_coverage("inconsistent", [0, 5, 11, 17, 23, 26], ["11111"] * 6, plain_welch, draws=16, replicates=2)


def test_interval_of_one_sequence_covers_by_students_t():
    check_coverage("inconsistent", [5], ["11111"], draws=24, replicates=4)
    with pytest.raises(AssertionError, match="covers"):
        check_coverage("inconsistent", [5], ["11111"], normal_interval, draws=24, replicates=4)


def test_interval_covers_where_other_rows_are_certain():
    """Rows with one maskable position have no error, so they tell nothing about the size of another row's."""
    check_coverage("inconsistent", [5] * 9, ["11111"] + ["01000"] * 8, draws=24, replicates=4)


def test_stderr_mc_is_the_spread_over_seeds():
    world, truth = LONG["inconsistent"], float(long_bound("inconsistent").sum())
    runs = [log_likelihood(world, LONG_X, draws=16, replicates=4, seed=seed, batch=10_000) for seed in range(200)]
    nats = torch.tensor([run.nats for run in runs], dtype=torch.float64)
    claimed = math.sqrt(sum(run.stderr_mc**2 for run in runs) / len(runs))
    assert abs(claimed / float(nats.std()) - 1) < 4 / math.sqrt(2 * 200)
    check_mean(nats, truth)


def test_results_do_not_depend_on_the_batch():
    x, documents = LONG_X[[4, 9, 4, 22]], torch.tensor([0, 0, 1, 2])
    maskable = torch.stack([pattern_of(text) for text in ("11111", "01111", "11111", "00000")])
    cases = [(LONG["joint"], None), (LONG["inconsistent"], LambdaDCE()), (LONG["inconsistent"], TimeDCE(Geometric()))]
    for world, estimator in cases:
        runs = [
            log_likelihood(world, x, maskable, estimator=estimator, draws=12, batch=batch, seed=5, documents=documents)
            for batch in (1, 5, 12, 17, 1000)
        ]
        for run in runs[1:]:
            assert torch.allclose(run.per_sequence, runs[0].per_sequence, rtol=1e-12)
            assert math.isclose(run.stderr_mc, runs[0].stderr_mc, rel_tol=1e-9)
            assert math.isclose(run.stderr_data, runs[0].stderr_data, rel_tol=1e-9)
        order = [2, 0]
        some = log_likelihood(world, x[order], maskable[order], estimator=estimator, draws=12, seed=5, sequences=order)
        assert torch.allclose(some.per_sequence, runs[0].per_sequence[order], rtol=1e-12)
        assert runs[0].per_sequence[0] != runs[0].per_sequence[2], "another number, other maskings"
        assert runs[0].per_sequence[3] == 0


def test_replicates_are_stratified_apart():
    """Antithetic pairs in strata of width 2/m within a replicate; replicates and sequences are independent."""
    seen = []

    @dataclass(frozen=True)
    class Watch:
        def corrupt(self, maskable, u, noise):
            if len(u) == 6:  # not the trial of its weights
                seen.append(u)
            return AnyOrder().corrupt(maskable, u, noise)

    log_likelihood(LONG["joint"], LONG_X[:2], estimator=Watch(), draws=24, replicates=3, batch=7)
    levels = torch.stack(seen, -1)
    assert levels.shape == (6, 8)
    assert torch.equal((levels * 4).floor(), torch.arange(4.0).double().repeat_interleave(2).expand(6, 8))
    assert torch.allclose(levels.view(6, 4, 2).mean(-1) * 4, (torch.arange(4) + 0.5).double().expand(6, 4))
    assert len(levels[:, 0].unique()) == 6


# --- budgets, interruptions, comparisons ------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "reached"), [(8.0, 0.5), (4.0, 0.5)])
def test_a_wanted_error_is_reached_without_bias(wanted: float, reached: float):
    """60 texts of three lengths: the error claimed is at most the wanted one, and no less than the gain of larger
    designs explains; the mean is exact.
    """
    world, lengths = InconsistentTable(2, 7), torch.arange(60) % 3
    x = every(2, 7)[torch.arange(60) * 2]
    maskable = torch.arange(7) >= torch.tensor([0, 1, 4])[lengths][:, None]
    truth = log_likelihood(world, x, maskable, draws=128, batch=4000)
    assert truth.stderr_mc == 0
    runs = [log_likelihood(world, x, maskable, stderr=wanted, seed=seed, batch=4000) for seed in range(24)]
    check_mean(torch.tensor([run.nats for run in runs], dtype=torch.float64), truth.nats)
    assert reached < math.sqrt(sum(run.stderr_mc**2 for run in runs) / 24) / wanted < 1.05
    spy = Spy(world)
    again = log_likelihood(spy, x, maskable, stderr=wanted, seed=3, batch=64)
    assert math.isclose(again.nats, runs[3].nats, rel_tol=1e-12)
    assert again.evaluations == runs[3].evaluations == sum(len(tokens) for tokens, _, _ in spy.asked)
    with pytest.raises(ValueError, match="above 0"):
        log_likelihood(world, x, stderr=0.0)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("options", [{"draws": 8}, {"stderr": 0.4}, {"estimator": LambdaDCE()}], ids=str)
def test_an_interrupted_evaluation_goes_on(tmp_path, options):
    """The same numbers, bit for bit, and no row is run twice but those of the unit that was cut."""
    x, world, keep = LONG_X.repeat(9, 1), LONG["inconsistent"], tmp_path / "kept.npz"
    whole = log_likelihood(world, x, batch=4, **options)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise Interrupted

    spy = Spy(world)
    with pytest.raises(Interrupted):
        log_likelihood(spy, x, batch=4, keep=keep, progress=stop, **options)
    resumed = log_likelihood(spy, x, batch=4, keep=keep, **options)
    assert torch.equal(resumed.replicates, whole.replicates)
    assert (resumed.nats, resumed.stderr_mc, resumed.evaluations) == (whole.nats, whole.stderr_mc, whole.evaluations)
    rows = sum(len(tokens) for tokens, _, _ in spy.asked) - 2  # one each time to know the network again
    assert whole.evaluations <= rows <= whole.evaluations + 16 * 4 + 4
    before = len(spy.asked)
    log_likelihood(spy, x, batch=4, keep=keep, **options)
    assert len(spy.asked) == before + 1, "all is known"
    for other in ({"seed": 1}, {"x_0": LONG_X.repeat(9, 1).flip(0)}, {"network": InconsistentTable(2, 5, seed=1)}):
        call = {"network": world, "x_0": x, "batch": 4, "keep": keep, **options, **other}
        with pytest.raises(ValueError, match="remove it"):
            log_likelihood(**call)
    keep.write_bytes(keep.read_bytes()[:200])
    with pytest.raises(ValueError, match="remove it"):
        log_likelihood(world, x, batch=4, keep=keep, **options)


def test_a_causal_evaluation_goes_on_too(tmp_path):
    world, x, maskable = causal_rows()
    for _ in range(2):
        estimate = log_likelihood(world, x, maskable, batch=4, keep=tmp_path / "kept.npz")
        assert torch.allclose(estimate.per_sequence, -world.log_p(), rtol=1e-12)


@dataclass(frozen=True)
class Sharper:
    """A world whose logits are scaled: a network much like it."""

    world: InconsistentTable
    scale: float = 1.2
    causal = False
    normalised = True

    def __getattr__(self, name: str):
        return getattr(self.world, name)

    def __call__(self, tokens, at, *, then=None, rows=None, level=None):
        logits = self.world(tokens, at) * self.scale
        return logits if then is None else then(logits, slice(0, len(at)))


def test_pairing_cancels_what_is_common():
    """Two like networks, the same maskings: the difference is sure where neither value is, and covers the truth."""
    one, two, x = LONG["inconsistent"], Sharper(LONG["inconsistent"]), LONG_X.repeat(20, 1)
    truth = bound_of_sharper = None
    table = (costs(one, 5) * -1.2).log_softmax(-1) * -1
    bound_of_sharper = expected(random_orders(range(5)), table, LONG_X)
    truth = 20 * float((long_bound("inconsistent") - bound_of_sharper).sum())
    first, second = (log_likelihood(each, x, draws=8, batch=4000) for each in (one, two))
    paired, apart = compare(first, second), compare(first, log_likelihood(two, x, draws=8, seed=1, batch=4000))
    assert math.isclose(paired.nats, first.nats - second.nats, rel_tol=1e-9)
    assert paired.stderr_mc < 0.4 * math.hypot(first.stderr_mc, second.stderr_mc)
    assert abs(apart.stderr_mc / math.hypot(first.stderr_mc, second.stderr_mc) - 1) < 0.2, "nothing cancels"
    assert abs(paired.nats - truth) < 4.5 * paired.stderr_mc
    assert paired.stderr_data < 0.5 * first.stderr_data
    assert (paired.bound, paired.evaluations) == ("difference", first.evaluations + second.evaluations)
    exact = ordered_log_likelihood(one, x, draw_plan(LeftToRight(), torch.ones_like(x).bool()))
    assert math.isclose(compare(first, exact).stderr_mc, first.stderr_mc, rel_tol=1e-9)
    with pytest.raises(ValueError, match="paired"):
        compare(first, log_likelihood(one, x[:5], draws=8))
    with pytest.raises(ValueError, match="replicates"):
        compare(first, log_likelihood(one, x, draws=8, replicates=4, batch=4000))


@dataclass(frozen=True)
class Separate:
    """Every position has a law of its own, whatever is visible: what differs between two texts is where they differ."""

    vocab: int = 3
    mask_id: int = 3
    causal = False
    normalised = True

    def __call__(self, tokens, at, *, then=None, rows=None, level=None):
        table = torch.randn(8, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 2
        logits = table[at % tokens.shape[1]]
        return logits if then is None else then(logits, slice(0, len(at)))


def test_options_of_one_question_see_the_same_maskings():
    """Rows with one number, two answers that differ in a token: what they share cancels."""
    x = every(3, 3).repeat(1, 3)[:, :8]
    other = torch.cat([x[:, :7], (x[:, 7:] + 1) % 3], -1)
    yes, no, apart = (
        log_likelihood(Separate(), text, seed=seed, draws=8) for text, seed in ((x, 0), (other, 0), (other, 7))
    )
    assert compare(yes, no).stderr_mc < 0.5 * compare(yes, apart).stderr_mc
    truth = log_likelihood(Separate(), x, draws=256).nats - log_likelihood(Separate(), other, draws=256).nats
    assert abs(compare(yes, no).nats - truth) < 4.5 * compare(yes, no).stderr_mc


def test_documents_are_told_once_of_all_sequences():
    """Whatever the shares of processes: one has all of them."""
    documents = torch.tensor([0, 0, 1, 1, 2, 3, 3])
    options = {"draws": 8, "seed": 5}

    def score(rows):
        return log_likelihood(WORLDS[1], X[rows], sequences=rows.tolist(), **options)

    shared = ranks.likelihood(score, len(documents), documents)
    assert shared.row() == log_likelihood(WORLDS[1], X[: len(documents)], documents=documents, **options).row()
    assert shared.documents == 4


def test_rows_are_indices_into_the_texts():
    """Whatever the batch and whatever is scored in which order; so a guided network finds its conditions."""
    x = LONG_X[[3, 8, 21, 30, 14]]
    maskable = torch.stack([pattern_of(text) for text in ("00111", "01011", "00000", "00011", "01111")])
    for call in (
        lambda network: log_likelihood(network, x, maskable, draws=6, batch=4),
        lambda network: log_likelihood(network, x, maskable, estimator=LambdaDCE(), draws=6, batch=4),
        lambda network: ordered_log_likelihood(network, x, draw_plan(RandomOrder(), maskable), batch=4),
        lambda network: importance_log_likelihood(network, x, maskable, orders=3, batch=4),
        lambda network: surprisal(network, x, maskable, draws=8, batch=4),
    ):
        spy = Spy(LONG["inconsistent"])
        call(spy)
        for tokens, _, rows in spy.asked:
            visible = tokens != spy.mask_id
            assert bool(((tokens == x[rows]) | ~visible).all())
            assert bool((visible | maskable[rows]).all())
    condition = ~maskable & torch.tensor([True, False, False, False, False])
    guided = Guided(LONG["inconsistent"], condition, 0.7)
    together = log_likelihood(guided, x, maskable, draws=14, batch=4)
    for i in (0, 1, 3, 4):
        alone = Guided(LONG["inconsistent"], condition[i : i + 1], 0.7)
        one = log_likelihood(alone, x[i : i + 1], maskable[i : i + 1], draws=14, sequences=[i])
        assert torch.allclose(one.per_sequence, together.per_sequence[i], rtol=1e-12)
    assert together.evaluations == 2 * (7 + 7 + 3 + 14), "guidance runs each row twice; short answers are enumerated"


# --- exact ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS, ids=["joint", "inconsistent"])
def test_ordered_likelihood_is_the_chain_rule(world):
    table, is_all = costs(world, 3), torch.ones_like(X, dtype=torch.bool)
    unused = torch.rand(X.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    orders = {
        "forward": (draw_plan(LeftToRight(), is_all), [[0], [1], [2]]),
        "backward": (FixedOrder((-1, -2, -3)).plan(is_all, unused), [[2], [1], [0]]),
        "parallel": (torch.tensor([5, 0, 5]).expand(27, -1), [[1], [0, 2]]),
        "at once": (torch.zeros_like(X), [[0, 1, 2]]),
        "given": (torch.tensor([1, -1, 0]).expand(27, -1), [[2], [0]]),
    }
    for plan, steps in orders.values():
        for batch in (4, 1000):
            estimate = ordered_log_likelihood(world, X, plan, batch=batch)
            assert torch.allclose(estimate.per_sequence, in_order(table, X, steps), rtol=1e-12)
        assert estimate.evaluations == 27 * len(steps)
        assert (estimate.bound, estimate.stderr_mc, estimate.draws) == ("exact", 0.0, 0)
        assert estimate.interval() == (estimate.nats, estimate.nats)
    forward, backward = (in_order(table, X, orders[name][1]) for name in ("forward", "backward"))
    agree = torch.allclose(forward, backward)
    assert agree == isinstance(world, JointTable), "exact orders differ on the inconsistent world only"
    if agree:
        assert torch.allclose(forward, -world.log_p, rtol=1e-12)


@pytest.mark.parametrize("policy", [RandomOrder(), RandomOrder(2), Tweedie(3)], ids=str)
def test_ordered_likelihood_of_random_plans(policy):
    """Each row its own plan, some positions given: row by row the chain rule over the plan's distinct steps."""
    world, generator = WORLDS[1], torch.Generator().manual_seed(1)
    table, is_open = costs(world, 3), torch.rand(27, 3, generator=generator) < 0.8
    plan = policy.plan(is_open, torch.rand(27, 3, generator=generator, dtype=torch.float64)).masked_fill(~is_open, -1)
    estimate = ordered_log_likelihood(world, X, plan, batch=5)
    evaluations = 0
    for i, row in enumerate(plan.tolist()):
        steps = [[j for j in range(3) if row[j] == step] for step in sorted({s for s in row if s >= 0})]
        evaluations += len(steps)
        assert math.isclose(float(estimate.per_sequence[i]), float(in_order(table, X[i : i + 1], steps)), abs_tol=1e-12)
    assert estimate.evaluations == evaluations
    assert estimate.tokens == int(is_open.sum())


def test_any_negative_step_means_given():
    """plan < 0, whatever the number, is not scored and seen from the start."""
    plan = torch.tensor([[-5, -1, 0], [2, -2, -1], [-3, 1, 0]])
    want = ordered_log_likelihood(WORLDS[1], X[:3], plan.clamp(min=-1))
    got = ordered_log_likelihood(WORLDS[1], X[:3], plan)
    assert torch.allclose(got.per_sequence, want.per_sequence)
    assert got.evaluations == want.evaluations


def test_the_mean_over_orders_is_the_bound():
    world, is_all = WORLDS[1], torch.ones(27, 3, dtype=torch.bool)
    plans = []
    for _, steps in random_orders([0, 1, 2]):
        rank = torch.tensor([steps.index([i]) for i in range(3)])
        plans.append(rank.expand(27, -1))
    exact = torch.stack([ordered_log_likelihood(world, X, plan).per_sequence for plan in plans]).mean(0)
    assert torch.allclose(exact, bound(world), rtol=1e-12)
    assert torch.allclose(log_likelihood(world, X, is_all).per_sequence, exact, rtol=1e-12)


def test_the_importance_bound_lies_between_and_falls_with_the_orders():
    """By enumeration over K-tuples of the 6 orders: random-order bound at K = 1, then strictly down, above the truth;
    the estimate agrees at each K."""
    world, x = WORLDS[1], X[[2, 11, 24]]
    table = costs(world, 3)
    nats = torch.stack([in_order(table, x, steps) for _, steps in random_orders([0, 1, 2])])  # [6, 3]
    truth = math.log(6) - (-nats).logsumexp(0)
    before = None
    for count in (1, 2, 4):
        tuples = torch.cartesian_prod(*[torch.arange(6)] * count).view(-1, count)
        exact = (math.log(count) - (-nats[tuples]).logsumexp(1)).mean(0)
        assert bool((exact > truth + 1e-3).all())
        assert before is None or bool((exact < before - 1e-3).all())
        before = exact
        many = x.repeat(800, 1)
        estimate = importance_log_likelihood(world, many, orders=count, batch=20_000, seed=1)
        assert (estimate.bound, estimate.evaluations) == ("importance bound", 2400 * 2 * count * 3)
        values = estimate.per_sequence.view(800, 3)
        for i in range(3):
            check_mean(values[:, i], float(exact[i]))
        assert 0.85 < estimate.stderr_mc / math.sqrt(800 * float(values.var(0).sum())) < 1.15
    agreeing = importance_log_likelihood(WORLDS[0], X, orders=2)
    assert torch.allclose(agreeing.per_sequence, -WORLDS[0].log_p, rtol=1e-12)
    assert agreeing.stderr_mc < 1e-12, "all orders agree"


def test_the_importance_bound_of_another_sampler_bounds_its_own_law():
    """Two tokens a step: the mean of p(x | plan) over the plans is that sampler's law, which many orders reach."""
    world, x = WORLDS[1], X[[2, 11, 24]]
    plans = random_orders([0, 1, 2], 2)
    truth = -sum(p * (-in_order(costs(world, 3), x, steps)).exp() for p, steps in plans).log()
    estimate = importance_log_likelihood(world, x, policy=RandomOrder(2), orders=600, batch=20_000)
    assert torch.allclose(estimate.per_sequence, truth, atol=0.05)
    assert estimate.evaluations == 3 * 1200 * 2
    steps = importance_log_likelihood(world, x, policy=Tweedie(2), orders=600, batch=20_000)
    assert steps.evaluations < 3 * 1200 * 2


@dataclass(frozen=True)
class MiddleLast:
    """A policy of a user's: either end first."""

    exact_for = "the ends in a random order, then the middle"

    def plan(self, open_, u):
        return (u + torch.tensor([0, 1, 0])).argsort(-1).argsort(-1)


@pytest.mark.parametrize("policy", [MiddleLast(), Blocks(3, MiddleLast())], ids=repr)
def test_the_importance_bound_of_any_drawn_plan(policy):
    world, x = WORLDS[1], X[[2, 11, 24]]
    plans = [(0.5, steps) for steps in ([[0], [2], [1]], [[2], [0], [1]])]
    truth = -sum(p * (-in_order(costs(world, 3), x, steps)).exp() for p, steps in plans).log()
    estimate = importance_log_likelihood(world, x, policy=policy, orders=600, batch=20_000)
    assert torch.allclose(estimate.per_sequence, truth, atol=0.03)


@pytest.mark.parametrize("policy", [Confidence(), Blocks(2, Confidence()), Remasking(), Rated()], ids=repr)
def test_no_importance_bound_where_the_plan_does_not_say_all(policy):
    with pytest.raises(ValueError, match=f"{type(inside_of(policy)).__name__} plans no steps"):
        importance_log_likelihood(WORLDS[1], X, policy=policy)


def test_surprisal_is_each_tokens_share():
    """The mean over orders of a token's cost when it is written, by enumeration; shares sum to the estimate."""
    world, table = LONG["inconsistent"], costs(LONG["inconsistent"], 5)
    x = LONG_X[[9]].repeat(400, 1)
    share = torch.zeros(5, dtype=torch.float64)
    for p, steps in random_orders(range(5)):
        canvas = torch.full((5,), 2)
        for (i,) in steps:
            share[i] += p * table[number(canvas[None], 3)[0], i, LONG_X[9, i]]
            canvas[i] = LONG_X[9, i]
    told = surprisal(world, x, draws=24, replicates=4, seed=2, batch=4000)
    for i in range(5):
        check_mean(told.nats[:, i], float(share[i]))
    assert 0.8 < float(told.stderr.square().mean() / told.nats.var(0).mean()) < 1.25
    estimate = log_likelihood(world, x, draws=24, replicates=4, seed=2, batch=4000)
    assert torch.allclose(told.nats.sum(-1), estimate.per_sequence, rtol=1e-12)
    maskable = pattern_of("01101").expand(32, -1)
    exact = surprisal(world, LONG_X, maskable)
    assert float(exact.stderr.max()) == 0
    assert torch.allclose(exact.nats.sum(-1), long_bound("inconsistent", "01101"), rtol=1e-12)
    assert bool((exact.nats[~maskable] == 0).all())


def test_surprisal_in_a_stated_order_is_exact():
    world, plan = WORLDS[1], torch.tensor([1, -1, 0]).expand(27, -1)
    told, table = ordered_surprisal(world, X, plan, batch=5), costs(world, 3)
    first = table[number(X.masked_fill(plan >= 0, 3), 4), 2, X[:, 2]]
    then = table[number(X.masked_fill(plan >= 1, 3), 4), 0, X[:, 0]]
    assert torch.allclose(told.nats, torch.stack([then, torch.zeros(27), first], -1).double(), rtol=1e-12)
    causal, x, maskable = causal_rows()
    steps = draw_plan(LeftToRight(), maskable)
    for each in (surprisal(causal, x, maskable, batch=4), ordered_surprisal(causal, x, steps, batch=4)):
        assert torch.allclose(each.nats.sum(-1), -causal.log_p(), rtol=1e-12)
        assert each.bound == "exact"


def causal_rows() -> tuple[CausalTable, torch.Tensor, torch.Tensor]:
    x = torch.cat([torch.zeros(27, 1, dtype=torch.long), X], -1)
    return CausalTable(), x, torch.tensor([False, True, True, True]).expand(27, -1)


def test_a_causal_network_is_scored_exactly():
    world, x, maskable = causal_rows()
    for estimator in (None, NextToken()):
        for batch in (4, 100):
            spy = Spy(world)
            estimate = log_likelihood(spy, x, maskable, estimator=estimator, batch=batch)
            assert torch.allclose(estimate.per_sequence, -world.log_p(), rtol=1e-12)
            assert (estimate.bound, estimate.estimator, estimate.draws) == ("exact", "chain rule", 0)
            assert (estimate.tokens, estimate.evaluations, estimate.stderr_mc) == (81, 27, 0.0)
            assert sum(len(tokens) for tokens, _, _ in spy.asked) == 27, "one row a sequence"
    ordered = ordered_log_likelihood(world, x, draw_plan(LeftToRight(), maskable))
    assert torch.allclose(ordered.per_sequence, -world.log_p(), rtol=1e-12)
    steps = torch.tensor([-1, 3, 8, 9]).expand(27, -1)
    assert torch.allclose(ordered_log_likelihood(world, x, steps).per_sequence, -world.log_p(), rtol=1e-12)
    suffix = torch.tensor([False, False, True, True]).expand(27, -1)
    given = torch.stack([world.log_p()[X[:, 0] == v].logsumexp(0) for v in X[:, 0]])
    assert torch.allclose(log_likelihood(world, x, suffix).per_sequence, given - world.log_p(), rtol=1e-12)


def test_what_does_not_fit_is_refused():
    world, x, maskable = causal_rows()
    for plan in ([-1, 2, 1, 0], [-1, 0, 0, 1], [-1, 1, 0, 2]):
        with pytest.raises(ValueError, match="from left to right"):
            ordered_log_likelihood(world, x, torch.tensor(plan).expand(27, -1))
    with pytest.raises(ValueError, match="bidirectional"):
        log_likelihood(world, x, maskable, estimator=AnyOrder())
    with pytest.raises(ValueError, match="causal"):
        log_likelihood(WORLDS[0], X, estimator=NextToken())
    for bad in (torch.ones(27, 2).bool(), torch.ones(26, 3).bool()):
        with pytest.raises(ValueError, match="do not fit"):
            log_likelihood(WORLDS[0], X, bad)
    with pytest.raises(ValueError, match="do not fit"):
        log_likelihood(WORLDS[0], X, sequences=[0])
    with pytest.raises(ValueError, match="nothing to score"):
        log_likelihood(WORLDS[0], X, torch.zeros_like(X).bool())
    with pytest.raises(ValueError, match="nothing to score"):
        ordered_log_likelihood(WORLDS[0], X, torch.full_like(X, -1))
    for read in (log_likelihood, importance_log_likelihood, partial(decoder_log_likelihood, policy=Confidence())):
        with pytest.raises(ValueError, match=r"documents \(2,\): give a tensor of one number for each of 27"):
            read(WORLDS[0], X, X < 3, documents=torch.tensor([0, 1]))
        with pytest.raises(ValueError, match="documents of list: give a tensor"):
            read(WORLDS[0], X, X < 3, documents=[0, 1])


def test_an_estimate_says_no_draws_where_all_masks_are_enumerated():
    for asked in ({"draws": 32}, {"stderr": 0.5}):
        few = log_likelihood(WORLDS[0], X[:3], **asked)
        assert (few.draws, few.stderr_mc, few.freedom) == (0, 0, 0)


def test_a_module_without_weights_has_a_precision_of_its_own():
    class Even(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.zeros(*tokens.shape, 3)

    found = log_likelihood(Plain(Even(), 3, 3), torch.tensor([[0, 1, 2]]))
    assert found.precision == "its own"
    assert found.nats == pytest.approx(3 * math.log(3), rel=1e-6)


def test_what_is_no_batch_of_rows_is_refused_in_a_line():
    world, open_ = WORLDS[0], torch.ones_like(X).bool()
    decoded = partial(decoder_log_likelihood, maskable=open_, policy=Confidence())
    for read in (log_likelihood, surprisal, importance_log_likelihood, decoded):
        for x, match in (
            (X[0], r"x_0 must be \[rows, L\], not of shape \[3\]: give x_0\[None\]"),
            (list(X), "x_0 must be a tensor .* one by one"),
            (X.double(), "x_0 must be integers, not torch.float64"),
        ):
            with pytest.raises(ValueError, match=match):
                read(world, x)
        with pytest.raises(ValueError, match="maskable must be bool"):
            read(world, X, maskable=open_.long())
    for read in (ordered_log_likelihood, ordered_surprisal):
        for x, plan, match in (
            (X, X.double(), "plan must be integers"),
            (X, open_, "plan must be integers"),
            (X[0], X, r"x_0\[None\]"),
            (X, X[0], r"plan\[None\]"),
        ):
            with pytest.raises(ValueError, match=match):
                read(world, x, plan)
    for bad, match in ((open_[0], r"open_\[None\]"), (open_.long(), "open_ must be bool")):
        with pytest.raises(ValueError, match=match):
            draw_plan(RandomOrder(), bad)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_integers_of_any_width_are_tokens(dtype):
    world, open_ = WORLDS[0], torch.ones_like(X).bool()
    plan = draw_plan(LeftToRight(), open_)
    for read in (
        log_likelihood,
        partial(decoder_log_likelihood, maskable=open_, policy=Confidence()),
        lambda world, x: ordered_log_likelihood(world, x, plan.to(x.dtype)),
    ):
        assert torch.equal(read(world, X.to(dtype)).per_sequence, read(world, X).per_sequence)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_nothing_is_refused(batch: int):
    world, open_ = WORLDS[0], torch.ones_like(X).bool()
    for read in (
        partial(log_likelihood, world, X),
        partial(decoder_log_likelihood, world, X, open_, Confidence()),
        partial(decode_nats, world, X, open_, LeftToRight()),
        partial(ordered_log_likelihood, world, X, draw_plan(LeftToRight(), open_)),
    ):
        with pytest.raises(ValueError, match=f"batch {batch} must be at least 1"):
            read(batch=batch)


@pytest.mark.parametrize(("draws", "replicates"), [(32, 1), (10, 4), (2, 4), (0, 4), (-4, 4)])
def test_draws_must_be_replicated(draws: int, replicates: int):
    with pytest.raises(ValueError, match=f"draws {draws} must"):
        log_likelihood(WORLDS[0], X, draws=draws, replicates=replicates)


@pytest.mark.parametrize("draws", [8, 64], ids=["drawn", "enumerated"])
def test_a_text_with_an_impossible_token_costs_infinitely_much_and_others_what_they_cost(draws: int):
    network, x = Biased(LONG["inconsistent"], {0: -math.inf}), LONG_X[[6, 31, 1]]
    possible = (x != 0).all(-1)
    assert possible.tolist() == [False, True, False]
    estimate = log_likelihood(network, x, draws=draws)
    assert bool((estimate.per_sequence[~possible] == math.inf).all())
    alone = log_likelihood(network, x[possible], draws=draws, sequences=possible.nonzero().squeeze(-1).tolist())
    assert torch.equal(estimate.per_sequence[possible], alone.per_sequence)
    assert estimate.perplexity == math.inf
    assert math.isnan(estimate.stderr_data), "not 0"


def test_a_network_that_predicts_no_number_has_no_perplexity():
    network = Transformer(TransformerConfig(vocab=3, layers=1, heads=1, width=8))
    with torch.no_grad():
        network.output.weight.fill_(math.nan)
    assert math.isnan(log_likelihood(network, X[:4], draws=4).perplexity)


# --- score networks ---------------------------------------------------------------------------------------------------


def test_the_estimator_is_the_objective_also_for_score_networks():
    """t-DSE of a score network is more than its cross entropy: the estimate must be that loss."""
    network, x = Score(WORLDS[1]), X[[5]].repeat(4000, 1)
    truth = float(expected(random_orders([0, 1, 2]), score_costs(network, 3), X[[5]]))
    u = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check_mean(TimeDSE()(network, x, torch.ones_like(x).bool(), u, torch.Generator().manual_seed(1)), truth)
    check_mean(log_likelihood(network, x, estimator=TimeDSE(), draws=8, batch=20_000).per_sequence, truth)


# --- what an Estimate tells -------------------------------------------------------------------------------------------


def test_an_estimate_counts():
    maskable = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    told = []
    spy = Spy(LONG["inconsistent"])
    estimate = log_likelihood(
        spy,
        LONG_X[:3],
        maskable,
        draws=8,
        seed=4,
        batch=10,
        documents=torch.tensor([7, 9, 9]),
        progress=lambda done, total: told.append((done, total)),
    )
    assert (estimate.tokens, estimate.sequences, estimate.documents) == (9, 3, 2)
    assert (estimate.evaluations, estimate.draws, estimate.seed) == (16, 8, 4)
    assert sum(len(tokens) for tokens, _, _ in spy.asked) == 16
    assert told == [(10, 16), (16, 16)]
    assert (estimate.bound, estimate.estimator, estimate.precision) == ("upper bound", "AnyOrder(0.5)", "its own")
    assert math.isclose(estimate.perplexity, math.exp(estimate.nats / 9))
    low, high = (math.exp((estimate.nats + sign * 1e-4 * estimate.stderr_mc) / 9) for sign in (-1, 1))
    assert math.isclose(estimate.perplexity_stderr[0], (high - low) / 2e-4, rel_tol=1e-6)
    assert math.isclose(estimate.bits_per_byte(10), estimate.nats / 10 / math.log(2))
    row = json.loads(json.dumps(estimate.row()))
    assert row["nats"] == estimate.nats
    assert "per_sequence" not in row
    wide, narrow = estimate.interval(0.99), estimate.interval(0.5)
    assert wide[0] < narrow[0] < estimate.nats < narrow[1] < wide[1]


def test_an_estimate_of_replicates_by_hand():
    """Two sequences, three replicates: means, the variance of the total's mean, and the texts' share."""
    nats = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 8.0]], dtype=torch.float64)
    estimate = Estimate.of(nats, torch.ones(2, 4).bool(), estimator="by hand", precision="float64", bound="upper bound")
    assert estimate.per_sequence.tolist() == [2.0, 6.0]
    assert (estimate.nats, estimate.tokens, estimate.sequences, estimate.documents) == (8.0, 8, 2, 2)
    assert math.isclose(estimate.stderr_mc, math.sqrt((1 + 3) / 3))
    # residuals 2 - 4 and 6 - 4, C / (C - 1) = 2: a variance of 16, of which 4/3 is that of the maskings
    assert math.isclose(estimate.stderr_data, math.sqrt(16 - 4 / 3))
    exact = Estimate.of(nats[:, :1], torch.ones(2, 4).bool(), estimator="by hand", precision="float64")
    assert (exact.stderr_mc, exact.freedom, exact.bound) == (0.0, 0, "exact")
    assert math.isclose(exact.stderr_data, math.sqrt(2 * (2**2 + 2**2)))


def test_one_document_has_no_error_of_texts():
    assert math.isnan(log_likelihood(WORLDS[1], X[:4], documents=torch.zeros(4).long()).stderr_data)


@pytest.mark.parametrize("read", [Estimate.interval, lambda estimate: estimate.stderr_data], ids=["maskings", "texts"])
def test_rows_with_nothing_to_score_change_nothing(read):
    """They are known exactly: they can neither narrow an interval nor count as documents."""
    maskable = torch.ones(3, 3).bool()
    alone = log_likelihood(WORLDS[1], X[:3], maskable)
    padded = log_likelihood(WORLDS[1], X, torch.cat([maskable, torch.zeros(24, 3).bool()]))
    assert math.isclose(alone.nats, padded.nats, rel_tol=1e-12)
    assert math.isclose(alone.stderr_mc, padded.stderr_mc, rel_tol=1e-9)
    assert torch.allclose(torch.tensor(read(padded)), torch.tensor(read(alone)))


# --- the error of the texts -------------------------------------------------------------------------------------------


def corpus(generator: torch.Generator, count: int = 60) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sequences, maskable, documents): documents of 1 to 4 sequences, each document fond of one token."""
    sizes = torch.randint(1, 5, (count,), generator=generator)
    documents = torch.repeat_interleave(torch.arange(count), sizes)
    fond = torch.randint(0, 3, (count,), generator=generator)[documents]
    x = torch.randint(0, 3, (len(documents), 3), generator=generator)
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.6, fond[:, None], x)
    maskable = torch.rand(x.shape, generator=generator) < 0.7
    return x, maskable, documents


def check_data_error(clusters, corpora: int = 1200) -> None:
    """Over many corpora the claimed error of the rate is its standard deviation, within 10% (4.9 standard errors)."""
    generator = torch.Generator().manual_seed(0)
    rates, claimed = [], []
    for _ in range(corpora):
        x, maskable, documents = corpus(generator)
        estimate = ordered_log_likelihood(
            WORLDS[1], x, torch.zeros_like(x).masked_fill(~maskable, -1), documents=clusters(documents), batch=10_000
        )
        rates.append(estimate.nats / estimate.tokens)
        claimed.append(estimate.stderr_data / estimate.tokens)
    spread = float(torch.tensor(rates).std())
    claim = math.sqrt(sum(each**2 for each in claimed) / len(claimed))
    assert abs(claim / spread - 1) < 0.1, f"claims {claim:.4f}, the rate varies by {spread:.4f}"


def test_stderr_data_is_the_spread_over_corpora():
    check_data_error(lambda documents: documents)
    with pytest.raises(AssertionError, match="claims"):  # sequences taken for independent texts
        check_data_error(lambda documents: None)


def test_one_long_document_among_short_ones_is_no_certainty():
    """One of 85% and 19 that share the rest, each with a rate of its own: the mean variance is the rate's, within 15%
    (4.7 standard errors); the plain sum of squared residuals is an eighth of it.
    """
    size = torch.tensor([85.0] + [15 / 19] * 19, dtype=torch.float64)
    rates = 3 + torch.randn(2000, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = float(((rates * size).sum(-1) / size.sum()).var())
    claimed = [ratio_variance(rate * size, size) / float(size.sum()) ** 2 for rate in rates]
    assert abs(sum(claimed) / len(claimed) / truth - 1) < 0.15
    residual = rates * size - (rates * size).sum(-1, keepdim=True) / size.sum() * size
    assert float(residual.square().sum(-1).mean()) / float(size.sum()) ** 2 < truth / 8
    even = torch.ones(20, dtype=torch.float64)  # of equal parts it is the sample variance of their sum
    assert math.isclose(ratio_variance(rates[0], even), 20 * float(rates[0].var()), rel_tol=1e-12)


def test_stderr_data_leaves_out_the_maskings():
    """With few draws the texts' error stays what it is with exact likelihoods, and the maskings' error is apart."""
    generator = torch.Generator().manual_seed(2)
    table = {text: bound(WORLDS[1], torch.tensor(text)) for text in {tuple(row) for row in (every(2, 3) == 1).tolist()}}
    with_maskings, exact, maskings = [], [], []
    for seed in range(120):
        x, maskable, documents = corpus(generator)
        options = {"draws": 4, "replicates": 2, "seed": seed, "documents": documents, "batch": 1000}
        estimate = log_likelihood(WORLDS[1], x, maskable, **options)
        nats = torch.stack([table[tuple(may)][i] for may, i in zip(maskable.tolist(), number(x, 3), strict=True)])
        total = torch.zeros(60, dtype=torch.float64).index_add(0, documents, nats)
        size = torch.zeros(60, dtype=torch.float64).index_add(0, documents, maskable.sum(-1).double())
        residual = total - nats.sum() / maskable.sum() * size
        exact.append(float(residual.square().sum() * 60 / 59))
        with_maskings.append(estimate.stderr_data**2)
        maskings.append(estimate.stderr_mc**2)
    gap = torch.tensor(with_maskings, dtype=torch.float64) - torch.tensor(exact, dtype=torch.float64)
    check_mean(gap, 0.0)
    with pytest.raises(AssertionError, match="standard errors"):  # the maskings' share left in
        check_mean(gap + torch.tensor(maskings, dtype=torch.float64), 0.0)


def test_stderr_data_scales_with_the_corpus():
    """Nothing random: a corpus given twice has the same rate, and an error of the total sqrt(2) larger."""
    generator = torch.Generator().manual_seed(3)
    x, maskable, documents = corpus(generator, 400)
    plan = torch.zeros_like(x).masked_fill(~maskable, -1)
    one = ordered_log_likelihood(WORLDS[1], x, plan, documents=documents)
    two = ordered_log_likelihood(
        WORLDS[1], x.repeat(2, 1), plan.repeat(2, 1), documents=torch.cat([documents, documents + 400])
    )
    assert math.isclose(two.nats, 2 * one.nats, rel_tol=1e-12)
    assert math.isclose(two.stderr_data, math.sqrt(2) * one.stderr_data, rel_tol=0.01)
    assert math.isclose(replace(one, nats=0.0).perplexity, 1.0)
