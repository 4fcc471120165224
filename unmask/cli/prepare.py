"""`unmask prepare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unmask.data import Plan, estimate, load_split, prepare
from unmask.log import console, progress


@dataclass(frozen=True)
class Prepare:
    """Turn text into tokens, once; interrupted, the same command goes on.

    `unmask prepare --source my_texts/ --out data/mine`
    """

    source: tuple[str, ...]
    """One or more of: a file (.txt and any other text, .jsonl, .parquet; .gz, .xz, .zst, .bz2 of them; .tar, .zip), a
    folder of such files, a data set of the Hugging Face hub or of a folder laid out like one
    (hf://NAME[:CONFIG][#SPLIT]), or "builtin"."""
    out: Path
    tokenizer: str = "bpe:4096"
    """"bytes", "characters", "bpe:N" (N tokens, trained on the train split), a tokenizer.json, a sentencepiece .model,
    or a folder with one of them or GPT-2's vocab.json and merges.txt."""
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

    def run(self) -> None:
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
            console.print(f"about {found.seconds:,.0f} s to tokenise")
            return
        with progress("prepare") as bar:

            def told(what: str, done: int, total: int) -> None:
                bar(done, total, what)

            folder = prepare(self.source, self.out, progress=told, **options)
        for name in ("train", "validation"):
            split = load_split(folder, name)
            console.print(f"{folder}: {len(split.tokens):,} {name} tokens in {len(split.names):,} documents")
