"""Ways of answering beside the ARM's: how far behind it, at what cost, and whether one is faster at equal quality.

A way is chosen on the first half of the questions and measured on the second.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from unmask.experiments.averages import Contrast, contrast
from unmask.experiments.running import Held
from unmask.files import Row

Quality = Callable[[Sequence[Row]], Float[np.ndarray, "seeds questions"]]
"""Of rows, one a seed, that of each answer: more is better."""


@dataclass(frozen=True)
class Way:
    """One way of answering at one length, over seeds."""

    together: int
    """Questions asked at once."""
    model: str
    policy: str
    learnt: list[float]
    """Quality on the first half, by seed."""
    close: float
    """Quality gained over the ARM on the first half; most lose."""
    quality: Contrast
    """On the second half."""
    gained: Contrast
    """Quality gained over the ARM on the second half, question by question."""
    nfe: float
    seconds: float
    faster: Contrast
    """The ARM's seconds, measured in the same turn, over these."""


def ways_of(rows: Sequence[Row], quality: Quality) -> list[Way]:
    """Every way, in the order of measurement, beside the ARM's row of the same length, seed and `turn`."""
    ways = []
    for count in dict.fromkeys(row["together"] for row in rows):
        length = [row for row in rows if row["together"] == count]
        arm = {(row["seed"], row["turn"]): row for row in length if row["model"] == "ARM"}
        for model, policy in dict.fromkeys((row["model"], row["policy"]) for row in length):
            mine = [row for row in length if (row["model"], row["policy"]) == (model, policy)]
            beside = [arm[row["seed"], row["turn"]] for row in mine]
            first = [i for i, row in enumerate(mine) if row["turn"] == mine[0]["turn"]]  # answers are those of any turn
            ours, theirs = (quality([each[i] for i in first]) for each in (mine, beside))
            half = ours.shape[1] // 2
            ways.append(
                Way(
                    count,
                    model,
                    policy,
                    ours[:, :half].mean(1).tolist(),
                    float((ours - theirs)[:, :half].mean()),
                    contrast(ours[:, half:]),
                    contrast((ours - theirs)[:, half:]),
                    statistics.fmean(mine[i]["nfe"] for i in first),
                    statistics.median(row["seconds_per_answer"] for row in mine),
                    _faster(mine, beside),
                )
            )
    return ways


def _faster(rows: Sequence[Row], beside: Sequence[Row]) -> Contrast:
    """Seconds beside over seconds, the median of each seed's turns."""
    by: dict[int, list[float]] = {}
    for row, other in zip(rows, beside, strict=True):
        by.setdefault(row["seed"], []).append(other["seconds_per_answer"] / row["seconds_per_answer"])
    return contrast(np.array([[statistics.median(each)] for each in by.values()]))


def fastest(ways: Sequence[Way], close: float) -> Way | None:
    """That of those at most `close` behind the ARM on the first half."""
    return min((way for way in ways if way.close >= -close), key=lambda way: way.seconds, default=None)


def verdict(way: Way, margin: float) -> tuple[bool, Held]:
    """Whether it is surely, by its interval of 95%, less than `margin` behind the ARM on the second half, and whether
    that shows an MDM to be faster at equal quality.
    """
    surely = way.gained.value - way.gained.half() > -margin
    sign = replace(way.faster, value=way.faster.value - 1).sign()
    return surely, "not shown at this scale" if not surely or not sign else "yes" if sign > 0 else "no"


def pace(way: Way, surely: bool) -> str:
    """How much faster, and whether at equal quality."""
    return (
        f"{'slower than' if way.faster.value < 1 else 'faster than'} the ARM with its cache, {way.faster} times as "
        f"fast, {'at equal quality' if surely else 'at a quality that is not surely equal'}"
    )


def either(verdict: Held, other: Held) -> Held:
    """Of two measures of one length: "no" where one says so, else what either shows."""
    return next((each for each in ("no", "yes") if each in (verdict, other)), "not shown at this scale")
