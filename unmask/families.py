"""Published checkpoints: whose tensor is which of ours, as data, in both directions.

A family is one table. Each line names a tensor of ours ({i} is the layer), theirs, and how the one is written as the
other; all transforms are invertible, so a table reads and writes. RADD: github.com/ML-GSAI/RADD, arXiv 2406.03736.
SMDM (its MDMs and ARMs): github.com/ML-GSAI/SMDM, arXiv 2410.18514.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from unmask.transformer import Transformer, TransformerConfig


class Transform(NamedTuple):
    """Tensors of theirs as one of ours, and back."""

    read: Callable[[TransformerConfig, tuple[Tensor, ...]], Tensor]
    write: Callable[[TransformerConfig, Tensor], tuple[Tensor, ...]]


def _by_kind(config: TransformerConfig, theirs: tuple[Tensor, ...]) -> Tensor:
    """Rows (group, [queries.., key, value], head width) -> all queries, all keys, all values."""
    packed = theirs[0].unflatten(0, (config.groups, -1, config.head_width))
    return torch.cat([part.flatten(0, 2) for part in packed.split([config.heads // config.groups, 1, 1], 1)])


def _by_group(config: TransformerConfig, ours: Tensor) -> tuple[Tensor, ...]:
    kv = config.groups * config.head_width
    parts = [part.unflatten(0, (config.groups, -1, config.head_width)) for part in ours.split([config.width, kv, kv])]
    return (torch.cat(parts, 1).flatten(0, 2),)


SAME = Transform(lambda _, theirs: theirs[0], lambda _, ours: (ours,))
STACKED = Transform(lambda _, theirs: torch.cat(theirs), lambda _, ours: ours.chunk(2))
GROUPED = Transform(_by_kind, _by_group)
# The last row is the mask's, which is never predicted: left out when read, zeros when written.
MASK_ROW = Transform(lambda _, theirs: theirs[0][:-1], lambda _, ours: (torch.cat([ours, torch.zeros_like(ours[:1])]),))


class Line(NamedTuple):
    """One line of a family's table."""

    ours: str
    theirs: tuple[str, ...]
    transform: Transform = SAME


@dataclass(frozen=True)
class Family:
    """A table, and what else the published code takes for granted."""

    name: str
    lines: tuple[Line, ...]
    config: Mapping[str, object]
    """Fields of the configuration that all its networks share."""
    fits: Callable[[TransformerConfig], bool]
    """Whether the published code can be a network of this configuration."""
    requires: str
    """`fits` in words."""
    output_rows: int = 0
    """Rows of the output layer beyond the vocabulary."""
    buffers: Mapping[str, Callable[[TransformerConfig], Tensor]] = field(default_factory=dict)
    """Tensors that follow from the configuration: ignored when read (they may be absent), written."""


RADD = Family(
    "RADD",
    (
        Line("embedding.weight", ("vocab_embed.embedding",)),
        Line("blocks.{i}.norm_1.weight", ("blocks.{i}.norm1.weight",)),
        Line("blocks.{i}.norm_1.bias", ("blocks.{i}.norm1.bias",)),
        Line("blocks.{i}.attention.qkv.weight", ("blocks.{i}.attn_qkv.weight",)),
        Line("blocks.{i}.attention.project.weight", ("blocks.{i}.attn_out.weight",)),
        Line("blocks.{i}.norm_2.weight", ("blocks.{i}.norm2.weight",)),
        Line("blocks.{i}.norm_2.bias", ("blocks.{i}.norm2.bias",)),
        Line("blocks.{i}.mlp.up.weight", ("blocks.{i}.mlp.0.weight",)),
        Line("blocks.{i}.mlp.up.bias", ("blocks.{i}.mlp.0.bias",)),
        Line("blocks.{i}.mlp.down.weight", ("blocks.{i}.mlp.2.weight",)),
        Line("blocks.{i}.mlp.down.bias", ("blocks.{i}.mlp.2.bias",)),
        Line("norm.weight", ("output_layer.norm_final.weight",)),
        Line("norm.bias", ("output_layer.norm_final.bias",)),
        Line("output.weight", ("output_layer.linear.weight",), MASK_ROW),
        Line("output.bias", ("output_layer.linear.bias",), MASK_ROW),
    ),
    config={"flavour": "dit"},
    fits=lambda c: (
        (c.flavour, c.causal, c.groups, c.mlp_width, c.norm_eps, c.tied)
        == ("dit", False, c.heads, 4 * c.width, 1e-5, False)
    ),
    requires="flavour dit, bidirectional, not tied, no grouped queries, an MLP 4 x width, norm_eps 1e-5",
    output_rows=1,
    buffers={
        "rotary_emb.inv_freq": lambda c: 1 / c.rotary_base ** (torch.arange(0, c.head_width, 2).float() / c.head_width)
    },
)

