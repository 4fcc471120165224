"""The runner: every row of a batch at its own next evaluation, output layer only where a token is wanted."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.draws import require_batch
from unmask.network import Network, evaluations, remembering
from unmask.sampling.blocks import inside_of
from unmask.sampling.constraints import Constraint
from unmask.sampling.drawing import Draw
from unmask.sampling.planned import Policy, RandomOrder
from unmask.sampling.rated import Rated
from unmask.sampling.speculative import Speculative
from unmask.sampling.turns import chooser_of, revising_of, turn_of
from unmask.sampling.work import Pick, Step, Work, prepared


@dataclass(frozen=True)
class Samples:
    """Finished sequences, and what each cost: a tensor each, for canvases may be of several lengths.

    `-confidence[i].log().sum()` is the exact -log p, in nats, of the i-th sequence's text in the order in which it was
    written, without what was known of a constraint, and of a policy that looks at drawn tokens or erases them.
    `unmask.ordered_log_likelihood(network, tokens[i][None], reveal[i][None])` computes it anew where the tokens of one
    call were drawn independently of each other: not of Speculative, whose calls judge one after the other, nor where an
    end token (`end`) wrote others.
    """

    tokens: list[Int[Tensor, " L"]]
    """The canvases with their open positions filled."""
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
    rows: Sequence[int] | None = None,
    batch: int = 16,
    end: int | None = None,
    constraint: Constraint | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Samples:
    """Fill the open positions of every canvas by a policy (default RandomOrder(): exact for the random-order law).

    `sequences` number the canvases (default 0, 1, ...): a sequence is the same under (seed, number) in whatever
    batch it runs. `rows` say which sequence of a wrapper's (`Guided`'s conditions) each canvas is (default 0, 1, ...).
    `on_step` is told of each call. With an `end` token, once it is written in a blank (a run of open
    positions) what is still open behind it there is written as end tokens too, without a call: exact from left to
    right and for blocks of one token, and otherwise for a network that is certain of it. With a `constraint` every
    sample fits it, by the law that constraints.py states.

    Raises ValueError for an empty canvas, a policy that a causal network or an end token cannot go with, or a canvas
    that nothing fits.
    """
    options = {"draw": draw, "seed": seed, "sequences": sequences, "rows": rows, "batch": batch, "end": end}
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
    rows: Sequence[int] | None = None,
    batch: int = 16,
    end: int | None = None,
    constraint: Constraint | None = None,
) -> Generator[Step, None, Samples]:
    """`sample` as an iterator: a `Step` a network call, as it happens; the generator's return value is the `Samples`.

    Arguments are checked at once, before the first step is asked for.
    """
    if isinstance(policy, type):
        raise ValueError(f"a policy is an instance: {policy.__name__}(), not the class itself")
    policy, pick = policy or RandomOrder(), Pick(draw or Draw(), end=end, constraint=constraint)
    numbers = list(range(len(canvases))) if sequences is None else list(sequences)
    rows = list(range(len(canvases))) if rows is None else list(rows)
    if not len(numbers) == len(rows) == len(canvases):
        what = f"{len(numbers)} sequence numbers and {len(rows)} rows"
        raise ValueError(f"{what} for {len(canvases)} canvases: give one each")
    require_batch(batch)
    if end is not None and not 0 <= end < network.vocab:
        raise ValueError(f"end token {end} is not in the network's vocabulary of {network.vocab}")
    if end is not None and revising_of(policy) is not None:
        raise ValueError(
            "Remasking may erase an end token that others were written for: leave out --until-end (`end`), or cut after"
        )
    if end is not None and constraint is not None and constraint.span is not None:
        raise ValueError("an end token may write into a constraint's span from before it: leave out one of the two")
    if constraint is not None and isinstance(policy, Speculative):
        raise ValueError("Speculative guesses tokens one by one, a constraint ties them: use its inside policy alone")
    if isinstance(policy, Rated) and (end is not None or constraint is not None):
        raise ValueError("Rated reveals by the network's own rates: leave out the end token and the constraint")
    work = [
        prepared(network, canvases, index, policy, seed, numbers, rows, constraint) for index in _same_length(canvases)
    ]
    if end is not None and constraint is not None and not (constraint.abandon or constraint.automaton.closed_by(end)):
        what = f"behind the end token {end} the constraint allows other than end tokens"
        raise ValueError(f"{what}: build it with end=True, or leave `end` out")
    return _stream(network, work, policy, pick, batch)


def _stream(
    network: Network, work: list["Work"], policy: Policy, pick: "Pick", batch: int
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
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Float[Tensor, " S"], Int[Tensor, " S"]]:
    """(-log p in nats, evaluations) of each text under the decoder that would write it: exact.

    The policy runs as it would, the text's own tokens are written where it chooses, and their log-probabilities
    add up. A policy that draws its plan has this likelihood given that plan. Raises ValueError for a policy whose
    order depends on the tokens drawn: the text does not tell which other tokens were drawn on the way.
    `progress` is told of (tokens written, tokens in all).
    """
    require_batch(batch)
    policy = policy.inside if isinstance(policy, Speculative) else policy
    if isinstance(policy, Rated):
        raise ValueError("Rated has no likelihood in closed form: take the bound of its network, `log_likelihood`")
    chooser = chooser_of(policy)
    if revising_of(policy) is not None or (chooser is not None and chooser.looks_at_draws):
        raise ValueError(
            f"{type(inside_of(policy)).__name__} has no likelihood: what it writes depends on tokens drawn on the way, "
            "which the text does not tell; use Confidence, Margin or Entropy"
        )
    numbers = list(range(len(x_0))) if sequences is None else list(sequences)
    canvas = x_0.masked_fill(maskable, network.mask_id)
    every = list(range(len(x_0)))
    work = prepared(network, canvas, every, policy, seed, numbers, every)
    done, total = 0, int(maskable.sum())
    for step in _run(network, work, policy, Pick(None, x_0), batch, 0):
        done += len(step.position)
        if progress is not None:
            progress(done, total)
    return -work.log_p.sum(-1), evaluations(network) * work.rows


def _run(network: Network, work: Work, policy: Policy, pick: Pick, batch: int, call: int) -> Iterator[Step]:
    """Every row at its own next evaluation; a finished row's slot goes to the next sequence, so calls stay full."""
    network = remembering(network, min(batch, len(work.tokens)), work.tokens.shape[1])
    turn = turn_of(network, work, policy, pick)
    waiting = (work.plan >= 0).any(-1).nonzero().squeeze(-1)
    row, asked = waiting[:0], torch.empty((0, work.plan.shape[1]), dtype=torch.bool)
    while True:
        new, waiting = waiting[: batch - len(row)], waiting[batch - len(row) :]
        if len(new):
            row, asked = torch.cat([row, new]), torch.cat([asked, turn.ask(new)])
        if not len(row):
            return
        yield turn.take(row, asked, call)
        call += 1
        asked = turn.ask(row)
        live = asked.any(-1)
        row, asked = row[live], asked[live]


def _same_length(canvases: Sequence[Tensor] | Tensor) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for i, canvas in enumerate(canvases):
        if not isinstance(canvas, Tensor) or canvas.dim() != 1 or not len(canvas):
            what = f"tensor of shape {tuple(canvas.shape)}" if isinstance(canvas, Tensor) else type(canvas).__name__
            raise ValueError(f"a canvas is a tensor [L] of at least one token, not a {what}")
        groups.setdefault(len(canvas), []).append(i)
    return [groups[length] for length in sorted(groups)]
