"""Ways of answering beside the ARM's: how far behind it, at what cost, and whether one is faster at equal quality.

A way is chosen on the first half of the questions, when all ways take turns, and measured on the second; what may be
chosen is timed again, turn by turn beside the ARM.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from unmask.experiments.averages import Contrast, contrast
from unmask.experiments.running import Held
from unmask.files import Row

Quality = Callable[[Sequence[Row], slice], Float[np.ndarray, "seeds questions"]]
"""Of rows, one a seed, that of each answer to some of the questions: more is better."""

UNKNOWN: Held = "not shown at this scale"


@dataclass(frozen=True)
class Way:
    """One way of answering at one length, over seeds."""

    together: int
    """Questions asked at once."""
    model: str
    policy: str
    learnt: list[float]
    """Quality on the first half, by seed."""
    close: Contrast
    """Quality gained over the ARM on the first half, question by question; most lose."""
    quick: float
    """The ARM's seconds over these on the first half, in the turn in which all questions were asked."""
    quality: Contrast
    """On the second half."""
    gained: Contrast
    """As `close`, on the second half."""
    answers: int
    """To the second half, of all seeds."""
    nfe: float
    seconds: float
    """An answer to the second half."""
    faster: Contrast
    """The ARM's seconds over these in the turns after that one, the median of each seed's; without any, in it."""


def ways_of(rows: Sequence[Row], quality: Quality) -> list[Way]:
    """Every way, in the order of measurement, beside the ARM's row of the same length, seed and `turn`."""
    ways = []
    for count in dict.fromkeys(row["together"] for row in rows):
        length = [row for row in rows if row["together"] == count]
        arm = {(row["seed"], row["turn"]): row for row in length if row["model"] == "ARM"}
        for model, policy in dict.fromkeys((row["model"], row["policy"]) for row in length):
            mine = [row for row in length if (row["model"], row["policy"]) == (model, policy)]
            beside = [arm[row["seed"], row["turn"]] for row in mine]
            turn = mine[0]["turn"]
            first = [i for i, row in enumerate(mine) if row["turn"] == turn]
            once, theirs = ([each[i] for i in first] for each in (mine, beside))
            one, two = halves(quality(once[:1], slice(None)).shape[1])
            learnt, measured = quality(once, one), quality(once, two)
            ways.append(
                Way(
                    together=count,
                    model=model,
                    policy=policy,
                    learnt=learnt.mean(1).tolist(),
                    close=contrast(learnt - quality(theirs, one)),
                    quick=_faster(once, theirs, 0).value,
                    quality=contrast(measured),
                    gained=contrast(measured - quality(theirs, two)),
                    answers=measured.size,
                    nfe=statistics.fmean(row["nfe"] for row in once),
                    seconds=statistics.median(row["seconds"][1] for row in mine),
                    faster=_faster(mine, beside, 1, after=turn),
                )
            )
    return ways


def halves(count: int) -> tuple[slice, slice]:
    return slice(count // 2), slice(count // 2, None)


def by_half(seconds: Sequence[float]) -> list[float]:
    """Mean seconds of an answer to the first half of the questions, and to the second."""
    return [float(np.mean(seconds[half])) for half in halves(len(seconds))]


def _faster(rows: Sequence[Row], beside: Sequence[Row], half: int, after: int | None = None) -> Contrast:
    """Seconds beside over seconds, the median of each seed's turns; of those `after` a turn where it has any."""
    by: dict[int, dict[int, float]] = {}
    for row, other in zip(rows, beside, strict=True):
        by.setdefault(row["seed"], {})[row["turn"]] = other["seconds"][half] / row["seconds"][half]
    if after is not None:
        by = {seed: {turn: each[turn] for turn in each if turn > after} or each for seed, each in by.items()}
    return contrast(np.array([[statistics.median(each.values())] for each in by.values()]))


@dataclass(frozen=True)
class Measure:
    """What quality is, and which is equal."""

    equal: str
    """Of a way that is surely, by its interval, less than `margin` behind the ARM, in words."""
    margin: float
    told: Callable[[Way], str]
    """Quality on the second half, beside the ARM's."""


def compared(ways: Sequence[Way], measure: Measure, tests: int) -> tuple[str, Held]:
    """The plain statement of an MDM's ways, and whether one is faster than the ARM at equal quality: the fastest of
    those that are as good on the first half of the questions. Intervals are of 95% in all of so many `tests`.
    """
    equal = [way for way in ways if _least(way.close, way.answers, 1) > -measure.margin]
    if not equal:
        best = max(ways, key=lambda way: way.close.value)
        return (
            f"no policy is surely {measure.equal} on the first half of the questions; the best, {best.policy}, "
            f"{measure.told(best)}.",
            UNKNOWN,
        )
    way = max(equal, key=lambda way: way.quick)
    surely, sign = _least(way.gained, way.answers, tests) > -measure.margin, _sign(way, tests)
    pace = ("slower than", "not surely faster or slower than", "faster than")[1 + sign]
    shown: tuple[Held, ...] = ("no", UNKNOWN, "yes")
    return (
        f"the MDM ({way.policy}, the fastest of those surely {measure.equal} on the first half of the questions) is "
        f"{pace} the ARM with its cache, {way.faster} times as fast, "
        f"{'at equal quality' if surely else 'at a quality that is not surely equal'}: it {measure.told(way)}, in "
        f"{way.nfe:.1f} evaluations.",
        shown[1 + sign] if surely else UNKNOWN,
    )


def _least(gained: Contrast, answers: int, tests: int) -> float:
    """What is surely gained: of n answers none of which is worse than the ARM's, less than 3 / n of all are (95%)."""
    return gained.value - max(gained.half(tests), 0.0 if gained.error else 3 / answers)


def _sign(way: Way, tests: int) -> int:
    return replace(way.faster, value=way.faster.value - 1).sign(tests)


def together_held(lengths: Sequence[Sequence[Held | None]]) -> Held:
    """Of each length's measures (None: nothing to say): "yes" where at some length all say so, "no" where at every
    length that has something to say one says no.
    """
    said = [each for verdicts in lengths if (each := set(verdicts) - {None})]
    if {"yes"} in said:
        return "yes"
    return "no" if said and all("no" in each for each in said) else UNKNOWN
