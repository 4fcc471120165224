"""A real network, in float64: a sequence is the same whatever runs beside it, however the work is cut up."""

import pytest
import torch

from unmask.likelihood import log_likelihood, ordered_log_likelihood
from unmask.objectives import AnyOrder
from unmask.sampling import Draw, Euler, FixedOrder, LeftToRight, RandomOrder, Tweedie, draw_plan, sample
from unmask.transformer import Transformer, TransformerConfig

VOCAB = 40


def network(causal: bool = False) -> Transformer:
    """Random weights, sharp enough for predictions to depend on the canvas."""
    made = Transformer(TransformerConfig(vocab=VOCAB, layers=2, heads=2, width=32, causal=causal), seed=7)
    with torch.no_grad():
        made.output.weight.mul_(8)
    return made.double().eval().requires_grad_(False)


def canvases(causal: bool) -> list[torch.Tensor]:
    """Ragged, with prompts, suffixes and holes; a causal network's are open at the end only."""
    generator, rows = torch.Generator().manual_seed(0), []
    for i in range(11):
        row = torch.randint(VOCAB, (6 + 5 * (i % 3),), generator=generator)
        row[2 + i % 3 :] = VOCAB
        if not causal and i % 2:
            row[-1] = 3
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    "policy",
    [RandomOrder(), RandomOrder(3), Tweedie(4), Euler(9), LeftToRight(2), FixedOrder((4, 3, 2, -1))],
    ids=repr,
)
@pytest.mark.parametrize(
    "draw", [Draw(), Draw(0.7, top_k=9, top_p=0.9), Draw(0.0)], ids=["plain", "filtered", "greedy"]
)
def test_a_sequence_is_the_same_in_any_batch(policy, draw):
    together = sample(network(), canvases(False), policy, draw=draw, seed=5, batch=4)
    for i, canvas in enumerate(canvases(False)):
        alone = sample(network(), [canvas], policy, draw=draw, seed=5, sequences=[i])
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert torch.equal(alone.reveal[0], together.reveal[i])
        assert torch.allclose(alone.confidence[0], together.confidence[i], rtol=1e-9)
    order = list(range(10, -1, -1))
    backward = sample(network(), [canvases(False)[i] for i in order], policy, draw=draw, seed=5, sequences=order)
    for i, tokens in zip(order, backward.tokens, strict=True):
        assert torch.equal(tokens, together.tokens[i])


def test_a_causal_network_too():
    together = sample(network(True), canvases(True), LeftToRight(), seed=2, batch=3)
    for i, canvas in enumerate(canvases(True)):
        alone = sample(network(True), [canvas], LeftToRight(), seed=2, sequences=[i])
        assert torch.equal(alone.tokens[0], together.tokens[i])


def test_another_number_is_another_text():
    """The tests above can fail."""
    canvas = torch.full((20,), VOCAB)
    samples = sample(network(), [canvas, canvas], seed=5)
    assert not torch.equal(samples.tokens[0], samples.tokens[1])


def test_what_was_drawn_has_the_likelihood_it_was_drawn_with():
    """The product of the confidences of a one-at-a-time sample is its exact likelihood under the same plan."""
    model, rows = network(), torch.full((3, 12), VOCAB)
    samples = sample(model, rows, RandomOrder(), seed=3)
    plan = draw_plan(RandomOrder(), rows == VOCAB, seed=3)
    exact = ordered_log_likelihood(model, torch.stack(samples.tokens), plan)
    drawn = -torch.stack(samples.confidence).log().sum(-1)
    assert torch.allclose(exact.per_sequence, drawn, rtol=1e-9)


def test_likelihood_does_not_depend_on_the_batch():
    x_0 = torch.randint(VOCAB, (5, 16), generator=torch.Generator().manual_seed(1))
    runs = [log_likelihood(network(), x_0, estimator=AnyOrder(0.4), draws=8, batch=batch) for batch in (1, 7, 64)]
    for run in runs[1:]:
        assert torch.allclose(run.per_sequence, runs[0].per_sequence, rtol=1e-10)
        assert run.stderr_mc == pytest.approx(runs[0].stderr_mc, rel=1e-8)
