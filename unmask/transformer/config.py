"""A size of the network; parameters and FLOPs follow from it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from unmask.transformer.network import Transformer


@dataclass(frozen=True)
class TransformerConfig:
    """A size is layers, heads, width and vocabulary; parameters and FLOPs follow.

    Raises ValueError for sizes that do not fit together. A class made of it that `build`s a network of its own is
    trained, saved and loaded like this one (examples/network.py).
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
    neighbours: int = 0
    """So many heads of each layer, or all it has, begin by reading one neighbour each, at distances -1, 1, -2, 2, ...
    (causal: -1, -2, -3, ...), which a random start has to find first. A way to draw weights, not another network."""
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
        if self.neighbours < 0:
            raise ValueError(f"neighbours {self.neighbours} must be 0 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} must be in [0, 1)")
        if not (0 < self.rotary_base < float("inf") and 0 <= self.norm_eps < float("inf")):
            what = f"rotary_base {self.rotary_base} must be above 0, norm_eps {self.norm_eps} 0 or more"
            raise ValueError(f"{what}, both finite")
        if not 0 <= self.mask <= self.vocab:
            raise ValueError(f"mask_id {self.mask} must lie in 0..vocab = {self.vocab}")

    def build(self, seed: int | None = 0) -> "Transformer":
        """The network of these sizes; see `Transformer` for `seed`."""
        from unmask.transformer.network import Transformer

        return Transformer(self, seed)

    @property
    def groups(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def mlp_width(self) -> int:
        return 4 * self.width if self.mlp is None else self.mlp

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
