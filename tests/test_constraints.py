"""Constrained decoding: every sample fits, and follows the stated law or, by rejection, p(x | fits)."""

import itertools
import json
import math
import re
from collections import Counter
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
import torch
from enumeration import (
    CausalTable,
    Plans,
    Spy,
    check_counts,
    check_law,
    check_mean,
    costs,
    every,
    in_steps,
    independent_steps,
    law,
    number,
    random_orders,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import unmask.sampling.constraints as constraints
from unmask import grammar
from unmask.data import byte_tokenizer
from unmask.grammar.regular import regular
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
    RandomOrder,
    Remasking,
    Tweedie,
    sample,
    sample_matching,
)
from unmask.sampling.automaton import OPEN, Automaton, ByteAutomaton, over_tokens
from unmask.sampling.constraints import joint, offer
from unmask.transformer import Transformer, TransformerConfig
from unmask.world import InconsistentTable, JointTable
from unmask.wrappers import Biased, Guided

V, L, M, COUNT = 3, 4, 3, 2000
WORLDS = {"joint": JointTable(V, L, seed=2), "inconsistent": InconsistentTable(V, L, seed=5)}
SEQUENCES = every(V, L)
PATTERN = "a*b(c|aa)?|c.*a|(ab|ca){2}"
FREE, GIVEN = [M] * L, [M, 1, M, M]
ORDERS = {"free": [0, 1, 2, 3], "given": [0, 2, 3]}


def spelt(tokens) -> str:
    return "".join("abc"[token] for token in tokens)


def fits(pattern: str = PATTERN) -> torch.Tensor:
    """Which sequences fit, by `re`."""
    return torch.tensor([re.fullmatch(pattern, spelt(row)) is not None for row in SEQUENCES.tolist()])


def constraint(pattern: str = PATTERN, **options) -> Constraint:
    return Constraint(over_tokens(regular(pattern), [b"a", b"b", b"c"]), **options)


def stated(world, canvas: list[int], fit: torch.Tensor, plans: Plans) -> torch.Tensor:
    """The stated law by plain enumeration: at each step the product over A of q, where some completion fits, over Z."""
    table, rows, total = (-costs(world, L)).exp(), SEQUENCES.tolist(), torch.zeros(len(SEQUENCES), dtype=torch.float64)
    possible = [row for row, fine in zip(rows, fit.tolist(), strict=True) if fine]
    steps_law: dict[tuple, dict[tuple, float]] = {}

    def step_law(state: tuple, step: tuple) -> dict[tuple, float]:
        if (state, step) not in steps_law:
            q = table[int(number(torch.tensor([state]), V + 1))]
            agree = [row for row in possible if all(s in (M, x) for s, x in zip(state, row, strict=True))]
            found = {tuple(row[i] for i in step) for row in agree}
            weights = {x: math.prod(float(q[i, v]) for i, v in zip(step, x, strict=True)) for x in found}
            steps_law[state, step] = {x: weight / sum(weights.values()) for x, weight in weights.items()}
        return steps_law[state, step]

    for share, plan in plans:
        for i, row in enumerate(rows):
            state, p = list(canvas), share if all(c in (M, x) for c, x in zip(canvas, row, strict=True)) else 0.0
            for step in plan:
                if p == 0:
                    break
                p *= step_law(tuple(state), tuple(step)).get(tuple(row[j] for j in step), 0.0)
                for j in step:
                    state[j] = row[j]
            total[i] += p
    return total


# --- the joint draw -----------------------------------------------------------------------------------------


