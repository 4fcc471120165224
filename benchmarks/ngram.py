"""An interpolated, modified Kneser-Ney n-gram of a prepared folder: the model that a small network has to beat.

    python benchmarks/ngram.py --data data/books [--order 3]

Trained on all of the train split, measured on the validation split; the error bar is over documents. Discounts are
those of Chen and Goodman (1999), three for each order from the counts of counts; the lowest order falls back on the
uniform law. A document starts from n - 1 begin tokens, and its end token is predicted like any other, so that nats are
those of the same tokens that a model of the folder is measured on.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from unmask.data import Split, Tokenizer, load_split


class Order(NamedTuple):
    """Counts of one order. A context is n - 1 tokens as one number, an n-gram its context x base + its last token."""

    keys: Int64[np.ndarray, " N"]
    counts: Int64[np.ndarray, " N"]
    contexts: Int64[np.ndarray, " C"]
    total: Int64[np.ndarray, " C"]
    kept: Float64[np.ndarray, " C"]
    """Share of a context's probability that its discounts leave to the order below."""
    discounts: Float64[np.ndarray, " 4"]


@dataclass(frozen=True)
class NGram:
    """p(token | context) by modified Kneser-Ney, lowest order first."""

    orders: tuple[Order, ...]
    vocab: int

    @staticmethod
    def of(grams: Int64[np.ndarray, " T"], order: int, vocab: int) -> "NGram":
        """From the n-gram that ends at each token of a text, as `grams_of` has them."""
        base = vocab + 1
        keys, counts = np.unique(grams, return_counts=True)
        made = []
        for n in range(order, 0, -1):
            made.append(_order(keys, counts, base))
            # of lower orders, it is the different tokens before an n-gram that count; begin is one like the others
            keys, counts = np.unique(keys % base ** (n - 1), return_counts=True)
        return NGram(tuple(reversed(made)), vocab)

    def probability(self, grams: Int64[np.ndarray, " T"]) -> Float64[np.ndarray, " T"]:
        """Of the last token of each n-gram given the others."""
        base = self.vocab + 1
        p = np.full(len(grams), 1 / self.vocab)
        for n, order in enumerate(self.orders, 1):
            keys = grams % base**n
            count, at = _looked_up(order.keys, keys, order.counts), _found(order.contexts, keys // base)
            seen, at = at >= 0, np.maximum(at, 0)
            discounted = np.maximum(count - order.discounts[np.minimum(count, 3)], 0.0)
            p = np.where(seen, discounted / order.total[at] + order.kept[at] * p, p)
        return p


def _order(keys: Int64[np.ndarray, " N"], counts: Int64[np.ndarray, " N"], base: int) -> Order:
    n1, n2, n3, n4 = (max(1, int((counts == i).sum())) for i in range(1, 5))
    y = n1 / (n1 + 2 * n2)
    raw = (0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    discounts = np.array([min(max(0.05 * i, value), i - 1e-9) if i else 0.0 for i, value in enumerate(raw)])
    contexts, start = np.unique(keys // base, return_index=True)
    total = np.add.reduceat(counts, start)
    taken = np.add.reduceat(discounts[np.minimum(counts, 3)], start)
    return Order(keys, counts, contexts, total, taken / total, discounts)


def _found(among: Int64[np.ndarray, " N"], keys: Int64[np.ndarray, " T"]) -> Int64[np.ndarray, " T"]:
    """Where each key is in a sorted array; -1 where it is not."""
    at = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    return np.where(among[at] == keys, at, -1)


def _looked_up(
    among: Int64[np.ndarray, " N"], keys: Int64[np.ndarray, " T"], values: Int64[np.ndarray, " N"]
) -> Int64[np.ndarray, " T"]:
    at = _found(among, keys)
    return np.where(at >= 0, values[at], 0)


def grams_of(split: Split, order: int, vocab: int) -> Int64[np.ndarray, " T"]:
    """Every token of every document with the `order` - 1 before it, `vocab` (for begin) before the first: a number in
    base vocab + 1.
    """
    grams = np.empty(len(split.tokens), dtype=np.int64)
    for start, length in zip(split.starts, split.lengths, strict=True):
        tokens = np.asarray(split.tokens[start : start + length], dtype=np.int64)
        padded = np.concatenate([np.full(order - 1, vocab), tokens])
        windows = np.lib.stride_tricks.sliding_window_view(padded, order)
        grams[start : start + length] = windows @ (vocab + 1) ** np.arange(order - 1, -1, -1)
    return grams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--order", type=int, default=3)
    options = parser.parse_args()
    vocab = Tokenizer.load(options.data).vocab
    if (vocab + 1) ** options.order > 2**63:
        parser.error(f"{options.order} tokens of {vocab + 1} do not fit in 64 bits: take a lower --order")
    model = NGram.of(grams_of(load_split(options.data, "train"), options.order, vocab), options.order, vocab)
    held_out = load_split(options.data, "validation")
    nats = -np.log(model.probability(grams_of(held_out, options.order, vocab)))
    each = np.add.reduceat(nats, held_out.starts)
    for name, size in (("token", held_out.lengths), ("byte", held_out.bytes)):
        rate = each.sum() / size.sum()
        spread = ((each - rate * size) ** 2).sum() * len(each) / max(1, len(each) - 1)
        print(f"order {options.order}: {rate:.4f} +- {math.sqrt(spread) / size.sum():.4f} nats a {name}")
    print(f"{len(nats):,} tokens in {len(each)} documents, {sum(len(o.keys) for o in model.orders):,} n-grams")


if __name__ == "__main__":
    main()
