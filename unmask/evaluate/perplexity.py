"""Perplexity of a model and of n-gram yardsticks on the same windows, as rows of a result file."""

import math
import time
from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from unmask import ranks
from unmask.checkpoint import Model
from unmask.evaluate.heldout import HeldOut
from unmask.evaluate.ngram import MOST, laws
from unmask.files import Row, finite
from unmask.likelihood import Estimate, decoder_log_likelihood, log_likelihood, ordered_log_likelihood
from unmask.sampling import (
    Blocks,
    Confidence,
    Entropy,
    EntropyBound,
    FixedOrder,
    LeftToRight,
    Margin,
    Policy,
    Threshold,
    draw_plan,
)

Order = LeftToRight | FixedOrder | Confidence | Margin | Entropy | Threshold | EntropyBound | Blocks
"""What may have an exact likelihood, as a decoder."""


def perplexity(
    model: Model,
    held_out: HeldOut,
    *,
    name: str = "model",
    order: Policy | None = None,
    draws: int = 16,
    seed: int = 0,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Row:
    """One row: perplexity with both standard errors, kind of bound, protocol, and each window's nats.

    With an `order`, the exact likelihood of the decoder that writes in that order instead of the random-order bound:
    an evaluation a token (a step, for one that writes several). Raises ValueError for an order that has none.
    """
    windows, start = held_out.windows, time.perf_counter()
    x_0, maskable, documents = windows.x_0, windows.maskable, windows.documents

    def score(rows: Int[Tensor, " s"]) -> Estimate:
        told = {"batch": batch, "progress": progress}
        if order is None:
            numbered = {"seed": seed, "sequences": rows.tolist()}
            return log_likelihood(model, x_0[rows], maskable[rows], draws=draws, **numbered, **told)
        if isinstance(order, LeftToRight):
            return ordered_log_likelihood(model, x_0[rows], draw_plan(order, maskable[rows]), **told)
        return decoder_log_likelihood(model, x_0[rows], maskable[rows], order, **told)

    estimate = ranks.likelihood(score, len(x_0), documents)
    seconds = time.perf_counter() - start
    said = {} if order is None else {"estimator": f"chain rule, {order}"}
    return {**_row(name, held_out, estimate), **said, "seconds": seconds}


def baselines(held_out: HeldOut, vocab: int) -> list[Row]:
    """Rows of the unigram, bigram and trigram law of the train split that belongs to the windows, if any."""
    if held_out.train is None:
        return []
    windows, tokens, rows = held_out.windows, held_out.train.tokens[:MOST], []
    how = {"estimator": f"Kneser-Ney, {len(tokens):,} tokens", "precision": "float64"}
    for name, law in laws(tokens, vocab):
        nats = torch.from_numpy(law.nats(windows.x_0, windows.maskable))[:, None]
        estimate = Estimate.of(nats, windows.maskable, windows.documents, **how)
        rows.append({**_row(name, held_out, estimate), "yardstick": True})
    return rows


def errors(row: Row) -> str:
    """The two standard errors of a row's perplexity, by the delta method; "?" where one document tells nothing."""
    slope = row["perplexity"] / row["tokens"]
    parts = (finite(row[name]) for name in ("stderr_mc", "stderr_data"))
    return " ".join("±?" if part is None else f"±{slope * part:.2f}" for part in parts)


def _row(name: str, held_out: HeldOut, estimate: Estimate) -> Row:
    bytes_, characters, words = held_out.windows.sizes
    return {
        "experiment": "perplexity",
        "model": name,
        "corpus": held_out.corpus,
        "split": held_out.split,
        "protocol": held_out.windows.protocol,
        "data": held_out.digest,
        "tokenizer": held_out.tokenizer,
        **estimate.row(),
        "bits_per_byte": _bits(estimate.nats, bytes_),
        "bits_per_character": _bits(estimate.nats, characters),
        "word_perplexity": math.exp(min(700.0, estimate.nats / words)) if words else math.nan,
        "bytes": round(bytes_, 1),
        "characters": round(characters, 1),
        "words": round(words, 1),
        "values": _values(estimate, held_out),
    }


def _values(estimate: Estimate, held_out: HeldOut) -> Row:
    """What pairing needs: each window's nats (to a ten-thousandth), scored tokens and document."""
    return {
        "nats": [round(value, 4) for value in estimate.per_sequence.tolist()],
        "tokens": held_out.windows.maskable.sum(-1).tolist(),
        "documents": held_out.windows.documents.tolist(),
    }


def _bits(nats: float, count: float) -> float:
    return nats / math.log(2) / count if count else math.nan
