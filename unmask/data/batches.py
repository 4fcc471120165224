"""Batches that need no state: packed blocks of a split, and which of them a step trains on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unmask.data.splits import Split

WEYL = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: keeps the keys of the rounds apart (SplitMix64)
# Rounds until all orders of n items are equally likely. Over 300,000 keys, chi-square lies off its mean by
# 427 (n = 5) and 921 (n = 6) standard deviations after 8 rounds, 24 and 58 after 12, less than 5 after 16, 2
# or less from 20 on.
ROUNDS = 24


@dataclass(frozen=True)
class Blocks:
    """A split's stream in sequences of `length` tokens, each behind `begin`; the last filled with end tokens.

    Every token of the stream is maskable in exactly one block; `begin` and the filling are not.
    Raises ValueError for a split without tokens or a length below 1.
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
        return -(-len(self.split.tokens) // self.length)

    def take(
        self, indices: Sequence[int] | np.ndarray
    ) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"], Int[Tensor, " B"]]:
        """x_0, maskable (S = 1 + length) and the document each block starts in (the cluster of its errors).

        Raises IndexError for a block that is not there.
        """
        rows = np.asarray(indices, dtype=np.int64).reshape(-1)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"blocks {rows.min()} to {rows.max()} asked of {len(self)}")
        tokens = self.split.tokens
        at = rows[:, None] * self.length + np.arange(self.length)
        # The stream ends with an end token, as each of its documents does: reading on there is the filling.
        x_0 = np.full((len(rows), 1 + self.length), self.begin, dtype=np.int64)
        x_0[:, 1:] = tokens[np.minimum(at, len(tokens) - 1)]
        maskable = np.zeros(x_0.shape, dtype=bool)
        maskable[:, 1:] = at < len(tokens)
        document = np.searchsorted(self.split.starts, rows * self.length, side="right") - 1
        return torch.from_numpy(x_0), torch.from_numpy(maskable), torch.from_numpy(document)


def batch_indices(n: int, size: int, *, seed: int, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
    """Which of n items rank `rank` of `world` takes at `step`: Int64[size], in constant time, no state.

    Sample g = step*size*world + rank*size + j is item g % n of epoch g // n, shuffled by (seed, epoch): each
    item once an epoch, nothing dropped, batches run across epochs. Steps, ranks and sizes only cut one
    endless stream of (n, seed) up. Raises ValueError for numbers out of range.
    """
    if n < 1 or size < 1 or step < 0 or not 0 <= rank < world:
        raise ValueError(f"no batch of {size} of {n} items at step {step} for rank {rank} of {world}")
    samples = np.uint64((step * world + rank) * size) + np.arange(size, dtype=np.uint64)
    epoch, item = samples // np.uint64(n), samples % np.uint64(n)
    key = _mix(_mix(np.full(size, seed % 2**64, dtype=np.uint64)) ^ epoch)
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
