"""What a causal network remembers: the keys and values of the positions it has read, written in place.

What a causal network makes of a position depends on the tokens up to it and on nothing else, so it holds as long as
they stand. The cache knows the tokens it has read, and a call reads on from the first that differs: numbers of rows
only find their slots, and a wrong one costs time but never changes an answer. It follows that a sequence which takes
over a slot begins behind the prompt that it shares with the last one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.draws import sent

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries [B n H d], keys [B n G d], values [B n G d]) -> [B n H d]; H is a multiple of G."""

UNREAD = -1


def attention(
    q: Float[Tensor, "B n H d"],
    k: Float[Tensor, "B T G d"],
    v: Float[Tensor, "B T G d"],
    *,
    seen: Bool[Tensor, "B 1 n T"] | None = None,
    causal: bool = False,
) -> Float[Tensor, "B n H d"]:
    """softmax(q k' / sqrt d) v over what is `seen`; or, if `causal`, over what is not to the right; or over all."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
    return y.transpose(1, 2)


@dataclass(frozen=True)
class Window:
    """n consecutive positions of some slots, and which predictions are read off their states."""

    tokens: Int[Tensor, "b n"]
    slots: slice | Int[Tensor, "b 1"]
    """A slice, so that what is remembered is not copied, where these are all slots in use."""
    where: tuple[slice | Tensor, slice | Tensor]
    """(slots, positions) to write to: slices where all slots in use are at the same positions."""
    end: int
    """One past the last position: what is remembered beyond is not looked at."""
    seen: Bool[Tensor, "b 1 n end"] | None
    """What a position may look at; None where it is everything, or all that is not to the right (`causal`)."""
    causal: bool
    asked: Int[Tensor, " m"]
    """Indices into the call's `at`."""
    at: Int[Tensor, " m"]
    """Flat indices of their states in the window."""


