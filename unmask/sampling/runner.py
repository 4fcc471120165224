"""The runner: every row of a batch at its own next evaluation, output layer only where a token is wanted."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.corruption import order_of
from unmask.draws import DRAFT, KIND, PLAN, TOKEN, keyed_uniforms, log_probabilities
from unmask.network import Network, Then, evaluations, remembering
from unmask.sampling.adaptive import Adaptive
from unmask.sampling.blocks import Blocks
from unmask.sampling.canvas import behind_end
from unmask.sampling.constraints import Constraint, offer
from unmask.sampling.drawing import Draw
from unmask.sampling.planned import Policy, RandomOrder, draw_plan
from unmask.sampling.rated import Rated, toss
from unmask.sampling.remasking import Remasking
from unmask.sampling.speculative import Guesses, Speculative, speculate

NEVER = torch.iinfo(torch.int64).max


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
class Samples:
    """Finished sequences, and what each cost."""

    tokens: list[Int[Tensor, " L"]]
    nfe: Int[Tensor, " S"]
    """Network evaluations of each sequence: the rows run for it."""
    calls: int
    """Batched network calls."""
    reveal: list[Int[Tensor, " L"]]
    """The call for its sequence, counted from 0, at which each position was (last) written; -1 where given."""
    confidence: list[Float[Tensor, " L"]]
    """Probability of each written token under the network's law; 1 where given."""
    log_weight: Float[Tensor, " S"]
    """log of the importance weight that leads from a constrained law to p(x | fits) (see constraints.py): 0 without a
    constraint, nan for a policy that looks at drawn tokens or erases them."""


