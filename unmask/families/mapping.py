"""Whose tensor is which of ours, and whose configuration: as data, in both directions.

A family is one table. Each line names a tensor of ours ({i} is the layer), theirs, and how the one is written as the
other; all transforms are invertible, so a table reads and writes. A configuration is renamed the same way.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from unmask.conditioned import Conditioned, ConditionedConfig
from unmask.files import Row, is_number
from unmask.transformer import Transformer, TransformerConfig

Config = TransformerConfig | ConditionedConfig


class Transform(NamedTuple):
    """Tensors of theirs as one of ours, and back."""

    read: Callable[[TransformerConfig, tuple[Tensor, ...]], Tensor]
    write: Callable[[TransformerConfig, Tensor], tuple[Tensor, ...]]


def _by_kind(config: TransformerConfig, theirs: tuple[Tensor, ...]) -> Tensor:
    """Rows (group, [queries.., key, value], head width) -> all queries, all keys, all values."""
    packed = theirs[0].unflatten(0, (config.groups, -1, config.head_width))
    return torch.cat([part.flatten(0, 2) for part in packed.split([config.heads // config.groups, 1, 1], 1)])


def _by_group(config: TransformerConfig, ours: Tensor) -> tuple[Tensor, ...]:
    parts = [part.unflatten(0, (config.groups, -1, config.head_width)) for part in _apart(config, ours)]
    return (torch.cat(parts, 1).flatten(0, 2),)


def _apart(config: TransformerConfig, ours: Tensor) -> tuple[Tensor, ...]:
    kv = config.groups * config.head_width
    return ours.split([config.width, kv, kv])


SAME = Transform(lambda _, theirs: theirs[0], lambda _, ours: (ours,))
STACKED = Transform(lambda _, theirs: torch.cat(theirs), lambda _, ours: ours.chunk(2))
QKV = Transform(lambda _, theirs: torch.cat(theirs), _apart)
GROUPED = Transform(_by_kind, _by_group)
# The last row is the mask's, which is never predicted: left out when read, zeros when written.
MASK_ROW = Transform(lambda _, theirs: theirs[0][:-1], lambda _, ours: (torch.cat([ours, torch.zeros_like(ours[:1])]),))


class Line(NamedTuple):
    """One line of a family's table; left out where our network has no such tensor."""

    ours: str
    theirs: tuple[str, ...]
    transform: Transform = SAME


@dataclass(frozen=True)
class Family:
    """A table, and what else the published code takes for granted."""

    name: str
    lines: tuple[Line, ...]
    config: Mapping[str, object]
    """Fields of our configuration that all its networks share."""
    fits: Callable[[Config], bool]
    """Whether the published code can be a network of this configuration."""
    requires: str
    """`fits` in words."""
    mark: str
    """A tensor that tells the family from all before it in `FAMILIES`."""
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Our field -> where their configuration has it (a dotted path; the first one is written)."""
    more: Callable[[Row], Row] = lambda row: {}
    """Our fields that are no plain renaming. Raises ValueError for what this package's networks cannot be."""
    constants: Callable[[Config], Row] = lambda config: {}
    """What else their configuration says."""
    kinds: tuple[str, ...] = ()
    """`model_type` in their config.json."""
    heads: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """(layers, width) -> heads of the published sizes, which shapes do not tell."""
    output_rows: int = 0
    """Rows of the output layer beyond the vocabulary."""
    buffers: Mapping[str, Callable[[TransformerConfig], Tensor]] = field(default_factory=dict)
    """Tensors that follow from the configuration: ignored when read (they may be absent), written."""
    length: tuple[str, int] = ("max_position_embeddings", 2048)
    """Where their configuration has the longest text, and what it is where they do not say."""
    tokenizer: tuple[str, int] | None = None
    """(repository on the hub, vocabulary of the network) of the tokenizer that all its networks share."""
    url: str = ""

    def ignores(self, name: str, config: Config) -> bool:
        """Whether a tensor of theirs says nothing: a buffer, or a tied output layer written twice."""
        written_twice = config.tied and name in dict(self.lines_of("output.weight"))
        return name in self.buffers or written_twice or re.fullmatch(r"(.*\.)?rotary_emb\.inv_freq", name) is not None

    def lines_of(self, ours: str) -> list[tuple[str, str]]:
        """(their name, ours) of the tensors that `ours` is made of."""
        return [(name, ours) for line in self.lines if line.ours == ours for name in line.theirs]


