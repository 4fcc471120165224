"""One position of one row, read on behind what a cache remembers: `Transformer.hidden`, written flat.

While one text is written a call takes as long as its weights' bytes, and as Python and the small operations between the
products, which are fewer here than where they go through modules, layer by layer (benchmarks/decoding.py).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unmask import cpu
from unmask.transformer.layers import Block, SwiGLU

if TYPE_CHECKING:
    from unmask.transformer.network import Transformer


class Row:
    """Reads a token at a position, given the keys and values of all left of it; without a gradient."""

    def __init__(self, network: "Transformer") -> None:
        self.network, self.layers = network, [_parts(block) for block in cast(Iterable[Block], network.blocks)]
        self.kept: list[tuple[Float[Tensor, "G L d"], Float[Tensor, "G L d"], Float[Tensor, "G*L d"]]] = []
        """Keys and values of each layer, and these as a table, of whose rows `rows` [H, L] are each head's."""

    @staticmethod
    def fits(network: "Transformer") -> bool:
        """Whether it is a llama network on a CPU, in float32 or wider, without adapters."""
        weight, adapted = network.embedding.weight, any("adapter" in each._modules for each in network.modules())
        plain = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
        return plain and network.config.flavour == "llama" and not adapted

    def __call__(
        self,
        token: int,
        at: int,
        rotary: tuple[Float[Tensor, "1 d"], Float[Tensor, "1 d"]],
        memory: list[Float[Tensor, "2 1 L G d"]],
    ) -> Float[Tensor, "1 D"]:
        """The last layer's normalised state at position `at`, whose keys and values are written to `memory`."""
        network, (cos, sin) = self.network, rotary
        config, eps = network.config, network.config.norm_eps
        heads, groups, half = config.heads, config.groups, config.head_width // 2
        if not self.kept:
            both = [(keys[0].transpose(0, 1), values[0].transpose(0, 1)) for keys, values in memory]
            self.kept = [(keys, values, values.flatten(0, 1)) for keys, values in both]
            self.rows = torch.arange(groups * memory[0].shape[2]).view(groups, -1).repeat_interleave(heads // groups, 0)
        seen, scale = at + 1, config.head_width**-0.5
        rows, begins = self.rows[:, :seen].reshape(-1), torch.arange(0, heads * seen, seen)
        x = network.embedding.weight[0 if token == network.mask_id else token]
        for layer, (keys, values, table) in zip(self.layers, self.kept, strict=True):
            norm_1, qkv, bias, project, norm_2, gate_up, down = layer
            parts = qkv(cpu.rms_norm(x, norm_1, eps))
            parts = (parts if bias is None else parts + bias).view(heads + 2 * groups, -1)
            turned = parts[: heads + groups]
            turned = torch.addcmul(turned * cos, turned.roll(half, -1), sin)
            keys[:, at], values[:, at] = turned[heads:], parts[heads + groups :]
            queries = turned[:heads].mul_(scale).view(groups, -1, 2 * half)
            shares = torch.bmm(keys[:, :seen], queries.mT).mT.reshape(heads, seen).softmax(-1)
            x = x + project(cpu.summed(table, rows, begins, shares.view(-1)).view(-1))
            gate, up = gate_up(cpu.rms_norm(x, norm_2, eps)).view(2, -1)
            x = x + down(F.silu(gate).mul_(up))
        return cpu.rms_norm(x, network.norm.weight, eps)[None]


def _parts(block: Block) -> tuple:
    """Of a layer: norms' weights and a bias as they are, matrices as functions of a vector."""
    attention, mlp = block.attention, cast(SwiGLU, block.mlp)
    matrices = attention.qkv.weight, attention.project.weight, mlp.gate_up.weight, mlp.down.weight
    qkv, project, gate_up, down = (cpu.row_product(weight) for weight in matrices)
    return block.norm_1.weight, qkv, attention.qkv.bias, project, block.norm_2.weight, gate_up, down
