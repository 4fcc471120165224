"""`unmask evaluate`: its options, and rows printed and written."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import torch
import tyro

from unmask import ranks
from unmask.checkpoint import Model, Told
from unmask.evaluate.answering import EvaluateAnswers
from unmask.evaluate.comparing import compare, without_values
from unmask.evaluate.corpora import CORPORA
from unmask.evaluate.generation import caution, generation, mauve, quality, read_texts, reference_texts
from unmask.evaluate.heldout import HeldOut, benchmark, running_text
from unmask.evaluate.judge import Judge, judge_texts, load_judge
from unmask.evaluate.perplexity import Order, baselines, errors, perplexity
from unmask.evaluate.tasks import EvaluateTasks
from unmask.files import Row, writable, write_json
from unmask.log import Report, progress, say
from unmask.rehearsal import Cost, Count, rehearsed, total
from unmask.sampling import AdaptivePolicy, Blocks, Draw, Planned, Remasking
from unmask.units import with_error

if TYPE_CHECKING:
    CorpusName = str
else:
    CorpusName = Literal[tuple(corpus.name for corpus in CORPORA)]


@dataclass(frozen=True)
class Perplexity:
    """Perplexity on held-out text with both standard errors, kind of bound and protocol, and bits per byte.

    `unmask evaluate perplexity --checkpoint runs/tiny --data data/builtin`, or on benchmarks:
    `--corpora wikitext2 ptb lambada --protocol radd`
    """

    checkpoint: Path
    """A run folder, a published file or folder, hf://owner/repository[/file], "builtin" or "builtin-ar"."""
    order: Annotated[Order | None, tyro.conf.OmitSubcommandPrefixes] = None
    """Exact likelihood of the decoder that writes in this order; by default the random-order bound (an ARM: exact)."""
    data: Path | None = None
    """A folder written by `unmask prepare` with the checkpoint's tokenizer, a text file, or a folder of them."""
    corpora: tuple[CorpusName, ...] = ()
    """Benchmarks, one row each."""
    protocol: Literal["radd", "radd-published", "mdlm"] = "radd"
    """How benchmarks are split, cut and scored; numbers of two protocols never compare."""
    local: Path | None = None
    """Benchmarks from this file or folder instead of the hub."""
    length: int | None = None
    """Tokens a window; by default what the checkpoint was trained with (benchmarks: at most 1024)."""
    stride: int | None = None
    """Let windows advance by this much and score only what is new, given the rest."""
    sequences: int | None = None
    """Score this many windows, chosen by the seed, instead of all."""
    draws: int = 16
    """Maskings a window; the published protocols took 1024."""
    seed: int = 0
    """What is random is keyed by it: the same seed gives the same result."""
    batch: int = 64
    """Sequences a network call; changes the time and nothing else."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto takes the first GPU there is."""
    told: Annotated[Told, tyro.conf.OmitArgPrefixes] = field(default_factory=Told)
    field: str = "text"
    """Of --data in JSON lines or parquet: the field that holds the text."""
    dry_run: bool = False
    """Say what it would cost, judged by its first seconds, and stop."""
    out: Path | None = None
    """Write the rows as a result file, for `unmask report` and `unmask compare`."""
    json: bool = False
    """Print rows for machines."""

    def run(self) -> None:
        if (self.data is None) == (not self.corpora):
            raise ValueError("say what to score: --data PATH or --corpora NAMES, one of them")
        if self.data is None and self.field != Perplexity.field:
            raise ValueError("--field does nothing without --data: leave it out")
        if self.order is not None and self.draws != Perplexity.draws:
            raise ValueError("--draws does nothing beside --order, whose likelihood is exact: leave it out")
        if self.local is not None and self.local.is_file() and len(self.corpora) > 1:
            raise ValueError(f"--local {self.local} is one file: give a folder for {len(self.corpora)} corpora")
        writable(self.out)
        model = self.told.load(self.checkpoint, self.device)
        name, rows = _name(model, self.checkpoint), []
        options: Row = {"order": self.order, "draws": self.draws, "seed": self.seed, "batch": self.batch}
        if self.dry_run:
            texts = [self._held_out(model, what) for what in self.corpora or (None,)]
            works = [lambda counted, told, x=x: perplexity(counted(model), x, progress=told, **options) for x in texts]
            return total(map(rehearsed, works)).tell(json=self.json)
        for what in self.corpora or (None,):
            held_out = self._held_out(model, what)
            new = baselines(held_out, model.vocab)
            with progress(f"perplexity, {held_out.corpus}", "evaluations") as bar:
                new.append(perplexity(model, held_out, name=name, progress=bar, **options))
            if len(new) > 1:
                new += compare(new[-1:], [min(new[:-1], key=lambda row: row["nats"])])
            rows += new
            if self.out is not None and ranks.rank() == 0:
                write_json(self.out, {"rows": rows})
            for row in new:
                say(without_values(row) if self.json else _told(row))

    def _held_out(self, model: Model, corpus: str | None) -> HeldOut:
        options: Row = {name: getattr(self, name) for name in ("length", "stride", "sequences", "seed")}
        if corpus is None:
            return running_text(model, cast(Path, self.data), field=self.field, **options)
        return benchmark(model, corpus, self.protocol, local=self.local, **options)


