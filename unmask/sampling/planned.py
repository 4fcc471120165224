"""Planned policies: the step at which each position is revealed is drawn before the network is called."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.corruption import LogLinear, Schedule, order_of, rate, require_falling
from unmask.draws import PLAN, keyed_uniforms, require_rows


class Policy(Protocol):
    """Decides where to write next, by drawing a plan."""

    @property
    def exact_for(self) -> str:
        """The law that samples follow exactly when tokens are drawn at temperature 1."""
        ...

    def plan(self, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """The step at which each open position is revealed; `u` are uniforms in [0, 1), one a position."""
        ...


@dataclass(frozen=True)
class Tweedie:
    """Tau-leaping: from t to s each masked position is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t).

    The last step reveals what is left (docs/theory.md). NFE: the steps at which something is revealed, not `steps`.
    """

    steps: int = 64
    """Steps of equal time; NFE is at most this."""
    schedule: Schedule = field(default_factory=LogLinear)

    def __post_init__(self) -> None:
        at_least_one(self, "steps")
        require_falling(self.schedule)

    @property
    def exact_for(self) -> str:
        return f"tau-leaping with {self.steps} steps, which tends to the random-order law as steps grow"

    def hazards(self) -> Float[Tensor, " T"]:
        """Probability that a position which is masked at a step is revealed in it."""
        t, s = grid(self.steps)
        alpha_t, alpha_s = self.schedule.alpha(t), self.schedule.alpha(s)
        return (alpha_s - alpha_t) / (1 - alpha_t)

    def plan(self, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        return _by_hazard(self.hazards(), open_, u)


@dataclass(frozen=True)
class Euler:
    """Tau-leaping by Euler's rule: probability (t - s) (-alpha'_t) / (1 - alpha_t), clamped to [0, 1].

    The last step reveals what is left. Under the log-linear schedule this is Tweedie's rate.
    """

    steps: int = 64
    """Steps of equal time; NFE is at most this."""
    schedule: Schedule = field(default_factory=LogLinear)

    def __post_init__(self) -> None:
        at_least_one(self, "steps")
        require_falling(self.schedule)

    @property
    def exact_for(self) -> str:
        return f"Euler tau-leaping with {self.steps} steps, which tends to the random-order law as steps grow"

    def hazards(self) -> Float[Tensor, " T"]:
        """As Tweedie's; above 1 where a step is too large."""
        t, s = grid(self.steps)
        return (t - s) * rate(self.schedule, t) / (1 - self.schedule.alpha(t))

    def plan(self, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        return _by_hazard(self.hazards(), open_, u)


@dataclass(frozen=True)
class RandomOrder:
    """Any-order sampling, `tokens` a step in a uniformly random order; with one it is first hitting and exact.

    Only the order of the hitting times matters to a time-free network (docs/theory.md), so no time is simulated.
    """

    tokens: int = 1
    """Tokens written a step; 1 is exact."""

    def __post_init__(self) -> None:
        at_least_one(self, "tokens")

    @property
    def exact_for(self) -> str:
        return _one_or_parallel("the random-order law", self.tokens)

    def plan(self, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        return order_of(open_, u) // self.tokens


@dataclass(frozen=True)
class LeftToRight:
    """Open positions from the left, `tokens` a step: the order a causal network must be sampled in."""

    tokens: int = 1
    """Tokens written a step; 1 is exact."""

    def __post_init__(self) -> None:
        at_least_one(self, "tokens")

    @property
    def exact_for(self) -> str:
        return _one_or_parallel("the left-to-right chain rule", self.tokens)

    def plan(self, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        return (open_.long().cumsum(-1) - 1) // self.tokens


@dataclass(frozen=True)
class FixedOrder:
    """Open positions in a stated order of positions, `tokens` a step; positions not listed follow, from the left.

    `order=(-1, -2)` counts from the right end, so `order=tuple(range(-1, -L - 1, -1))` writes backward.
    """

    order: tuple[int, ...] = ()
    """Positions of the canvas, the begin token being 0; negative ones count from the right end."""
    tokens: int = 1
    """Tokens written a step; 1 is exact."""

    def __post_init__(self) -> None:
        at_least_one(self, "tokens")

    @property
    def exact_for(self) -> str:
        return _one_or_parallel("the chain rule in the stated order", self.tokens)

    def plan(self, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        length = open_.shape[-1]
        listed = [position % length for position in self.order if -length <= position < length]
        if len(listed) != len(self.order) or len(set(listed)) != len(listed):
            raise ValueError(f"FixedOrder {self.order}: positions must be distinct and lie in the canvas of {length}")
        priority = torch.arange(length, dtype=torch.float64) + length
        priority[torch.tensor(listed, dtype=torch.long)] = torch.arange(len(listed), dtype=torch.float64)
        return order_of(open_, priority.expand(open_.shape)) // self.tokens


Planned = Tweedie | Euler | RandomOrder | LeftToRight | FixedOrder


def draw_plan(
    policy: Policy, open_: Bool[Tensor, "B L"], *, seed: int = 0, sequences: Sequence[int] | None = None
) -> Int[Tensor, "B L"]:
    """The evaluation, 0 first, at which each open position is revealed, -1 elsewhere; depends on (seed, number) alone.

    Steps at which a row reveals nothing are left out, so a row's evaluations are counted without gaps.
    """
    require_rows("open_", open_, of_bool=True)
    numbers = range(len(open_)) if sequences is None else sequences
    if len(numbers) != len(open_):
        raise ValueError(f"{len(numbers)} sequence numbers for {len(open_)} rows: give one each")
    return plan_of(policy, open_, keyed_uniforms(seed, numbers, open_.shape[1:], PLAN))


def plan_of(policy: Policy, open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """The plan of these uniforms, as `draw_plan` gives it. Raises ValueError for a policy whose steps are none."""
    steps = policy.plan(open_, u)
    if steps.shape != open_.shape or steps.dtype.is_floating_point or bool((steps[open_] < 0).any()):
        raise ValueError(f"{type(policy).__name__}.plan must give an integer step, 0 or more, for every open position")
    return without_gaps(steps.masked_fill(~open_, -1))


def is_drawn(policy: Policy, open_: Bool[Tensor, "B L"]) -> bool:
    """Whether the plan is random, judged by 32 draws for the row that has most to write."""
    row = open_[open_.sum(-1).argmax()][None]
    first = draw_plan(policy, row)
    return any(not torch.equal(first, draw_plan(policy, row, seed=seed)) for seed in range(1, 32))


def without_gaps(plan: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """The plan with its distinct steps numbered 0, 1, ... in each row; negative steps, of what is given, become -1."""
    ordered, index = plan.clamp(min=-1).sort(dim=-1)
    new = torch.cat([ordered[:, :1] >= 0, ordered[:, 1:] > ordered[:, :-1]], -1).long().cumsum(-1)
    return torch.empty_like(plan).scatter_(-1, index, new - 1)


def nfe_of(plan: Int[Tensor, "B L"]) -> Int[Tensor, " B"]:
    """Network evaluations of each row of a plan without gaps."""
    return plan.amax(-1) + 1


def expected_nfe(steps: int, open_: int, schedule: Schedule | None = None) -> float:
    """E[NFE] of Tweedie tau-leaping: sum over steps of 1 - (1 - q_s)^n, q_s the chance to be revealed at step s.

    With the log-linear schedule T (1 - (1 - 1/T)^n) (docs/theory.md).
    """
    t, s = grid(steps)
    schedule = schedule or LogLinear()
    alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
    cdf = _cdf((alpha_s - alpha_t) / (1 - alpha_t))
    q = cdf.diff(prepend=cdf.new_zeros(1))
    return float((1 - (1 - q) ** open_).sum())


def grid(steps: int) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """(t, s) of each step from t = 1 down to s = 0, equally spaced."""
    ends = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    return ends[:-1], ends[1:]


def _cdf(hazard: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """P(revealed by each step) from the chance at each step given masked before; the last step reveals what is left."""
    cdf = 1 - (1 - hazard.clamp(0, 1)).cumprod(0)
    cdf[-1] = 1.0
    return cdf


def _by_hazard(hazard: Float[Tensor, " T"], open_: Bool[Tensor, "B L"], u: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    return torch.searchsorted(_cdf(hazard), u.contiguous(), right=True)


def _one_or_parallel(law: str, tokens: int) -> str:
    return law if tokens == 1 else f"{law} with {tokens} tokens a step drawn independently of each other"


def at_least_one(policy: object, name: str) -> None:
    """Raises ValueError where the field of that name is below 1."""
    value = getattr(policy, name)
    if value < 1:
        raise ValueError(f"{type(policy).__name__}: {name} {value} must be at least 1")
