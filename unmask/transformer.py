"""The one network of this package: a pre-norm Transformer with rotary attention, bidirectional or causal.

Two flavours: "dit" is RADD's (LayerNorm with bias, GELU(tanh) MLP with biases, output bias; arXiv 2406.03736) and
"llama" is SMDM's (RMSNorm, SwiGLU, no biases; arXiv 2410.18514). Neither takes time: what is masked says how far
along the text is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unmask import cpu
from unmask.cache import Attend, Cache, attention
from unmask.head import row_nats
from unmask.network import Nats, Reading, Target, Then, read_out


@dataclass(frozen=True)
class TransformerConfig:
    """A size is layers, heads, width and vocabulary; parameters and FLOPs follow.

    Raises ValueError for sizes that do not fit together.
    """

    vocab: int
    """Real tokens V; the mask is one id more unless `mask_id` says otherwise."""
    layers: int = 6
    """Blocks of attention and MLP."""
    heads: int = 4
    """Heads of attention; they divide the width."""
    width: int = 256
    """Width D of the residual stream."""
    causal: bool = False
    """Positions see what is left of them alone, as in an ARM."""
    flavour: Literal["llama", "dit"] = "llama"
    """llama: RMS norms, SwiGLU, no biases (SMDM's); dit: layer norms, GELU, with biases (RADD's)."""
    kv_heads: int | None = None
    """Grouped queries: heads of keys and values (default: as many as `heads`)."""
    mlp: int | None = None
    """Width of the MLP (default 4 x width)."""
    tied: bool = False
    """The output layer's matrix is the embedding's (and it has no bias)."""
    qkv_bias: bool = False
    """Queries, keys and values have biases (Qwen 2, Dream)."""
    shifted: bool = False
    """Bidirectional, yet position i is read from the state at i - 1, as in a causal network that it began as (Dream).
    """
    mask_id: int | None = None
    """Default V, one past the real tokens. An id below V (LLaDA) is a row of the vocabulary that is never predicted."""
    dropout: float = 0.0
    """Share of activations dropped in training."""
    rotary_base: float = 10_000.0
    """Base of the rotary angles: larger turns slower, for longer texts."""
    rotary_dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 reproduces SMDM's released code, which rounds its tables; only for parity with its checkpoints."""
    rotary_scaling: tuple[float, ...] | None = None
    """(factor,) turns all pairs so much slower; (factor, low, high, length) is Llama 3.1's rule: see `frequencies`."""
    norm_eps: float = 1e-5
    """Added to the variance in norms."""

    def __post_init__(self) -> None:
        sizes = {"vocab": self.vocab, "layers": self.layers, "heads": self.heads, "width": self.width}
        sizes |= {"kv_heads": self.groups, "mlp": self.mlp_width}
        if min(sizes.values()) < 1:
            raise ValueError(f"{sizes}: every size must be at least 1")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} must be an even multiple of heads {self.heads}")
        if self.heads % self.groups:
            raise ValueError(f"kv_heads {self.groups} must divide heads {self.heads}")
        if self.flavour not in ("llama", "dit") or self.rotary_dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"flavour {self.flavour!r} must be llama or dit, rotary_dtype {self.rotary_dtype!r} float32 or bfloat16"
            )
        if self.rotary_scaling is not None:
            object.__setattr__(self, "rotary_scaling", tuple(self.rotary_scaling))  # JSON has lists only
            if len(self.rotary_scaling) not in (1, 4) or min(self.rotary_scaling) <= 0:
                raise ValueError(
                    f"rotary_scaling {self.rotary_scaling} must be (factor,) or (factor, low, high, length)"
                )
        if self.causal and self.shifted:
            raise ValueError("shifted is for bidirectional networks: a causal one is read so anyway")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} must be in [0, 1)")
        if not 0 <= self.mask <= self.vocab:
            raise ValueError(f"mask_id {self.mask} must lie in 0..vocab = {self.vocab}")

    @property
    def groups(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def mlp_width(self) -> int:
        return self.mlp or 4 * self.width

    @property
    def mask(self) -> int:
        return self.vocab if self.mask_id is None else self.mask_id

    @property
    def embedding_rows(self) -> int:
        """V real tokens, and the mask where a bidirectional network reads one that is not among them."""
        return self.vocab + (0 if self.causal or self.mask < self.vocab else 1)

    def parameters(self) -> dict[str, int]:
        """{"total", "non_embedding"} in closed form; non-embedding is the N of 6ND: all but embedding and output
        layer.
        """
        d, m, kv = self.width, self.mlp_width, 2 * self.groups * self.head_width
        if self.flavour == "llama":
            block, final, output_bias = d * (d + kv) + d * d + 3 * d * m + 2 * d, d, 0
        else:
            block, final, output_bias = d * (d + kv) + d * d + 2 * d * m + m + d + 4 * d, 2 * d, self.vocab
        block += (d + kv) * self.qkv_bias
        non_embedding = self.layers * block + final
        output = 0 if self.tied else self.vocab * d + output_bias
        total = non_embedding + self.embedding_rows * d + output
        return {"total": total, "non_embedding": non_embedding}

    def forward_flops(self, length: int, predicted: float) -> float:
        """FLOPs of one sequence's forward pass: 2 a multiply-add; logits, and all of the last layer behind its
        attention, at `predicted` positions only.

        Attention counts all L x L products, causal or not, as torch's FlopCounterMode does; a training step is 3
        times this.
        """
        d, m, kv = self.width, self.mlp_width, 2 * self.groups * self.head_width
        behind = d * d + (3 if self.flavour == "llama" else 2) * d * m
        layer = d * (d + kv) + 2 * length * d + behind
        return 2.0 * (length * (self.layers * layer - behind) + predicted * (behind + d * self.vocab))


class Transformer(nn.Module):
    """See the module's text; the call is `unmask.network.Network`'s.

    `seed` initialises the weights as the flavour's paper does, from a generator of its own; None leaves them on the
    meta device, without memory, for weights that are to be assigned (`load_state_dict(..., assign=True)`).
    """

    normalised = True

    def __init__(self, config: TransformerConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.vocab, self.mask_id, self.causal = config.vocab, config.mask, config.causal
        with torch.device("meta"):
            self.embedding = nn.Embedding(config.embedding_rows, config.width)
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
            self.norm = _norm(config)
            self.output = None if config.tied else nn.Linear(config.width, config.vocab, config.flavour == "dit")
        self._rotary: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        if seed is not None:
            self.to_empty(device="cpu")
            initialise(self, torch.Generator().manual_seed(seed))

    def hidden(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"] | None = None,
        *,
        rotary: tuple[Tensor, Tensor] | None = None,
        attends: Sequence[Attend] | None = None,
    ) -> Float[Tensor, "B L D"] | Float[Tensor, "N D"]:
        """The last layer's normalised state, before the output layer, at every position or at the flat ones `at`.

        The positions are 0..L-1 and see each other, unless their own rotary tables and each layer's attention say
        otherwise. What nothing reads any more is not computed: the last layer's MLP runs at `at` alone.
        """
        tokens = tokens.to(self.embedding.weight.device, non_blocking=True)
        if self.causal:
            # A causal canvas may hold masks where nothing is written yet: no position left of them sees what stands in.
            tokens = tokens.masked_fill(tokens == self.mask_id, 0)
        x = self.embedding(tokens)
        rotary = rotary or self._tables(tokens.shape[1], x.device)
        read = [None] * (len(self.blocks) - 1) + [None if at is None else at.to(x.device, non_blocking=True)]
        for block, attend, of in zip(self.blocks, attends or [None] * len(self.blocks), read, strict=True):
            x = block(x, rotary, attend, of)
        return self.norm(x)

    def cached(self, slots: int, length: int) -> "Cached":
        """A view of the causal network that remembers up to `slots` rows of up to `length` tokens."""
        return Cached(self, slots, length)

    def forward(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"],
        *,
        then: Then | None = None,
        rows: Int[Tensor, " B"] | None = None,
        level: Float[Tensor, " B"] | None = None,
        cache: Cache | None = None,
        segments: Int[Tensor, "B L"] | None = None,
    ) -> Reading:
        """Logits [N V] in float32 at the flat positions `at`, or what `then` makes of them.

        `level` is ignored, the network being time-free, and so is `rows` without a `cache`. Given `segments`, a
        prediction depends on the tokens of its own segment alone (`unmask.wrappers.Apart`).

        Where no gradient is wanted the output layer's product is computed in float32, whatever the precision of
        the rest: a bfloat16 logit is off by up to one part in 256, and a sequence adds its errors up. In training
        it follows autocast, before a float32 softmax. Raises ValueError when a causal network is asked for a first
        position, which has nothing to its left.
        """
        if self.causal:
            if at.device.type == "cpu" and bool((at % tokens.shape[1] == 0).any()):
                raise ValueError(
                    "a causal network predicts nothing at position 0: begin each sequence with a given token"
                )
            at = at - 1
        elif self.config.shifted:
            at = torch.where(at % tokens.shape[1] == 0, at, at - 1)
        if cache is None:
            state = self.hidden(tokens, at, attends=None if segments is None else self._apart(segments))
        else:
            state = self._read_on(tokens, at, rows, cache)

        def logits_of(part: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
            logits = _product(part, *self.head())
            if self.mask_id >= self.vocab:
                return logits
            return logits.index_fill(-1, torch.tensor([self.mask_id], device=logits.device), -torch.inf)

        if isinstance(then, Nats) and isinstance(then.of, Target) and torch.is_grad_enabled():
            banned = self.mask_id if self.mask_id < self.vocab else None
            return row_nats(state, *self.head(), then.of.ids, then, banned)

        def recomputed(part: Tensor, which: slice) -> Reading:
            """`then` of the logits, which are not kept for the backward pass but computed again."""
            assert then is not None
            return checkpoint(lambda part: then(logits_of(part), which), part, use_reentrant=False)

        if then is not None and torch.is_grad_enabled():
            return read_out(lambda which: state[which], len(at), self.vocab, recomputed)
        return read_out(lambda which: logits_of(state[which]), len(at), self.vocab, then)

    def head(self) -> tuple[Float[Tensor, "V D"], Float[Tensor, " V"] | None]:
        """Weight and bias of the output layer."""
        if self.output is None:
            return self.embedding.weight[: self.vocab], None
        return self.output.weight, self.output.bias

    def _apart(self, segments: Int[Tensor, "B L"]) -> list[Attend]:
        """Attention within segments.

        Where a position is predicted from the state left of it, that state goes with the segment of what it predicts:
        the end token of a text is where the next one begins.
        """
        segments = segments.to(self.embedding.weight.device, non_blocking=True)
        if self.causal or self.config.shifted:
            segments = torch.cat([segments[:, 1:], segments[:, -1:]], 1)
        seen = segments[:, None, :, None] == segments[:, None, None, :]
        return [partial(attention, seen=seen.tril() if self.causal else seen)] * len(self.blocks)

    def _read_on(
        self, tokens: Int[Tensor, "B L"], at: Int[Tensor, " N"], rows: Int[Tensor, " B"] | None, cache: Cache
    ) -> Float[Tensor, "N D"]:
        """The states at `at`, what the cache does not remember of each row being read behind what it does."""
        device, states, asked = self.embedding.weight.device, [], []
        for window in cache.windows(tokens, at, rows, device):
            cos, sin = (table[window.where[1]] for table in self._tables(cache.length, device))
            attends = [partial(cache.attend, layer, window) for layer in range(len(self.blocks))]
            states.append(self.hidden(window.tokens, window.at, rotary=(cos, sin), attends=attends))
            asked.append(window.asked)
        return torch.cat(states)[torch.cat(asked).argsort().to(device, non_blocking=True)]

    def _tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        key = (length, device)
        if key not in self._rotary:
            # made during an evaluation under inference_mode, the tables could not serve the next training step
            with torch.inference_mode(False):
                self._rotary = {key: rotary_tables(self.config, length, device)}
        return self._rotary[key]


class Cached:
    """A causal Transformer with a memory: the same answers, but each row read on from where it was left.

    `slots` rows of up to `length` tokens can be remembered at a time (unmask/cache.py); no gradient flows. Raises
    ValueError for a bidirectional network: a new token changes all that it made of the others.
    """

    def __init__(self, network: Transformer, slots: int, length: int) -> None:
        if not network.causal:
            raise ValueError("a bidirectional network has nothing to remember: every token changes all states")
        self.network, self.cache = network, Cache(network.config.layers, slots, length)
        self.vocab, self.mask_id, self.causal = network.vocab, network.mask_id, True
        self.normalised = network.normalised

    @torch.no_grad()
    def __call__(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"],
        *,
        then: Then | None = None,
        rows: Int[Tensor, " B"] | None = None,
        level: Float[Tensor, " B"] | None = None,
    ) -> Reading:
        """See `unmask.network.Network`."""
        return self.network(tokens, at, then=then, rows=rows, level=level, cache=self.cache)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); at the flat positions `at` alone where these are given."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm_1 = _norm(config)
        self.attention = Attention(config)
        self.norm_2 = _norm(config)
        self.mlp = SwiGLU(config) if config.flavour == "llama" else GELU(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        rotary: tuple[Tensor, Tensor],
        attend: Attend | None = None,
        at: Int[Tensor, " N"] | None = None,
    ) -> Float[Tensor, "B L D"] | Float[Tensor, "N D"]:
        x = chosen(x, at) + self.dropout(self.attention(self.norm_1(x), rotary, attend, at))
        return x + self.dropout(self.mlp(self.norm_2(x)))


class Attention(nn.Module):
    """Multi-head attention with rotary positions and grouped queries; rows of `qkv` are all queries, all keys, all
    values.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.causal = config.heads, config.causal
        kv = config.groups * config.head_width
        self.split = [config.width, kv, kv]
        self.qkv = nn.Linear(config.width, sum(self.split), bias=config.qkv_bias)
        self.project = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        rotary: tuple[Tensor, Tensor],
        attend: Attend | None = None,
        at: Int[Tensor, " N"] | None = None,
    ) -> Float[Tensor, "B L D"] | Float[Tensor, "N D"]:
        qkv, width = linear(x, self.qkv), self.split[0] // self.heads
        if attend is None and cpu.by_hand(qkv) and x.shape[1] ** 2 * self.split[0] <= cpu.LONGEST * self.split[1]:
            groups = self.split[1] // width
            y = cpu.Attention.apply(qkv, *rotary, self.heads, groups, self.causal)
            return linear(chosen(y, at), self.project)
        q, k, v = (part.unflatten(-1, (-1, width)) for part in qkv.split(self.split, -1))
        attend = attend or partial(attention, causal=self.causal)
        return linear(chosen(attend(rotate(q, rotary), rotate(k, rotary), v).flatten(2), at), self.project)


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


def linear(x: Float[Tensor, "*B D"], layer: nn.Linear) -> Float[Tensor, "*B E"]:
    """layer(x), by the faster way of a CPU."""
    way = cpu.linear if torch.is_grad_enabled() else product
    return way(x, layer.weight, layer.bias)


def product(
    x: Float[Tensor, "*B D"], weight: Float[Tensor, "E D"], bias: Float[Tensor, " E"] | None = None
) -> Float[Tensor, "*B E"]:
    """x weight' + bias, by oneDNN for a large float32 matrix on a CPU where no gradient is wanted.

    torch leaves float32 to MKL, which takes about twice as long on an AMD processor (benchmarks/products.py).
    """
    plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or weight.numel() < 1 << 18
    if plain or weight.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or not cpu.ONEDNN:
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


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


def initialise(network: Transformer, generator: torch.Generator) -> None:
    """Draw the weights as the flavour's paper does, in place.

    llama (SMDM): normal, std sqrt(2 / (5 D)); what is added to the stream has std 1 / (sqrt(D) layers).
    dit (RADD's code): uniform within 1/sqrt(fan in), output layer zero, LayerNorm weight AND bias one.
    """
    config = network.config
    for name, parameter in network.named_parameters():
        leaf = name.rsplit(".", 2)[-2:]
        with torch.no_grad():
            if "norm" in name:
                parameter.fill_(1.0)
            elif leaf == ["qkv", "bias"]:
                parameter.zero_()
            elif config.flavour == "llama":
                added = leaf[0] in ("project", "down")
                std = 1 / (math.sqrt(config.width) * config.layers) if added else math.sqrt(2 / (5 * config.width))
                parameter.normal_(0, std, generator=generator)
            elif leaf[0] == "output":
                parameter.zero_()
            else:
                fan_in = config.mlp_width if leaf[0] == "down" else config.width
                parameter.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the statistics in float32 or wider."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(width)), eps

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        if cpu.by_hand(x):
            return cpu.RMSNorm.apply(x, self.weight, self.eps)
        return F.rms_norm(_upcast(x), self.weight.shape, _upcast(self.weight), self.eps).to(x.dtype)


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
        weight, bias = _upcast(self.weight), _upcast(self.bias)
        return F.layer_norm(_upcast(x), self.weight.shape, weight, bias, self.eps).to(x.dtype)


def _norm(config: TransformerConfig) -> RMSNorm | LayerNorm:
    return (RMSNorm if config.flavour == "llama" else LayerNorm)(config.width, config.norm_eps)


def _upcast(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _product(
    state: Float[Tensor, "n D"], weight: Float[Tensor, "V D"], bias: Float[Tensor, " V"] | None
) -> Float[Tensor, "n V"]:
    device = state.device.type
    if torch.is_grad_enabled() and torch.is_autocast_enabled(device):
        return _upcast(F.linear(state, weight, bias))
    with torch.autocast(device, enabled=False):
        state, bias = _upcast(state), None if bias is None else _upcast(bias)
        if weight.dtype not in (torch.bfloat16, torch.float16) or torch.is_grad_enabled():
            return product(state, _upcast(weight), bias)
        # A part is widened, used and forgotten while it lies in the cache: never a second copy of the matrix, and
        # 7 times faster than the whole at V = 50257, D = 256 and 16 positions on a CPU.
        rows = max(1, (1 << 20 if device == "cpu" else 1 << 26) // weight.shape[1])
        wide = torch.empty((min(rows, len(weight)), weight.shape[1]), dtype=torch.float32, device=state.device)
        logits = torch.cat([product(state, wide[: len(part)].copy_(part)) for part in weight.split(rows)], -1)
        return logits if bias is None else logits + bias
