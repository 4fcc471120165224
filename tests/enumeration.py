"""Laws and bounds by plain enumeration, written apart from the package, and the checks that compare it with them.

A plan is a list of steps, a step a list of positions that are written together; a law over plans is a list of
(probability, plan). Every check has a threshold beyond four standard deviations and fails with an AssertionError.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import chi2
from torch import Tensor

from unmask.network import Network, Reading
from unmask.world import InconsistentTable, JointTable

Plans = list[tuple[float, list[list[int]]]]
RARE = 1e-5  # beyond 4.2 standard deviations


def every(vocab: int, length: int) -> Int[Tensor, "S L"]:
    """Every sequence of `length` digits below `vocab`, in the order of the numbers that they write."""
    return torch.tensor(list(itertools.product(range(vocab), repeat=length)))


def number(tokens: Int[Tensor, "B L"], base: int) -> Int[Tensor, " B"]:
    """The number that a row of digits writes in this base: its row in `every(base, L)`."""
    value = torch.zeros(len(tokens), dtype=torch.long)
    for column in tokens.T:
        value = value * base + column
    return value


def costs(network: Network, length: int) -> Float[Tensor, "C L V"]:
    """-log q of each token at each position of each canvas (digit V is the mask)."""
    canvases = every(network.vocab + 1, length)
    logits = network(canvases, torch.arange(canvases.numel()))
    return -logits.view(len(canvases), length, network.vocab).log_softmax(-1)


def score_costs(network: Network, length: int) -> Float[Tensor, "C L V"]:
    """The score-entropy term of each token at each position of each canvas, over r: Z - 1 - logit."""
    canvases = every(network.vocab + 1, length)
    logits = network(canvases, torch.arange(canvases.numel())).view(len(canvases), length, network.vocab)
    return logits.exp().sum(-1, keepdim=True) - 1 - logits


def in_order(table: Float[Tensor, "C L V"], x: Int[Tensor, "B L"], plan: list[list[int]]) -> Float[Tensor, " B"]:
    """The chain rule, literally: mask what the plan writes, then pay for each token and write it, step by step."""
    vocab, canvas, total = table.shape[-1], x.clone(), torch.zeros(len(x), dtype=torch.float64)
    canvas[:, [i for step in plan for i in step]] = vocab
    for step in plan:
        seen = number(canvas, vocab + 1)
        for i in step:
            total += table[seen, i, x[:, i]]
            canvas[:, i] = x[:, i]
    return total


def expected(plans: Plans, table: Float[Tensor, "C L V"], x: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
    """E over plans of the chain rule's cost: of one-at-a-time orders, the random-order bound."""
    return sum((p * in_order(table, x, plan) for p, plan in plans), torch.zeros(len(x), dtype=torch.float64))


def law(plans: Plans, table: Float[Tensor, "C L V"], canvas: Int[Tensor, " L"]) -> Float[Tensor, " S"]:
    """Probability of every sequence under a decoder that draws a plan and fills the canvas by it."""
    vocab = table.shape[-1]
    x = every(vocab, len(canvas))
    agrees = ((canvas == vocab) | (x == canvas)).all(-1)
    total = sum((p * (-in_order(table, x, plan)).exp() for p, plan in plans), torch.zeros(len(x), dtype=torch.float64))
    return total * agrees


def opened(canvas: Int[Tensor, " L"] | Bool[Tensor, " L"], mask_id: int | None = None) -> list[int]:
    """Positions that are masked (of a canvas) or true (of a pattern)."""
    return [i for i, token in enumerate(canvas.tolist()) if token == (True if mask_id is None else mask_id)]


def random_orders(positions: Sequence[int], tokens: int = 1) -> Plans:
    """Every order, equally likely, `tokens` a step."""
    share = 1 / math.factorial(len(positions))
    return [(share, in_steps(order, tokens)) for order in itertools.permutations(positions)]


def in_steps(order: Sequence[int], tokens: int = 1) -> list[list[int]]:
    """An order of positions, cut into steps of `tokens`."""
    return [list(order[i : i + tokens]) for i in range(0, len(order), tokens)]


def independent_steps(positions: Sequence[int], q: Sequence[float]) -> Plans:
    """Each position at step s with probability q[s], independently: the plans of tau-leaping."""
    plans = []
    for steps in itertools.product(range(len(q)), repeat=len(positions)):
        plan = [[i for i, at in zip(positions, steps, strict=True) if at == s] for s in range(len(q))]
        plans.append((math.prod(q[s] for s in steps), [step for step in plan if step]))
    return plans


