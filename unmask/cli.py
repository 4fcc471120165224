"""The command line: each command is a dataclass whose fields are its options, and `run` does it.

User errors are ValueErrors: printed as one line, exit code 2, no traceback. Ctrl-C ends with exit code 130.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.markup import escape
from torch import Tensor

from unmask import grammar
from unmask.checkpoint import Model, load
from unmask.data import Tokenizer, load_manifest, load_split, prepare
from unmask.demo import Scale, demo
from unmask.evaluate import baselines, errors, perplexity, write
from unmask.files import finite, read_json, write_json
from unmask.log import console, progress
from unmask.recipes import RECIPES, on_its_data
from unmask.report import report
from unmask.report.console import unmasking
from unmask.sampling import AdaptivePolicy, Blocks, Constraint, Draw, Planned
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


@dataclass(frozen=True)
class Sample:
    """Write text: free, after a prompt, before a suffix, or into the blanks of a template.

    `unmask sample --checkpoint runs/tiny --template "Once {{8}} there was {{2..12}}" tweedie --steps 16`
    """

    checkpoint: Path
    policy: Annotated[Planned | AdaptivePolicy | Blocks | None, tyro.conf.OmitSubcommandPrefixes] = None
    """Where to write next; by default exact: a random order, one token at a time (left to right for a causal model)."""
    draw: Annotated[Draw, tyro.conf.OmitArgPrefixes] = field(default_factory=Draw)
    prompt: str = ""
    suffix: str = ""
    template: str | None = None
    """Text with blanks, {{8}} or {{2..12}}; @FILE reads it from a file."""
    length: int = 64
    """Open tokens between prompt and suffix."""
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
                constraint=constraint,
                attempts=self.attempts if self.matching else None,
                on_step=on_step,
            )
        if self.out is not None:
            write_json(self.out, {"samples": records})
        for record in records:
            _print(record if self.json else f"{record['text']}\n[NFE {record['nfe']}; law: {record['exact_for']}]")

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
class Evaluate:
    """Measure a model on held-out text: its perplexity with both standard errors and the kind of bound, beside a
    unigram and a bigram law.

    `unmask evaluate perplexity --checkpoint runs/tiny --data data/builtin`
    """

    measure: tyro.conf.Positional[Literal["perplexity"]]
    checkpoint: Path
    data: Path
    """Folder written by `unmask prepare`, with the checkpoint's tokenizer."""
    length: int | None = None
    """Tokens a block; by default what the checkpoint was trained with."""
    sequences: int | None = None
    """Score this many blocks, chosen by the seed, instead of all."""
    draws: int = 16
    seed: int = 0
    batch: int = 64
    device: str = "auto"
    out: Path | None = None
    """Write the rows as a result file, for `unmask report`."""
    json: bool = False
    """Print rows for machines."""

    def run(self) -> None:
        model = load(self.checkpoint, device=self.device)
        if Tokenizer.load(self.data).inner.to_str() != model.tokenizer.inner.to_str():
            raise ValueError(f"{self.data}: prepared with another tokenizer than {self.checkpoint} was trained with")
        manifest = load_manifest(self.data)
        split = load_split(self.data, "validation")
        corpus = str(manifest["source"])
        length = self.length or model.config.get("requested", {}).get("length", 64)
        common = {"corpus": corpus, "length": length, "sequences": self.sequences, "seed": self.seed}
        rows = baselines(self.data, vocab=model.vocab, begin=model.tokenizer.begin, **common)
        with progress("perplexity") as bar:
            name = str(model.config.get("name", self.checkpoint.name))
            rows.append(perplexity(model, split, name=name, draws=self.draws, batch=self.batch, progress=bar, **common))
        if self.out is not None:
            write_json(self.out, {"rows": rows})
        for row in rows:
            line = f"{row['model']}: perplexity {row['perplexity']:.2f} {errors(row)} (maskings, texts), {row['bound']}"
            _print(row if self.json else line)


@dataclass(frozen=True)
class Report:
    """One self-contained HTML page of runs, results and samples: `unmask report runs/`."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    out: Path = Path("report.html")

    def run(self) -> None:
        _print(str(report(self.paths, self.out)))


Command = Demo | Prepare | Train | Sample | Evaluate | Report


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `unmask` and `python -m unmask`."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["sample"]:
        # a policy is a subcommand of tyro's, with options of its own; `--policy tweedie` reads better
        words = [word.removeprefix("--policy=") for word in words if word != "--policy"]
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


def _print(value: object) -> None:
    print(value if isinstance(value, str) else json.dumps(finite(value), ensure_ascii=False), flush=True)
