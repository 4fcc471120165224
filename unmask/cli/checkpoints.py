"""`unmask convert` and `unmask push`: checkpoints from one layout to another, and to the hub."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from unmask.checkpoint import Told, convert, push
from unmask.log import say


@dataclass(frozen=True)
class Convert:
    """Write a checkpoint in another layout, with its tokenizer and a model card.

    `unmask convert runs/tiny --to hf --out tiny-hf`. A published one becomes a run folder of ours by `--to unmask`.
    """

    checkpoint: tyro.conf.Positional[str]
    """A run folder, a published file or folder, hf://owner/repository[/file], "builtin" or "builtin-ar"."""
    to: str
    """"unmask", "hf" (Hugging Face's own layout of a causal model; others have none, and get ours), radd, sedd, mdlm,
    smdm, llada, llama or dream."""
    out: Path
    """A new folder."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the weights that are written, which bfloat16 makes half as many bytes; by default as they are stored."""
    told: Annotated[Told, tyro.conf.OmitArgPrefixes] = field(default_factory=Told)

    def run(self) -> None:
        dtype = None if self.dtype is None else getattr(torch, self.dtype)
        say(str(convert(self.checkpoint, self.out, self.to, dtype=dtype, **vars(self.told))))


@dataclass(frozen=True)
class Push:
    """Upload a folder written by `unmask convert` to the hub.

    `unmask push tiny-hf --repository you/tiny`."""

    folder: tyro.conf.Positional[Path]
    """A folder written by `unmask convert`."""
    repository: str
    """OWNER/NAME on the hub; made where it is not there."""
    private: bool = False
    """Whether a new repository is private."""

    def run(self) -> None:
        say(push(self.folder, self.repository, private=self.private))
