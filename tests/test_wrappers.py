"""Guidance and bias change a network's law as stated, whatever asks the network and in whatever chunks."""

import copy
import math
import pickle

import pytest
import torch
from enumeration import CausalTable, Score, Spy, check_law, costs, every, in_order, law, number, random_orders
from torch import nn

import unmask.network
from unmask.checkpoint import Model
from unmask.conditioned import Conditioned, ConditionedConfig
from unmask.data import byte_tokenizer
from unmask.likelihood import log_likelihood, ordered_log_likelihood
from unmask.objectives import AnyOrder, LambdaDCE, NextToken, TimeDCE, TimeDSE
from unmask.sampling import Confidence, LeftToRight, RandomOrder, draw_plan, sample
from unmask.transformer import Transformer, TransformerConfig
from unmask.world import InconsistentTable, JointTable
from unmask.wrappers import Apart, Biased, Counted, Guided, Plain

WORLDS = [JointTable(3, 3), InconsistentTable(3, 3)]
COUNT, VOCAB = 20_000, 5
CANVAS = torch.tensor([1, 3, 3])
CONDITION = torch.tensor([True, False, False])


def guided_table(world, weight: float, absent: int = 3) -> torch.Tensor:
    """-log q~ of each canvas and position, by the definition: both laws to the powers 1 + w and -w, renormalised."""
    table, canvases = costs(world, 3), every(4, 3)
    dropped = torch.where(CONDITION, absent, canvases)
    p, q = (-table).exp(), (-table[number(dropped, 4)]).exp()
    weighed = p ** (1 + weight) * q**-weight
    return -(weighed / weighed.sum(-1, keepdim=True)).log()


@pytest.mark.parametrize("world", WORLDS, ids=["joint", "inconsistent"])
@pytest.mark.parametrize("weight", [0.8, 3.0, -1.0])
def test_guided_samples_follow_the_guided_law(world, weight):
    network = Guided(world, CONDITION.expand(COUNT, 3), weight)
    samples = sample(network, CANVAS.expand(COUNT, 3), RandomOrder(), batch=5000)
    truth = law(random_orders([1, 2]), guided_table(world, weight), CANVAS)
    check_law(samples.tokens, truth, 3)
    assert samples.nfe.tolist() == [4] * COUNT  # two tokens, two rows each
    if weight > 0:
        with pytest.raises(AssertionError):
            check_law(samples.tokens, law(random_orders([1, 2]), costs(world, 3), CANVAS), 3)


def test_a_tokens_own_condition_is_dropped_and_what_was_written_is_kept():
    """Rows of one call have conditions of their own; the dropped half keeps tokens written since."""
    spy = Spy(InconsistentTable(3, 3))
    conditions = [torch.tensor([True, False, False]), torch.tensor([False, False, True])]
    sample(Guided(spy, conditions, 1.0), [torch.tensor([1, 3, 3]), torch.tensor([3, 3, 2])], LeftToRight())
    for tokens, _, rows in spy.asked:
        given, dropped = tokens.chunk(2)
        assert rows.tolist() == rows.chunk(2)[0].tolist() * 2
        for row, kept, without in zip(rows.tolist(), given, dropped, strict=False):
            assert bool((without[conditions[row]] == 3).all())
            assert torch.equal(kept[~conditions[row]], without[~conditions[row]])
    assert bool((spy.asked[-1][0] < 3).any())


def test_weight_zero_changes_nothing_and_another_token_may_stand_for_absence():
    world = InconsistentTable(3, 3)
    tokens, at = CANVAS[None], torch.tensor([1, 2])
    plain = world(tokens, at).log_softmax(-1)
    assert torch.allclose(Guided(world, CONDITION[None], 0.0)(tokens, at), plain, atol=1e-12)
    shown = Guided(world, CONDITION[None], 2.0, absent=0)(tokens, at)
    assert torch.allclose(-shown, guided_table(world, 2.0, absent=0)[int(number(tokens, 4)), 1:], atol=1e-12)


def test_chunks_keep_the_two_predictions_of_a_position_together(monkeypatch):
    network = Transformer(TransformerConfig(vocab=7, layers=1, heads=2, width=8), seed=3).double().eval()
    tokens, at = torch.full((3, 5), 7), torch.arange(15)  # 30 predictions, 60 where guidance is guided
    tokens[:, 0] = torch.arange(3)
    condition = torch.zeros(3, 5, dtype=torch.bool)
    condition[:, 0] = True
    guided = Guided(network, condition, 1.5)
    twice = Guided(guided, condition.roll(1, 1), -0.5)
    whole = [each(tokens, at, then=lambda logits, which: logits) for each in (guided, twice)]
    monkeypatch.setattr(unmask.network, "CHUNK", 9 * 7)
    for each, expected in zip((guided, twice), whole, strict=True):
        assert torch.allclose(each(tokens, at, then=lambda logits, which: logits), expected, atol=1e-12)


