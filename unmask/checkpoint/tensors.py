"""Tensors of a checkpoint, opened one by one: safetensors whole or in shards, or PyTorch's files without their code."""

import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unmask.files import read_json, readable

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INDEX = ".index.json"
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.|_forward_module\.)+")  # DDP's, torch.compile's, Fabric's
BUFFER = re.compile(r"(.*\.)?rotary_emb\.inv_freq")


@dataclass(frozen=True)
class Tensors(Mapping[str, Tensor]):
    """Name -> tensor, opened when it is asked for, memory-mapped; forgetting it gives its pages back."""

    path: Path
    shapes: Mapping[str, Tensor]
    """What there is, without its numbers: tensors on the meta device."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """The safetensors file of each name."""
    held: Mapping[str, Tensor] = field(default_factory=dict)
    """What is open already."""

    def __getitem__(self, name: str) -> Tensor:
        if name in self.held:
            return self.held[name]
        with safe_open(self.files[name], framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def dtype(self) -> torch.dtype:
        """That of most of the numbers."""
        counts: dict[torch.dtype, int] = {}
        for tensor in self.shapes.values():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
        return max(counts, key=lambda each: counts[each], default=torch.float32)


def open_tensors(path: Path) -> Tensors:
    """By the file's name: .safetensors, .index.json (shards beside it), or one of PyTorch's.

    Raises ValueError for a file that is missing, damaged, holds code, or numbers of another kind than floats.
    """
    if path.name.endswith(INDEX):
        return _sharded(path)
    if path.suffix == ".safetensors":
        return Tensors(path, shapes := _header(path), dict.fromkeys(shapes, path))
    held = read_torch(path)
    return Tensors(path, {name: _blank(path, name, each.shape, each.dtype) for name, each in held.items()}, held=held)


def _sharded(path: Path) -> Tensors:
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(each, str) for each in shards.values()):
        raise ValueError(f'{path}: no "weight_map" from tensors to files in it: restore it')
    files = sorted(set(shards.values()))
    if any(not file or Path(file).name != file or file.endswith(INDEX) for file in files):
        raise ValueError(f"{path}: names what is no file of weights in its folder: not a checkpoint to trust")
    parts = {file: open_tensors(path.with_name(file)) for file in files}
    absent = sorted(name for name, file in shards.items() if name not in parts[file])
    if absent:
        raise ValueError(f"{path}: {absent[0]} is not in {shards[absent[0]]} ({len(absent)} such): fetch it again")
    return Tensors(  # a shard may hold a tensor that the index says is another's
        path,
        {name: parts[file].shapes[name] for name, file in shards.items()},
        {name: parts[file].files[name] for name, file in shards.items() if name in parts[file].files},
        {name: parts[file].held[name] for name, file in shards.items() if name in parts[file].held},
    )


def _header(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: _blank(path, name, each.get_shape(), DTYPES.get(each.get_dtype(), each.get_dtype()))
                for name, each in slices.items()
            }
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None


def _blank(path: Path, name: str, shape: object, dtype: object) -> Tensor:
    if dtype not in DTYPES.values():
        raise ValueError(f"{path}: {name} holds {dtype}: only float weights can be read, not quantised ones")
    return torch.empty(shape, dtype=dtype, device="meta")  # pyrefly: ignore


def read_torch(path: Path) -> dict[str, Tensor]:
    """The weights of a PyTorch file, the average where it keeps one; memory-mapped where its format allows.

    Never runs code: only tensors and plain containers are unpickled. Raises ValueError for anything else.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            stored = torch.load(path, map_location="cpu", weights_only=True)  # the format before PyTorch 1.6
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # it names a function or class that it wants
            raise ValueError(
                f"{path}: holds code or objects beside tensors, which are never run: save its state_dict as safetensors"
            ) from None
        raise ValueError(f"{path}: not a whole PyTorch file") from None
    except (RuntimeError, EOFError, KeyError, OSError, BadZipFile, ValueError) as error:
        raise ValueError(f"{path}: not a whole PyTorch file ({_first_line(error)})") from None
    weights, average = _weights(stored), stored.get("ema") if isinstance(stored, dict) else None
    if not weights:
        raise ValueError(f"{path}: no weights in it: a state_dict, or one under model or state_dict, is looked for")
    if isinstance(average, dict) and isinstance(average.get("shadow_params"), list):
        weights |= _averaged(path, weights, average["shadow_params"])
    if empty := [name for name, each in weights.items() if each.is_meta or each.layout != torch.strided]:
        raise ValueError(f"{path}: {empty[0]} is sparse or without its numbers: save it as a plain tensor")
    return weights


def _weights(stored: object) -> dict[str, Tensor]:
    if not isinstance(stored, dict):
        return {}
    for key in ("state_dict", "model", "module", "model_state_dict"):
        if isinstance(stored.get(key), dict):
            stored = stored[key]
            break
    return {WRAPPERS.sub("", str(name)): value for name, value in stored.items() if isinstance(value, Tensor)}


def _averaged(path: Path, weights: dict[str, Tensor], average: list) -> dict[str, Tensor]:
    """A moving average is a list in the order of the parameters, which is the state_dict's without its buffers."""
    names = [name for name in weights if not BUFFER.fullmatch(name)]
    if [weights[name].shape for name in names] != [getattr(each, "shape", None) for each in average]:
        raise ValueError(f"{path}: its average has {len(average)} tensors that do not fit its {len(names)} parameters")
    return dict(zip(names, average, strict=True))


def write_published(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file as the hub has them, whole or not at all, without a copy of all tensors in memory.

    Raises OSError where the disk does not take it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, data = path.with_name(f".{path.name}.part"), {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    try:
        save_file(data, partial, {"format": "pt"})
        readable(partial)
        partial.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
