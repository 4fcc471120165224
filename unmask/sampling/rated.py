"""Tau-leaping of a score network: how likely a position is revealed depends on what the network says of it.

A concrete score s_v = r exp(logit_v) gives the rate of every token, and their sum, r Z, need not be what the forward
process took away (Z = 1). So nothing can be planned: the network is called at every step, at that step's level.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.draws import log_probabilities, widest
from unmask.network import Network
from unmask.sampling.adaptive import one_stage
from unmask.sampling.drawing import Draw, predict
from unmask.sampling.planned import Euler, Tweedie, grid


@dataclass(frozen=True)
class Rated:
    """SEDD's samplers (arXiv 2310.16834, section 4): from t to s a masked position is revealed with probability
    min(1, h Z), h that of `steps` (Tweedie or Euler) and Z = sum_v exp(logit_v); its token is drawn in proportion to
    exp(logit_v). The last step reveals what is left.

    A normalised network has Z = 1: its samples follow `steps` as they are, but one that is told the level is told the
    level of the step. Every step until the last token costs an evaluation.
    """

    steps: Tweedie | Euler = field(default_factory=Tweedie)
    plan = one_stage

    @property
    def exact_for(self) -> str:
        kind = f"{type(self.steps).__name__} tau-leaping with {self.steps.steps} steps"
        return f"{kind} at the network's own rates, called at every step"

    def levels(self) -> Float[Tensor, " T"]:
        """Probability of a mask at the beginning of each step."""
        return 1 - self.steps.schedule.alpha(grid(self.steps.steps)[0])


def toss(
    network: Network,
    tokens: Int[Tensor, "R L"],
    policy: Rated,
    step: Int[Tensor, " R"],
    when: Float[Tensor, "R L"],
    what: Float[Tensor, "R L"],
    *,
    draw: Draw,
    rows: Int[Tensor, " R"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One call: (slot, position, token, log-probability) of what is revealed; a uniform for each coin and token."""
    open_ = tokens == network.mask_id
    slot, position = open_.nonzero(as_tuple=True)
    hazard, coin, u = policy.steps.hazards()[step][slot], when[open_], what[open_]
    last = (step == policy.steps.steps - 1)[slot]

    def read(logits: Float[Tensor, "n V"], part: slice) -> tuple[Tensor, ...]:
        wide = logits.to(widest(logits.device))
        mass = torch.ones_like(wide[:, 0]) if network.normalised else wide.logsumexp(-1).exp()
        revealed = (coin[part].to(mass) < hazard[part].to(mass) * mass) | last[part].to(mass.device)
        logits, mine = logits[revealed], u[part][revealed.cpu()]
        token = draw(logits, mine)
        return revealed, token, log_probabilities(logits).gather(-1, token[:, None]).squeeze(-1)

    at = slot * tokens.shape[1] + position
    found = predict(network, tokens, at, read, rows=rows, level=policy.levels()[step])
    revealed, token, log_p = (part.cpu() for part in found)
    return slot[revealed], position[revealed], token, log_p
