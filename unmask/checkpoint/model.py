"""A network with its tokenizer: what `load` gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.conditioned import Conditioned
from unmask.data import Tokenizer
from unmask.files import Row
from unmask.network import SAME, Network, Reading, Then
from unmask.sampling import template
from unmask.transformer import Transformer


@dataclass(frozen=True)
class Model:
    """A network with its tokenizer; usable wherever a network is."""

    network: Transformer | Conditioned
    tokenizer: Tokenizer
    config: Row
    """config.json of the run it came from; of a published checkpoint, what is known of it in the same words."""
    vocab, mask_id, causal, normalised = SAME

    @property
    def begin(self) -> int:
        """The token that `canvas` puts before each text: given, so that by default no likelihood counts it."""
        return self.tokenizer.begin

    @property
    def length(self) -> int | None:
        """Tokens of the sequences it was trained on, where its config says."""
        return (self.config.get("requested") or {}).get("length")

    def parameters(self):
        return self.network.parameters()

    def __call__(
        self,
        tokens: Int[Tensor, "B L"],
        at: Int[Tensor, " N"],
        *,
        then: Then | None = None,
        rows: Int[Tensor, " B"] | None = None,
        level: Float[Tensor, " B"] | None = None,
    ) -> Reading:
        """See `unmask.network.Network`."""
        return self.network(tokens, at, then=then, rows=rows, level=level)

    def cached(self, slots: int, length: int) -> Network:
        """See `unmask.network.remembering`, which asks causal networks only."""
        return cast(Transformer, self.network).cached(slots, length)

    def canvas(self, text: str, *, seed: int = 0, sequence: int = 0) -> Int[Tensor, " L"]:
        """The canvas of a text with blanks such as `{{8}}` or `{{2..12}}`, preceded by the begin token."""
        encode, begin = self.tokenizer.encode, [self.begin]
        return template(text, encode, self.mask_id, begin=begin, seed=seed, sequence=sequence)

    def decode(self, tokens: Int[Tensor, " L"]) -> str:
        """Text of a finished sequence, special tokens left out."""
        return self.tokenizer.decode(tokens.tolist())


class Later:
    """A tokenizer that is looked for when it is first used, so that a network can be had without one."""

    def __init__(self, find: Callable[[], Tokenizer]) -> None:
        self._find = find
        self._found: Tokenizer | None = None

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._found is None:
            self._found = self._find()
        return getattr(self._found, name)


def device_of(name: str) -> str:
    """The device of a name; "auto" is cuda, mps or cpu, the first there is. Raises ValueError for one that is not."""
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}): try auto or cpu") from None
    return name
