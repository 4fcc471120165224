"""One call for every checkpoint: a run folder of ours, a published file or folder, or an address on the hub."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from unmask.checkpoint.adapting import ADAPTERS, with_adapters
from unmask.checkpoint.finding import Found, find, read_settings
from unmask.checkpoint.model import Later, Model, device_of
from unmask.checkpoint.runs import CONFIG, TOKENIZER, assign, describe, network_config
from unmask.checkpoint.tensors import Tensors, open_tensors
from unmask.conditioned import ConditionedConfig
from unmask.data import Tokenizer
from unmask.families import (
    Family,
    config_of,
    copied,
    family_of,
    length_of,
    network_of,
    published_config,
    to_ours,
    with_its_output,
)
from unmask.files import Row, read_json
from unmask.hub import fetched, fetched_tokenizer
from unmask.transformer import TransformerConfig

OURS = {each.name for kind in (TransformerConfig, ConditionedConfig) for each in fields(kind)}


@dataclass(frozen=True)
class Told:
    """What a checkpoint does not say of itself, as options of a command."""

    family: str | None = None
    """Family of a bare file whose tensors do not tell: radd, sedd, mdlm, smdm, llada, llama or dream."""
    config: Path | None = None
    """JSON or YAML of the sizes that a bare file does not tell, in its family's words or ours."""
    tokenizer: str | None = None
    """A tokenizer where none comes with the checkpoint: a file, a folder, or hf://owner/repository."""

    def load(self, path: str | Path, device: str, dtype: torch.dtype | None = None) -> Model:
        told = {"family": self.family, "config": self.config, "tokenizer": self.tokenizer}
        return load(path, **told, device=device, dtype=dtype)


def load(
    path: str | Path,
    *,
    family: str | None = None,
    config: Mapping[str, object] | str | Path | None = None,
    tokenizer: str | Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
) -> Model:
    """The model of a run folder, of a published checkpoint (a folder or a file), or of hf://owner/repository[/file].

    A published one's family is recognised from its configuration and its tensors' names; `family` and `config`
    (fields of theirs or of ours, or a file of them) say what a bare file cannot. Weights are memory-mapped where dtype
    (default: that of most of the stored numbers) and device allow, and read one by one where they do not: there is
    never a second copy.
    The `tokenizer` is the checkpoint's own, else its family's, looked for when it is first used.

    Raises ValueError for what is not there, is damaged, does not fit, is of no known family, or needs more memory than
    there is.
    """
    found = find(place := fetched(path))
    given = _settings(config)
    if "network" in found.config and family is None:
        if config is not None:
            raise ValueError(f"{found.folder}: a run says its own configuration: leave out --config (config=)")
        return _run(found, tokenizer, device_of(device), dtype)
    known = {name: value for name, value in given.items() if name in OURS}
    published = {**found.config, **{name: value for name, value in given.items() if name not in OURS}}
    tensors = open_tensors(found.weights)
    with _named(found.weights):
        of = family_of(tensors, published, family)
        sizes = config_of(of, tensors.shapes, published, **known)
        if given and not given.keys() & {*OURS, *published_config(of, sizes, 1)}:
            words = ", ".join(map(str, given))
            raise ValueError(f"--config (config=) says nothing of {of.name}'s words or ours: {words}")
        sizes = sizes if "tied" in known else with_its_output(of, tensors, sizes)
        network, settle = network_of(sizes), _settling(tensors, device_of(device), dtype, copied(of, sizes))
        network.load_state_dict(to_ours(of, tensors, sizes, shapes=tensors.shapes, settle=settle), assign=True)
    text = cast(Tokenizer, Later(partial(_tokenizer, found, of, sizes.vocab, tokenizer)))
    row = {
        "name": found.weights.stem if place.is_file() else Path(path).name,
        "family": of.name,
        "source": re.sub("^hf:/(?!/)", "hf://", str(path)),
        "network": describe(sizes),
        "parameters": sizes.parameters(),
        "requested": {"length": length_of(of, published)},
    }
    return Model(network.eval().requires_grad_(False), text, row)