def cases(count: int, seed: int = 0):
    """Random automata, canvases and masses, some zero, with the law of the asked tokens by enumeration."""
    rng = np.random.default_rng(seed)
    while count:
        states, vocab, length = rng.integers(1, 6), rng.integers(1, 5), rng.integers(1, 6)
        table = rng.integers(1, states + 1, size=(states + 1, vocab))
        table[rng.random(table.shape) < 0.4] = 0
        table[0] = 0
        accepting = rng.random(states + 1) < 0.4
        accepting[0] = False
        letters = ByteAutomaton(table, np.minimum(np.arange(256), vocab - 1), accepting)
        canvas = [int(v) if rng.random() < 0.4 else OPEN for v in rng.integers(0, vocab, size=length)]
        open_ = [i for i in range(length) if canvas[i] == OPEN]
        asked = [i for i in open_ if rng.random() < 0.6]
        q = rng.random((len(asked), vocab + 1)) * (rng.random((len(asked), vocab + 1)) > 0.2)
        try:
            automaton = over_tokens(letters, [bytes([v]) for v in range(vocab)], vocab=int(vocab) + 1)
        except ValueError:
            continue  # accepts nothing
        if not asked or not q.any(-1).all():
            continue
        law = Counter()
        for x in itertools.product(range(vocab + 1), repeat=len(open_)):
            row, state = list(canvas), 1
            for i, v in zip(open_, x, strict=True):
                row[i] = v
            for v in row:
                state = table[state, v] if v < vocab else 0
            if accepting[state]:
                chosen = tuple(row[i] for i in asked)
                law[chosen] = math.prod(float(q[k, v]) for k, v in enumerate(chosen))
        count -= 1
        yield automaton, [OPEN if v == OPEN else int(automaton.class_of[v]) for v in canvas], asked, q, law


def masses(automaton: Automaton, q: np.ndarray) -> np.ndarray:
    mass = np.zeros((len(q), automaton.table.shape[1]))
    np.add.at(mass.T, automaton.class_of, q.T)
    with np.errstate(divide="ignore"):
        return np.log(mass)


def test_z_is_exact():
    for automaton, read, asked, q, p in cases(250):
        mass, u = masses(automaton, q), np.random.default_rng(1).random(len(asked))
        classes, log_z = joint(automaton, read, asked, mass, u)
        z = sum(p.values())
        assert math.isclose(math.exp(log_z), z / q.sum(-1).prod(), rel_tol=1e-12)
        if z:
            found = {tuple(automaton.class_of[list(x)].tolist()) for x, w in p.items() if w}
            assert tuple(classes.tolist()) in found
        # masses far below the smallest float: only their ratios matter
        shifted, log_z = joint(automaton, read, asked, mass - 5000, u)
        assert shifted.tolist() == classes.tolist()
        assert math.isclose(math.exp(log_z), z / q.sum(-1).prod(), rel_tol=1e-9)


def test_classes_are_drawn_by_the_product_law():
    rng = np.random.default_rng(2)
    for automaton, read, asked, q, p in cases(60, seed=3):
        if len(p) < 3 or not sum(p.values()):
            continue
        truth, counts, mass = Counter(), Counter(), masses(automaton, q)
        for x, w in p.items():
            truth[tuple(automaton.class_of[list(x)].tolist())] += w / sum(p.values())
        for _ in range(400):
            counts[tuple(joint(automaton, read, asked, mass, rng.random(len(asked)))[0].tolist())] += 1
        assert counts.keys() <= truth.keys()
        check_counts(torch.tensor([counts[x] for x in truth]), torch.tensor(list(truth.values()), dtype=torch.float64))


def test_at_temperature_0_the_most_probable_assignment():
    for automaton, read, asked, q, p in cases(100, seed=4):
        best = np.full((len(asked), automaton.table.shape[1]), 0.0)
        for k, row in enumerate(q):
            np.maximum.at(best[k], automaton.class_of, row)
        with np.errstate(divide="ignore"):
            classes, log_z = joint(automaton, read, asked, np.log(best), np.zeros(len(asked)), hard=True)
        top = max(p.values(), default=0.0)
        assert math.isclose(math.exp(log_z), top / q.max(-1).prod(), rel_tol=1e-12)
        if top:
            assert math.isclose(math.prod(float(best[k, c]) for k, c in enumerate(classes)), top, rel_tol=1e-12)


def test_too_many_sets_are_refused(monkeypatch):
    monkeypatch.setattr(constraints, "CELLS", 3)
    automaton = over_tokens(regular("(aa|b|c.b)*"), [b"a", b"b", b"c"])
    with pytest.raises(ValueError, match="sets of states between two of 3 tokens that are drawn"):
        joint(automaton, [OPEN] * 9, [1, 4, 7], np.zeros((3, automaton.table.shape[1])), np.zeros(3))


# --- what a prediction offers -------------------------------------------------------------------------------

CLASSES = Automaton(
    np.array([[0, 0, 0, 0], [0, 1, 1, 1]]), np.array([1, 2, 0, 1, 2, 3, 2, 1, 1]), np.array([False, True])
)


