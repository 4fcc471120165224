"""Samplers follow the laws that they state, cost what they state, and keep their hands off what is given.

Laws are enumerated apart from the package (enumeration.py): the sum over plans of chance x chain rule. Each check is
also run on planted faults and must fail there.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from enumeration import (
    CausalTable,
    Spy,
    check_counts,
    check_law,
    check_mean,
    costs,
    every,
    in_steps,
    independent_steps,
    law,
    opened,
    random_orders,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.corruption import Cosine, Geometric, LogLinear, order_of
from unmask.sampling import (
    Blocks,
    Draw,
    Euler,
    FixedOrder,
    LeftToRight,
    RandomOrder,
    Tweedie,
    draw_plan,
    expected_nfe,
    nfe_of,
    sample,
    stream,
    template,
    without_gaps,
)
from unmask.world import InconsistentTable, JointTable, Wide

WORLDS = [JointTable(3, 3), InconsistentTable(3, 3)]
FREE, GIVEN = [3, 3, 3], [3, 1, 3]
BACKWARD = FixedOrder((-1, -2, -3))
COUNT = 20_000
SEEN = r"total variation|chi-square|impossible"


def alphas(schedule) -> list[float]:
    """alpha at the ends of the steps, t = 1 first, written out."""
    t = [1 - i / 3 for i in range(4)]
    if isinstance(schedule, LogLinear):
        return [1 - (1 - schedule.eps) * at for at in t]
    if isinstance(schedule, Geometric):
        return [math.exp(-(schedule.sigma_min ** (1 - at)) * schedule.sigma_max**at) for at in t]
    return [schedule.eps + (1 - schedule.eps) * math.cos(math.pi * at / 2) for at in t]


def slopes(schedule) -> list[float]:
    """-alpha' at the starts of the steps, by a central difference."""
    h = 1e-6
    at = [torch.tensor([1 - i / 3 + h, 1 - i / 3 - h], dtype=torch.float64) for i in range(3)]
    return [float(schedule.alpha(pair).diff()) / (2 * h) for pair in at]


def by_hazards(hazards: list[float]) -> list[float]:
    """P(revealed at each step), what is left going to the last."""
    q, left = [], 1.0
    for hazard in hazards[:-1]:
        q.append(left * min(max(hazard, 0.0), 1.0))
        left -= q[-1]
    return [*q, left]


def tau_leaping(schedule) -> list[float]:
    """(alpha_s - alpha_t) / (1 - alpha_t) of three steps."""
    alpha = alphas(schedule)
    return by_hazards([(s - t) / (1 - t) for t, s in itertools.pairwise(alpha)])


def euler(schedule) -> list[float]:
    """(t - s) (-alpha'_t) / (1 - alpha_t) of three steps, clamped."""
    return by_hazards([slope / 3 / (1 - t) for slope, t in zip(slopes(schedule), alphas(schedule), strict=False)])


POLICIES = {
    "random order": (RandomOrder(), random_orders),
    "random order, two a step": (RandomOrder(2), lambda at: random_orders(at, 2)),
    "left to right": (LeftToRight(), lambda at: [(1.0, in_steps(at))]),
    "left to right, two a step": (LeftToRight(2), lambda at: [(1.0, in_steps(at, 2))]),
    "backward": (BACKWARD, lambda at: [(1.0, in_steps(at[::-1]))]),
    "middle first": (FixedOrder((1,)), lambda at: [(1.0, in_steps(sorted(at, key=lambda i: i != 1)))]),
    "Tweedie, one step": (Tweedie(1), lambda at: [(1.0, [list(at)])]),
    "Tweedie": (Tweedie(3), lambda at: independent_steps(at, [1 / 3] * 3)),
    "Tweedie, cosine": (Tweedie(3, Cosine()), lambda at: independent_steps(at, tau_leaping(Cosine()))),
    "Tweedie, geometric": (
        Tweedie(3, Geometric(0.1, 5.0)),
        lambda at: independent_steps(at, tau_leaping(Geometric(0.1, 5.0))),
    ),
    "Euler, cosine": (Euler(3, Cosine()), lambda at: independent_steps(at, euler(Cosine()))),
    "Euler, geometric": (
        Euler(3, Geometric(0.1, 5.0)),
        lambda at: independent_steps(at, euler(Geometric(0.1, 5.0))),
    ),
}


def check_sampler(world, policy, plans, canvas: list[int], seed: int = 0, **options) -> None:
    truth = law(plans(opened(torch.tensor(canvas), world.mask_id)), costs(world, 3), torch.tensor(canvas))
    rows = torch.tensor(canvas).expand(COUNT, -1)
    samples = sample(world, rows, policy, seed=seed, batch=10_000, **options)
    check_law(samples.tokens, truth, world.vocab)


