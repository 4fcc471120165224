"""Documents to tokens on disk, once: two streams of tokens, their documents, the tokenizer and a manifest."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from unmask.data.making import SMALLEST, byte_tokenizer, train_bpe
from unmask.data.sources import Document, documents, licence
from unmask.data.splits import DOCUMENTS, FORMAT, MANIFEST, SPLITS, load_manifest, load_split
from unmask.data.tokenizer import FILE, Tokenizer
from unmask.files import write_json

CHOICES = '"bytes", "bpe:N" (N tokens, trained on the training documents) or the path of a tokenizer.json'

Progress = Callable[[str, int, int], None]  # (what is done, UTF-8 bytes done, UTF-8 bytes in all)
Make = Callable[[Callable[[], Iterator[str]]], Tokenizer]


def prepare(
    source: str,
    out: Path | str,
    *,
    tokenizer: str = "bpe:4096",
    validation: float = 0.05,
    progress: Progress | None = None,
) -> Path:
    """Turn the documents of `source` into the folder `out`, which appears whole or not at all; returns `out`.

    `tokenizer`: "bytes", "bpe:N" (trained on the training documents alone) or a path. A document is held out
    for validation if a hash of its name falls below the share `validation`, whatever else is there; at least
    one stays on each side, and a single document is cut in two at a paragraph. Where `out` already answers
    the same request it is returned at once. Raises ValueError where it answers another, and for what cannot
    be used.
    """
    out = Path(out)
    report = progress or (lambda what, done, total: None)
    if not 0 < validation < 1:
        raise ValueError(f"a validation share of {validation} leaves one side empty: choose between 0 and 1")
    make, spec = _tokenizer(tokenizer)
    survey = _survey(source, validation)
    request: dict[str, object] = {
        "format": FORMAT,
        "source": survey.digest,
        "tokenizer": spec,
        "validation": validation,
    }
    if _answers(out, request):
        return out
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        _make(partial)
        chosen = make(lambda: _training_texts(source, survey, report))
        chosen.save(partial)
        counts = _write_tokens(partial, chosen, source, survey, report)
        write_json(partial / MANIFEST, _manifest(partial, request, source, chosen, counts))
        _rename(partial, out, request)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


@dataclass(frozen=True)
class _Survey:
    """What one reading of the source tells: which text this is, and who is held out."""

    digest: str
    bytes: int
    held_out: frozenset[str]
    cut: float | None  # the share to cut off a single document


def _survey(source: str, validation: float) -> _Survey:
    digest, total, shares = hashlib.blake2b(digest_size=16), 0, {}
    for document in documents(source):
        text = document.text.encode()
        header = json.dumps([document.name, document.date, len(text)])
        digest.update(header.encode())
        digest.update(text)
        total += len(text)
        shares[document.name] = _share(document.name)
    held_out = {name for name, share in shares.items() if share < validation}
    if len(shares) == 1:
        return _Survey(digest.hexdigest(), total, frozenset(), validation)
    if not held_out:
        held_out = {min(shares, key=shares.__getitem__)}
    elif len(held_out) == len(shares):
        held_out.remove(max(shares, key=shares.__getitem__))
    return _Survey(digest.hexdigest(), total, frozenset(held_out), None)


def _share(name: str) -> float:
    """A uniform in [0, 1) that is the name's own: a document keeps its side when others are added."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64


def _sides(source: str, survey: _Survey) -> Iterator[tuple[str, Document]]:
    """Each document with the split it belongs to."""
    for document in documents(source):
        if survey.cut is None:
            yield SPLITS[document.name in survey.held_out], document
        else:
            at = _paragraph(document, survey.cut)
            yield "train", Document(document.name, document.text[:at], document.date)
            yield "validation", Document(f"{document.name} (end)", document.text[at:], document.date)


def _paragraph(document: Document, share: float) -> int:
    """Where to cut off the last `share` of a text: the nearest end of a paragraph, line or word.

    A cut that would make the share half as large again, or half as small, is not taken.
    """
    text = document.text
    goal = round(len(text) * (1 - share))
    for mark in ("\n\n", "\n", " "):
        ends = [at + len(mark) for at in (text.rfind(mark, 0, goal), text.find(mark, goal)) if at >= 0]
        near = [end for end in ends if abs(end - goal) <= share * len(text) / 2]
        for end in sorted(near, key=lambda end: abs(end - goal)):
            if text[:end].strip() and text[end:].strip():
                return end
    if len(text) < 2:
        raise ValueError(f"{document.name} is too short to cut a validation text from: give more text")
    return min(max(goal, 1), len(text) - 1)


