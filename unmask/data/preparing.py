"""A source's texts to a folder of tokens, once: what is asked for, how far it is, and what was made of it."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from unmask.data.detokenise import RULES
from unmask.data.making import SMALLEST, byte_tokenizer, character_tokenizer, train_bpe
from unmask.data.sides import Sides
from unmask.data.sources import Source, digest_of, licence, source_of
from unmask.data.splits import FORMAT, MANIFEST, SHARD, SPLITS, load_manifest, load_split
from unmask.data.tokenizer import FILE, Tokenizer, cut
from unmask.data.writing import STATE, Piece, Sorted, tokenised, write
from unmask.files import read_json, write_json

CHOICES = (
    '"bytes", "characters", "bpe:N" (N tokens, trained on the training documents), or the path of a tokenizer.json, '
    "a sentencepiece .model or a folder with one of them or vocab.json and merges.txt"
)
LEARNT = 1 << 28  # bytes of training text that a vocabulary is learnt from, drawn from all where there is more
SAMPLE = 1 << 22  # characters that an estimate looks at
REQUEST = "request.json"

Progress = Callable[[str, int, int], None]  # (what is done, bytes done, bytes in all)
Make = Callable[[Callable[[], Iterator[str]]], Tokenizer]


@dataclass(frozen=True)
class Plan:
    """What is asked for, checked: nothing is read yet but the names of files. Raises ValueError for what cannot be."""

    sources: tuple[Source, ...]
    make: Make
    tokenizer: str
    validation: float
    weights: tuple[float, ...] | None
    field: str
    detokenise: str | None
    licence: str

    @classmethod
    def of(
        cls,
        source: str | Sequence[str],
        *,
        tokenizer: str = "bpe:4096",
        validation: float = 0.05,
        weights: Sequence[float] | None = None,
        field: str = "text",
        detokenise: str | None = None,
        licence_note: str | None = None,
    ) -> "Plan":
        """See `prepare`."""
        names = [source] if isinstance(source, str) else list(source)
        if not 0 < validation < 1:
            raise ValueError(f"a validation share of {validation} leaves one side empty: choose between 0 and 1")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"sources {', '.join(names)}: give at least one, and each once")
        if weights is not None and (len(weights) != len(names) or not all(0 < each < np.inf for each in weights)):
            raise ValueError(f"weights {list(weights)} of {len(names)} sources: give each a positive number, or none")
        if detokenise is not None and detokenise not in RULES:
            raise ValueError(f"no detokeniser {detokenise!r}: choose one of {', '.join(RULES)}")
        rule = None if detokenise is None else RULES[detokenise]
        make, spec = _tokenizer(tokenizer)
        found = tuple(source_of(name, field, rule) for name in names)
        shares = None if weights is None or len(names) == 1 else tuple(map(float, weights))
        return cls(found, make, spec, validation, shares, field, detokenise, licence(names, licence_note))

    @cached_property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(source.size for source in self.sources)

    def request(self, told: Callable[[int], None]) -> dict[str, object]:
        """What a prepared folder answers; its files are read once, to know them again."""
        digests = digest_of(self.sources, [self.field, self.detokenise], told)
        whole = hashlib.blake2b(repr((digests, self.weights)).encode(), digest_size=16).hexdigest()
        return {
            "format": FORMAT,
            "tokenizer": self.tokenizer,
            "validation": self.validation,
            "licence": self.licence,
            "field": self.field,
            "detokenise": self.detokenise,
            "weights": None if self.weights is None else list(self.weights),  # as JSON gives it back
            "source": whole,
            "sources": digests,
        }


def prepare(
    source: str | Sequence[str],
    out: Path | str,
    *,
    tokenizer: str = "bpe:4096",
    validation: float = 0.05,
    weights: Sequence[float] | None = None,
    field: str = "text",
    detokenise: str | None = None,
    licence_note: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Turn the documents of one or more sources into the folder `out`, which appears whole or not at all; returns it.

    `source`: see `source_of`. `tokenizer`: "bytes", "characters" (of all documents), "bpe:N" (trained on the training
    documents alone) or a path, see `Tokenizer.load`. `weights`: how much of the training each source is to be, relative
    to the others. `field`: that of a record's text. `detokenise`: a corpus whose own splitting is undone, line by line
    in text files. A document is held out for validation by a hash of its name or of a record's text, see `Sides`.

    Where `out` already answers the same request it is returned at once. A call that was interrupted or killed goes on
    from where it was: until it ends it keeps a hidden folder beside `out`. Raises ValueError where `out` answers
    another request, and for what cannot be used.
    """
    out = Path(out)
    plan = Plan.of(
        source,
        tokenizer=tokenizer,
        validation=validation,
        weights=weights,
        field=field,
        detokenise=detokenise,
        licence_note=licence_note,
    )
    report, size = progress or (lambda what, done, total: None), plan.size
    request = plan.request(lambda done: report("reading", done, size))
    if _answers(out, request):
        return out
    partial = out.with_name(f".{out.name}.partial")
    with _alone(out):
        try:
            _open(partial, request)
            _fill(partial, plan, request, report)
            _rename(partial, out, request)
        except ValueError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        except OSError as error:
            what = f"cannot write {partial} ({error.strerror or error})"
            raise ValueError(f"{what}: make room there, and the same command goes on") from None
    return out


