"""Laws of decoders, stated so that every branch can be followed.

A decoder is a Markov chain. Its state is a canvas and what the decoder remembers (a step, a turn, nothing); a move
draws tokens at some open positions from the network's prediction, each independently, and writes them. A law lists
the moves out of a state with their chances, and `follow` pushes the whole mass along them:

    P(next) = sum over states P(state) P(state -> next),    NFE = moves that write a token.

The laws are the published steps, one after the other; of independent steps, what they come to, summed over the steps
at which it may. The package's policies draw plans and leave empty steps out: that both come to the same is what an
audit shows. A new law is a frozen dataclass with `moves`, four to eight lines.
"""

import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from unmask.draws import log_probabilities
from unmask.network import Network, evaluations
from unmask.sampling import Draw

Canvas = tuple[int, ...]
Positions = tuple[int, ...]
Move = tuple[float, Canvas, Any]
"""(chance, canvas after it, memory after it: None or anything hashable)."""


class Law(Protocol):
    """A decoder's law. One that may turn tokens into masks again has `erases = True`, and ends where it has no moves;
    one that states no number of evaluations has `counts = False`.
    """

    def moves(self, at: "At") -> Iterable[Move]:
        """The moves out of a state; asked only while a position is open (or the law erases)."""
        ...


class Predictions:
    """What a network says on each canvas, remembered."""

    def __init__(self, network: Network, draw: Draw) -> None:
        self.network, self.draw = network, draw
        self.mask_id = network.mask_id
        self.on = cache(self._on)
        self.mass = cache(self._mass)
        self.writings = cache(self._writings)

    def _on(self, canvas: Canvas) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
        """(log q, which decoders rank by; p, the law of `draw`, which tokens are drawn from) at each open position."""
        at = [i for i, token in enumerate(canvas) if token == self.mask_id]
        rows = torch.zeros(1, dtype=torch.long)
        logits = cast(Tensor, self.network(torch.tensor([canvas]), torch.tensor(at, dtype=torch.long), rows=rows))
        log_q, p = log_probabilities(logits).tolist(), self.draw.law(logits).tolist()
        return dict(zip(at, log_q, strict=True)), dict(zip(at, p, strict=True))

    def _mass(self, canvas: Canvas) -> dict[int, float]:
        """The sum of exp(logits) at each open position: 1 for a network that predicts laws."""
        at = [i for i, token in enumerate(canvas) if token == self.mask_id]
        if self.network.normalised:
            return dict.fromkeys(at, 1.0)
        logits = cast(Tensor, self.network(torch.tensor([canvas]), torch.tensor(at, dtype=torch.long)))
        return dict(zip(at, logits.double().logsumexp(-1).exp().tolist(), strict=True))

    def _writings(self, canvas: Canvas, positions: Positions) -> tuple[tuple[float, Canvas], ...]:
        """Every way to write the positions, and its chance: the product of their predictions."""
        p = self.on(canvas)[1] if positions else {}
        choices = [[(chance, token) for token, chance in enumerate(p[i]) if chance > 0] for i in positions]
        written = []
        for tokens in itertools.product(*choices):
            new = list(canvas)
            for i, (_, token) in zip(positions, tokens, strict=True):
                new[i] = token
            written.append((math.prod(chance for chance, _ in tokens), tuple(new)))
        return tuple(written)


@dataclass(frozen=True)
class At:
    """Where a decoder stands."""

    canvas: Canvas
    open: Positions
    """The positions that may be written now."""
    memory: Any
    """What the last move left, None at the start."""
    predictions: Predictions

    @property
    def log_q(self) -> Mapping[int, Sequence[float]]:
        """The network's log-probabilities of each token at each open position."""
        return self.predictions.on(self.canvas)[0]

    def writing(self, positions: Iterable[int]) -> tuple[tuple[float, Canvas], ...]:
        """(chance, canvas) of every way to write these positions, drawn independently of each other."""
        return self.predictions.writings(self.canvas, tuple(positions))

    def keeping(self, written: Canvas, positions: Iterable[int]) -> Canvas:
        """This canvas with only these positions taken from one that has more written."""
        keep = set(positions)
        return tuple(written[i] if i in keep else token for i, token in enumerate(self.canvas))

    def erasing(self, canvas: Canvas, positions: Iterable[int]) -> Canvas:
        """A canvas with masks at these positions."""
        gone = set(positions)
        return tuple(self.predictions.mask_id if i in gone else token for i, token in enumerate(canvas))