@pytest.mark.parametrize("draw", [Draw(), Draw(0.6), Draw(0.8, top_k=5), Draw(1.3, top_p=0.7)], ids=repr)
def test_offers_are_the_law_class_by_class(draw):
    logits = 2 * torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    logits[0] -= 900  # far from the others' level
    logits[1, 5] = -800  # a class that the network thinks impossible
    u = torch.rand(3, 4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    laws = [draw, Draw(draw.temperature)] if draw.top_k or draw.top_p else [draw]
    mass, token = (part.unflatten(-1, (len(laws), 4)) for part in offer(logits, u[:, 0], draw, CLASSES))
    for k, one in enumerate(laws):
        q, log_q = one.adjust(logits).softmax(-1), one.adjust(logits).log_softmax(-1)
        for c in range(4):
            members = np.flatnonzero(CLASSES.class_of == c).tolist()
            expected = log_q[:, members].logsumexp(-1)
            found = mass[:, k, c] - mass[:, k].logsumexp(-1)
            assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
            if q[2, members].sum() == 0:
                continue
            many = offer(logits[[2]].expand(4000, -1), u[2], draw, CLASSES)[1].unflatten(-1, (len(laws), 4))[:, k, c]
            counts = torch.bincount(many, minlength=9)[members]
            assert int(counts.sum()) == 4000
            check_counts(counts, q[2, members] / q[2, members].sum())
    assert int(token[1, -1, 3]) == 5


def test_an_offer_at_temperature_0_is_the_most_probable_token_of_each_class():
    logits = torch.tensor([[1.0, 3.0, 9.0, 1.0, 3.0, -2.0, 2.0, 0.5, -torch.inf]])
    for u in (0.0, 0.999):
        mass, token = offer(logits, torch.tensor([u], dtype=torch.float64), Draw(0.0, top_k=1), CLASSES)
        assert token.tolist() == [[2, 0, 1, 5]]
        assert (mass - mass.amax()).tolist() == [[0.0, -8.0, -6.0, -11.0]]


# --- the stated law -----------------------------------------------------------------------------------------

PLANNED = [
    (RandomOrder(), lambda positions: random_orders(positions)),
    (RandomOrder(3), lambda positions: random_orders(positions, 3)),
    (LeftToRight(2), lambda positions: [(1.0, in_steps(positions, 2))]),
    (Tweedie(2), lambda positions: independent_steps(positions, [0.5, 0.5])),
    (Blocks(3, RandomOrder(2)), None),
]


def blocks(positions: list[int]) -> Plans:
    """Blocks of three from the left, two at a time in each."""
    parts = [random_orders(positions[i : i + 3], 2) for i in range(0, len(positions), 3)]
    return [
        (math.prod(share for share, _ in choice), [step for _, plan in choice for step in plan])
        for choice in itertools.product(*parts)
    ]


@pytest.mark.parametrize("canvas", ["free", "given"])
@pytest.mark.parametrize(("policy", "plans"), PLANNED, ids=[repr(policy) for policy, _ in PLANNED])
def test_samples_follow_the_stated_law(policy, plans, canvas):
    world, tokens = WORLDS["inconsistent"], torch.tensor({"free": FREE, "given": GIVEN}[canvas])
    truth = stated(world, tokens.tolist(), fits(), (plans or blocks)(ORDERS[canvas]))
    assert float(truth.sum()) == pytest.approx(1)
    samples = sample(world, tokens.expand(COUNT, -1), policy, constraint=constraint(), batch=COUNT)
    check_law(samples.tokens, truth, V)


def test_on_a_consistent_world_too():
    truth = stated(WORLDS["joint"], FREE, fits(), random_orders([0, 1, 2, 3], 2))
    samples = sample(
        WORLDS["joint"], torch.tensor(FREE).expand(COUNT, -1), RandomOrder(2), constraint=constraint(), batch=COUNT
    )
    check_law(samples.tokens, truth, V)


def test_policies_that_rank_predictions_choose_first():
    """Confidence() writes where the network's own prediction is surest, by the restricted law there."""
    world, table = WORLDS["inconsistent"], (-costs(WORLDS["inconsistent"], L)).exp()
    truth = torch.zeros(len(SEQUENCES), dtype=torch.float64)
    possible = SEQUENCES[fits()].tolist()
    for i, row in enumerate(SEQUENCES.tolist()):
        state, p = list(FREE), 1.0
        while p and M in state:
            q = table[int(number(torch.tensor([state]), V + 1))]
            at = max((j for j in range(L) if state[j] == M), key=lambda j: (float(q[j].max()), -j))
            agree = [other for other in possible if all(s in (M, x) for s, x in zip(state, other, strict=True))]
            weights = {v: float(q[at, v]) for v in {other[at] for other in agree}}
            p *= weights.get(row[at], 0.0) / sum(weights.values())
            state[at] = row[at]
        truth[i] = p
    samples = sample(world, torch.tensor(FREE).expand(COUNT, -1), Confidence(), constraint=constraint(), batch=COUNT)
    check_law(samples.tokens, truth, V)


def test_a_causal_network_follows_it_too():
    world = CausalTable(V, 3, seed=1)
    begun = torch.tensor([0, M, M, M])
    pattern = "ab|c.a|b+"
    matches = torch.tensor([re.fullmatch(pattern, spelt(row)) is not None for row in every(V, 3).tolist()])
    truth, possible = torch.zeros(V**3, dtype=torch.float64), every(V, 3)[matches].tolist()
    for i, row in enumerate(every(V, 3).tolist()):
        p = float(matches[i])
        for j in range(3):
            q = world(torch.tensor([[0, *row[:j], *[M] * (3 - j)]]), torch.tensor([j + 1]))[0].exp()
            after = {other[j] for other in possible if other[:j] == row[:j]}
            p *= float(q[row[j]] / q[list(after)].sum()) if after else 0.0
        truth[i] = p
    samples = sample(world, begun.expand(COUNT, -1), LeftToRight(), constraint=constraint(pattern), batch=COUNT)
    check_law([row[1:] for row in samples.tokens], truth, V)


def apart(automaton, read, asked, mass, u, *, hard=False):
    """Planted: each position by itself, restricted to what is possible there."""
    drawn = [joint(automaton, read, [at], mass[[k]], u[[k]])[0][0] for k, at in enumerate(asked)]
    return np.array(drawn), 0.0


def one_by_one(automaton, read, asked, mass, u, *, hard=False):
    """Planted: from the left, each restricted by those before it and renormalised by itself: all samples fit."""
    read, drawn = list(read), []
    for k, at in enumerate(asked):
        drawn.append(joint(automaton, read, [at], mass[[k]], u[[k]])[0][0])
        read[at] = drawn[-1]
    return np.array(drawn), 0.0


def forgetful(automaton, read, asked, mass, u, *, hard=False):
    """Planted: of positions that stay masked it is forgotten that their tokens must exist."""
    drawn = []
    for row, x in zip(mass, u, strict=True):
        weight = np.where(automaton.table.any(0), np.exp(row), 0.0).cumsum()
        drawn.append(int(np.searchsorted(weight, x * weight[-1], side="right")))
    return np.array(drawn), 0.0


@pytest.mark.parametrize("fault", [apart, one_by_one, forgetful])
def test_the_check_sees_planted_faults(fault, monkeypatch):
    monkeypatch.setattr(constraints, "joint", fault)
    truth = stated(WORLDS["inconsistent"], FREE, fits(), random_orders([0, 1, 2, 3], 2))
    canvas = torch.tensor(FREE).expand(COUNT, -1)
    samples = None
    try:
        samples = sample(WORLDS["inconsistent"], canvas, RandomOrder(2), constraint=constraint(), batch=COUNT)
    except ValueError:  # a dead end
        assert fault is not one_by_one
    if samples is not None:
        with pytest.raises(AssertionError):
            check_law(samples.tokens, truth, V)


def test_the_unconstrained_law_and_the_conditional_are_others():
    """The stated law is not p(x | fits), and the check tells them apart."""
    plans, table = random_orders([0, 1, 2, 3], 2), costs(WORLDS["inconsistent"], L)
    conditional = law(plans, table, torch.tensor(FREE)) * fits()
    samples = sample(
        WORLDS["inconsistent"],
        torch.tensor(FREE).expand(COUNT, -1),
        RandomOrder(2),
        constraint=constraint(),
        batch=COUNT,
    )
    with pytest.raises(AssertionError):
        check_law(samples.tokens, conditional / conditional.sum(), V)


# --- the true conditional -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [RandomOrder(), RandomOrder(2), Tweedie(3), LeftToRight(2), Confidence()], ids=repr)
def test_a_weight_is_the_ratio_of_the_two_laws(policy):
    """exp(log_weight) = p(x, plan) / P(x, plan), for each sample; its mean is P(fits)."""
    world = WORLDS["inconsistent"]
    canvas = torch.tensor(FREE).expand(600, -1)
    samples = sample(world, canvas, policy, constraint=constraint(), batch=600)
    for i in range(40):
        plan = samples.reveal[i]
        steps = [(plan == step).nonzero().squeeze(-1).tolist() for step in range(int(plan.max()) + 1)]
        constrained = stated(world, FREE, fits(), [(1.0, steps)])[int(number(samples.tokens[i][None], V))]
        free = samples.confidence[i].log().sum()
        assert float(samples.log_weight[i]) == pytest.approx(float(free - constrained.log()), abs=1e-9)
    if not isinstance(policy, Confidence):
        if isinstance(policy, LeftToRight):
            plans = [(1.0, in_steps(range(L), 2))]
        elif isinstance(policy, Tweedie):
            plans = independent_steps(range(L), [1 / 3] * 3)
        else:
            plans = random_orders(range(L), policy.tokens)
        check_mean(samples.log_weight.exp(), float(law(plans, costs(world, L), canvas[0])[fits()].sum()))


CONDITIONAL = [
    (RandomOrder(), random_orders(range(L))),
    (Tweedie(2), independent_steps(range(L), [0.5, 0.5])),
    (Remasking(2, cap=0.0), independent_steps(range(L), [0.5, 0.5])),
]


@pytest.mark.parametrize(("policy", "plans"), CONDITIONAL, ids=[repr(policy) for policy, _ in CONDITIONAL])
def test_matching_samples_follow_the_true_conditional(policy, plans):
    truth = law(plans, costs(WORLDS["inconsistent"], L), torch.tensor(FREE)) * fits()
    matches = sample_matching(
        WORLDS["inconsistent"], torch.tensor(FREE).expand(900, -1), constraint(), policy, batch=900
    )
    check_law(matches.samples.tokens, truth / truth.sum(), V)
    check_mean(matches.attempts.double(), 1 / float(truth.sum()))


def test_matching_costs_less_than_whole_attempts():
    """An attempt ends when nothing fits any more; its evaluations are counted all the same."""
    matches = sample_matching(WORLDS["inconsistent"], torch.tensor(FREE).expand(50, -1), constraint(), batch=1)
    assert bool((matches.samples.nfe >= L).all())
    failed = matches.attempts > 1
    assert bool((matches.samples.nfe[failed] > L).all())
    assert bool((matches.samples.nfe <= L * matches.attempts).all())
    assert int(matches.samples.nfe.sum()) < L * int(matches.attempts.sum())
    assert matches.samples.calls == int(matches.samples.nfe.sum())


def test_matching_finds_each_canvas_its_own_condition():
    """An attempt is told which sequence of the wrapper's it is, however many run at once and whichever are left."""
    spy, canvases = Spy(WORLDS["inconsistent"]), [torch.tensor(FREE).index_fill(0, torch.tensor(i), 0) for i in (0, 1)]
    conditions = [canvas != V for canvas in canvases]
    sample_matching(Guided(spy, conditions, 1.0), canvases, constraint(), batch=6)
    for tokens, _, rows in spy.asked:
        given, dropped = tokens.chunk(2)
        for row, kept, without in zip(rows.tolist(), given, dropped, strict=False):
            assert torch.equal(without, kept.masked_fill(conditions[row], V))
    assert len(spy.asked) > 1


def test_what_is_written_already_is_checked_and_costs_nothing():
    world, canvas = WORLDS["joint"], SEQUENCES[fits().nonzero()[0, 0]]
    matches = sample_matching(world, [canvas, torch.tensor(FREE)], constraint())
    assert torch.equal(matches.samples.tokens[0], canvas)
    assert (int(matches.samples.nfe[0]), int(matches.attempts[0])) == (0, 0)
    wrong = SEQUENCES[(~fits()).nonzero()[0, 0]]
    whole = replace(constraint(), span=(0, L))
    assert torch.equal(sample(world, [canvas], constraint=whole).tokens[0], canvas)
    for run in (sample, sample_matching):
        with pytest.raises(ValueError, match="leave no text that fits"):
            run(world, [wrong], constraint=whole)


def test_matching_gives_up_with_the_rate():
    world = JointTable(V, L, seed=2, sharpness=6.0)
    rare = spelt(SEQUENCES[int(world.log_p.argmin())].tolist())
    with pytest.raises(ValueError, match=r"sequence 7: none of 20 attempts fits .*acceptance over all sequences 0\)"):
        sample_matching(world, torch.tensor([FREE]), constraint(rare), sequences=[7], attempts=20)
    with pytest.raises(ValueError, match="attempts 0 must be at least 1"):
        sample_matching(world, torch.tensor([FREE]), constraint(rare), attempts=0)


def test_what_has_no_weight_says_so():
    for policy in (LowConfidence(2), Greedy(2), Remasking(3)):
        samples = sample(WORLDS["joint"], torch.tensor([FREE]), policy, constraint=constraint())
        assert samples.log_weight.isnan().all()
    assert sample(WORLDS["joint"], torch.tensor([FREE])).log_weight.tolist() == [0.0]


# --- every sample fits --------------------------------------------------------------------------------------

PIECES = [b"a", b"b", b"ab", b"ba", "é".encode()[:1], "é".encode()[1:], "é".encode(), b" a", None, b"1", b"23", None]
END = len(PIECES) - 1
POLICIES = [
    RandomOrder(),
    RandomOrder(3),
    Tweedie(3),
    LeftToRight(2),
    Blocks(3, RandomOrder(2)),
    Confidence(2),
    EntropyBound(1.0),
    Blocks(4, Entropy()),
    LowConfidence(3),
    Greedy(4),
    Remasking(5, cap=0.5),
]
DRAWS = [Draw(), Draw(0.7), Draw(1.0, top_k=2), Draw(1.5, top_p=0.5), Draw(0.0)]
PATTERNS = ["(a|b)*é", "(ab)+( a)*", "[ab]{2,5}|1?(23)*", ".*a.*", "(é|a b*)+", "(a|ba|1)*(é23)?"]


def transformer(vocab: int, causal: bool = False) -> Transformer:
    made = Transformer(TransformerConfig(vocab=vocab, layers=1, heads=2, width=16, causal=causal), seed=7)
    with torch.no_grad():
        made.output.weight.mul_(8)
    return made.double().eval().requires_grad_(False)


NETWORK = transformer(len(PIECES))


def text_of(tokens: list[int]) -> str:
    while tokens and tokens[-1] == END:
        tokens = tokens[:-1]
    return b"".join(PIECES[token] for token in tokens).decode()


@settings(max_examples=120)
@given(
    st.sampled_from(PATTERNS),
    st.sampled_from(POLICIES),
    st.sampled_from(DRAWS),
    st.lists(st.sampled_from([None, None, None, None, *range(len(PIECES))]), min_size=1, max_size=9),
    st.booleans(),
    st.integers(0, 2**40),
)
def test_every_sample_fits(pattern, policy, draw, tokens, end, seed):
    automaton = over_tokens(regular(pattern), PIECES, end=END if end else None)
    mask = NETWORK.mask_id
    canvas = torch.tensor([8, *(mask if token is None else token for token in tokens), 8])
    open_ = (canvas == mask).nonzero().squeeze(-1).tolist()
    read = canvas[open_[0] : open_[-1] + 1].tolist() if open_ else []
    if read and not automaton.accepts([OPEN if t == mask else int(automaton.class_of[t]) for t in read]):
        with pytest.raises(ValueError, match=r"no text of|leave no text"):
            sample(NETWORK, [canvas], policy, constraint=Constraint(automaton))
        return
    samples = sample(NETWORK, [canvas, canvas], policy, draw=draw, constraint=Constraint(automaton), seed=seed)
    for row in samples.tokens:
        assert bool((row[canvas != mask] == canvas[canvas != mask]).all())
        if open_:
            assert re.fullmatch(pattern, text_of(row[open_[0] : open_[-1] + 1].tolist()))


@pytest.mark.parametrize(
    "policy", [RandomOrder(), RandomOrder(7), Tweedie(6), LowConfidence(9), EntropyBound(2.0)], ids=repr
)
def test_json_samples_are_valid(policy):
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "n": {"type": "integer"},
            "tags": {"type": "array", "items": {"enum": ["x", None, 3]}},
        },
        "required": ["name", "n"],
    }
    tokenizer = byte_tokenizer()
    network = transformer(tokenizer.vocab)
    canvas = torch.full((45,), network.mask_id)
    canvas[0] = tokenizer.begin
    automaton = grammar.json_schema(tokenizer, schema)
    for tokens in sample(network, [canvas] * 3, policy, constraint=Constraint(automaton), seed=3).tokens:
        jsonschema.validate(json.loads(tokenizer.decode(tokens)), schema)


