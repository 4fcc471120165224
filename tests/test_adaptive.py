"""Adaptive policies and blocks: samples follow the enumerated law of the order they choose, row by row."""

import itertools
import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from scipy.stats import chi2

from unmask.audit.stated import by_ratio
from unmask.grammar.regular import regular
from unmask.likelihood import decoder_log_likelihood, ordered_log_likelihood
from unmask.sampling import (
    Blocks,
    Confidence,
    Constraint,
    Draw,
    Entropy,
    EntropyBound,
    Greedy,
    LeftToRight,
    LowConfidence,
    Margin,
    RandomOrder,
    Rated,
    Remasking,
    Speculative,
    Threshold,
    Tweedie,
    decode_nats,
    draw_plan,
    sample,
)
from unmask.sampling.adaptive import greedy_counts
from unmask.sampling.automaton import over_tokens
from unmask.transformer import Transformer, TransformerConfig
from unmask.world import InconsistentTable, JointTable, all_sequences
from unmask.wrappers import Biased

V, L, M, COUNT = 3, 4, 3, 12_000
WORLDS = {"joint": JointTable(V, L, seed=2), "inconsistent": InconsistentTable(V, L, seed=5)}
SEQUENCES = all_sequences(V, L)
BY_PREDICTION = [
    Confidence(),
    Confidence(2),
    Margin(),
    Entropy(),
    Entropy(3),
    Threshold(0.6),
    EntropyBound(0.5),
    Blocks(2, Confidence()),
    Blocks(3, EntropyBound(0.7)),
]


def statistics(policy, log_q: torch.Tensor) -> float:
    """The quantity a policy ranks by, for one prediction, written out."""
    p = sorted((math.exp(x) for x in log_q.tolist()), reverse=True)
    if isinstance(policy, Margin):
        return p[0] - p[1]
    if isinstance(policy, Entropy | EntropyBound):
        return sum(x * math.log(x) for x in p if x > 0)
    return p[0]


def chosen(policy, scores: dict[int, float]) -> list[int]:
    """Positions that a policy reveals, given each open position's statistic: the definitions, in plain Python."""
    ranked = sorted(scores, key=lambda i: (-scores[i], i))
    if isinstance(policy, Threshold):
        return [i for i in ranked if scores[i] >= policy.probability or i == ranked[0]]
    if isinstance(policy, EntropyBound):
        run: list[int] = []
        for i in ranked:
            entropies = [-scores[j] for j in [*run, i]]
            if run and sum(entropies) - max(entropies) > policy.nats:
                break
            run.append(i)
        return run
    return ranked[: policy.tokens]