@dataclass(frozen=True)
class Truth:
    """What a law comes to on one canvas of one network."""

    sequences: Mapping[Canvas, float]
    """P(finished sequence)."""
    nfe: float
    """E[NFE]."""
    variance: float
    """Var[NFE]."""
    most: int
    """The largest NFE."""


def follow(law: Law, network: Network, canvas: Sequence[int], draw: Draw | None = None) -> Truth:
    """The exact law of the finished sequence, and the moments of the number of evaluations.

    Raises ValueError for a law whose chances do not add up, or that leaves a mask.
    """
    predictions, erases, mask_id = Predictions(network, draw or Draw()), may_erase(law), network.mask_id
    nothing = (0.0, 0.0, 0.0, 0)
    mass = {(tuple(canvas), None): (1.0, 0.0, 0.0, 0)}  # P, E[NFE; here], E[NFE^2; here], largest NFE
    ended = defaultdict(lambda: nothing)
    while mass:
        after = defaultdict(lambda: nothing)
        for (here, memory), (p, first, second, most) in mass.items():
            open_ = tuple(i for i, token in enumerate(here) if token == mask_id)
            moves = law.moves(At(here, open_, memory, predictions)) if open_ or erases else ()
            total = 0.0
            for chance, there, remembered in moves:
                if chance < 0:
                    raise ValueError(f"{law}: a move from {here} has the chance {chance}, below 0")
                total += chance
                runs, old = _writes(here, there, mask_id), after[there, remembered]
                after[there, remembered] = (
                    old[0] + chance * p,
                    old[1] + chance * (first + runs * p),
                    old[2] + chance * (second + runs * (2 * first + p)),
                    max(old[3], most + runs),
                )
            if total == 0:
                old = ended[here]
                ended[here] = (old[0] + p, old[1] + first, old[2] + second, max(old[3], most))
            elif not math.isclose(total, 1, abs_tol=1e-9):
                raise ValueError(f"{law}: the chances of its moves from {here} add up to {total}, not to 1")
        mass = after
    left = next((sequence for sequence in ended if mask_id in sequence), None)
    if left is not None:
        raise ValueError(f"{law}: it ends at {left}, with a mask left")
    each = evaluations(network)
    mean, square = (sum(moments[k] for moments in ended.values()) for k in (1, 2))
    most = max(moments[3] for moments in ended.values())
    sequences = {sequence: moments[0] for sequence, moments in ended.items()}
    return Truth(sequences, each * mean, each**2 * max(square - mean**2, 0.0), each * most)


def may_erase(law: Law) -> bool:
    """Whether a law may turn tokens into masks again."""
    return getattr(law, "erases", False)


@lru_cache(maxsize=1 << 16)
def _writes(before: Canvas, after: Canvas, mask_id: int) -> bool:
    return before != after and any(a == mask_id != b for a, b in zip(before, after, strict=True))


@dataclass(frozen=True)
class RandomOrderLaw:
    """`tokens` open positions a step, every set of them equally likely."""

    tokens: int = 1

    def moves(self, at: At) -> Iterator[Move]:
        sets = list(itertools.combinations(at.open, min(self.tokens, len(at.open))))
        for positions in sets:
            for p, canvas in at.writing(positions):
                yield p / len(sets), canvas, None

    def cost(self, open_: int) -> tuple[float, float]:
        """(mean, variance) of the NFE in closed form."""
        return math.ceil(open_ / self.tokens), 0.0


@dataclass(frozen=True)
class OrderLaw:
    """`tokens` a step in this order of positions (negative ones count from the right), the others from the left."""

    order: tuple[int, ...] = ()
    tokens: int = 1

    def moves(self, at: At) -> Iterator[Move]:
        listed = [i % len(at.canvas) for i in self.order]
        rest = [i for i in at.open if i not in listed]
        first = [i for i in (*listed, *rest) if i in at.open][: self.tokens]
        for p, canvas in at.writing(first):
            yield p, canvas, None

    cost = RandomOrderLaw.cost


AT_ONCE = OrderLaw(tokens=sys.maxsize)
"""All that may be written, in one step."""


