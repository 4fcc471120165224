"""How a token is drawn from a prediction."""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.draws import categorical, widest
from unmask.network import Network, Reading, Then, at_rest, require_width


@dataclass(frozen=True)
class Draw:
    """How a token is drawn from a prediction. Defaults draw from the network's own law; anything else is another law.

    Filters apply after the temperature, top_k first.
    """

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most probable token."""
    top_k: int | None = None
    """Keep so many of the most probable tokens, and what equals the last of them."""
    top_p: float | None = None
    """Keep the fewest of the most probable tokens whose mass reaches this; 1 keeps all, as None."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature {self.temperature} must be 0 or more, and finite")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be in (0, 1]")
        if self.top_p == 1:
            object.__setattr__(self, "top_p", None)

    def __str__(self) -> str:
        """What is not as in the network's own law: "temperature 0.7, top_p 0.9"."""
        told = [(each.name, getattr(self, each.name), each.default) for each in fields(self)]
        return ", ".join(f"{name} {value}" for name, value, own in told if value != own) or "temperature 1"

    def among(self, vocab: int) -> "Draw":
        """The same draw from `vocab` tokens, without a top_k that keeps them all."""
        return replace(self, top_k=None) if self.top_k is not None and self.top_k >= vocab else self

    def __call__(self, logits: Float[Tensor, "N V"], u: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
        """One token a row from one uniform a row, exactly, by inverse CDF in float64."""
        return logits.argmax(-1) if self.temperature == 0 else categorical(self.adjust(logits), u)

    def law(self, logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Probabilities that tokens are drawn with, in float64."""
        if self.temperature > 0:
            return self.adjust(logits).softmax(-1)
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits, dtype=widest(logits.device)).scatter(-1, best, 1)

    def adjust(self, logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Logits of the law that tokens are drawn from, in float64."""
        logits = logits.to(widest(logits.device))
        if self.temperature != 1:
            logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature  # the largest is 0: no overflow
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, -1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p is not None:
            ordered, index = logits.sort(-1, descending=True)
            before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
            before[:, 0] = 0  # the most probable token stays, whatever p
            drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, before >= self.top_p)
            logits = logits.masked_fill(drop, -torch.inf)
        return logits


def predict(
    network: Network,
    tokens: Int[Tensor, "B L"],
    at: Int[Tensor, " N"],
    read: Then,
    *,
    rows: Int[Tensor, " B"],
    level: Float[Tensor, " B"],
) -> tuple[Tensor, ...]:
    """What `read` makes of the predictions at `at`, the network at rest.

    Its logits can be widened to float64: they are on the host where their device has none, as Apple's GPUs have, whose
    memory the host shares. Raises ValueError for logits of other than the real tokens.
    """

    def then(logits: Float[Tensor, "n V"], which: slice) -> Reading:
        require_width(logits, network.vocab)
        return read(logits if widest(logits.device) == torch.float64 else logits.cpu(), which)

    with at_rest(network):
        return tuple(network(tokens, at, then=then, rows=rows, level=level))