def _told(row: Row) -> str:
    if "difference" in row:
        value, error = with_error(row["difference"], row["stderr"])
        return f"{row['first']} less {row['second']}: {value} ± {error} {row['unit']}, paired over {row['paired']}"
    value = f"perplexity {row['perplexity']:.2f} {errors(row)} (maskings, texts), {row['bound']}"
    return f"{row['model']}, {row['corpus']}: {value}, {row['bits_per_byte']:.3f} bits per byte"


@dataclass(frozen=True)
class Generation:
    """Quality of texts written from nothing: generative perplexity by a judge, always beside the texts' entropy.

    `unmask evaluate generation --checkpoint runs/tiny --judge gpt2-large --reference data/builtin`
    """

    judge: str
    """An ARM's run folder, or any causal model that is published: a folder, hf://owner/repository or its plain name."""
    policy: Annotated[Planned | AdaptivePolicy | Remasking | Blocks | None, tyro.conf.OmitSubcommandPrefixes] = None
    """Where to write next; by default exact: a random order, one token at a time (left to right for a causal model)."""
    draw: Annotated[Draw, tyro.conf.OmitArgPrefixes] = field(default_factory=Draw)
    checkpoint: Path | None = None
    """Whose texts; or --samples."""
    samples: Path | None = None
    """Texts of a file that `unmask sample --out` wrote, instead of new ones."""
    reference: Path | None = None
    """People's texts to be measured beside: a prepared folder, a text file or a folder of them."""
    mauve: str | None = None
    """Also MAUVE against the reference, on the features of this GPT-2-like model."""
    count: int = 64
    """Texts written."""
    length: int | None = None
    """Tokens a text; by default what the checkpoint was trained with."""
    seed: int = 0
    """What is random is keyed by it: the same seed gives the same result."""
    batch: int = 16
    """Texts written at once; changes the time and nothing else."""
    judge_batch: int = 4
    """Texts judged at once; changes the time and nothing else."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto takes the first GPU there is."""
    told: Annotated[Told, tyro.conf.OmitArgPrefixes] = field(default_factory=Told)
    field: str = "text"
    """Of --reference in JSON lines or parquet: the field that holds the text."""
    dry_run: bool = False
    """Say what it would cost, judged by its first seconds, and stop."""
    out: Path | None = None
    """Write the rows as a result file, for `unmask report` and `unmask compare`."""
    json: bool = False
    """Print rows for machines."""

    def run(self) -> None:
        if (self.checkpoint is None) == (self.samples is None):
            raise ValueError("say whose texts: --checkpoint RUN or --samples FILE, one of them")
        if self.samples is not None:
            mine, theirs = ({**vars(each), **vars(each.draw)} for each in (self, Generation(self.judge)))
            for name in ("policy", "count", "length", *vars(self.draw)):
                if mine[name] != theirs[name]:
                    option = name.replace("_", "-")
                    raise ValueError(f"--{option} does nothing beside --samples, whose texts are written: leave it out")
        if self.reference is None and self.field != Generation.field:
            raise ValueError("--field does nothing without --reference: leave it out")
        if self.mauve is not None and self.reference is None:
            raise ValueError("--mauve compares with people's texts: give --reference PATH")
        writable(self.out)
        judge = load_judge(self.judge, device=self.device)
        if self.dry_run:
            return self._cost(judge).tell(json=self.json)
        with progress("writing", "tokens") as bar:
            texts, said = self._texts(bar)
        rows = []
        with progress("judging", "texts") as bar:
            rows.append(quality(judge, texts, said, batch=self.judge_batch, progress=bar))
        if self.reference is not None:
            length = max(1, round(rows[0]["tokens"] / len(texts)))
            which: Row = {"count": len(texts), "length": length, "seed": self.seed, "field": self.field}
            people = reference_texts(self.reference, judge, **which)
            told = {"model": f"reference: {self.reference.name}", "length": said["length"], "yardstick": True}
            rows.append(quality(judge, people, told, batch=self.judge_batch))
            if self.mauve is not None:
                rows[0]["mauve"] = mauve(texts, people, self.mauve)
        rows[0]["caution"] = caution(rows[0], rows[1] if rows[1:] else None)
        if self.out is not None and ranks.rank() == 0:
            write_json(self.out, {"rows": rows})
        for row in rows:
            say(without_values(row) if self.json else _line(row))

    def _texts(self, told: Report) -> tuple[list[str], Row]:
        if self.samples is not None:
            return read_texts(self.samples)
        model, length = self._writer()
        return self._written(model, length, told)

    def _writer(self) -> tuple[Model, int]:
        """The model, and the length of its texts."""
        model = self.told.load(cast(Path, self.checkpoint), self.device)
        length = self.length or model.length or 64
        if self.count < 2 or length < 1:
            raise ValueError(f"count {self.count} must be at least 2 and length {length} at least 1")
        return model, length

    def _written(self, model: Model, length: int, told: Callable[[int, int], None]) -> tuple[list[str], Row]:
        options: Row = {"policy": self.policy, "draw": self.draw, "seed": self.seed, "batch": self.batch}
        name = _name(model, cast(Path, self.checkpoint))
        return generation(model, name=name, count=self.count, length=length, progress=told, **options)

    def _cost(self, judge: Judge) -> Cost:
        """That of writing, and of judging texts as long: before they are written, of random tokens."""
        costs = []
        if self.samples is not None:
            texts = read_texts(self.samples)[0]
        else:
            model, length = self._writer()
            costs.append(rehearsed(lambda counted, told: self._written(counted(model), length, told)))
            random = torch.randint(model.vocab, (self.count, length), generator=torch.Generator().manual_seed(0))
            texts = [model.decode(tokens) for tokens in random]

        def judging(counted: Count, told: Callable[[int, int], None]) -> None:
            judge_texts(replace(judge, network=counted(judge.network)), texts, batch=self.judge_batch, progress=told)

        return total([*costs, rehearsed(judging) * (1 if self.reference is None else 2)])