def coins(heads: Mapping[int, float]) -> Iterator[tuple[float, Positions]]:
    """(chance, positions that show heads) of a coin for each position, given its chance of heads."""
    sides = [((1 - p, ()), (p, (i,))) for i, p in heads.items()]
    for tossed in itertools.product(*sides):
        chance = math.prod(p for p, _ in tossed)
        if chance:
            yield chance, tuple(i for _, shown in tossed for i in shown)


def by_stages(self: "BlocksLaw | IndependentLaw | PlansLaw", at: At) -> Iterator[Move]:
    """Stage after stage of a drawn plan, each until `inside` has finished with it."""
    starts = [(1.0, at.memory)] if at.memory else [(p, (plan, -1, None)) for p, plan in self.plans(at)]
    for p, (plan, stage, memory) in starts:
        here = tuple(i for i in at.open if plan[i] == stage)
        going = stage >= 0 and (here or may_erase(self))
        moves = list(self.inside.moves(replace(at, open=here, memory=memory))) if going else []
        for chance, canvas, inner in moves:
            yield p * chance, canvas, (plan, stage, inner)
        later = [number for number in plan if number > stage]
        if not moves and later:
            yield p, at.canvas, (plan, min(later), None)


@dataclass(frozen=True)
class IndependentLaw:
    """At step s each open position is revealed with chance `hazards[s]`, whatever the others do: tau-leaping.

    Which positions are revealed together, and in which order, is all that tells: n of them can be parted in few ways
    (75 for four), however many steps there are. The last hazard must be 1.
    """

    hazards: tuple[float, ...]
    inside = AT_ONCE

    def __post_init__(self) -> None:
        """Raises ValueError for hazards that are no chances, or that leave a mask."""
        wrong = next((hazard for hazard in self.hazards if not 0 <= hazard <= 1), None)
        if wrong is not None:
            raise ValueError(f"hazard {wrong} is no chance: each must be within 0 and 1")
        if not self.hazards or self.hazards[-1] != 1:
            raise ValueError(f"hazards {self.hazards[-1:]} at the last step leave masks: the last must be 1")

    def plans(self, at: At) -> Iterator[tuple[float, tuple[int, ...]]]:
        """Every way to reveal the open positions in stages, with the chance of all steps that come to it."""
        n = len(at.open)
        chances = cache(self._chance)
        for stages in itertools.product(range(n), repeat=n):
            sizes = tuple(stages.count(stage) for stage in range(max(stages) + 1))
            if 0 not in sizes and (chance := chances(sizes)):
                stage = dict(zip(at.open, stages, strict=True))
                yield chance, tuple(stage.get(i, -1) for i in range(len(at.canvas)))

    moves = by_stages

    def _chance(self, sizes: Sequence[int]) -> float:
        """Sum over steps s_1 < s_2 < ... of the product of q_s^size, stage by stage."""
        q = torch.tensor(self.shares(), dtype=torch.float64)
        now = ended = torch.ones_like(q)  # before each step, every stage so far is over
        for size in sizes:
            now = q**size * ended
            ended = now.cumsum(0) - now
        return float(now.sum())

    def shares(self) -> list[float]:
        """P(a position is revealed at step s) = h_s (1 - h_0) ... (1 - h_(s-1))."""
        masked = itertools.accumulate((1 - hazard for hazard in self.hazards), initial=1.0, func=lambda a, b: a * b)
        return [left * hazard for left, hazard in zip(masked, self.hazards, strict=False)]

    def cost(self, open_: int) -> tuple[float, float]:
        """(mean, variance) of the NFE: of the number of steps that reveal something.

        e_s = 1 - (1 - q_s)^n; mean sum e_s, variance sum e_s (1 - e_s) + sum over s != r of
        (1 - q_s - q_r)^n - (1 - q_s)^n (1 - q_r)^n.
        """
        q = torch.tensor(self.shares(), dtype=torch.float64)
        empty = (1 - q) ** open_
        pairs = sum(float(((1 - q - a).clamp(min=0) ** open_ - empty * (1 - a) ** open_).sum()) for a in q)
        same = float(((1 - 2 * q).clamp(min=0) ** open_ - empty**2).sum())
        return float((1 - empty).sum()), float((empty * (1 - empty)).sum()) + pairs - same


