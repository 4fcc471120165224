"""Every objective's expectation IS the random-order bound: by quadrature over the level and enumeration over masks.

The bound itself is computed apart from the package, by the chain rule over all orders (enumeration.py). Each check is
also run on planted faults and must fail there.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from enumeration import (
    CausalTable,
    Score,
    Spy,
    check_counts,
    check_mean,
    costs,
    every,
    expected,
    law,
    number,
    opened,
    random_orders,
    score_costs,
)

from unmask.conditioned import Conditioned, ConditionedConfig
from unmask.corruption import Cosine, Geometric, LogLinear
from unmask.network import Network, Target
from unmask.objectives import (
    AnyOrder,
    Corruption,
    LambdaDCE,
    NextToken,
    ScoreEntropy,
    TimeDCE,
    TimeDSE,
    concrete_score,
    cross_entropy,
    weighted,
)
from unmask.transformer import Transformer, TransformerConfig
from unmask.world import InconsistentTable, JointTable

LAST = 1 - 2**-53
SCHEDULES = [LogLinear(), Geometric(), Cosine()]
TIMED = [kind(schedule) for kind in (TimeDCE, TimeDSE) for schedule in SCHEDULES]
INDEPENDENT = [LambdaDCE(), LambdaDCE(power=1.0), TimeDCE(power=1.0), TimeDCE(Geometric(), power=3.0), *TIMED]
COUNTING = [AnyOrder(), AnyOrder(importance=0.4), AnyOrder(importance=1.0)]
OBJECTIVES = [*COUNTING, *INDEPENDENT]
WORLDS = [JointTable(3, 3), InconsistentTable(3, 3), JointTable(2, 4, seed=1), InconsistentTable(2, 4, seed=1)]
PATTERNS = {3: ["111", "101", "010", "000"], 4: ["1111", "1100", "0110", "1101", "0000"]}
"""Which positions are maskable: all, a prompt or padding left out, one, none."""
CASES = [(world, pattern) for world in WORLDS for pattern in PATTERNS[world.length]]


ALPHAS = {
    "log-linear": lambda t: 1 - (1 - 1e-3) * t,
    "geometric": lambda t: torch.exp(-((1e-4) ** (1 - t)) * 20**t),
    "cosine": lambda t: 1 - (1 - 1e-3) * (1 - torch.cos(math.pi * t / 2)),
}
MATCHING = dict(zip(ALPHAS, SCHEDULES, strict=True))


def rescaled(alpha, t: torch.Tensor) -> torch.Tensor:
    one, zero = (alpha(torch.tensor(end, dtype=torch.float64)) for end in (0.0, 1.0))
    return (alpha(t) - zero) / (one - zero)


def bound(network: Network, pattern: torch.Tensor) -> torch.Tensor:
    """The random-order bound of every sequence: -log q of the maskable tokens, averaged over all their orders."""
    x = every(network.vocab, len(pattern))
    return expected(random_orders(opened(pattern)), costs(network, len(pattern)), x)


def levels(importance: float, n: int) -> list[tuple[float, float]]:
    """(u, share): the middle of each interval of u on which k is constant, and its width P(k) ~ k^-importance."""
    share = np.arange(1, n + 1) ** -importance / np.sum(np.arange(1, n + 1) ** -importance)
    return list(zip(np.cumsum(share) - share / 2, share, strict=True)) or [(0.5, 1.0)]


def quadrature(parts: int = 12, nodes: int = 14) -> list[tuple[float, float]]:
    """Composite Gauss-Legendre on [0, 1]: the geometric schedule turns within a tenth of it."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return [((i + (1 + a) / 2) / parts, b / 2 / parts) for i in range(parts) for a, b in zip(x, w, strict=True)]