def test_choices_in_a_longer_canvas_end():
    """The rest is end tokens; with `end` they cost no call."""
    tokenizer = byte_tokenizer()
    network = transformer(tokenizer.vocab)
    canvas = torch.full((12,), network.mask_id)
    canvas[0] = tokenizer.begin
    automaton = grammar.choices(tokenizer, ["yes", "no", "naïve"])
    for policy, end in itertools.product([LeftToRight(), RandomOrder(2), LowConfidence(4)], [None, tokenizer.end]):
        samples = sample(network, [canvas] * 8, policy, constraint=Constraint(automaton), end=end)
        texts = [tokenizer.decode(row) for row in samples.tokens]
        assert set(texts) <= {"yes", "no", "naïve"}
        for row, text in zip(samples.tokens, texts, strict=True):
            assert bool((row[1 + len(text.encode()) :] == tokenizer.end).all())
        if end is not None and policy == LeftToRight():
            assert samples.nfe.tolist() == [len(text.encode()) + 1 for text in texts]


def test_a_span_leaves_the_rest_free():
    """What is written outside it follows the plain law given what is inside, and the other way round."""
    world, canvas = WORLDS["joint"], torch.tensor(FREE).expand(COUNT, -1)
    inside = constraint("ab|ba", span=(1, 3))
    samples = sample(world, canvas, LeftToRight(4), constraint=inside, batch=COUNT)
    q = world(canvas[:1], torch.arange(L)).exp()
    pairs = torch.stack([q[1, 0] * q[2, 1], q[1, 1] * q[2, 0]])
    truth = torch.zeros(V, V, V, V, dtype=torch.float64)
    truth[:, 0, 1] = pairs[0] / pairs.sum() * q[0][:, None] * q[3]
    truth[:, 1, 0] = pairs[1] / pairs.sum() * q[0][:, None] * q[3]
    check_law(samples.tokens, truth.flatten(), V)