@pytest.mark.parametrize("canvas", [FREE, GIVEN], ids=str)
@pytest.mark.parametrize("name", POLICIES)
def test_samples_follow_the_enumerated_law(name: str, canvas: list[int]):
    check_sampler(WORLDS[1], *POLICIES[name], canvas)


@pytest.mark.parametrize("name", ["random order, two a step", "Tweedie, one step", "Tweedie", "Euler, geometric"])
def test_parallel_steps_have_their_own_law_on_a_joint_table_too(name: str):
    policy, plans = POLICIES[name]
    truth = law(plans([0, 1, 2]), costs(WORLDS[0], 3), torch.tensor(FREE))
    samples = sample(WORLDS[0], torch.full((COUNT, 3), 3), policy, batch=10_000)
    check_law(samples.tokens, truth, 3)
    with pytest.raises(AssertionError, match=SEEN):
        check_law(samples.tokens, WORLDS[0].log_p.exp(), 3)


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine(), Geometric(), Geometric(0.1, 5.0)], ids=str)
def test_plans_of_tau_leaping_have_the_stated_chances(schedule):
    """On an even grid of N uniforms each step gets N times its chance, to within one."""
    u = ((torch.arange(30_000, dtype=torch.float64) + 0.5) / 30_000)[None]
    for policy, q in ((Tweedie(3, schedule), tau_leaping(schedule)), (Euler(3, schedule), euler(schedule))):
        counts = torch.bincount(policy.plan(torch.ones_like(u, dtype=torch.bool), u)[0], minlength=3)
        assert np.abs(counts.numpy() - 30_000 * np.array(q)).max() <= 1.001


