"""Random numbers belong to a sequence; categorical draws are exact."""

import math

import numpy as np
import pytest
import torch
from enumeration import check_counts, check_mean
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import draws
from unmask.draws import (
    LENGTH,
    LEVEL,
    MASK,
    PLAN,
    TOKEN,
    categorical,
    keyed_generator,
    keyed_uniforms,
    log_probabilities,
    sent,
    widest,
)

CPU = torch.device("cpu")
LAST = 1 - 2**-53  # the largest uniform


@pytest.mark.parametrize(
    ("here", "there", "safe"), [("mps", "cpu", 0), ("cpu", "mps", 0), ("cuda", "cpu", 0), ("cpu", "cuda", 1)]
)
def test_only_copies_that_are_safe_are_not_waited_for(here, there, safe):
    class Told:
        device = torch.device(here)

        def to(self, device, dtype, *, non_blocking):
            return non_blocking

    assert sent(Told(), torch.device(there)) == bool(safe)


def test_a_row_depends_on_seed_sequence_and_purpose_alone():
    whole = keyed_uniforms(3, range(50), (7,), TOKEN)
    order = [41, 3, 17, 3]
    assert torch.equal(keyed_uniforms(3, order, (7,), TOKEN), whole[order])
    assert torch.equal(keyed_uniforms(3, [41], (7,), TOKEN)[0], whole[41])


def test_streams_differ_and_are_uncorrelated():
    purposes = (PLAN, TOKEN, LEVEL, MASK, LENGTH)
    assert len(set(purposes)) == 5
    keys = [(seed, n, purpose) for seed in (0, 1, 2**40) for n in (0, 1, 2**33) for purpose in purposes]
    streams = torch.stack([keyed_uniforms(seed, [n], (20_000,), purpose)[0] for seed, n, purpose in keys])
    correlation = torch.corrcoef(streams) - torch.eye(len(keys))
    assert float(correlation.abs().max()) < 6 / math.sqrt(20_000)  # 990 pairs: one above 4.9 is expected in 1000 runs


def test_uniforms_are_uniform_in_float64():
    u = keyed_uniforms(11, range(200), (500,), PLAN)
    assert u.dtype == torch.float64
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    check_counts(
        torch.bincount((u * 1000).long().flatten(), minlength=1000), torch.full((1000,), 1e-3, dtype=torch.float64)
    )
    assert bool((u * 2**32 % 1 > 0).any()), "finer than float32's grid"


def test_no_sequences_and_bad_numbers():
    assert keyed_uniforms(0, [], (3, 2), MASK).shape == (0, 3, 2)
    for seed, sequences in ((-1, [0]), (0, [3, -2])):
        with pytest.raises(ValueError, match="must not be negative"):
            keyed_uniforms(seed, sequences, (1,), MASK)


def test_keyed_generator_is_the_same_for_the_same_numbers_only():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 2), (0, 2, 1), (2**40, 5, 0), (2**40, 0, 5)]
    first = [torch.rand(4, generator=keyed_generator(*key)) for key in keys]
    torch.rand(10)  # whatever ran before
    again = [torch.rand(4, generator=keyed_generator(*key)) for key in keys]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(row.tolist()) for row in first}) == len(keys)
    check_mean(torch.stack([torch.rand((), generator=keyed_generator(7, i)) for i in range(4000)]), 0.5)


def test_log_probabilities_are_float32_or_wider():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        got = log_probabilities(logits.to(dtype))
        assert got.dtype == wide
        exact = logits.to(dtype).double()
        exact = exact - exact.exp().sum(-1, keepdim=True).log()
        assert torch.allclose(got.double(), exact, atol=1e-6 if wide == torch.float32 else 1e-14)
    assert widest(CPU) == torch.float64
    assert widest(torch.device("mps")) == torch.float32


def test_categorical_switches_at_the_jumps_of_the_cdf():
    p = torch.tensor([0.25, 0.125, 0.5, 0.0625, 0.0625], dtype=torch.float64)
    jumps = p.cumsum(0)
    u = torch.cat([torch.zeros(1), jumps[:-1] + 1e-14, jumps[:-1] - 1e-14, torch.tensor([LAST], dtype=torch.float64)])
    want = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    assert categorical(p.log().expand(len(u), -1), u).tolist() == want


