"""Constraints: every sample fits an automaton, by a law that can be stated.

At each reveal let A be the positions revealed, q_i the network's predictions there (after temperature, bias and
filters), and x_A the tokens written. They are drawn jointly from

    P(x_A)  =  prod_{i in A} q_i(x_i) 1[some filling of the positions still masked fits] / Z,

so what is written never leads into a dead end, and what fits is weighed as the network weighs it: the law is the
unconstrained one, renormalised at each reveal. Positions that stay masked are existential: the automaton passes them
to the SET of states that some token leads to. A sum over the sets that x_A can lead to gives Z exactly, in log space;
of each prediction the host sees the mass of every class of tokens, never a vector over the vocabulary.

This is not p(x | fits). The product of the Z on the way is the importance weight between the two, for

    p(x, plan) 1[x fits]  =  P(x, plan) prod_steps Z,

and `sample_matching` draws from p(x | fits) itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.sampling.automaton import DEAD, OPEN, Array, Automaton, distinct
from unmask.sampling.drawing import Draw

CELLS = 1 << 24  # sets times classes of one position: 128 MB


@dataclass(frozen=True, eq=False)
class Constraint:
    """What an automaton reads of a canvas must fit it.

    It reads from the first open position to the last, given tokens between them included; or `span`, from its first
    position up to, but not including, its second.
    """

    automaton: Automaton
    span: tuple[int, int] | None = None
    abandon: bool = False
    """Draw freely instead, and leave a sequence, masks in it, when nothing fits it any more (`sample_matching`)."""

    def spans(self, tokens: Int[Tensor, "B L"], vocab: int, mask_id: int) -> list[tuple[int, int]]:
        """What is read of each canvas.

        Raises ValueError for an automaton over other tokens, a span outside the canvas, or a canvas that nothing fits.
        """
        if len(self.automaton.class_of) != vocab:
            what = f"the constraint is over {len(self.automaton.class_of)} tokens, the network over {vocab}"
            raise ValueError(f"{what}: build it with the network's own tokenizer")
        if self.span is not None and not 0 <= self.span[0] < self.span[1] <= tokens.shape[-1]:
            raise ValueError(f"span {self.span} is not in a canvas of {tokens.shape[-1]} tokens: positions begin at 0")
        spans = []
        for row in tokens:
            open_ = (row == mask_id).nonzero().squeeze(-1).tolist()
            spans.append(self.span or ((open_[0], open_[-1] + 1) if open_ else (0, 0)))
            read = self.classes(row, spans[-1], mask_id)
            if read and not self.automaton.accepts(read):
                raise ValueError(self._misfit(read))
        return spans

    def classes(self, row: Int[Tensor, " L"], span: tuple[int, int], mask_id: int) -> list[int]:
        """The class of each token of a span, OPEN where it is masked."""
        class_of = self.automaton.class_of
        return [OPEN if token == mask_id else int(class_of[token]) for token in row[slice(*span)].tolist()]

    def alive(self, tokens: Int[Tensor, "B L"], spans: Sequence[tuple[int, int]], mask_id: int) -> Bool[Tensor, " B"]:
        """Whether some filling of the masked positions of each row fits."""
        rows = zip(tokens, spans, strict=True)
        return torch.tensor([self.automaton.accepts(self.classes(row, span, mask_id)) for row, span in rows])

    def settle(
        self,
        tokens: Int[Tensor, "R L"],
        spans: Sequence[tuple[int, int]],
        mask_id: int,
        slot: Int[Tensor, " N"],
        position: Int[Tensor, " N"],
        mass: Float[Tensor, "N KC"],
        v: Float[Tensor, " N"],
        draw: Draw,
    ) -> tuple[Int[Tensor, "N 1"], Float[Tensor, " R"]]:
        """(which offer each position takes, log Z of each row): the offers of a row's positions are taken together.

        Positions outside the span take offers by themselves. Where the filters of `draw` leave nothing that fits, the
        row takes from the law without them, and log Z is -inf. Raises ValueError where that leaves nothing either.
        """
        which, weight = np.zeros(len(slot), dtype=np.int64), np.zeros(len(tokens))
        hard, laws = draw.temperature == 0, mass.numpy().reshape(len(slot), -1, self.automaton.table.shape[1])
        places, u = position.numpy(), v.numpy()
        rows = np.searchsorted(slot.numpy(), np.arange(len(tokens) + 1))  # the positions come row by row
        for r, (row, (start, stop)) in enumerate(zip(tokens, spans, strict=True)):
            here = np.arange(rows[r], rows[r + 1])
            within = (places[here] >= start) & (places[here] < stop)
            for n in here[~within]:
                which[n] = _draw(laws[n, 0], u[n], hard)
            if len(asked := here[within]):
                read = self.classes(row, (start, stop), mask_id)
                which[asked], weight[r] = self._offers(read, places[asked] - start, laws[asked], u[asked], hard)
        return torch.from_numpy(which)[:, None], torch.from_numpy(weight)

    def _offers(
        self, read: list[int], asked: Int[Array, " A"], laws: Float[Array, "A K C"], u: Float[Array, " A"], hard: bool
    ) -> tuple[Int[Array, " A"], float]:
        """By the first law under which something fits; log Z is that of the first of all."""
        for k in range(laws.shape[1]):
            which, weight = joint(self.automaton, read, asked.tolist(), laws[:, k], u, hard=hard)
            if np.isfinite(weight):
                never = k > 0 or (hard and weight < 0)  # what the free law would not write
                return which + k * laws.shape[2], -np.inf if never else weight
        raise ValueError(
            "the network gives no probability to any text that fits the constraint here: allow the tokens that it needs"
        )

    def _misfit(self, read: list[int]) -> str:
        room, given = len(read), sum(token != OPEN for token in read)
        lengths = self.automaton.lengths(room + 1000)
        if room in lengths:
            return f"the {given} given tokens among the {room} that the constraint reads leave no text that fits"
        below = [length for length in lengths if length < room]
        above = [length for length in lengths if length > room]
        nearest = " or ".join(f"{length}" for length in (*below[-1:], *above[:1]))
        return f"no text of {room} tokens fits the constraint: it has place for {nearest or 'more than that'}"


def offer(
    logits: Float[Tensor, "n V"], u: Float[Tensor, " n"], draw: Draw, automaton: Automaton
) -> tuple[Float[Tensor, "n KC"], Int[Tensor, "n KC"]]:
    """What a prediction offers: each class's log mass, and one token drawn within it by inverse CDF from u.

    K = 2 where `draw` filters: the law with its filters, then the one without. At temperature 0 a class offers its most
    probable token, and that one's log-probability for a mass.
    """
    hard = draw.temperature == 0
    free = replace(draw, temperature=1.0 if hard else draw.temperature, top_k=None, top_p=None)
    laws = [free] if hard or draw == free else [draw, free]
    parts = [_by_class(law.adjust(logits), u, automaton, hard) for law in laws]
    mass, token = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    return mass, token


def _by_class(
    logits: Float[Tensor, "n V"], u: Float[Tensor, " n"], automaton: Automaton, hard: bool
) -> tuple[Float[Tensor, "n C"], Int[Tensor, "n C"]]:
    """(log mass up to a constant, token) of each class.

    Weights are relative to the largest of their class, so that the mass of a class that the network thinks impossible
    is as precise as any other.
    """
    order = torch.from_numpy(automaton.order).to(logits.device)
    bounds = torch.from_numpy(automaton.bounds).to(logits.device)
    which = torch.arange(len(bounds) - 1, device=logits.device).repeat_interleave(bounds.diff())
    logits = logits.index_select(-1, order)
    top = logits.new_full((len(logits), len(bounds) - 1), -torch.inf)
    top = top.scatter_reduce(1, which.expand_as(logits), logits, "amax")
    weight = logits - top.masked_fill(top.isneginf(), 0).index_select(-1, which)
    if hard:
        weight, u = weight == 0, torch.zeros_like(u)  # the first of the most probable
    else:
        weight = weight.exp_()
    cdf = torch.nn.functional.pad(weight.cumsum(-1, dtype=logits.dtype), (1, 0))
    start, stop = cdf[:, bounds[:-1]], cdf[:, bounds[1:]]
    goal = start + u.to(cdf.device, cdf.dtype)[:, None] * (stop - start)
    goal = torch.minimum(goal, stop.nextafter(torch.zeros_like(stop)))  # below the end even where rounding reaches it
    drawn = torch.searchsorted(cdf[:, 1:].contiguous(), goal, right=True).clamp(max=len(order) - 1)
    # where a class has no mass, top says so
    return top if hard else top + (stop - start).clamp(min=1).log(), order[drawn]


def joint(
    automaton: Automaton,
    read: Sequence[int],
    asked: Sequence[int],
    mass: Float[Array, "A C"],
    u: Float[Array, " A"],
    *,
    hard: bool = False,
) -> tuple[Int[Array, " A"], float]:
    """(classes, log Z): one class for each asked place of `read`, drawn together, one uniform each.

    `read` are the classes that the automaton reads, OPEN where masked; `asked` rise. P(classes) is the product of
    their masses over all that leave a filling of the other open places. `hard` takes the most probable assignment,
    and the largest product for the sum. log Z is -inf where no assignment has mass. Exact: sets of states are summed
    over, backward; then classes are drawn, forward. Raises ValueError where too many sets can be reached.
    """
    layers = _layers(automaton, read, asked)
    message = np.zeros(1)  # log of the mass with which the rest can be written, from each set
    messages = [message]
    for branch, weight in zip(reversed(layers), mass[::-1], strict=True):
        message = _log_sum(weight + np.append(message, -np.inf)[branch], hard)
        messages.append(message)
    if not np.isfinite(message[0]):
        return np.zeros(len(asked), dtype=np.int64), -np.inf
    here, drawn = 0, []
    for branch, weight, after, uniform in zip(layers, mass, messages[-2::-1], u, strict=True):
        value = weight + np.append(after, -np.inf)[branch[here]]
        drawn.append(_draw(value, uniform, hard))
        here = branch[here, drawn[-1]]
    total = sum(float(_log_sum(weight[None], hard)[0]) for weight in mass)
    return np.array(drawn, dtype=np.int64), float(message[0]) - total


def _layers(automaton: Automaton, read: Sequence[int], asked: Sequence[int]) -> list[Int[Array, "K C"]]:
    """For each asked place the set, by number, that each set reaches just before the next one, -1 where none fits.

    Sets hold only states from which the rest can still be accepted, so that sets with one future are more often one.
    """
    behind, table = automaton.backward(read), automaton.table

    def walk(states: int, start: int, stop: int) -> int:
        for token in read[start:stop]:
            states = automaton.step(states, token)
        return states & behind[stop]

    sets, layers = automaton.packed([walk(automaton.start, 0, asked[0])]), []
    for i, place in enumerate(asked):
        last = i + 1 == len(asked)
        if len(sets) * table.shape[1] > CELLS:
            raise ValueError(
                f"the constraint leaves {len(sets):,} sets of states between two of {len(asked)} tokens that are drawn "
                "together: reveal fewer in one step, or from the left"
            )
        masks = automaton.unpacked(sets)
        alive = np.flatnonzero(masks.any(0))
        # where one state leads; behind the last asked place nothing tells sets apart but whether they fit
        after = np.zeros((len(table), 1 if last else sets.shape[1]), dtype=np.uint64)
        for state in set(table[alive].ravel().tolist()) - {DEAD}:
            reached = walk(1 << state, place + 1, place + 1 if last else asked[i + 1])
            after[state] = reached > 0 if last else automaton.packed([reached])
        # classes that lead every state here to the same are one
        first, which = distinct(after[table[alive]].swapaxes(0, 1))
        ways = after[table[np.ix_(alive, first)]].reshape(len(alive), len(first) * after.shape[1])
        ends = np.stack([np.bitwise_or.reduce(ways[mask], axis=0) for mask in masks[:, alive]])
        ends = ends.reshape(-1, after.shape[1])
        first, number = distinct(ends)
        live = ends[first].any(-1)
        number = np.where(live, live.cumsum() - 1, -1)[number]
        layers.append(number.reshape(len(sets), -1)[:, which])
        sets = ends[first[live]] if live.any() else np.zeros_like(after[:1])
    return layers


def _log_sum(value: Float[Array, "K C"], hard: bool) -> Float[Array, " K"]:
    top = value.max(-1)
    if hard:
        return top
    shift = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return shift + np.log(np.exp(value - shift[:, None]).sum(-1))


def _draw(value: Float[Array, " C"], u: float, hard: bool) -> int:
    """A class in proportion to exp(value), by inverse CDF; the largest if `hard`."""
    if hard:
        return int(value.argmax())
    cdf = np.exp(value - value.max()).cumsum()
    return int(np.searchsorted(cdf, min(u * cdf[-1], np.nextafter(cdf[-1], 0)), side="right"))
