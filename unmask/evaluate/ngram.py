"""Interpolated, modified Kneser-Ney n-grams: the yardsticks that a language model has to beat, exact and cheap.

Discounts are those of Chen and Goodman (1999), three for each order, from the counts of counts; the lowest order falls
back on the uniform law.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64
from torch import Tensor

PART = 1 << 24  # tokens that are counted at once
MOST = 1 << 27  # tokens that are counted at all, the first ones: at 50,257 kinds of tokens in about 4 GB


class Counts(NamedTuple):
    """n-grams, each as one number in base vocab + 1 with its last token in the lowest digit, and how often each was."""

    keys: Int64[np.ndarray, " N"]
    counts: Int64[np.ndarray, " N"]

    @staticmethod
    def summed(keys: Int64[np.ndarray, " M"], counts: Int64[np.ndarray, " M"]) -> "Counts":
        """Of keys that may be there several times."""
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        return Counts(keys[starts], np.add.reduceat(counts, starts) if len(keys) else counts)

    @staticmethod
    def of(tokens: Int[np.ndarray, " T"], order: int, vocab: int) -> "Counts":
        """Of a stream of tokens, whose `order` - 1 first ones end none."""
        kinds = (vocab + 1) ** order
        parts = [
            _counted(_grams(tokens[start : start + PART + order - 1], order, vocab), kinds)
            for start in range(0, len(tokens) - order + 1, PART)
        ]
        return Counts.summed(*(np.concatenate([np.empty(0, np.int64), *each]) for each in zip(*parts, strict=True)))


class Order(NamedTuple):
    """What one order of a law needs. A context is an n-gram without its last token."""

    grams: Counts
    contexts: Int64[np.ndarray, " C"]
    total: Int64[np.ndarray, " C"]
    kept: Float64[np.ndarray, " C"]
    """Share of a context's probability that its discounts leave to the order below."""
    discounts: Float64[np.ndarray, " 4"]


@dataclass(frozen=True)
class NGram:
    """p(token | up to n - 1 tokens before it), lowest order first."""

    orders: tuple[Order, ...]
    vocab: int

    @staticmethod
    def of(grams: Counts, order: int, vocab: int) -> "NGram":
        """From the counts of `order`-grams."""
        base, made = vocab + 1, []
        for n in range(order, 0, -1):
            made.append(_order(grams, base))
            # of lower orders, it is the different tokens before an n-gram that count
            grams = Counts(*np.unique(grams.keys % base ** (n - 1), return_counts=True))
        return NGram(tuple(reversed(made)), vocab)

    def probability(self, grams: Int64[np.ndarray, " T"]) -> Float64[np.ndarray, " T"]:
        """Of the last token of each n-gram given those before it, of which a digit `vocab` stands for none."""
        base = self.vocab + 1
        p = np.full(len(grams), 1 / self.vocab)
        for n, order in enumerate(self.orders, 1):
            keys = grams % base**n
            at, context = _found(order.grams.keys, keys), _found(order.contexts, keys // base)
            count = np.where(at >= 0, order.grams.counts[at], 0)
            discounted = np.maximum(count - order.discounts[np.minimum(count, 3)], 0.0)
            p = np.where(context >= 0, discounted / order.total[context] + order.kept[context] * p, p)
        return p

    def nats(self, x_0: Int[Tensor, "S L"], maskable: Bool[Tensor, "S L"]) -> Float64[np.ndarray, " S"]:
        """-log p of each sequence's maskable tokens, each given those of the sequence that stand before it."""
        before = len(self.orders) - 1
        rows = np.pad(x_0.numpy().astype(np.int64), ((0, 0), (before, 0)), constant_values=self.vocab)
        grams = np.stack([_grams(row, before + 1, self.vocab) for row in rows])
        scored = maskable.numpy()
        nats = np.zeros(scored.shape)
        nats[scored] = -np.log(self.probability(grams[scored]))
        return nats.sum(-1)


def laws(tokens: Int[np.ndarray, " T"], vocab: int) -> Iterator[tuple[str, NGram]]:
    """The unigram, bigram and trigram law of a stream of tokens, by name.

    Orders whose n-grams are no 64-bit number, or longer than the text, are left out.
    """
    for order, name in enumerate(("unigram", "bigram", "trigram"), 1):
        if order <= len(tokens) and (vocab + 1) ** order < 1 << 63:
            yield name, NGram.of(Counts.of(tokens, order, vocab), order, vocab)


def _grams(tokens: Int[np.ndarray, " T"], order: int, vocab: int) -> Int64[np.ndarray, " G"]:
    """The n-gram that ends at each token but the first order - 1."""
    count = len(tokens) - order + 1
    grams = np.zeros(count, np.int64)
    for i in range(order):
        grams = grams * (vocab + 1) + tokens[i : i + count]
    return grams


def _counted(grams: Int64[np.ndarray, " G"], kinds: int) -> tuple[np.ndarray, np.ndarray]:
    """The different ones, sorted, and how often each is there: by a table where that is shorter than the text."""
    if kinds > len(grams):
        return np.unique(grams, return_counts=True)
    counts = np.bincount(grams, minlength=kinds)
    keys = np.flatnonzero(counts)
    return keys, counts[keys]


def _order(grams: Counts, base: int) -> Order:
    n1, n2, n3, n4 = (max(1, int((grams.counts == i).sum())) for i in range(1, 5))
    y = n1 / (n1 + 2 * n2)
    raw = (0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    discounts = np.array([min(max(0.05 * i, value), i - 1e-9) if i else 0.0 for i, value in enumerate(raw)])
    contexts, starts = np.unique(grams.keys // base, return_index=True)
    total = np.add.reduceat(grams.counts, starts)
    taken = np.add.reduceat(discounts[np.minimum(grams.counts, 3)], starts)
    return Order(grams, contexts, total, taken / total, discounts)


def _found(among: Int64[np.ndarray, " N"], keys: Int64[np.ndarray, " T"]) -> Int64[np.ndarray, " T"]:
    """Where each key is in a sorted array; -1 where it is not."""
    at = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    return np.where(among[at] == keys, at, -1)
