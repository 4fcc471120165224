"""The runner: every row of a batch at its own next evaluation, output layer only where a token is wanted."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.draws import TOKEN, keyed_uniforms, log_probabilities
from unmask.network import Network
from unmask.sampling.adaptive import Adaptive
from unmask.sampling.blocks import Blocks
from unmask.sampling.drawing import Draw
from unmask.sampling.planned import Policy, RandomOrder, draw_plan

NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Step:
    """What one network call wrote: flat arrays over the N positions revealed, on the host."""

    call: int
    sequence: Int[Tensor, " N"]
    """Index into the canvases given to `sample`."""
    position: Int[Tensor, " N"]
    token: Int[Tensor, " N"]
    confidence: Float[Tensor, " N"]
    """Probability of the token under the network's law."""


@dataclass(frozen=True)
class Samples:
    """Finished sequences, and what each cost."""

    tokens: list[Int[Tensor, " L"]]
    nfe: Int[Tensor, " S"]
    """Network evaluations of each sequence: the rows run for it."""
    calls: int
    """Batched network calls."""
    reveal: list[Int[Tensor, " L"]]
    """The evaluation, counted from 0 within its sequence, at which each position was written; -1 where given."""
    confidence: list[Float[Tensor, " L"]]
    """Probability of each written token under the network's law; 1 where given."""


def sample(
    network: Network,
    canvases: Sequence[Int[Tensor, " L"]] | Int[Tensor, "S L"],
    policy: Policy | None = None,
    *,
    draw: Draw | None = None,
    seed: int = 0,
    sequences: Sequence[int] | None = None,
    batch: int = 16,
    on_step: Callable[[Step], None] | None = None,
) -> Samples:
    """Fill the open positions of every canvas by a policy (default RandomOrder(): exact for the random-order law).

    `sequences` number the canvases (default 0, 1, ...): a sequence is the same under (seed, number) in whatever
    batch it runs. `on_step` is told of each call. Raises ValueError for an empty canvas, or a policy that a causal
    network cannot follow.
    """
    policy, draw = policy or RandomOrder(), draw or Draw()
    numbers = list(range(len(canvases))) if sequences is None else list(sequences)
    if len(numbers) != len(canvases):
        raise ValueError(f"{len(numbers)} sequence numbers for {len(canvases)} canvases: give one each")
    if batch < 1:
        raise ValueError(f"batch {batch} must be at least 1")
    work = [_prepare(network, canvases, index, policy, seed, numbers) for index in _same_length(canvases)]
    calls = 0
    for group in work:
        for step in _run(network, group, policy, Pick(draw), batch, calls):
            calls += 1
            if on_step is not None:
                on_step(step)
    rows = sorted((int(i), group, j) for group in work for j, i in enumerate(group.index))
    tokens, reveal, log_p = (
        [getattr(group, name)[j] for _, group, j in rows] for name in ("tokens", "reveal", "log_p")
    )
    nfe = torch.tensor([int(turns.max()) + 1 for turns in reveal], dtype=torch.long)
    return Samples(tokens, nfe, calls, reveal, [row.exp() for row in log_p])


def decode_nats(
    network: Network,
    x_0: Int[Tensor, "S L"],
    maskable: Bool[Tensor, "S L"],
    policy: Policy,
    *,
    seed: int = 0,
    sequences: Sequence[int] | None = None,
    batch: int = 16,
) -> tuple[Float[Tensor, " S"], Int[Tensor, " S"]]:
    """(-log p in nats, evaluations) of each text under the decoder that would write it: exact.

    The policy runs as it would, the text's own tokens are written where it chooses, and their log-probabilities
    add up. A policy that draws its plan has this likelihood given that plan. Raises ValueError for a policy whose
    order depends on the tokens drawn: the text does not tell which other tokens were drawn on the way.
    """
    chooser = _chooser(policy)
    if chooser is not None and chooser.looks_at_draws:
        raise ValueError(
            f"{type(chooser).__name__} has no likelihood: its order depends on the tokens drawn at every step, which "
            "the text does not tell; use Confidence, Margin or Entropy"
        )
    numbers = list(range(len(x_0))) if sequences is None else list(sequences)
    canvas = x_0.masked_fill(maskable, network.mask_id)
    work = _prepare(network, canvas, list(range(len(x_0))), policy, seed, numbers)
    for _ in _run(network, work, policy, Pick(None, x_0), batch, 0):
        pass
    return -work.log_p.sum(-1), work.reveal.amax(-1) + 1


@dataclass(frozen=True)
class Pick:
    """What is written at a position: a token drawn by `draw`, or the text's own where one is given to be scored."""

    draw: Draw | None
    text: Int[Tensor, "S L"] | None = None


@dataclass(frozen=True)
class _Work:
    """Sequences of one length; `tokens`, `reveal` and `log_p` are written in place."""

    index: Int[Tensor, " S"]
    numbers: list[int]
    seed: int
    tokens: Int[Tensor, "S L"]
    plan: Int[Tensor, "S L"]
    """The stage at which a position may be written, -1 where given."""
    reveal: Int[Tensor, "S L"]
    """The evaluation at which it was, -1 before."""
    uniforms: Float[Tensor, "S L"]
    """For a plan, which draws at a position once."""
    log_p: Float[Tensor, "S L"]
    """Log-probability of what was written under the network's law; 0 where given."""


def _same_length(canvases: Sequence[Tensor] | Tensor) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for i, canvas in enumerate(canvases):
        if canvas.dim() != 1 or not len(canvas):
            raise ValueError(f"a canvas is one row of at least one token, not a tensor of shape {tuple(canvas.shape)}")
        groups.setdefault(len(canvas), []).append(i)
    return [groups[length] for length in sorted(groups)]


