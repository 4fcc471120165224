"""Speculative decoding writes the law of one token at a time, exactly, and costs the calls and rows that it states."""

import itertools
import math

import pytest
import torch
from enumeration import CausalTable, Spy, check_law, costs, every, in_steps, law, number, opened, random_orders
from hypothesis import given, settings
from hypothesis import strategies as st

import unmask.network
from unmask.likelihood import decoder_log_likelihood, ordered_log_likelihood
from unmask.sampling import (
    Blocks,
    Confidence,
    Draw,
    FixedOrder,
    LeftToRight,
    RandomOrder,
    Speculative,
    Tweedie,
    draw_plan,
    sample,
    speculative,
)
from unmask.sampling.speculative import judge
from unmask.transformer import Transformer, TransformerConfig
from unmask.world import InconsistentTable, JointTable, Wide
from unmask.wrappers import Guided

M, L, COUNT = 3, 5, 8000
WORLD = InconsistentTable(3, L, seed=1)
FREE, GIVEN = [M] * L, [M, 1, M, M, M]
BACKWARD = FixedOrder((-1, -2, -3, -4, -5))
SEEN = r"total variation|chi-square|impossible"


def blocks_of_two(positions: list[int]):
    """Random orders within pairs of open positions, pairs from the left."""
    pairs = in_steps(positions, 2)
    orders = list(itertools.product(*(itertools.permutations(pair) for pair in pairs)))
    return [(1 / len(orders), in_steps(list(itertools.chain(*order)))) for order in orders]


ORDERS = {
    "random": (RandomOrder(), random_orders),
    "left to right": (LeftToRight(), lambda at: [(1.0, in_steps(at))]),
    "backward": (BACKWARD, lambda at: [(1.0, in_steps(at[::-1]))]),
    "blocks": (Blocks(2), blocks_of_two),
}


def check(name: str, drafts: int, canvas: list[int], world=WORLD, draw: Draw = Draw(), seed: int = 0) -> None:  # noqa: B008
    """Samples follow the enumerated law of one token at a time, drawn by `draw`."""
    inside, plans = ORDERS[name]
    length = len(canvas)
    table = -draw.adjust(-costs(world, length).flatten(0, 1)).log_softmax(-1).view(-1, length, world.vocab)
    canvas = torch.tensor(canvas)
    truth = law(plans(opened(canvas, world.mask_id)), table, canvas)
    samples = sample(
        world, canvas.expand(COUNT, -1), Speculative(inside, drafts), draw=draw, seed=seed, batch=COUNT // 2
    )
    check_law(samples.tokens, truth, world.vocab)


@pytest.mark.parametrize("drafts", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "canvas"), [("random", FREE), ("left to right", FREE), ("backward", GIVEN), ("blocks", GIVEN)]
)
def test_samples_follow_the_law_of_one_at_a_time(name, canvas, drafts):
    check(name, drafts, canvas)


def test_on_a_joint_table_too():
    world = JointTable(2, L, seed=4)
    check("random", 3, [2] * L, world)


@pytest.mark.parametrize("draw", [Draw(temperature=0.6), Draw(top_k=2), Draw(1.5, top_p=0.7)], ids=repr)
def test_a_changed_draw_changes_both_laws(draw):
    check("left to right", 3, FREE, draw=draw)


def from_the_truth(p, q, guess, u):
    """A refused guess is replaced from p instead of the residual."""
    stays, token = judge(p, q, guess, u)
    return stays, torch.where(stays, token, unmask.sampling.speculative.inverse_cdf(p, u[:, 1]))


def always(p, q, guess, u):
    """Every guess stays."""
    return judge(torch.where(q > 0, q, p), q, guess, u)


def swapped(p, q, guess, u):
    """The residual the wrong way round."""
    stays, token = judge(p, q, guess, u)
    rest = torch.where((q > 0).any(-1, keepdim=True), (q - p).clamp(min=0), p)
    return stays, torch.where(stays, token, unmask.sampling.speculative.inverse_cdf(rest, u[:, 1]))


def shared(p, q, guess, u):
    """One uniform judges and replaces."""
    return judge(p, q, guess, u[:, :1].expand(-1, 2))


@pytest.mark.parametrize("fault", [from_the_truth, always, swapped, shared])
def test_planted_faults_are_seen(fault, monkeypatch):
    monkeypatch.setattr(speculative, "judge", fault)
    with pytest.raises(AssertionError, match=SEEN):
        check("left to right", 3, FREE)


# --- judging a guess --------------------------------------------------------------------------------------------------


