"""Exact speculative decoding: several tokens of a planned order in one call, and the law of one at a time.

A canvas predicts the next K positions of the order, and a token is guessed at each from its prediction q. The next
call runs K + 1 rows, row m with the first m guesses written: its prediction p at the next position is the law that
one-at-a-time sampling would draw from. The guess x there stays with probability min(1, p(x) / q(x)); the first that
does not is replaced by a token of (p - q)+, renormalised, and those behind it are dropped. So each token has law p,
whatever q is (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318). Where all guesses stay, the last
row gives one token more. A bidirectional network predicts all positions at once: the row that wrote last has
predicted those behind it too, the next guesses come from there, and a round is one call.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.draws import inverse_cdf, log_probabilities, widest
from unmask.network import Network
from unmask.sampling.blocks import Blocks, inside_of
from unmask.sampling.drawing import Draw, predict
from unmask.sampling.planned import FixedOrder, LeftToRight, RandomOrder, at_least_one


@dataclass(frozen=True)
class Speculative:
    """The law of `inside`, one token at a time in a planned order, in fewer calls of more rows each.

    At most `drafts` tokens are guessed ahead; a sequence runs one row more in a call than it has guesses. NFE counts
    rows, so it is never below that of `inside`.
    """

    inside: RandomOrder | LeftToRight | FixedOrder | Blocks = field(default_factory=RandomOrder)
    drafts: int = 4
    """Tokens guessed ahead at most."""

    def __post_init__(self) -> None:
        at_least_one(self, "drafts")
        order = inside_of(self.inside)
        if not isinstance(order, RandomOrder | LeftToRight | FixedOrder) or order.tokens != 1:
            raise ValueError(
                f"Speculative: {self.inside} is no order planned beforehand with one token at a time: use "
                "RandomOrder(), LeftToRight(), FixedOrder() or Blocks of one of them"
            )

    @property
    def exact_for(self) -> str:
        return self.inside.exact_for

    def plan(self, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """The plan of `inside`."""
        return self.inside.plan(open_, u)


@dataclass(frozen=True)
class Guesses:
    """Tokens guessed at the next positions of R sequences, and the laws they were drawn from."""

    token: Int[Tensor, "R L"]
    """-1 where nothing is guessed."""
    law: Float[Tensor, "G V"]
    """One a guess, row by row of `token`; in float64, on the network's device if that has it."""

    @property
    def made(self) -> Bool[Tensor, "R L"]:
        """Where there is a guess."""
        return self.token >= 0

    @property
    def count(self) -> Int[Tensor, " R"]:
        """Guesses of each sequence."""
        return self.made.sum(-1)

    def at(self, positions: Bool[Tensor, "R L"]) -> "Guesses":
        """Those at some of the positions."""
        kept = positions[self.made].to(self.law.device)
        return Guesses(self.token.masked_fill(~positions, -1), self.law[kept])


def judge(
    p: Float[Tensor, "N V"], q: Float[Tensor, "N V"], guess: Int[Tensor, " N"], u: Float[Tensor, "N 2"]
) -> tuple[Bool[Tensor, " N"], Int[Tensor, " N"]]:
    """(whether the guess stays, the token written): the guess with probability min(1, p/q), else one of (p - q)+.

    q is zero where nothing was guessed: the token is then drawn from p.
    """
    u = u.to(p.device, p.dtype)
    p_x, q_x = (law.gather(-1, guess[:, None]).squeeze(-1) for law in (p, q))
    stays = (u[:, 0] * q_x < p_x) & (q_x > 0)
    rest = (p - q).clamp(min=0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)  # equal laws, and a guess refused by rounding
    return stays, torch.where(stays, guess, inverse_cdf(rest, u[:, 1]))


