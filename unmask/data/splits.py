"""Prepared folders, read: a stream of memory-mapped tokens and its documents."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

SPLITS = ("train", "validation")
MANIFEST, DOCUMENTS = "manifest.json", "documents.json"
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Split:
    """One stream of tokens, every document followed by an end token, and its D documents in order.

    `starts` and `lengths` count tokens, the end token included; `bytes` are UTF-8 bytes of text. `dates` are
    datetime64[D], NaT where unknown.
    """

    tokens: np.ndarray  # memory-mapped, UInt16 or UInt32
    names: np.ndarray
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
        foreign = not all(type(size) is int for size in sizes) or manifest["dtype"] not in ("<u2", "<u4")
    except (KeyError, TypeError):
        raise ValueError(f"{folder / MANIFEST} is no prepared folder's manifest: {_remedy(folder)}") from None
    if foreign or written != FORMAT:
        raise ValueError(f"{folder} has format {written!r}, this unmask reads {FORMAT}: {_remedy(folder)}")
    return manifest


def load_split(folder: Path | str, split: str) -> Split:
    """The split "train" or "validation" of a prepared folder; its tokens stay on disk until they are read.

    Raises ValueError where the folder is missing, foreign, or not of the sizes that its manifest states.
    """
    folder = Path(folder)
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}: choose one of {', '.join(SPLITS)}")
    manifest = load_manifest(folder)
    count = manifest["splits"][split]
    tokens = _tokens(folder / f"{split}.bin", np.dtype(manifest["dtype"]), count["tokens"])
    try:
        rows = _read_json(folder, DOCUMENTS)[split]
        names, dates = np.array(rows["names"], dtype=str), np.array(rows["dates"], dtype="datetime64[D]")
        lengths, sizes = (np.array(rows[key], dtype=np.int64) for key in ("lengths", "bytes"))
        found = {len(column) for column in (names, dates, lengths, sizes)}, lengths.sum()
    except (KeyError, TypeError, ValueError):
        raise _mismatch(folder / DOCUMENTS) from None
    if found != ({count["documents"]}, count["tokens"]):
        raise _mismatch(folder / DOCUMENTS)
    return Split(tokens, names, dates, np.cumsum(lengths) - lengths, lengths, sizes)


def _tokens(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    if not path.is_file() or path.stat().st_size != count * dtype.itemsize:
        raise _mismatch(path)
    return np.memmap(path, dtype=dtype, mode="r")


def _mismatch(path: Path) -> ValueError:
    return ValueError(f"{path} does not have the size that its manifest states: {_remedy(path.parent)}")


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