# --- settings -----------------------------------------------------------------------------------------------


def test_filters_that_leave_nothing_are_left_out():
    """top_k = 1 keeps one token a position: where none of them fits, the law without filters is taken."""
    world, canvas = WORLDS["inconsistent"], torch.tensor(FREE).expand(COUNT, -1)
    best = world(canvas[:1], torch.arange(L)).argmax(-1).tolist()
    fit, kept = fits(), int(number(torch.tensor([best]), V))
    assert not fit[kept]
    samples = sample(world, canvas, RandomOrder(4), draw=Draw(top_k=1), constraint=constraint(), batch=COUNT)
    check_law(samples.tokens, stated(world, FREE, fit, [(1.0, [[0, 1, 2, 3]])]), V)
    assert bool((samples.log_weight == -math.inf).all())
    allowed = constraint(spelt(best) + "|" + PATTERN)
    samples = sample(world, canvas[:5], RandomOrder(4), draw=Draw(top_k=1), constraint=allowed)
    assert [row.tolist() for row in samples.tokens] == [best] * 5
    assert samples.log_weight.tolist() == pytest.approx([0.0] * 5, abs=1e-12)


def test_temperature_0_writes_the_most_probable_text_that_fits():
    world, canvas = WORLDS["joint"], torch.tensor([FREE])
    samples = sample(world, canvas, RandomOrder(4), draw=Draw(0.0), constraint=constraint())
    nats = torch.tensor(
        [sum(world(canvas, torch.arange(L))[j, v] for j, v in enumerate(row)) for row in SEQUENCES.tolist()]
    )
    assert samples.tokens[0].tolist() == SEQUENCES[nats.masked_fill(~fits(), -math.inf).argmax()].tolist()


