"""Semi-autoregressive sampling: blocks from the left, each finished before the next begins."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.sampling.adaptive import AdaptivePolicy
from unmask.sampling.planned import Planned, Policy, RandomOrder
from unmask.sampling.rated import Rated
from unmask.sampling.remasking import Remasking


@dataclass(frozen=True)
class Blocks:
    """Open positions in blocks of `size` from the left; `inside` decides within a block.

    Raises ValueError for an `inside` that runs over a whole canvas: Rated, whose steps are the canvas's levels, and
    what has an `inside` itself.
    """

    size: int = 32
    """Open positions a block."""
    inside: Planned | AdaptivePolicy | Remasking = field(default_factory=RandomOrder)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"Blocks: size {self.size} must be at least 1")
        if isinstance(self.inside, Rated) or hasattr(self.inside, "inside"):
            raise ValueError(
                f"Blocks: {type(self.inside).__name__} runs over a whole canvas: inside a block use a planned or an "
                "adaptive policy or Remasking, and Speculative around the blocks"
            )

    @property
    def exact_for(self) -> str:
        return f"blocks of {self.size} from the left, within each {self.inside.exact_for}"

    def plan(self, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """Block after block, the steps (or the one stage) that `inside` plans for it alone."""
        block = ((open_.long().cumsum(-1) - 1) // self.size).masked_fill(~open_, -1)
        plan, start = torch.full_like(block, -1), 0
        for number in range(int(block.amax() if block.numel() else -1) + 1):
            here = block == number
            steps = self.inside.plan(here, u)
            plan = torch.where(here, start + steps, plan)
            start = int(plan.max()) + 1
        return plan


def inside_of(policy: Policy) -> Policy:
    """What decides within blocks, or the policy itself."""
    return policy.inside if isinstance(policy, Blocks) else policy
