"""A bidirectional Transformer that is told the level of masking: the network of SEDD and of MDLM.

Layers as RADD's (LayerNorm, rotary attention, GELU MLP), each shifted, scaled and gated by what an embedding of
sigma = -log(1 - level) makes of it (adaptive LayerNorm). SEDD (arXiv 2310.16834) reads it as a concrete score, MDLM
(arXiv 2406.07524) as a law of the token, mostly with the level left out.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask import cpu
from unmask.draws import sent
from unmask.network import Reading, Then, read_out
from unmask.transformer import GELU, Attention, TransformerConfig, embedding, rotary_tables

FREQUENCIES = 256  # numbers that sigma is first turned into
CLEAREST = 1e-12  # the smallest level told where a score divides by it


@dataclass(frozen=True)
class ConditionedConfig:
    """A size is layers, heads, width, vocabulary and the width of the embedded level."""

    vocab: int
    """Real tokens V; the mask is V."""
    layers: int = 12
    heads: int = 12
    width: int = 768
    condition: int = 128
    """Width of the embedded level."""
    reading: Literal["law", "score", "scaled score"] = "law"
    """What comes out: log q up to a constant (MDLM), the log of the concrete score (SEDD), or that with the factor
    V (e^sigma - 1) left out (SEDD with scale_by_sigma)."""
    timed: bool = True
    """False: the level is always told as 0 (MDLM without time conditioning)."""
    sigma_max: float = -math.log(1e-3)
    """Levels beyond the noise schedule's end are told as its end: log-linear with eps 1e-3 ends at sigma 6.9."""
    dropout: float = 0.0
    causal = False
    tied = False

    def __post_init__(self) -> None:
        if self.reading not in ("law", "score", "scaled score"):
            raise ValueError(f"reading {self.reading!r} must be law, score or scaled score")
        if self.condition < 1 or not self.sigma_max > 0:
            raise ValueError(f"condition {self.condition} must be at least 1, sigma_max {self.sigma_max} above 0")
        _ = self.inner

    def build(self, seed: int | None = 0) -> "Conditioned":
        """The network of these sizes; see `Conditioned` for `seed`."""
        return Conditioned(self, seed)

    @property
    def inner(self) -> TransformerConfig:
        """The same sizes without a level. Raises ValueError where they do not fit together."""
        return TransformerConfig(self.vocab, self.layers, self.heads, self.width, flavour="dit", dropout=self.dropout)

    @property
    def mask(self) -> int:
        return self.vocab

    def parameters(self) -> dict[str, int]:
        """{"total", "non_embedding"} in closed form."""
        d, c, sizes = self.width, self.condition, self.inner.parameters()
        level = FREQUENCIES * c + c + c * c + c
        modulations = (self.layers * 6 + 2) * d * (c + 1)
        biases = (self.layers * 2 + 1) * d  # those of LayerNorm, which has none here
        return {name: count + level + modulations - biases for name, count in sizes.items()}

    def forward_flops(self, length: int, predicted: float) -> float:
        """As `TransformerConfig.forward_flops`, and the modulations."""
        told = FREQUENCIES * self.condition + self.condition**2 + (self.layers * 6 + 2) * self.width * self.condition
        return self.inner.forward_flops(length, predicted) + 2.0 * told