class Cache:
    """Keys and values of some layers, for up to `slots` sequences of up to `length` tokens, allocated once."""

    def __init__(self, layers: int, slots: int, length: int) -> None:
        self.memory: list[Float[Tensor, "2 slots L G d"] | None] = [None] * layers
        self.read = torch.full((slots, length), UNREAD)
        """The tokens whose keys and values are remembered, on the host."""
        self.owner: list[tuple[int, int] | None] = [None] * slots
        self.row: Callable[..., Tensor] | None = None
        """Reads a single position where there is a faster way than layer by layer (unmask/transformer/row.py)."""

    @property
    def length(self) -> int:
        return self.read.shape[1]

    def single(self, tokens: Int[Tensor, "R L"], at: Int[Tensor, " N"]) -> int | None:
        """The position to be read where there is one slot and it lacks nothing else; it counts as read when `read`
        says so.
        """
        if not len(self.owner) == len(tokens) == len(at) == 1 or tokens.shape[1] > self.length:
            return None
        position = int(at)
        if not torch.equal(tokens[0, :position], self.read[0, :position]):
            return None
        self.read[0, position:] = UNREAD
        return position

    def windows(
        self, tokens: Int[Tensor, "R L"], at: Int[Tensor, " N"], rows: Int[Tensor, " R"] | None, device: torch.device
    ) -> Iterator[Window]:
        """What has to be read for the states at the flat indices `at`.

        Rows that lack one position go together, and so do those that lack more, as prompts do. A window counts as
        read when the next one is asked for. Raises ValueError where there is no room.
        """
        tokens, at = tokens.cpu(), at.cpu()
        count, length = tokens.shape
        if count > len(self.owner) or length > self.length:
            raise ValueError(f"{count} rows of {length} tokens in a cache for {len(self.owner)} of {self.length}")
        slot = self._seat(list(range(count)) if rows is None else rows.tolist())
        tokens = tokens[slot.argsort()]
        row, position = slot[at // length], at % length
        first = torch.full((count,), length - 1).scatter_reduce(0, row, position, "amin")
        last = torch.zeros(count, dtype=torch.long).scatter_reduce(0, row, position, "amax")
        begin = torch.minimum(self._remembered(tokens), first)
        lacks_one = last <= begin
        for group in (lacks_one, ~lacks_one):
            which = group.nonzero().squeeze(-1)
            if not len(which):
                continue
            n = max(1, int((last - begin)[which].max()) + 1)
            start = begin[which].clamp(max=length - n)  # the window of a short row ends within the canvas too
            asked = group[row].nonzero().squeeze(-1)
            inside = torch.searchsorted(which, row[asked])
            self.read[which] = UNREAD  # until it has been read through: an error on the way leaves nothing half written
            yield _window(tokens, which, start, n, asked, inside * n + position[asked] - start[inside], device)
            self._remember(which, tokens, start + n)

    def attend(
        self, layer: int, window: Window, q: Float[Tensor, "b n H d"], k: Float[Tensor, "b n G d"], v: Tensor
    ) -> Float[Tensor, "b n H d"]:
        """Write the window's keys and values in place, and look from its positions at what is left of them."""
        memory = self.memory[layer]
        if memory is None:
            memory = self.memory[layer] = self._allocate(k)
        memory[0][window.where], memory[1][window.where] = k, v
        keys, values = memory[:, window.slots, : window.end]
        return attention(q, keys, values, seen=window.seen, causal=window.causal)

    def _allocate(self, k: Float[Tensor, "b n G d"]) -> Float[Tensor, "2 slots L G d"]:
        """A head's positions lie next to each other; made outside of inference mode, it serves within and without.

        Zeros, because what may not be looked at has weight 0 and yet must be a number.
        """
        (slots, length), (groups, width) = self.read.shape, k.shape[2:]
        with torch.inference_mode(False):
            return torch.zeros(2, slots, groups, length, width, dtype=k.dtype, device=k.device).transpose(2, 3)

    def _seat(self, rows: Sequence[int]) -> Int[Tensor, " R"]:
        """A slot for each row, the first R of them: its own, or a free one, to which what it has read moves."""
        names = [(row, rows[:i].count(row)) for i, row in enumerate(rows)]  # one that runs twice, as under guidance
        old = {name: self.owner.index(name) for name in names if name in self.owner}
        free = [slot for slot, owner in enumerate(self.owner[: len(rows)]) if owner not in old]
        slots = [old[name] if old.get(name, len(rows)) < len(rows) else free.pop() for name in names]
        for name, slot in zip(names, slots, strict=True):
            self._move(old.get(name, slot), slot)
        self.owner = [None] * len(self.owner)
        for name, slot in zip(names, slots, strict=True):
            self.owner[slot] = name
        return torch.tensor(slots)

    def _move(self, old: int, new: int) -> None:
        if old != new:
            for memory in (self.read[None], *self.memory):
                if memory is not None:
                    memory[:, new] = memory[:, old]

    def _remembered(self, tokens: Int[Tensor, "R L"]) -> Int[Tensor, " R"]:
        """How many tokens from the left of each row are those that were read."""
        return (tokens == self.read[: len(tokens), : tokens.shape[1]]).cumprod(-1).sum(-1)

    def _remember(self, which: Int[Tensor, " b"], tokens: Int[Tensor, "R L"], until: Int[Tensor, " b"]) -> None:
        """Of some slots, the tokens left of `until` have been read."""
        length = tokens.shape[1]
        self.read[which, :length] = tokens[which].masked_fill(torch.arange(length) >= until[:, None], UNREAD)


def _window(
    tokens: Int[Tensor, "R L"],
    which: Int[Tensor, " b"],
    start: Int[Tensor, " b"],
    n: int,
    asked: Int[Tensor, " m"],
    at: Int[Tensor, " m"],
    device: torch.device,
) -> Window:
    """The positions start..start + n - 1 of the slots `which`."""
    end, every, level = int(start.max()) + n, len(which) == len(tokens), int(start.min()) == int(start.max())
    positions = start[:, None] + torch.arange(n)
    there, slots = sent(positions, device), sent(which, device)
    causal = level and n == end
    plain = causal or (level and n == 1)
    return Window(
        tokens[which[:, None], positions],
        slots=slice(len(which)) if every else slots,
        where=(slice(len(which)), slice(end - n, end)) if every and level else (slots[:, None], there),
        end=end,
        seen=None if plain else (torch.arange(end, device=device) <= there[..., None])[:, None],
        causal=causal,
        asked=asked,
        at=at,
    )