@dataclass(frozen=True)
class RatedLaw:
    """At step s an open position is revealed with chance min(1, hazards[s] Z), Z the sum of the network's exponentials
    there; each step is an evaluation. The last reveals what is left.
    """

    hazards: tuple[float, ...]
    """Of any size: it is their product with Z that is cut."""
    counts = False  # an evaluation that writes nothing is one all the same

    def __post_init__(self) -> None:
        """Raises ValueError for no step, and for a hazard below 0."""
        if not self.hazards or not all(hazard >= 0 for hazard in self.hazards):
            raise ValueError(f"hazards {self.hazards}: give at least one, each 0 or more")

    def moves(self, at: At) -> Iterator[Move]:
        step = at.memory or 0
        last = step == len(self.hazards) - 1
        heads = {i: 1.0 if last else min(1.0, self.hazards[step] * at.predictions.mass(at.canvas)[i]) for i in at.open}
        for chance, positions in coins(heads):
            for p, canvas in at.writing(positions):
                yield chance * p, canvas, step + 1


Score = Callable[[Sequence[float], int], float]
"""(log-probabilities at a position, the token drawn there) -> what positions are ranked by."""
Count = Callable[[Sequence[float], int, int], int]
"""(scores, best first; turn; positions open at the first turn) -> how many of the best are revealed."""


@dataclass(frozen=True)
class RankedLaw:
    """A token is drawn at each open position, and those of the best positions are kept; on a tie the left one first.

    A score that does not look at the token gives an order that is a function of the visible tokens.
    """

    score: Score
    count: Count

    def moves(self, at: At) -> Iterator[Move]:
        turn, total = at.memory or (0, len(at.open))
        for p, drawn in at.writing(at.open):
            scores = {i: self.score(at.log_q[i], drawn[i]) for i in at.open}
            ranked = sorted(at.open, key=lambda i: -scores[i])
            kept = ranked[: self.count([scores[i] for i in ranked], turn, total)]
            yield p, at.keeping(drawn, kept), (turn + 1, total)


@dataclass(frozen=True)
class CoinsLaw:
    """At each step coins decide which open positions are written and which written ones are erased after it (ReMDM).

    `chance(step, open positions, {written position: its probability when it was written})` is each one's chance to
    change; what was given has none. Without `remembers` the probabilities are not kept, and are told as 1.
    """

    steps: int
    chance: Callable[[int, Positions, Mapping[int, float]], Mapping[int, float]]
    remembers: bool = False
    erases = True

    def moves(self, at: At) -> Iterator[Move]:
        step, sure = at.memory or (0, ())
        for p, heads in coins(self.chance(step, at.open, dict(sure))) if step < self.steps else ():
            stay = tuple((i, q) for i, q in sure if i not in heads)
            write = [i for i in heads if i in at.open]
            for q, canvas in at.writing(write):
                new = tuple((i, math.exp(at.log_q[i][canvas[i]]) if self.remembers else 1.0) for i in write)
                yield p * q, at.erasing(canvas, set(heads) - set(write)), (step + 1, tuple(sorted(stay + new)))


@dataclass(frozen=True)
class BlocksLaw:
    """Blocks of `size` open positions from the left, each finished by `inside` before the next begins."""

    size: int
    inside: Law

    def plans(self, at: At) -> Iterator[tuple[float, tuple[int, ...]]]:
        """The one plan: the block of each open position."""
        block = {i: number // self.size for number, i in enumerate(at.open)}
        yield 1.0, tuple(block.get(i, -1) for i in range(len(at.canvas)))

    moves = by_stages

    erases = property(lambda self: may_erase(self.inside))


@dataclass(frozen=True)
class PlansLaw:
    """Plans, listed with their chances (a stage for each position); within a stage `inside`, by default all at once."""

    listed: tuple[tuple[float, tuple[int, ...]], ...]
    inside: Law = AT_ONCE

    def plans(self, at: At) -> Iterator[tuple[float, tuple[int, ...]]]:
        """Those listed."""
        yield from self.listed

    moves = by_stages
    erases = property(lambda self: may_erase(self.inside))


@dataclass(frozen=True)
class TokensOnly:
    """The tokens follow `inside`; how many evaluations that takes is not stated (speculative decoding)."""

    inside: Law
    counts = False
    erases = property(lambda self: may_erase(self.inside))

    def moves(self, at: At) -> Iterable[Move]:
        return self.inside.moves(at)
