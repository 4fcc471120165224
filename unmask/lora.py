"""Adapters of low rank on linear layers (LoRA, Hu et al., arXiv 2106.09685): little to train, keep and save.

    y = W x + b + s B A x,    A [r, in] drawn, B [out, r] zero at first, s = 32 / r, W and b as they are

so that a network with fresh adapters is the network without, and one with trained adapters is the one whose weights
are W + s B A. With s in proportion to 1 / r the best learning rate hardly depends on r.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unmask.draws import keyed_generator
from unmask.transformer import GELU, Attention, SwiGLU, Transformer, TransformerConfig

ALPHA = 32.0
Layer = Literal["qkv", "project", "gate_up", "up", "down"]
"""Of a block: attention's two layers, and the MLP's, whose first is gate_up (llama) or up (dit)."""
ALL: tuple[Layer, ...] = ("qkv", "project", "gate_up", "up", "down")


class Adapter(nn.Module):
    """s B A x of one linear layer."""

    def __init__(self, layer: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        drawn = torch.rand(rank, layer.in_features, generator=generator).mul_(2).sub_(1)
        self.down = nn.Parameter(drawn / math.sqrt(layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        self.scale = ALPHA / rank

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B E"]:
        return F.linear(F.linear(x, self.down) * self.scale, self.up)


def attach(network: Transformer, rank: int, on: Sequence[Layer], seed: int) -> None:
    """Put adapters on layers of each block; from now on they are all of the network that wants a gradient."""
    network.requires_grad_(False)
    for i, layer in enumerate(_chosen(network, on)):
        layer.adapter = Adapter(layer, rank, keyed_generator(seed, i))


def merged(
    weights: Mapping[str, Tensor], adapters: Mapping[str, Tensor], rank: int, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The weights W + s B A, in the precision of W, or in one that holds `dtype` as well; computed in float32 or
    wider. Raises ValueError for adapters that do not fit.
    """
    state, left = dict(weights), dict(adapters)
    for name in [name.removesuffix(".up") for name in adapters if name.endswith(".adapter.up")]:
        up, down, key = left.pop(f"{name}.up"), left.pop(f"{name}.down", None), name.removesuffix("adapter") + "weight"
        if down is None or key not in state or (len(up), down.shape[-1]) != tuple(state[key].shape):
            raise ValueError(f"{name} does not fit its weights")
        if up.shape[1:] != (rank,) or down.shape[:1] != (rank,):
            raise ValueError(f"{name} is not of rank {rank}")
        kept = torch.promote_types(state[key].dtype, dtype or state[key].dtype)
        wide = torch.promote_types(kept, torch.float32)
        state[key] = (state[key].to(wide) + ALPHA / rank * (up.to(wide) @ down.to(wide))).to(kept)
    if left:
        raise ValueError(f"{min(left)} is no adapter's")
    return state


def count(config: TransformerConfig, rank: int, on: Sequence[Layer]) -> int:
    """Parameters of the adapters. Raises ValueError where `on` names a layer that the network lacks."""
    layers = _chosen(config.build(None), on)
    return rank * sum(layer.in_features + layer.out_features for layer in layers)


def _chosen(network: Transformer, on: Sequence[Layer]) -> list[nn.Linear]:
    parts = [part for part in network.blocks.modules() if isinstance(part, Attention | SwiGLU | GELU)]
    layers = [(name, layer) for part in parts for name, layer in part.named_children() if isinstance(layer, nn.Linear)]
    has = dict.fromkeys(name for name, _ in layers)
    absent = [name for name in on if name not in has]
    if absent and set(on) != set(ALL):
        raise ValueError(f"--lora-on {' '.join(absent)}: this network has {', '.join(has)}: name some of these")
    return [layer for name, layer in layers if name in on]
