"""Adaptive policies: where to write next depends on what the network predicts.

Of the positions that a row may write now, `score` ranks the predictions and `choose` says which are revealed. A
score that looks at the logits alone makes the order a function of the visible tokens, so the samples have an exact
likelihood; one that looks at the drawn token does not.
"""

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.corruption import order_of
from unmask.sampling.planned import at_least_one


class Adaptive(Protocol):
    """Chooses among the positions a row may write: those of the lowest stage of its plan that are still open."""

    def plan(self, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """The stage of each open position; one stage (`one_stage`) leaves all of them to `choose`."""
        ...

    @property
    def exact_for(self) -> str:
        """The law that samples follow exactly when tokens are drawn at temperature 1."""
        ...

    @property
    def looks_at_draws(self) -> bool:
        """Whether `score` depends on the drawn token, so that the order has no law of its own."""
        ...

    def score(self, log_q: Float[Tensor, "N V"], drawn: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """How much a position should be written now; `drawn` is the log-probability of the token drawn there."""
        ...

    def choose(
        self, score: Float[Tensor, "R L"], asked: Bool[Tensor, "R L"], turn: Int[Tensor, " R"], total: Int[Tensor, " R"]
    ) -> Bool[Tensor, "R L"]:
        """Which asked positions are revealed: at least one a row, whatever else is in the batch.

        `turn` counts a row's evaluations of this stage from 0, `total` the positions it had open when the stage began.
        """
        ...


def one_stage(self: object, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Every open position may be written at any time."""
    return torch.zeros_like(open_, dtype=torch.long)


def highest(self: object, log_q: Float[Tensor, "N V"], drawn: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """How sure a prediction is: log of the highest probability."""
    return log_q.amax(-1)


def lead(self: object, log_q: Float[Tensor, "N V"], drawn: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """How sure a prediction is: the highest probability less the second."""
    top = log_q.topk(min(2, log_q.shape[-1]), -1).values.exp()
    return 2 * top[:, 0] - top.sum(-1)


def certainty(self: object, log_q: Float[Tensor, "N V"], drawn: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """How sure a prediction is: minus its entropy, in nats."""
    return -torch.special.entr(log_q.exp()).sum(-1)


def of_the_drawn(self: object, log_q: Float[Tensor, "N V"], drawn: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """log of the drawn token's probability."""
    return drawn


@dataclass(frozen=True)
class Confidence:
    """The highest maximal probability first, `tokens` a step."""

    tokens: int = 1
    """Tokens written a step."""
    by = "maximal probability"
    looks_at_draws = False
    plan, score = one_stage, highest

    def __post_init__(self) -> None:
        at_least_one(self, "tokens")

    @property
    def exact_for(self: "Confidence | Margin | Entropy") -> str:
        if self.tokens == 1:
            return f"the chain rule in its own order (by {self.by}, a function of the visible tokens)"
        return f"its own law: {self.tokens} tokens a step by {self.by}, drawn independently of each other"

    def choose(
        self, score: Float[Tensor, "R L"], asked: Bool[Tensor, "R L"], turn: Int[Tensor, " R"], total: Int[Tensor, " R"]
    ) -> Bool[Tensor, "R L"]:
        return best(score, asked, torch.full_like(turn, self.tokens))


@dataclass(frozen=True)
class Margin:
    """The largest difference between the two highest probabilities first, `tokens` a step."""

    tokens: int = 1
    """Tokens written a step."""
    by = "margin"
    looks_at_draws = False
    plan, score, choose = one_stage, lead, Confidence.choose
    exact_for, __post_init__ = Confidence.exact_for, Confidence.__post_init__


@dataclass(frozen=True)
class Entropy:
    """The lowest entropy first, `tokens` a step."""

    tokens: int = 1
    """Tokens written a step."""
    by = "entropy"
    looks_at_draws = False
    plan, score, choose = one_stage, certainty, Confidence.choose
    exact_for, __post_init__ = Confidence.exact_for, Confidence.__post_init__


@dataclass(frozen=True)
class Threshold:
    """Every position whose maximal probability reaches `probability`, and at least the surest."""

    probability: float = 0.9
    """What a position's maximal probability must reach, in (0, 1]."""
    looks_at_draws = False
    plan, score = one_stage, highest

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ValueError(f"Threshold: probability {self.probability} must be in (0, 1]")

    @property
    def exact_for(self) -> str:
        return f"its own law: the sure (at least {self.probability}) at once, drawn independently of each other"

    def choose(
        self, score: Float[Tensor, "R L"], asked: Bool[Tensor, "R L"], turn: Int[Tensor, " R"], total: Int[Tensor, " R"]
    ) -> Bool[Tensor, "R L"]:
        return asked & ((score.exp() >= self.probability) | best(score, asked, torch.ones_like(turn)))


@dataclass(frozen=True)
class EntropyBound:
    """The longest run of positions from the lowest entropy up whose sum of entropies less the largest is at most
    `nats`.

    That difference bounds the mutual information that drawing them independently ignores (Ben-Hamu et al., arXiv
    2505.24857). 0 reveals one at a time, and all that is certain.
    """

    nats: float = 0.1
    """Joint entropy, less the largest, that may be drawn at once."""
    looks_at_draws = False
    plan, score = one_stage, certainty

    def __post_init__(self) -> None:
        if not self.nats >= 0:
            raise ValueError(f"EntropyBound: nats {self.nats} must be 0 or more")

    @property
    def exact_for(self) -> str:
        return f"its own law: positions within {self.nats} nats of joint entropy at once, drawn independently"

    def choose(
        self, score: Float[Tensor, "R L"], asked: Bool[Tensor, "R L"], turn: Int[Tensor, " R"], total: Int[Tensor, " R"]
    ) -> Bool[Tensor, "R L"]:
        rank = order_of(asked, -score)
        entropy = (-score).clamp(min=0).masked_fill(~asked, torch.inf)
        ordered = entropy.sort(dim=-1).values
        # entropies rise, so the largest of a run is its last: the sum of those before it
        count = ((ordered.cumsum(-1) - ordered <= self.nats) & ordered.isfinite()).sum(-1, keepdim=True)
        return asked & (rank < count.clamp(min=1))


@dataclass(frozen=True)
class LowConfidence:
    """LLaDA's rule: in `steps` steps of equal size (the first ones take what is left over), the surest DRAWN
    tokens stay.

    At every step a token is drawn afresh at each open position, and those of the highest probability are revealed.
    """

    steps: int = 64
    """Steps of equal size; NFE is at most this."""
    looks_at_draws = True
    plan, score = one_stage, of_the_drawn

    def __post_init__(self) -> None:
        at_least_one(self, "steps")

    @property
    def exact_for(self) -> str:
        return "no stated law: the order depends on the drawn tokens"

    def choose(
        self, score: Float[Tensor, "R L"], asked: Bool[Tensor, "R L"], turn: Int[Tensor, " R"], total: Int[Tensor, " R"]
    ) -> Bool[Tensor, "R L"]:
        count = total // self.steps + (turn < total % self.steps)
        return best(score, asked, count.clamp(min=1))


@dataclass(frozen=True)
class Greedy:
    """SMDM's rule: as LowConfidence, but int(n_masked (1 - s/t)) tokens from t to s, what is left at the last step.

    Steps at which that number is 0 change nothing and are left out (arXiv 2410.18514, section 5; `eps` is its last t).
    """

    steps: int = 64
    """Steps of equal time; NFE is at most this."""
    eps: float = 1e-5
    """The last time t of the grid."""
    looks_at_draws = True
    plan, score = one_stage, of_the_drawn

    def __post_init__(self) -> None:
        at_least_one(self, "steps")
        if not 0 <= self.eps < 1:
            raise ValueError(f"Greedy: eps {self.eps} must be in [0, 1)")

    @property
    def exact_for(self) -> str:
        return "no stated law: the order depends on the drawn tokens"

    def choose(
        self, score: Float[Tensor, "R L"], asked: Bool[Tensor, "R L"], turn: Int[Tensor, " R"], total: Int[Tensor, " R"]
    ) -> Bool[Tensor, "R L"]:
        counts = [greedy_counts(n, self.steps, self.eps)[i] for n, i in zip(total.tolist(), turn.tolist(), strict=True)]
        return best(score, asked, torch.tensor(counts))


AdaptivePolicy = Confidence | Margin | Entropy | Threshold | EntropyBound | LowConfidence | Greedy


@lru_cache(maxsize=4096)
def greedy_counts(total: int, steps: int, eps: float) -> tuple[int, ...]:
    """Tokens that SMDM's rule reveals at each step that reveals any."""
    times = torch.linspace(1, eps, steps + 1, dtype=torch.float64).tolist()
    counts, left = [], total
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        count = left if i == steps - 1 else int(left * (1 - s / t) + 1e-9)  # a whole number may be rounded down
        counts.append(count)
        left -= count
    return tuple(count for count in counts if count)


def best(score: Float[Tensor, "R L"], asked: Bool[Tensor, "R L"], count: Int[Tensor, " R"]) -> Bool[Tensor, "R L"]:
    """The `count` asked positions of the highest score in each row; the left one first where scores are equal."""
    return asked & (order_of(asked, -score) < count[:, None])
