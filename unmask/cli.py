"""The command line: each command is a dataclass whose fields are its options, and `run` does it.

User errors are ValueErrors: printed as one line, exit code 2, no traceback. Ctrl-C ends with exit code 130.
"""

import inspect
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Union, get_args

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from unmask import grammar
from unmask.audit import EVERY, HEADER, audit
from unmask.checkpoint import Model, load
from unmask.data import load_split, prepare
from unmask.demo import Scale, demo
from unmask.evaluate import write
from unmask.evaluate.commands import Compare, Evaluate
from unmask.files import read_json, write_json
from unmask.log import console, progress, say
from unmask.recipes import RECIPES, on_its_data
from unmask.report import report
from unmask.report.console import unmasking
from unmask.sampling import AdaptivePolicy, Blocks, Constraint, Draw, Planned, Remasking, Speculative
from unmask.train import TrainConfig, train


@dataclass(frozen=True)
class Demo:
    """Train a small MDM and its causal twin on the built-in corpus, measure and sample both, write report.html.

    Run again, it goes on from what is there.
    """

    out: Path = Path("runs/demo")
    scale: Scale = field(default_factory=Scale)
    source: str = "builtin"
    """Text to learn: the built-in corpus, a text file or a folder of them."""

    def run(self) -> None:
        demo(self.out, self.scale, self.source)


@dataclass(frozen=True)
class Prepare:
    """Turn text into tokens, once: `unmask prepare --source my_texts/ --out data/mine`."""

    source: str
    """"builtin", a text file, or a folder of .txt files (one document each)."""
    out: Path
    tokenizer: str = "bpe:4096"
    """"bytes", "bpe:N" (trained on the train split), or a tokenizer.json."""
    validation: float = 0.05
    """Share of the documents held out."""

    def run(self) -> None:
        with progress("reading") as bar:

            def told(what: str, done: int, total: int) -> None:
                bar(done, total, what)

            folder = prepare(self.source, self.out, tokenizer=self.tokenizer, validation=self.validation, progress=told)
        for name in ("train", "validation"):
            split = load_split(folder, name)
            console.print(f"{folder}: {len(split.tokens):,} {name} tokens in {len(split.names)} documents")


if TYPE_CHECKING:
    Recipe = TrainConfig
else:
    Recipe = tyro.extras.subcommand_type_from_defaults(
        {name: recipe() for name, recipe in RECIPES.items()},
        {name: recipe.__doc__ for name, recipe in RECIPES.items()},
    )


@dataclass(frozen=True)
class Train:
    """Train a recipe: `unmask train tiny`. Any field can be overridden: `unmask train tiny --batch 64 --steps 5000`.

    Run again, it goes on from where it stopped.
    """

    recipe: Annotated[Recipe, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes]
    out: Path | None = None
    """Run folder (default runs/NAME)."""
    dry_run: bool = False
    """Say what it would cost, and stop."""

    def run(self) -> None:
        config = on_its_data(self.recipe)
        out = self.out or Path("runs") / config.name
        cost, size = config.cost(), config.network.parameters()
        console.print(
            f"{size['non_embedding']:,} non-embedding parameters, {cost['tokens']:,} tokens, "
            f"6ND = {cost['flops_6nd']:.2e} FLOPs, true count {cost['flops_true']:.2e}"
        )
        if self.dry_run:
            return
        train(config, out)
        console.print(f"next: unmask sample --checkpoint {out}")


if TYPE_CHECKING:
    Chosen = Planned | AdaptivePolicy | Remasking | Blocks | Speculative
else:

    def _with_its_law(policy):
        """A policy whose help ends with what its samples follow."""
        text = f"{inspect.getdoc(policy)}\n\nSamples follow: {policy().exact_for}."
        return Annotated[policy, tyro.conf.subcommand(description=text)]

    kinds = get_args(Planned | AdaptivePolicy | Remasking | Blocks | Speculative)
    Chosen = Union[tuple(map(_with_its_law, kinds))]  # noqa: UP007


