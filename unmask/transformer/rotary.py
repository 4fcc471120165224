"""Rotary positions: each head's pairs of coordinates turn with the position, some faster than others."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.transformer.config import TransformerConfig


def rotary_tables(config: TransformerConfig, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(cos, sin), each [L, 1, head_width], of the halves layout: coordinate j turns with j + head_width/2 by
    base^(-2j/head_width).
    """
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies(config, device))
    if config.rotary_dtype == "bfloat16":
        cos, sin = angles.cos().bfloat16().float(), angles.sin().bfloat16().float()
    else:
        cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]


def frequencies(config: TransformerConfig, device: torch.device) -> Float[Tensor, " half"]:
    """Radians a token of each pair of coordinates: f_j = base^(-2j/head_width), or those scaled.

    By (factor, low, high, length), Llama 3.1's rule: pairs that turn more than `high` times within `length` tokens keep
    their f, those that turn less than `low` times get f / factor, and between the two the share of f grows linearly.
    """
    half = torch.arange(0, config.head_width, 2, dtype=torch.float32, device=device) / config.head_width
    plain = config.rotary_base**-half
    if config.rotary_scaling is None:
        return plain
    factor, *bounds = config.rotary_scaling
    if not bounds:
        return plain / factor
    low, high, length = bounds
    kept = ((length * plain / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return plain * (kept + (1 - kept) / factor)


def rotate(x: Float[Tensor, "B L H d"], rotary: tuple[Tensor, Tensor]) -> Float[Tensor, "B L H d"]:
    """Turn each head's (first half, second half) pairs by their position's angles; in float32, back in x's
    precision.
    """
    cos, sin = rotary
    return (x * cos + x.roll(x.shape[-1] // 2, -1) * sin).to(x.dtype)