def written(p: torch.Tensor, q: torch.Tensor, grid: int = 400) -> torch.Tensor:
    """P(token) over guesses from q and an even grid of both uniforms."""
    u = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    pairs = torch.cartesian_prod(u, u)
    total = torch.zeros_like(p)
    for guess, share in enumerate(q.tolist()):
        n = len(pairs)
        _, token = judge(p.expand(n, -1), q.expand(n, -1), torch.full((n,), guess), pairs)
        total += share * torch.bincount(token, minlength=len(p)) / n
    return total


def test_what_is_written_has_law_p_whatever_q():
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        p, q = (2 * torch.randn(2, 5, generator=generator, dtype=torch.float64)).softmax(-1)
        assert torch.allclose(written(p, q), p, atol=6e-3)
        assert torch.allclose(written(p, p), p, atol=1e-12), "equal laws keep every guess"
    p, q = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.3, 0.7]], dtype=torch.float64)
    assert torch.allclose(written(p, q), p, atol=3e-3), "no guess is possible"


def test_no_guess_and_equal_laws_are_no_special_cases():
    p, none = torch.tensor([[0.0, 0.25, 0.75]], dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    u = torch.tensor([[0.0, 0.2]], dtype=torch.float64)
    assert [part.item() for part in judge(p, none, torch.tensor([0]), u)] == [False, 1]
    assert [part.item() for part in judge(p, p, torch.tensor([2]), u + 0.8 - 1e-16)] == [True, 2]
    # a last digit: the guess is refused and nothing is left but p
    q = torch.tensor([[0.0, 0.25, 0.7500000000000001]], dtype=torch.float64)
    u = torch.tensor([[1 - 1e-16, 0.5]], dtype=torch.float64)
    assert judge(p, q, torch.tensor([2]), u)[1].item() == 2


# --- cost -------------------------------------------------------------------------------------------------------------


def test_where_every_guess_stays_rows_are_tokens():
    for drafts, open_ in ((1, 9), (4, 20), (4, 1), (4, 2), (30, 12)):
        samples = sample(Wide(7), torch.full((3, open_), 7), Speculative(drafts=drafts))
        assert samples.nfe.tolist() == [open_] * 3
        assert samples.calls == 1 + math.ceil((open_ - 1) / (drafts + 1))


class Turning:
    """Certain of the number of visible tokens, so that whatever is guessed is wrong one token later."""

    vocab, mask_id, causal, normalised = 5, 5, False, True

    def __call__(self, tokens, at, *, then=None, rows=None, level=None):
        seen = (tokens != 5).sum(-1)[at // tokens.shape[1]] % 5
        logits = torch.full((len(at), 5), -torch.inf).scatter(-1, seen[:, None], 0.0)
        return logits if then is None else then(logits, slice(0, len(at)))


def test_where_no_guess_stays_calls_are_tokens():
    samples = sample(Turning(), torch.full((2, 9), 5), Speculative(LeftToRight(), 3))
    assert [row.tolist() for row in samples.tokens] == [[0, 1, 2, 3, 4, 0, 1, 2, 3]] * 2
    assert samples.calls == 9
    assert samples.nfe.tolist() == [1 + 5 * 4 + 3 + 2 + 1] * 2, "never more guesses than are of use"


def rows_of(reveal: torch.Tensor, drafts: int) -> int:
    """Rows that a sequence must have run, from what each of its calls wrote."""
    new = torch.bincount(reveal[reveal >= 0]).tolist()
    left = [sum(new[i:]) for i in range(len(new))]
    return sum(1 + (min(drafts, n - 1) if i else 0) for i, n in enumerate(left))


@pytest.mark.parametrize("inside", [RandomOrder(), LeftToRight(), BACKWARD, Blocks(2)], ids=repr)
def test_every_row_holds_its_guesses_and_asks_ahead(inside):
    canvases = torch.tensor([FREE, GIVEN, [M, M, 0, M, M], [0, 1, 2, 0, 1]] * 6)
    spy, steps = Spy(WORLD), []
    samples = sample(spy, canvases, Speculative(inside, 2), batch=5, on_step=steps.append)
    plan = draw_plan(inside, canvases == M)
    assert samples.calls == len(spy.asked) == len(steps)
    assert sum(len(tokens) for tokens, _, _ in spy.asked) == int(samples.nfe.sum())
    assert samples.nfe.tolist() == [rows_of(reveal, 2) if len(reveal[reveal >= 0]) else 0 for reveal in samples.reveal]
    state = canvases.clone()
    for (tokens, at, rows), step in zip(spy.asked, steps, strict=True):
        assert len(rows.unique()) <= 5, "a batch is of sequences"
        assert len(at) == len(at.unique())
        for i in rows.unique().tolist():
            mine = (rows == i).nonzero().squeeze(-1)
            order = plan[i].masked_fill(state[i] != M, 99).argsort()[: int((state[i] == M).sum())].tolist()
            assert len(mine) <= 3
            for guessed, row in enumerate(mine.tolist()):
                differs = (tokens[row] != state[i]).nonzero().squeeze(-1).tolist()
                assert sorted(differs) == sorted(order[:guessed]), "row m holds the first m guesses"
                asked = (at[at // L == row] % L).tolist()
                ahead = order[guessed + 1 : -1][:2]
                assert sorted(asked) == sorted([order[guessed], *ahead])
                assert torch.equal(tokens[row, order[:guessed]], tokens[mine[-1], order[:guessed]])
        assert bool((state[step.sequence, step.position] == M).all())
        state[step.sequence, step.position] = step.token
    assert torch.equal(state, torch.stack(samples.tokens))
    for reveal, order in zip(samples.reveal, plan, strict=True):
        turns = reveal[order >= 0][order[order >= 0].argsort()]
        assert turns.diff().ge(0).all(), "written in the order of the plan"


def test_a_wrapper_counts_its_rows():
    condition = torch.tensor([True, False, False, False, False]).expand(4, -1)
    canvases = torch.tensor([[1, M, M, M, M]] * 4)
    samples = sample(Guided(WORLD, condition, 0.5), canvases, Speculative(drafts=2))
    assert samples.nfe.tolist() == [2 * rows_of(reveal, 2) for reveal in samples.reveal]


# --- a real network, in float64 ---------------------------------------------------------------------------------------

VOCAB = 12


def network() -> Transformer:
    """Random weights, sharp enough for guesses to stay and fall."""
    made = Transformer(TransformerConfig(vocab=VOCAB, layers=2, heads=2, width=16), seed=7)
    with torch.no_grad():
        made.output.weight.mul_(6)
    return made.double().eval().requires_grad_(False)


def ragged() -> list[torch.Tensor]:
    generator, rows = torch.Generator().manual_seed(0), []
    for i in range(9):
        row = torch.randint(VOCAB, (5 + 4 * (i % 3),), generator=generator)
        row[torch.rand(len(row), generator=generator) < 0.8] = VOCAB
        rows.append(row)
    return rows


@pytest.mark.parametrize("inside", [RandomOrder(), LeftToRight(), Blocks(3)], ids=repr)
@pytest.mark.parametrize("draw", [Draw(), Draw(0.7, top_k=5, top_p=0.9)], ids=["plain", "filtered"])
def test_a_sequence_is_the_same_in_any_batch(inside, draw):
    policy = Speculative(inside, 3)
    together = sample(network(), ragged(), policy, draw=draw, seed=5, batch=4)
    assert int(together.nfe.sum()) - sum(int((row == VOCAB).sum()) for row in ragged()) > 0, "some guesses fall"
    for i, canvas in enumerate(ragged()):
        alone = sample(network(), [canvas], policy, draw=draw, seed=5, sequences=[i])
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert torch.equal(alone.reveal[0], together.reveal[i])
        assert torch.equal(alone.nfe[0], together.nfe[i])
        assert torch.allclose(alone.confidence[0], together.confidence[i], rtol=1e-9)


def test_logits_read_in_pieces_are_the_same(monkeypatch):
    """A chunk may end anywhere: among the judgements, or between them and what is guessed from."""
    whole = sample(network(), ragged(), Speculative(drafts=3), batch=9)
    for chunk in (8, 16, 24):
        monkeypatch.setattr(unmask.network, "CHUNK", chunk * VOCAB)
        cut = sample(network(), ragged(), Speculative(drafts=3), batch=9)
        assert all(torch.equal(a, b) for a, b in zip(cut.tokens, whole.tokens, strict=True))
        assert torch.equal(cut.nfe, whole.nfe)


def test_confidences_are_the_likelihood():
    rows = torch.full((4, 12), VOCAB)
    samples = sample(network(), rows, Speculative(drafts=3), draw=Draw(0.8), seed=3)
    assert samples.calls < 12
    plan = draw_plan(RandomOrder(), rows == VOCAB, seed=3)
    exact = ordered_log_likelihood(network(), torch.stack(samples.tokens), plan)
    assert torch.allclose(exact.per_sequence, -torch.stack(samples.confidence).log().sum(-1), rtol=1e-9)


def test_the_most_probable_token_is_that_of_one_at_a_time():
    for inside in (RandomOrder(), LeftToRight()):
        one = sample(network(), ragged(), inside, draw=Draw(0.0), seed=1)
        for drafts in (1, 3, 20):
            ours = sample(network(), ragged(), Speculative(inside, drafts), draw=Draw(0.0), seed=1)
            assert all(torch.equal(a, b) for a, b in zip(ours.tokens, one.tokens, strict=True))
            assert ours.calls < one.calls


def test_its_likelihood_is_that_of_the_order_inside():
    x_0 = every(3, 3)[::5]
    world, maskable = InconsistentTable(3, 3), torch.ones_like(x_0, dtype=torch.bool)
    inside = decoder_log_likelihood(world, x_0, maskable, LeftToRight())
    ours = decoder_log_likelihood(world, x_0, maskable, Speculative(LeftToRight()))
    assert torch.equal(inside.per_sequence, ours.per_sequence)
    with pytest.raises(ValueError, match="RandomOrder draws its plan"):
        decoder_log_likelihood(world, x_0, maskable, Speculative())


# --- end tokens -------------------------------------------------------------------------------------------------------


def law_with_end(plans, table: torch.Tensor, canvas: list[int], end: int) -> torch.Tensor:
    """One at a time; a written end token closes what is open behind it in its blank. Every branch, literally."""
    total = torch.zeros(3 ** len(canvas), dtype=torch.float64)
    blanks = [sum(token != M for token in canvas[:i]) for i in range(len(canvas))]

    def follow(state: list[int], order: list[int], p: float) -> None:
        order = [i for i in order if state[i] == M]
        if not order:
            total[number(torch.tensor([state]), 3)] += p
            return
        i, seen = order[0], number(torch.tensor([state]), 4)
        for token in range(3):
            new = list(state)
            new[i] = token
            for j in range(i + 1, len(state)):
                if token == end and blanks[j] == blanks[i] and state[j] == M:
                    new[j] = end
            follow(new, order, p * math.exp(-table[seen, i, token]))

    for p, plan in plans:
        follow(canvas, [i for step in plan for i in step], p)
    return total


@pytest.mark.parametrize("canvas", [[M] * 4, [M, M, M, 1, M]], ids=str)
@pytest.mark.parametrize("name", ["random", "left to right"])
def test_an_end_token_closes_its_blank(name, canvas):
    inside, plans = ORDERS[name]
    world, canvas_ = InconsistentTable(3, len(canvas), seed=3), torch.tensor(canvas)
    truth = law_with_end(plans(opened(canvas_, M)), costs(world, len(canvas)), canvas, 2)
    samples = sample(world, canvas_.expand(COUNT, -1), Speculative(inside, 3), end=2, batch=COUNT // 3)
    check_law(samples.tokens, truth, 3)
    assert torch.equal(torch.stack(samples.reveal) >= 0, (canvas_ == M).expand(COUNT, -1))


# --- canvases and refusals --------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    rows=st.lists(st.lists(st.integers(0, 2 * VOCAB), min_size=1, max_size=10), max_size=6),
    inside=st.sampled_from([RandomOrder(), LeftToRight(), FixedOrder((0,)), Blocks(2), Blocks(3, LeftToRight())]),
    drafts=st.integers(1, 12),
    draw=st.sampled_from([Draw(), Draw(0.0), Draw(0.5, top_k=2), Draw(top_p=0.5)]),
    end=st.sampled_from([None, 1]),
    batch=st.integers(1, 4),
    seed=st.integers(0, 2**40),
)
def test_any_canvas_is_filled(rows, inside, drafts, draw, end, batch, seed):
    canvases = [torch.tensor(row).clamp(max=VOCAB) for row in rows]
    samples = sample(network(), canvases, Speculative(inside, drafts), draw=draw, end=end, batch=batch, seed=seed)
    assert len(samples.tokens) == len(canvases)
    for canvas, tokens, reveal, nfe in zip(canvases, samples.tokens, samples.reveal, samples.nfe.tolist(), strict=True):
        open_ = canvas == VOCAB
        assert torch.equal(tokens[~open_], canvas[~open_])
        assert bool(((tokens >= 0) & (tokens < VOCAB)).all())
        assert torch.equal(reveal >= 0, open_)
        if end is None:
            assert nfe == (rows_of(reveal, drafts) if bool(open_.any()) else 0)


def test_what_is_no_planned_order_is_refused():
    for inside in (RandomOrder(2), Tweedie(), Confidence(), Blocks(2, Confidence()), Blocks(2, LeftToRight(2))):
        with pytest.raises(ValueError, match=r"Speculative: .* one token at a time") as caught:
            Speculative(inside)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="drafts 0"):
        Speculative(drafts=0)


def test_a_causal_network_is_refused():
    with pytest.raises(ValueError, match=r"causal.*LeftToRight"):
        sample(CausalTable(), torch.tensor([[0, 3, 3, 3]]), Speculative(LeftToRight()))


def test_it_states_the_law_of_the_order_inside():
    assert Speculative().exact_for == RandomOrder().exact_for
    assert Speculative(Blocks(4), 2).exact_for == Blocks(4).exact_for