@dataclass(frozen=True)
class Evaluate:
    """Measure a model: perplexity, generated texts, tasks, answers."""

    what: Annotated[
        Annotated[Perplexity, tyro.conf.subcommand("perplexity")]
        | Annotated[Generation, tyro.conf.subcommand("generation")]
        | Annotated[EvaluateTasks, tyro.conf.subcommand("tasks")]
        | Annotated[EvaluateAnswers, tyro.conf.subcommand("answers")],
        tyro.conf.OmitSubcommandPrefixes,
        tyro.conf.OmitArgPrefixes,
    ]

    def run(self) -> None:
        self.what.run()


def _name(model: Model, folder: Path) -> str:
    return str(model.config.get("name", folder.name))


def _line(row: Row) -> str:
    value = f"generative perplexity {row['generative_perplexity']:.2f} ±{row['stderr']:.2f} by {row['judge']}"
    line = f"{row['model']}: {value}, entropy {row['entropy']:.3f} ±{row['entropy_stderr']:.3f} nats"
    line += f", distinct-2 {row['distinct_2']:.3f}"
    line += f", NFE {row['nfe']:.1f}, {row['seconds_per_text']:.2f} s a text" if "nfe" in row else ""
    return line + (f"\n[{row['caution']}]" if row.get("caution", "none") != "none" else "")
