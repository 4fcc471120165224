"""Which law a policy states: its `exact_for`, written so that a machine can follow it."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from unmask.audit.laws import (
    AT_ONCE,
    At,
    BlocksLaw,
    CoinsLaw,
    IndependentLaw,
    Law,
    Move,
    OrderLaw,
    PlansLaw,
    Positions,
    RandomOrderLaw,
    RankedLaw,
    RatedLaw,
    TokensOnly,
)
from unmask.corruption import Cosine, Schedule, rate
from unmask.sampling import (
    Adaptive,
    Blocks,
    Confidence,
    Draw,
    Entropy,
    EntropyBound,
    Euler,
    FixedOrder,
    Greedy,
    LeftToRight,
    LowConfidence,
    Margin,
    Policy,
    RandomOrder,
    Rated,
    Remasking,
    Speculative,
    Threshold,
    Tweedie,
    draw_plan,
    inside_of,
)

EVERY: tuple[Policy, ...] = (
    RandomOrder(),
    RandomOrder(2),
    LeftToRight(),
    FixedOrder((-1, -2)),
    Tweedie(4),
    Tweedie(4, Cosine()),
    Euler(4, Cosine()),
    Confidence(),
    Confidence(2),
    Margin(),
    Entropy(),
    Threshold(0.6),
    EntropyBound(0.5),
    LowConfidence(2),
    Greedy(3),
    Blocks(2, RandomOrder()),
    Blocks(3, Tweedie(2)),
    Blocks(2, Confidence()),
    Remasking(3, cap=0.5),
    Blocks(2, Remasking(2, cap=0.4)),
    Rated(Tweedie(2)),
    Speculative(drafts=2),
    Speculative(Blocks(3, LeftToRight()), 2),
)
"""Each kind of policy, of a size at which four positions tell it from the others."""
UNSTATED = "no stated law"
"""What the `exact_for` of a policy says that can be held to nothing but its own plans and choices."""


def stated_law(policy: Policy) -> Law | None:
    """The law of a policy of this package, from its definition and not from its code; None for any other."""
    match policy:
        case RandomOrder(tokens):
            return RandomOrderLaw(tokens)
        case LeftToRight(tokens):
            return OrderLaw((), tokens)
        case FixedOrder(order, tokens):
            return OrderLaw(order, tokens)
        case Tweedie() | Euler():
            return leaping(policy)
        case Confidence(tokens):
            return RankedLaw(surest, lambda scores, turn, total: tokens)
        case Margin(tokens):
            return RankedLaw(margin, lambda scores, turn, total: tokens)
        case Entropy(tokens):
            return RankedLaw(negentropy, lambda scores, turn, total: tokens)
        case Threshold(probability):
            sure = math.log(probability)
            return RankedLaw(surest, lambda scores, turn, total: max(1, sum(score >= sure for score in scores)))
        case EntropyBound(nats):
            return RankedLaw(negentropy, lambda scores, turn, total: within(nats, scores))
        case LowConfidence(steps):
            return RankedLaw(of_the_draw, lambda scores, turn, total: max(1, even(total, steps)[turn]))
        case Greedy(steps, eps):
            return RankedLaw(of_the_draw, lambda scores, turn, total: by_ratio(total, steps, eps)[turn])
        case Remasking():
            return remasking(policy)
        case Rated(Tweedie() | Euler() as steps):
            return RatedLaw(hazards_of(steps))
        case Speculative(inside):
            law = stated_law(inside)
            return None if law is None else TokensOnly(law)
        case Blocks(size, inside):
            law = stated_law(inside)
            return None if law is None else BlocksLaw(size, law)
    return None


def in_words(policy: Policy | None, law: Law | None, stated: Law | None, draw: Draw) -> str:
    """What an audit compares with, for people."""
    if law is not None:
        words = repr(law)
    elif policy is None:
        return "no law stated: only what every law asks"
    elif stated is None:
        words = f"its own plans and choices, row by row; {policy.exact_for}"
    elif getattr(inside_of(policy), "looks_at_draws", False):
        words = "its published rule, summed over all that may be drawn"
    else:
        words = policy.exact_for
    return words if draw == Draw() else f"{words}, tokens drawn with {draw}"


def tweedie(steps: int, schedule: Schedule) -> IndependentLaw:
    """Tau-leaping in so many equal steps of time."""
    return leaping(Tweedie(steps, schedule))


def euler(steps: int, schedule: Schedule) -> IndependentLaw:
    """The same by Euler's rule."""
    return leaping(Euler(steps, schedule))