def _tokenizer(spec: str) -> tuple[Make, str]:
    """How to make the tokenizer, given a way to read the training texts, and what names it in a request."""
    if spec == "bytes":
        return lambda texts: byte_tokenizer(), spec
    if spec.startswith("bpe:"):
        size = spec.removeprefix("bpe:")
        if not (size.isascii() and size.isdigit()) or int(size) < SMALLEST:
            raise ValueError(f"tokenizer {spec!r}: N must be a number of at least {SMALLEST}")
        return lambda texts: train_bpe(texts(), int(size)), f"bpe:{int(size)}"
    if not Path(spec).exists():
        raise ValueError(f"no tokenizer {spec!r}: choose {CHOICES}")
    loaded = Tokenizer.load(spec)
    return lambda texts: loaded, f"file:{_digest(loaded.inner.to_str().encode())}"


def _training_texts(source: str, survey: _Survey, report: Progress) -> Iterator[str]:
    done = 0
    for split, document in _sides(source, survey):
        if split == "train":
            yield document.text
        done += len(document.text.encode())
        report("tokenizer", done, survey.bytes)


@dataclass
class _Shard:
    """A split while it is written: its columns of documents.json, and the digest of its tokens."""

    file: BinaryIO
    digest: "hashlib.blake2b" = field(default_factory=lambda: hashlib.blake2b(digest_size=16))
    names: list[str] = field(default_factory=list)
    dates: list[str | None] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)

    def add(self, document: Document, size: int, pieces: Iterable[np.ndarray]) -> None:
        length = 0
        for ids in pieces:
            self.file.write(ids.tobytes())
            self.digest.update(ids.tobytes())
            length += len(ids)
        self.names.append(document.name)
        self.dates.append(document.date)
        self.lengths.append(length)
        self.bytes.append(size)

    def columns(self) -> dict[str, list]:
        return {"names": self.names, "dates": self.dates, "lengths": self.lengths, "bytes": self.bytes}

    def counts(self) -> dict[str, object]:
        documents, tokens, size = len(self.lengths), sum(self.lengths), sum(self.bytes)
        return {"documents": documents, "tokens": tokens, "bytes": size, "blake2b": self.digest.hexdigest()}


def _write_tokens(
    folder: Path, tokenizer: Tokenizer, source: str, survey: _Survey, report: Progress
) -> dict[str, dict[str, object]]:
    """Write both streams and documents.json; returns the counts for the manifest."""
    dtype, done = _dtype(tokenizer), 0
    with ExitStack() as stack:
        shards = {}
        for name in SPLITS:
            shards[name] = _Shard(stack.enter_context(_durable(folder / f"{name}.bin")))
        for split, document in _sides(source, survey):
            size = len(document.text.encode())
            pieces = chain(tokenizer.stream(document.text), [[tokenizer.end]])
            shards[split].add(document, size, (np.array(ids, dtype=dtype) for ids in pieces))
            done += size
            report("tokens", done, survey.bytes)
    if done != survey.bytes:
        raise ValueError(f"{source} changed while it was read: prepare it again when it is at rest")
    write_json(folder / DOCUMENTS, {name: shard.columns() for name, shard in shards.items()})
    return {name: shard.counts() for name, shard in shards.items()}


def _manifest(
    folder: Path,
    request: dict[str, object],
    source: str,
    tokenizer: Tokenizer,
    counts: dict[str, dict[str, object]],
) -> dict[str, object]:
    """No times and no machine in it: the same request gives the same folder, byte for byte."""
    return {
        "request": request,
        "source": source,
        "licence": licence(source),
        "tokenizer": {
            "vocab": tokenizer.vocab,
            "begin": tokenizer.begin,
            "end": tokenizer.end,
            "blake2b": _digest((folder / FILE).read_bytes()),
        },
        "dtype": _dtype(tokenizer).str,
        "splits": counts,
    }


def _answers(out: Path, request: dict[str, object]) -> bool:
    """Whether `out` is a whole preparation of this request. ValueError if it is neither that nor free."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST).is_file():
        raise ValueError(f"{out} exists and is no prepared folder: choose another folder or remove it")
    found = load_manifest(out)["request"]
    other = [key for key in request if found.get(key) != request[key]]
    if other:
        what = ", ".join(f"{key} {found.get(key)!r} instead of {request[key]!r}" for key in other)
        raise ValueError(f"{out} was prepared with {what}: choose another folder or delete this one")
    for split in SPLITS:
        load_split(out, split)
    return True


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        what = f"cannot write in {folder.parent} ({error.strerror})"
        raise ValueError(f"{what}: choose another folder") from None


def _rename(partial: Path, out: Path, request: dict[str, object]) -> None:
    """Make the folder appear; another process that finished the same request first is just as good."""
    try:
        if out.is_dir():
            out.rmdir()  # empty, else this raises: Windows renames onto nothing, not even an empty folder
        os.replace(partial, out)
    except OSError:
        if not _answers(out, request):
            raise


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab < 2**16 else "<u4")


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@contextmanager
def _durable(path: Path) -> Generator[BinaryIO, None, None]:
    """A new file, on disk when it is closed."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
