"""A source's texts to a folder of tokens, once: the folder while it is made, and what was made of it."""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from unmask.data.planning import Plan, digest_of_bytes, dtype_of, learnt_from
from unmask.data.reading import UnreadError
from unmask.data.sides import Sides
from unmask.data.sources import Source
from unmask.data.splits import MANIFEST, SHARD, SPLITS, load_manifest, load_split
from unmask.data.tokenizer import FILE, Tokenizer
from unmask.data.writing import STATE, Piece, write
from unmask.files import alone, read_json, vacant, write_json

REQUEST = "request.json"

Progress = Callable[[str, int, int], None]  # (what is done, bytes done, bytes in all)


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
    documents alone), a path, see `Tokenizer.load`, or a repository's hf:// address. `weights`: how much of the training
    each source is to be, relative to the others. `field`: that of a record's text. `detokenise`: a corpus whose own
    splitting is undone, line by line in text files. A document is held out for validation by a hash of its name or of a
    record's text, see `Sides`.

    Where `out` already answers the same request it is returned at once. A call that was interrupted or killed, or that
    a source could not be read for, goes on from where it was: until it ends it keeps a hidden folder beside `out`.
    Raises ValueError where `out` answers another request, and for what cannot be used.
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
    with alone(out.with_name(f".{out.name}.lock"), f"{out}: already being prepared"):
        try:
            _open(partial, request)
            _fill(partial, plan, request, report)
            _rename(partial, out, request)
        except UnreadError:
            raise
        except ValueError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        except OSError as error:
            what = f"cannot write {partial} ({error.strerror or error})"
            raise ValueError(f"{what}: make room there, and the same command goes on") from None
    return out


def _fill(partial: Path, plan: Plan, request: dict[str, object], report: Progress) -> None:
    """Everything that belongs in the folder, or the rest of it."""
    before = tuple(source.stamp() for source in plan.sources)
    sides, position = Sides.of(plan.sources, plan.validation), _position(plan.sources)
    if not (partial / FILE).exists():

        def read(number: int, share: float) -> None:
            report("tokenizer", position(number, share), plan.size)

        plan.make(lambda: learnt_from(sides, plan, read)).save(partial)
    tokenizer = Tokenizer.load(partial / FILE)

    def told(piece: Piece) -> None:
        report("tokens", position(piece.source, piece.part.read), plan.size)

    writer = write(partial, sides.parts(), tokenizer, dtype_of(tokenizer), len(plan.sources), told)
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
            "blake2b": digest_of_bytes((folder / FILE).read_bytes()),
        },
        "dtype": dtype_of(tokenizer).str,
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
    if not (out / MANIFEST).is_file():
        vacant(out)
        return False
    found = load_manifest(out)["request"]
    other = [key for key in request if found.get(key) != request[key]]
    if other:
        what = ", ".join(f"{key} {found.get(key)!r} instead of {request[key]!r}" for key in other[:3])
        raise ValueError(f"{out} was prepared with {what}: choose another folder or delete this one")
    for split in SPLITS:
        load_split(out, split)
    return True


def _open(partial: Path, request: dict[str, object]) -> None:
    """A folder to go on in: that of the same request where there is one, else an empty one."""
    path = partial / REQUEST
    try:
        if path.exists() and read_json(path) == request:
            for torn in partial.glob(".*"):  # files that were being written beside their names
                torn.unlink()
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