def leaping(policy: Tweedie | Euler) -> IndependentLaw:
    """At each step its hazard, cut to [0, 1], and at the last one what is left."""
    return IndependentLaw((*(min(1.0, hazard) for hazard in hazards_of(policy)[:-1]), 1.0))


def hazards_of(policy: Tweedie | Euler) -> tuple[float, ...]:
    """From t to s: (alpha_s - alpha_t) / (1 - alpha_t), or Euler's (t - s) (-alpha'_t) / (1 - alpha_t)."""
    schedule, times = policy.schedule, _times(policy.steps)
    if isinstance(policy, Euler):
        return tuple(float(rate(schedule, t) / (1 - schedule.alpha(t))) / policy.steps for t in times[:-1])
    alpha = [float(schedule.alpha(t)) for t in times]
    return tuple((later - earlier) / (1 - earlier) for earlier, later in itertools.pairwise(alpha))


def remasking(policy: Remasking) -> CoinsLaw:
    """ReMDM, from t to s: sigma = scale min(cap, (1 - alpha_s) / alpha_t) between `start` and `stop`; a token is
    erased with chance sigma, a mask written with (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t); by confidence, sigma
    times its share of a softmax of minus the probabilities, and a mask as in tau-leaping. At last what is
    left is written.
    """
    times = _times(policy.steps)
    alpha = [float(policy.schedule.alpha(t)) for t in times]

    def chance(step: int, open_: Positions, written: Mapping[int, float]) -> dict[int, float]:
        if step == policy.steps - 1:
            return dict.fromkeys(open_, 1.0)
        t, (alpha_t, alpha_s) = float(times[step]), alpha[step : step + 2]
        sigma = (
            policy.scale * min(policy.cap, (1 - alpha_s) / max(alpha_t, 1e-300))
            if policy.stop < t <= policy.start
            else 0.0
        )
        balance, share = sigma, dict.fromkeys(written, 1.0)
        if policy.by_confidence:
            total = sum(math.exp(-sure) for sure in written.values())
            balance, share = 0.0, {i: math.exp(-sure) / total for i, sure in written.items()}
        write = (alpha_s - (1 - balance) * alpha_t) / (1 - alpha_t)
        return dict.fromkeys(open_, min(1.0, max(0.0, write))) | {i: sigma * share[i] for i in written}

    return CoinsLaw(policy.steps, chance, policy.by_confidence)


def _times(steps: int) -> list[torch.Tensor]:
    return [torch.tensor(1 - i / steps, dtype=torch.float64) for i in range(steps + 1)]


def surest(log_q: Sequence[float], token: int) -> float:
    """log of the highest probability."""
    return max(log_q)


def margin(log_q: Sequence[float], token: int) -> float:
    """Difference between the two highest probabilities."""
    first, second = sorted(map(math.exp, log_q), reverse=True)[:2]
    return first - second


def negentropy(log_q: Sequence[float], token: int) -> float:
    """Minus the entropy, in nats."""
    return sum(math.exp(x) * x for x in log_q if x > -math.inf)


def of_the_draw(log_q: Sequence[float], token: int) -> float:
    """log-probability of the token drawn."""
    return log_q[token]


def within(nats: float, scores: Sequence[float]) -> int:
    """Length of the longest run of rising entropies whose sum less the last is at most `nats`."""
    before = itertools.accumulate((-score for score in scores[:-1]), initial=0.0)
    return max(1, sum(total <= nats for total in before))


