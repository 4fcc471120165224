"""What a run of the sampler holds of its sequences, and what is written there."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.corruption import order_of
from unmask.draws import DRAFT, TOKEN, keyed_uniforms, require_rows
from unmask.network import Network
from unmask.sampling.canvas import behind_end
from unmask.sampling.constraints import Constraint
from unmask.sampling.drawing import Draw
from unmask.sampling.planned import Policy, draw_plan
from unmask.sampling.speculative import Speculative

NEVER = torch.iinfo(torch.int64).max
NO_NUMBER = (
    "the network predicts nan: its training diverged, its numbers are too large for their dtype, or a bias or guidance "
    "leaves no token that it gives any probability"
)


@dataclass(frozen=True)
class Step:
    """What one network call wrote: flat arrays over the N positions that changed, on the host."""

    call: int
    sequence: Int[Tensor, " N"]
    """Index into the canvases given to `sample`."""
    position: Int[Tensor, " N"]
    token: Int[Tensor, " N"]
    """What stands there now; the mask where a token was erased since the last call."""
    confidence: Float[Tensor, " N"]
    """Probability of the token under the network's law; 0 where it was erased, 1 where an end token implied it."""


@dataclass(frozen=True)
class Pick:
    """What is written at a position: a token drawn by `draw`, or the text's own where one is given to be scored."""

    draw: Draw | None
    text: Int[Tensor, "S L"] | None = None
    end: int | None = None
    """Written behind itself to the end of its blank."""
    constraint: Constraint | None = None


@dataclass(frozen=True)
class Work:
    """Sequences of one length; all from `tokens` on but `plan` and `uniforms` is written in place."""

    index: Int[Tensor, " S"]
    told: Int[Tensor, " S"]
    """What the network is told each sequence is."""
    numbers: list[int]
    seed: int
    tokens: Int[Tensor, "S L"]
    plan: Int[Tensor, "S L"]
    """The stage at which a position may be written, -1 where given."""
    uniforms: Float[Tensor, "S L"] | Float[Tensor, "S 3 L"]
    """For a plan, which draws at a position once; three a position where it is guessed, judged and replaced."""
    reveal: Int[Tensor, "S L"]
    """The call for this sequence at which a position was written, -1 while it is open and where it is given."""
    log_p: Float[Tensor, "S L"]
    """Log-probability of what was written under the network's law; 0 where given."""
    turn: Int[Tensor, " S"]
    """Calls made for each sequence."""
    rows: Int[Tensor, " S"]
    """Rows run for each sequence: one a call, and one more for each guess that is judged in it."""
    clock: Int[Tensor, "S 2"]
    """Where coins are tossed at every step (Remasking): the stage and the step of it that come next."""
    spans: list[tuple[int, int]]
    """What a constraint reads of each sequence."""
    log_weight: Float[Tensor, " S"]


def on_host(network: Network, canvases: Sequence[Tensor]) -> Int[Tensor, "S L"]:
    """Canvases of one length. Raises ValueError for what are no tokens of the network."""
    tokens = torch.stack([canvas.detach().cpu() for canvas in canvases])
    require_rows("canvases", tokens)
    tokens = tokens.long()
    outside = tokens[(tokens != network.mask_id) & ((tokens < 0) | (tokens >= network.vocab))]
    if len(outside):
        raise ValueError(f"token {int(outside[0])} of a canvas is not in the network's vocabulary of {network.vocab}")
    return tokens


def prepared(
    network: Network,
    canvases: Sequence[Tensor] | Tensor,
    index: list[int],
    policy: Policy,
    seed: int,
    numbers: list[int],
    told: list[int],
    constraint: Constraint | None = None,
) -> Work:
    tokens = on_host(network, [canvases[i] for i in index])
    open_ = tokens == network.mask_id
    keys = [numbers[i] for i in index]
    plan = draw_plan(policy, open_, seed=seed, sequences=keys)
    if network.causal:
        _require_causal(plan, open_, policy)
    drawn = ((3, tokens.shape[1]), DRAFT) if isinstance(policy, Speculative) else (tokens.shape[1:], TOKEN)
    uniforms = keyed_uniforms(seed, keys, *drawn)
    turn, clock = torch.zeros(len(index), dtype=torch.long), torch.zeros(len(index), 2, dtype=torch.long)
    spans = [] if constraint is None else constraint.spans(tokens, network.vocab, network.mask_id)
    never, log_p, rows = torch.full_like(plan, -1), torch.zeros(plan.shape, dtype=torch.float64), turn.clone()
    weight = torch.zeros(len(index), dtype=torch.float64)
    which, told_ = torch.tensor(index), torch.tensor([told[i] for i in index])
    return Work(which, told_, keys, seed, tokens, plan, uniforms, never, log_p, turn, rows, clock, spans, weight)


