"""Exact, enumerable networks: small enough to know every probability, so that claims about samplers, losses and
bounds can be proven instead of believed.

On a consistent table all one-at-a-time orders agree and the bound is the truth, so tests about orders and bounds can
only fail on the inconsistent table: use both. The wide law shows what low-precision draws lose.
"""

import itertools
import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.network import Reading, Then, read_out


def all_sequences(vocab: int, length: int) -> Int[Tensor, "S L"]:
    """Every sequence of `length` tokens, in the order of their numbers in base `vocab`."""
    return torch.tensor(list(itertools.product(range(vocab), repeat=length))).reshape(-1, length)


@dataclass(frozen=True)
class JointTable:
    """A random joint law p(x) over V^L sequences, and its true conditionals p(x^i | visible tokens), in float64.

    Larger `sharpness` means a less uniform law. RADD's Theorem 1 holds here exactly.
    """

    vocab: int = 3
    length: int = 4
    seed: int = 0
    sharpness: float = 1.5
    log_p: Float[Tensor, " S"] = field(init=False, repr=False, compare=False)
    causal = False
    normalised = True

    def __post_init__(self) -> None:
        noise = _noise(self.seed, self.vocab**self.length)
        object.__setattr__(self, "log_p", (self.sharpness * noise).log_softmax(-1))

    @property
    def mask_id(self) -> int:
        return self.vocab

    def marginal(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
        """log p(the visible tokens), masked positions summed out."""
        return self._agreeing(tokens).logsumexp(-1)

    def _agreeing(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B S"]:
        sequences = all_sequences(self.vocab, self.length)
        open_ = (tokens == self.mask_id)[:, None, :]
        agree = (open_ | (tokens[:, None, :] == sequences)).all(-1)
        return self.log_p.masked_fill(~agree, -torch.inf)

    def __call__(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"],
        *,
        then: Then | None = None,
        rows: Int[Tensor, " B"] | None = None,
        level: Float[Tensor, " B"] | None = None,
    ) -> Reading:
        """True conditionals at the MASKED positions asked for; a visible position gets a point mass on its token."""
        weights = self._agreeing(tokens)
        sequences = all_sequences(self.vocab, self.length)

        def logits_of(which: slice) -> Float[Tensor, "n V"]:
            row, position = at[which] // self.length, at[which] % self.length
            written = sequences[:, position].T[:, :, None] == torch.arange(self.vocab)
            return weights[row][:, :, None].masked_fill(~written, -torch.inf).logsumexp(1)

        return read_out(logits_of, len(at), self.vocab, then)


@dataclass(frozen=True)
class InconsistentTable:
    """Independent random conditionals for each canvas: orders disagree and every bound is strict, as in a trained
    network. With `spread` it is a score network: the log of each prediction's sum is that much off 0.
    """

    vocab: int = 3
    length: int = 3
    seed: int = 0
    sharpness: float = 1.5
    spread: float = 0.0
    table: Float[Tensor, "C L V"] = field(init=False, repr=False, compare=False)
    causal = False
    normalised = property(lambda self: self.spread == 0)

    def __post_init__(self) -> None:
        canvases = (self.vocab + 1) ** self.length
        noise = _noise(self.seed, canvases, self.length, self.vocab)
        sums = self.spread * _noise(self.seed + 1, canvases, self.length, 1)
        object.__setattr__(self, "table", (self.sharpness * noise).log_softmax(-1) + sums)

    @property
    def mask_id(self) -> int:
        return self.vocab

    def __call__(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"],
        *,
        then: Then | None = None,
        rows: Int[Tensor, " B"] | None = None,
        level: Float[Tensor, " B"] | None = None,
    ) -> Reading:
        """The canvas's own conditionals at the positions asked for."""
        base = (self.vocab + 1) ** torch.arange(self.length - 1, -1, -1)
        canvas = (tokens * base).sum(-1)

        def logits_of(which: slice) -> Float[Tensor, "n V"]:
            return self.table[canvas[at[which] // self.length], at[which] % self.length]

        return read_out(logits_of, len(at), self.vocab, then)


@dataclass(frozen=True)
class Wide:
    """The flat law over a large vocabulary, float32 like a real network's logits: what imprecise draws lose, shows
    here. With `sure`, token 0 has that probability and the others share the rest.
    """

    vocab: int = 50_000
    sure: float | None = None
    causal = False
    normalised = True

    @property
    def mask_id(self) -> int:
        return self.vocab

    def __call__(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"],
        *,
        then: Then | None = None,
        rows: Int[Tensor, " B"] | None = None,
        level: Float[Tensor, " B"] | None = None,
    ) -> Reading:
        """The same logits everywhere."""
        first = 0.0 if self.sure is None else math.log(self.sure * (self.vocab - 1) / (1 - self.sure))

        def logits_of(which: slice) -> Float[Tensor, "n V"]:
            logits = torch.zeros(len(at[which]), self.vocab)
            logits[:, 0] = first
            return logits

        return read_out(logits_of, len(at), self.vocab, then)


def _noise(seed: int, *shape: int) -> Float[Tensor, "..."]:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