def even(total: int, steps: int) -> list[int]:
    """LLaDA: `total` in equal parts, the first ones taking what is left over."""
    return [total // steps + (i < total % steps) for i in range(steps)]


ROUNDING = 1e-9  # of a product that is a whole number


def by_ratio(total: int, steps: int, eps: float) -> list[int]:
    """SMDM: int(left (1 - s/t)) from t to s, all that is left at the last step; steps that reveal nothing left out."""
    times = [1 + (eps - 1) * i / steps for i in range(steps + 1)]
    counts: list[int] = []
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        left = total - sum(counts)
        counts.append(left if i == steps - 1 else int(left * (1 - s / t) + ROUNDING))
    return [count for count in counts if count]


@dataclass(frozen=True)
class OwnChoice:
    """An adaptive policy's own `score` and `choose`, asked for one row at a time."""

    policy: Adaptive

    def moves(self, at: At) -> Iterator[Move]:
        turn, total = at.memory or (0, len(at.open))
        looks = self.policy.looks_at_draws
        for p, drawn in at.writing(at.open) if looks else [(1.0, at.canvas)]:
            chosen = self._chosen(at, drawn if looks else None, turn, total)
            kept = [(p, at.keeping(drawn, chosen))] if looks else at.writing(chosen)
            for chance, canvas in kept:
                yield chance, canvas, (turn + 1, total)

    def _chosen(self, at: At, drawn: Sequence[int] | None, turn: int, total: int) -> list[int]:
        log_q = torch.tensor([at.log_q[i] for i in at.open], dtype=torch.float64)
        tokens = [0 if drawn is None else drawn[i] for i in at.open]
        scores = self.policy.score(log_q, log_q[torch.arange(len(tokens)), tokens])
        asked = torch.zeros(1, len(at.canvas), dtype=torch.bool)
        asked[0, list(at.open)] = True
        row = torch.full(asked.shape, -torch.inf, dtype=torch.float64).masked_scatter(asked, scores.double())
        chosen = self.policy.choose(row, asked, torch.tensor([turn]), torch.tensor([total]))
        return (chosen & asked)[0].nonzero().flatten().tolist()


def own_coins(policy: Remasking, length: int) -> CoinsLaw:
    """A revising policy's own `chance`, asked for one row at a time."""

    def chance(step: int, open_: Positions, written: Mapping[int, float]) -> dict[int, float]:
        masked = torch.zeros(1, length, dtype=torch.bool)
        masked[0, list(open_)] = True
        sure = torch.full((1, length), torch.nan, dtype=torch.float64)
        for i, p in written.items():
            sure[0, i] = p
        changes = policy.chance(torch.tensor([step]), masked, sure)[0].tolist()
        return {i: changes[i] for i in (*open_, *written)}

    return CoinsLaw(policy.steps, chance, remembers=True)


def own_law(policy: Policy, canvas: Sequence[int], mask_id: int, seed: int, sequences: Sequence[int]) -> Law:
    """What any policy can be held to without a stated law: the plans that it draws for these very sequences, and
    within a stage its own choices or coins, row by row.
    """
    if isinstance(policy, Rated):
        return RatedLaw(tuple(policy.steps.hazards().tolist()))
    open_ = (torch.tensor(canvas) == mask_id).expand(len(sequences), -1)
    plans = Counter(map(tuple, draw_plan(policy, open_, seed=seed, sequences=sequences).tolist()))
    inside = inside_of(policy)
    listed = tuple((count / len(sequences), plan) for plan, count in plans.items())
    if hasattr(inside, "choose"):
        return PlansLaw(listed, OwnChoice(cast(Adaptive, inside)))
    return PlansLaw(listed, own_coins(cast(Remasking, inside), len(canvas)) if hasattr(inside, "chance") else AT_ONCE)