def test_an_impossible_token_stays_impossible():
    world = Biased(InconsistentTable(3, 3), {2: -math.inf})
    samples = sample(Guided(world, CONDITION.expand(500, 3), 4.0), CANVAS.expand(500, 3))
    assert all(bool((row != 2).all()) for row in samples.tokens)


def test_guidance_that_cannot_be_is_refused():
    for network, weight, match in (
        (CausalTable(), 1.0, "causal"),
        (Score(InconsistentTable(3, 3)), 1.0, "normalised"),
        (JointTable(3, 3), -2.0, "weight"),
    ):
        with pytest.raises(ValueError, match=match):
            Guided(network, CONDITION[None], weight)


def test_a_condition_that_is_not_one_row_a_canvas_is_refused():
    """Planted faults: one row alone would be read as a flag a canvas, and broadcast."""
    for condition, match in (
        (CONDITION, r"condition 0 is bool \[\]: give each row of the canvases one, bool \[3\]"),
        (CONDITION[None], "1 conditions and none for row 1"),
        (torch.zeros(2, 5, dtype=torch.bool), r"condition 0 is bool \[5\]"),
        (CONDITION.long().expand(2, 3), r"condition 0 is int64 \[3\]"),
    ):
        with pytest.raises(ValueError, match=match):
            sample(Guided(JointTable(3, 3), condition, 1.0), CANVAS.expand(2, 3))


def test_guidance_of_canvases_is_by_what_they_give_behind_the_begin_token():
    canvases = [torch.tensor([0, 1, 3, 2, 3]), torch.tensor([0, 3])]
    for made in (Guided.of(JointTable(3, 3), canvases, 1.0), Guided.of(JointTable(3, 3), canvases[0][None], 1.0)):
        assert made.condition[0].tolist() == [False, True, False, True, False]
    assert Guided.of(CausalTable(), canvases, 1.0, absent=0).condition[1].tolist() == [False, False]


@pytest.mark.parametrize(
    ("bias", "factor"),
    [({0: 1.3, 2: -0.4}, [math.exp(1.3), 1, math.exp(-0.4)]), ({1: -math.inf}, [1, 0, 1]), ({0: math.inf}, [1, 0, 0])],
    ids=["bias", "ban", "only"],
)
def test_biased_samples_follow_the_biased_law(bias, factor):
    world = InconsistentTable(3, 3)
    weighed = (-costs(world, 3)).exp() * torch.tensor(factor, dtype=torch.float64)
    table = -(weighed / weighed.sum(-1, keepdim=True)).log()
    table = table.nan_to_num(posinf=1e4)
    samples = sample(Biased(world, bias), CANVAS.expand(COUNT, 3), batch=5000)
    check_law(samples.tokens, law(random_orders([1, 2]), table, CANVAS), 3)


def test_a_policy_sees_the_biased_predictions_and_likelihood_scores_them():
    world = Biased(InconsistentTable(3, 3), {0: 2.0})
    samples = sample(world, CANVAS.expand(3000, 3), Confidence())
    x = torch.stack(samples.tokens)
    plan = draw_plan(RandomOrder(), (CANVAS == 3).expand(8, 3))
    estimate = ordered_log_likelihood(world, x[:8], plan)
    for i in range(8):
        order = [[int((plan[i] == s).nonzero())] for s in range(2)]
        assert float(in_order(costs(world, 3), x[i : i + 1], order)) == pytest.approx(float(estimate.per_sequence[i]))


def test_bias_that_cannot_be_is_refused():
    for bias, match in (
        ({3: 1.0}, "vocabulary"),
        ({0: math.nan}, "number"),
        ({0: 1e39}, "bias 1e\\+39 must be a number of nats up to 3.4e\\+38"),
        (dict.fromkeys(range(3), -math.inf), "every"),
    ):
        with pytest.raises(ValueError, match=match):
            Biased(JointTable(3, 3), bias)
    only = Biased(Biased(JointTable(3, 3), {0: -math.inf}), {0: math.inf})
    with pytest.raises(ValueError, match="a bias or guidance leaves no token"):
        sample(only, torch.tensor([[3, 3, 3]]))


# --- documents kept apart ---------------------------------------------------------------------------------------------

SEGMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3]])
EVERY_AT = torch.arange(1, 12)