def network_of(config: Config, seed: int | None = None) -> Transformer | Conditioned:
    """The network of a configuration, without memory unless there is a seed. Raises ValueError for absurd sizes."""
    try:
        return config.build(seed)
    except (RuntimeError, OverflowError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"no such network can be made ({reason})") from None


def configured(kind: type[Config], values: Row) -> Config:
    """A configuration of JSON data. Raises ValueError for a value that is of another type than its field."""
    hints = get_type_hints(kind)
    if wrong := [name for name, value in values.items() if not _fits(value, hints[name])]:
        raise ValueError(f"{wrong[0]} {values[wrong[0]]!r:.60} is of the wrong kind: restore it")
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return kind(**given)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"it does not describe a network ({error})") from None


def _fits(value: object, kind: Any) -> bool:
    """Whether JSON data are of a field's type; any finite number is a float."""
    inner = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in inner
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple) and all(_fits(each, inner[0]) for each in value)
    if kind is float:
        return is_number(value)
    return type(value) is kind


def to_ours(
    family: Family,
    tensors: Mapping[str, Tensor],
    config: Config,
    *,
    shapes: Mapping[str, Tensor] | None = None,
    settle: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> dict[str, Tensor]:
    """The state_dict of our network from published tensors; unchanged ones are shared, not copied.

    `shapes` (default: the tensors) tell what there is without reading it; `settle` is what becomes of each tensor as
    soon as it is read. Raises ValueError that lists what is missing, surplus or misshapen.
    """
    network = network_of(config).state_dict()
    blank = {name: tensor for name, tensor in _written(family, network, config) if name not in family.buffers}
    there = tensors if shapes is None else shapes
    _compare(family, {name: tensor for name, tensor in there.items() if not family.ignores(name, config)}, blank)
    return {
        ours: settle(transform.read(_inner(config), tuple(tensors[name] for name in theirs)))
        for ours, theirs, transform in _lines(family, network, config)
    }


def copied(family: Family, config: Config) -> int:
    """Numbers of ours that are not, as they stand, in a published file: what a memory-mapped one must copy."""
    network = network_of(config).state_dict()
    lines = _lines(family, network, config)
    return sum(network[line.ours].numel() for line in lines if line.transform not in (SAME, MASK_ROW))


def to_published(family: Family, state_dict: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Tensors of the published code from our state_dict: the inverse of `to_ours`, the mask's output row zero.

    Raises ValueError where the published code has no such network, or the state_dict is not of this configuration.
    """
    if not family.fits(config):
        kind = type(config).__name__
        raise ValueError(f"{family.name} has no such network ({kind}): it requires {family.requires}")
    _compare(family, state_dict, network_of(config).state_dict())
    return {name: buffer(_inner(config)) for name, buffer in family.buffers.items()} | dict(
        _written(family, state_dict, config)
    )


def config_of(family: Family, tensors: Mapping[str, Tensor], published: Row | None = None, **known: object) -> Config:
    """The configuration of published tensors: their shapes, what their configuration says, and what is `known`.

    Each overrides those before it. `known` holds fields of ours. Raises ValueError where none of them tells, what they
    say is of another type, or our network cannot be theirs.
    """
    published = published or {}
    said = {ours: value for ours, paths in family.settings.items() if (value := _first(published, paths)) is not None}
    found = {**family.config, **_from_shapes(family, tensors), **said, **_more(family, published), **known}
    if type(found["layers"]) is int and found["layers"] > len(tensors):  # before so many are made
        raise ValueError(f"{family.name}: {len(tensors)} tensors, but {found['layers']!r:.60} layers are spoken of")
    if "heads" not in found:
        size = cast(tuple[int, int], (found["layers"], found["width"]))
        if size not in family.heads:
            raise ValueError(
                f"{family.name}: shapes do not tell the heads of {size[0]} layers of width {size[1]}: "
                'give --config FILE (config=), of their configuration or {"heads": ...}'
            )
        found["heads"] = family.heads[size]
    kind = ConditionedConfig if "reading" in found else TransformerConfig
    unknown = sorted(found.keys() - {each.name for each in fields(kind)})
    if unknown:
        raise ValueError(f"{family.name}: its configuration has no {', '.join(unknown)}")
    try:
        return configured(kind, found)
    except ValueError as error:
        raise ValueError(f"{family.name}: its configuration: {error}") from None


def _more(family: Family, published: Row) -> Row:
    try:
        return family.more(published) if published else {}
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{family.name}: its configuration does not describe a network ({what})") from None


def with_its_output(family: Family, tensors: Mapping[str, Tensor], config: Config) -> Config:
    """Not tied, whatever is said, where an output layer lies there that is another than the embedding."""
    ((output, _),), ((embedding, _),) = family.lines_of("output.weight"), family.lines_of("embedding.weight")
    if not isinstance(config, TransformerConfig) or not config.tied or output not in tensors:
        return config
    return config if torch.equal(tensors[output], tensors[embedding]) else replace(config, tied=False)


def length_of(family: Family, published: Row) -> int:
    """The longest text that it was trained on."""
    path, usual = family.length
    value = _first(published, (path, "model.length"))
    return value if type(value) is int and value > 0 else usual


def published_config(family: Family, config: Config, length: int | None = None) -> Row:
    """Their configuration of a network of ours, trained on texts of `length`: the inverse of `config_of`."""
    row: Row = {}
    if length is not None:
        _put(row, family.length[0], length)
    for ours, paths in family.settings.items():
        value = {**asdict(config), **_spelt(config)}.get(ours)
        if value is not None:
            _put(row, paths[0], value)
    for path, value in family.constants(config).items():
        _put(row, path, value)
    return row


def _spelt(config: Config) -> Row:
    """Sizes that a configuration may leave to their defaults."""
    if isinstance(config, ConditionedConfig):
        return {}
    return {"kv_heads": config.groups, "mlp": config.mlp_width, "mask_id": None if config.causal else config.mask}


def _from_shapes(family: Family, tensors: Mapping[str, Tensor]) -> Row:
    names = {line.ours: line.theirs[0].format(i=0) for line in family.lines}
    down = next(line.theirs[0] for line in family.lines if line.ours == "blocks.{i}.mlp.down.weight")
    seen = ["embedding.weight", "output.weight", "blocks.{i}.mlp.down.weight"]
    tied = names["output.weight"] not in tensors and "tied" in family.settings
    seen = [ours for ours in seen if not tied or ours != "output.weight"]
    absent = [names[ours] for ours in seen if names[ours] not in tensors]
    if absent:
        raise ValueError(f"not a checkpoint of {family.name}: it has no {', '.join(absent)}")
    shapes = {ours: tuple(tensors[names[ours]].shape) for ours in seen}
    if any(len(shape) != 2 for shape in shapes.values()):
        listed = ", ".join(f"{names[ours]} {shape}" for ours, shape in shapes.items())
        raise ValueError(f"not a checkpoint of {family.name}: {listed} should be matrices")
    rows, width = shapes["embedding.weight"]
    vocab = rows if tied else shapes["output.weight"][0] - family.output_rows
    found: Row = {
        "vocab": vocab,
        "layers": sum(down.format(i=i) in tensors for i in range(len(tensors))),
        "width": width,
    }
    if "reading" in family.config:
        (found["condition"],) = tensors[names["level.2.bias"]].shape if names["level.2.bias"] in tensors else (128,)
        return found
    found |= {"mlp": shapes["blocks.{i}.mlp.down.weight"][1], "tied": tied}
    if names.get("blocks.{i}.attention.qkv.bias") in tensors:
        found["qkv_bias"] = True
    if "causal" not in family.config:
        found["causal"] = rows == vocab
    return found


def _lines(family: Family, network: Mapping[str, Tensor], config: Config) -> Iterator[Line]:
    for ours, theirs, transform in family.lines:
        for i in range(config.layers if "{i}" in ours else 1):
            if (name := ours.format(i=i)) in network:
                yield Line(name, tuple(each.format(i=i) for each in theirs), transform)


def _written(family: Family, network: Mapping[str, Tensor], config: Config) -> Iterator[tuple[str, Tensor]]:
    for ours, theirs, transform in _lines(family, network, config):
        yield from zip(theirs, transform.write(_inner(config), network[ours]), strict=True)


def _inner(config: Config) -> TransformerConfig:
    return config.inner if isinstance(config, ConditionedConfig) else config


def _first(row: Row, paths: tuple[str, ...]) -> object:
    for path in paths:
        value: object = row
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def _put(row: Row, path: str, value: object) -> None:
    *folders, last = path.split(".")
    for folder in folders:
        row = row.setdefault(folder, {})
    row[last] = value


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
        parts = [f"{kind}: {_listed(names)}" for kind, names in wrong.items() if names]
        raise ValueError(f"tensors do not fit this {family.name} configuration; {'; '.join(parts)}")


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
