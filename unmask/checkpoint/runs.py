"""Run folders, in files that hold numbers and never code.

config.json (network, training, data), model.safetensors (the weights to use: the average where one is kept),
tokenizer.json, and checkpoints/ (what resuming needs: unmask/train/checkpoints.py).
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

from torch import Tensor, nn

from unmask.conditioned import ConditionedConfig
from unmask.families import Config, configured
from unmask.files import Row, is_number, read_json
from unmask.transformer import TransformerConfig

CONFIG, MODEL, STATE, TOKENIZER = "config.json", "model.safetensors", "state.safetensors", "tokenizer.json"
CHECKPOINTS, MANIFEST = "checkpoints", "manifest.json"
SIZES = ("vocab", "layers", "heads", "width")  # what no default stands for in a checkpoint


def network_config(config: Row, path: Path) -> Config:
    """The network of a config.json. Raises ValueError where it is missing or names what this version does not know."""
    values = config.get("network")
    if not isinstance(values, dict):
        raise ValueError(f'{path}: "network" does not describe a network of this version (no such entry)')
    if (kind := network_kind(values)) is None:
        what = f"a {values['type']!r:.60}, a class that is not of this package"
        remedy = "run a script that has the class and calls unmask.cli.main (examples/network.py)"
        raise ValueError(f'{path}: "network" is {what}: {remedy}')
    values = {name: value for name, value in values.items() if name != "type"}
    if surplus := sorted(set(values) - {field.name for field in fields(kind)}):
        raise ValueError(f'{path}: "network" does not describe a network of this version ({surplus})')
    if absent := [name for name in SIZES if name not in values]:
        raise ValueError(f'{path}: "network" does not say its {", ".join(absent)}: restore it')
    try:
        return configured(kind, values)
    except ValueError as error:
        raise ValueError(f'{path}: "network": {error}') from None


def network_kind(described: Row) -> type[Config] | None:
    """The class of a `describe`d network; None for one that is not there."""
    named = {each.__name__: each for each in (*_own(TransformerConfig), ConditionedConfig)}
    return named.get(str(described["type"])) if "type" in described else TransformerConfig


def _own(kind: type[TransformerConfig]) -> Iterator[type[TransformerConfig]]:
    """Classes made of this one, the last one defined last: in a notebook, the one to take."""
    for each in kind.__subclasses__():
        yield each
        yield from _own(each)


def assign(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Make `tensors` the network's weights, without a copy.

    Raises ValueError listing what is missing, surplus or misshapen.
    """
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = [f"missing {name}" for name in wanted if name not in found]
    wrong += [f"surplus {name}" for name in found if name not in wanted]
    both = [name for name in wanted if name in found and wanted[name] != found[name]]
    wrong += [f"{name} is {found[name]}, not {wanted[name]}" for name in both]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"{path}: does not fit its {CONFIG}: {'; '.join(wrong[:5])}{more}")
    network.load_state_dict(dict(tensors), assign=True)


def so_far(config: Row, folder: Path) -> Row:
    """The configuration of a run that lies there, or of its checkpoint, with the steps and the cost of what was done of
    it.
    """
    training, budget, step = config.get("training"), config.get("budget"), _step(folder)
    if not isinstance(training, dict) or not isinstance(budget, dict) or not all(map(is_number, budget.values())):
        return config
    steps = training.get("steps")
    if type(steps) is not int or type(step) is not int or not 0 <= step < steps:
        return config
    cost = {key: value * step // steps if type(value) is int else value * step / steps for key, value in budget.items()}
    return {**config, "training": {**training, "steps": step}, "budget": cost}


def _step(folder: Path) -> object:
    """After which step the weights of a run, or of a checkpoint, are; None where there is no telling."""
    saved = sorted((folder / CHECKPOINTS).glob("[0-9]*"), reverse=True)
    path = next((each / MANIFEST for each in (folder, *saved) if (each / MANIFEST).is_file()), None)
    with suppress(ValueError):
        return None if path is None else read_json(path).get("step")
    return None


def describe(value: object) -> object:
    """A dataclass as JSON data with its class named under "type", so that a config says which of a union it holds."""
    if is_dataclass(value) and not isinstance(value, type):
        if type(value) is TransformerConfig:
            return {name: describe(each) for name, each in asdict(value).items()}
        inner = {field.name: describe(getattr(value, field.name)) for field in fields(value)}
        return {"type": type(value).__name__, **inner}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    return str(value) if isinstance(value, Path) else value