def speculate(
    network: Network,
    tokens: Int[Tensor, "R L"],
    rank: Int[Tensor, "R L"],
    guesses: Guesses,
    u: Float[Tensor, "R 3 L"],
    *,
    draw: Draw,
    drafts: int,
    end: int | None,
    rows: Int[Tensor, " R"],
    total: Int[Tensor, " R"],
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Guesses]:
    """One call: ((slot, position, token, log p) of each token written, the next guesses).

    `rank` counts the open positions of a sequence in their order from 0 on, negative elsewhere; guesses are at the
    first ones and never at the last, which the row that judged it could as well draw; `total` positions were open in
    the beginning. `u` holds a position's uniforms
    to guess, judge and replace: a guess that is dropped unjudged has decided nothing, so its position's next one uses
    the same. Nothing is written behind an `end` token.
    """
    runs = torch.arange(int(guesses.count.max()) + 1) <= guesses.count[:, None]
    slot, known = runs.nonzero(as_tuple=True)  # a row of the call: `slot` with its first `known` guesses written
    ahead = rank[slot] - known[:, None]
    canvas = torch.where(guesses.made, guesses.token, tokens)[slot].masked_fill(ahead >= 0, network.mask_id)
    judging = ahead == 0
    guessing = (ahead > 0) & (ahead <= drafts) & (rank < rank.amax(-1, keepdim=True))[slot]
    (_, here), (source, there) = judging.nonzero(as_tuple=True), guessing.nonzero(as_tuple=True)

    number = (guesses.made.flatten().cumsum(0) - 1).view_as(rank).masked_fill(~guesses.made, -1)[slot, here]
    laws = F.pad(guesses.law, (0, 0, 0, 1))  # the last, number -1, is that of no guess
    guess = guesses.token[slot, here].clamp(min=0)
    u_here, u_there = u[slot, 1:, here], u[slot[source], 0, there]
    stopped: list[Tensor] = []

    def read(logits: Float[Tensor, "n V"], part: slice) -> tuple[Tensor, ...]:
        """The rows' own positions come first, so of those behind only what the last row to write predicts is kept."""
        cut, device = min(max(len(slot) - part.start, 0), len(logits)), logits.device
        own, behind = slice(part.start, part.start + cut), slice(part.start + cut - len(slot), part.stop - len(slot))
        q = laws.to(device, widest(device))[number[own].to(device)]
        stays, token = judge(draw.law(logits[:cut]), q, guess[own].to(device), u_here[own])
        log_p = log_probabilities(logits[:cut]).gather(-1, token[:, None]).squeeze(-1)
        stops = ~stays if end is None else ~stays | (token == end)
        stopped.append(stops)
        if cut == len(logits):
            return stops, token, log_p, token[:0], q[:0]
        _, last = _writers(torch.cat(stopped), runs.to(device))
        kept = last[source[behind].to(device)].nonzero().squeeze(-1)
        law = draw.law(logits[cut:][kept])
        return stops, token, log_p, inverse_cdf(law, u_there[behind].to(device, law.dtype)[kept]), law

    at = torch.cat([judging.flatten().nonzero(), guessing.flatten().nonzero()]).squeeze(-1)
    level = (ahead >= 0).sum(-1).double() / total[slot]
    *columns, law = predict(network, canvas, at, read, rows=rows[slot], level=level)
    stops, token, log_p, next_guess = (column.cpu() for column in columns)
    wrote, last = _writers(stops, runs)
    following = torch.full_like(tokens, -1).masked_scatter(guessing[last], next_guess)
    return (slot[wrote], here[wrote], token[wrote], log_p[wrote]), Guesses(following, law)


def _writers(stops: Bool[Tensor, " T"], runs: Bool[Tensor, "R M"]) -> tuple[Bool[Tensor, " T"], Bool[Tensor, " T"]]:
    """(rows that write a token, the last such row of each sequence): those before which no row of it stops."""
    stop = torch.zeros_like(runs).masked_scatter(runs, stops).long()
    before = (stop.cumsum(-1) - stop)[runs]
    return before == 0, (before == 0) & stops
