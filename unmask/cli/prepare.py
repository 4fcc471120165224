"""`unmask prepare`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unmask.data import Plan, estimate, load_manifest, load_split, prepare, prepare_pairs
from unmask.data.pairs import Reading
from unmask.log import console, progress, say
from unmask.units import duration


@dataclass(frozen=True)
class OfPairs:
    """Fine-tuning sets (`--pairs`)."""

    held_out: str | None = None
    """A source to validate on, instead of a share of the rows."""
    reading: Annotated[Reading, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Reading)
    template: str | None = None
    """A file with a Jinja chat template; by default the one beside the tokenizer, or a plain one."""
    malformed: float = 0.01
    """Share of the rows that may be left out because they cannot be used."""


@dataclass(frozen=True)
class Prepare:
    """Turn text into tokens, once; interrupted, the same command goes on.

    `unmask prepare --source my_texts/ --out data/mine`, or prompts with their answers:
    `unmask prepare --pairs --source gsm8k/train.jsonl --held-out gsm8k/test.jsonl --out data/gsm8k`
    """

    source: tuple[str, ...]
    """One or more of: a file (.txt and any other text, .jsonl, .parquet; .gz, .xz, .zst, .bz2 of them; .tar, .zip), a
    folder of such files, a data set of the Hugging Face hub or of a folder laid out like one
    (hf://NAME[:CONFIG][#SPLIT]), or "builtin"."""
    out: Path
    """A new folder, or one of the same request, which is gone on with."""
    tokenizer: str = "bpe:4096"
    """"bytes", "characters", "bpe:N" (N tokens, trained on the train split), a tokenizer.json, a sentencepiece .model,
    a folder with one of them or GPT-2's vocab.json and merges.txt, hf://owner/repository, or
    "builtin": the tokenizer of the package's own checkpoints."""
    validation: float = 0.05
    """Share of the documents held out: by a hash of each, so that a document keeps its side when others are added."""
    weights: tuple[float, ...] | None = None
    """One number a source: how much of the training it is to be, relative to the others (default: as much as it has).
    """
    field: str = "text"
    """The field of a record (.jsonl, .parquet, data sets) that holds its text."""
    detokenise: Literal["wikitext", "ptb", "lm1b", "lambada", "scientific-papers"] | None = None
    """Undo the splitting of a benchmark's text: spaces around punctuation, "@-@", "<unk>"."""
    licence: str | None = None
    """A note on the right to use the texts, for the manifest."""
    dry_run: bool = False
    """Say what would be made, judged by the beginning of each source, and stop."""
    json: bool = False
    """Print records for machines."""

    pairs: bool = False
    """The sources hold prompts with answers, chats or texts to infill: .jsonl, .json, .parquet, .txt, .tsv, .gz and the
    like of text, hf://NAME or a built-in "addition" or "continuation"; docs/finetuning.md has the layouts."""
    of_pairs: Annotated[OfPairs, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=OfPairs)

    def run(self) -> None:
        self._refuse_idle()
        if self.pairs and self.dry_run:
            raise ValueError("--dry-run: of --pairs nothing is told beforehand: rows are read in seconds; leave it out")
        if self.pairs:
            return self._pairs()
        options = {
            "tokenizer": self.tokenizer,
            "validation": self.validation,
            "weights": self.weights,
            "field": self.field,
            "detokenise": self.detokenise,
            "licence_note": self.licence,
        }
        if self.dry_run:
            found = estimate(Plan.of(self.source, **options))
            console.print(f"{found.files:,} files, {found.bytes / 1e6:,.1f} MB")
            console.print(f"about {found.tokens:,} tokens of {found.vocab:,}, {found.disk / 1e6:,.1f} MB in {self.out}")
            console.print(f"about {duration(found.seconds)} to tokenise")
            return say(dataclasses.asdict(found)) if self.json else None
        with progress("prepare", "bytes") as bar:

            def told(what: str, done: int, total: int) -> None:
                bar(done, total, what)

            folder = prepare(self.source, self.out, progress=told, **options)
        for name in ("train", "validation"):
            split = load_split(folder, name)
            console.print(f"{folder}: {len(split.tokens):,} {name} tokens in {len(split.names):,} documents")
        self._tell(folder)

    def _refuse_idle(self) -> None:
        """Raises ValueError for options that would do nothing."""
        usual, here = Prepare(self.source, self.out), "with --pairs" if self.pairs else "without --pairs"
        if self.pairs:
            names = ["weights", "field", "detokenise", "licence", *(["validation"] if self.of_pairs.held_out else [])]
            mine, theirs = vars(self), vars(usual)
        else:
            mine, theirs = ({**vars(each.of_pairs), **vars(each.of_pairs.reading)} for each in (self, usual))
            names = [name for name in mine if name != "reading"]
        for name in names:
            if mine[name] != theirs[name]:
                where = "beside --held-out" if name == "validation" else here
                raise ValueError(f"--{name.replace('_', '-')} does nothing {where}: leave it out")

    def _tell(self, folder: Path) -> None:
        if self.json:
            for name, counts in load_manifest(folder)["splits"].items():
                say({"folder": str(folder), "split": name, **counts})

    def _pairs(self) -> None:
        how = self.of_pairs
        with progress("reading", "rows") as bar:
            prepared = prepare_pairs(
                self.source,
                self.out,
                tokenizer=self.tokenizer,
                validation=self.validation,
                held_out=how.held_out,
                reading=how.reading,
                template=how.template,
                allowed=how.malformed,
                progress=lambda rows: bar(rows, rows + 1, "rows"),
            )
        for bad in prepared.malformed[:10]:
            console.print(f"left out: {bad}", markup=False)
        console.print(f"{len(prepared.malformed)} of {prepared.rows:,} rows left out")
        for name, count in load_manifest(prepared.folder)["splits"].items():
            answers, tokens = f"{count['answers']:,} tokens of answers", f"{count['tokens']:,}"
            console.print(f"{prepared.folder}: {count['documents']:,} {name} examples, {answers} among {tokens}")
        self._tell(prepared.folder)
