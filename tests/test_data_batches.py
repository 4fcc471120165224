"""Truths of blocks and batches: nothing lost, nothing repeated, every order alike."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from texts import FOUR_SIGMA, library, refused

from unmask.data import (
    Packed,
    Split,
    batch_indices,
    batch_length,
    mixture_indices,
    prepare,
)
from unmask.files import read_lines
from unmask.objectives import AnyOrder, NextToken
from unmask.train import TrainConfig, train
from unmask.transformer import TransformerConfig

quick = settings(max_examples=60)


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
    blocks = Packed(split, length, begin=8)
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


@quick
@given(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=6), min_size=1, max_size=4), st.integers(1, 17))
def test_sources_are_packed_apart_and_segments_tell_documents(sources: list[list[int]], length: int) -> None:
    whole = split_of([size for sizes in sources for size in sizes])
    named = tuple((str(i), len(sizes), sum(sizes)) for i, sizes in enumerate(sources))
    blocks = Packed(replace(whole, sources=named), length, begin=8)
    x_0, maskable, document = blocks.take(range(len(blocks)))
    assert x_0[maskable].tolist() == whole.tokens.tolist()
    assert (x_0[:, 1:][~maskable[:, 1:]] == 9).all()
    alone = [Packed(split_of(sizes), length, begin=8) for sizes in sources]
    assert blocks.counts.tolist() == [len(each) for each in alone]
    assert torch.equal(maskable, torch.cat([each.take(range(len(each)))[1] for each in alone]))
    segments = blocks.segments(range(len(blocks)))
    owner = np.repeat(np.arange(len(whole.lengths)), whole.lengths)
    assert segments[maskable].tolist() == owner.tolist()
    assert (segments[:, 1:][~maskable[:, 1:]] == -1).all()
    assert (segments[:, 0] == segments[:, 1]).all()
    assert torch.equal(segments[:, 0], document)


def test_blocks_of_a_mixture_follow_the_weights() -> None:
    split = replace(split_of([40, 60, 100]), sources=(("a", 2, 100), ("b", 1, 100)))
    plain, mixed = Packed(split, 10, 8), Packed(replace(split, weights=(3.0, 1.0)), 10, 8)
    assert plain.batch(6, seed=1, step=4).tolist() == batch_indices(20, 6, seed=1, step=4).tolist()
    drawn = mixed.batch(400, seed=1, step=4, rank=1, world=2)
    assert (drawn < 10).sum() == 300
    assert drawn.tolist() == mixture_indices([10, 10], [3, 1], 400, seed=1, step=4, rank=1, world=2).tolist()


def test_blocks_without_text_or_place_are_refused() -> None:
    split = split_of([3, 4])
    refused(lambda: Packed(split, 0, 8), "0")
    empty = Split(split.tokens[:0], split.names, split.dates, split.starts, split.lengths, split.bytes)
    refused(lambda: Packed(empty, 4, 8), "shorter than one token")
    blocks = Packed(split, 4, 8)
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


@quick
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.data())
def test_a_mixture_takes_every_source_by_its_weight_and_drops_nothing(counts: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.05, 5), min_size=len(counts), max_size=len(counts)))
    size, world, seed = data.draw(st.tuples(st.integers(300, 999), st.integers(1, 3), st.integers(0, 2**62)))
    parts = [
        mixture_indices(counts, weights, size, seed=seed, step=step, rank=rank, world=world)
        for step in range(-(-9000 // (size * world)))
        for rank in range(world)
    ]
    drawn, edges = np.concatenate(parts)[:9000], np.cumsum([0, *counts])
    shares = np.array(weights) / sum(weights)
    for low, high, share, count in zip(edges[:-1], edges[1:], shares, counts, strict=True):
        mine = (drawn >= low) & (drawn < high)
        told = mine.cumsum() - share * np.arange(1, 9001)  # never far from its share, in a short run or a long one
        assert abs(told).max() < len(counts) + 9000 / 4096
        stream = drawn[mine] - low
        epochs = stream[: len(stream) // count * count].reshape(-1, count)
        assert (np.sort(epochs, axis=1) == np.arange(count)).all()  # each block once an epoch


def test_a_mixture_of_one_source_is_the_plain_order_and_a_small_weight_still_counts() -> None:
    for step in (0, 3, 10**6):
        one = mixture_indices([37], [0.3], 8, seed=5, step=step, rank=1, world=2)
        assert one.tolist() == batch_indices(37, 8, seed=5, step=step, rank=1, world=2).tolist()
    drawn = mixture_indices([5, 5], [1, 1e-9], 4096, seed=0, step=0)
    assert (drawn >= 5).sum() == 1
    for weights in ([1.0], [1.0, 0.0], [1.0, math.nan], [1.0, math.inf]):
        refused(lambda weights=weights: mixture_indices([3, 4], weights, 2, seed=0, step=0), "weights")
    refused(lambda: mixture_indices([3, 0], [1, 1], 2, seed=0, step=0), "0")


def test_lengths_are_cut_for_a_share_of_the_steps_to_any_length_alike() -> None:
    drawn = np.array([batch_length(8, 0.25, seed=3, step=step) for step in range(16_000)])
    assert drawn.min() == 1
    cut = np.bincount(drawn, minlength=9)[1:8]
    # 1/4 of the steps, 7/8 of them to less than 8
    assert abs(cut.sum() - 3500) < 4 * math.sqrt(3500 * (1 - 3500 / 16_000))
    assert not improbable(cut)
    assert {batch_length(8, 0.0, seed=3, step=step) for step in range(1000)} == {8}
    assert {batch_length(1, 1.0, seed=3, step=step) for step in range(100)} == {1}


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


# --- in the trainer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_short_batches_and_documents_apart_train_and_an_older_run_goes_on(tmp_path: Path, causal: bool) -> None:
    """Each option changes the run; a folder written before they existed is the run without them."""
    data = prepare(library(tmp_path / "texts", [f"d{i}" for i in range(9)]), tmp_path / "data", tokenizer="bytes")
    network = TransformerConfig(vocab=258, layers=1, heads=2, width=8, causal=causal)
    objective = NextToken() if causal else AnyOrder()
    plain = TrainConfig(
        network, str(data), objective=objective, length=32, batch=4, steps=3, precision="float32", device="cpu"
    )
    runs = {"plain": plain, "short": replace(plain, short_batches=1.0), "apart": replace(plain, documents_apart=True)}
    losses = {}
    for name, config in runs.items():
        train(config, tmp_path / name)
        losses[name] = [row["loss"] for row in read_lines(tmp_path / name / "metrics.jsonl") if row["kind"] == "train"]
    assert len({tuple(each) for each in losses.values()}) == 3
    assert runs["short"].cost()["tokens"] == round(3 * 4 * 32 * (1 + 1 / 32) / 2)
    path = tmp_path / "plain" / "config.json"
    old = json.loads(path.read_text())
    for name in ("short_batches", "documents_apart"):
        del old["requested"][name]
    path.write_text(json.dumps(old))
    train(plain, tmp_path / "plain")
    refused(lambda: train(runs["short"], tmp_path / "plain"), "short_batches 0.0 there, 1.0 here")
    refused(lambda: replace(plain, short_batches=1.5), "1.5", "0 to 1")
    shifted = replace(network, causal=False, shifted=True)
    refused(
        lambda: replace(plain, network=shifted, objective=AnyOrder(), documents_apart=True),
        "documents_apart",
        "shifted",
    )