def check_orders(policy) -> None:
    """Every order of the open positions is equally likely; the given one, in the middle, has none."""
    open_ = torch.tensor([True, True, False, True, True]).expand(60_000, -1)
    u = torch.rand(open_.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    plan = policy.plan(open_, u)[:, [0, 1, 3, 4]]
    orders = torch.tensor(list(itertools.permutations(range(4))))
    counts = (plan[:, None] == orders).all(-1).sum(0)
    assert int(counts.sum()) == 60_000, "each is an order of the open positions"
    check_counts(counts, torch.full((24,), 1 / 24, dtype=torch.float64))


@dataclass(frozen=True)
class Leaning:
    """A random order that comes a little late to the right."""

    exact_for = "nothing"

    def plan(self, open_, u):
        return RandomOrder().plan(open_, u * torch.linspace(1, 1.05, u.shape[1]))


def test_random_orders_are_equally_likely():
    check_orders(RandomOrder())
    with pytest.raises(AssertionError, match=SEEN):
        check_orders(Leaning())


def test_one_at_a_time_is_the_joint_law():
    world = WORLDS[0]
    for policy in (RandomOrder(), LeftToRight(), BACKWARD):
        samples = sample(world, torch.full((COUNT, 3), 3), policy, batch=10_000, seed=2)
        check_law(samples.tokens, world.log_p.exp(), 3)
    samples = sample(world, torch.tensor(GIVEN).expand(COUNT, -1), batch=10_000, seed=3)
    conditional = world.log_p.exp() * (every(3, 3)[:, 1] == 1)
    check_law(samples.tokens, conditional / conditional.sum(), 3)


def test_the_check_of_laws_sees_planted_faults():
    world = WORLDS[1]
    for policy, stated, draw in (
        (LeftToRight(), "random order", Draw()),
        (RandomOrder(2), "random order", Draw()),
        (Tweedie(2), "Tweedie", Draw()),
        (Tweedie(3), "Tweedie, cosine", Draw()),
        (RandomOrder(), "random order", Draw(temperature=0.93)),
        (RandomOrder(), "random order", Draw(top_p=0.9)),
    ):
        with pytest.raises(AssertionError, match=SEEN):
            check_sampler(world, policy, POLICIES[stated][1], FREE, draw=draw)


@dataclass(frozen=True)
class Forgetful:
    """Leaves the last open position out of its plan."""

    exact_for = "nothing"

    def plan(self, open_, u):
        plan = order_of(open_, u)
        last = open_.flip(-1).long().argmax(-1)
        plan[torch.arange(len(plan)), open_.shape[1] - 1 - last] = -1
        return plan


@dataclass(frozen=True)
class Coupled:
    """Ranks the positions of all rows together, as published confidence samplers do."""

    exact_for = "nothing"

    def plan(self, open_, u):
        return order_of(open_.flatten()[None], u.flatten()[None]).view(open_.shape) // (len(open_) + 1)


@dataclass(frozen=True)
class Overwriting:
    """Not a policy but a network: it answers as if the canvas were empty."""

    world: InconsistentTable
    vocab, mask_id, causal, normalised = 3, 3, False, True

    def __call__(self, tokens, at, *, then=None, rows=None, level=None):
        return self.world(torch.full_like(tokens, 3), at, then=then)


def test_a_forgotten_reveal_and_a_blind_network_are_seen():
    with pytest.raises(ValueError, match="for every open position"):
        check_sampler(WORLDS[1], Forgetful(), random_orders, FREE)
    truth = law(random_orders([0, 1, 2]), costs(WORLDS[1], 3), torch.tensor(FREE))
    blind = sample(Overwriting(WORLDS[1]), torch.full((COUNT, 3), 3), batch=10_000)
    with pytest.raises(AssertionError, match=SEEN):
        check_law(blind.tokens, truth, 3)


def test_confidence_and_reveal_replay():
    """`reveal` and `tokens` retell the sampling: each confidence is q(token | what was written before)."""
    world = WORLDS[1]
    table = costs(world, 3)
    canvases = every(4, 3)
    for policy in (RandomOrder(), Tweedie(2), BACKWARD, RandomOrder(2)):
        samples = sample(world, canvases, policy, draw=Draw(temperature=0.7, top_k=2), seed=5)
        columns = (samples.tokens, samples.reveal, samples.confidence)
        tokens, reveal, confidence = (torch.stack(column) for column in columns)
        is_open = canvases == 3
        assert torch.equal(reveal >= 0, is_open)
        assert torch.equal(reveal.max(-1).values + 1, samples.nfe)
        assert torch.equal(confidence[~is_open], torch.ones(int((~is_open).sum()), dtype=torch.float64))
        for turn in range(3):
            canvas = tokens.masked_fill(reveal >= turn, 3)
            row, position = (reveal == turn).nonzero(as_tuple=True)
            seen = (canvas * torch.tensor([16, 4, 1])).sum(-1)[row]
            want = (-table[seen, position, tokens[row, position]]).exp()
            assert torch.allclose(confidence[row, position], want, rtol=1e-12)


# --- drawing a token -------------------------------------------------------------------------------------------------


def filtered(p: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    """The law of a Draw, literally: powers of probabilities, then the k best, then the fewest that reach p."""
    p = p ** (1 / temperature)
    order = sorted(range(len(p)), key=lambda v: -p[v])
    keep = order if top_k is None else order[:top_k]
    mass, total, kept = 0.0, sum(p[v] for v in keep), []
    for v in keep:
        if top_p is not None and mass >= top_p * total:
            break
        kept.append(v)
        mass += p[v]
    out = np.zeros_like(p)
    out[kept] = p[kept] / mass
    return out


DRAWS = [
    (temperature, top_k, top_p)
    for temperature in (1.0, 0.3, 2.5)
    for top_k in (None, 1, 4, 12, 30)
    for top_p in (None, 0.05, 0.5, 0.9, 1.0)
]


@pytest.mark.parametrize("seed", range(4))
def test_draw_is_the_filtered_law(seed: int):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(5, 12, generator=generator, dtype=torch.float64)
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for temperature, top_k, top_p in DRAWS:
        draw = Draw(temperature, top_k, top_p)
        got = draw.adjust(logits).softmax(-1).numpy()
        want = [filtered(row.softmax(0).numpy(), temperature, top_k, top_p) for row in logits]
        assert np.allclose(got, np.stack(want), atol=1e-12)
        tokens = draw(logits[:1].expand(2000, -1), u)
        counts = torch.bincount(tokens, minlength=12).numpy()
        assert np.abs(counts - 2000 * want[0]).max() <= 1.001, "an even grid of uniforms gives each token its share"


def test_temperature_zero_is_the_most_probable_token():
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    u = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for draw in (Draw(temperature=0), Draw(temperature=0, top_k=3, top_p=0.5), Draw(top_k=1), Draw(temperature=1e-12)):
        tokens = draw(logits, u)
        assert torch.equal(tokens, logits.argmax(-1))


def test_a_tiny_temperature_is_no_overflow():
    """1e-310 passes for a temperature, and logits over it are infinite: still the most probable token."""
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.0, -2.0, -1.0]])
    tokens = Draw(temperature=1e-310)(logits, torch.tensor([0.1, 0.9], dtype=torch.float64))
    assert tokens.tolist() == [1, 0]


def test_a_sampler_draws_by_its_draw():
    """One open position, so that the samples' law is the filtered prediction."""
    world, canvas = WORLDS[1], torch.tensor([3, 0, 2])
    p = (-costs(world, 3)[3 * 16 + 2, 0]).exp().numpy()
    for options in ((0.5, None, None), (1.0, 2, None), (1.7, None, 0.6)):
        samples = sample(world, canvas.expand(COUNT, -1), draw=Draw(*options), batch=COUNT)
        counts = torch.bincount(torch.stack(samples.tokens)[:, 0], minlength=3)
        check_counts(counts, torch.tensor(filtered(p, *options)))


def test_impossible_draws_are_refused():
    bad = {"temperature": (-1, math.nan, math.inf), "top_k": (0, -2), "top_p": (0, 1.5, math.nan)}
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                Draw(**{name: value})


