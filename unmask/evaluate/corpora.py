"""The benchmarks' texts: where they are on the hub, how a local copy is laid out, which split a protocol scores.

A corpus is a list of rows as the hub's data sets have them: lines of WikiText and Penn Treebank, sentences, passages,
articles. Local files that hold the same lines give the same rows, hence the same digest (`protocols.digest`).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unmask.data import detokenise

HEADING = re.compile(r" = [^=].* = \n?")
ALIASES = {"validation": ("validation", "valid", "val"), "test": ("test",), "train": ("train",)}
INSTALL = "needs the package datasets: pip install 'unmask[eval]'"


def each_row(rows: Sequence[str]) -> list[int]:
    """Every row is a document of its own."""
    return list(range(len(rows)))


def articles(rows: Sequence[str]) -> list[int]:
    """Number of the WikiText article each row belongs to: it begins at a heading of level one between blank rows.

    60 articles in the test and the validation split, 600 in WikiText-2's train split, as published.
    """
    blank = [True, *(not row.strip() for row in rows), True]
    number, numbers = -1, []
    for i, row in enumerate(rows):
        number += bool(blank[i] and blank[i + 2] and HEADING.fullmatch(row))
        numbers.append(max(number, 0))
    return numbers


def _whole_line(line: str) -> str:
    """WikiText's rows keep their line end; a line of blanks is the empty row."""
    return line if line.strip() else ""


def _article(line: str) -> str:
    """A line of the original scientific_papers archives: JSON, paragraphs joined by line ends."""
    return "\n".join(json.loads(line)["article_text"])


@dataclass(frozen=True)
class Corpus:
    """A benchmark's text; `{split}` in a name stands for train, validation or test."""

    name: str
    hub: str
    """Where its data files are published."""
    path: str
    """Their path there, which a local copy may have as well."""
    splits: Mapping[str, str]
    """Protocol -> the split that it scores."""
    detokenise: Callable[[str], str]
    column: str = "text"
    texts: tuple[str, ...] = ()
    """Names of text files in use for a local copy, a row a line."""
    row: Callable[[str], str] = str.strip
    """The row that such a line is."""
    documents: Callable[[Sequence[str]], list[int]] = each_row
    """The document of each row: texts of one document are no independent draws."""


TEST = {"radd": "test", "radd-published": "test"}
HUB, CONVERTED = "hf://datasets", "@refs/convert/parquet"
CORPORA = (
    *(
        Corpus(
            f"wikitext{size}",
            f"{HUB}/Salesforce/wikitext",
            f"wikitext-{size}-raw-v1/{{split}}-*.parquet",
            splits,
            detokenise.wikitext,
            texts=("wiki.{split}.raw",),
            row=_whole_line,
            documents=articles,
        )
        for size, splits in ((2, {**TEST, "radd-published": "train"}), (103, {**TEST, "mdlm": "validation"}))
    ),
    Corpus(
        "ptb",
        f"{HUB}/ptb-text-only/ptb_text_only{CONVERTED}",
        "penn_treebank/{split}/*.parquet",
        {**TEST, "mdlm": "validation"},
        detokenise.ptb,
        column="sentence",
        texts=("ptb.{split}.txt",),
    ),
    Corpus(
        "lambada",
        "https://openaipublic.blob.core.windows.net/gpt-2/data",
        "lambada_{split}.jsonl",
        {**TEST, "mdlm": "test"},
        detokenise.lambada,
    ),
    Corpus(
        "lm1b",
        f"{HUB}/billion-word-benchmark/lm1b{CONVERTED}",
        "plain_text/{split}/*.parquet",
        {**TEST, "mdlm": "test"},
        detokenise.lm1b,
        texts=("lm1b.{split}.txt", "news.en.heldout-*-of-*"),
    ),
    Corpus("ag_news", f"{HUB}/fancyzhx/ag_news", "data/{split}-*.parquet", {"mdlm": "test"}, detokenise.as_it_is),
    *(
        Corpus(
            f"scientific_papers_{kind}",
            f"{HUB}/armanc/scientific_papers{CONVERTED}",
            f"{kind}/{{split}}/*.parquet",
            {"mdlm": "validation"},
            detokenise.scientific_papers,
            column="article",
            texts=(f"{kind}-dataset/{{split}}.txt", "{split}.txt"),
            row=_article,
        )
        for kind in ("arxiv", "pubmed")
    ),
)


