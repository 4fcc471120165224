"""Prepared folders, read: a stream of memory-mapped tokens and its documents.

manifest.json, tokenizer.json, and a folder for each split: its tokens in shards of SHARD tokens, a column of 8-byte
numbers for each fact about its documents, and their names.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Int

from unmask.files import is_number

SPLITS = ("train", "validation")
MANIFEST, NAMES = "manifest.json", "names.txt"
COLUMNS = {"starts.bin": "<i8", "lengths.bin": "<i8", "bytes.bin": "<i8", "dates.bin": "<M8[D]", "name_ends.bin": "<i8"}
FORMAT = 2
PAIRS = "pairs"  # what a manifest of fine-tuning pairs is known by
SHARD = 1 << 28  # tokens: a file of 512 MB or 1 GB


def shard_name(number: int) -> str:
    """File of a split's tokens from number x SHARD on."""
    return f"tokens-{number:05}.bin"


class Shards:
    """Tokens of several files as one array, read by slices and arrays of places."""

    def __init__(self, parts: Sequence[np.ndarray], size: int) -> None:
        self.parts, self.size, self.dtype = parts, size, parts[0].dtype

    def __len__(self) -> int:
        return self.size * (len(self.parts) - 1) + len(self.parts[-1])

    def __getitem__(self, at: slice | Int[np.ndarray, "*B"]) -> Int[np.ndarray, "*B"]:
        """Of the shards, each place is read where it lies."""
        if isinstance(at, slice):
            at = np.arange(*at.indices(len(self)))
        at = np.asarray(at)
        at = np.where(at < 0, at + len(self), at)
        shard = at // self.size
        found = np.empty(at.shape, dtype=self.dtype)
        for number in np.unique(shard):
            here = shard == number
            found[here] = self.parts[number][at[here] - number * self.size]
        return found

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(self.parts).astype(dtype or self.dtype, copy=False)


@dataclass(frozen=True)
class Names(Sequence):
    """Names of documents, which stay on the disk until they are asked for."""

    ends: Int[np.ndarray, " D"]
    text: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:  # pyrefly: ignore
        i = range(len(self))[i]
        return bytes(self.text[self.ends[i - 1] if i else 0 : self.ends[i]]).decode()

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True, eq=False)
class Split:
    """One stream of tokens, every document followed by an end token, and its D documents in order.

    `starts` and `lengths` count tokens, the end token included; `bytes` are UTF-8 bytes of text. `dates` are
    datetime64[D], NaT where unknown.
    """

    tokens: np.ndarray  # memory-mapped, UInt16 or UInt32; several shards are read like one array
    names: Sequence[str] | np.ndarray
    dates: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    bytes: np.ndarray
    sources: tuple[tuple[str, int, int], ...] = ()
    """(name, documents, tokens) of each source, in order; () for a single one without a name."""
    weights: tuple[float, ...] | None = None
    """How much of the training each source is to be, relative to the others; None: as much as it has."""

    @property
    def source_tokens(self) -> Int[np.ndarray, " sources"]:
        """Tokens of each source."""
        return np.array([tokens for _, _, tokens in self.sources] or [len(self.tokens)])


def load_manifest(folder: Path | str) -> dict:
    """manifest.json of a prepared folder. Raises ValueError where there is none to use."""
    folder = Path(folder)
    manifest = _read_json(folder, MANIFEST)
    try:
        written = manifest["request"]["format"]
        sizes = [manifest["splits"][split][key] for split in SPLITS for key in ("documents", "tokens")]
        sizes += [size for split in SPLITS for row in manifest["splits"][split].get("sources", []) for size in row[1:]]
        sizes += [manifest.get("shard", 1)]
        foreign = not all(type(size) is int for size in sizes) or manifest["dtype"] not in ("<u2", "<u4")
        weights = manifest["request"].get("weights")
        foreign |= weights is not None and not (isinstance(weights, list) and all(map(is_number, weights)))
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"{folder / MANIFEST} is no prepared folder's manifest: {_remedy(folder)}") from None
    if foreign or written != FORMAT:
        raise ValueError(f"{folder} has format {written!r}, this unmask reads {FORMAT}: {_remedy(folder)}")
    return manifest


def load_split(folder: Path | str, split: str) -> Split:
    """The split "train" or "validation" of a prepared folder; its tokens stay on disk until they are read.

    Raises ValueError where the folder is missing, foreign, of pairs, or not of the sizes that its manifest states.
    """
    folder = Path(folder)
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}: choose one of {', '.join(SPLITS)}")
    manifest = load_manifest(folder)
    if PAIRS in manifest:
        what = "prompts with answers (unmask prepare --pairs), where running text is wanted"
        raise ValueError(f"{folder} holds {what}: give another folder, or measure answers by unmask evaluate answers")
    count, dtype = manifest["splits"][split], np.dtype(manifest["dtype"])
    if "shard" not in manifest or "sources" not in count:
        raise ValueError(f"{folder / MANIFEST} is no manifest of running text: {_remedy(folder)}")
    folder, size = folder / split, manifest["shard"]
    shards = [
        _mapped(folder / shard_name(i), dtype, min(size, count["tokens"] - i * size))
        for i in range(max(1, -(-count["tokens"] // size)))
    ]
    columns = [_mapped(folder / name, np.dtype(dtype), count["documents"]) for name, dtype in COLUMNS.items()]
    starts, lengths, sizes, dates, ends = columns
    names = Names(ends, _mapped(folder / NAMES, np.dtype("u1"), int(ends[-1]) if len(ends) else 0))
    if count["tokens"] != (int(starts[-1] + lengths[-1]) if len(starts) else 0):
        raise _mismatch(folder / next(iter(COLUMNS)))
    sources = tuple((str(name), documents, tokens) for name, documents, tokens in count["sources"])
    weights = manifest["request"].get("weights")
    tokens = shards[0] if len(shards) == 1 else cast("np.ndarray", Shards(shards, size))
    return Split(tokens, names, dates, starts, lengths, sizes, sources, None if weights is None else tuple(weights))


def _mapped(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    if not path.is_file() or path.stat().st_size != count * dtype.itemsize:
        raise _mismatch(path)
    return np.memmap(path, dtype=dtype, mode="r") if count else np.zeros(0, dtype)


def _mismatch(path: Path) -> ValueError:
    folder = next((above for above in path.parents if (above / MANIFEST).exists()), path.parent)
    return ValueError(f"{path} does not have the size that its manifest states: {_remedy(folder)}")


def _read_json(folder: Path, name: str) -> dict:
    """Raises ValueError where the folder was not prepared."""
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{folder} is no prepared folder (no {name}): {_remedy(folder)}")
    try:
        value = json.loads(path.read_bytes())
    except ValueError:  # not JSON, or not UTF-8
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not the JSON object it should be: {_remedy(folder)}")
    return value


def _remedy(folder: Path) -> str:
    if folder.exists():
        return f"delete it and run unmask prepare --source TEXT --out {folder}"
    return f"run unmask prepare --source TEXT --out {folder}"