SMDM = Family(
    "SMDM",
    (
        Line("embedding.weight", ("transformer.wte.weight",)),
        Line("blocks.{i}.norm_1.weight", ("transformer.h.{i}.norm_1.weight",)),
        Line("blocks.{i}.attention.qkv.weight", ("transformer.h.{i}.attn.attn.weight",), GROUPED),
        Line("blocks.{i}.attention.project.weight", ("transformer.h.{i}.attn.proj.weight",)),
        Line("blocks.{i}.norm_2.weight", ("transformer.h.{i}.norm_2.weight",)),
        Line(
            "blocks.{i}.mlp.gate_up.weight",
            ("transformer.h.{i}.mlp.swiglu.w1.weight", "transformer.h.{i}.mlp.swiglu.w2.weight"),
            STACKED,
        ),
        Line("blocks.{i}.mlp.down.weight", ("transformer.h.{i}.mlp.swiglu.w3.weight",)),
        Line("norm.weight", ("transformer.ln_f.weight",)),
        Line("output.weight", ("lm_head.weight",)),
    ),
    config={"flavour": "llama", "rotary_dtype": "bfloat16"},
    fits=lambda c: (c.flavour, c.rotary_base, c.norm_eps, c.tied) == ("llama", 10_000, 1e-5, False),
    requires="flavour llama, not tied, rotary_base 10000, norm_eps 1e-5",
)


def to_ours(family: Family, tensors: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """The state_dict of our network from published tensors; unchanged ones are shared, not copied.

    Raises ValueError that lists what is missing, surplus or misshapen.
    """
    blank = to_published(family, Transformer(config, seed=None).state_dict(), config)
    weights = {name: tensor for name, tensor in tensors.items() if name not in family.buffers}
    _compare(family, weights, {name: tensor for name, tensor in blank.items() if name not in family.buffers})
    return {
        ours: transform.read(config, tuple(weights[name] for name in theirs))
        for ours, theirs, transform in _lines(family, config.layers)
    }


def to_published(family: Family, state_dict: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Tensors of the published code from our state_dict: the inverse of `to_ours`, the mask's output row zero.

    Raises ValueError where the published code has no such network, or the state_dict is not of this configuration.
    """
    if not family.fits(config) or config.mask != config.vocab:
        raise ValueError(f"{family.name} has no such network: it requires {family.requires}, mask_id {config.vocab}")
    _compare(family, state_dict, Transformer(config, seed=None).state_dict())
    tensors = {name: buffer(config) for name, buffer in family.buffers.items()}
    for ours, theirs, transform in _lines(family, config.layers):
        tensors |= zip(theirs, transform.write(config, state_dict[ours]), strict=True)
    return tensors


def config_of(family: Family, tensors: Mapping[str, Tensor], *, heads: int, **known: object) -> TransformerConfig:
    """The configuration of published tensors, from their shapes; what shapes do not tell (heads, kv_heads) is given.

    An embedding without the mask's row is a causal network's. `known` overrides what was found. Raises ValueError
    where the shapes do not tell.
    """
    names = {ours: theirs[0] for ours, theirs, _ in family.lines}
    seen = ("embedding.weight", "output.weight", "blocks.{i}.mlp.down.weight")
    absent = [names[ours] for ours in seen if names[ours].format(i=0) not in tensors]
    if absent:
        raise ValueError(f"not a checkpoint of {family.name}: it has no {', '.join(absent)} (i = 0)")
    embedding, output, down = (tuple(tensors[names[ours].format(i=0)].shape) for ours in seen)
    if not len(embedding) == len(output) == len(down) == 2:
        raise ValueError(f"not a checkpoint of {family.name}: embedding {embedding}, output {output}, MLP {down}")
    vocab = output[0] - family.output_rows
    found: dict[str, object] = {
        "vocab": vocab,
        "layers": sum(names[seen[2]].format(i=i) in tensors for i in range(len(tensors))),
        "width": embedding[1],
        "mlp": down[1],
        "causal": embedding[0] == vocab,
    }
    return TransformerConfig(**{**found, **family.config, **known, "heads": heads})  # type: ignore[arg-type]


def _lines(family: Family, layers: int) -> Iterator[Line]:
    for ours, theirs, transform in family.lines:
        for i in range(layers if "{i}" in ours else 1):
            yield Line(ours.format(i=i), tuple(name.format(i=i) for name in theirs), transform)


def _compare(family: Family, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    wrong = {
        "missing": [name for name in expected if name not in tensors],
        "surplus": [name for name in tensors if name not in expected],
        "misshapen": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in expected
            if name in tensors and tensors[name].shape != expected[name].shape
        ],
    }
    if any(wrong.values()):
        parts = [f"{kind}: {', '.join(names)}" for kind, names in wrong.items() if names]
        raise ValueError(f"tensors do not fit this {family.name} configuration; {'; '.join(parts)}")
