"""Where the parts of a checkpoint are: its weights, and what stands beside them."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from unmask.checkpoint.runs import CONFIG, MANIFEST, MODEL, so_far
from unmask.checkpoint.tensors import INDEX
from unmask.files import Row, read_json

HYDRA = ".hydra/config.yaml"
WEIGHTS = (MODEL, MODEL + INDEX, "pytorch_model.bin", "pytorch_model.bin" + INDEX, "checkpoints-meta/checkpoint.pth")
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class Found:
    """Where a checkpoint's parts are."""

    weights: Path
    config: Row
    """What stands beside the weights: ours, the hub's, or hydra's; empty where nothing does."""
    folder: Path


def find(path: Path) -> Found:
    """The weights and configuration of a folder or file. Raises ValueError where there are none, or several."""
    if path.is_file():
        folder = path.parent
        places = (folder / CONFIG, folder / HYDRA, folder.parent / HYDRA)
    elif path.is_dir():
        folder, places = path, (path / CONFIG, path / HYDRA)
    else:
        raise ValueError(f"{path}: no run folder and no published checkpoint: train one with `unmask train`, or hf://…")
    config = next((each for each in places if each.is_file()), None)
    row = so_far(read_settings(config), folder) if config else {}
    if path.is_file():
        return Found(path, row, folder)
    weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    return Found(weights or (path / MODEL if "network" in row else _only(path)), row, folder)


def _only(path: Path) -> Path:
    several = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES)
    if len(several) != 1:
        if (path / MANIFEST).is_file():
            raise ValueError(f"{path}: prepared data, and no checkpoint: `unmask train tiny --data {path}` makes one")
        if several:
            raise ValueError(f"{path}: {len(several)} files of weights ({several[0].name}, ...): give one of them")
        raise ValueError(
            f"{path}: no run folder and no published checkpoint (no {MODEL}): train one with `unmask train`"
        )
    return several[0]


def read_settings(path: Path) -> Row:
    """A configuration from JSON, or YAML as hydra writes it. Raises ValueError for what is neither."""
    if path.suffix not in (".yaml", ".yml"):
        return read_json(path)
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())}): restore it") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected settings, found a {type(value).__name__}")
    return value