def small(causal: bool, shifted: bool = False) -> Transformer:
    config = TransformerConfig(vocab=7, layers=3, heads=2, width=16, causal=causal, shifted=shifted)
    return Transformer(config, seed=3).double().eval()


def some_tokens(seed: int, causal: bool) -> torch.Tensor:
    return torch.randint(7 if causal else 8, (1, 12), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("causal", [False, True])
def test_a_documents_predictions_do_not_depend_on_its_neighbours(causal):
    network, tokens = small(causal), some_tokens(0, causal)
    apart = Apart(network, SEGMENTS)
    before, mixed = apart(tokens, EVERY_AT), network(tokens, EVERY_AT)
    for document in range(4):
        mine = document == SEGMENTS
        others = torch.where(mine, tokens, some_tokens(1 + document, causal))
        if causal:  # the end token that stands before a document is where its first token is predicted from
            first = int(mine[0].int().argmax())
            others[0, max(first - 1, 0)] = tokens[0, max(first - 1, 0)]
        which = mine[0, 1:]
        assert torch.equal(apart(others, EVERY_AT)[which], before[which])
        if not causal or document:  # without the segments they would
            assert not torch.allclose(network(others, EVERY_AT)[which], mixed[which])


def test_a_document_kept_apart_is_predicted_as_if_it_were_alone():
    """Rotary attention sees distances only, so a place further right changes nothing but the rounding."""
    tokens, network = some_tokens(0, False), small(False)
    together = Apart(network, SEGMENTS)(tokens, EVERY_AT)
    assert torch.allclose(together[6:10], network(tokens[:, 7:11], torch.arange(4)), atol=1e-5)
    tokens, network = some_tokens(0, True), small(True)
    together = Apart(network, SEGMENTS)(tokens, EVERY_AT)
    assert torch.allclose(together[6:10], network(tokens[:, 6:11], torch.arange(1, 5)), atol=1e-5)


def test_a_shifted_network_keeps_apart_what_has_begin_tokens_of_its_own():
    """Its predictions are those of each example alone; a segment's first position, read in its neighbour, is none."""
    network, tokens = small(False, shifted=True), some_tokens(0, False)
    apart = Apart(network, torch.arange(12)[None] // 4)
    assert torch.allclose(apart(tokens, torch.arange(5, 8)), network(tokens[:, 4:8], torch.arange(1, 4)), atol=1e-12)
    with pytest.raises(ValueError, match="begin segments with a given token"):
        apart(tokens, torch.arange(4, 8))


@pytest.mark.parametrize("causal", [False, True])
def test_one_segment_is_the_plain_network_and_rows_find_theirs(causal):
    network, tokens = small(causal), some_tokens(0, causal).expand(2, -1)
    at = torch.cat([EVERY_AT, EVERY_AT + 12])
    plain = network(tokens, at)
    assert torch.equal(plain, network(tokens, at, segments=None))
    assert torch.allclose(Apart(network, torch.zeros(2, 12, dtype=torch.long))(tokens, at), plain, atol=1e-12)
    both = Apart(network, torch.cat([SEGMENTS, torch.zeros_like(SEGMENTS)]))
    straight, swapped = both(tokens, at), both(tokens, at, rows=torch.tensor([1, 0]))
    assert torch.allclose(swapped, torch.cat([straight[11:], straight[:11]]), atol=1e-12)
    assert not torch.allclose(straight[11:], straight[:11])


def test_a_counted_network_is_copied_and_pickled():
    counted = Counted(small(False))
    counted(some_tokens(0, False), EVERY_AT)
    for copied in (copy.deepcopy(counted), pickle.loads(pickle.dumps(counted))):
        assert (copied.ran, copied.vocab) == (1, 7)


def test_what_a_wrapper_cannot_be_around_or_be_told_is_refused():
    conditioned = Conditioned(ConditionedConfig(7, 1, 2, 16), 0)
    for other in (conditioned, InconsistentTable(3, 3), Plain(torch.nn.Identity(), 3, 3)):
        with pytest.raises(ValueError, match="Apart is for a Transformer"):
            Apart(other, SEGMENTS)
    with pytest.raises(ValueError, match=r"segments \(0, 12\) for tokens"):
        Apart(small(False), SEGMENTS[:0])(some_tokens(0, False), EVERY_AT)
    for causal, absent in ((False, 8), (False, -1), (True, 7)):
        with pytest.raises(ValueError, match=f"absent {absent} is no token"):
            Guided.of(small(causal), some_tokens(0, True), 1.0, absent)
    Guided.of(small(False), some_tokens(0, True), 1.0, absent=7)


def test_a_model_is_kept_apart_as_its_network_is_and_other_wrappers_go_around():
    network, tokens = small(False), some_tokens(0, False)
    model, expected = Model(network, byte_tokenizer(), {}), Apart(network, SEGMENTS)(tokens, EVERY_AT)
    apart = Apart(model, SEGMENTS)
    assert torch.equal(apart(tokens, EVERY_AT), expected)
    condition = torch.arange(12)[None] < 3
    for wrap in (lambda inner: Biased(inner, {2: -1.0}), lambda inner: Guided(inner, condition, 1.5)):
        assert torch.equal(wrap(apart)(tokens, EVERY_AT), wrap(Apart(network, SEGMENTS))(tokens, EVERY_AT))
        with pytest.raises(ValueError, match=r"others around it: (Biased|Guided)\(Apart\(model, …\), …\)"):
            Apart(wrap(model), SEGMENTS)


class Own(nn.Module):
    """Logits everywhere, of `width` tokens; causal by a mask, dropout while it is trained."""

    def __init__(self, width: int = VOCAB, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.causal = nn.Embedding(VOCAB + 1, 8), causal
        self.dropout, self.output = nn.Dropout(dropout), nn.Linear(8, width)
        self.double()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states = self.embedding(tokens)
        summed = states.cumsum(1) if self.causal else states.sum(1, keepdim=True) + states
        return self.output(self.dropout(summed))


def plain(**kind) -> Plain:
    return Plain(Own(**kind), VOCAB, VOCAB, causal=kind.get("causal", False))


def test_a_module_is_trained_sampled_and_scored_as_a_network():
    """The four losses have one mean and a gradient; a causal one's law is the chain rule's."""
    network, x_0 = plain(), torch.randint(VOCAB, (3, 4), generator=torch.Generator().manual_seed(1))
    exact = log_likelihood(network, x_0, draws=30)
    for objective in (AnyOrder(), LambdaDCE(), TimeDCE(), TimeDSE()):
        found = log_likelihood(network, x_0, estimator=objective, draws=2000)
        assert abs(found.nats - exact.nats) < 5 * found.stderr_mc + 1e-9
        loss = objective(network, x_0, torch.ones_like(x_0).bool(), torch.full((3,), 0.5), torch.Generator())
        (gradient,) = torch.autograd.grad(loss.sum(), network.network.output.bias)
        assert bool((gradient != 0).any())
    one = sample(network, torch.full((2, 4), VOCAB), RandomOrder())
    assert torch.stack(one.tokens).max() < VOCAB
    arm = plain(causal=True)
    logits = arm.network(x_0)[:, :-1].log_softmax(-1)
    chain = log_likelihood(arm, x_0, torch.tensor([False, True, True, True]).expand(3, 4), estimator=NextToken())
    assert math.isclose(chain.nats, -float(logits.detach().gather(-1, x_0[:, 1:, None]).sum()), rel_tol=1e-12)
    with pytest.raises(ValueError, match="predicts nothing at position 0"):
        log_likelihood(arm, x_0)


def test_logits_of_the_mask_too_are_refused():
    network, x_0 = plain(width=VOCAB + 1), torch.zeros(2, 4, dtype=torch.long)
    said = f"logits of {VOCAB + 1} tokens from a network of vocab {VOCAB}: leave out the mask's"
    for ask in (
        lambda: sample(network, torch.full((2, 4), VOCAB), RandomOrder()),
        lambda: log_likelihood(network, x_0, draws=4),
        lambda: AnyOrder()(network, x_0, x_0 == 0, torch.rand(2), torch.Generator()),
    ):
        with pytest.raises(ValueError, match=said):
            ask()


def test_a_network_in_training_is_at_rest_while_it_is_asked():
    """Dropout is off, and on again where it was."""
    network, x_0 = plain(dropout=0.5), torch.zeros(2, 4, dtype=torch.long)
    network.network.dropout.eval()
    rested, canvas = log_likelihood(network, x_0, draws=4).nats, torch.full((2, 4), VOCAB)
    written = sample(network, canvas, Confidence(), seed=3).tokens
    network.network.train()
    network.network.output.eval()
    for wrapped in (network, Counted(network), Guided.of(network, canvas, 0.0)):
        assert log_likelihood(wrapped, x_0, draws=4).nats == pytest.approx(rested, rel=1e-12)
    assert all(map(torch.equal, sample(network, canvas, Confidence(), seed=3).tokens, written))
    assert [each.training for each in network.network.modules()] == [True, True, True, False]
