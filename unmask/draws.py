"""Randomness that belongs to a sequence, and exact draws from a categorical law.

A sequence owns its random numbers: they are keyed by (seed, sequence, purpose) through Philox, a counter-based
generator (Salmon et al., SC 2011), so a text does not change with the batch it is written in or with the order of
the work.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

PLAN, TOKEN, LEVEL, MASK, LENGTH, DRAFT, KIND = range(7)  # purposes: independent streams of one sequence


def keyed_uniforms(
    seed: int, sequences: Sequence[int], shape: tuple[int, ...], purpose: int, turn: int = 0
) -> Float[Tensor, "S *shape"]:
    """Uniforms in [0, 1), float64 on the host: row s depends on (seed, sequences[s], purpose, turn) and nothing else.

    Raises ValueError for a seed or sequence number below 0 or from 2^63 on.
    """
    for number in (seed, *sequences):
        if not 0 <= number < 2**63:
            raise ValueError(f"seed and sequence numbers must not be negative or reach 2^63: {number}")
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, sequence], counter=[0, 0, turn, purpose])).random(shape)
        for sequence in sequences
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty((0, *shape), dtype=torch.float64)


def keyed_generator(seed: int, *counters: int) -> torch.Generator:
    """A host generator for (seed, counters): the same stream for the same numbers, whatever ran before.

    torch's host generator takes 32 bits of seed: two of 100,000 steps may share a stream.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, *counters]).generate_state(1)[0]))


def require_rows(name: str, rows: object, *, of_bool: bool = False) -> None:
    """Raises ValueError, naming it, for what is no tensor [rows, L] of integers, or of truth values."""
    if not isinstance(rows, Tensor):
        remedy = "give rows of different lengths one by one" if isinstance(rows, list | tuple) else "give one"
        raise ValueError(f"{name} must be a tensor [rows, L], not a {type(rows).__name__}: {remedy}")
    if (rows.dtype == torch.bool) != of_bool or rows.is_floating_point() or rows.is_complex():
        raise ValueError(f"{name} must be {'bool' if of_bool else 'integers'}, not {rows.dtype}: convert it")
    if rows.dim() != 2:
        remedy = f"give {name}[None]" if rows.dim() == 1 else "give it two dimensions"
        raise ValueError(f"{name} must be [rows, L], not of shape {list(rows.shape)}: {remedy}")


def require_batch(batch: int) -> None:
    """Raises ValueError for a batch that holds no sequence."""
    if batch < 1:
        raise ValueError(f"batch {batch} must be at least 1")


def widest(device: torch.device) -> torch.dtype:
    """The widest float the device has: float64, but float32 on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on a device, without a wait where that is safe: to a GPU, which works in order.

    On the host the numbers could be read before they are there, and to and from Apple's GPUs as well (PyTorch issues
    139550, 140296, 189690).
    """
    return tensor.to(device, dtype, non_blocking=device.type == "cuda")


def log_probabilities(logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
    """log-softmax in float32 or wider, whatever the network's precision."""
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


def categorical(logits: Float[Tensor, "N V"], u: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Draw one token a row by inverse CDF in float64: the smallest v with P(token <= v) > u.

    float32 noise over 50,257 tokens cuts the tail of the law and so lowers the temperature (docs/theory.md); a
    cumulative sum in float64 errs by less than 1e-11. A token of probability zero is never drawn, not even at u = 0.
    """
    return inverse_cdf(logits.to(widest(logits.device)).softmax(-1), u)


def inverse_cdf(weights: Float[Tensor, "N V"], u: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Draw one index a row in proportion to weights that are not all zero: the smallest v with mass(up to v) > u."""
    cdf = weights.cumsum(-1)
    total = cdf[:, -1]
    # below the total even where u rounds to one, so that the search ends on a token with mass
    goal = torch.minimum(sent(u, cdf.device, cdf.dtype) * total, total.nextafter(torch.zeros_like(total)))
    drawn = torch.searchsorted(cdf, goal[:, None], right=True).squeeze(-1)
    return drawn.clamp(max=weights.shape[-1] - 1)
