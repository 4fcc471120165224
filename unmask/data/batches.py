"""Batches that need no state: packed blocks of a split, which of them a step trains on, and how long they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unmask.data.splits import Split
from unmask.draws import LENGTH, keyed_uniforms

WEYL = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: keeps the keys of the rounds apart (SplitMix64)
# Rounds until all orders of n items are equally likely. Over 300,000 keys, chi-square lies off its mean by
# 427 (n = 5) and 921 (n = 6) standard deviations after 8 rounds, 24 and 58 after 12, less than 5 after 16, 2
# or less from 20 on.
ROUNDS = 24
CYCLE = 4096  # samples in which a mixture has its shares: a weight is met to 1 part in 8192


@dataclass(frozen=True)
class Packed:
    """A split's stream in sequences of `length` tokens, each behind `begin`; the last filled with end tokens.

    Each source of the split is a stream of its own. Every token is maskable in exactly one block; `begin` and the
    filling are not. Raises ValueError for a split without tokens or a length below 1.
    """

    split: Split
    length: int
    begin: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"a block length of {self.length} holds nothing: give at least 1")
        if len(self.split.tokens) < 1:
            raise ValueError("the text is shorter than one token: prepare more text")

    def __len__(self) -> int:
        return int(self.counts.sum())

    apart = False  # attention may leave a document, `segments` are for a run that forbids it

    @cached_property
    def counts(self) -> Int[np.ndarray, " sources"]:
        """Blocks of each source."""
        return -(-self.split.source_tokens // self.length)

    def batch(self, size: int, *, seed: int, step: int, rank: int = 0, world: int = 1) -> Int[np.ndarray, " size"]:
        """Which blocks rank `rank` of `world` takes at `step`: by the weights of the sources where they have some."""
        where = {"seed": seed, "step": step, "rank": rank, "world": world}
        if self.split.weights is None:
            return batch_indices(len(self), size, **where)
        return mixture_indices(self.counts, self.split.weights, size, **where)

    def take(
        self, indices: Sequence[int] | np.ndarray
    ) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"], Int[Tensor, " B"]]:
        """x_0, maskable (S = 1 + length) and the document each block starts in (the cluster of its errors).

        Raises IndexError for a block that is not there.
        """
        at, end = self._places(indices)
        # A stream ends with an end token, as each of its documents does: reading on there is the filling.
        x_0 = np.full((len(at), 1 + self.length), self.begin, dtype=np.int64)
        x_0[:, 1:] = self.split.tokens[np.minimum(at, end - 1)]
        maskable = np.zeros(x_0.shape, dtype=bool)
        maskable[:, 1:] = at < end
        document = np.searchsorted(self.split.starts, at[:, 0], side="right") - 1
        return torch.from_numpy(x_0), torch.from_numpy(maskable), torch.from_numpy(document)

    def segments(self, indices: Sequence[int] | np.ndarray) -> Int[Tensor, "B S"]:
        """The document of each position, for a network that keeps them apart; `begin` goes with the first of a block,
        the filling is one of its own.
        """
        at, end = self._places(indices)
        document = np.searchsorted(self.split.starts, at, side="right") - 1
        document[at >= end] = -1
        return torch.from_numpy(np.concatenate([document[:, :1], document], axis=1))

    def _places(self, indices: Sequence[int] | np.ndarray) -> tuple[Int[np.ndarray, "B L"], Int[np.ndarray, "B 1"]]:
        """Where in the stream each token of some blocks stands, and where the stream of each block's source ends."""
        rows = np.asarray(indices, dtype=np.int64).reshape(-1)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"blocks {rows.min()} to {rows.max()} asked of {len(self)}")
        blocks, ends = self.counts.cumsum(), self.split.source_tokens.cumsum()
        source = np.searchsorted(blocks, rows, side="right")
        first = (rows - (blocks - self.counts)[source]) * self.length + (ends - self.split.source_tokens)[source]
        return first[:, None] + np.arange(self.length), ends[source][:, None]