@dataclass(frozen=True)
class Estimate:
    """What preparing would make, judged by the beginning of each source."""

    files: int
    bytes: int
    tokens: int
    vocab: int
    disk: int
    """Bytes of the prepared folder."""
    seconds: float


def estimate(plan: Plan) -> Estimate:
    """Tokenise a sample, write nothing. A "bpe:N" vocabulary is learnt from the sample."""
    texts: list[str] = []
    parts: list[Sorted] = []
    share = 0.0
    for number, source in enumerate(plan.sources):
        room, read = SAMPLE // len(plan.sources), 0.0
        for part in source.read():
            parts.append((False, number, part))
            texts.append(part.text)
            room, read = room - len(part.text), part.read
            if room <= 0:
                break
        share += read * source.size / max(1, plan.size)
    tokenizer = plan.make(lambda: iter(texts))
    start = time.perf_counter()
    tokens = sum(len(piece.ids) for piece in tokenised(parts, tokenizer, _dtype(tokenizer)))
    seconds = time.perf_counter() - start
    total = round(tokens / max(share, 1e-9))
    files = sum(len(source.files) for source in plan.sources)
    disk = total * _dtype(tokenizer).itemsize
    return Estimate(files, plan.size, total, tokenizer.vocab, disk, seconds / max(share, 1e-9))


def _fill(partial: Path, plan: Plan, request: dict[str, object], report: Progress) -> None:
    """Everything that belongs in the folder, or the rest of it."""
    before = tuple(source.stamp() for source in plan.sources)
    sides, position = Sides.of(plan.sources, plan.validation), _position(plan.sources)
    if not (partial / FILE).exists():

        def read(number: int, share: float) -> None:
            report("tokenizer", position(number, share), plan.size)

        plan.make(lambda: _learnt(sides, plan, read)).save(partial)
    tokenizer = Tokenizer.load(partial / FILE)

    def told(piece: Piece) -> None:
        report("tokens", position(piece.source, piece.part.read), plan.size)

    writer = write(partial, sides.parts(), tokenizer, _dtype(tokenizer), len(plan.sources), told)
    report("tokens", plan.size, plan.size)
    counts = {
        split: {
            "documents": side.documents,
            "tokens": side.tokens,
            "bytes": sum_of(partial / split / "bytes.bin"),
            "sources": [[source.name, *own] for source, own in zip(plan.sources, sources, strict=True)],
            "blake2b": _digest_of_tokens(partial / split),
        }
        for split, side, sources in zip(SPLITS, writer.sides, writer.sources, strict=True)
    }
    empty = [name for name, _, tokens in counts["train"]["sources"] if not tokens]
    if plan.weights is not None and empty:
        raise ValueError(f"{empty[0]} has a weight and no training document: leave it out, or give it more texts")
    if tuple(source.stamp() for source in plan.sources) != before:
        raise ValueError("a source changed while it was read: prepare it again when it is at rest")
    write_json(partial / MANIFEST, _manifest(partial, plan, request, tokenizer, counts))
    for name in (STATE, REQUEST):
        (partial / name).unlink()


def _position(sources: Sequence[Source]) -> Callable[[int, float], int]:
    """Bytes of all files that are behind, when a share of a source is."""
    sizes = [source.size for source in sources]
    return lambda number, share: sum(sizes[:number]) + int(share * sizes[number])