@dataclass
class Spy:
    """A network that remembers what it was asked."""

    network: Network
    asked: list[tuple[Tensor, Tensor, Tensor | None]] = field(default_factory=list)
    """(tokens, at, rows) of each call."""

    def __getattr__(self, name: str) -> object:
        return getattr(self.network, name)

    def __call__(self, tokens: Tensor, at: Tensor, *, then=None, rows=None, level=None) -> Reading:
        self.asked.append((tokens.clone(), at.clone(), None if rows is None else rows.clone()))
        return self.network(tokens, at, then=then, rows=rows, level=level)


@dataclass(frozen=True)
class Score:
    """A score network (SEDD's kind): a world's log q, shifted by a random constant for each canvas and position."""

    world: JointTable | InconsistentTable
    scale: float = 0.7
    causal = False
    normalised = False

    @property
    def vocab(self) -> int:
        return self.world.vocab

    @property
    def mask_id(self) -> int:
        return self.world.mask_id

    def shifts(self) -> torch.Tensor:
        shape = ((self.vocab + 1) ** self.world.length, self.world.length)
        return self.scale * torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    def __call__(self, tokens, at, *, then=None, rows=None, level=None):
        shift = self.shifts()[number(tokens, self.vocab + 1)].flatten()[at]
        logits = self.world(tokens, at).log_softmax(-1) + shift[:, None]
        return logits if then is None else then(logits, slice(0, len(at)))


@dataclass
class CausalTable:
    """Random conditionals for each prefix, behind a given begin token (id 0): the smallest autoregressive network."""

    vocab: int = 3
    length: int = 3
    seed: int = 0
    causal = True
    normalised = True

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.length, self.vocab**self.length, self.vocab)
        self.table = (1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).log_softmax(-1)

    @property
    def mask_id(self) -> int:
        return self.vocab

    def __call__(self, tokens: Tensor, at: Tensor, *, then=None, rows=None, level=None) -> Reading:
        row, position = at // tokens.shape[1], at % tokens.shape[1]
        logits = torch.empty(len(at), self.vocab, dtype=torch.float64)
        for i in position.unique().tolist():
            prefix = tokens[row[position == i], 1:i]
            assert bool((prefix < self.vocab).all()), "a causal network was asked behind an open position"
            logits[position == i] = self.table[i - 1, number(prefix, self.vocab)]
        return logits if then is None else then(logits, slice(0, len(at)))

    def log_p(self) -> Float[Tensor, " S"]:
        """log p of every sequence behind the begin token."""
        x = every(self.vocab, self.length)
        return sum(self.table[i, number(x[:, :i], self.vocab), x[:, i]] for i in range(self.length))


def check_mean(values: Float[Tensor, " N"], truth: float, sigmas: float = 4.0) -> None:
    """The mean of independent values is within `sigmas` standard errors of the truth."""
    error = float(values.double().std()) / math.sqrt(len(values))
    gap = float(values.double().mean()) - truth
    assert abs(gap) <= sigmas * error + 1e-12, f"off by {gap:.3g}, {abs(gap) / max(error, 1e-300):.1f} standard errors"


def check_counts(counts: Tensor, probabilities: Tensor) -> None:
    """Pearson's chi-square; the rarest cells are merged until they expect 5, impossible ones must be empty."""
    counts, probabilities = counts.double(), probabilities.double()
    assert math.isclose(float(probabilities.sum()), 1, abs_tol=1e-9), "not a law"
    assert float(counts[probabilities == 0].sum()) == 0, "something impossible was drawn"
    expect, order = (probabilities * counts.sum()).sort()
    counts, first = counts[order], int((expect.cumsum(0) < 5).sum()) + 1
    counts = torch.cat([counts[:first].sum()[None], counts[first:]])
    expect = torch.cat([expect[:first].sum()[None], expect[first:]])
    statistic = float(((counts - expect).square() / expect).sum())
    chance = float(chi2.sf(statistic, max(len(counts) - 1, 1)))
    assert chance > RARE, f"chi-square {statistic:.1f} over {len(counts)} cells: p = {chance:.1e}"


def check_law(tokens: Iterable[Tensor], truth: Float[Tensor, " S"], vocab: int) -> None:
    """Samples follow the law in total variation and by chi-square.

    E[TV] <= 1/2 sum sqrt(p (1 - p) / N), and by McDiarmid TV exceeds its mean by t with chance below exp(-2 N t^2).
    """
    x = torch.stack(list(tokens))
    assert bool(((x >= 0) & (x < vocab)).all()), "a mask is left, or a token is not in the vocabulary"
    counts = torch.bincount(number(x, vocab), minlength=len(truth))
    distance = float((counts / len(x) - truth).abs().sum()) / 2
    mean = float((truth * (1 - truth)).clamp(min=0).sqrt().sum()) / (2 * math.sqrt(len(x)))
    limit = mean + math.sqrt(math.log(1 / RARE) / (2 * len(x)))
    assert distance < limit, f"total variation {distance:.4f}, limit {limit:.4f}"
    check_counts(counts, truth)