def _run(found: Found, tokenizer: str | Path | None, device: str, dtype: torch.dtype | None) -> Model:
    config, tensors = network_config(found.config, found.folder / CONFIG), open_tensors(found.weights)
    if ADAPTERS in found.config and isinstance(config, TransformerConfig):
        with _named(found.folder):
            state = with_adapters(found, config, tensors, load, dtype)
        shapes = {name: each.to("meta") for name, each in state.items()}
        tensors = Tensors(found.weights, shapes, held=state)
    if config.layers > len(tensors):  # before so many are made
        raise ValueError(f"{found.weights}: {len(tensors)} tensors, but {CONFIG} speaks of {config.layers:,} layers")
    with _named(found.folder / CONFIG):
        network = network_of(config)
    with _named(found.weights):
        settle = _settling(tensors, device, dtype)
        assign(network, tensors.shapes, found.weights)
        network.load_state_dict({name: settle(tensor) for name, tensor in tensors.items()}, assign=True)
    path = fetched_tokenizer(tokenizer) if tokenizer else found.folder / TOKENIZER
    text = Tokenizer.load(path)
    if text.vocab > network.vocab:  # a network may have rows to spare, but not too few
        raise ValueError(f"{path}: {text.vocab} tokens, but the network has {network.vocab}: not its tokenizer")
    return Model(network.eval().requires_grad_(False), text, found.config)


def _settings(config: Mapping[str, object] | str | Path | None) -> Row:
    if config is None:
        return {}
    return read_settings(fetched(config)) if isinstance(config, str | Path) else dict(config)


def _tokenizer(found: Found, family: Family, vocab: int, given: str | Path | None) -> Tokenizer:
    """The one given, the one beside the weights, or the family's. Raises ValueError where there is none that fits."""
    if given is not None:
        path = fetched_tokenizer(given)
    elif any((found.folder / name).is_file() for name in (TOKENIZER, "tokenizer.model")) or _like_gpt2(found.folder):
        path = found.folder
    elif family.tokenizer and family.tokenizer[1] == vocab:
        path = fetched_tokenizer(f"hf://{family.tokenizer[0]}")
    else:
        raise ValueError(f"{found.folder}: no tokenizer with these weights: give one by --tokenizer (tokenizer=)")
    text = Tokenizer.load(path)
    if text.vocab > vocab:  # a network may have rows to spare, but not too few
        raise ValueError(f"{path}: {text.vocab} tokens, but the network has {vocab}: not its tokenizer")
    return text


def _like_gpt2(folder: Path) -> bool:
    """Whether a vocabulary with merges lies there that cuts words as GPT-2 does: its end token is among the pieces.

    Qwen's and Dream's is not, and their words are others.
    """
    vocab = folder / "vocab.json"
    return vocab.is_file() and (folder / "merges.txt").is_file() and "<|endoftext|>" in read_json(vocab)


class _named:
    """Errors inside name the file; those of memory say what would help."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise ValueError(f"{self.path}: not enough memory: a smaller dtype or another device") from None
        if isinstance(error, ValueError) and not str(error).startswith(str(self.path)):
            raise ValueError(f"{self.path}: {error}") from None


def _settling(tensors: Tensors, device: str, dtype: torch.dtype | None, copied: int = 0) -> Callable[[Tensor], Tensor]:
    """What becomes of each tensor when it is read; `copied` numbers are not as they are stored.

    Raises ValueError where what cannot be mapped from disk is more than there is memory for.
    """
    wanted = dtype or tensors.dtype
    mapped = device == "cpu" and wanted == tensors.dtype
    need = (copied if mapped else sum(each.numel() for each in tensors.shapes.values())) * wanted.itemsize
    room = free_memory(device)
    if room is not None and need > room:
        kind = str(wanted).removeprefix("torch.")
        told = f"{need / 1e9:.3g} GB of weights in {kind}, and {device} has {room / 1e9:.3g} GB free"
        raise ValueError(f"not enough memory: {told}; a smaller dtype or another device")

    def settle(tensor: Tensor) -> Tensor:
        return tensor.to(device, wanted)

    return settle


def free_memory(device: str) -> int | None:
    """Bytes that can be had, where that is known."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    try:
        told = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    available = re.search(r"MemAvailable:\s+(\d+) kB", told)
    return int(available[1]) * 1024 if available else None
