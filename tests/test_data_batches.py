"""Truths of blocks and batches: nothing lost, nothing repeated, every order alike."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from texts import FOUR_SIGMA, refused

from unmask.data import (
    Blocks,
    Split,
    batch_indices,
)

quick = settings(max_examples=60, deadline=None)


def split_of(lengths: list[int], end: int = 9) -> Split:
    """Documents of these lengths, tokens 0..8, each closed by an end token."""
    rng = np.random.default_rng(sum(lengths))
    tokens = rng.integers(0, end, sum(lengths)).astype(np.uint16)
    ends = np.cumsum(lengths)
    tokens[ends - 1] = end
    counts = np.array(lengths)
    dates = np.full(len(lengths), None, dtype="datetime64[D]")
    names = np.array([str(i) for i in range(len(lengths))])
    return Split(tokens, names, dates, ends - counts, counts, counts)


@quick
@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(1, 17), st.randoms())
def test_packing_loses_nothing(lengths: list[int], length: int, random) -> None:
    split = split_of(lengths)
    blocks = Blocks(split, length, begin=8)
    x_0, maskable, document = blocks.take(range(len(blocks)))
    assert x_0.dtype == document.dtype == torch.int64
    assert maskable.dtype == torch.bool
    assert x_0.shape == maskable.shape == (len(blocks), 1 + length)
    assert x_0[maskable].tolist() == split.tokens.tolist()
    assert (x_0[:, 0] == 8).all()
    assert not maskable[:, 0].any()
    assert (x_0[:, 1:][~maskable[:, 1:]] == 9).all()
    assert maskable[:-1, 1:].all()
    owner = np.repeat(np.arange(len(lengths)), lengths)
    assert document.tolist() == owner[::length].tolist()
    order = random.sample(range(len(blocks)), len(blocks))
    for part, whole in zip(blocks.take(np.array(order)), (x_0, maskable, document), strict=True):
        assert torch.equal(part, whole[order])


def test_blocks_without_text_or_place_are_refused() -> None:
    split = split_of([3, 4])
    refused(lambda: Blocks(split, 0, 8), "0")
    empty = Split(split.tokens[:0], split.names, split.dates, split.starts, split.lengths, split.bytes)
    refused(lambda: Blocks(empty, 4, 8), "shorter than one token")
    blocks = Blocks(split, 4, 8)
    assert len(blocks) == 2
    assert blocks.take([])[0].shape == (0, 5)
    for wrong in ([2], [-1], [0, 5]):
        with pytest.raises(IndexError):
            blocks.take(wrong)


# --- batches ------------------------------------------------------------------------------------------------

shapes = st.tuples(st.integers(1, 60), st.integers(1, 25), st.integers(1, 5), st.integers(0, 2**64))


@quick
@given(shapes)
def test_every_epoch_holds_every_item_once(shape: tuple[int, int, int, int]) -> None:
    n, size, world, seed = shape
    steps = -(-3 * n // (size * world))
    stream = [
        batch_indices(n, size, seed=seed, step=step, rank=rank, world=world)
        for step in range(steps)
        for rank in range(world)
    ]
    drawn = np.concatenate(stream)[: 3 * n].reshape(3, n)
    assert (np.sort(drawn, axis=1) == np.arange(n)).all()


@quick
@given(shapes, st.integers(0, 10**15))
def test_ranks_share_one_stream_that_resuming_repeats(shape: tuple[int, ...], step: int) -> None:
    n, size, world, seed = shape
    ranks = [batch_indices(n, size, seed=seed, step=step, rank=rank, world=world) for rank in range(world)]
    alone = batch_indices(n, size * world, seed=seed, step=step)
    assert np.concatenate(ranks).tolist() == alone.tolist()
    assert alone.dtype == np.int64
    if step * size * world % n + size * world <= n:  # inside an epoch no two ranks take the same item
        assert len(set(alone.tolist())) == size * world
    first = [int(batch_indices(n, 1, seed=seed, step=step * size * world + j)[0]) for j in range(size)]
    assert first == ranks[0].tolist()


def test_large_corpora_and_late_steps_are_in_range() -> None:
    n = 10**12 + 39
    batch = batch_indices(n, 4096, seed=3, step=10**9, rank=1, world=8)
    assert len(set(batch.tolist())) == 4096
    assert batch.min() >= 0
    assert batch.max() < n
    # The mean of 4096 uniforms has standard deviation n / sqrt(12 * 4096).
    assert abs(batch.mean() / n - 0.5) < 4 / math.sqrt(12 * 4096)


def improbable(counts: np.ndarray) -> bool:
    """Whether chi-square against equal counts lies beyond four standard deviations."""
    expected = counts.mean()
    assert expected >= 20
    return ((counts - expected) ** 2 / expected).sum() > chi2.isf(FOUR_SIGMA, counts.size - 1)


def epochs(n: int, count: int, seed: int) -> np.ndarray:
    return batch_indices(n, n * count, seed=seed, step=0).reshape(count, n)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7])
def test_all_orders_of_few_items_are_equally_likely(n: int) -> None:
    drawn = epochs(n, 60 * math.factorial(n), seed=n)
    orders, counts = np.unique(drawn @ n ** np.arange(n), return_counts=True)
    assert len(orders) == math.factorial(n)
    assert not improbable(counts)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_seeds_choose_all_orders_alike(n: int) -> None:
    drawn = np.array([batch_indices(n, n, seed=seed, step=7) for seed in range(40 * math.factorial(n))])
    orders, counts = np.unique(drawn @ n ** np.arange(n), return_counts=True)
    assert len(orders) == math.factorial(n)
    assert not improbable(counts)


@pytest.mark.parametrize("n", [9, 30, 101])
def test_every_item_is_equally_likely_at_every_place(n: int) -> None:
    count = 40 * n
    drawn = epochs(n, count, seed=5)
    table = np.zeros((n, n))
    np.add.at(table, (np.broadcast_to(np.arange(n), drawn.shape), drawn), 1)
    # Rows and columns add up to `count`: (n - 1)^2 degrees of freedom, and the mean of the sum is n (n - 1).
    assert ((table - 40) ** 2 / 40).sum() * (n - 1) / n < chi2.isf(FOUR_SIGMA, (n - 1) ** 2)
    pairs = np.zeros((n, n))  # what follows what, inside an epoch: each of n(n-1) pairs equally often
    np.add.at(pairs, (drawn[:, :-1], drawn[:, 1:]), 1)
    assert not pairs.diagonal().any()
    assert not improbable(pairs[~np.eye(n, dtype=bool)])


def test_seeds_and_epochs_shuffle_differently() -> None:
    n = 200
    one, two = epochs(n, 50, seed=1), epochs(n, 50, seed=2)
    # Two unrelated orders agree at 1 place in the mean, with variance 1.
    for left, right in ((one, two), (one[:-1], one[1:]), (one, np.tile(np.arange(n), (50, 1)))):
        agree = (left == right).sum()
        assert abs(agree - len(left)) < 4 * math.sqrt(len(left))


@pytest.mark.parametrize(
    "wrong", [{"n": 0}, {"size": 0}, {"step": -1}, {"rank": 2}, {"rank": -1}, {"world": 0}], ids=str
)
def test_batches_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    arguments = {"n": 5, "size": 2, "seed": 0, "step": 0, "rank": 0, "world": 2, **wrong}
    refused(lambda: batch_indices(**arguments), "no batch")
