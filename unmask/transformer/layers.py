"""What the network is made of: attention, MLPs and norms of both flavours, and the matrix product behind them."""

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask import cpu
from unmask.cache import Attend, attention
from unmask.transformer.config import TransformerConfig
from unmask.transformer.rotary import rotate


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); at the flat positions `at` alone where these are given."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm_1 = norm(config)
        self.attention = Attention(config)
        self.norm_2 = norm(config)
        self.mlp = SwiGLU(config) if config.flavour == "llama" else GELU(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        rotary: tuple[Tensor, Tensor],
        attend: Attend | None = None,
        at: Int[Tensor, " N"] | None = None,
        seen: Bool[Tensor, "B 1 L L"] | None = None,
    ) -> Float[Tensor, "B L D"] | Float[Tensor, "N D"]:
        x = chosen(x, at) + self.dropout(self.attention(self.norm_1(x), rotary, attend, at, seen))
        return x + self.dropout(self.mlp(self.norm_2(x)))


class Attention(nn.Module):
    """Multi-head attention with rotary positions and grouped queries; rows of `qkv` are all queries, all keys, all
    values.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.groups, self.causal = config.heads, config.groups, config.causal
        rows = (config.heads + 2 * config.groups) * config.head_width
        self.qkv = nn.Linear(config.width, rows, bias=config.qkv_bias)
        self.project = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        rotary: tuple[Tensor, Tensor],
        attend: Attend | None = None,
        at: Int[Tensor, " N"] | None = None,
        seen: Bool[Tensor, "B 1 L L"] | None = None,
    ) -> Float[Tensor, "B L D"] | Float[Tensor, "N D"]:
        qkv, heads, groups = linear(x, self.qkv), self.heads, self.groups
        if attend is None and cpu.attends(qkv, heads // groups):
            y = cpu.Attention.apply(qkv, *rotary, heads, groups, self.causal, seen)
            return linear(chosen(y, at), self.project)
        turned, v = qkv.unflatten(-1, (heads + 2 * groups, -1)).split([heads + groups, groups], -2)
        q, k = rotate(turned, rotary).split([heads, groups], -2)
        attend = attend or partial(attention, seen=seen, causal=self.causal and seen is None)
        return linear(chosen(attend(q, k, v).flatten(2), at), self.project)


def chosen(x: Float[Tensor, "B L D"], at: Int[Tensor, " N"] | None) -> Float[Tensor, "B L D"] | Float[Tensor, "N D"]:
    """The rows of x at the flat positions `at`; x itself where none are given."""
    return x if at is None else x.flatten(0, 1).index_select(0, at)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), no biases; gate and up share one matrix product."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.mlp_width, bias=False)
        self.down = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        gate_up = linear(x, self.gate_up)
        if cpu.by_hand(gate_up):
            return linear(cpu.SwiGLU.apply(gate_up), self.down)
        gate, up = gate_up.chunk(2, -1)
        return linear(F.silu(gate) * up, self.down)


class GELU(nn.Module):
    """down(gelu_tanh(up(x))), with biases."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        return linear(F.gelu(linear(x, self.up), approximate="tanh"), self.down)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the statistics in float32 or wider."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(width)), eps

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        if cpu.by_hand(x):
            return cpu.RMSNorm.apply(x, self.weight, self.eps)
        if x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return cpu.rms_norm(upcast(x), upcast(self.weight), self.eps).to(x.dtype)
        return F.rms_norm(upcast(x), self.weight.shape, upcast(self.weight), self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / std * weight + bias, the statistics in float32 or wider."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = (
            nn.Parameter(torch.empty(width)),
            nn.Parameter(torch.empty(width)),
            eps,
        )

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        weight, bias = upcast(self.weight), upcast(self.bias)
        return F.layer_norm(upcast(x), self.weight.shape, weight, bias, self.eps).to(x.dtype)


def norm(config: TransformerConfig) -> RMSNorm | LayerNorm:
    return (RMSNorm if config.flavour == "llama" else LayerNorm)(config.width, config.norm_eps)


def embedding(rows: int, width: int) -> nn.Embedding:
    """Without numbers: to draw them, on the meta device, torch would import its compiler, which takes a second."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


def upcast(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def linear(x: Float[Tensor, "*B D"], layer: nn.Linear) -> Float[Tensor, "*B E"]:
    """layer(x), by the faster way of a CPU; with what its adapter adds, where it has one (`unmask.lora`)."""
    way = cpu.linear if torch.is_grad_enabled() else product
    y, adapter = way(x, layer.weight, layer.bias), layer._modules.get("adapter")
    return y if adapter is None else y + adapter(x)


def product(
    x: Float[Tensor, "*B D"], weight: Float[Tensor, "E D"], bias: Float[Tensor, " E"] | None = None
) -> Float[Tensor, "*B E"]:
    """x weight' + bias, by oneDNN for a large float32 matrix on a CPU where no gradient is wanted.

    torch leaves float32 to MKL, which takes about twice as long on an AMD processor (benchmarks/products.py).
    """
    plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    plain = plain or weight.numel() < cpu.LARGE or weight.device.type != "cpu" or not cpu.ONEDNN
    if plain or not x.dtype == weight.dtype == torch.float32:
        return F.linear(x, weight, bias)
    if x.numel() == x.shape[-1] and cpu.by_inputs(weight):
        y = cpu.row_product(weight)(x.view(-1)).view(*x.shape[:-1], -1)
        return y if bias is None else y + bias
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def output_product(
    state: Float[Tensor, "n D"], weight: Float[Tensor, "V D"], bias: Float[Tensor, " V"] | None
) -> Float[Tensor, "n V"]:
    """state weight' + bias in float32, or in training under autocast in its precision and then widened."""
    device = state.device.type
    if torch.is_grad_enabled() and torch.is_autocast_enabled(device):
        return upcast(F.linear(state, weight, bias))
    with torch.autocast(device, enabled=False):
        state, bias = upcast(state), None if bias is None else upcast(bias)
        if weight.dtype not in (torch.bfloat16, torch.float16) or torch.is_grad_enabled():
            return product(state, upcast(weight), bias)
        # A part is widened, used and forgotten while it lies in the cache: never a second copy of the matrix, and
        # 7 times faster than the whole at V = 50257, D = 256 and 16 positions on a CPU.
        rows = max(1, (1 << 20 if device == "cpu" else 1 << 26) // weight.shape[1])
        wide = torch.empty((min(rows, len(weight)), weight.shape[1]), dtype=torch.float32, device=state.device)
        logits = torch.cat([product(state, wide[: len(part)].copy_(part)) for part in weight.split(rows)], -1)
        return logits if bias is None else logits + bias