def law(world, policy, canvas: list[int]) -> torch.Tensor:
    """P(sequence) of the decoder, by following every branch."""
    inside = policy.inside if isinstance(policy, Blocks) else policy
    size = policy.size if isinstance(policy, Blocks) else L
    ranks = {i: r for r, i in enumerate(i for i in range(L) if canvas[i] == M)}

    @cache
    def predictions(state: tuple[int, ...]) -> torch.Tensor:
        return world(torch.tensor([state]), torch.arange(L)).log_softmax(-1)

    @cache
    def follow(state: tuple[int, ...], target: tuple[int, ...]) -> float:
        pending = [i for i in range(L) if state[i] == M]
        if not pending:
            return 1.0
        block = min(ranks[i] // size for i in pending)
        here = [i for i in pending if ranks[i] // size == block]
        scores = {i: statistics(inside, predictions(state)[i]) for i in here}
        new, p = list(state), 1.0
        for i in chosen(inside, scores):
            new[i] = target[i]
            p *= math.exp(predictions(state)[i, target[i]])
        return p * follow(tuple(new), target)

    fits = [all(c in (M, x) for c, x in zip(canvas, row, strict=True)) for row in SEQUENCES.tolist()]
    values = [
        follow(tuple(canvas), tuple(row)) if fit else 0.0 for row, fit in zip(SEQUENCES.tolist(), fits, strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64)


def check(tokens: list[torch.Tensor], expected: torch.Tensor) -> None:
    """Chi-square at p > 1e-5 (4.3 sigma), rare sequences pooled; nothing impossible."""
    number = (torch.stack(tokens) * V ** torch.arange(L - 1, -1, -1)).sum(-1)
    counts = torch.bincount(number, minlength=V**L).double()
    assert float(counts[expected == 0].sum()) == 0, "impossible"
    common = expected * len(tokens) >= 10
    seen = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]]) * len(tokens)
    seen, wanted = seen[wanted > 1e-9], wanted[wanted > 1e-9]
    statistic = float(((seen - wanted) ** 2 / wanted).sum())
    assert chi2.sf(statistic, len(seen) - 1) > 1e-5, f"chi-square {statistic:.0f} of {len(seen) - 1}"


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("policy", BY_PREDICTION, ids=repr)
@pytest.mark.parametrize("canvas", [[M] * L, [M, 1, M, M]], ids=["free", "given"])
def test_samples_and_likelihood_are_the_decoders_law(world, policy, canvas):
    """The enumerated law, the exact likelihood and the samples are one and the same."""
    expected = law(WORLDS[world], policy, canvas)
    assert float(expected.sum()) == pytest.approx(1, abs=1e-9)
    maskable = (torch.tensor(canvas) == M).expand(len(SEQUENCES), -1)
    fits = (maskable | (torch.tensor(canvas) == SEQUENCES)).all(-1)
    nats, evaluations = decode_nats(WORLDS[world], SEQUENCES[fits], maskable[fits], policy, batch=17)
    assert torch.allclose((-nats).exp(), expected[fits], atol=1e-12)
    samples = sample(WORLDS[world], torch.tensor(canvas).expand(COUNT, -1), policy, batch=COUNT)
    check(samples.tokens, expected)
    assert int(evaluations.max()) <= sum(c == M for c in canvas)


@pytest.mark.parametrize("wrong", [Margin(), Confidence(2), Blocks(2, Confidence()), LeftToRight()], ids=repr)
def test_the_check_sees_another_law(wrong):
    """On the inconsistent world another order, a parallel step or blocks fail the check that Confidence() passes."""
    world = InconsistentTable(V, L, seed=5)
    samples = sample(world, torch.full((COUNT, L), M), wrong, batch=COUNT, seed=1)
    with pytest.raises(AssertionError):
        check(samples.tokens, law(world, Entropy() if isinstance(wrong, Margin) else Confidence(), [M] * L))


def test_orders_that_look_at_draws_have_no_likelihood():
    maskable = torch.ones(1, L, dtype=torch.bool)
    for policy in (LowConfidence(2), Greedy(2), Blocks(2, LowConfidence(1)), Remasking(4)):
        with pytest.raises(ValueError, match="has no likelihood: what it writes depends on tokens drawn"):
            decode_nats(WORLDS["joint"], SEQUENCES[:1], maskable, policy)


def test_a_plans_likelihood_is_that_of_its_order():
    """For a planned policy decode_nats is ordered_log_likelihood of the plan it draws."""
    maskable = torch.ones_like(SEQUENCES, dtype=torch.bool)
    for policy in (RandomOrder(), Tweedie(3), Blocks(2, RandomOrder())):
        nats, nfe = decode_nats(WORLDS["inconsistent"], SEQUENCES, maskable, policy, seed=4, batch=100)
        plan = draw_plan(policy, maskable, seed=4)
        exact = ordered_log_likelihood(WORLDS["inconsistent"], SEQUENCES, plan)
        assert torch.allclose(nats, exact.per_sequence, rtol=1e-12)
        assert int(nfe.sum()) == exact.evaluations


@dataclass(frozen=True)
class EvenFirst:
    """A policy of a user's, whose plan is random."""

    exact_for = "even positions in a random order, then the odd ones"

    def plan(self, open_, u):
        return (u + torch.arange(open_.shape[-1]) % 2).argsort(-1).argsort(-1)


