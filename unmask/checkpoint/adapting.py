"""A run of adapters: its own weights are few, and those of the checkpoint that it began from stay where they are."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from unmask.checkpoint.model import Model
from unmask.checkpoint.starting import starting_from
from unmask.files import Row
from unmask.hub import BUILTIN
from unmask.lora import merged
from unmask.transformer import TransformerConfig

ADAPTERS, SAMPLE = "adapters", 64


def described(init: str, state: Mapping[str, Tensor], rank: int) -> Row:
    """What config.json says of the adapters and of what they belong to."""
    base = init if "://" in init or init in BUILTIN else str(Path(init).resolve())
    return {"rank": rank, "base": base, "fingerprint": fingerprint(state)}


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """BLAKE2b of names, shapes and 64 numbers of each tensor: in an instant, whatever file and precision hold them.

    Without the embedding, of which a row may be made anew.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(set(state) - {"embedding.weight"}):
        flat = state[name].detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(state[name].shape)} ".encode() + some.numpy().tobytes())
    return digest.hexdigest()


def with_adapters(
    told: object, network: TransformerConfig, adapters: Mapping[str, Tensor], load: Callable[[str], Model]
) -> dict[str, Tensor]:
    """The weights of a run of adapters: its base's, changed by them.

    Raises ValueError where the base is not there, or no longer what it was.
    """
    if not isinstance(told, dict) or not isinstance(told.get("base"), str) or type(told.get("rank")) is not int:
        raise ValueError(f'"{ADAPTERS}" does not say which checkpoint they belong to')
    base = told["base"]
    try:
        state = starting_from(load(base), network)
    except ValueError as error:
        raise ValueError(f"adapters of {base}, which cannot be had ({error}): put it back") from None
    if fingerprint(state) != told.get("fingerprint"):
        raise ValueError(f"adapters of {base}, which is no longer the checkpoint that it was: put that back")
    return merged(state, adapters, told["rank"])
