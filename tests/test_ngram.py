"""The Kneser-Ney n-gram of benchmarks/: a law, and the formula worked out on a text of a few tokens."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from unmask.data import Split

spec = importlib.util.spec_from_file_location("ngram", Path(__file__).parents[1] / "benchmarks" / "ngram.py")
assert spec is not None
assert spec.loader is not None
ngram = importlib.util.module_from_spec(spec)
sys.modules["ngram"] = ngram
spec.loader.exec_module(ngram)

VOCAB = 5


def split(*documents: list[int]) -> Split:
    lengths = np.array([len(each) for each in documents])
    starts = np.cumsum(lengths) - lengths
    dates = np.full(len(documents), "NaT", "datetime64[D]")
    return Split(np.concatenate(documents).astype("<u2"), [""] * len(documents), dates, starts, lengths, lengths)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_every_context_has_a_law(order):
    """Seen, unseen and of begin tokens alone: probabilities of all tokens sum to one, none is zero."""
    tokens = np.random.default_rng(0).integers(0, VOCAB, 400) ** 2 % VOCAB
    model = ngram.NGram.of(ngram.grams_of(split([*tokens[:200]], [*tokens[200:]]), order, VOCAB), order, VOCAB)
    contexts = np.arange((VOCAB + 1) ** (order - 1))
    p = model.probability((contexts[:, None] * (VOCAB + 1) + np.arange(VOCAB)).ravel()).reshape(-1, VOCAB)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-12)
    assert p.min() > 0


def test_the_bigram_is_the_formula():
    """0 1 0 2 0 1, one document: bigrams (b0) 1, (01) 2, (10) 1, (02) 1, (20) 1, by hand."""
    model = ngram.NGram.of(ngram.grams_of(split([0, 1, 0, 2, 0, 1]), 2, VOCAB), 2, VOCAB)
    # order 2: n1 = 4, n2 = 1, n3 = n4 = 0, taken as 1: Y = 4 / 6, D1 = 1 - 2Y/4, D2 = 2 - 3Y
    d1, d2 = 1 - 2 * (4 / 6) / 4, max(0.1, 2 - 3 * (4 / 6))
    # order 1 counts the kinds before a token: 0 has begin, 1, 2; 1 has 0; 2 has 0. n1 = 2, n2 = 1 (none), n3 = 1
    y = 2 / (2 + 2)
    e1, e3 = 1 - 2 * y / 2, max(0.15, 3 - 4 * y)
    left = (e3 + 2 * e1) / 5
    one = (1 - e1) / 5 + left / VOCAB
    assert model.probability(np.array([0 * 6 + 1]))[0] == pytest.approx((2 - d2) / 3 + (d1 + d2) / 3 * one)
    # after 3, which was never seen, the lower order alone
    assert model.probability(np.array([3 * 6 + 1]))[0] == pytest.approx(one)


def test_documents_begin_anew():
    """The first tokens of a document have begin before them, never the end of the document before."""
    grams = ngram.grams_of(split([1, 2], [3]), 3, VOCAB)
    begin = VOCAB
    assert grams.tolist() == [(begin * 6 + begin) * 6 + 1, (begin * 6 + 1) * 6 + 2, (begin * 6 + begin) * 6 + 3]
