"""The command line: each command is a dataclass whose fields are its options, and `run` does it.

A command's module is imported when it is asked for, so that help comes at once. User errors are ValueErrors: printed
as one line, exit code 2, no traceback. Ctrl-C ends with exit code 130.
"""

import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version

from unmask.cli.parsing import nearest, parse
from unmask.log import complain


@dataclass(frozen=True)
class Entry:
    """Where a command lives, and what it is for in one line."""

    home: str
    """module:class below `unmask`, or a function that makes the class for the words."""
    summary: str
    flags: tuple[str, ...] = ()
    """Options that may stand before a subcommand: `--policy tweedie` reads better than `tweedie`."""
    shared: bool = False
    """Whether the processes of a job (torchrun's) do it together."""

    def load(self, words: Sequence[str]) -> type:
        module, _, name = self.home.partition(":")
        found = getattr(import_module(f"unmask.{module}"), name)
        return found if isinstance(found, type) else found(words)


POLICY = ("--policy",)
COMMANDS = {
    "demo": Entry("cli.demo:Demo", "From nothing to a first result: train, measure, sample, report."),
    "prepare": Entry("cli.prepare:Prepare", "Turn text into tokens, once; interrupted, the same command goes on."),
    "train": Entry("cli.train:command", "Train a recipe.", shared=True),
    "recipes": Entry("cli.recipes:Recipes", "What each recipe is and would cost here, before anything starts."),
    "watch": Entry("cli.watch:Watch", "Follow runs: loss, speed, time left, last validation and samples."),
    "sample": Entry(
        "cli.sample:Sample", "Write text: free, after a prompt, or into the blanks of a template.", POLICY, True
    ),
    "evaluate": Entry(
        "evaluate.commands:Evaluate",
        "Measure a model: perplexity, generated texts, tasks, answers.",
        (*POLICY, "--order"),
        shared=True,
    ),
    "experiment": Entry(
        "cli.experiment:Experiment",
        "Rerun a claim of the papers: train what it needs, measure, and say whether it held.",
    ),
    "compare": Entry("cli.compare:Compare", "Differences between two runs or two result files, with their errors."),
    "audit": Entry("cli.audit:Audit", "Does a sampler follow the law that it states?", POLICY),
    "convert": Entry(
        "cli.checkpoints:Convert", "Write a checkpoint in another layout, with its tokenizer and a model card."
    ),
    "push": Entry("cli.checkpoints:Push", "Upload a folder written by `unmask convert` to the hub."),
    "report": Entry("cli.report:Report", "One self-contained HTML page of runs, results, experiments and samples."),
    "completion": Entry("cli.completion:Completion", "Print a shell's completion of all of this."),
}

ABOUT = "Masked diffusion language models: train, sample, and measure a likelihood one can trust."


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `unmask`, `python -m unmask`, and of a script that adds classes and recipes of its own.

    Under torchrun several processes do it, of which the first speaks.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    with _told(), _job(words) as lost, _told(), lost():  # of a job, too, what went wrong is told before it is left
        _command(words)


@contextmanager
def _told() -> Iterator[None]:
    """Errors of users as one line, and what each way to end is known by."""
    try:
        yield
    except BrokenPipeError:  # `unmask … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (ValueError, OSError) as error:
        complain(error)
        raise SystemExit(2) from None
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or re.search(r"not enough memory|out of memory", str(error))):
            raise
        complain(MemoryError("not enough memory: take a smaller --batch, --length or --count"))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@contextmanager
def _job(words: Sequence[str]) -> Iterator[Callable[[], AbstractContextManager]]:
    """As one of the processes of a job, of which the first speaks, where the command's work is shared by them.

    Yields what is to be around the work, for a process that is lost.
    """
    if not words or words[0] not in COMMANDS or not COMMANDS[words[0]].shared:
        yield nullcontext
        return
    from unmask import ranks
    from unmask.log import hush

    with ranks.joined():
        if ranks.rank():
            hush()
        yield ranks.lost


def _command(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(overview())
    elif words[0] in ("-V", "--version"):
        print(f"unmask {version('unmask')}")
    else:
        _run(words[0], words[1:])


def overview() -> str:
    """What `unmask --help` says."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {entry.summary}" for name, entry in COMMANDS.items()]
    return "\n".join(["usage: unmask COMMAND [options]", "", ABOUT, "", *lines, "", FOOTER])


FOOTER = """`unmask COMMAND --help` documents a command and its options; `unmask --version` says which this is.
Errors are one line and exit code 2; Ctrl-C ends with 130; `audit` may end with 1.

Environment:
  NO_COLOR              plain text on a terminal too
  OMP_NUM_THREADS       processor threads that torch may take
  THP_MEM_ALLOC_ENABLE  0: no large pages of memory on Linux
  CUDA_VISIBLE_DEVICES  which GPUs --device auto may take
  HF_HOME, HF_TOKEN, HF_HUB_OFFLINE   the hub's cache, your token, and whether to ask it at all
  OPENAI_API_KEY        the key for the judge of evaluate answers --judge URL"""


def _run(name: str, words: list[str]) -> None:
    entry = COMMANDS.get(name)
    if entry is None:
        raise ValueError(f"unmask has no command {name!r}{nearest(name, COMMANDS)}")
    words = _plain(words, entry.flags)
    parse(entry.load(words), f"unmask {name}", words).run()


def _plain(words: list[str], flags: tuple[str, ...]) -> list[str]:
    """The words without the flags that stand before a subcommand; before a number, one is an option of its own."""
    plain = []
    for word, after in itertools.pairwise([*words, ""]):
        flag, joined, value = word.partition("=")
        value = value if joined else after
        if flag not in flags or re.match(r"-?\d", value):
            plain.append(word)
        elif not value or value.startswith("-"):
            raise ValueError(f"{flag} needs a value")
        elif joined:
            plain.append(value)
    return plain