def expectation(objective, network: Network, pattern: torch.Tensor, reading=Target) -> torch.Tensor:
    """E of the estimate for every sequence: over u by quadrature, over masks by enumerating what noise can do to them.

    Independent masks: a noise of 0 masks and one of nearly 1 does not, at chances `level` and 1 - level. Exact
    counts: every ranking of the noise, equally likely. Noise is 0, or ranked too, where nothing may be masked.
    """
    length, n = len(pattern), int(pattern.sum())
    counting = isinstance(objective, AnyOrder) or hasattr(objective, "importance")
    grid = levels(objective.importance, n) if counting else quadrature()
    if counting:
        noises = torch.tensor(list(itertools.permutations(range(length)))).double() / length
    else:
        noises = LAST * (1 - every(2, length).double())
        noises = noises[(noises[:, ~pattern] == 0).all(-1)]
    u = torch.tensor([u for u, _ in grid], dtype=torch.float64).repeat_interleave(len(noises))
    share = torch.tensor([s for _, s in grid], dtype=torch.float64).repeat_interleave(len(noises))
    noise = noises.repeat(len(grid), 1)
    corruption = objective.corrupt(pattern.expand(len(u), -1), u, noise)
    if counting:
        share = share / len(noises)
    else:
        chance = torch.where(noise == 0, corruption.level[:, None], 1 - corruption.level[:, None])
        share = share * chance.where(pattern, torch.ones_like(chance)).prod(-1)
    x = every(network.vocab, length)
    each = Corruption(*(part.repeat_interleave(len(x), 0) for part in corruption))
    value = weighted(network, x.repeat(len(u), 1), each, reading).view(len(u), len(x))
    return (share[:, None] * value).sum(0)


def check_unbiased(objective, network: Network, pattern: torch.Tensor, reading=Target, truth=None) -> None:
    got = expectation(objective, network, pattern, reading)
    truth = bound(network, pattern) if truth is None else truth
    gap = float((got - truth).abs().max())
    assert gap < 1e-9, f"expectation off by {gap:.2g} nats"


def pattern_of(text: str) -> torch.Tensor:
    return torch.tensor([letter == "1" for letter in text])


@pytest.mark.parametrize(("world", "text"), CASES, ids=str)
def test_expectation_is_the_random_order_bound(world, text: str):
    pattern = pattern_of(text)
    for objective in OBJECTIVES:
        check_unbiased(objective, world, pattern)
        if text.count("1") == 0:
            assert float(expectation(objective, world, pattern).abs().max()) == 0


@pytest.mark.parametrize(("world", "text"), [case for case in CASES if "1" in case[1]], ids=str)
def test_the_bound_is_the_truth_on_a_joint_table_and_strict_on_an_inconsistent_one(world, text: str):
    pattern, x = pattern_of(text), every(world.vocab, world.length)
    nats = bound(world, pattern)
    if isinstance(world, JointTable):  # joint minus marginal, summed by hand
        agree = ((x[:, None] == x) | pattern).all(-1)
        conditional = world.log_p - (agree * world.log_p.exp()).sum(-1).log()
        assert torch.allclose(nats, -conditional, rtol=1e-12)
    elif text.count("1") > 1:
        table, plans = costs(world, world.length), random_orders(opened(pattern))
        canvases = x.masked_fill(pattern, world.mask_id)
        truth = torch.stack([-law(plans, table, canvas)[i].log() for i, canvas in enumerate(canvases)])
        assert bool((nats > truth).all())
        assert float((nats - truth).median()) > 0.01


@dataclass(frozen=True)
class Faulty:
    """An objective with a planted fault."""

    inner: AnyOrder | LambdaDCE | TimeDCE
    fault: str

    def corrupt(self, maskable, u, noise) -> Corruption:
        if self.fault == "one position is forgotten":
            maskable = maskable & (maskable.long().cumsum(-1) < maskable.sum(-1, keepdim=True))
        if self.fault == "level clipped at 1e-3":  # SMDM: p = (1 - 1e-3) t + 1e-3, weight 1/p
            level = (1 - 1e-3) * u + 1e-3
            return Corruption(maskable & (noise < level[:, None]), 1 / level, level)
        if self.fault == "both ends left out":  # RADD: t in [1e-3, 1], eps 1e-3
            u = 1e-3 + (1 - 1e-3) * u
            level = (1 - 1e-3) * u
            return Corruption(maskable & (noise < level[:, None]), (1 - 1e-3) ** 2 / level, level)
        masked, weight, level = self.inner.corrupt(maskable, u, noise)
        if self.fault == "the constant is dropped":
            weight = weight / (maskable.sum(-1) if isinstance(self.inner, AnyOrder) else self.inner.power)
        if self.fault == "the importance is not paid back":
            weight = maskable.sum(-1) / masked.sum(-1)
        return Corruption(masked, weight, level)