@pytest.mark.parametrize("policy", [*POLICIES, Remasking(6, cap=0.3, by_confidence=True)], ids=repr)
def test_a_row_never_looks_at_its_neighbours(policy):
    automaton = over_tokens(regular("(a|b|é)*(23)?"), PIECES, end=END)
    canvases = []
    for i in range(5):
        canvas = torch.full((7 + 4 * (i % 2),), NETWORK.mask_id)
        canvas[0], canvas[3] = 8, i % 4
        canvases.append(canvas)
    options = {"draw": Draw(0.8), "seed": 5, "constraint": Constraint(automaton)}
    together = sample(NETWORK, canvases, policy, batch=3, **options)
    for i, canvas in enumerate(canvases):
        alone = sample(NETWORK, [canvas], policy, sequences=[i], **options)
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert torch.equal(alone.reveal[0], together.reveal[i])
        assert torch.allclose(alone.log_weight[0], together.log_weight[i], rtol=1e-9, equal_nan=True)


def test_a_match_does_not_depend_on_the_batch():
    canvases, pattern = [torch.full((3 + i % 2,), M) for i in range(6)], "a.*|.b.*"
    world = transformer(3)
    together = sample_matching(world, canvases, constraint(pattern), seed=2, batch=5)
    for i, canvas in enumerate(canvases):
        alone = sample_matching(world, [canvas], constraint(pattern), seed=2, sequences=[i], batch=1)
        assert torch.equal(alone.samples.tokens[0], together.samples.tokens[i])
        assert alone.attempts[0] == together.attempts[i]