def _learnt(sides: Sides, plan: Plan, told: Callable[[int, float], None]) -> Iterator[str]:
    """The texts that a vocabulary is learnt from: training documents, or pieces of them drawn by a hash.

    Characters are looked for in all documents, or the held-out ones could not be read.
    """
    share = 1.0 if plan.tokenizer == "characters" else LEARNT / max(1, plan.size)
    for held_out, number, part in sides.parts():
        told(number, part.read)
        if held_out and plan.tokenizer != "characters":
            continue
        if share >= 1:
            yield part.text
            continue
        for piece in cut(part.text):
            digest = hashlib.blake2b(piece.encode(), digest_size=8).digest()
            if int.from_bytes(digest, "big") < share * 2**64:
                yield piece


def _tokenizer(spec: str) -> tuple[Make, str]:
    """How to make the tokenizer, given a way to read the training texts, and what names it in a request."""
    if spec == "bytes":
        return lambda texts: byte_tokenizer(), spec
    if spec == "characters":
        return lambda texts: character_tokenizer(set().union(*map(set, texts()))), spec
    if spec.startswith("bpe:"):
        size = spec.removeprefix("bpe:")
        if not (size.isascii() and size.isdigit()) or int(size) < SMALLEST:
            raise ValueError(f"tokenizer {spec!r}: N must be a number of at least {SMALLEST}")
        return lambda texts: train_bpe(texts(), int(size)), f"bpe:{int(size)}"
    if not Path(spec).exists():
        raise ValueError(f"no tokenizer {spec!r}: choose {CHOICES}")
    loaded = Tokenizer.load(spec)
    return lambda texts: loaded, f"file:{_digest(loaded.inner.to_str().encode())}"


def _manifest(
    folder: Path, plan: Plan, request: dict[str, object], tokenizer: Tokenizer, counts: dict[str, dict]
) -> dict[str, object]:
    """No times and no machine in it: the same request gives the same folder, byte for byte."""
    return {
        "request": request,
        "source": " + ".join(source.name for source in plan.sources),
        "licence": plan.licence,
        "tokenizer": {
            "vocab": tokenizer.vocab,
            "begin": tokenizer.begin,
            "end": tokenizer.end,
            "blake2b": _digest((folder / FILE).read_bytes()),
        },
        "dtype": _dtype(tokenizer).str,
        "shard": SHARD,
        "splits": counts,
    }


def sum_of(column: Path) -> int:
    """Sum of a column of 8-byte numbers, some at a time."""
    total = 0
    with column.open("rb") as file:
        while data := file.read(1 << 22):
            total += int(np.frombuffer(data, dtype="<i8").sum())
    return total


def _digest_of_tokens(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.glob("tokens-*.bin")):
        with path.open("rb") as file:
            while data := file.read(1 << 22):
                digest.update(data)
    return digest.hexdigest()


def _answers(out: Path, request: dict[str, object]) -> bool:
    """Whether `out` is a whole preparation of this request. ValueError if it is neither that nor free."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST).is_file():
        raise ValueError(f"{out} exists and is no prepared folder: choose another folder or remove it")
    found = load_manifest(out)["request"]
    other = [key for key in request if found.get(key) != request[key]]
    if other:
        what = ", ".join(f"{key} {found.get(key)!r} instead of {request[key]!r}" for key in other[:3])
        raise ValueError(f"{out} was prepared with {what}: choose another folder or delete this one")
    for split in SPLITS:
        load_split(out, split)
    return True


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Raises ValueError where another process is writing the same folder, or none can."""
    path = out.with_name(f".{out.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise ValueError(f"cannot write in {out.parent} ({error.strerror}): choose another folder") from None
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # a system without: two writers would spoil each other's work
        except OSError:
            raise ValueError(f"another process is preparing {out}: wait for it, or choose another folder") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _open(partial: Path, request: dict[str, object]) -> None:
    """A folder to go on in: that of the same request where there is one, else an empty one."""
    path = partial / REQUEST
    try:
        if path.exists() and read_json(path) == request:
            return
    except ValueError:
        pass  # cut off by a crash
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_json(path, request)


def _rename(partial: Path, out: Path, request: dict[str, object]) -> None:
    """Make the folder appear; another process that finished the same request first is just as good."""
    try:
        if out.is_dir():
            out.rmdir()  # empty, else this raises: Windows renames onto nothing, not even an empty folder
        os.replace(partial, out)
    except OSError:
        if not _answers(out, request):
            raise
        shutil.rmtree(partial, ignore_errors=True)


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab < 2**16 else "<u4")


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