def _prepare(
    network: Network,
    canvases: Sequence[Tensor] | Tensor,
    index: list[int],
    policy: Policy,
    seed: int,
    numbers: list[int],
) -> _Work:
    tokens = torch.stack([canvases[i].detach().to("cpu", torch.long) for i in index])
    open_ = tokens == network.mask_id
    outside = tokens[~open_ & ((tokens < 0) | (tokens >= network.vocab))]
    if len(outside):
        raise ValueError(f"token {int(outside[0])} of a canvas is not in the network's vocabulary of {network.vocab}")
    keys = [numbers[i] for i in index]
    plan = draw_plan(policy, open_, seed=seed, sequences=keys)
    if network.causal:
        _require_causal(plan, open_, policy)
    never, uniforms = torch.full_like(plan, -1), keyed_uniforms(seed, keys, tokens.shape[1:], TOKEN)
    return _Work(torch.tensor(index), keys, seed, tokens, plan, never, uniforms, torch.zeros_like(uniforms))


def _chooser(policy: Policy) -> Adaptive | None:
    """The adaptive policy at work, or None where the plan decides all."""
    inside = policy.inside if isinstance(policy, Blocks) else policy
    return cast(Adaptive, inside) if hasattr(inside, "choose") else None


def _require_causal(plan: Int[Tensor, "B L"], open_: Bool[Tensor, "B L"], policy: Policy) -> None:
    suffix = (open_.long().diff(dim=-1) < 0).any()
    falling = ((plan.diff(dim=-1) <= 0) & open_[:, 1:]).any()
    if bool(open_[:, 0].any() | suffix | falling):
        raise ValueError(
            f"{type(policy).__name__}: a causal network writes one token at a time from the left, after a given "
            "beginning and without a suffix: use LeftToRight() and a canvas that is open at its end only"
        )


def _run(network: Network, work: _Work, policy: Policy, pick: Pick, batch: int, call: int) -> Iterator[Step]:
    """Every row at its own next evaluation; a finished row's slot goes to the next sequence, so calls stay full."""
    chooser = _chooser(policy)
    waiting = iter((work.plan >= 0).any(-1).nonzero().squeeze(-1).tolist())
    row = torch.empty(0, dtype=torch.long)
    while True:
        row = torch.cat([row, torch.tensor(list(itertools.islice(waiting, batch - len(row))), dtype=torch.long)])
        if not len(row):
            return
        yield _advance(network, work, row, chooser, pick, call)
        call += 1
        row = row[_pending(work, row).any(-1)]


def _pending(work: _Work, row: Int[Tensor, " R"]) -> Bool[Tensor, "R L"]:
    return (work.plan[row] >= 0) & (work.reveal[row] < 0)


def _advance(
    network: Network, work: _Work, row: Int[Tensor, " R"], chooser: Adaptive | None, pick: Pick, call: int
) -> Step:
    """One call: predictions where a row may write now, and tokens where the plan or the chooser says."""
    stages = work.plan[row].masked_fill(~_pending(work, row), NEVER)
    stage = stages.amin(-1, keepdim=True)
    asked = stages == stage
    turn = work.reveal[row].amax(-1) + 1
    slot, position = asked.nonzero(as_tuple=True)
    at = slot * work.tokens.shape[1] + position
    # a plan draws at a position once; a chooser may draw there again at every evaluation
    u = (work.uniforms[row] if chooser is None else _fresh(work, row, turn))[slot, position]
    text = None if pick.text is None else pick.text[row][slot, position]

    def read(logits: Float[Tensor, "n V"], which: slice) -> tuple[Tensor, ...]:
        log_q = log_probabilities(logits)
        token = text[which].to(logits.device) if text is not None else cast(Draw, pick.draw)(logits, u[which])
        drawn = log_q.gather(-1, token[:, None]).squeeze(-1)
        return (token, drawn) if chooser is None else (token, drawn, chooser.score(log_q, drawn))

    with torch.inference_mode():
        token, log_p, *score = (part.cpu() for part in network(work.tokens[row], at, then=read, rows=work.index[row]))
    if chooser is not None:
        chosen = _choose(work, row, chooser, score[0], asked, stage, turn)[slot, position]
        slot, position, token, log_p = slot[chosen], position[chosen], token[chosen], log_p[chosen]
    written, log_p = row[slot], log_p.double()
    work.tokens[written, position] = token
    work.log_p[written, position] = log_p
    work.reveal[written, position] = turn[slot]
    return Step(call, work.index[written], position, token, log_p.exp())


def _choose(
    work: _Work,
    row: Int[Tensor, " R"],
    chooser: Adaptive,
    score: Float[Tensor, " N"],
    asked: Bool[Tensor, "R L"],
    stage: Int[Tensor, "R 1"],
    turn: Int[Tensor, " R"],
) -> Bool[Tensor, "R L"]:
    """What the chooser reveals of the asked positions, told how far each row is in its stage."""
    plan, reveal = work.plan[row], work.reveal[row]
    began = reveal.masked_fill((plan < 0) | (plan >= stage), -1).amax(-1) + 1
    scores = torch.full(asked.shape, -torch.inf, dtype=torch.float64).masked_scatter(asked, score.double())
    return asked & chooser.choose(scores, asked, turn - began, (plan == stage).sum(-1))


def _fresh(work: _Work, row: Int[Tensor, " R"], turn: Int[Tensor, " R"]) -> Float[Tensor, "R L"]:
    """One uniform a position of each row, keyed by (seed, sequence, turn)."""
    shape = work.tokens.shape[1:]
    pairs = zip(row.tolist(), turn.tolist(), strict=True)
    return torch.cat([keyed_uniforms(work.seed, [work.numbers[i]], shape, TOKEN, t) for i, t in pairs])
