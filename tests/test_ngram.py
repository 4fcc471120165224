"""Kneser-Ney n-grams: laws, equal to the formula written with dictionaries, whatever the parts they are counted in."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from unmask.evaluate import NGram, ngram

VOCAB = 5


def law(tokens: list[int], order: int) -> NGram:
    return NGram.of(ngram.Counts.of(np.array(tokens, "<u2"), order, VOCAB), order, VOCAB)


def stream(length: int) -> list[int]:
    return (np.random.default_rng(0).integers(0, VOCAB, length) ** 2 % VOCAB).tolist()


def stated(tokens: list[int], order: int, context: tuple[int, ...], last: int) -> float:
    """p(last | context) by Chen and Goodman's formula, of a context that may be shorter than order - 1."""
    grams = Counter(zip(*(tokens[i:] for i in range(order)), strict=False))
    for _ in range(order - 1 - len(context)):  # of lower orders, the different tokens before count
        grams = Counter(gram[1:] for gram in grams)
    lower = stated(tokens, order, context[1:], last) if context else 1 / VOCAB
    followers = {gram[-1]: count for gram, count in grams.items() if gram[:-1] == context}
    if not followers:
        return lower
    n1, n2, n3, n4 = (max(1, sum(count == i for count in grams.values())) for i in range(1, 5))
    y = n1 / (n1 + 2 * n2)
    raw = {1: 1 - 2 * y * n2 / n1, 2: 2 - 3 * y * n3 / n2, 3: 3 - 4 * y * n4 / n3}
    discount = {i: min(max(0.05 * i, value), i - 1e-9) for i, value in raw.items()} | {0: 0.0}
    taken = sum(discount[min(count, 3)] for count in followers.values())
    count = followers.get(last, 0)
    return (max(0.0, count - discount[min(count, 3)]) + taken * lower) / sum(followers.values())


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_every_context_has_a_law(order):
    """Seen, unseen, and cut short: probabilities of all tokens sum to one, none is zero."""
    contexts = np.arange((VOCAB + 1) ** (order - 1))
    grams = (contexts[:, None] * (VOCAB + 1) + np.arange(VOCAB)).ravel()
    p = law(stream(60), order).probability(grams).reshape(-1, VOCAB)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-12)
    assert p.min() > 0


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("length", [7, 40, 400])
def test_windows_are_scored_by_the_formula(order, length):
    """The first tokens of a window, which have less before them, by the lower orders."""
    tokens, rng = stream(length), np.random.default_rng(1)
    x_0 = torch.from_numpy(rng.integers(0, VOCAB, (6, 9)))
    maskable = torch.from_numpy(rng.random((6, 9)) < 0.7)
    expected = [
        -sum(
            math.log(stated(tokens, order, tuple(row[max(0, i - order + 1) : i]), row[i]))
            for i, scored in enumerate(kept)
            if scored
        )
        for row, kept in zip(x_0.tolist(), maskable.tolist(), strict=True)
    ]
    assert law(tokens, order).nats(x_0, maskable) == pytest.approx(expected)


def test_parts_are_counted_as_the_whole(monkeypatch: pytest.MonkeyPatch):
    whole = ngram.Counts.of(np.array(stream(400), "<u2"), 3, VOCAB)
    assert whole.counts.sum() == 398
    monkeypatch.setattr(ngram, "PART", 7)
    for one, other in zip(whole, ngram.Counts.of(np.array(stream(400), "<u2"), 3, VOCAB), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_short_text_and_a_large_vocabulary_have_fewer_laws():
    assert [name for name, _ in ngram.laws(np.array([1, 2], "<u2"), VOCAB)] == ["unigram", "bigram"]
    assert [name for name, _ in ngram.laws(np.array([1, 2, 3], "<u4"), 1 << 22)] == ["unigram", "bigram"]