def _require_causal(plan: Int[Tensor, "B L"], open_: Bool[Tensor, "B L"], policy: Policy) -> None:
    if isinstance(policy, Speculative):
        raise ValueError(
            "Speculative: a causal network predicts one position ahead, and guesses need more: use LeftToRight()"
        )
    suffix = (open_.long().diff(dim=-1) < 0).any()
    falling = ((plan.diff(dim=-1) <= 0) & open_[:, 1:]).any()
    if bool(open_[:, 0].any() | suffix | falling):
        raise ValueError(
            f"{type(policy).__name__}: a causal network writes one token at a time from the left, after a given "
            "beginning and without a suffix: use LeftToRight() and a canvas that is open at its end only"
        )


def pending(work: Work, row: Int[Tensor, " R"]) -> Bool[Tensor, "R L"]:
    """The positions of each row that are to be written still."""
    return (work.plan[row] >= 0) & (work.reveal[row] < 0)


def next_stage(work: Work, row: Int[Tensor, " R"]) -> Bool[Tensor, "R L"]:
    """The open positions of the lowest stage of each row's plan that has any."""
    stages = work.plan[row].masked_fill(~pending(work, row), NEVER)
    lowest = stages.amin(-1, keepdim=True)
    return (stages == lowest) & (lowest < NEVER)


def level_of(work: Work, row: Int[Tensor, " R"], open_: Bool[Tensor, "R L"]) -> Float[Tensor, " R"]:
    """The share of what there was to write that is open: the level of masking, as the likelihood bound tells it."""
    return open_.sum(-1).double() / (work.plan[row] >= 0).sum(-1)


def rank_of(work: Work, row: Int[Tensor, " R"]) -> Int[Tensor, "R L"]:
    """Each open position's place in the order of its plan, from 0 on; -1 elsewhere."""
    open_ = pending(work, row)
    return order_of(open_, work.plan[row].double()).masked_fill(~open_, -1)


def by_turn(work: Work, row: Int[Tensor, " R"], turn: Int[Tensor, " R"], purpose: int) -> Float[Tensor, "R L"]:
    """One uniform a position of each row, of that row's turn."""
    pairs, shape = zip(row.tolist(), turn.tolist(), strict=True), work.tokens.shape[1:]
    return torch.cat([keyed_uniforms(work.seed, [work.numbers[i]], shape, purpose, t) for i, t in pairs])


def write(
    work: Work,
    row: Int[Tensor, " R"],
    end: int | None,
    call: int,
    slot: Int[Tensor, " N"],
    position: Int[Tensor, " N"],
    token: Int[Tensor, " N"],
    log_p: Float[Tensor, " N"],
) -> Step:
    """Write tokens, and what an end token implies. Raises ValueError where the network predicted no number."""
    if bool(log_p.isnan().any()):
        raise ValueError(NO_NUMBER)
    if end is not None:
        slot, position, token, log_p = _to_the_end(work, row, end, slot, position, token, log_p)
    written, log_p, turn = row[slot], log_p.double(), work.turn[row]
    work.tokens[written, position] = token
    work.log_p[written, position] = log_p
    work.reveal[written, position] = turn[slot]
    work.turn[row] = turn + 1
    return Step(call, work.index[written], position, token, log_p.exp())


def _to_the_end(
    work: Work,
    row: Int[Tensor, " R"],
    end: int,
    slot: Int[Tensor, " N"],
    position: Int[Tensor, " N"],
    token: Int[Tensor, " N"],
    log_p: Float[Tensor, " N"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is written, and end tokens behind every end token at the positions of its blank that are open after it."""
    tokens, open_ = work.tokens[row], pending(work, row)
    tokens[slot, position], open_[slot, position] = token, False
    more, where = (behind_end(tokens, work.plan[row] >= 0, end) & open_).nonzero(as_tuple=True)
    return (
        torch.cat([slot, more]),
        torch.cat([position, where]),
        torch.cat([token, torch.full_like(where, end)]),
        torch.cat([log_p, log_p.new_zeros(len(where))]),
    )
