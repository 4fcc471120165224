"""Remasking: tokens that were written may be erased and written again, so that early mistakes can be mended.

When positions are written and erased is decided by coins that need no network call, so steps at which nothing is
written still cost nothing.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.corruption import LogLinear, Schedule, require_falling
from unmask.sampling.adaptive import one_stage
from unmask.sampling.planned import at_least_one, grid


@dataclass(frozen=True)
class Remasking:
    """ReMDM (Wang et al., arXiv 2503.00307): from t to s a written token is erased with probability sigma, a masked
    position written with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t).

    sigma = scale min(cap, (1 - alpha_s) / alpha_t): a `cap` below 1 is the paper's ReMDM-cap, cap 1 with a `scale`
    below 1 its ReMDM-rescale; either keeps the share of masked positions that tau-leaping has at each time. 0 is
    Tweedie tau-leaping. Erasing begins at time `start` and ends at time `stop` (time runs from 1 down to 0). The last
    step erases nothing and writes what is left; what was given is never erased.
    """

    steps: int = 128
    """Steps of equal time; NFE is at most this."""
    cap: float = 0.02
    """Largest probability with which a written token is erased in a step."""
    scale: float = 1.0
    """Factor on that probability."""
    by_confidence: bool = False
    """ReMDM-conf: sigma is shared out over the written tokens by a softmax of minus the probability each had when it
    was written."""
    start: float = 1.0
    """Time at which erasing begins; writing begins at 1."""
    stop: float = 0.0
    """Time at which erasing ends; writing ends at 0."""
    schedule: Schedule = field(default_factory=LogLinear)
    plan = one_stage

    def __post_init__(self) -> None:
        at_least_one(self, "steps")
        for name in ("cap", "scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Remasking: {name} {getattr(self, name)} must be in [0, 1]")
        if not 0 <= self.stop <= self.start <= 1:
            raise ValueError(f"Remasking: need 0 <= stop {self.stop} <= start {self.start} <= 1")
        require_falling(self.schedule)

    @property
    def exact_for(self) -> str:
        return f"its own law: tau-leaping with {self.steps} steps in which written tokens are erased again"

    def chance(
        self, step: Int[Tensor, " R"], masked: Bool[Tensor, "R L"], confidence: Float[Tensor, "R L"]
    ) -> Float[Tensor, "R L"]:
        """Probability that each position changes in this step: a masked one is written, a written one erased.

        `confidence` is the probability that a written token had under the network when it was written, nan at
        positions that are not this policy's.
        """
        t, s = grid(self.steps)
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha(s)
        sigma = self.scale * ((1 - alpha_s) / alpha_t.clamp(min=1e-300)).clamp(max=self.cap)
        sigma = torch.where((t > self.stop) & (t <= self.start), sigma, 0.0)
        sigma[-1] = 0.0
        balance = torch.zeros_like(sigma) if self.by_confidence else sigma  # the published share of a masked position
        write = ((alpha_s - (1 - balance) * alpha_t) / (1 - alpha_t)).clamp(0, 1)
        write[-1] = 1.0
        erase = sigma[step][:, None]
        if self.by_confidence:
            erase = erase * (-confidence).masked_fill(masked | confidence.isnan(), -torch.inf).softmax(-1).nan_to_num()
        return torch.where(masked, write[step][:, None], erase)
