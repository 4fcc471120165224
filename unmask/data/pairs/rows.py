"""Rows of a fine-tuning source: files of many kinds, one at a time, each with the place it stands at."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.data.pairs.builtin import builtin_pairs
from unmask.data.pairs.layouts import LAYOUTS
from unmask.data.reading import LINES, PARQUET, TEXT, opened_parquet, suffix_of, text_of
from unmask.data.sources import HUB, loaded
from unmask.files import Row

KINDS = (*LINES, ".json", *PARQUET, *TEXT, ".tsv")
FIELDS = {"input", *(name for names, _ in LAYOUTS for name in names)}


@dataclass(frozen=True)
class Malformed:
    """A row that cannot be used: where it stands, and why."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


def rows_of(source: str) -> Iterator[tuple[str, Row | Malformed]]:
    """(place, row) of each row: a .jsonl (or .ndjson), .json (a list), .parquet, .txt or .tsv file, maybe compressed,
    hf://NAME[:CONFIG][#SPLIT], or a built-in "addition", "addition:test", "continuation" or "continuation:test".

    A line of text is a row {"prompt", "response"} where it has `||` or a tab, else {"text"}. Blank lines are no rows.
    Raises ValueError where there is no such source or it is of another kind, and for a first line of columns' names.
    """
    if (rows := builtin_pairs(source)) is not None:
        yield from _numbered(source, rows, "row")
        return
    if source.startswith(HUB):
        yield from _numbered(source, iter(loaded(source)), "row")
        return
    path, kind = Path(source), suffix_of(source)
    if not path.is_file() or kind not in KINDS:
        what = "no such file" if not path.is_file() else f"a {path.suffix or 'nameless'} file"
        raise ValueError(f"{source}: {what}; give one of {', '.join(KINDS)}, or {HUB}NAME")
    if kind in PARQUET:
        yield from _numbered(path.name, _parquet(path), "row")
    elif kind == ".json":
        yield from _numbered(path.name, _list(path), "item")
    else:
        read = _object if kind in LINES else _line
        for number, line in enumerate(text_of(path).split("\n"), 1):
            if line.strip():
                place = f"{path.name}, line {number}"
                yield place, read(line, place)


def _numbered(name: str, rows: Iterator[Any], what: str) -> Iterator[tuple[str, Row | Malformed]]:
    for number, row in enumerate(rows, 1):
        place = f"{name}, {what} {number}"
        yield place, row if isinstance(row, dict) else Malformed(place, f"a {type(row).__name__}, no object")


def _object(line: str, place: str) -> Row | Malformed:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return Malformed(place, "not JSON")
    return row if isinstance(row, dict) else Malformed(place, f"a {type(row).__name__}, no object")


def _line(line: str, place: str) -> Row | Malformed:
    mark = "||" if "||" in line else "\t"
    prompt, found, response = line.partition(mark)
    if mark == "\t" in response:
        return Malformed(place, "more than one tab, where a prompt, a tab and its answer are wanted")
    if place.endswith(", line 1") and {prompt.strip().lower(), response.strip().lower()} <= FIELDS:
        raise ValueError(f"{place}: names of columns, no example: remove it, and put prompts before their answers")
    return {"prompt": prompt, "response": response} if found else {"text": line}


def _list(path: Path) -> Iterator[Any]:
    text = text_of(path)
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}): restore it") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a {type(rows).__name__}, where a list of rows is wanted")
    return iter(rows)


def _parquet(path: Path) -> Iterator[Row]:
    with opened_parquet(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            yield from batch.to_pylist()
