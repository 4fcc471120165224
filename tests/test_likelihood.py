"""Likelihoods are unbiased, their errors are honest, and exact ones are the enumerated chain rule.

Truths are computed apart from the package (enumeration.py); checks are also run on planted faults and must fail there.
"""

import json
import math
from dataclasses import dataclass, replace

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

from unmask.corruption import Cosine, Geometric
from unmask.likelihood import Estimate, log_likelihood, ordered_log_likelihood
from unmask.objectives import AnyOrder, Corruption, LambdaDCE, NextToken, TimeDCE, TimeDSE
from unmask.sampling import FixedOrder, LeftToRight, RandomOrder, Tweedie, draw_plan
from unmask.world import InconsistentTable, JointTable

WORLDS = [JointTable(3, 3), InconsistentTable(3, 3)]
X = every(3, 3)
ALL = torch.tensor([True, True, True])


def bound(world, pattern: torch.Tensor = ALL) -> torch.Tensor:
    """The random-order bound of every sequence, by enumeration."""
    return expected(random_orders(opened(pattern)), costs(world, 3), X)


# --- Monte Carlo ------------------------------------------------------------------------------------------------------

ESTIMATORS = [None, AnyOrder(), LambdaDCE(), TimeDCE(Cosine()), TimeDSE(Geometric())]


def check_unbiased(world, estimator, pattern: torch.Tensor, copies: int = 300) -> None:
    """Over copies of every sequence, each with its own number: the mean error of each is within 4 standard errors."""
    x = X.repeat(copies, 1)
    maskable = pattern.expand(len(x), -1)
    estimate = log_likelihood(world, x, maskable, estimator=estimator, draws=8, replicates=2, batch=20_000, seed=3)
    truth = bound(world, pattern)
    errors = estimate.per_sequence.view(copies, 27) - truth
    check_mean(errors.mean(-1), 0.0)
    for i in (0, 7, 26):
        check_mean(errors[:, i], 0.0)
    assert math.isclose(estimate.nats, float(estimate.per_sequence.sum()), rel_tol=1e-12)
    spread = float(errors.sum(0).square().mean().sqrt()) * math.sqrt(
        27
    )  # crude: one error of the total for each sequence
    assert 0.4 < estimate.stderr_mc / spread < 2.5


@pytest.mark.parametrize("world", WORLDS, ids=["joint", "inconsistent"])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_log_likelihood_is_unbiased(world, estimator):
    check_unbiased(world, estimator, ALL)
    check_unbiased(world, estimator, torch.tensor([True, False, True]), copies=100)


@dataclass(frozen=True)
class Faulty:
    """k-DCE with a planted fault."""

    fault: str

    def corrupt(self, maskable, u, noise) -> Corruption:
        if self.fault == "one position is forgotten":
            maskable = maskable & (maskable.long().cumsum(-1) < maskable.sum(-1, keepdim=True))
        masked, weight, level = AnyOrder(0.4).corrupt(maskable, u, noise)
        if self.fault == "the importance is not paid back":
            weight = maskable.sum(-1) / masked.sum(-1)
        return Corruption(masked, weight, level)


def test_the_check_of_bias_sees_planted_faults():
    check_unbiased(WORLDS[1], Faulty("none"), ALL)
    for fault in ("one position is forgotten", "the importance is not paid back"):
        with pytest.raises(AssertionError, match="standard errors"):
            check_unbiased(WORLDS[1], Faulty(fault), ALL)


def test_conditional_is_joint_minus_marginal():
    """On the joint table, with given tokens: the estimate tends to log p(x) - log p(given)."""
    world, pattern = WORLDS[0], torch.tensor([True, False, True])
    given = world.log_p - torch.stack([world.log_p[X[:, 1] == v].logsumexp(0) for v in X[:, 1]])
    assert torch.allclose(bound(world, pattern), -given, rtol=1e-12)
    estimate = log_likelihood(world, X, pattern.expand(27, -1), draws=2000, batch=20_000)
    low, high = estimate.interval(0.9999)
    assert low < -float(given.sum()) < high
    assert high - low < 1
    plan = draw_plan(LeftToRight(), pattern.expand(27, -1))
    assert torch.allclose(ordered_log_likelihood(world, X, plan).per_sequence, -given, rtol=1e-12)


def student_interval(estimate: Estimate) -> tuple[float, float]:
    return estimate.interval(0.95)


def normal_interval(estimate: Estimate) -> tuple[float, float]:
    half = float(norm.ppf(0.975)) * estimate.stderr_mc
    return estimate.nats - half, estimate.nats + half


def check_coverage(
    x: torch.Tensor, patterns: list[str], interval=student_interval, repetitions: int = 2500, **options
) -> None:
    """The 95% interval holds the truth in 93 to 97% of repetitions: +-4.6 standard deviations of 2500 of them."""
    maskable = torch.tensor([[letter == "1" for letter in text] for text in patterns])
    each = [bound(WORLDS[1], may)[i] for may, i in zip(maskable, number(x, 3).tolist(), strict=True)]
    truth, held = float(sum(each)), 0
    for seed in range(repetitions):
        low, high = interval(log_likelihood(WORLDS[1], x, maskable, seed=seed, batch=10_000, **options))
        held += low <= truth <= high
    assert 0.93 < held / repetitions < 0.97, f"covers {held / repetitions:.3f}"


