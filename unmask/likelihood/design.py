"""The random-order bound by Monte Carlo, with the least variance that could be found (docs/evaluation.md).

E sum_m w_m sum_{i masked by m} -log q(x^i | visible): a draw m is a level and a set of masked positions. Any coupling
of draws keeps the mean as long as each draw alone follows its law. Four are used, all within a replicate, so that the
spread of independent replicates is an honest error:

levels     antithetic pairs in equal strata (`corruption.antithetic`).
positions  dealt like cards: a draw masks the least masked positions so far, ties at random (`deal`). The rule
           treats all positions alike, so the hand of each draw is still uniform among the sets of its size.
control    each position's cost, a line in how much is masked, as the other replicates saw it, times how much too
           often, and at which levels, this one masked it (`controlled`): factors that are independent, one of mean 0.
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
from unmask.objectives import AnyOrder, Corruption, Denoising, reading_of, token_nats

MAIN, PILOT = range(2)  # turns of the random numbers


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
        cells, sums = self._run(unit, owner, corruption, len(unit) * replicates, tally)
        if not strata:
            return cells[0][:, None].expand(-1, self.replicates, -1)
        cells, sums = cells.unflatten(1, (-1, replicates)), sums.unflatten(1, (-1, replicates))
        return controlled(cells, sums, self.maskable[unit])

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
    ) -> tuple[Float[Tensor, "3 o L"], Float[Tensor, "5 o"]]:
        """(sums of w c, w, w x of every position; sums of 1, x, x^2, c, x c), over what the draws of each owner mask.

        c is the cost -log q of a masked position, x the share of positions that its draw masks.
        """
        reading, length = reading_of(self.estimator, self.network), self.x_0.shape[1]
        sequence = unit.repeat_interleave(owners // len(unit))[owner]
        share = corruption.masked.sum(-1).double() / self.maskable[sequence].sum(-1)
        cells = torch.zeros(3, owners * length, dtype=torch.float64)
        sums = torch.zeros(5, owners, dtype=torch.float64)

        def score(which: slice) -> None:
            masked, weights, level = (part[which] for part in corruption)
            rows = sequence[which]
            tokens = self.x_0[rows]
            canvas = tokens.masked_fill(masked, self.network.mask_id)
            at, nats = token_nats(self.network, tokens, masked, canvas=canvas, level=level, rows=rows, reading=reading)
            row, cost = at // length, nats.cpu().double()
            mine, w, x = owner[which][row], weights[row].double(), share[which][row]
            cells.index_add_(1, mine * length + at % length, torch.stack([w * cost, w, w * x]))
            sums.index_add_(1, mine, torch.stack([torch.ones_like(x), x, x * x, cost, x * cost]))

        in_batches(len(owner), self.batch, tally, score)
        return cells.view(3, owners, length), sums


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
    cells: Float[Tensor, "3 s R L"], sums: Float[Tensor, "5 s R"], maskable: Bool[Tensor, "s L"]
) -> Float[Tensor, "s R L"]:
    """What each position cost, sum w c, less (sum w - 1) h + slope (sum w x - E sum w x): `Design._run` has the sums.

    h + slope x guesses the cost of a position where a share x is masked. Guesses come from the other replicates, so
    they are independent of this one's weights, and sum w and sum w x have means 1 and (n + 1) / 2n: mean 0. One
    pseudo-observation each holds h to the mean cost and the slope to 0.
    """
    n = maskable.sum(-1)[:, None, None].double()
    paid, weight, moment = cells
    other_paid, other_weight, other_moment = cells.sum(2, keepdim=True) - cells
    count, x, xx, cost, xcost = (sums.sum(2, keepdim=True) - sums)[..., None]
    mean_x = x / count.clamp(min=1)
    slope = (xcost - mean_x * cost) / (xx - mean_x * x + 1)
    total = other_weight.sum(-1, keepdim=True).clamp(min=1e-300)
    mean, center = other_paid.sum(-1, keepdim=True) / total, other_moment.sum(-1, keepdim=True) / total
    guess = (other_paid + mean) / (other_weight + 1) - slope * center
    control = (weight - 1) * guess + slope * (moment - (n + 1) / (2 * n))
    return (paid - control).masked_fill(~maskable[:, None], 0.0)