@dataclass(frozen=True)
class FaultyCount(Faulty):
    """The same, for objectives that mask exact counts."""

    importance: float = 0.0


FAULTS = [
    FaultyCount(AnyOrder(), "the constant is dropped"),
    FaultyCount(AnyOrder(), "one position is forgotten"),
    FaultyCount(AnyOrder(0.4), "the importance is not paid back", 0.4),
    Faulty(LambdaDCE(), "the constant is dropped"),
    Faulty(LambdaDCE(), "one position is forgotten"),
    Faulty(LambdaDCE(), "level clipped at 1e-3"),
    Faulty(TimeDCE(), "both ends left out"),
    Faulty(TimeDCE(Cosine()), "the constant is dropped"),
    Faulty(TimeDCE(Geometric()), "one position is forgotten"),
]


@pytest.mark.parametrize("objective", FAULTS, ids=str)
def test_the_check_sees_planted_faults(objective: Faulty):
    for world in WORLDS[:2]:
        check_unbiased(replace(objective, fault="none"), world, pattern_of("111"))
        with pytest.raises(AssertionError, match="off by"):
            check_unbiased(objective, world, pattern_of("111"))


def estimates(objective, network: Network, x_0: list[int], pattern: str, draws: int = 40_000, seed: int = 0):
    """Independent estimates for one sequence, by the objective as training calls it."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(draws, generator=generator, dtype=torch.float64)
    x, maskable = torch.tensor(x_0).expand(draws, -1), pattern_of(pattern).expand(draws, -1)
    if isinstance(objective, Faulty):
        noise = torch.rand(maskable.shape, generator=generator, dtype=torch.float64)
        return weighted(network, x, objective.corrupt(maskable, u, noise))
    return objective(network, x, maskable, u, generator)


MONTE_CARLO = [*COUNTING[:2], LambdaDCE(), *TIMED]


@pytest.mark.parametrize("objective", MONTE_CARLO, ids=str)
def test_monte_carlo_agrees(objective):
    for world, x_0, pattern in ((WORLDS[0], [2, 0, 1], "111"), (WORLDS[1], [0, 2, 2], "101")):
        truth = float(bound(world, pattern_of(pattern))[int(number(torch.tensor([x_0]), 3))])
        check_mean(estimates(objective, world, x_0, pattern), truth)


@pytest.mark.parametrize("objective", [f for f in FAULTS if f.fault.split()[0] in ("the", "one")], ids=str)
def test_monte_carlo_sees_planted_faults(objective: Faulty):
    truth = float(bound(WORLDS[1], pattern_of("111"))[7])
    with pytest.raises(AssertionError, match="standard errors"):
        check_mean(estimates(objective, WORLDS[1], [0, 2, 1], "111"), truth)


def check_count_law(objective: AnyOrder, n: int, length: int) -> None:
    """k steps from j to j + 1 where u passes P(k <= j), the weight is 1 / (k P(k)), and k positions are masked."""
    share = np.arange(1, n + 1) ** -objective.importance
    share = share / share.sum()
    edges = np.cumsum(share)[:-1]
    u = torch.tensor([0.0, LAST, *(edges - 1e-12), *(edges + 1e-12)], dtype=torch.float64)
    want = torch.tensor([1, n, *range(1, n), *range(2, n + 1)])
    maskable = (torch.arange(length) < n).expand(len(u), -1)
    noise = torch.rand(len(u), length, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    masked, weight, level = objective.corrupt(maskable, u, noise)
    assert torch.equal(masked.sum(-1), want)
    assert np.allclose(weight, 1 / (want.numpy() * share[want.numpy() - 1]), rtol=1e-12)
    assert torch.allclose(level.double(), want.double() / n)


@pytest.mark.parametrize("objective", COUNTING, ids=str)
def test_any_order_draws_k_by_its_law(objective: AnyOrder):
    for n, length in ((1, 1), (3, 5), (7, 7), (100, 128), (1024, 1024)):
        check_count_law(objective, n, length)


def check_masks(objective) -> None:
    """Masks are independent at `level`, or every subset of k equally often; given positions are never masked."""
    maskable = pattern_of("11011").expand(30_000, -1)
    noise = torch.rand(30_000, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    bits, possible = every(2, 5)[:, [0, 1, 3, 4]].sum(-1), every(2, 5)[:, 2] == 0
    for u in (0.2, 0.6, 0.9):
        masked, _, level = objective.corrupt(maskable, torch.full((30_000,), u, dtype=torch.float64), noise)
        p = float(level[0])
        k = round(4 * p)
        counting = isinstance(objective, AnyOrder) or hasattr(objective, "importance")
        chance = (bits == k) / math.comb(4, k) if counting else p ** bits.double() * (1 - p) ** (4 - bits).double()
        check_counts(torch.bincount(number(masked.long(), 2), minlength=32), (chance * possible).double())


@pytest.mark.parametrize("objective", MONTE_CARLO, ids=str)
def test_corrupt_masks_by_its_stated_law(objective):
    check_masks(objective)


@pytest.mark.parametrize("objective", [f for f in FAULTS if f.fault.startswith("one")], ids=str)
def test_the_check_of_masks_sees_planted_faults(objective: Faulty):
    check_masks(replace(objective, fault="none"))
    with pytest.raises(AssertionError):
        check_masks(objective)


def test_levels_and_weights_are_those_of_the_papers():
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    maskable = torch.ones(50, 3, dtype=torch.bool)
    for power in (1.0, 2.0, 3.0):
        density = u ** (1 - power) / power  # of lambda (or t) = u^power
        _, weight, level = LambdaDCE(power).corrupt(maskable, u, torch.zeros(50, 3))
        assert torch.allclose(level, u**power)
        assert torch.allclose(weight, 1 / level / density)
        for name, schedule in ALPHAS.items():
            t = (u**power).requires_grad_()
            alpha = rescaled(schedule, t)
            (slope,) = torch.autograd.grad(alpha.sum(), t)
            _, weight, level = TimeDCE(MATCHING[name], power).corrupt(maskable, u, torch.zeros(50, 3))
            assert torch.allclose(level, 1 - alpha.detach(), atol=1e-14)
            # 1 - alpha rounds where it is tiny; what counts is its product with the weight
            assert torch.allclose(weight * level, -slope / density, rtol=1e-9)


@pytest.mark.parametrize("name", ALPHAS)
def test_score_entropy_is_the_published_formula(name: str):
    """E_t sigma sum_masked [sum_v s_v - r log s_x0 + K(r)], s = r exp(logits), term by term."""
    network, objective = Score(InconsistentTable(3, 3)), TimeDSE(MATCHING[name])
    x = every(3, 3).repeat(20, 1)
    maskable = pattern_of("110").expand(len(x), -1)
    u = torch.linspace(0.05, 0.95, len(x), dtype=torch.float64)
    got = objective(network, x, maskable, u, torch.Generator().manual_seed(1))
    noise = torch.rand(maskable.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = (u**2).requires_grad_()
    alpha = rescaled(ALPHAS[name], t)
    (slope,) = torch.autograd.grad(alpha.sum(), t)
    alpha, sigma = alpha.detach(), -slope / alpha.detach()
    masked = maskable & (noise < 1 - alpha[:, None])
    r = (alpha / (1 - alpha))[:, None]
    s = r[..., None] * network(x.masked_fill(masked, 3), torch.arange(x.numel())).view(*x.shape, 3).exp()
    s_x0 = s.gather(-1, x[..., None]).squeeze(-1)
    term = s.sum(-1) - r * s_x0.log() + r * (r.log() - 1)
    literal = 2 * u * sigma * (term * masked).sum(-1)
    assert torch.allclose(got, literal, rtol=1e-9, atol=1e-12)
    plain = TimeDCE(MATCHING[name])(network, x, maskable, u, torch.Generator().manual_seed(1))
    assert bool((got >= plain - 1e-12).all())
    assert bool((got > plain + 1e-3)[masked.any(-1)].any())


@pytest.mark.parametrize("world", WORLDS[:2], ids=str)
def test_score_entropy_of_a_normalised_network_is_t_dce(world):
    x = every(3, 3).repeat(20, 1)
    maskable, u = torch.ones_like(x, dtype=torch.bool), torch.linspace(0.05, 0.95, len(x), dtype=torch.float64)
    for schedule in SCHEDULES:
        entropy = TimeDCE(schedule)(world, x, maskable, u, torch.Generator().manual_seed(1))
        for network in (world, Score(world, scale=0.0)):
            score = TimeDSE(schedule)(network, x, maskable, u, torch.Generator().manual_seed(1))
            assert torch.allclose(score, entropy, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("world", WORLDS[:2], ids=str)
def test_expectation_of_score_entropy(world):
    """Over all orders too: each term is Z - 1 - logit of the token, and never less than its cross entropy."""
    network = Score(world)
    table = score_costs(network, 3)
    for text in ("111", "101"):
        truth = expected(random_orders(opened(pattern_of(text))), table, every(3, 3))
        assert bool((truth > bound(world, pattern_of(text))).all())
        for schedule in SCHEDULES:
            check_unbiased(TimeDSE(schedule), network, pattern_of(text), ScoreEntropy, truth)
        with pytest.raises(AssertionError, match="off by"):
            check_unbiased(TimeDSE(), network, pattern_of(text), Target, truth)
        check_unbiased(AnyOrder(), network, pattern_of(text), Target, bound(world, pattern_of(text)))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_no_nan_at_the_ends_and_rows_apart(objective):
    """u = 0 and u = 1 - 2^-53, rows with everything, something and nothing maskable: each as if it were alone."""
    texts = ["111", "000", "010", "011"]
    maskable = torch.stack([pattern_of(text) for text in texts]).repeat(4, 1)
    u = torch.tensor([0.0, 2**-53, 0.37, LAST], dtype=torch.float64).repeat_interleave(4)
    x = every(3, 3)[5:21]
    noise = torch.rand(16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for network in (WORLDS[1], Score(WORLDS[1])):
        value = objective(network, x, maskable, u, torch.Generator().manual_seed(0))
        assert bool(value.isfinite().all())
        assert bool((value[maskable.sum(-1) == 0] == 0).all()), "a row without maskable positions gives exactly 0"
        if not isinstance(objective, AnyOrder):
            assert bool((value[:4] == 0).all()), "nothing is masked at u = 0"
        reading = ScoreEntropy if isinstance(objective, TimeDSE) and not network.normalised else Target
        for i in range(16):
            one = slice(i, i + 1)
            alone = weighted(network, x[one], objective.corrupt(maskable[one], u[one], noise[one]), reading)
            assert torch.allclose(alone, value[one], rtol=1e-12)


@pytest.mark.parametrize("objective", MONTE_CARLO, ids=str)
def test_the_network_is_asked_for_masked_positions_only(objective):
    spy = Spy(WORLDS[0])
    x = every(3, 3).repeat(4, 1)
    maskable = pattern_of("110").expand(len(x), -1)
    u = torch.linspace(0.01, 0.99, len(x), dtype=torch.float64)
    objective(spy, x, maskable, u, torch.Generator().manual_seed(3))
    ((tokens, at, _),) = spy.asked
    masked = (tokens == 3).flatten().nonzero().squeeze(-1)
    assert torch.equal(at, masked), "each masked position once, and no other"
    assert bool(maskable.flatten()[at].all())
    assert torch.equal(tokens[tokens != 3], x[tokens != 3])


@pytest.mark.parametrize("objective", [AnyOrder(0.4), LambdaDCE(), TimeDSE(Cosine())], ids=str)
def test_gradients_are_those_of_the_bound(objective):
    world = InconsistentTable(3, 3)
    object.__setattr__(world, "table", world.table.clone().requires_grad_())
    pattern = pattern_of("111")
    (got,) = torch.autograd.grad(expectation(objective, world, pattern).sum(), world.table)
    (want,) = torch.autograd.grad(bound(world, pattern).sum(), world.table)
    assert float(want.abs().max()) > 0.1
    assert torch.allclose(got, want, atol=1e-9)


def test_concrete_score_is_the_ratio_of_enumerated_marginals():
    """p_t(x_t) = sum over x_0 of p(x_0) prod_i (alpha where kept, 1 - alpha where masked): RADD's Theorem 1."""
    world = JointTable(3, 3)
    p = world.log_p.exp().tolist()

    def p_t(canvas: tuple[int, ...], alpha: float) -> float:
        total = 0.0
        for x_0, mass in zip(itertools.product(range(3), repeat=3), p, strict=True):
            for kept, seen in zip(x_0, canvas, strict=True):
                mass *= 1 - alpha if seen == 3 else alpha * (seen == kept)
            total += mass
        return total

    canvases = list(itertools.product(range(4), repeat=3))
    alpha = torch.linspace(0.05, 0.95, len(canvases), dtype=torch.float64)
    want = []
    for canvas, a in zip(canvases, alpha.tolist(), strict=True):
        for i in (i for i in range(3) if canvas[i] == 3):
            written = [(*canvas[:i], v, *canvas[i + 1 :]) for v in range(3)]
            want.append([math.log(p_t(x, a) / p_t(canvas, a)) for x in written])
    for network in (world, Score(world, scale=0.0)):
        got = concrete_score(network, torch.tensor(canvases), alpha)
        assert torch.allclose(got, torch.tensor(want, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    shifted = concrete_score(Score(world), torch.tensor(canvases), alpha)
    masked = torch.tensor(canvases).flatten() == 3
    shift = Score(world).shifts().flatten()[masked]
    assert torch.allclose(shifted, got + shift[:, None]), "a score network's logits are taken as they are"


def test_concrete_score_tells_the_level_and_needs_both_sides():
    network = Conditioned(ConditionedConfig(4, 1, 2, 16, reading="score"), 0)
    with torch.no_grad():
        network.output.weight.normal_(generator=torch.Generator().manual_seed(0))
    x_t, alpha, at = torch.tensor([[0, 4, 1, 2]]), torch.tensor([0.3]), torch.tensor([1])
    with torch.no_grad():
        logits = network(x_t, at, level=1 - alpha)
        assert not torch.allclose(logits, network(x_t, at)), "a quarter is masked, the level is 0.7"
        assert torch.allclose(concrete_score(network, x_t, alpha), logits + math.log(0.3 / 0.7), atol=1e-6)
    with pytest.raises(ValueError, match="causal"):
        concrete_score(Transformer(TransformerConfig(4, 1, 2, 16, causal=True)), x_t, alpha)


def test_next_token_is_the_chain_rule():
    world = CausalTable()
    x = torch.cat([torch.zeros(27, 1, dtype=torch.long), every(3, 3)], -1)
    maskable = pattern_of("0111").expand(27, -1)
    assert torch.allclose(NextToken()(world, x, maskable), -world.log_p(), rtol=1e-12)
    suffix = NextToken()(world, x, pattern_of("0011").expand(27, -1))
    first = -world.table[0, 0][x[:, 1]]
    assert torch.allclose(suffix + first, -world.log_p(), rtol=1e-12)
    assert float(NextToken()(world, x, torch.zeros_like(maskable)).abs().max()) == 0
    padded = torch.cat([x, torch.full((27, 2), 1)], -1)
    assert torch.allclose(NextToken()(world, padded, pattern_of("011100").expand(27, -1)), -world.log_p(), rtol=1e-12)


def test_losses_refuse_networks_that_they_would_score_wrongly():
    x = torch.zeros(2, 4, dtype=torch.long)
    maskable, u = torch.ones_like(x, dtype=torch.bool), torch.full((2,), 0.5)
    with pytest.raises(ValueError, match="causal"):
        NextToken()(WORLDS[0], x[:, :3], maskable[:, :3])
    for objective in MONTE_CARLO:
        with pytest.raises(ValueError, match="NextToken"):
            objective(CausalTable(), x, maskable, u, torch.Generator())


def test_cross_entropy_sums_in_float64():
    """bfloat16 logits: read out in float32 and summed in float64, off by roundings of the logits only."""
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(1000 * 50, generator=generator)).view(1000, 50).bfloat16()

    @dataclass(frozen=True)
    class Low:
        vocab, mask_id, causal, normalised = 50, 50, False, True

        def __call__(self, tokens, at, *, then=None, rows=None, level=None):
            return then(logits[at % 1000], slice(0, len(at)))

    x = torch.randint(0, 50, (2, 1000), generator=generator)
    got = cross_entropy(Low(), x, torch.ones_like(x, dtype=torch.bool))
    exact = -logits.double().log_softmax(-1)[torch.arange(1000), x].sum(-1)
    assert got.dtype == torch.float64
    assert torch.allclose(got, exact, rtol=1e-7)


@pytest.mark.parametrize(
    "make", [lambda: AnyOrder(1000.0), lambda: AnyOrder(-1.0), lambda: LambdaDCE(0.0), lambda: TimeDCE(power=-1.0)]
)
def test_settings_that_would_bias_the_estimate_are_refused(make):
    with pytest.raises(ValueError, match="must be in"):
        make()
