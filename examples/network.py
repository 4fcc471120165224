"""A network of one's own under the package's commands: blocks that look at both neighbours before they attend.

    python examples/network.py train looking --steps 500
    python examples/network.py sample --checkpoint runs/looking
    torchrun --nproc-per-node 2 examples/network.py train looking --out runs/looking-2

Every command of `unmask` is here, with the class and the recipe that this script adds.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

import unmask
from unmask.cli import main
from unmask.recipes import RECIPES
from unmask.train import TrainConfig
from unmask.transformer import Block


@dataclass(frozen=True)
class LookingConfig(unmask.TransformerConfig):
    """A Transformer with a short convolution before each block."""

    reach: int = 1
    """Neighbours on each side that a convolution sees."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.causal or self.reach < 1:
            raise ValueError(f"causal {self.causal}, reach {self.reach}: it looks at both sides, 1 or more on each")

    def build(self, seed: int | None = 0) -> "Looking":
        return Looking(self, seed)

    @property
    def taps(self) -> int:
        """Weights of all convolutions."""
        return self.layers * self.width * (2 * self.reach + 1)

    def parameters(self) -> dict[str, int]:
        return {name: count + self.taps for name, count in super().parameters().items()}

    def forward_flops(self, length: int, predicted: float) -> float:
        return super().forward_flops(length, predicted) + 2.0 * length * self.taps


class LookingBlock(Block):
    """x + convolution(x), then the block; each channel has taps of its own, which begin at zero."""

    def __init__(self, config: LookingConfig) -> None:
        super().__init__(config)
        self.taps = nn.Parameter(torch.empty(config.width, 1, 2 * config.reach + 1))

    def forward(self, x, rotary, attend=None, at=None, seen=None):
        if seen is not None:
            raise ValueError("a convolution looks across the edges of documents: leave out --documents-apart")
        y = F.conv1d(x.mT, self.taps, padding="same", groups=x.shape[-1]).mT
        return super().forward(x + y, rotary, attend, at)


class Looking(unmask.Transformer):
    block = LookingBlock

    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        for name, weight in self.named_parameters():
            if name.endswith("taps"):
                nn.init.zeros_(weight)


def looking() -> TrainConfig:
    """`tiny` with blocks that look at their neighbours, instead of heads that do."""
    return replace(RECIPES["tiny"](), name="looking", network=LookingConfig(vocab=512, layers=3, heads=4, width=128))


RECIPES["looking"] = looking

if __name__ == "__main__":
    main()