@pytest.mark.parametrize(
    ("canvas", "made", "options", "message"),
    [
        (FREE, lambda: constraint("a"), {}, "no text of 4 tokens fits the constraint: it has place for 1$"),
        (FREE, lambda: constraint("(ab){3}|a"), {}, "it has place for 1 or 6$"),
        (GIVEN, lambda: constraint("a*"), {}, "the 1 given tokens among the 4 that the constraint reads leave no text"),
        (FREE, lambda: constraint("a", span=(3, 5)), {}, r"span \(3, 5\) is not in a canvas of 4 tokens"),
        (FREE, lambda: constraint("a", span=(1, 2)), {"end": 2}, "an end token may write into a constraint's span"),
        (FREE, lambda: Constraint(over_tokens(regular("a*"), [b"a"])), {}, "over 1 tokens, the network over 3"),
    ],
)
def test_impossible_constraints(canvas, made, options, message):
    with pytest.raises(ValueError, match=message):
        sample(WORLDS["joint"], torch.tensor([canvas]), constraint=made(), **options)


@pytest.mark.parametrize("canvas", [[V + 1, M], [-1, M], [V + 1, 0], [0.5, float(M)]])
def test_a_canvas_of_no_tokens_is_refused_alike(canvas):
    said = set()
    for write in (sample, sample_matching):
        with pytest.raises(
            ValueError, match=r"not in the network's vocabulary of 3|canvases must be integers"
        ) as error:
            write(WORLDS["joint"], [torch.tensor(canvas)], constraint=constraint())
        said.add(str(error.value))
    assert len(said) == 1


