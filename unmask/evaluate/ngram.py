"""Unigram and bigram laws: the yardsticks that any language model must beat, exact and cheap."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Unigram:
    """p(b) = (count(b) + 1) / (tokens + V): each token by itself, add-one smoothed."""

    p: Float[np.ndarray, " V"]

    @classmethod
    def fit(cls, tokens: Int[np.ndarray, " T"], vocab: int) -> "Unigram":
        """Count a stream of tokens."""
        counts = np.bincount(tokens, minlength=vocab) + 1.0
        return cls(counts / counts.sum())

    def nats(self, x_0: Int[Tensor, "S L"], maskable: Bool[Tensor, "S L"]) -> Float[np.ndarray, " S"]:
        """-log p of each sequence's maskable tokens."""
        return -(np.log(self.p)[x_0.numpy()] * maskable.numpy()).sum(-1)


@dataclass(frozen=True)
class Bigram:
    """p(b | a) = (count(ab) + T(a) p(b)) / (count(a) + T(a)), T(a) the distinct followers of a.

    The interpolation of Witten and Bell (1991), which has no constant to tune.
    """

    unigram: Unigram
    keys: Int[np.ndarray, " K"]
    """Sorted a V + b of the pairs seen."""
    counts: Int[np.ndarray, " K"]
    total: Int[np.ndarray, " V"]
    followers: Int[np.ndarray, " V"]

    @classmethod
    def fit(cls, tokens: Int[np.ndarray, " T"], vocab: int) -> "Bigram":
        """Count the pairs of a stream of tokens."""
        pairs = np.asarray(tokens[:-1], dtype=np.int64) * vocab + tokens[1:]
        keys, counts = np.unique(pairs, return_counts=True)
        total = np.bincount(keys // vocab, weights=counts, minlength=vocab).astype(np.int64)
        return cls(Unigram.fit(tokens, vocab), keys, counts, total, np.bincount(keys // vocab, minlength=vocab))

    def nats(self, x_0: Int[Tensor, "S L"], maskable: Bool[Tensor, "S L"]) -> Float[np.ndarray, " S"]:
        """-log p of each sequence's maskable tokens, each given the token left of it (position 0 must be given)."""
        tokens = x_0.numpy()
        before, after = tokens[:, :-1], tokens[:, 1:]
        key = before * len(self.unigram.p) + after
        place = np.searchsorted(self.keys, key).clip(max=len(self.keys) - 1)
        count = np.where(self.keys[place] == key, self.counts[place], 0)
        weight = np.maximum(self.followers[before], 1)  # a token never seen before another: the unigram law
        p = (count + weight * self.unigram.p[after]) / (self.total[before] + weight)
        return -(np.log(p) * maskable.numpy()[:, 1:]).sum(-1)
