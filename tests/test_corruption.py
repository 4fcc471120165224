"""The forward process: schedules, levels, and which positions are masked."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from enumeration import check_counts
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.corruption import (
    Cosine,
    Geometric,
    LogLinear,
    antithetic,
    mask_each,
    mask_exactly,
    masking_law,
    order_of,
    rate,
    stratified,
)
from unmask.objectives import TimeDCE, TimeDSE
from unmask.sampling import Euler, Remasking, Tweedie

SCHEDULES = [LogLinear(), LogLinear(0.0), Geometric(), Geometric(1e-3, 5.0), Cosine(), Cosine(0.0)]
LAST = 1 - 2**-53


def uniforms(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_rate_is_minus_the_derivative_of_alpha():
    """By the formulas of each, also where gradients are switched off."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    sigma_bar = 1e-4 ** (1 - t) * 20**t
    wanted = {
        LogLinear(0.1): torch.full_like(t, 0.9),
        Geometric(): math.log(20 / 1e-4) * sigma_bar * (-sigma_bar).exp(),
        Cosine(0.1): 0.9 * math.pi / 2 * (math.pi / 2 * t).sin(),
    }
    with torch.inference_mode():
        for schedule, known in wanted.items():
            assert torch.allclose(rate(schedule, t), known, rtol=1e-12, atol=1e-15)


@dataclass(frozen=True)
class Made:
    of: Callable[[torch.Tensor], torch.Tensor]

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return self.of(t)


@pytest.mark.parametrize("user", [TimeDCE, TimeDSE, Tweedie, Euler, Remasking])
def test_an_alpha_that_does_not_fall_is_refused(user):
    user(schedule=Made(lambda t: (1 - t) ** 2))
    for wrong in (lambda t: t, lambda t: 1 - 2 * t, lambda t: 2 - t, lambda t: 0 * t, lambda t: (t - 0.6).abs()):
        with pytest.raises(ValueError, match=r"alpha\(t\), the probability of a clean token, must fall"):
            user(schedule=Made(wrong))


def test_published_end_points():
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.allclose(LogLinear().alpha(ends), torch.tensor([1, 1e-3], dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(Cosine().alpha(ends), torch.tensor([1, 1e-3], dtype=torch.float64), rtol=1e-12)
    sigma_bar = -Geometric().alpha(ends).log()
    assert torch.allclose(sigma_bar, torch.tensor([1e-4, 20], dtype=torch.float64), rtol=1e-9)
    middle = -Geometric().alpha(torch.tensor(0.5, dtype=torch.float64)).log()
    assert math.isclose(float(middle), math.sqrt(1e-4 * 20), rel_tol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_masking_law_runs_from_0_to_1_and_rate_is_its_derivative(schedule):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64).requires_grad_()
    level, rate = masking_law(schedule, t)
    ends = level.detach()[[0, -1]]
    assert torch.allclose(ends, torch.tensor([0, 1], dtype=torch.float64), rtol=0, atol=1e-15)
    (slope,) = torch.autograd.grad(level.sum(), t)
    assert torch.allclose(rate, slope, rtol=1e-12, atol=1e-15)


def test_masking_law_is_affine_in_alpha():
    t = uniforms(50)
    for schedule in SCHEDULES:
        one, zero = (float(schedule.alpha(torch.tensor(end, dtype=torch.float64))) for end in (0.0, 1.0))
        literal = 1 - (schedule.alpha(t) - zero) / (one - zero)
        assert torch.allclose(masking_law(schedule, t)[0], literal, atol=1e-14)
    assert torch.allclose(masking_law(LogLinear(), t)[0], t, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: LogLinear(1.0), "eps"),
        (lambda: LogLinear(-0.1), "eps"),
        (lambda: LogLinear(math.nan), "eps"),
        (lambda: Cosine(1.5), "eps"),
        (lambda: Geometric(0.0, 1.0), "sigma_min"),
        (lambda: Geometric(2.0, 1.0), "sigma_min"),
    ],
)
def test_impossible_schedules_are_refused(make, name: str):
    with pytest.raises(ValueError, match=name):
        make()