def test_a_decoder_without_one_law_for_a_text_is_refused():
    maskable = torch.ones(1, L, dtype=torch.bool)
    for policy in (RandomOrder(), Tweedie(3), Blocks(2, RandomOrder()), EvenFirst(), Blocks(3, EvenFirst())):
        with pytest.raises(ValueError, match="draws its plan, so its likelihood is a mean over all plans"):
            decoder_log_likelihood(WORLDS["joint"], SEQUENCES[:1], maskable, policy)
    estimate = decoder_log_likelihood(WORLDS["joint"], SEQUENCES, maskable.expand(81, -1), LeftToRight())
    assert estimate.bound == "exact"
    assert float((-estimate.per_sequence).exp().sum()) == pytest.approx(1)
    with pytest.raises(ValueError, match="nothing to score"):
        decoder_log_likelihood(WORLDS["joint"], SEQUENCES[:1], ~maskable, Confidence())


def test_low_confidence_is_a_plain_statement():
    """LLaDA's rule with one position a step, followed through by enumeration of what is drawn at each call."""
    world, policy = InconsistentTable(2, 2, seed=3), LowConfidence(2)
    first = world(torch.tensor([[2, 2]]), torch.arange(2)).exp()
    expected = torch.zeros(2, 2, dtype=torch.float64)
    for a in range(2):
        for b in range(2):
            p = float(first[0, a] * first[1, b])
            if first[0, a] >= first[1, b]:
                expected[a] += p * world(torch.tensor([[a, 2]]), torch.tensor([1]))[0].exp()
            else:
                expected[:, b] += p * world(torch.tensor([[2, b]]), torch.tensor([0]))[0].exp()
    samples = sample(world, torch.full((COUNT, 2), 2), policy, batch=COUNT)
    found = torch.zeros(2, 2, dtype=torch.float64)
    for a, b in torch.stack(samples.tokens).tolist():
        found[a, b] += 1
    deviation = (found - COUNT * expected) / (COUNT * expected * (1 - expected)).sqrt()
    assert float(deviation.abs().max()) < 4.5


