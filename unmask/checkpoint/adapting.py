"""A run of adapters: its own weights are few, and those of the checkpoint that it began from stay where they are."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from unmask.checkpoint.finding import Found, find
from unmask.checkpoint.model import Model
from unmask.checkpoint.starting import starting_from
from unmask.checkpoint.tensors import open_tensors
from unmask.files import Row
from unmask.hub import BUILTIN, fetched
from unmask.lora import merged
from unmask.transformer import TransformerConfig

ADAPTERS, SAMPLE = "adapters", 64


def described(init: str, state: Mapping[str, Tensor], rank: int) -> Row:
    """What config.json says of the adapters and of what they belong to."""
    base = init if "://" in init or init in BUILTIN else str(Path(init).resolve())
    return {"rank": rank, "base": base, "fingerprint": _known_by(find(fetched(init)), state)}


def fingerprint(state: Mapping[str, Tensor], base: str = "") -> str:
    """BLAKE2b of names, shapes and 64 numbers of each tensor: in an instant, whatever file and precision hold them.

    Without the embedding, of which a row may be made anew. Of adapters it is with the fingerprint of their `base`.
    """
    digest = hashlib.blake2b(base.encode(), digest_size=16)
    for name in sorted(set(state) - {"embedding.weight"}):
        flat = state[name].detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(state[name].shape)} ".encode() + some.numpy().tobytes())
    return digest.hexdigest()


def _known_by(base: Found, state: Mapping[str, Tensor]) -> str:
    """The fingerprint of a checkpoint that gives these weights, where it is adapters what is stored of it: the last bit
    of what they make of their base depends on the processor.
    """
    if not {"network", ADAPTERS} <= base.config.keys():
        return fingerprint(state)
    return fingerprint(open_tensors(base.weights), base.config[ADAPTERS]["fingerprint"])


def with_adapters(
    run: Found,
    network: TransformerConfig,
    adapters: Mapping[str, Tensor],
    load: Callable[[str], Model],
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """The weights of a run of adapters: its base's, changed by them; those at least as wide as `dtype`.

    Raises ValueError where the base is not there, no longer what it was, or the run itself.
    """
    told = run.config[ADAPTERS]
    if not isinstance(told, dict) or not isinstance(told.get("base"), str) or type(told.get("rank")) is not int:
        raise ValueError(f'"{ADAPTERS}" does not say which checkpoint they belong to')
    base = told["base"]
    _no_circle(run)
    try:
        state = starting_from(load(base), network)
    except ValueError as error:
        raise ValueError(f"adapters of {base}, which cannot be had ({error}): put it back") from None
    # of a base that has adapters, older runs say what its weights were
    if told.get("fingerprint") not in (_known_by(find(fetched(base)), state), fingerprint(state)):
        raise ValueError(f"adapters of {base}, which is no longer the checkpoint that it was: put that back")
    return merged(state, adapters, told["rank"], dtype)


def _no_circle(run: Found) -> None:
    """Raises ValueError where adapters are, by way of others or not, those of themselves."""
    seen = [run.folder.resolve()]
    while isinstance(told := run.config.get(ADAPTERS), dict) and isinstance(told.get("base"), str):
        try:
            run = find(fetched(told["base"]))
        except ValueError:
            return  # it is told of where it is loaded
        if run.folder.resolve() in seen:
            raise ValueError(f"adapters of {told['base']}, which is a base of its own: name the one that it began from")
        seen.append(run.folder.resolve())
