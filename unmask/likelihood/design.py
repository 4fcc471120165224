"""The random-order bound by Monte Carlo, with the least variance that could be found (docs/evaluation.md).

E sum_m w_m sum_{i masked by m} -log q(x^i | visible): a draw m is a level and a set of masked positions. Any coupling
of draws keeps the mean as long as each draw alone follows its law. Four are used, all within a replicate, so that the
spread of independent replicates is an honest error:

levels     antithetic pairs in equal strata (`corruption.antithetic`).
positions  dealt like cards: a draw masks the least masked positions so far, ties at random (`deal`). The rule
           treats all positions alike, so the hand of each draw is still uniform among the sets of its size.
control    each position's cost as the other replicates saw it, times how much too often this one masked it
           (`controlled`). The position's total weight has mean 1, and the two factors are independent: mean 0.
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
        paid, weight = self._run(unit, owner, corruption, len(unit) * replicates, tally)
        if not strata:
            return paid[:, None].expand(-1, self.replicates, -1)
        paid, weight = paid.unflatten(0, (-1, replicates)), weight.unflatten(0, (-1, replicates))
        return controlled(paid, weight).masked_fill(~self.maskable[unit][:, None], 0.0)

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
    ) -> tuple[Float[Tensor, "o L"], Float[Tensor, "o L"]]:
        """(sum of w -log q, sum of w) of every position, over the draws of each owner that mask it."""
        reading, length = reading_of(self.estimator, self.network), self.x_0.shape[1]
        sequence = unit.repeat_interleave(owners // len(unit))[owner]
        paid, weight = torch.zeros(2, owners * length, dtype=torch.float64)

        def score(which: slice) -> None:
            masked, weights, level = (part[which] for part in corruption)
            rows = sequence[which]
            tokens = self.x_0[rows]
            canvas = tokens.masked_fill(masked, self.network.mask_id)
            at, nats = token_nats(self.network, tokens, masked, canvas=canvas, level=level, rows=rows, reading=reading)
            row = at // length
            cell = owner[which][row] * length + at % length
            share = weights[row].double()
            paid.index_add_(0, cell, share * nats.cpu().double())
            weight.index_add_(0, cell, share)

        in_batches(len(owner), self.batch, tally, score)
        return paid.view(owners, length), weight.view(owners, length)


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


def controlled(paid: Float[Tensor, "s R L"], weight: Float[Tensor, "s R L"]) -> Float[Tensor, "s R L"]:
    """paid - (weight - 1) guess: what each position cost, corrected for how much too often it was masked.

    `paid` is sum_m w_m cost and `weight` sum_m w_m over the draws that mask it; E weight = 1. The guess of its cost is
    that of the other replicates, (their paid + mu) / (their weight + 1), mu their mean cost of a position: independent
    of this one's weight, so the correction has mean 0.
    """
    other_paid, other_weight = (part.sum(1, keepdim=True) - part for part in (paid, weight))
    mean = other_paid.sum(-1, keepdim=True) / other_weight.sum(-1, keepdim=True).clamp(min=1e-300)
    return paid - (weight - 1) * (other_paid + mean) / (other_weight + 1)