def corpus_of(name: str, protocol: str) -> tuple[Corpus, str]:
    """(corpus, split that the protocol scores). Raises ValueError where the protocol does not score it."""
    scored = {corpus.name: corpus for corpus in CORPORA if protocol in corpus.splits}
    if name not in scored:
        raise ValueError(f"protocol {protocol} does not score {name}: it scores {', '.join(scored)}")
    return scored[name], scored[name].splits[protocol]


def rows_of(corpus: Corpus, split: str, local: Path | None = None) -> list[str]:
    """The rows of a split, from the hub, or from `local`: a file, a folder, or a folder of folders named by corpus.

    Raises ValueError where they cannot be had or are empty.
    """
    rows = _from_hub(corpus, split) if local is None else _from_files(corpus, split, Path(local))
    if not any(row.strip() for row in rows):
        raise ValueError(f"{corpus.name}, {split} split: no text in {local or corpus.hub}")
    return rows


def _from_hub(corpus: Corpus, split: str) -> list[str]:
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{corpus.name}: its rows come from the hub, which {INSTALL}; or give --local FOLDER"
        ) from None
    address = f"{corpus.hub}/{corpus.path.format(split=split)}"
    kind = "json" if address.endswith(".jsonl") else "parquet"
    try:
        found = datasets.load_dataset(kind, data_files={"rows": address}, split="rows")
        return _texts(list(found[corpus.column]))
    except Exception as error:  # no name, no network, no file, no such column: each library has its own exception
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"cannot read {address} ({reason}): give --local FOLDER with a copy") from None


def _from_files(corpus: Corpus, split: str, local: Path) -> list[str]:
    if local.is_file():
        return _read(local, corpus)
    patterns = [*corpus.texts, corpus.path, "{split}-*.parquet", "{split}/*.parquet", "{split}.parquet"]
    patterns += ["{split}.jsonl", "{split}/dataset_info.json"]  # the last is of datasets' save_to_disk
    for folder in (local / corpus.name, local):
        for pattern in patterns:
            for name in ALIASES[split]:
                if files := sorted(folder.glob(pattern.format(split=name))):
                    return [row for file in files for row in _read(file, corpus)]
    wanted = ", ".join(pattern.format(split=split) for pattern in patterns)
    raise ValueError(f"{local}: no {split} split of {corpus.name}: looked there and in {corpus.name}/ for {wanted}")


def _read(file: Path, corpus: Corpus) -> list[str]:
    """Rows of a file by its suffix: parquet, jsonl (a column of each), or lines of text."""
    try:
        if file.name == "dataset_info.json":
            return _saved(file.parent, corpus.column)
        if file.suffix == ".parquet":
            return _parquet(file, corpus.column)
        with file.open(encoding="utf-8") as stream:
            lines = list(stream)
        if file.suffix in (".jsonl", ".json"):
            return _texts([json.loads(line)[corpus.column] for line in lines if line.strip()])
        return [corpus.row(line) for line in lines]
    except ImportError:
        raise ValueError(f"{file}: {INSTALL}") from None
    except (KeyError, TypeError, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{file}: no rows of {corpus.name} with a column {corpus.column!r} in it ({reason})") from None


def _parquet(file: Path, column: str) -> list[str]:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import read_table

    try:
        return _texts(read_table(file, columns=[column]).column(column).to_pylist())
    except ArrowInvalid as error:
        raise OSError(str(error)) from None


def _texts(values: list) -> list[str]:
    """Raises TypeError for what is no text."""
    other = next((i for i, value in enumerate(values) if not isinstance(value, str)), None)
    if other is not None:
        raise TypeError(f"row {other + 1} is no text but {type(values[other]).__name__}")
    return values


def _saved(folder: Path, column: str) -> list[str]:
    from datasets import load_from_disk

    return _texts(list(load_from_disk(str(folder))[column]))
