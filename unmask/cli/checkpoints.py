"""`unmask convert` and `unmask push`: checkpoints from one layout to another, and to the hub."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from unmask.checkpoint import convert, push
from unmask.log import say


@dataclass(frozen=True)
class Convert:
    """Write a checkpoint in another layout, with its tokenizer and a model card: `unmask convert runs/tiny --to hf
    --out tiny-hf`. A published one becomes a run folder of ours by `--to unmask`.
    """

    checkpoint: tyro.conf.Positional[str]
    """A run folder, a published file or folder, or hf://owner/repository[/file]."""
    to: str
    """"unmask", "hf" (Hugging Face's own layout for causal models), radd, sedd, mdlm, smdm, llada, llama or dream."""
    out: Path
    """A new folder."""
    family: str | None = None
    """Of a bare file whose tensors do not tell."""
    config: Path | None = None
    """JSON or YAML of what a bare file does not tell, in its family's words or ours."""
    tokenizer: str | None = None
    """A tokenizer where none comes with the checkpoint."""

    def run(self) -> None:
        given = {"family": self.family, "config": self.config, "tokenizer": self.tokenizer}
        say(str(convert(self.checkpoint, self.out, self.to, **given)))


@dataclass(frozen=True)
class Push:
    """Upload a folder written by `unmask convert` to the hub: `unmask push tiny-hf --repository you/tiny`."""

    folder: tyro.conf.Positional[Path]
    repository: str
    private: bool = False

    def run(self) -> None:
        say(push(self.folder, self.repository, private=self.private))