# --- when to write: apart from what -----------------------------------------------------------------------------------

STEPS, POSITIONS = 1024, 400_000


def check_first_step(revealed: int) -> None:
    """Of POSITIONS open positions 1 in STEPS is revealed at the first of STEPS steps."""
    expect = POSITIONS / STEPS
    gap = abs(revealed - expect) / math.sqrt(expect)
    assert gap < 4, f"{revealed} revealed instead of {expect:.0f}: {gap:.0f} standard deviations"


def revealed_jointly(dtype: torch.dtype, vocab: int = 50_000) -> int:
    """Published: the mask and all tokens in one categorical draw, p / noise, noise = 1e-10 - log(u + 1e-10).

    All tokens are equally probable, so the one with the largest of `vocab` uniforms decides, and that is
    floor(2^24 U^(1/vocab)) / 2^24 on float32's grid.
    """
    bits = {torch.float16: 24, torch.float32: 24, torch.float64: 53}[dtype]
    wide = torch.float32 if dtype == torch.float16 else dtype
    p = torch.tensor([1 - 1 / STEPS, 1 / STEPS / vocab], dtype=dtype).to(wide)
    u = torch.rand(2, POSITIONS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u[1] **= 1 / vocab
    noise = 1e-10 - (((u * 2**bits).floor() / 2**bits).to(wide) + 1e-10).log()
    return int((p[1] / noise[1] > p[0] / noise[0]).sum())


def test_when_is_drawn_apart_from_what():
    open_ = torch.ones(POSITIONS // 100, 100, dtype=torch.bool)
    u = torch.rand(open_.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for policy in (Tweedie(STEPS), Euler(STEPS)):
        plan = policy.plan(open_, u)
        check_first_step(int((plan == 0).sum()))
        check_counts(torch.bincount(plan.flatten(), minlength=STEPS), torch.full((STEPS,), 1 / STEPS))
    check_first_step(revealed_jointly(torch.float64))
    for dtype, share in ((torch.float32, 0.14), (torch.float16, 0.0)):
        revealed = revealed_jointly(dtype)
        assert abs(revealed / (POSITIONS / STEPS) - share) < 0.06, "the published draw's measured share"
        with pytest.raises(AssertionError, match="standard deviations"):
            check_first_step(revealed)


def test_tokens_of_the_wide_law_are_flat():
    samples = sample(Wide(), torch.full((8, 128), 50_000), Tweedie(1024), seed=4, batch=8)
    tokens = torch.cat(samples.tokens)
    check_counts(torch.bincount(tokens // 2500, minlength=20), torch.full((20,), 0.05, dtype=torch.float64))
    check_counts(torch.bincount(tokens % 16, minlength=16), torch.full((16,), 1 / 16, dtype=torch.float64))


# --- cost -------------------------------------------------------------------------------------------------------------


def check_nfe(nfe: torch.Tensor, expect: float) -> None:
    check_mean(nfe, expect)
    assert abs(float(nfe.double().mean()) / expect - 1) < 0.01


@pytest.mark.parametrize(("steps", "length"), [(1, 5), (4, 9), (64, 16), (64, 64), (200, 40), (1024, 128), (4096, 64)])
def test_nfe_is_the_closed_form(steps: int, length: int):
    closed = steps * (1 - (1 - 1 / steps) ** length)
    assert math.isclose(expected_nfe(steps, length), closed, rel_tol=1e-9)
    open_ = torch.ones(3000, length, dtype=torch.bool)
    u = torch.rand(open_.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for policy in (Tweedie(steps), Euler(steps)):
        nfe = nfe_of(without_gaps(policy.plan(open_, u)))
        check_nfe(nfe, closed)
        for fault in (nfe - 1, torch.full_like(nfe, steps + 1)):  # counted too late; empty steps run
            with pytest.raises(AssertionError):
                check_nfe(fault, closed)


def test_nfe_of_other_schedules():
    for schedule in (Cosine(), Geometric()):
        q = by_hazards_of_many(schedule, 50)
        want = sum(1 - (1 - each) ** 30 for each in q)
        assert math.isclose(expected_nfe(50, 30, schedule), want, rel_tol=1e-9)
        samples = sample(Wide(2), torch.full((2000, 30), 2), Tweedie(50, schedule), batch=2000)
        check_nfe(samples.nfe, want)


def by_hazards_of_many(schedule, steps: int) -> list[float]:
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    alpha = schedule.alpha(t)
    return by_hazards(((alpha[1:] - alpha[:-1]) / (1 - alpha[:-1])).tolist())


def test_a_full_batch_calls_no_more_than_its_longest_row():
    spy = Spy(Wide(2))
    samples = sample(spy, torch.full((16, 1024), 2), Tweedie(4096), batch=16)
    assert samples.calls <= 1.05 * int(samples.nfe.max())
    assert samples.calls == len(spy.asked)
    assert abs(float(samples.nfe.double().mean()) / expected_nfe(4096, 1024) - 1) < 0.02


@dataclass(frozen=True)
class Late:
    """A plan with empty steps and steps that several positions share."""

    exact_for = "a test"

    def plan(self, open_, u):
        return (u * 5).long() * 7 + 3


def check_rows(policy) -> None:
    """Rows that the network sees = the sum of NFE; each open position is asked once, while it is open."""
    canvases = torch.randint(0, 6, (37, 9), generator=torch.Generator().manual_seed(0)).clamp(max=5)
    canvases[:, ::2] = 5
    canvases[20] = 1  # nothing to write
    spy = Spy(Wide(5))
    seen_steps = []
    samples = sample(spy, canvases, policy, batch=8, on_step=seen_steps.append)
    assert sum(len(tokens) for tokens, _, _ in spy.asked) == int(samples.nfe.sum())
    rows_run, asked = torch.zeros(37, dtype=torch.long), torch.zeros(canvases.shape, dtype=torch.long)
    for tokens, at, rows in spy.asked:
        assert len(tokens) <= 8
        assert len(rows.unique()) == len(rows) == len(tokens)
        assert set((at // 9).tolist()) == set(range(len(tokens))), "a row is run only if something is written in it"
        rows_run[rows] += 1
        asked[rows[at // 9], at % 9] += 1
        assert bool((tokens.flatten()[at] == 5).all())
    assert torch.equal(rows_run, samples.nfe)
    assert torch.equal(asked, (canvases == 5).long())
    assert int(samples.nfe[20]) == 0
    for reveal, canvas, nfe in zip(samples.reveal, canvases, samples.nfe.tolist(), strict=True):
        assert len(reveal[canvas == 5].unique()) == nfe
    # on_step tells everything that was written, once
    written = canvases.clone()
    assert [step.call for step in seen_steps] == list(range(samples.calls))
    for step in seen_steps:
        assert bool((written[step.sequence, step.position] == 5).all())
        written[step.sequence, step.position] = step.token
    assert torch.equal(written, torch.stack(samples.tokens))


@pytest.mark.parametrize("policy", [RandomOrder(), Tweedie(16), RandomOrder(3), Late()], ids=str)
def test_every_row_and_position_is_run_once(policy):
    check_rows(policy)


def test_the_check_of_rows_sees_a_forgotten_reveal():
    with pytest.raises(ValueError, match="for every open position"):
        check_rows(Forgetful())


def test_rows_and_steps_name_the_canvas_given():
    """Canvases of several lengths are run by length; `rows` and `on_step` still count them as they were given."""
    canvases = [torch.tensor([5] * (2 + i % 3) + [i % 5]) for i in range(9)]
    spy, written = Spy(Wide(5)), [canvas.clone() for canvas in canvases]
    steps = []
    samples = sample(spy, canvases, Tweedie(2), batch=2, on_step=steps.append)
    for (tokens, _, rows), step in zip(spy.asked, steps, strict=True):
        for row, i in zip(tokens, rows.tolist(), strict=True):
            assert torch.equal(row, written[i])
        for i, position, token in zip(step.sequence.tolist(), step.position, step.token, strict=True):
            written[i][position] = token
    assert all(torch.equal(a, b) for a, b in zip(written, samples.tokens, strict=True))


def test_slots_are_refilled():
    samples = sample(Wide(2), torch.full((200, 32), 2), Tweedie(64), batch=8)
    least = math.ceil(int(samples.nfe.sum()) / 8)
    assert samples.calls <= least + int(samples.nfe.max()), "only the last rows run in a batch that is not full"
    assert samples.calls < 1.02 * least
    alone = sample(Wide(2), torch.full((200, 32), 2), Tweedie(64), batch=1)
    assert alone.calls == int(alone.nfe.sum()) == int(samples.nfe.sum())


# --- a sequence is the same in whatever batch it runs -----------------------------------------------------------------

RAGGED = [torch.full((length,), 3) for length in (3, 3, 3, 3, 3, 3)] + [torch.tensor(GIVEN)] * 3
EVERY_POLICY = [RandomOrder(), RandomOrder(2), Tweedie(4), Euler(4, Cosine()), LeftToRight(), BACKWARD]


def check_batch_invariance(policy) -> None:
    world, draw = WORLDS[1], Draw(temperature=1.3)
    whole = sample(world, RAGGED, policy, draw=draw, seed=8, batch=16)
    for batch in (1, 2, 5):
        again = sample(world, RAGGED, policy, draw=draw, seed=8, batch=batch)
        assert torch.equal(torch.stack(again.tokens), torch.stack(whole.tokens)), f"batch {batch}"
        assert torch.equal(again.nfe, whole.nfe)
    for order in ([8, 3, 0, 5], [4], [1, 2, 0, 7, 6]):
        some = sample(world, [RAGGED[i] for i in order], policy, draw=draw, seed=8, sequences=order, batch=2)
        for mine, i in enumerate(order):
            assert torch.equal(some.tokens[mine], whole.tokens[i]), f"sequence {i} in {order}"
            assert torch.equal(some.reveal[mine], whole.reveal[i]), f"sequence {i} in {order}"
            assert torch.allclose(some.confidence[mine], whole.confidence[i], rtol=1e-12)


@pytest.mark.parametrize("policy", EVERY_POLICY, ids=str)
def test_a_sequence_is_the_same_in_any_batch(policy):
    check_batch_invariance(policy)


def test_what_is_no_canvas_no_policy_or_no_number_a_row_is_refused():
    world = WORLDS[1]
    for canvas, what in (([3, 3], "not a list"), (np.array([3, 3]), "not a ndarray"), (torch.tensor(3), "shape")):
        with pytest.raises(ValueError, match=what):
            sample(world, [canvas])
    with pytest.raises(ValueError, match=r"a policy is an instance: RandomOrder\(\)"):
        sample(world, RAGGED, RandomOrder)
    with pytest.raises(ValueError, match="1 sequence numbers for 3 rows"):
        draw_plan(RandomOrder(), torch.ones(3, 5, dtype=torch.bool), sequences=[4])
    for policy in (RandomOrder(), Blocks(2)):
        assert draw_plan(policy, torch.zeros(0, 4, dtype=torch.bool)).shape == (0, 4)


def test_a_draw_says_what_is_not_the_networks_law():
    said = {Draw(): "temperature 1", Draw(top_k=1): "top_k 1", Draw(0.1234567, 1234567): "temperature 0.1234567, top_k "
            "1234567", Draw(1.0, top_p=0.9): "top_p 0.9", Draw(0.0): "temperature 0.0"}  # fmt: skip
    assert {draw: str(draw) for draw in said} == said


def test_the_check_of_batches_sees_a_coupled_plan():
    with pytest.raises(AssertionError, match="sequence"):
        check_batch_invariance(Coupled())


def test_sampling_is_deterministic_and_seeds_differ():
    canvases = torch.full((50, 3), 3)
    runs = [torch.stack(sample(WORLDS[1], canvases, seed=seed).tokens) for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert len({tuple(row.tolist()) for row in runs[0]}) > 10, "sequences differ from each other"
    global_state = torch.get_rng_state()
    sample(WORLDS[1], canvases)
    assert torch.equal(torch.get_rng_state(), global_state)


# --- canvases ---------------------------------------------------------------------------------------------------------

policies = st.one_of(
    st.builds(RandomOrder, st.integers(1, 4)),
    st.builds(LeftToRight, st.integers(1, 4)),
    st.builds(Tweedie, st.integers(1, 40), st.sampled_from([LogLinear(), Geometric(), Cosine()])),
    st.builds(Euler, st.integers(1, 40), st.sampled_from([LogLinear(), Geometric(), Cosine()])),
    st.builds(FixedOrder, st.sampled_from([(), (0,), (-1,), (0, -1)]), st.integers(1, 3)),
    st.just(Late()),
)
draws = st.builds(
    Draw,
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.sampled_from([None, 1, 3, 100]),
    st.sampled_from([None, 0.3, 1.0]),
)


@settings(max_examples=150)
@given(
    rows=st.lists(st.lists(st.integers(0, 7), min_size=2, max_size=11), max_size=9),
    policy=policies,
    draw=draws,
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 6),
)
def test_given_tokens_stay_and_no_mask_is_left(rows, policy, draw, seed: int, batch: int):
    canvases = [torch.tensor(row).clamp(max=5) for row in rows]  # a third open
    before = [canvas.clone() for canvas in canvases]
    samples = sample(Wide(5), canvases, policy, draw=draw, seed=seed, batch=batch)
    assert len(samples.tokens) == len(samples.reveal) == len(samples.confidence) == len(samples.nfe) == len(rows)
    for canvas, old, tokens, reveal, nfe in zip(
        canvases, before, samples.tokens, samples.reveal, samples.nfe.tolist(), strict=True
    ):
        assert torch.equal(canvas, old), "the caller's canvas is not written"
        assert torch.equal(tokens[old != 5], old[old != 5])
        assert bool(((tokens >= 0) & (tokens < 5)).all())
        assert torch.equal(reveal == -1, old != 5)
        assert sorted(set(reveal[old == 5].tolist())) == list(range(nfe)), "every evaluation writes something"


@settings(max_examples=100)
@given(rows=st.lists(st.lists(st.integers(-1, 9), min_size=4, max_size=4), min_size=1, max_size=5))
def test_without_gaps_keeps_the_order_of_steps(rows: list[list[int]]):
    steps = without_gaps(torch.tensor(rows))
    count = nfe_of(steps)
    for row, new, n in zip(rows, steps.tolist(), count.tolist(), strict=True):
        distinct = sorted({s for s in row if s >= 0})
        assert n == len(distinct)
        assert new == [-1 if s < 0 else distinct.index(s) for s in row]


def test_bad_canvases_and_policies_are_refused():
    world, row = Wide(5), torch.tensor([5, 1, 5])
    for canvases, match in (
        ([row[:0]], "at least one token"),
        ([row[None]], r"a tensor \[L\]"),
        ([torch.tensor([5, 6])], "6 .*vocabulary of 5"),
        ([torch.tensor([5, -1])], "-1 .*vocabulary of 5"),
    ):
        with pytest.raises(ValueError, match=match):
            sample(world, canvases)
    with pytest.raises(ValueError, match="batch 0"):
        sample(world, [row], batch=0)
    with pytest.raises(ValueError, match="2 sequence numbers and 1 rows for 1"):
        sample(world, [row], sequences=[0, 1])
    for order in ((3,), (-4,), (0, 0), (0, -3)):
        with pytest.raises(ValueError, match="FixedOrder"):
            sample(world, [row], FixedOrder(order))
    for make in (Tweedie, Euler, RandomOrder, LeftToRight):
        with pytest.raises(ValueError, match="at least 1"):
            make(0)
    with pytest.raises(ValueError, match="at least 1"):
        FixedOrder((), 0)


def test_every_policy_states_its_law():
    for policy in EVERY_POLICY:
        assert policy.exact_for
    assert RandomOrder().exact_for == "the random-order law"
    assert LeftToRight().exact_for == "the left-to-right chain rule"
    assert "independently" in RandomOrder(2).exact_for
    assert "16 steps" in Tweedie(16).exact_for


# --- causal networks --------------------------------------------------------------------------------------------------


def test_a_causal_network_is_sampled_exactly_from_the_left():
    world = CausalTable()
    free = torch.tensor([0, 3, 3, 3]).expand(COUNT, -1)
    samples = sample(world, free, LeftToRight(), batch=10_000)
    check_law((row[1:] for row in samples.tokens), world.log_p().exp(), 3)
    assert samples.nfe.unique().tolist() == [3]
    prompt = torch.tensor([0, 2, 3, 3]).expand(COUNT, -1)
    samples = sample(world, prompt, LeftToRight(), batch=10_000)
    conditional = world.log_p().exp() * (every(3, 3)[:, 0] == 2)
    check_law((row[1:] for row in samples.tokens), conditional / conditional.sum(), 3)


def test_a_causal_network_refuses_other_orders():
    world, free = CausalTable(), torch.tensor([[0, 3, 3, 3]] * 8)
    for policy in (RandomOrder(), LeftToRight(2), Tweedie(2), BACKWARD, None):
        with pytest.raises(ValueError, match="from the left"):
            sample(world, free, policy)
    for canvas in ([3, 3, 3, 3], [0, 3, 1, 3], [0, 3, 3, 1]):
        with pytest.raises(ValueError, match="LeftToRight"):
            sample(world, torch.tensor([canvas]), LeftToRight())
    assert sample(world, torch.tensor([[0, 1, 2, 1]]), LeftToRight()).tokens[0].tolist() == [0, 1, 2, 1]


# --- templates --------------------------------------------------------------------------------------------------------


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_template_is_the_text_with_blanks():
    canvas = template("ab{{3}}c{{ 2 .. 2 }}", encode, 999, begin=[1, 2])
    with pytest.raises(ValueError, match="a blank is"):  # not Python's word on integers
        template(f"{{{{{'9' * 5000}}}}}", encode, 999)
    assert canvas.tolist() == [1, 2, 97, 98, 999, 999, 999, 99, 999, 999]
    assert canvas.dtype == torch.long
    assert template("{{1}}{{2}}", encode, 9).tolist() == [9, 9, 9]
    assert template("no blank {3} {x}", encode, 999).tolist() == encode("no blank {3} {x}")
    pieces = []
    template("once {{2}} upon{{1}}", lambda text: pieces.append(text) or [0], 9)
    assert pieces == ["once ", " upon"], "encoded piece by piece"


def test_lengths_are_uniform_and_belong_to_the_sequence():
    lengths = torch.tensor(
        [
            [int((template(text, encode, 999, sequence=n) == 999).sum()) for text in ("{{2..6}}", "{{2..6}}x{{1..3}}")]
            for n in range(4000)
        ]
    )
    check_counts(torch.bincount(lengths[:, 0] - 2, minlength=5), torch.full((5,), 0.2, dtype=torch.float64))
    second = lengths[:, 1] - lengths[:, 0]
    check_counts(torch.bincount(second - 1, minlength=3), torch.full((3,), 1 / 3, dtype=torch.float64))
    again = [int((template("{{2..6}}", encode, 999, sequence=n) == 999).sum()) for n in range(20)]
    assert again == lengths[:20, 0].tolist()
    other = [int((template("{{2..6}}", encode, 999, seed=1, sequence=n) == 999).sum()) for n in range(20)]
    assert other != again


def test_blanks_that_ask_for_nothing_are_refused():
    for text in ("{{0}}", "a {{0..3}} b", "{{5..2}}", "{{2..0}}"):
        with pytest.raises(ValueError, match="blank"):
            template(text, encode, 9)


@pytest.mark.parametrize("options", [(1.0, None, None), (0.0, None, None), (0.5, 2, 0.9)], ids=str)
def test_confidence_is_the_networks_own(options):
    """Whatever law the token was drawn from, its confidence is its probability under the network's."""
    world, canvas = WORLDS[1], torch.tensor([3, 0, 2])
    samples = sample(world, canvas.expand(50, -1), draw=Draw(*options), batch=50)
    p = (-costs(world, 3)[3 * 16 + 2, 0]).exp()
    for tokens, confidence in zip(samples.tokens, samples.confidence, strict=True):
        assert math.isclose(float(confidence[0]), float(p[tokens[0]]), rel_tol=1e-9)
        assert confidence[1:].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("plan", [lambda o: torch.full(o.shape, -1), lambda o: torch.rand(o.shape), lambda o: o[:, 1:]])
def test_a_policy_that_forgets_positions_is_refused(plan):
    class Bad:
        exact_for = "nothing"

        def plan(self, open_, u):
            return plan(open_)

    with pytest.raises(ValueError, match=r"Bad\.plan must give an integer step"):
        sample(WORLDS[0], [torch.tensor(FREE)], Bad())


@pytest.mark.parametrize("text", ["a {{3} b", "{{2..x}}", "{{3..}}", "{{-1}}", "{{}}"])
def test_a_mistyped_blank_is_no_text(text):
    with pytest.raises(ValueError, match="a blank is"):
        template(text, lambda piece: [0], 3)


def test_from_left_to_right_stopping_at_the_end_token_is_exact():
    """The text up to the first end token has the chain rule's law, and what is behind costs no call."""
    world, end = InconsistentTable(3, 3), 2
    samples = sample(world, torch.tensor([FREE] * COUNT), LeftToRight(), end=end, batch=5000)
    x, nfe = torch.stack(samples.tokens), samples.nfe
    first = torch.where((x == end).any(-1), (x == end).long().argmax(-1), 2)
    assert torch.equal(nfe, first + 1)
    ended = torch.arange(3) > first[:, None]
    assert bool((x[ended] == end).all())
    full = law([(1.0, [[0], [1], [2]])], costs(world, 3), torch.tensor(FREE))
    truth = torch.zeros(27, dtype=torch.float64)
    for row, p in zip(every(3, 3), full, strict=True):
        cut = row.clone()
        if bool((row == end).any()):
            cut[int((row == end).long().argmax()) :] = end
        truth[int((cut * torch.tensor([9, 3, 1])).sum())] += p
    check_law(samples.tokens, truth, 3)


def test_an_end_token_fills_its_own_blank_only():
    """Behind the end token of one blank the next blank and what is given are left alone; written tokens stay."""

    @dataclass(frozen=True)
    class Ends:
        vocab, mask_id, causal, normalised = 3, 3, False, True

        def __call__(self, tokens, at, *, then=None, rows=None, level=None):
            logits = torch.full((len(at), 3), -torch.inf)
            logits[:, 0] = 0.0
            position = at % tokens.shape[1]
            logits[position == 1] = torch.tensor([-torch.inf, -torch.inf, 0.0])
            return logits if then is None else then(logits, slice(0, len(at)))

    canvas = torch.tensor([1, 3, 3, 3, 1, 3, 3])
    seen = []
    samples = sample(Ends(), [canvas], FixedOrder((3, 1)), end=2, on_step=seen.append)
    assert samples.tokens[0].tolist() == [1, 2, 2, 0, 1, 0, 0]
    assert samples.nfe.tolist() == [4]
    assert samples.confidence[0][2] == 1
    assert sorted(seen[1].position.tolist()) == [1, 2]


def test_a_stream_is_the_same_sample_step_by_step():
    world, canvases = InconsistentTable(3, 3), torch.tensor([FREE] * 6)
    seen, steps = canvases.clone(), stream(world, canvases, RandomOrder(2), batch=4)
    while True:
        try:
            step = next(steps)
        except StopIteration as finished:
            samples = finished.value
            break
        seen[step.sequence, step.position] = step.token
    assert torch.equal(seen, torch.stack(samples.tokens))
    assert torch.equal(seen, torch.stack(sample(world, canvases, RandomOrder(2)).tokens))
    with pytest.raises(ValueError, match="batch"):
        stream(world, canvases, batch=0)
    with pytest.raises(ValueError, match="end token"):
        stream(world, canvases, end=3)