def batch_indices(n: int, size: int, *, seed: int, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
    """Which of n items rank `rank` of `world` takes at `step`: Int64[size], in constant time, no state.

    Sample g = step*size*world + rank*size + j is item g % n of epoch g // n, shuffled by (seed, epoch): each
    item once an epoch, nothing dropped, batches run across epochs. Steps, ranks and sizes only cut one
    endless stream of (n, seed) up. Raises ValueError for numbers out of range.
    """
    if n < 1:
        raise ValueError(f"no batch of {n} items: prepare more text")
    return _items(_samples(size, step, rank, world), n, seed)


def mixture_indices(
    counts: Sequence[int] | np.ndarray,
    weights: Sequence[float] | np.ndarray,
    size: int,
    *,
    seed: int,
    step: int,
    rank: int = 0,
    world: int = 1,
) -> Int[np.ndarray, " size"]:
    """`batch_indices` of several sources, numbered one after the other, each sampled in proportion to its weight.

    Sources take turns as evenly as they can, in a pattern that repeats after CYCLE samples; each is a stream of
    `batch_indices` of its own, so that it is shuffled without repetition, nothing dropped, whatever the weights.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if len(weights) != len(counts) or min(counts) < 1 or not (weights > 0).all() or not np.isfinite(weights.sum()):
        raise ValueError(f"weights {weights.tolist()} of sources of {list(counts)} blocks: each must be positive")
    turns, mine, first = _turns(tuple(weights.tolist())), np.empty(size, dtype=np.int64), np.cumsum(counts) - counts
    samples = _samples(size, step, rank, world)
    cycle, at = samples // np.uint64(CYCLE), samples % np.uint64(CYCLE)
    for source, count in enumerate(counts):
        here = turns.source[at] == source
        number = cycle[here] * np.uint64(turns.share[source]) + turns.number[at[here]].astype(np.uint64)
        mine[here] = first[source] + _items(number, int(count), seed + (source << 32))
    return mine


def batch_length(length: int, share: float, *, seed: int, step: int) -> int:
    """How many tokens of its sequences a step takes: `length`, or for a share of the steps a uniform one of 1..length.

    SMDM cuts 1% of its batches, so that a network also knows short texts (arXiv 2410.18514, appendix).
    """
    cuts, at = keyed_uniforms(seed, [step], (2,), LENGTH)[0].tolist()
    return 1 + int(at * length) if cuts < share else length


class _Turns(NamedTuple):
    """Whose turn each sample of a cycle is, the how-manieth of its source, and how many turns a source has."""

    source: Int[np.ndarray, " cycle"]
    number: Int[np.ndarray, " cycle"]
    share: Int[np.ndarray, " sources"]


@cache
def _turns(weights: tuple[float, ...]) -> _Turns:
    """CYCLE turns, dealt by the largest remainders, at least one each; turn k of n stands at (k + 1/2) / n."""
    exact = CYCLE * np.array(weights) / sum(weights)
    share = np.maximum(np.floor(exact), 1).astype(np.int64)
    while (missing := CYCLE - share.sum()) != 0:
        share[np.argmax(exact - share if missing > 0 else share)] += np.sign(missing)
    source = np.repeat(np.arange(len(weights)), share)
    number = np.concatenate([np.arange(n) for n in share])
    order = np.argsort((number + 0.5) / share[source], kind="stable")
    return _Turns(source[order], number[order], share)


def _samples(size: int, step: int, rank: int, world: int) -> np.ndarray:
    """Numbers of the samples of a batch in the endless stream."""
    if size < 1 or step < 0 or not 0 <= rank < world:
        raise ValueError(f"no batch of {size} at step {step} for rank {rank} of {world}: none of them may be less")
    return np.uint64((step * world + rank) * size) + np.arange(size, dtype=np.uint64)


def _items(samples: np.ndarray, n: int, seed: int) -> np.ndarray:
    """The item that each sample of a stream over n items is: shuffled by (seed, epoch)."""
    epoch, item = samples // np.uint64(n), samples % np.uint64(n)
    key = _mix(_mix(np.full(len(samples), seed % 2**64, dtype=np.uint64)) ^ epoch)
    return _shuffled(item, n, key).astype(np.int64)


def _shuffled(item: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Where `item` of 0..n-1 goes in the permutation of its key: a Feistel network with cycle walking.

    An item is two digits of the mixed radix (a, b), a*b >= n, each changed in turn by a keyed function of the
    other: a bijection, repeated where it leaves 0..n-1 (Black & Rogaway, CT-RSA 2002). b is even: with a and
    b odd every round is an even permutation, and of the orders of 9 items half could not occur.
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    b += b % 2
    out = _rounds(item, np.uint64(a), np.uint64(b), key)
    while (outside := out >= n).any():
        out[outside] = _rounds(out[outside], np.uint64(a), np.uint64(b), key[outside])
    return out


def _rounds(item: np.ndarray, a: np.uint64, b: np.uint64, key: np.ndarray) -> np.ndarray:
    left, right = item // b, item % b
    for turn in range(1, ROUNDS + 1):
        keyed = _mix(key + np.uint64(turn * WEYL % 2**64))
        if turn % 2:
            left = (left + _mix(keyed ^ right) % a) % a
        else:
            right = (right + _mix(keyed ^ left) % b) % b
    return left * b + right


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea & Flood, OOPSLA 2014): a bijection that behaves like a hash."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