@settings(max_examples=100)
@given(count=st.integers(1, 300), offset=st.one_of(st.sampled_from([0.0, LAST, 0.5]), st.floats(0, LAST)))
def test_stratified_puts_one_level_in_each_stratum(count: int, offset: float):
    u = stratified(count, torch.tensor([offset, LAST], dtype=torch.float64))
    assert u.shape == (2, count)
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    edges = torch.arange(count + 1, dtype=torch.float64) / count
    assert bool((u >= edges[:-1] - 1e-15).all())
    assert bool((u <= edges[1:] + 1e-15).all())
    assert torch.allclose(u[0], (torch.arange(count).double() + offset) / count, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stratified_stays_below_one(dtype: torch.dtype):
    largest = torch.tensor(1 - torch.finfo(dtype).eps / 2, dtype=dtype)
    assert all(float(stratified(count, largest).max()) < 1 for count in (1, 4, 1000))


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_antithetic_levels_average_to_the_uniform_law(count: int):
    """The mean over the levels, integrated over u by Gauss-Legendre, integrates polynomials exactly."""
    nodes, weights = np.polynomial.legendre.leggauss(10)
    for power in range(8):
        total = 0.0
        for node, weight in zip((1 + nodes) / 2, weights / 2, strict=True):
            u = torch.full(((count + 1) // 2,), node, dtype=torch.float64)  # the mean of sums: each u by itself
            total += weight * float((antithetic(count, u) ** power).mean())
        assert total == pytest.approx(1 / (power + 1), rel=1e-12)


@pytest.mark.parametrize("count", [2, 5, 8])
def test_antithetic_levels_are_mirrored_in_their_strata(count: int):
    u = torch.rand(100, (count + 1) // 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = antithetic(count, u)
    assert levels.shape == (100, count)
    pairs = levels[:, : count // 2 * 2].view(100, -1, 2)
    assert torch.equal((pairs * count / 2).floor()[..., 0], torch.arange(count // 2).double().expand(100, -1))
    assert torch.allclose(pairs.mean(-1), (torch.arange(count // 2) * 2 + 1).double().expand(100, -1) / count)
    if count % 2:
        assert bool((levels[:, -1] >= (count - 1) / count).all())
    for end in (0.0, 1 - 2**-53):
        edge = antithetic(count, torch.full(((count + 1) // 2,), end, dtype=torch.float64))
        assert bool((edge >= 0).all() & (edge < 1).all())


def test_antithetic_levels_integrate_smooth_functions_best():
    """The standard deviation of the mean of 3 v^2 - 2 v over 16 levels: below stratified, far below one offset."""
    u = torch.rand(4000, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def error(levels: torch.Tensor) -> float:
        return float((3 * levels**2 - 2 * levels).mean(-1).std())

    jittered = (torch.arange(16) + u) / 16
    assert error(antithetic(16, u[:, :8])) < error(jittered) / 5 < error(stratified(16, u[:, 0])) / 10


def test_stratified_levels_average_to_the_uniform_law():
    u = stratified(8, uniforms(20_000))
    for stratum in u.T:  # one row's levels share an offset: count each stratum by itself
        cells = torch.bincount((stratum * 64).long() % 8, minlength=8)
        check_counts(cells, torch.full((8,), 1 / 8, dtype=torch.float64))
    assert float(u.mean(-1).std()) < 0.04, "the mean of eight levels varies by 1 / (8 sqrt 12), not 1 / sqrt(96)"


def masks_of(masked: torch.Tensor) -> torch.Tensor:
    """Each row's mask as a number."""
    return (masked.long() * 2 ** torch.arange(masked.shape[1])).sum(-1)


def product_law(maskable: list[bool], level: float) -> torch.Tensor:
    """Probability of each mask when maskable positions are masked independently."""
    p = torch.zeros(2 ** len(maskable), dtype=torch.float64)
    for bits in itertools.product((0, 1), repeat=len(maskable)):
        each = (level if bit else 1 - level for bit in bits)
        p[sum(b << i for i, b in enumerate(bits))] = math.prod(
            e if may else 1.0 - bit for e, bit, may in zip(each, bits, maskable, strict=True)
        )
    return p


def subset_law(maskable: list[bool], k: int) -> torch.Tensor:
    """Probability of each mask when all subsets of k maskable positions are equally likely."""
    subsets = list(itertools.combinations([i for i, may in enumerate(maskable) if may], k))
    p = torch.zeros(2 ** len(maskable), dtype=torch.float64)
    for subset in subsets:
        p[sum(1 << i for i in subset)] += 1 / len(subsets)
    return p


def check_masks(mask, laws: list[torch.Tensor], maskable: torch.Tensor, count: int = 20_000) -> None:
    """`mask(noise [N L])` draws rows by turns of the given laws; all frequencies agree."""
    masked = masks_of(mask(uniforms(count * len(laws), maskable.shape[1], seed=7)))
    for i, p in enumerate(laws):
        check_counts(torch.bincount(masked[i :: len(laws)], minlength=len(p)), p)


PATTERNS = [[True] * 5, [True, False, True, True, False], [False, True, False, False, False], [False] * 5]
EACH = [(pattern, level) for pattern in PATTERNS for level in (0.0, 0.013, 0.4, 1.0)]
EXACTLY = [(pattern, k) for pattern in PATTERNS for k in range(sum(pattern) + 1)]


def each(noise: torch.Tensor) -> torch.Tensor:
    times = len(noise) // len(EACH)
    maskable = torch.tensor([pattern for pattern, _ in EACH]).repeat(times, 1)
    return mask_each(maskable, torch.tensor([level for _, level in EACH], dtype=torch.float64).repeat(times), noise)


def exactly(noise: torch.Tensor) -> torch.Tensor:
    times = len(noise) // len(EXACTLY)
    maskable = torch.tensor([pattern for pattern, _ in EXACTLY]).repeat(times, 1)
    return mask_exactly(maskable, torch.tensor([k for _, k in EXACTLY]).repeat(times), noise)


def test_mask_each_follows_its_law():
    laws = [product_law(pattern, level) for pattern, level in EACH]
    maskable = torch.tensor([pattern for pattern, _ in EACH])
    check_masks(each, laws, maskable)
    for fault in (
        lambda noise: each(noise[:, :1].expand(-1, 5)),  # one uniform for a whole row
        lambda noise: each(noise * 0.97),  # a level slightly too high
        lambda noise: each(noise.roll(1, 0).where(torch.arange(5) < 4, torch.ones(()))),  # the last one forgotten
    ):
        with pytest.raises(AssertionError):
            check_masks(fault, laws, maskable)


def test_mask_exactly_takes_every_subset_equally():
    laws = [subset_law(pattern, k) for pattern, k in EXACTLY]
    maskable = torch.tensor([pattern for pattern, _ in EXACTLY])
    check_masks(exactly, laws, maskable)
    counts = exactly(uniforms(len(EXACTLY) * 100, 5)).sum(-1).view(100, -1)
    assert bool((counts == torch.tensor([k for _, k in EXACTLY])).all()), "exact counts"
    for fault in (
        lambda noise: exactly(noise * torch.tensor([1, 1, 1, 1, 1.05])),  # one position is masked less often
        lambda noise: exactly(noise.sort(-1).values),  # always the first k
        lambda noise: exactly((4 * noise).floor()),  # coarse noise: ties go to the left
    ):
        with pytest.raises(AssertionError):
            check_masks(fault, laws, maskable)


@settings(max_examples=200)
@given(chosen=st.lists(st.booleans(), min_size=1, max_size=12), seed=st.integers(0, 10**6), coarse=st.booleans())
def test_order_of_ranks_the_chosen_first(chosen: list[bool], seed: int, coarse: bool):
    noise = uniforms(1, len(chosen), seed=seed)
    noise = (3 * noise).floor() / 3 if coarse else noise
    rank = order_of(torch.tensor([chosen]), noise)[0].tolist()
    assert sorted(rank) == list(range(len(chosen)))
    positions = [i for i, is_chosen in enumerate(chosen) if is_chosen]
    assert sorted(positions, key=lambda i: (float(noise[0, i]), i)) == sorted(positions, key=lambda i: rank[i])
    assert all(rank[i] < len(positions) for i in positions)


def test_maskable_is_never_left():
    maskable = uniforms(300, 20, seed=1) < 0.5
    noise = torch.zeros(300, 20, dtype=torch.float64)
    assert torch.equal(mask_each(maskable, torch.full((300,), 0.5), noise), maskable)
    assert torch.equal(mask_exactly(maskable, maskable.sum(-1), noise), maskable)
    assert not bool(mask_each(maskable, torch.zeros(300), noise).any()), "a level of 0 masks nothing, even at noise 0"
