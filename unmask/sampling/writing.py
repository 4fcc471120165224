"""Drawing tokens: at each position by itself, or those of a row together where a constraint ties them."""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.draws import KIND, TOKEN, log_probabilities
from unmask.network import Network, Then
from unmask.sampling.adaptive import Adaptive
from unmask.sampling.constraints import Constraint, offer
from unmask.sampling.drawing import Draw, predict
from unmask.sampling.work import NO_NUMBER, Pick, Step, Work, by_turn, level_of, next_stage, write

Written = tuple[Int[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " N"], Float[Tensor, " N"]]
"""(slot in the call, position, token, log-probability) of what is revealed."""


@dataclass(frozen=True)
class Drawing:
    """Predictions at the asked positions, and tokens there, or where the chooser says."""

    network: Network
    work: Work
    pick: Pick
    chooser: Adaptive | None = None
    again: bool = False
    """Whether a position may be written a second time."""

    @property
    def once(self) -> bool:
        """Whether no position is drawn twice."""
        return self.chooser is None and not self.again

    def ask(self, row: Int[Tensor, " R"]) -> Bool[Tensor, "R L"]:
        """The open positions of each row's lowest stage; none where it can no longer fit what it has to."""
        asked, constraint = next_stage(self.work, row), self.pick.constraint
        if constraint is None or not constraint.abandon:
            return asked
        spans = [self.work.spans[i] for i in row.tolist()]
        return asked & constraint.alive(self.work.tokens[row], spans, self.network.mask_id)[:, None]

    def take(self, row: Int[Tensor, " R"], asked: Bool[Tensor, "R L"], call: int) -> Step:
        """One call, each row in it once."""
        work, constraint = self.work, self.pick.constraint
        u = (work.uniforms[row] if self.once else by_turn(work, row, work.turn[row], TOKEN))[asked]
        tied = constraint is not None and not constraint.abandon
        written = self._together(row, asked, u) if tied else self._apart(row, asked, u)
        work.rows[row] += 1
        return write(work, row, self.pick.end, call, *written)

    def _apart(self, row: Int[Tensor, " R"], asked: Bool[Tensor, "R L"], u: Float[Tensor, " N"]) -> Written:
        """Tokens drawn at each position by itself, or the given text's."""
        pick, chooser = self.pick, self.chooser
        slot, position = asked.nonzero(as_tuple=True)
        text = None if pick.text is None else pick.text[row][slot, position]

        def read(logits: Tensor, which: slice) -> tuple[Tensor, ...]:
            log_q = log_probabilities(logits)
            token = text[which].to(logits.device) if text is not None else cast(Draw, pick.draw)(logits, u[which])
            drawn = log_q.gather(-1, token[:, None]).squeeze(-1)
            return (token, drawn) if chooser is None else (token, drawn, chooser.score(log_q, drawn))

        token, log_p, *score = self._predict(row, asked, read)
        if chooser is None:
            return slot, position, token, log_p
        chosen = _choose(self.work, row, chooser, score[0], asked)[slot, position]
        return slot[chosen], position[chosen], token[chosen], log_p[chosen]

    def _together(self, row: Int[Tensor, " R"], asked: Bool[Tensor, "R L"], u: Float[Tensor, " N"]) -> Written:
        """Tokens of a row drawn together, so that the constraint can still be kept; `constraints.py` has the law.

        A chooser that ranks predictions chooses first; one that looks at drawn tokens gets a whole draft that fits.
        """
        work, chooser = self.work, self.chooser
        slot, position = asked.nonzero(as_tuple=True)
        constraint, draw = cast(Constraint, self.pick.constraint), cast(Draw, self.pick.draw)
        looks = chooser is not None and chooser.looks_at_draws

        def read(logits: Tensor, which: slice) -> tuple[Tensor, ...]:
            log_q = log_probabilities(logits)
            mass, token = offer(logits, u[which], draw, constraint.automaton)
            log_p = log_q.gather(-1, token)
            if chooser is None:
                return mass, token, log_p
            drawn = log_p.unbind(-1) if looks else [log_p[:, 0]]
            return mass, token, log_p, torch.stack([chooser.score(log_q, one) for one in drawn], -1)

        v = by_turn(work, row, work.turn[row], KIND)[asked]
        mass, token, log_p, *score = self._predict(row, asked, read)
        if chooser is not None and not looks:
            chosen = _choose(work, row, chooser, score[0][:, 0], asked)[slot, position]
            slot, position, mass, token, log_p, v = (part[chosen] for part in (slot, position, mass, token, log_p, v))
        spans, mask_id = [work.spans[i] for i in row.tolist()], self.network.mask_id
        which, weight = constraint.settle(work.tokens[row], spans, mask_id, slot, position, mass, v, draw)
        token, log_p = token.gather(-1, which).squeeze(-1), log_p.gather(-1, which).squeeze(-1)
        work.log_weight[row] += weight if self.once or (chooser is not None and not looks) else torch.nan
        if chooser is not None and looks:
            chosen = _choose(work, row, chooser, score[0].gather(-1, which).squeeze(-1), asked)[slot, position]
            slot, position, token, log_p = slot[chosen], position[chosen], token[chosen], log_p[chosen]
        return slot, position, token, log_p

    def _predict(self, row: Int[Tensor, " R"], asked: Bool[Tensor, "R L"], read: Then) -> tuple[Tensor, ...]:
        """What `read` makes of the predictions at the asked positions, on the host.

        Raises ValueError where the network predicted no number.
        """
        slot, position = asked.nonzero(as_tuple=True)
        tokens, told = self.work.tokens[row], self.work.told[row]
        at, level = slot * tokens.shape[1] + position, level_of(self.work, row, tokens == self.network.mask_id)
        parts = tuple(part.cpu() for part in predict(self.network, tokens, at, read, rows=told, level=level))
        if any(bool(part.isnan().any()) for part in parts):
            raise ValueError(NO_NUMBER)
        return parts


def _choose(
    work: Work, row: Int[Tensor, " R"], chooser: Adaptive, score: Float[Tensor, " N"], asked: Bool[Tensor, "R L"]
) -> Bool[Tensor, "R L"]:
    """What the chooser reveals of the asked positions, told how far each row is in its stage.

    Raises ValueError for a chooser that leaves a row where it is.
    """
    plan, reveal = work.plan[row], work.reveal[row]
    stage = plan.masked_fill(~asked, -1).amax(-1, keepdim=True)
    began = reveal.masked_fill((plan < 0) | (plan >= stage), -1).amax(-1) + 1
    total = ((plan == stage) & ((reveal < 0) | (reveal >= began[:, None]))).sum(-1)
    score = score.double().clamp(min=torch.finfo(torch.float64).min)  # above that of what is not asked
    scores = torch.full(asked.shape, -torch.inf, dtype=torch.float64).masked_scatter(asked, score)
    chosen = asked & chooser.choose(scores, asked, work.turn[row] - began, total)
    if not bool(chosen.any(-1).all()):
        raise ValueError(f"{type(chooser).__name__}: `choose` must reveal at least one asked position of each row")
    return chosen