def test_what_an_end_token_closes_must_fit():
    """Such a token is one behind which nothing but itself fits: here token 2."""
    for pattern in ("[ab]*", "a*c*", "(a|b)c*"):
        sample(WORLDS["joint"], torch.tensor([FREE]), LeftToRight(), constraint=constraint(pattern), end=2)
    for pattern in (".*", "a*c?b*", "c?[ab]*", "a*c{1,2}", "[ab]*(cb)?"):
        with pytest.raises(ValueError, match="behind the end token 2 the constraint allows other"):
            sample(WORLDS["joint"], torch.tensor([FREE]), LeftToRight(), constraint=constraint(pattern), end=2)
        matches = sample_matching(WORLDS["joint"], torch.tensor([FREE]), constraint(pattern), LeftToRight(), end=2)
        assert re.fullmatch(pattern, spelt(matches.samples.tokens[0]))


def test_a_network_that_forbids_all_that_fits():
    """A banned token is not allowed by leaving filters out."""
    network = Biased(WORLDS["inconsistent"], {0: -math.inf})
    with pytest.raises(ValueError, match="gives no probability to any text that fits the constraint"):
        sample(network, torch.tensor([FREE]), draw=Draw(top_k=1), constraint=constraint("a.*"))
    for row in sample(network, torch.tensor([FREE] * 20), RandomOrder(2), constraint=constraint(".*b")).tokens:
        assert 0 not in row.tolist()
