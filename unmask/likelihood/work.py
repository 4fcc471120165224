"""Work that is cut into units of sequences: counted as it is done, and kept so that it can be gone on with."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.draws import require_batch
from unmask.files import atomic
from unmask.network import Network, at_rest
from unmask.objectives import token_nats

Progress = Callable[[int, int], None]
UNIT = 16  # batches of work a unit: enough that its last, partly filled batch costs little


class Tally:
    """Network rows run so far, of a total, told to `progress`."""

    def __init__(self, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, 0, progress

    def expect(self, rows: int) -> None:
        self.total += rows

    def add(self, rows: int) -> None:
        self.done += rows
        if self.progress is not None:
            self.progress(self.done, self.total)


def in_batches(network: Network, rows: int, batch: int, tally: Tally, score: Callable[[slice], None]) -> None:
    """Call `score` on slices of `batch` rows, the network at rest. Raises ValueError for a batch below 1."""
    require_batch(batch)
    with at_rest(network):
        for start in range(0, rows, batch):
            stop = min(start + batch, rows)
            score(slice(start, stop))
            tally.add(stop - start)


def units_of(rows: Int[Tensor, " S"], kind: Int[Tensor, " S"], batch: int) -> list[Int[Tensor, " s"]]:
    """Sequences cut into units of about UNIT batches, all of a unit with the same rows and kind; none without rows."""
    units: list[Tensor] = []
    for count, each in torch.stack([rows, kind], -1)[rows > 0].unique(dim=0).tolist():
        same = ((rows == count) & (kind == each)).nonzero().squeeze(-1)
        units += same.split(max(1, UNIT * batch // count))
    return units


class Kept:
    """Values of the sequences already scored, in a file that is replaced whole after every unit.

    The file belongs to what was asked (`key`) and to a network that answers as the present one does: raises ValueError
    where it holds something else.
    """

    def __init__(self, path: Path | None, key: Sequence[object], answer: Callable[[], Float[Tensor, " N"]]) -> None:
        self.path, self.values = path, {}
        self.header: dict[str, Any] = {}
        if path is None:
            return
        self.header = {"key": np.array(_digest(key)), "answer": answer().numpy()}
        if path.exists():
            found = _read(path)
            same = str(found.pop("key", "")) == str(self.header["key"])
            if not (same and np.allclose(found.pop("answer"), self.header["answer"], rtol=1e-3)):
                raise ValueError(f"{path}: kept from other texts, settings or another network: remove it to begin anew")
            self.values = {name: torch.from_numpy(value) for name, value in found.items()}

    def fill(
        self,
        name: str,
        shape: tuple[int, ...],
        units: list[Int[Tensor, " s"]],
        rows: Int[Tensor, " S"],
        tally: Tally,
        score: Callable[[Int[Tensor, " s"]], Float[Tensor, "s ..."]],
    ) -> Float[Tensor, "S ..."]:
        """The value of every sequence: 0 outside the units, kept where it is known, scored where it is not."""
        values = self.values.get(name)
        if values is None:
            values = self.values[name] = torch.zeros(shape, dtype=torch.float64)
            values[rows > 0] = torch.nan
        pending = [unit for unit in units if bool(values[unit].isnan().any())]
        tally.expect(sum(int(rows[unit].sum()) for unit in pending))
        for unit in pending:
            values[unit] = score(unit)
            self._write()
        return values

    def _write(self) -> None:
        if self.path is not None:
            with atomic(self.path, "wb") as file:
                arrays: dict[str, Any] = {name: value.numpy() for name, value in self.values.items()}
                np.savez(file, **self.header, **arrays)


def first_answer(network: Network, x_0: Int[Tensor, "S L"], maskable: Tensor) -> Callable[[], Float[Tensor, " N"]]:
    """What the network says of the first text when all that is scored is masked: tells one network from another."""

    def answer() -> Float[Tensor, " N"]:
        row = maskable.any(-1).nonzero().squeeze(-1)[:1]
        canvas = x_0[row] if network.causal else x_0[row].masked_fill(maskable[row], network.mask_id)
        with at_rest(network):
            return token_nats(network, x_0[row], maskable[row], canvas=canvas, rows=row)[1].cpu().double()

    return answer


def _digest(key: Sequence[object]) -> str:
    parts = [value.cpu().numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode() for value in key]
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).hexdigest()


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path}: not a file of kept values ({error}): remove it to begin anew") from None
