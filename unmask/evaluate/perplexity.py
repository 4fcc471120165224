"""Held-out perplexity of a model and of n-gram yardsticks on the same sequences, as rows of a result file."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unmask.checkpoint import Model
from unmask.data import Blocks, Split, batch_indices, load_split
from unmask.evaluate.ngram import Bigram, Unigram
from unmask.files import Row, finite
from unmask.likelihood import Estimate, log_likelihood

PROTOCOL = "packed blocks of {length}, each after a begin token; documents end with an end token"


def perplexity(
    model: Model,
    split: Split,
    *,
    corpus: str,
    length: int,
    name: str = "model",
    sequences: int | None = None,
    draws: int = 16,
    seed: int = 0,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Row:
    """One row: perplexity of a split with both standard errors, kind of bound and protocol.

    `sequences` scores that many blocks, chosen by the seed, instead of all; bits per byte then uses the split's mean
    bytes a token.
    """
    x_0, maskable, documents = _sequences(split, length, model.tokenizer.begin, sequences, seed)
    start = time.perf_counter()
    estimate = log_likelihood(
        model, x_0, maskable, draws=draws, seed=seed, batch=batch, documents=documents, progress=progress
    )
    seconds = time.perf_counter() - start
    return {**_row(name, corpus, length, split, estimate), "seconds": seconds}


def errors(row: Row) -> str:
    """The two standard errors of a row's perplexity, by the delta method; "?" where one document tells nothing."""
    slope = row["perplexity"] / row["tokens"]
    parts = (finite(row[name]) for name in ("stderr_mc", "stderr_data"))
    return " ".join("±?" if part is None else f"±{slope * part:.2f}" for part in parts)


def baselines(
    folder: Path, *, vocab: int, begin: int, corpus: str, length: int, sequences: int | None = None, seed: int = 0
) -> list[Row]:
    """Rows of the unigram and the bigram law, fitted to the train split, on the sequences that `perplexity` scores."""
    train, split = load_split(folder, "train"), load_split(folder, "validation")
    x_0, maskable, documents = _sequences(split, length, begin, sequences, seed)
    rows = []
    for law in (Unigram.fit(train.tokens, vocab), Bigram.fit(train.tokens, vocab)):
        nats = torch.from_numpy(law.nats(x_0, maskable))[:, None]
        estimate = Estimate.of(nats, maskable, documents, estimator="counts", precision="float64")
        rows.append(_row(type(law).__name__.lower(), corpus, length, split, estimate))
    return rows


def _sequences(
    split: Split, length: int, begin: int, sequences: int | None, seed: int
) -> tuple[Int[Tensor, "S L"], Bool[Tensor, "S L"], Int[Tensor, " S"]]:
    blocks = Blocks(split, length, begin)
    count = len(blocks)
    if sequences is not None and sequences < 1:
        raise ValueError(f"sequences {sequences} must be at least 1")
    chosen = np.arange(count) if sequences is None else batch_indices(count, min(count, sequences), seed=seed, step=0)
    return blocks.take(chosen)


def _row(name: str, corpus: str, length: int, split: Split, estimate: Estimate) -> Row:
    bytes_ = estimate.tokens * float(split.bytes.sum()) / len(split.tokens)
    return {
        "experiment": "perplexity",
        "model": name,
        "corpus": corpus,
        "protocol": PROTOCOL.format(length=length),
        **estimate.row(),
        "bits_per_byte": estimate.bits_per_byte(bytes_),
    }
