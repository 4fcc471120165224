"""Documents to tokens on disk, on all cores and in bounded memory; a writer that was killed goes on where it was."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int

from unmask.data.reading import Part
from unmask.data.splits import COLUMNS, NAMES, SHARD, SPLITS, shard_name
from unmask.data.tokenizer import Tokenizer, cut
from unmask.files import read_json, write_json

STATE = "state.json"
BATCH = 1 << 20  # characters tokenised at once: the library keeps up to 90 bytes of each
AHEAD = 2  # batches tokenised while one is written
SECONDS, BYTES = 20.0, 1 << 28  # after so much a killed writer need not begin again

Sorted = tuple[bool, int, Part]  # (held out, number of its source, part)


@dataclass(frozen=True)
class Piece:
    """A part, and its tokens."""

    held_out: bool
    source: int
    part: Part
    ids: Int[np.ndarray, " n"]


def tokenised(parts: Iterable[Sorted], tokenizer: Tokenizer, dtype: np.dtype, skip: int = 0) -> Iterator[Piece]:
    """Each part with its tokens, and the end token where its document ends: the same as of the whole document.

    Batches are tokenised ahead by the library's own threads, in the order of the parts. The first `skip` were
    written before.
    """
    begun: set[bool] = set()  # the sides on which a document is under way

    def job(batch: list[tuple[Sorted, bool]]) -> list[Piece]:
        return _encoded(batch, tokenizer, dtype)

    def with_cut(parts: Iterable[Sorted]) -> Iterator[tuple[Sorted, bool]]:
        for each in parts:
            held_out, _, part = each
            yield each, held_out in begun
            (begun.discard if part.last else begun.add)(held_out)

    whole = parts if tokenizer.rest is not None or tokenizer.table is not None else _whole(parts)
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting: deque[Future[list[Piece]]] = deque()
        try:
            for batch in _batches(islice(with_cut(whole), skip, None)):
                waiting.append(pool.submit(job, batch))
                if len(waiting) > AHEAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _whole(parts: Iterable[Sorted]) -> Iterator[Sorted]:
    """Documents in one piece, for a tokenizer whose texts may not be cut."""
    texts: list[str] = []
    for held_out, source, part in parts:
        texts.append(part.text)
        if part.last:
            yield held_out, source, replace(part, text="".join(texts))
            texts = []
    if texts:  # of a sample
        yield held_out, source, replace(part, text="".join(texts))


def _batches(parts: Iterable[tuple[Sorted, bool]]) -> Iterator[list[tuple[Sorted, bool]]]:
    batch, size = [], 0
    for each in parts:
        batch.append(each)
        size += len(each[0][2].text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(batch: list[tuple[Sorted, bool]], tokenizer: Tokenizer, dtype: np.dtype) -> list[Piece]:
    texts: dict[bool, list[str]] = {False: [], True: []}
    owners: dict[bool, list[int]] = {False: [], True: []}
    for i, ((_, _, part), goes_on) in enumerate(batch):
        pieces = cut(part.text) if tokenizer.rest is not None else iter([part.text])
        for j, text in enumerate(pieces):
            which = goes_on or j > 0
            texts[which].append(text)
            owners[which].append(i)
    ids: list[list[np.ndarray]] = [[] for _ in batch]
    for which in (False, True):  # the beginning of a part is before the rest of it
        if texts[which]:
            for i, found in zip(owners[which], tokenizer.arrays(texts[which], cut=which), strict=True):
                ids[i].append(found)
    end = np.array([tokenizer.end])
    return [
        Piece(held_out, source, part, np.concatenate([*found, *([end] if part.last else [])]).astype(dtype))
        for ((held_out, source, part), _), found in zip(batch, ids, strict=True)
    ]


@dataclass
class _Open:
    """The document that a side has under way, and what the side holds so far."""

    tokens: int = 0
    documents: int = 0
    names: int = 0
    start: int = 0
    bytes: int = 0


class Writer:
    """Two growing splits in a folder, and the parts they are made of so far; `commit` is what a kill leaves."""

    def __init__(self, folder: Path, dtype: np.dtype, sources: int) -> None:
        self.folder, self.dtype, self.parts = folder, dtype, 0
        self.sides = [_Open() for _ in SPLITS]
        self.sources = [[[0, 0] for _ in range(sources)] for _ in SPLITS]  # documents and tokens of each
        self.files: dict[str, BinaryIO] = {}
        self.committed, self.written = time.monotonic(), 0
        state = _committed(folder)
        for path in [path for split in SPLITS for path in (folder / split).glob("*")]:
            if state is None or path.relative_to(folder).as_posix() not in state["sizes"]:
                path.unlink()
        if state is not None:
            self.parts, self.sources = state["parts"], state["sources"]
            self.sides = [_Open(**side) for side in state["sides"]]
            for name, size in state["sizes"].items():
                os.truncate(folder / name, size)
                if name not in self._full():
                    self._file(name)
        for split in SPLITS:
            (folder / split).mkdir(exist_ok=True)
            for name in (*COLUMNS, NAMES):
                self._file(f"{split}/{name}")

    def add(self, piece: Piece) -> None:
        """Append a part's tokens; where its document ends, the document's row."""
        which, part = int(piece.held_out), piece.part
        split, side, source = SPLITS[which], self.sides[which], self.sources[which][piece.source]
        self._tokens(split, side, piece.ids)
        side.bytes += len(part.text.encode())
        source[1] += len(piece.ids)
        self.parts += 1
        if part.last:
            name = part.name.encode()
            side.names += len(name)
            date = np.datetime64(part.date or "NaT", "D")
            row = (side.start, side.tokens - side.start, side.bytes, date.astype("<i8"), side.names)
            for column, value in zip(COLUMNS, row, strict=True):
                self._file(f"{split}/{column}").write(int(value).to_bytes(8, "little", signed=True))
            self._file(f"{split}/{NAMES}").write(name)
            side.start, side.bytes, side.documents = side.tokens, 0, side.documents + 1
            source[0] += 1
        self.written += piece.ids.nbytes
        if self.written >= BYTES or time.monotonic() - self.committed >= SECONDS:
            self.commit()

    def commit(self) -> None:
        """Everything so far is on disk, and known to be."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        sizes = {name: file.tell() for name, file in self.files.items()}
        sizes |= {name: size for name, size in self._full().items() if name not in sizes}
        sides = [vars(side) for side in self.sides]
        state = {"parts": self.parts, "sides": sides, "sources": self.sources, "sizes": sizes}
        write_json(self.folder / STATE, state)
        self.committed, self.written = time.monotonic(), 0

    def close(self) -> None:
        for file in self.files.values():
            with suppress(OSError):  # of a full disk, which was told of already
                file.close()

    def _tokens(self, split: str, side: _Open, ids: Int[np.ndarray, " n"]) -> None:
        while len(ids):
            room = SHARD - side.tokens % SHARD
            name = f"{split}/{shard_name(side.tokens // SHARD)}"
            self._file(name).write(ids[:room].tobytes())
            side.tokens += len(ids[:room])
            ids = ids[room:]
            if side.tokens % SHARD == 0:
                _durably_closed(self.files.pop(name))

    def _file(self, name: str) -> BinaryIO:
        if name not in self.files:
            self.files[name] = (self.folder / name).open("ab", buffering=1 << 16)
        return self.files[name]

    def _full(self) -> dict[str, int]:
        """Shards that are full, and closed."""
        size = SHARD * self.dtype.itemsize
        return {
            f"{split}/{shard_name(i)}": size
            for split, side in zip(SPLITS, self.sides, strict=True)
            for i in range(side.tokens // SHARD)
        }


def _committed(folder: Path) -> dict | None:
    """What the last commit holds; None where there was none, or the disk has lost what it holds."""
    if not (folder / STATE).exists():
        return None
    try:
        state = read_json(folder / STATE)
        whole = all((folder / name).stat().st_size >= size for name, size in state["sizes"].items())
    except (OSError, ValueError):
        return None
    return state if whole else None


def _durably_closed(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def write(
    folder: Path,
    parts: Iterable[Sorted],
    tokenizer: Tokenizer,
    dtype: np.dtype,
    sources: int,
    told: Callable[[Piece], None],
) -> Writer:
    """Write both splits, or the rest of them; returns the counts."""
    writer = Writer(folder, dtype, sources)
    try:
        for piece in tokenised(parts, tokenizer, dtype, skip=writer.parts):
            writer.add(piece)
            told(piece)
        writer.commit()
    finally:
        writer.close()
    return writer
