"""A turn: where the rows of one call are asked, and what is made of the answer, by the kind of the policy.

A planned policy's tokens are drawn where the plan says, an adaptive one's where it chooses (`Drawing`, of
writing.py); one that erases moves on by coins first (`Revising`); guesses are judged (`Guessing`); and a score
network's own rates decide what is revealed (`Tossing`).
"""

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.draws import PLAN, TOKEN
from unmask.network import Network
from unmask.sampling.adaptive import Adaptive
from unmask.sampling.blocks import inside_of
from unmask.sampling.drawing import Draw
from unmask.sampling.planned import Policy
from unmask.sampling.rated import Rated, toss
from unmask.sampling.remasking import Remasking
from unmask.sampling.speculative import Guesses, Speculative, speculate
from unmask.sampling.work import Pick, Step, Work, by_turn, next_stage, rank_of, write
from unmask.sampling.writing import Drawing


class Turn(Protocol):
    """One kind of turn, of the sequences of one `Work`."""

    def ask(self, row: Int[Tensor, " R"]) -> Bool[Tensor, "R L"]:
        """The positions at which each row is asked next; a row without any is finished."""
        ...

    def take(self, row: Int[Tensor, " R"], asked: Bool[Tensor, "R L"], call: int) -> Step:
        """The call, and what it wrote."""
        ...


def turn_of(network: Network, work: Work, policy: Policy, pick: Pick) -> Turn:
    """The kind of turn that a policy takes."""
    if isinstance(policy, Speculative):
        laws = [torch.empty((0, network.vocab), dtype=torch.float64)]
        return Guessing(network, work, policy, pick, torch.full_like(work.tokens, -1), laws)
    if isinstance(policy, Rated):
        return Tossing(network, work, policy, pick)
    revising = revising_of(policy)
    if revising is not None:
        shown = torch.zeros_like(work.plan, dtype=torch.bool)
        return Revising(work, revising, Drawing(network, work, pick, again=True), shown)
    return Drawing(network, work, pick, chooser_of(policy))


def chooser_of(policy: Policy) -> Adaptive | None:
    """The adaptive policy at work, or None where the plan decides all."""
    return cast(Adaptive, inside_of(policy)) if hasattr(inside_of(policy), "choose") else None


def revising_of(policy: Policy) -> Remasking | None:
    """The policy at work that may erase what it wrote, or None."""
    return cast(Remasking, inside_of(policy)) if hasattr(inside_of(policy), "chance") else None


@dataclass(frozen=True)
class Revising:
    """Tokens drawn where coins say, and others erased; the coins need no call."""

    work: Work
    policy: Remasking
    drawing: Drawing
    shown: Bool[Tensor, "S L"]
    """What `Step`s have told was written."""

    def ask(self, row: Int[Tensor, " R"]) -> Bool[Tensor, "R L"]:
        """The positions that the coins of each row write next; what they erase before becomes open, what they erase in
        the same step after the call.
        """
        work, policy, mask_id = self.work, self.policy, self.drawing.network.mask_id
        plan, reveal, tokens = work.plan[row], work.reveal[row], work.tokens[row]
        sure, clock = work.log_p[row].exp(), work.clock[row]
        asked = torch.zeros_like(plan, dtype=torch.bool)
        tossing = torch.arange(len(row))
        while len(tossing := tossing[(clock[tossing, 0] <= plan[tossing].amax(-1)) & ~asked[tossing].any(-1)]):
            stage, step = clock[tossing].unbind(-1)
            here, masked = plan[tossing] == stage[:, None], reveal[tossing] < 0
            tokens[tossing] = tokens[tossing].masked_fill((plan[tossing] >= 0) & masked, mask_id)
            u = by_turn(work, row[tossing], stage * policy.steps + step, PLAN)
            changed = here & (u < policy.chance(step, masked, sure[tossing].masked_fill(~here, torch.nan)))
            asked[tossing] = changed & masked
            reveal[tossing] = reveal[tossing].masked_fill(changed & ~masked, -1)
            last = step + 1 == policy.steps
            clock[tossing] = torch.stack([stage + last, torch.where(last, 0, step + 1)], -1)
        work.tokens[row], work.reveal[row], work.clock[row] = tokens, reveal, clock
        return asked

    def take(self, row: Int[Tensor, " R"], asked: Bool[Tensor, "R L"], call: int) -> Step:
        """Tokens at the asked positions; the step tells what was erased since the last one too."""
        step = self.drawing.take(row, asked, call)
        slot, position = (self.shown[row] & (self.work.reveal[row] < 0)).nonzero(as_tuple=True)
        self.shown[row] = self.work.reveal[row] >= 0
        return Step(
            step.call,
            torch.cat([step.sequence, self.work.index[row[slot]]]),
            torch.cat([step.position, position]),
            torch.cat([step.token, torch.full_like(position, self.drawing.network.mask_id)]),
            torch.cat([step.confidence, torch.zeros_like(position, dtype=torch.float64)]),
        )


@dataclass(frozen=True)
class Guessing:
    """Guesses are judged, tokens written, and the next ones guessed."""

    network: Network
    work: Work
    policy: Speculative
    pick: Pick
    token: Int[Tensor, "S L"]
    """What is guessed, -1 where nothing is."""
    laws: list[Float[Tensor, "G V"]]
    """One entry: the law of each guess, of the rows of the last call one after the other."""

    def ask(self, row: Int[Tensor, " R"]) -> Bool[Tensor, "R L"]:
        """The next position of each row's plan."""
        return next_stage(self.work, row)

    def take(self, row: Int[Tensor, " R"], asked: Bool[Tensor, "R L"], call: int) -> Step:
        """One call, each row in it once and once more for each of its guesses."""
        work, pick, guesses = self.work, self.pick, Guesses(self.token[row], self.laws.pop())
        written, following = speculate(
            self.network,
            work.tokens[row],
            rank_of(work, row),
            guesses,
            work.uniforms[row],
            draw=cast(Draw, pick.draw),
            drafts=self.policy.drafts,
            end=pick.end,
            rows=work.told[row],
            total=(work.plan[row] >= 0).sum(-1),
        )
        work.rows[row] += guesses.count + 1
        step = write(work, row, pick.end, call, *written)
        if pick.end is not None:  # it may have closed positions that are guessed at, or left one of them last
            rank = rank_of(work, row)
            following = following.at((rank >= 0) & (rank < rank.amax(-1, keepdim=True)))
        self.token[row] = following.token
        self.laws.append(following.law)
        return step


@dataclass(frozen=True)
class Tossing:
    """Coins are tossed by what the network says, at each row's own step."""

    network: Network
    work: Work
    policy: Rated
    pick: Pick

    def ask(self, row: Int[Tensor, " R"]) -> Bool[Tensor, "R L"]:
        """All that is open."""
        return next_stage(self.work, row)

    def take(self, row: Int[Tensor, " R"], asked: Bool[Tensor, "R L"], call: int) -> Step:
        """One call at the level of each row's step."""
        work, step = self.work, self.work.turn[row]
        when, what = (by_turn(work, row, step, purpose) for purpose in (PLAN, TOKEN))
        draw, tokens = cast(Draw, self.pick.draw), work.tokens[row]
        written = toss(self.network, tokens, self.policy, step, when, what, draw=draw, rows=work.told[row])
        work.rows[row] += 1
        return write(work, row, None, call, *written)