def sample(
    network: Network,
    canvases: Sequence[Int[Tensor, " L"]] | Int[Tensor, "S L"],
    policy: Policy | None = None,
    *,
    draw: Draw | None = None,
    seed: int = 0,
    sequences: Sequence[int] | None = None,
    batch: int = 16,
    end: int | None = None,
    constraint: Constraint | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Samples:
    """Fill the open positions of every canvas by a policy (default RandomOrder(): exact for the random-order law).

    `sequences` number the canvases (default 0, 1, ...): a sequence is the same under (seed, number) in whatever
    batch it runs. `on_step` is told of each call. With an `end` token, once it is written in a blank (a run of open
    positions) what is still open behind it there is written as end tokens too, without a call: exact from left to
    right and for blocks of one token, and otherwise for a network that is certain of it. With a `constraint` every
    sample fits it, by the law that constraints.py states.

    Raises ValueError for an empty canvas, a policy that a causal network or an end token cannot go with, or a canvas
    that nothing fits.
    """
    options = {"draw": draw, "seed": seed, "sequences": sequences, "batch": batch, "end": end}
    steps = stream(network, canvases, policy, **options, constraint=constraint)
    while True:
        try:
            step = next(steps)
        except StopIteration as finished:
            return finished.value
        if on_step is not None:
            on_step(step)


def stream(
    network: Network,
    canvases: Sequence[Int[Tensor, " L"]] | Int[Tensor, "S L"],
    policy: Policy | None = None,
    *,
    draw: Draw | None = None,
    seed: int = 0,
    sequences: Sequence[int] | None = None,
    batch: int = 16,
    end: int | None = None,
    constraint: Constraint | None = None,
) -> Generator[Step, None, Samples]:
    """`sample` as an iterator: a `Step` a network call, as it happens; the generator's return value is the `Samples`.

    Arguments are checked at once, before the first step is asked for.
    """
    policy, pick = policy or RandomOrder(), Pick(draw or Draw(), end=end, constraint=constraint)
    numbers = list(range(len(canvases))) if sequences is None else list(sequences)
    if len(numbers) != len(canvases):
        raise ValueError(f"{len(numbers)} sequence numbers for {len(canvases)} canvases: give one each")
    if batch < 1:
        raise ValueError(f"batch {batch} must be at least 1")
    if end is not None and not 0 <= end < network.vocab:
        raise ValueError(f"end token {end} is not in the network's vocabulary of {network.vocab}")
    if end is not None and _revising(policy) is not None:
        raise ValueError("Remasking may erase an end token that others were written for: leave `end` out, or cut after")
    if end is not None and constraint is not None and constraint.span is not None:
        raise ValueError("an end token may write into a constraint's span from before it: leave out one of the two")
    if constraint is not None and isinstance(policy, Speculative):
        raise ValueError("Speculative guesses tokens one by one, a constraint ties them: use its inside policy alone")
    if isinstance(policy, Rated) and (end is not None or constraint is not None):
        raise ValueError("Rated reveals by the network's own rates: leave out the end token and the constraint")
    work = [_prepare(network, canvases, index, policy, seed, numbers, constraint) for index in _same_length(canvases)]
    return _stream(network, work, policy, pick, batch)


def _stream(
    network: Network, work: list["_Work"], policy: Policy, pick: "Pick", batch: int
) -> Generator[Step, None, Samples]:
    calls = 0
    for group in work:
        for step in _run(network, group, policy, pick, batch, calls):
            calls += 1
            yield step
    rows = sorted((int(i), group, j) for group in work for j, i in enumerate(group.index))
    tokens, reveal, log_p = (
        [getattr(group, name)[j] for _, group, j in rows] for name in ("tokens", "reveal", "log_p")
    )
    nfe = evaluations(network) * torch.tensor([int(group.rows[j]) for _, group, j in rows], dtype=torch.long)
    log_weight = torch.tensor([float(group.log_weight[j]) for _, group, j in rows], dtype=torch.float64)
    return Samples(tokens, nfe, calls, reveal, [row.exp() for row in log_p], log_weight)


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
    policy = policy.inside if isinstance(policy, Speculative) else policy
    if isinstance(policy, Rated):
        raise ValueError("Rated has no likelihood in closed form: take the bound of its network, `log_likelihood`")
    chooser = _chooser(policy)
    if _revising(policy) is not None or (chooser is not None and chooser.looks_at_draws):
        raise ValueError(
            f"{type(_inside(policy)).__name__} has no likelihood: what it writes depends on tokens drawn on the way, "
            "which the text does not tell; use Confidence, Margin or Entropy"
        )
    numbers = list(range(len(x_0))) if sequences is None else list(sequences)
    canvas = x_0.masked_fill(maskable, network.mask_id)
    work = _prepare(network, canvas, list(range(len(x_0))), policy, seed, numbers)
    for _ in _run(network, work, policy, Pick(None, x_0), batch, 0):
        pass
    return -work.log_p.sum(-1), evaluations(network) * work.rows


@dataclass(frozen=True)
class Pick:
    """What is written at a position: a token drawn by `draw`, or the text's own where one is given to be scored."""

    draw: Draw | None
    text: Int[Tensor, "S L"] | None = None
    end: int | None = None
    """Written behind itself to the end of its blank."""
    constraint: Constraint | None = None


@dataclass(frozen=True)
class _Work:
    """Sequences of one length; all from `tokens` on but `plan` and `uniforms` is written in place."""

    index: Int[Tensor, " S"]
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
    constraint: Constraint | None = None,
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
    drawn = ((3, tokens.shape[1]), DRAFT) if isinstance(policy, Speculative) else (tokens.shape[1:], TOKEN)
    uniforms = keyed_uniforms(seed, keys, *drawn)
    turn, clock = torch.zeros(len(index), dtype=torch.long), torch.zeros(len(index), 2, dtype=torch.long)
    spans = [] if constraint is None else constraint.spans(tokens, network.vocab, network.mask_id)
    never, log_p, rows = torch.full_like(plan, -1), torch.zeros(plan.shape, dtype=torch.float64), turn.clone()
    weight = torch.zeros(len(index), dtype=torch.float64)
    return _Work(
        torch.tensor(index), keys, seed, tokens, plan, uniforms, never, log_p, turn, rows, clock, spans, weight
    )


def _inside(policy: Policy) -> Policy:
    return policy.inside if isinstance(policy, Blocks) else policy


def _chooser(policy: Policy) -> Adaptive | None:
    """The adaptive policy at work, or None where the plan decides all."""
    return cast(Adaptive, _inside(policy)) if hasattr(_inside(policy), "choose") else None


def _revising(policy: Policy) -> Remasking | None:
    """The policy at work that may erase what it wrote, or None."""
    return cast(Remasking, _inside(policy)) if hasattr(_inside(policy), "chance") else None


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


def _run(network: Network, work: _Work, policy: Policy, pick: Pick, batch: int, call: int) -> Iterator[Step]:
    """Every row at its own next evaluation; a finished row's slot goes to the next sequence, so calls stay full."""
    network = remembering(network, min(batch, len(work.tokens)), work.tokens.shape[1])
    chooser, revising = _chooser(policy), _revising(policy)
    waiting = (work.plan >= 0).any(-1).nonzero().squeeze(-1)
    row, asked = waiting[:0], torch.empty((0, work.plan.shape[1]), dtype=torch.bool)
    shown = torch.zeros_like(work.plan, dtype=torch.bool)  # what `Step`s have told was written
    guesses = Guesses(torch.full_like(work.tokens, -1), torch.empty((0, network.vocab), dtype=torch.float64))

    def ask(row: Int[Tensor, " R"]) -> Bool[Tensor, "R L"]:
        return _next_stage(work, row) if revising is None else _next_write(network, work, row, revising)

    while True:
        new, waiting = waiting[: batch - len(row)], waiting[batch - len(row) :]
        if len(new):
            row, asked = torch.cat([row, new]), torch.cat([asked, ask(new)])
        if not len(row):
            return
        if isinstance(policy, Speculative):
            step, guesses = _judge(network, work, row, guesses, policy, pick, call)
        elif isinstance(policy, Rated):
            step = _tossed(network, work, row, policy, pick, call)
        else:
            once = chooser is None and revising is None
            step = _advance(network, work, row, asked, chooser, pick, call, once=once)
        yield step if revising is None else _with_erased(network, work, row, shown, step)
        call += 1
        asked = ask(row)
        if pick.constraint is not None and pick.constraint.abandon and revising is None:
            spans = [work.spans[i] for i in row.tolist()]
            asked &= pick.constraint.alive(work.tokens[row], spans, network.mask_id)[:, None]
        live = asked.any(-1)
        row, asked = row[live], asked[live]


def _pending(work: _Work, row: Int[Tensor, " R"]) -> Bool[Tensor, "R L"]:
    return (work.plan[row] >= 0) & (work.reveal[row] < 0)


def _next_stage(work: _Work, row: Int[Tensor, " R"]) -> Bool[Tensor, "R L"]:
    """The open positions of the lowest stage of each row's plan that has any."""
    stages = work.plan[row].masked_fill(~_pending(work, row), NEVER)
    lowest = stages.amin(-1, keepdim=True)
    return (stages == lowest) & (lowest < NEVER)


def _next_write(network: Network, work: _Work, row: Int[Tensor, " R"], policy: Remasking) -> Bool[Tensor, "R L"]:
    """The positions that the coins of each row write next; what they erase before becomes open, what they erase in
    the same step after the call.
    """
    plan, reveal, tokens = work.plan[row], work.reveal[row], work.tokens[row]
    sure, clock = work.log_p[row].exp(), work.clock[row]
    asked = torch.zeros_like(plan, dtype=torch.bool)
    tossing = torch.arange(len(row))
    while len(tossing := tossing[(clock[tossing, 0] <= plan[tossing].amax(-1)) & ~asked[tossing].any(-1)]):
        stage, step = clock[tossing].unbind(-1)
        here, masked = plan[tossing] == stage[:, None], reveal[tossing] < 0
        tokens[tossing] = tokens[tossing].masked_fill((plan[tossing] >= 0) & masked, network.mask_id)
        u = _by_turn(work, row[tossing], stage * policy.steps + step, PLAN)
        changed = here & (u < policy.chance(step, masked, sure[tossing].masked_fill(~here, torch.nan)))
        asked[tossing] = changed & masked
        reveal[tossing] = reveal[tossing].masked_fill(changed & ~masked, -1)
        last = step + 1 == policy.steps
        clock[tossing] = torch.stack([stage + last, torch.where(last, 0, step + 1)], -1)
    work.tokens[row], work.reveal[row], work.clock[row] = tokens, reveal, clock
    return asked


def _with_erased(network: Network, work: _Work, row: Int[Tensor, " R"], shown: Bool[Tensor, "S L"], step: Step) -> Step:
    """The step with what was erased since the last one; `shown` is brought up to date."""
    slot, position = (shown[row] & (work.reveal[row] < 0)).nonzero(as_tuple=True)
    shown[row] = work.reveal[row] >= 0
    return Step(
        step.call,
        torch.cat([step.sequence, work.index[row[slot]]]),
        torch.cat([step.position, position]),
        torch.cat([step.token, torch.full_like(position, network.mask_id)]),
        torch.cat([step.confidence, torch.zeros_like(position, dtype=torch.float64)]),
    )


def _advance(
    network: Network,
    work: _Work,
    row: Int[Tensor, " R"],
    asked: Bool[Tensor, "R L"],
    chooser: Adaptive | None,
    pick: Pick,
    call: int,
    *,
    once: bool,
) -> Step:
    """One call: predictions at the asked positions, and tokens there, or where the chooser says; `once` says that no
    position is drawn twice.
    """
    turn = work.turn[row]
    u = (work.uniforms[row] if once else _by_turn(work, row, turn, TOKEN))[asked]
    if pick.constraint is None or pick.constraint.abandon:
        written = _apart(network, work, row, asked, u, chooser, pick)
    else:
        written = _together(network, work, row, asked, u, chooser, pick, weigh=once)
    work.rows[row] += 1
    return _write(work, row, pick.end, call, *written)


def _judge(
    network: Network,
    work: _Work,
    row: Int[Tensor, " R"],
    guesses: Guesses,
    policy: Speculative,
    pick: Pick,
    call: int,
) -> tuple[Step, Guesses]:
    """One call: guesses judged, tokens written, and the next guesses."""
    written, following = speculate(
        network,
        work.tokens[row],
        _rank(work, row),
        made := Guesses(guesses.token[row], guesses.law),
        work.uniforms[row],
        draw=cast(Draw, pick.draw),
        drafts=policy.drafts,
        end=pick.end,
        rows=work.index[row],
    )
    work.rows[row] += made.count + 1
    step = _write(work, row, pick.end, call, *written)
    if pick.end is not None:  # it may have closed positions that are guessed at, or left one of them last
        rank = _rank(work, row)
        following = following.at((rank >= 0) & (rank < rank.amax(-1, keepdim=True)))
    guesses.token[row] = following.token
    return step, Guesses(guesses.token, following.law)


def _tossed(network: Network, work: _Work, row: Int[Tensor, " R"], policy: Rated, pick: Pick, call: int) -> Step:
    """One call at each row's own step: coins are tossed by what the network says."""
    step, draw = work.turn[row], cast(Draw, pick.draw)
    when, what = (_by_turn(work, row, step, purpose) for purpose in (PLAN, TOKEN))
    written = toss(network, work.tokens[row], policy, step, when, what, draw=draw, rows=work.index[row])
    work.rows[row] += 1
    return _write(work, row, None, call, *written)


def _rank(work: _Work, row: Int[Tensor, " R"]) -> Int[Tensor, "R L"]:
    """Each open position's place in the order of its plan, from 0 on; -1 elsewhere."""
    pending = _pending(work, row)
    return order_of(pending, work.plan[row].double()).masked_fill(~pending, -1)


def _write(
    work: _Work,
    row: Int[Tensor, " R"],
    end: int | None,
    call: int,
    slot: Int[Tensor, " N"],
    position: Int[Tensor, " N"],
    token: Int[Tensor, " N"],
    log_p: Float[Tensor, " N"],
) -> Step:
    """Write tokens, and what an end token implies."""
    if end is not None:
        slot, position, token, log_p = _to_the_end(work, row, end, slot, position, token, log_p)
    written, log_p, turn = row[slot], log_p.double(), work.turn[row]
    work.tokens[written, position] = token
    work.log_p[written, position] = log_p
    work.reveal[written, position] = turn[slot]
    work.turn[row] = turn + 1
    return Step(call, work.index[written], position, token, log_p.exp())


Written = tuple[Int[Tensor, " N"], Int[Tensor, " N"], Int[Tensor, " N"], Float[Tensor, " N"]]
"""(slot in the call, position, token, log-probability) of what is revealed."""


def _apart(
    network: Network,
    work: _Work,
    row: Int[Tensor, " R"],
    asked: Bool[Tensor, "R L"],
    u: Float[Tensor, " N"],
    chooser: Adaptive | None,
    pick: Pick,
) -> Written:
    """Tokens drawn at each position by itself, or the given text's."""
    slot, position = asked.nonzero(as_tuple=True)
    text = None if pick.text is None else pick.text[row][slot, position]

    def read(logits: Float[Tensor, "n V"], which: slice) -> tuple[Tensor, ...]:
        log_q = log_probabilities(logits)
        token = text[which].to(logits.device) if text is not None else cast(Draw, pick.draw)(logits, u[which])
        drawn = log_q.gather(-1, token[:, None]).squeeze(-1)
        return (token, drawn) if chooser is None else (token, drawn, chooser.score(log_q, drawn))

    token, log_p, *score = _ask(network, work, row, asked, read)
    if chooser is None:
        return slot, position, token, log_p
    chosen = _choose(work, row, chooser, score[0], asked)[slot, position]
    return slot[chosen], position[chosen], token[chosen], log_p[chosen]


def _together(
    network: Network,
    work: _Work,
    row: Int[Tensor, " R"],
    asked: Bool[Tensor, "R L"],
    u: Float[Tensor, " N"],
    chooser: Adaptive | None,
    pick: Pick,
    *,
    weigh: bool,
) -> Written:
    """Tokens of a row drawn together, so that the constraint can still be kept; `constraints.py` has the law.

    A chooser that ranks predictions chooses first; one that looks at drawn tokens gets a whole draft that fits.
    """
    slot, position = asked.nonzero(as_tuple=True)
    constraint, draw = cast(Constraint, pick.constraint), cast(Draw, pick.draw)
    looks = chooser is not None and chooser.looks_at_draws

    def read(logits: Float[Tensor, "n V"], which: slice) -> tuple[Tensor, ...]:
        log_q = log_probabilities(logits)
        mass, token = offer(logits, u[which], draw, constraint.automaton)
        log_p = log_q.gather(-1, token)
        if chooser is None:
            return mass, token, log_p
        drawn = log_p.unbind(-1) if looks else [log_p[:, 0]]
        return mass, token, log_p, torch.stack([chooser.score(log_q, one) for one in drawn], -1)

    v = _by_turn(work, row, work.turn[row], KIND)[asked]
    mass, token, log_p, *score = _ask(network, work, row, asked, read)
    if chooser is not None and not looks:
        chosen = _choose(work, row, chooser, score[0][:, 0], asked)[slot, position]
        slot, position, mass, token, log_p, v = (part[chosen] for part in (slot, position, mass, token, log_p, v))
    spans = [work.spans[i] for i in row.tolist()]
    which, weight = constraint.settle(work.tokens[row], spans, network.mask_id, slot, position, mass, v, draw)
    token, log_p = token.gather(-1, which).squeeze(-1), log_p.gather(-1, which).squeeze(-1)
    work.log_weight[row] += weight if weigh or (chooser is not None and not looks) else torch.nan
    if chooser is not None and looks:
        chosen = _choose(work, row, chooser, score[0].gather(-1, which).squeeze(-1), asked)[slot, position]
        slot, position, token, log_p = slot[chosen], position[chosen], token[chosen], log_p[chosen]
    return slot, position, token, log_p


def _ask(
    network: Network, work: _Work, row: Int[Tensor, " R"], asked: Bool[Tensor, "R L"], read: Then
) -> tuple[Tensor, ...]:
    """What `read` makes of the predictions at the asked positions, on the host."""
    slot, position = asked.nonzero(as_tuple=True)
    at = slot * work.tokens.shape[1] + position
    with torch.inference_mode():
        return tuple(part.cpu() for part in network(work.tokens[row], at, then=read, rows=work.index[row]))


def _by_turn(work: _Work, row: Int[Tensor, " R"], turn: Int[Tensor, " R"], purpose: int) -> Float[Tensor, "R L"]:
    """One uniform a position of each row, of that row's turn."""
    pairs, shape = zip(row.tolist(), turn.tolist(), strict=True), work.tokens.shape[1:]
    return torch.cat([keyed_uniforms(work.seed, [work.numbers[i]], shape, purpose, t) for i, t in pairs])


def _choose(
    work: _Work, row: Int[Tensor, " R"], chooser: Adaptive, score: Float[Tensor, " N"], asked: Bool[Tensor, "R L"]
) -> Bool[Tensor, "R L"]:
    """What the chooser reveals of the asked positions, told how far each row is in its stage."""
    plan, reveal = work.plan[row], work.reveal[row]
    stage = plan.masked_fill(~asked, -1).amax(-1, keepdim=True)
    began = reveal.masked_fill((plan < 0) | (plan >= stage), -1).amax(-1) + 1
    scores = torch.full(asked.shape, -torch.inf, dtype=torch.float64).masked_scatter(asked, score.double())
    return asked & chooser.choose(scores, asked, work.turn[row] - began, (plan == stage).sum(-1))


def _to_the_end(
    work: _Work,
    row: Int[Tensor, " R"],
    end: int,
    slot: Int[Tensor, " N"],
    position: Int[Tensor, " N"],
    token: Int[Tensor, " N"],
    log_p: Float[Tensor, " N"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is written, and end tokens behind every end token at the positions of its blank that are open after it."""
    tokens, open_ = work.tokens[row], _pending(work, row)
    tokens[slot, position], open_[slot, position] = token, False
    more, where = (behind_end(tokens, work.plan[row] >= 0, end) & open_).nonzero(as_tuple=True)
    return (
        torch.cat([slot, more]),
        torch.cat([position, where]),
        torch.cat([token, torch.full_like(where, end)]),
        torch.cat([log_p, log_p.new_zeros(len(where))]),
    )
