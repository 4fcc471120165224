"""The random-order bound by Monte Carlo, with the least variance that could be found (docs/evaluation.md).

E sum_m w_m sum_{i masked by m} -log q(x^i | visible): a draw m is a level and a set of masked positions. Any coupling
of draws keeps the mean as long as each draw alone follows its law. Four are used, all within a replicate, so that the
spread of the replicates is an honest error (their controls tie them to second order, which tells in designs of a few
draws; docs/theory.md):

levels     antithetic pairs in equal strata (`corruption.antithetic`).
positions  dealt like cards: a draw masks the least masked positions so far, ties at random (`deal`). The rule
           treats all positions alike, so the hand of each draw is still uniform among the sets of its size.
control    each position's cost as the other replicates saw it, linear in how much is masked and in how many of its
           neighbours are, times how much too often this one masked it, at which levels and beside what
           (`controlled`): two independent factors, one of mean 0. For the four losses, whose mean weights it knows.
all masks  where a text has no more than `draws` of them, they are enumerated, and nothing is random.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.corruption import antithetic
from unmask.draws import LEVEL, MASK, keyed_uniforms
from unmask.likelihood.work import Tally, in_batches
from unmask.network import Network
from unmask.objectives import (
    AnyOrder,
    Corruption,
    Denoising,
    LambdaDCE,
    TimeDCE,
    TimeDSE,
    reading_of,
    token_nats,
)

MAIN, PILOT = range(2)  # turns of the random numbers
FOUR = (AnyOrder, LambdaDCE, TimeDCE, TimeDSE)
TRIED, OF = 1 << 18, 3  # draws, of so many positions, by which the weights of another estimator are looked at


@dataclass(frozen=True)
class Design:
    """The maskings of every sequence, and the runs of the network on them.

    `strata` are the draws a replicate of each sequence, 0 where all its masks are enumerated.
    """

    network: Network
    x_0: Int[Tensor, "S L"]
    maskable: Bool[Tensor, "S L"]
    estimator: Denoising
    seed: int
    numbers: list[int]
    replicates: int
    batch: int
    turn: int = MAIN

    def with_few(self, strata: Int[Tensor, " S"]) -> Int[Tensor, " S"]:
        """`strata`, 0 where there are no more masks than draws: k-DCE's mean is then a short sum."""
        few = 2.0 ** self.maskable.sum(-1) - 1 <= self.replicates * strata
        return strata.masked_fill(few, 0) if isinstance(self.estimator, AnyOrder) else strata

    def rows(self, strata: Int[Tensor, " S"]) -> Int[Tensor, " S"]:
        """Rows that each sequence costs; none where nothing is maskable."""
        size = self.maskable.sum(-1)
        masks = 2 ** size.masked_fill(strata > 0, 0) - 1
        return torch.where(strata > 0, self.replicates * strata, masks).masked_fill(size == 0, 0)

    def shares(self, unit: Int[Tensor, " s"], strata: int, tally: Tally) -> Float[Tensor, "s R L"]:
        """Each position's share of the estimate, by each replicate."""
        owner, corruption = self.dealt(unit, strata) if strata else self.enumerated(unit)
        replicates = self.replicates if strata else 1
        cells, products = self._run(unit, owner, corruption, len(unit) * replicates, tally)
        if not strata:
            return cells[0][:, None].expand(-1, self.replicates, -1)
        cells, products = cells.unflatten(1, (-1, replicates)), products.unflatten(0, (-1, replicates))
        if type(self.estimator) not in FOUR:  # its mean weights are not known
            return cells[0]
        return controlled(cells, products, self.maskable[unit])

    def dealt(self, unit: Int[Tensor, " s"], strata: int) -> tuple[Int[Tensor, " n"], Corruption]:
        """(sequence x replicate, corruption) of every row: antithetic levels, positions dealt like cards."""
        numbers = [self.numbers[i] for i in unit.tolist()]
        pairs, length = (self.replicates, (strata + 1) // 2), self.x_0.shape[1]
        u = keyed_uniforms(self.seed, numbers, pairs, LEVEL, self.turn)
        levels = antithetic(strata, u).flatten(0, 1).sort(-1).values
        noise = keyed_uniforms(self.seed, numbers, (self.replicates, strata, length), MASK, self.turn).flatten(0, 1)
        maskable = self.maskable[unit].repeat_interleave(self.replicates, 0)
        draws = deal(self.estimator, maskable, levels, noise)
        masked, weight, level = (torch.stack(parts, 1).flatten(0, 1) for parts in zip(*draws, strict=True))
        return torch.arange(len(maskable)).repeat_interleave(strata), Corruption(masked, weight / strata, level)

    def enumerated(self, unit: Int[Tensor, " s"]) -> tuple[Int[Tensor, " n"], Corruption]:
        """Every mask of n positions that masks any, with weight 1 / (k C(n, k)): the mean of k-DCE is their sum."""
        maskable = self.maskable[unit]
        n = int(maskable[0].sum())
        subsets = torch.tensor(list(itertools.product([False, True], repeat=n)))[1:]
        k = subsets.sum(-1)
        masked = torch.zeros(len(unit), len(subsets), maskable.shape[1], dtype=torch.bool)
        masked[maskable[:, None].expand_as(masked)] = subsets.repeat(len(unit), 1).flatten()
        weight = torch.tensor([1 / (each * math.comb(n, each)) for each in k.tolist()], dtype=torch.float64)
        owner = torch.arange(len(unit)).repeat_interleave(len(subsets))
        return owner, Corruption(masked.flatten(0, 1), weight.repeat(len(unit)), (k / n).repeat(len(unit)))

    def _run(
        self, unit: Int[Tensor, " s"], owner: Int[Tensor, " n"], corruption: Corruption, owners: int, tally: Tally
    ) -> tuple[Float[Tensor, "4 o L"], Float[Tensor, "o 4 4"]]:
        """(sums of w c, w, w x, w z of every position; of the products of 1, x, z, c), over what each owner masks.

        c is the cost -log q of a masked position, x the share of positions that are masked with it, z how many of its
        two neighbours are.
        """
        reading, length = reading_of(self.estimator, self.network), self.x_0.shape[1]
        sequence = unit.repeat_interleave(owners // len(unit))[owner]
        share = corruption.masked.sum(-1).double() / self.maskable[sequence].sum(-1)
        cells = torch.zeros(4, owners * length, dtype=torch.float64)
        products = torch.zeros(owners, 4, 4, dtype=torch.float64)

        def score(which: slice) -> None:
            masked, weights, level = (part[which] for part in corruption)
            rows = sequence[which]
            tokens = self.x_0[rows]
            canvas = tokens.masked_fill(masked, self.network.mask_id)
            at, nats = token_nats(self.network, tokens, masked, canvas=canvas, level=level, rows=rows, reading=reading)
            row, cost = at // length, nats.cpu().double()
            mine, w = owner[which][row], weights[row].double()
            x, z = share[which][row], neighbours(masked).flatten()[at]
            cells.index_add_(1, mine * length + at % length, w * torch.stack([cost, torch.ones_like(w), x, z]))
            seen = torch.stack([torch.ones_like(w), x, z, cost], -1)
            products.index_add_(0, mine, seen[:, :, None] * seen[:, None])

        in_batches(self.network, len(owner), self.batch, tally, score)
        return cells.view(4, owners, length), products


def bounds(estimator: Denoising) -> bool:
    """Whether its mean is a bound: no set of k of n positions has a mean weight E[w, it is masked] below
    1 / (k C(n, k)).

    Known of the four losses; of another estimator tried, where n is 3: False where some set has 1% less, surely (by
    six standard errors).
    """
    if type(estimator) in FOUR:
        return True
    noise = torch.rand(TRIED, OF, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = (torch.arange(TRIED, dtype=torch.float64) + 0.5) / TRIED
    masked, weight, _ = estimator.corrupt(torch.ones(TRIED, OF, dtype=torch.bool), levels, noise)
    for each in torch.tensor(list(itertools.product([False, True], repeat=OF)))[1:]:
        paid = weight.double() * (masked == each).all(-1)
        wanted = 1 / (int(each.sum()) * math.comb(OF, int(each.sum())))
        if float(paid.mean() + 6 * paid.std() / TRIED**0.5) < 0.99 * wanted:
            return False
    return True


def deal(
    estimator: Denoising, maskable: Bool[Tensor, "B L"], levels: Float[Tensor, "B m"], noise: Float[Tensor, "B m L"]
) -> list[Corruption]:
    """The m corruptions of each row, of which exact counts mask each position equally often.

    A draw masks the positions that the draws before it masked least, ties at random: the ranking of its noise, which
    is all that exact counts look at, is by (times masked, noise). The rule tells no position from another, so each
    draw's set is uniform given its size. Bernoulli masks (other estimators) stay independent.
    """
    times, draws = torch.zeros_like(noise[:, 0]), []
    for level, each in zip(levels.unbind(1), noise.unbind(1), strict=True):
        ranked = (times + each) / noise.shape[1] if isinstance(estimator, AnyOrder) else each
        draws.append(estimator.corrupt(maskable, level, ranked))
        times = times + draws[-1].masked
    return draws


def controlled(
    cells: Float[Tensor, "4 s R L"], products: Float[Tensor, "s R 4 4"], maskable: Bool[Tensor, "s L"]
) -> Float[Tensor, "s R L"]:
    """What each position cost, sum w c, less (sum w - 1) h + b (sum w f - E sum w f), f = (x, z): see `Design._run`.

    h + b f guesses a position's cost. The guess comes from the other replicates, so it is independent of this one's
    weights, of which sum w, sum w x and sum w z have means 1, (n + 1) / 2n and half the neighbours: mean 0. One
    pseudo-observation each holds h to the mean cost and the slopes b to 0. A text with an impossible token costs what
    it costs: there is nothing to guess.
    """
    paid, weight, moment = cells[0], cells[1], cells[2:]
    possible = paid.isfinite().flatten(1).all(-1)[:, None, None]
    cells, products = cells.masked_fill(~possible, 0.0), products.masked_fill(~possible[..., None], 0.0)
    other, seen = cells.sum(2, keepdim=True) - cells, products.sum(1, keepdim=True) - products
    count = seen[..., 0, 0].clamp(min=1)[..., None, None]
    spread = seen - seen[..., :1] * seen[..., :1, :] / count
    slope = torch.linalg.solve(spread[..., 1:3, 1:3] + torch.eye(2, dtype=spread.dtype), spread[..., 1:3, 3])
    slope = slope.movedim(-1, 0)[..., None]
    mean = other.sum(-1, keepdim=True) / other[1].sum(-1, keepdim=True).clamp(min=1e-300)
    guess = (other[0] + mean[0]) / (other[1] + 1) - (slope * mean[2:]).sum(0)
    n = maskable.sum(-1, keepdim=True).double()
    expected = torch.stack([((n + 1) / (2 * n)).expand(maskable.shape), neighbours(maskable) / 2])[:, :, None]
    control = (weight - 1) * guess + (slope * (moment - expected)).sum(0)
    return torch.where(possible, paid - control, paid).masked_fill(~maskable[:, None], 0.0)


def neighbours(chosen: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """How many of the two positions beside each are chosen."""
    wide = torch.nn.functional.pad(chosen.double(), (1, 1))
    return wide[:, :-2] + wide[:, 2:]