class Conditioned(nn.Module):
    """See the module's text; the call is `unmask.network.Network`'s.

    exp(logits) of a score network are s / r, r = (1 - level) / level: ratios that need not sum to one. Without a
    `level` the share of masks in a row is its level. `seed` initialises the weights as published (uniform within
    1 / sqrt(fan in); modulations and output layer zero); None leaves them on the meta device.
    """

    causal = False

    def __init__(self, config: ConditionedConfig, seed: int | None = 0) -> None:
        super().__init__()
        cpu.keep_freed()
        self.config = config
        self.vocab, self.mask_id, self.normalised = config.vocab, config.mask, config.reading == "law"
        with torch.device("meta"):
            self.embedding = embedding(config.vocab + 1, config.width)
            self.level = nn.Sequential(
                nn.Linear(FREQUENCIES, config.condition), nn.SiLU(), nn.Linear(config.condition, config.condition)
            )
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
            self.norm = Norm(config.width)
            self.modulation = nn.Linear(config.condition, 2 * config.width)
            self.output = nn.Linear(config.width, config.vocab)
        if seed is not None:
            self.to_empty(device="cpu")
            self._initialise(torch.Generator().manual_seed(seed))

    def _initialise(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                kind = name.rsplit(".", 2)[-2]
                if kind.startswith("norm"):
                    parameter.fill_(1.0)
                elif kind in ("modulation", "output"):
                    parameter.zero_()
                else:
                    matrix = self.get_parameter(name.rsplit(".", 1)[0] + ".weight")
                    parameter.uniform_(-1, 1, generator=generator).div_(math.sqrt(matrix.shape[1]))

    def sigma(self, tokens: Int[Tensor, "B L"], level: Float[Tensor, " B"] | None = None) -> Float[Tensor, " B"]:
        """-log(1 - level), in float64, at most the schedule's end."""
        if level is None:
            level = (tokens.cpu() == self.mask_id).double().mean(-1)
        sigma = -torch.log1p(-level.cpu().double().clamp(max=1.0))
        return sigma.clamp(max=self.config.sigma_max)

    def told(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, "B C"]:
        """silu(W2 silu(W1 [cos(sigma f), sin(sigma f)])), f_j = 10000^(-2j/256)."""
        f = torch.exp(-math.log(10_000) / (FREQUENCIES // 2) * torch.arange(FREQUENCIES // 2, device=sigma.device))
        angles = sigma.float()[:, None] * f
        return F.silu(self.level(torch.cat([angles.cos(), angles.sin()], -1).to(self.embedding.weight.dtype)))

    def forward(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"],
        *,
        then: Then | None = None,
        rows: Int[Tensor, " B"] | None = None,
        level: Float[Tensor, " B"] | None = None,
    ) -> Reading:
        """See `unmask.network.Network`."""
        device, length = self.embedding.weight.device, tokens.shape[1]
        sigma = self.sigma(tokens, level)
        # sums of float32 are cheap on the host, and MPS has no float64
        told = self.told((sigma if self.config.timed else torch.zeros_like(sigma)).float().to(device))
        x = self.embedding(sent(tokens, device))
        rotary = rotary_tables(self.config.inner, length, x.device)
        for block in self.blocks:
            x = block(x, rotary, told)
        at, row = sent(at, device), sent(at // length, device)
        shift, scale = self.modulation(told).chunk(2, -1)
        state, offset = self.norm(x).flatten(0, 1)[at], self._offset(sigma).to(x.device)

        def logits_of(which: slice) -> Float[Tensor, "n V"]:
            of = row[which]
            read = modulated(state[which], shift[of], scale[of])
            read = read if read.dtype == torch.float64 else read.float()
            logits = F.linear(read, self.output.weight.to(read.dtype), self.output.bias.to(read.dtype))
            return logits + offset[of, None]

        return read_out(logits_of, len(at), self.vocab, then)

    def _offset(self, sigma: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """log (s / r) less what the network says; log r = -log(e^sigma - 1)."""
        if self.config.reading == "law":
            return torch.zeros_like(sigma, dtype=torch.float32)
        if self.config.reading == "scaled score":
            return torch.full_like(sigma, -math.log(self.vocab), dtype=torch.float32)
        return torch.expm1(sigma.clamp(min=CLEAREST)).log().float()


class Block(nn.Module):
    """x + gate attention(norm(x) (1 + scale) + shift), then the same with the MLP."""

    def __init__(self, config: ConditionedConfig) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = Norm(config.width), Norm(config.width)
        self.attention, self.mlp = Attention(config.inner), GELU(config.inner)
        self.modulation = nn.Linear(config.condition, 6 * config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "B L D"], rotary: tuple[Tensor, Tensor], told: Float[Tensor, "B C"]
    ) -> Float[Tensor, "B L D"]:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(told)[:, None].chunk(6, -1)
        x = x + gate_1 * self.dropout(self.attention(modulated(self.norm_1(x), shift_1, scale_1), rotary))
        return x + gate_2 * self.dropout(self.mlp(modulated(self.norm_2(x), shift_2, scale_2)))


class Norm(nn.Module):
    """(x - mean) / std * weight, the statistics in float32 or wider."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        wide = x if x.dtype == torch.float64 else x.float()
        return F.layer_norm(wide, self.weight.shape, self.weight.to(wide.dtype)).to(x.dtype)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift
