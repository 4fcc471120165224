"""What every network of this package answers: log-probabilities at the positions that are asked for.

    network(tokens Int[B L], at Int[N], *, then=None, rows=None, level=None) -> Float[N V], or what `then` makes of it

`at` holds flat indices (row * L + position) of the positions whose token is to be PREDICTED, also for causal networks,
and is best counted on the host, where the masks are drawn: then a GPU never waits. `then(logits Float[n V], which:
slice)` turns a chunk of logits into what is wanted of it (a target's log-probability, a drawn token, ...), so that
logits of all positions never exist at once. A chunk begins at a multiple of 8 and, but for the last, holds one of
positions, so that a wrapper, and a wrapper of it, can read two predictions of a position side by side. `rows` says
which sequences of a larger batch these are; `level` (the probability of a mask, one a row) is for networks that want
time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unmask.draws import sent, widest

Reading = Tensor | tuple[Tensor, ...]
Then = Callable[[Tensor, slice], Reading]

CHUNK = 1 << 23  # logits held at once, in elements: 32 MB in float32
CACHED = 1 << 19  # ... and read at once on a CPU, so that what is made of them stays in its cache


class Network(Protocol):
    """See the module's text. `evaluations(network)` tells the rows that one row of a call costs."""

    @property
    def vocab(self) -> int:
        """Real tokens, ids 0..V-1: the width of the logits."""
        ...

    @property
    def mask_id(self) -> int:
        """The id that marks an open position of a canvas."""
        ...

    @property
    def causal(self) -> bool:
        """Whether a position is predicted from those left of it, instead of from all tokens."""
        ...

    @property
    def normalised(self) -> bool:
        """False for score networks (SEDD), whose exp(logits) are ratios that need not sum to one."""
        ...

    def __call__(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"],
        *,
        then: Then | None = None,
        rows: Int[Tensor, " B"] | None = None,
        level: Float[Tensor, " B"] | None = None,
    ) -> Reading: ...


SAME = tuple(property(attrgetter(f"network.{name}")) for name in ("vocab", "mask_id", "causal", "normalised"))
"""(vocab, mask_id, causal, normalised) of what wraps a `network`: the same as the network's."""


def require_something_left(tokens: Int[Tensor, "B L"], at: Int[Tensor, " N"]) -> None:
    """Raises ValueError where a causal network is asked for a first position, which has nothing to its left."""
    if at.device.type == "cpu" and bool((at % tokens.shape[1] == 0).any()):
        raise ValueError("a causal network predicts nothing at position 0: begin each sequence with a given token")


def require_width(logits: Float[Tensor, "n V"], vocab: int) -> None:
    """Raises ValueError for logits of other than the real tokens: a mask among them could be predicted."""
    if logits.shape[-1] != vocab:
        raise ValueError(f"logits of {logits.shape[-1]} tokens from a network of vocab {vocab}: leave out the mask's")


@dataclass(frozen=True)
class Target:
    """`then` that reads log q(target) at each position, in float32 or wider."""

    ids: Int[Tensor, " N"]
    vocab: int

    def __call__(self, logits: Float[Tensor, "n V"], which: slice) -> Float[Tensor, " n"]:
        require_width(logits, self.vocab)
        ids = sent(self.ids[which], logits.device)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits.gather(-1, ids[:, None]).squeeze(-1) - logits.logsumexp(-1)


@dataclass(frozen=True)
class Nats:
    """`then` that sums -weight x what `of` reads over each row's positions: [1, B] a chunk, chunks are to be summed.

    It is linear in weights known beforehand, so a network can form its gradients without keeping a logit (head.py).
    """

    of: Then
    weight: Float[Tensor, " N"]
    row: Int[Tensor, " N"]
    rows: int

    def __call__(self, logits: Float[Tensor, "n V"], which: slice) -> Float[Tensor, "1 B"]:
        value = self.of(logits, which)
        assert isinstance(value, Tensor)
        value = value.to(widest(value.device))
        weight, row = sent(self.weight[which], value.device, value.dtype), sent(self.row[which], value.device)
        return value.new_zeros(1, self.rows).index_add(1, row, -(weight * value)[None])


def evaluations(network: Network) -> int:
    """Rows run for one row of a call: 1, or what a wrapper states in its `evaluations` (2 under guidance)."""
    return getattr(network, "evaluations", 1)


@contextmanager
def at_rest(network: Network) -> Iterator[None]:
    """Without gradients, and without the dropout of a module that is being trained, which then goes on as it was."""
    module: object = network
    while module is not None and not isinstance(module, nn.Module):
        module = getattr(module, "network", None)
    busy = [each for each in module.modules() if each.training] if module is not None and module.training else []
    try:
        for each in busy:
            each.training = False
        with torch.inference_mode():
            yield
    finally:
        for each in busy:
            each.training = True


def begin_of(network: Network | None) -> int | None:
    """The token that stands, given, before each text of a `Model`, also of a wrapped one; None for a bare network."""
    while network is not None and not hasattr(network, "begin"):
        network = getattr(network, "network", None)
    return getattr(network, "begin", None)


def read_out(logits_of: Callable[[slice], Tensor], count: int, vocab: int, then: Then | None) -> Reading:
    """Apply `then` to the logits of `count` positions, CHUNK elements at a time, and join the parts."""
    if then is None:
        return logits_of(slice(0, count))
    parts = []
    for which in _cut(slice(0, count), CHUNK // vocab):
        logits = logits_of(which)
        # with a gradient what comes is no logits yet, but states of which `then` makes them
        few = CHUNK if torch.is_grad_enabled() or logits.device.type != "cpu" else CACHED // vocab
        parts += [then(logits[part.start - which.start : part.stop - which.start], part) for part in _cut(which, few)]
    if len(parts) == 1:
        return parts[0]
    columns = [part if isinstance(part, tuple) else (part,) for part in parts]
    joined = tuple(torch.cat(column) for column in zip(*columns, strict=True))
    return joined if isinstance(parts[0], tuple) else joined[0]


def _cut(which: slice, size: int) -> list[slice]:
    """Parts of `which` of about `size`, a multiple of 8."""
    step = max(8, size // 8 * 8)
    return [slice(i, min(i + step, which.stop)) for i in range(which.start, which.stop, step)] or [which]


def remembering(network: Network, slots: int, length: int) -> Network:
    """The network's view of itself with a cache, `network.cached(slots, length)`, where it is causal and has one."""
    offer = getattr(network, "cached", None)
    return offer(slots, length) if network.causal and offer is not None else network
