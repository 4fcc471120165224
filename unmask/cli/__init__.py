"""The command line: each command is a dataclass whose fields are its options, and `run` does it.

A command's module is imported when it is asked for, so that help comes at once. User errors are ValueErrors: printed
as one line, exit code 2, no traceback. Ctrl-C ends with exit code 130.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version

from unmask.cli.parsing import nearest, parse
from unmask.log import complain


@dataclass(frozen=True)
class Entry:
    """Where a command lives, and what it is for in one line."""

    home: str
    """module:class, below `unmask`."""
    summary: str
    flags: tuple[str, ...] = ()
    """Options that may stand before a subcommand: `--policy tweedie` reads better than `tweedie`."""

    def load(self) -> type:
        module, _, name = self.home.partition(":")
        return getattr(import_module(f"unmask.{module}"), name)


POLICY = ("--policy",)
COMMANDS = {
    "demo": Entry("cli.demo:Demo", "From nothing to a first result: train, measure, sample, report."),
    "prepare": Entry("cli.prepare:Prepare", "Turn text into tokens, once."),
    "train": Entry("cli.train:Train", "Train a recipe."),
    "watch": Entry("cli.watch:Watch", "Follow runs: loss, speed, time left, last validation and samples."),
    "sample": Entry("cli.sample:Sample", "Write text: free, after a prompt, or into the blanks of a template.", POLICY),
    "evaluate": Entry(
        "evaluate.commands:Evaluate", "Measure a model: perplexity, generated texts, tasks.", (*POLICY, "--order")
    ),
    "compare": Entry("cli.compare:Compare", "Differences between two runs or two result files, with their errors."),
    "experiment": Entry("cli.experiment:Experiment", "Rerun a claim of the papers: train, measure, conclude."),
    "audit": Entry("cli.audit:Audit", "Does a sampler follow the law that it states?", POLICY),
    "convert": Entry(
        "cli.checkpoints:Convert", "Write a checkpoint in a published layout, or a published one in ours."
    ),
    "push": Entry("cli.checkpoints:Push", "Upload a converted checkpoint to the hub."),
    "report": Entry("cli.report:Report", "One self-contained HTML page of runs, results and samples."),
}

ABOUT = "Masked diffusion language models: train, sample, and measure a likelihood one can trust."


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `unmask` and `python -m unmask`."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if not words or words[0] in ("-h", "--help"):
            print(overview())
        elif words[0] in ("-V", "--version"):
            print(f"unmask {version('unmask')}")
        else:
            _run(words[0], words[1:])
    except BrokenPipeError:  # `unmask … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (ValueError, OSError) as error:
        complain(error)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def overview() -> str:
    """What `unmask --help` says."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {entry.summary}" for name, entry in COMMANDS.items()]
    return "\n".join(["usage: unmask COMMAND [options]", "", ABOUT, "", *lines, "", FOOTER])


FOOTER = "`unmask COMMAND --help` documents a command; `unmask --version` says which this is."


def _run(name: str, words: list[str]) -> None:
    entry = COMMANDS.get(name)
    if entry is None:
        raise ValueError(f"unmask has no command {name!r}{nearest(name, COMMANDS)}")
    parse(entry.load(), f"unmask {name}", _plain(words, entry.flags)).run()


def _plain(words: list[str], flags: tuple[str, ...]) -> list[str]:
    """The words without the flags that stand before a subcommand."""
    named = [word.partition("=")[2] if word.partition("=")[0] in flags and "=" in word else word for word in words]
    return [word for word in named if word not in flags]