def test_interval_covers():
    check_coverage(X[[0, 5, 11, 17, 23, 26]], ["111"] * 6, draws=32, replicates=4)


def test_interval_of_one_sequence_covers_by_students_t():
    check_coverage(X[[5]], ["111"], draws=64, replicates=4)
    with pytest.raises(AssertionError, match="covers"):
        check_coverage(X[[5]], ["111"], normal_interval, repetitions=600, draws=64, replicates=4)


def test_interval_covers_where_other_rows_are_certain():
    """Rows with one maskable position have no error, so they tell nothing about the size of another row's."""
    check_coverage(X[[5] * 9], ["111"] + ["010"] * 8, draws=64, replicates=4)


def test_stderr_mc_is_the_spread_over_seeds():
    runs = [log_likelihood(WORLDS[1], X, draws=16, replicates=4, seed=seed, batch=10_000) for seed in range(300)]
    spread = float(torch.tensor([run.nats for run in runs]).std())
    claimed = math.sqrt(sum(run.stderr_mc**2 for run in runs) / len(runs))
    assert abs(claimed / spread - 1) < 4 / math.sqrt(2 * 300)
    check_mean(torch.tensor([run.nats for run in runs], dtype=torch.float64), float(bound(WORLDS[1]).sum()))


def test_results_do_not_depend_on_the_batch():
    x, documents = X[[4, 9, 4, 22]], torch.tensor([0, 0, 1, 2])
    maskable = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 0], [0, 0, 0]]).bool()
    for world, estimator in ((WORLDS[0], None), (WORLDS[1], LambdaDCE()), (WORLDS[1], TimeDCE(Geometric()))):
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


def test_each_replicate_is_stratified():
    """Exact counts over exactly L strata: every k once a replicate, so equal conditionals leave no variance."""
    flat = JointTable(3, 3, sharpness=0.0)
    estimate = log_likelihood(flat, X, estimator=AnyOrder(), draws=12, replicates=4)
    assert torch.allclose(estimate.per_sequence, torch.full((27,), 3 * math.log(3), dtype=torch.float64), rtol=1e-12)
    assert estimate.stderr_mc < 1e-9
    seen = []

    @dataclass(frozen=True)
    class Watch:
        def corrupt(self, maskable, u, noise):
            seen.append(u)
            return AnyOrder().corrupt(maskable, u, noise)

    log_likelihood(flat, X[:2], estimator=Watch(), draws=24, replicates=3, batch=7)
    strata = (torch.cat(seen).view(2, 3, 8) * 8).floor()
    assert torch.equal(strata, torch.arange(8.0).double().expand(2, 3, 8))
    offsets = torch.cat(seen).view(2, 3, 8)[..., 0]
    assert len(offsets.unique()) == 6, "replicates and sequences are independent"


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
    plans = (
        [
            torch.tensor(order).argsort().expand(27, -1)
            for order in torch.tensor([*torch.cartesian_prod(*[torch.arange(3)] * 3)]).tolist()
        ]
        if False
        else []
    )
    for _, steps in random_orders([0, 1, 2]):
        rank = torch.tensor([steps.index([i]) for i in range(3)])
        plans.append(rank.expand(27, -1))
    exact = torch.stack([ordered_log_likelihood(world, X, plan).per_sequence for plan in plans]).mean(0)
    assert torch.allclose(exact, bound(world), rtol=1e-12)
    estimate = log_likelihood(world, X, is_all, draws=400, batch=20_000)
    low, high = estimate.interval(0.9999)
    assert low < float(exact.sum()) < high


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


@pytest.mark.parametrize(("draws", "replicates"), [(32, 1), (10, 4), (2, 4), (0, 4), (-4, 4)])
def test_draws_must_be_replicated(draws: int, replicates: int):
    with pytest.raises(ValueError, match=f"draws {draws} must"):
        log_likelihood(WORLDS[0], X, draws=draws, replicates=replicates)


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
    maskable = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 0]]).bool()
    told = []
    spy = Spy(WORLDS[1])
    estimate = log_likelihood(
        spy,
        X[:3],
        maskable,
        draws=8,
        replicates=2,
        seed=4,
        batch=10,
        documents=torch.tensor([7, 9, 9]),
        progress=lambda done, total: told.append((done, total)),
    )
    assert (estimate.tokens, estimate.sequences, estimate.documents) == (5, 3, 2)
    assert (estimate.evaluations, estimate.draws, estimate.seed) == (24, 8, 4)
    assert sum(len(tokens) for tokens, _, _ in spy.asked) == 24
    assert told == [(10, 24), (20, 24), (24, 24)]
    assert (estimate.bound, estimate.estimator, estimate.precision) == ("upper bound", "AnyOrder(0.4)", "its own")
    assert math.isclose(estimate.perplexity, math.exp(estimate.nats / 5))
    low, high = (math.exp((estimate.nats + sign * 1e-4 * estimate.stderr_mc) / 5) for sign in (-1, 1))
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