def check_share(draw) -> None:
    """On an even grid of N uniforms each token is drawn N p times, to within one."""
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(40, generator=generator, dtype=torch.float64)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    counts = torch.bincount(draw(logits.expand(len(u), -1), u), minlength=40)
    gap = (counts - 100_000 * logits.softmax(0)).abs().max()
    assert float(gap) <= 1.001, f"a token is drawn {float(gap):.2f} times too often or too seldom"


def test_each_token_gets_its_share():
    check_share(categorical)
    with pytest.raises(AssertionError, match="times"):  # a cumulative law that starts one token late
        check_share(lambda logits, u: (categorical(logits, u) + 1).clamp(max=39))
    with pytest.raises(AssertionError, match="times"):  # a slightly lowered temperature
        check_share(lambda logits, u: categorical(1.001 * logits, u))


def check_wide(draw) -> None:
    """On the flat law over 50,000 tokens u = j / 50,000 + 1e-11 draws j, and u = j / 50,000 - 1e-11 draws j - 1."""
    j = torch.cat([torch.arange(1, 50_000, 997), torch.tensor([49_999])])
    logits = torch.zeros(1, 50_000).expand(len(j), -1)
    u = j.double() / 50_000
    assert torch.equal(draw(logits, u + 1e-11), j)
    assert torch.equal(draw(logits, u - 1e-11), j - 1)


def test_a_wide_law_is_drawn_exactly():
    check_wide(categorical)

    def in_float32(logits: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(logits.softmax(-1).cumsum(-1), u.float()[:, None], right=True).squeeze(-1)

    with pytest.raises(AssertionError):
        check_wide(in_float32)


def test_a_tail_keeps_its_mass():
    """A head of 1/2 and 50,000 equal tokens: float32 Gumbel noise would draw too few of them."""
    logits = torch.cat([torch.tensor([math.log(50_000.0)]), torch.zeros(50_000)])
    u = torch.cat([torch.linspace(0.4, 0.4999, 10), torch.linspace(0.5001, LAST, 10)]).double()
    drawn = categorical(logits.expand(20, -1), u)
    assert bool((drawn[:10] == 0).all())
    # float32's log(50,000) puts the jump within 1e-7 of 1/2
    assert torch.allclose(drawn[10:].double(), ((u[10:] - 0.5) * 100_000).floor() + 1, atol=1)


@settings(max_examples=200)
@given(
    weights=st.lists(st.one_of(st.just(-math.inf), st.floats(-700, 700)), min_size=1, max_size=9),
    u=st.one_of(st.sampled_from([0.0, 2.0**-53, 0.5, LAST]), st.floats(0, LAST)),
)
def test_a_token_of_probability_zero_is_never_drawn(weights: list[float], u: float):
    logits = torch.tensor([weights], dtype=torch.float64)
    if bool(logits.isneginf().all()):
        return
    drawn = int(categorical(logits, torch.tensor([u], dtype=torch.float64)))
    assert float(logits.softmax(-1)[0, drawn]) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_zero_probability_at_both_ends(dtype: torch.dtype):
    logits = torch.tensor([-math.inf, 0.3, -math.inf, 0.7, -math.inf], dtype=dtype)
    u = torch.tensor([0.0, 2**-53, 0.25, 0.75, LAST], dtype=torch.float64)
    assert categorical(logits.expand(5, -1), u).tolist() == [1, 1, 1, 3, 3]


def test_zero_probability_where_float32_is_the_widest(monkeypatch: pytest.MonkeyPatch):
    """Apple's GPUs: the largest uniforms round to 1 in float32, and must still not draw an impossible last token."""
    monkeypatch.setattr(draws, "widest", lambda device: torch.float32)
    logits = torch.tensor([[0.3, 0.7, -math.inf]])
    assert int(categorical(logits, torch.tensor([LAST], dtype=torch.float64))) == 1


def test_draws_with_keyed_uniforms_follow_the_law():
    p = np.array([0.5, 0.2, 0.2, 0.06, 0.04])
    u = keyed_uniforms(5, range(20_000), (1,), TOKEN).flatten()
    drawn = categorical(torch.tensor(p).log().expand(len(u), -1), u)
    check_counts(torch.bincount(drawn, minlength=5), torch.tensor(p))
