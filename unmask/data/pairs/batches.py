"""Fine-tuning batches: the same three tensors as in pretraining, with only answers maskable."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from unmask.data.batches import Packed, batch_indices
from unmask.data.pairs.preparing import PairSet, is_pairs, load_pairs
from unmask.data.splits import load_split
from unmask.draws import KIND, keyed_uniforms


@dataclass(frozen=True)
class Pairs:
    """Examples in sequences of `length` tokens, each behind `begin`; prompt and begin token are never maskable.

    By default one example a sequence, its answer followed by end tokens to the block, all maskable (SMDM). `packed`:
    as many in turn as fit, each behind a begin token of its own with one end token, kept apart by `segments`; the
    filling is not maskable. Nor is it behind an example that ends with a given text, and it is kept apart there too:
    nothing fills the block behind a text that is infilled. Examples that are longer are left out. Raises ValueError
    where none is left.
    """

    pairs: PairSet
    length: int
    begin: int
    end: int
    packed: bool = False
    causal: bool = False
    """Whether the network is: `segments` depend on it."""

    def __post_init__(self) -> None:
        if not len(self.rows):
            longest = int(self.pairs.lengths.max(initial=0))
            raise ValueError(f"no example fits in {self.length} tokens, the longest has {longest}: raise --length")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def apart(self) -> bool:
        """Attention must stay within `segments`."""
        return self.packed or bool(self.closed[self.fitting].any())

    @cached_property
    def closed(self) -> Bool[np.ndarray, " examples"]:
        """The examples that end with a given text."""
        return ~self.pairs.answer[self.pairs.starts + self.pairs.lengths - 1]

    @cached_property
    def fitting(self) -> Int[np.ndarray, " examples"]:
        """The examples that are short enough."""
        return (self.pairs.lengths <= self.length).nonzero()[0]

    @cached_property
    def rows(self) -> list[Int[np.ndarray, " examples"]]:
        """The examples of each sequence."""
        if not self.packed:
            return list(self.fitting[:, None])
        rows, first, room = [], 0, 0
        for i, size in enumerate(1 + self.pairs.lengths[self.fitting]):
            if room < size:
                rows.append(self.fitting[first:i])
                first, room = i, 1 + self.length
            room -= size
        return [row for row in (*rows, self.fitting[first:]) if len(row)]

    @property
    def left_out(self) -> int:
        """Examples that are longer than a sequence."""
        return len(self.pairs.lengths) - len(self.fitting)

    @property
    def share(self) -> float:
        """Of all positions behind the first of a sequence, those that are maskable."""
        starts, lengths = self.pairs.starts, self.pairs.lengths
        learnt = np.add.reduceat(self.pairs.answer, starts, dtype=np.int64)
        if not self.packed:
            learnt += (self.length - lengths) * ~self.closed
        return float(learnt[self.fitting].sum()) / (len(self) * self.length)

    def batch(self, size: int, *, seed: int, step: int, rank: int = 0, world: int = 1) -> Int[np.ndarray, " size"]:
        """Which sequences rank `rank` of `world` takes at `step`."""
        return batch_indices(len(self), size, seed=seed, step=step, rank=rank, world=world)

    def take(
        self, indices: Sequence[int] | np.ndarray
    ) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"], Int[Tensor, " B"]]:
        """x_0, maskable (S = 1 + length) and the first example of each sequence."""
        x_0 = np.full((len(indices), 1 + self.length), self.end, dtype=np.int64)
        maskable = np.zeros(x_0.shape, dtype=bool)
        for row, at in enumerate(np.asarray(indices)):
            for example, place in self._places(int(at)):
                span, first = slice(place + 1, place + 1 + self.pairs.lengths[example]), self.pairs.starts[example]
                x_0[row, place] = self.begin
                x_0[row, span] = self.pairs.ids[first : first + self.pairs.lengths[example]]
                maskable[row, span] = self.pairs.answer[first : first + self.pairs.lengths[example]]
                if not (self.packed or self.closed[example]):
                    maskable[row, span.stop :] = True
        documents = np.array([self.rows[int(at)][0] for at in indices], dtype=np.int64)
        return torch.from_numpy(x_0), torch.from_numpy(maskable), torch.from_numpy(documents)

    def segments(self, indices: Sequence[int] | np.ndarray) -> Int[Tensor, "B T"]:
        """The example of each position, for a network that keeps them apart; the filling of a packed sequence is one of
        its own. A causal network's state goes with the segment of what is predicted from it (`unmask.wrappers.Apart`),
        so that a begin token goes with the example before, as the first of the filling does, which may stand behind the
        sequence (T = S + 1).
        """
        return torch.from_numpy(self._examples(indices, begin=self.causal))

    def without_prompts(
        self,
        x_0: Int[Tensor, "B S"],
        maskable: Bool[Tensor, "B S"],
        indices: Sequence[int] | np.ndarray,
        *,
        share: float,
        absent: int,
        seed: int,
        step: int,
    ) -> Int[Tensor, "B S"]:
        """x_0 with all that is given of a share of the examples replaced by the token `absent`, but for begin tokens.

        Standard classifier-free guidance trains so (Ho & Salimans 2022; SMDM drops 10%), with the mask where the
        network reads one. The loss is unchanged: it reads what is maskable.
        """
        example = torch.from_numpy(self._examples(indices, begin=True))[:, : x_0.shape[1]]
        inside = torch.from_numpy(self._examples(indices))[:, : x_0.shape[1]] == example
        inside[:, 0] = False
        number = (example[:, 1:] != example[:, :-1]).long().cumsum(-1)  # of an example in its sequence
        rows = np.asarray(indices).tolist()
        u = keyed_uniforms(seed, rows, (x_0.shape[1],), KIND, turn=step).gather(-1, F.pad(number, (1, 0)))
        return x_0.masked_fill((u < share) & inside & ~maskable & (example >= 0), absent)

    def _examples(self, indices: Sequence[int] | np.ndarray, begin: bool = False) -> Int[np.ndarray, "B T"]:
        """The example of each position, -1 for filling; `begin`: what stands behind an example goes with it, a begin
        token or the first of the filling, one position more.
        """
        examples = np.full((len(indices), 1 + self.length + begin), -1, dtype=np.int64)
        for row, at in enumerate(np.asarray(indices)):
            for example, place in self._places(int(at)):
                apart = self.packed or self.closed[example]
                last = place + 1 + self.pairs.lengths[example] + begin if apart else None
                examples[row, place + begin if place else 0 : last] = example
        return examples

    def _places(self, row: int) -> list[tuple[int, int]]:
        """(example, place of its begin token) of a sequence."""
        examples = self.rows[row]
        sizes = 1 + self.pairs.lengths[examples]
        return list(zip(examples.tolist(), (np.cumsum(sizes) - sizes).tolist(), strict=True))


def sequences(
    folder: Path | str, split: str, *, length: int, begin: int, end: int, packed: bool = False, causal: bool = False
) -> Packed | Pairs:
    """What a run trains on: the stream of a prepared folder in blocks, or its pairs."""
    if is_pairs(folder):
        try:
            return Pairs(load_pairs(folder, split), length, begin, end, packed, causal)
        except ValueError as error:
            raise ValueError(f"{folder}, {split}: {error}") from None
    if packed:
        raise ValueError(f"{folder} holds running text, which is packed anyway: leave out --packed")
    return Packed(load_split(folder, split), length, begin)