@dataclass(frozen=True)
class Sample:
    """Write text: free, after a prompt, before a suffix, or into the blanks of a template.

    `unmask sample --checkpoint runs/tiny --template "Once {{8}} there was {{2..12}}" tweedie --steps 16`
    """

    checkpoint: Path
    policy: Annotated[Chosen | None, tyro.conf.OmitSubcommandPrefixes] = None
    """Where to write next; by default exact: a random order, one token at a time (left to right for a causal model)."""
    draw: Annotated[Draw, tyro.conf.OmitArgPrefixes] = field(default_factory=Draw)
    prompt: str = ""
    suffix: str = ""
    template: str | None = None
    """Text with blanks, {{8}} or {{2..12}}; @FILE reads it from a file."""
    length: int = 64
    """Open tokens between prompt and suffix."""
    until_end: bool = False
    """Let the text of a blank be shorter: it ends at the first end token that is written there."""
    guidance: float = 0.0
    """Weight of classifier-free guidance by the given text (unsupervised: it is masked for comparison); twice the NFE.
    """
    ban: tuple[str, ...] = ()
    """Texts of single tokens that must not be written."""
    regex: str | None = None
    """What stands from the first blank to the last must fit this regular expression (Python's syntax)."""
    schema: Path | None = None
    """... or be JSON that this JSON schema accepts."""
    choices: str | None = None
    """... or be one of these texts, separated by "|"."""
    matching: bool = False
    """Write freely until a text fits, so that it follows p(x | fits), instead of drawing what still fits."""
    attempts: int = 1000
    """How often --matching may try for a sample."""
    count: int = 1
    seed: int = 0
    batch: int = 16
    device: str = "auto"
    out: Path | None = None
    """Also write the samples, with when and how surely each token appeared, for `unmask report`."""
    json: bool = False
    """Print records for machines."""

    def run(self) -> None:
        if self.count < 1 or self.length < 1:
            raise ValueError(f"count {self.count} and length {self.length} must be at least 1")
        model = load(self.checkpoint, device=self.device)
        text = self._text()
        first = model.canvas(text, seed=self.seed)
        constraint = self._constraint(model, first)
        quiet = self.json or self.count > 1 or self.matching
        with unmasking(console, first, model.mask_id, model.tokenizer.pieces) as show:
            on_step = None if quiet else show
            texts = [text] * self.count
            records = write(
                model,
                texts,
                self.policy,
                draw=self.draw,
                seed=self.seed,
                batch=self.batch,
                guidance=self.guidance,
                bias=dict.fromkeys((_single(model, text) for text in self.ban), -math.inf),
                until_end=self.until_end,
                constraint=constraint,
                attempts=self.attempts if self.matching else None,
                on_step=on_step,
            )
        if self.out is not None:
            write_json(self.out, {"samples": records})
        for record in records:
            say(record if self.json else f"{record['text']}\n[NFE {record['nfe']}; law: {record['exact_for']}]")

    def _constraint(self, model: Model, canvas: Tensor) -> Constraint | None:
        if [self.regex, self.schema, self.choices].count(None) < 2:
            raise ValueError("--regex, --schema and --choices: give one of them")
        # end tokens fill the rest where nothing follows, and where nothing stands before a space may be lost
        around = {"end": int(canvas[-1]) == model.mask_id, "opens": int(canvas[1]) == model.mask_id}
        if self.regex is not None:
            return Constraint(grammar.regex(model.tokenizer, self.regex, **around))
        if self.schema is not None:
            return Constraint(grammar.json_schema(model.tokenizer, read_json(self.schema), **around))
        if self.choices is not None:
            return Constraint(grammar.choices(model.tokenizer, self.choices.split("|"), **around))
        if self.matching:
            raise ValueError("--matching needs something to match: give --regex, --schema or --choices")
        return None

    def _text(self) -> str:
        if self.template is None:
            if "{{" in self.prompt + self.suffix:
                raise ValueError("--prompt and --suffix are plain text: use --template for blanks")
            return f"{self.prompt}{{{{{self.length}}}}}{self.suffix}"
        if self.prompt or self.suffix:
            raise ValueError("--template already says what stands around its blanks: leave out --prompt and --suffix")
        if not self.template.startswith("@"):
            return self.template
        path = Path(self.template[1:])
        if not path.is_file():
            raise ValueError(f"--template @{path}: no such file")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"--template @{path}: not UTF-8; save it as UTF-8") from None


@dataclass(frozen=True)
class All:
    """Each kind of policy."""


@dataclass(frozen=True)
class Audit:
    """Does a policy follow the law that it states? Samples against the exact law, on small networks: `unmask audit
    confidence --tokens 2`.

    Exit code 1 if one does not. For a sampler of your own, see `unmask.audit.audit`.
    """

    policy: Annotated[Chosen | All, tyro.conf.OmitSubcommandPrefixes] = All()
    draw: Annotated[Draw, tyro.conf.OmitArgPrefixes] = field(default_factory=Draw)
    draws: int = 10_000
    """Sequences on each canvas."""
    seed: int = 0
    json: bool = False
    """Print records for machines."""

    def run(self) -> None:
        passed = True
        for policy in EVERY if isinstance(self.policy, All) else (self.policy,):
            result = audit(policy, draw=self.draw, draws=self.draws, seed=self.seed)
            passed &= result.passed
            if self.json:
                for row in result.rows():
                    say(row)
                continue
            table = Table(*HEADER, title=escape(f"{result.subject}: {result.law}"), title_justify="left")
            for finding, cells in zip(result.findings, result.cells(), strict=True):
                table.add_row(*map(escape, cells), style="bold red" if finding.faults else None)
            Console().print(table)
        if not passed:
            raise SystemExit(1)


@dataclass(frozen=True)
class Report:
    """One self-contained HTML page of runs, results and samples: `unmask report runs/`."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    out: Path = Path("report.html")

    def run(self) -> None:
        say(str(report(self.paths, self.out)))


Command = Demo | Prepare | Train | Sample | Evaluate | Compare | Audit | Report


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `unmask` and `python -m unmask`."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] in (["sample"], ["evaluate"], ["audit"]):
        # a policy is a subcommand of tyro's, with options of its own; `--policy tweedie` reads better
        flags = ("--policy", "--order") if words[0] == "evaluate" else ("--policy",)
        words = [
            word.partition("=")[2] if word.startswith(tuple(f"{flag}=" for flag in flags)) else word
            for word in words
            if word not in flags
        ]
    try:
        command = tyro.cli(
            Command,  # pyrefly: ignore
            prog="unmask",
            description="Masked diffusion language models: train, sample, and measure a likelihood one can trust.",
            args=words,
            config=(tyro.conf.CascadeSubcommandArgs,),
        )
        command.run()
    except BrokenPipeError:  # `unmask … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (ValueError, OSError) as error:
        console.print(f"[bold red]error:[/] {escape(' '.join(str(error).split()))}", soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _single(model: Model, text: str) -> int:
    ids = model.tokenizer.encode(text)
    if len(ids) != 1:
        pieces = model.tokenizer.pieces(ids)
        raise ValueError(f"--ban {text!r}: not one token but {len(ids)} ({' '.join(map(repr, pieces))}); ban these")
    return ids[0]