@pytest.mark.parametrize(("total", "steps"), [(64, 16), (64, 64), (10, 4), (7, 100), (1, 3)])
def test_reveal_counts(total, steps):
    """LLaDA: equal steps, the first take the rest. SMDM: int(n (1 - s/t)), all that is left at the last step."""
    network = Transformer(TransformerConfig(vocab=20, layers=1, heads=2, width=16)).double().eval()
    canvas = torch.full((total,), 20)
    reveal = sample(network, [canvas], LowConfidence(steps)).reveal[0]
    counts = torch.bincount(reveal).tolist()
    expected = [total // steps + (i < total % steps) for i in range(steps)]
    assert counts == [n for n in expected if n]
    reveal = sample(network, [canvas], Greedy(steps)).reveal[0]
    assert torch.bincount(reveal).tolist() == list(greedy_counts(total, steps, 1e-5))
    assert sum(greedy_counts(total, steps, 1e-5)) == total


def test_whole_counts_are_not_rounded_down():
    """At eps 0 step i of T reveals left / (T - i)."""
    for steps, total in itertools.product(range(1, 41), range(1, 33)):
        left, expected = total, []
        for i in range(steps):
            expected.append(left // (steps - i))
            left -= expected[-1]
        assert greedy_counts(total, steps, 0.0) == tuple(count for count in expected if count)
        assert by_ratio(total, steps, 0.0) == list(greedy_counts(total, steps, 0.0))


def test_what_an_end_token_closed_before_is_not_counted(monkeypatch):
    """A block over two blanks, of which the one before ended the first: a rule divides what there is to write."""
    told = []
    choose = LowConfidence.choose
    monkeypatch.setattr(LowConfidence, "choose", lambda *given: told.append(int(given[-1])) or choose(*given))
    canvas = torch.tensor([M] * 4 + [1] + [M] * 2)
    ends = Biased(InconsistentTable(V, len(canvas)), {0: math.inf})
    sample(ends, [canvas], Blocks(3, LowConfidence(1)), end=0)
    assert told == [3, 2]


@pytest.mark.parametrize("policy", [*BY_PREDICTION, LowConfidence(5), RandomOrder(), Remasking(3), Rated()], ids=repr)
def test_a_network_that_predicts_no_number_is_refused(policy):
    """Instead of a text of last tokens, or no end."""
    broken = Transformer(TransformerConfig(vocab=V, layers=1, heads=1, width=8))
    with torch.no_grad():
        broken.output.weight.fill_(math.nan)
    fits = None if isinstance(policy, Rated) else Constraint(over_tokens(regular(".*"), [b"a", b"b", b"c"]))
    for constraint in (None, fits):
        with pytest.raises(ValueError, match="predicts nan"):
            sample(broken, [torch.full((L,), M)], policy, constraint=constraint)


def test_a_policy_that_reveals_nothing_is_refused_and_the_lowest_score_can_be_revealed(monkeypatch):
    world, canvas = InconsistentTable(V, L), torch.tensor([0, M, M, M])
    monkeypatch.setattr(Confidence, "score", lambda *_: torch.full((int((canvas == M).sum()),), -math.inf))
    assert sample(world, [canvas], Confidence(3)).nfe.tolist() == [1]
    monkeypatch.setattr(Confidence, "choose", lambda self, score, asked, turn, total: torch.zeros_like(asked))
    with pytest.raises(ValueError, match="Confidence: `choose` must reveal at least one"):
        sample(world, [canvas], Confidence())


def test_blocks_finish_before_the_next_begins():
    network = Transformer(TransformerConfig(vocab=20, layers=1, heads=2, width=16)).double().eval()
    canvas = torch.full((21,), 20)
    canvas[[0, 7]] = 3
    for inside in (RandomOrder(2), Tweedie(3), LeftToRight(), Confidence(2), LowConfidence(2), EntropyBound(0.2)):
        reveal = sample(network, [canvas, canvas], Blocks(5, inside), seed=1).reveal[1]
        blocks = reveal[canvas == 20].split(5)
        for before, after in itertools.pairwise(blocks):
            assert int(before.max()) < int(after.min())


@pytest.mark.parametrize("policy", [*BY_PREDICTION, LowConfidence(5), Greedy(5), Blocks(4, LowConfidence(2))], ids=repr)
def test_a_row_never_looks_at_its_neighbours(policy):
    """In float64 a sequence is the same alone and among others of its length or another."""
    network = Transformer(TransformerConfig(vocab=30, layers=2, heads=2, width=32), seed=7)
    with torch.no_grad():
        network.output.weight.mul_(8)
    network = network.double().eval()
    canvases = []
    for i in range(7):
        canvas = torch.full((8 + 6 * (i % 2),), 30)
        canvas[i % 4] = i
        canvases.append(canvas)
    together = sample(network, canvases, policy, seed=5, batch=3, draw=Draw(0.8))
    for i, canvas in enumerate(canvases):
        alone = sample(network, [canvas], policy, seed=5, sequences=[i], draw=Draw(0.8))
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert torch.equal(alone.reveal[0], together.reveal[i])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Confidence(0), "tokens 0"),
        (lambda: Threshold(0.0), "probability 0.0"),
        (lambda: EntropyBound(-1.0), "nats -1.0"),
        (lambda: LowConfidence(0), "steps 0"),
        (lambda: Blocks(0), "size 0"),
        (lambda: Blocks(2, Rated()), "Rated runs over a whole canvas"),
        (lambda: Blocks(2, Blocks(1, Confidence())), "Blocks runs over a whole canvas"),
        (lambda: Blocks(2, Speculative()), "Speculative runs over a whole canvas"),
        (lambda: Greedy(4, eps=2.0), "eps 2.0"),
    ],
)
def test_impossible_policies(make, message):
    with pytest.raises(ValueError, match=message):
        make()
