"""`unmask prepare`."""

from dataclasses import dataclass
from pathlib import Path

from unmask.data import load_split, prepare
from unmask.log import console, progress


@dataclass(frozen=True)
class Prepare:
    """Turn text into tokens, once.

    `unmask prepare --source my_texts/ --out data/mine`
    """

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
