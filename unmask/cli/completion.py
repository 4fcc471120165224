"""`unmask completion`."""

from dataclasses import dataclass
from typing import Annotated, Literal, Union

import tyro

from unmask.cli.parsing import CONFIG


@dataclass(frozen=True)
class Completion:
    """Print a shell's completion of all of this.

    bash: `unmask completion bash > ~/.local/share/bash-completion/completions/unmask`; zsh: `unmask completion zsh >
    ~/.zfunc/_unmask` (a folder of $fpath); fish: `unmask completion fish > ~/.config/fish/completions/unmask.fish`.
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """Whose completion."""

    def run(self) -> None:
        from unmask.cli import COMMANDS

        commands = {name: entry.load([]) for name, entry in COMMANDS.items()}
        named = tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in commands.items())
        every = Union[named]  # noqa: UP007  # pyrefly: ignore
        tyro.cli(every, prog="unmask", args=["--tyro-print-completion", self.shell], config=CONFIG)  # pyrefly: ignore
