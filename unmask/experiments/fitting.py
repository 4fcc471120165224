"""Scaling laws from losses: parabolas over sizes, power laws over budgets, and a surface over both.

SMDM (arXiv 2410.18514, section 4) follows Hoffmann et al. (arXiv 2203.15556): at each budget C a parabola in log N
gives the best loss L* and size N*; both are then straight lines in log-log against C. Intervals are bootstrapped.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares

HUBER = 1e-3  # of log loss: Hoffmann et al.'s delta
STARTS = 30  # of the surface's fit


@dataclass(frozen=True)
class Best:
    """The lowest point of a budget's parabola."""

    budget: float
    size: float
    loss: float
    inside: bool
    """Whether it lies strictly between the smallest and the largest size tried, and neither of these had the least
    loss: only then is it an optimum."""


@dataclass(frozen=True)
class Line:
    """y = exp(intercept) x^slope."""

    intercept: float
    slope: float

    def at(self, x: float) -> float:
        return math.exp(self.intercept + self.slope * math.log(x))

    def log_inverse(self, y: float) -> float:
        """log x of a y. Raises ValueError for a flat line."""
        if abs(self.slope) < 1e-6:
            raise ValueError("a loss that does not depend on the compute")
        return (math.log(y) - self.intercept) / self.slope


@dataclass(frozen=True)
class Law:
    """What one kind of model follows: the best of each budget, L*(C) and N*(C)."""

    best: tuple[Best, ...]
    loss: Line
    size: Line


Points = Mapping[float, Sequence[tuple[float, float]]]
"""For each budget the (size, loss) of its runs, three sizes or more."""


def parabola(budget: float, points: Sequence[tuple[float, float]]) -> tuple[Best, Float[np.ndarray, " n"]]:
    """(lowest point, fitted losses) of the parabola in log N through the points, by least squares.

    Raises ValueError for fewer than three sizes, or where the parabola opens downwards.
    """
    sizes, losses = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    if len(set(sizes)) < 3:
        raise ValueError(f"budget {budget:.1e}: {len(set(sizes))} sizes make no parabola: try at least three")
    center = np.log(sizes).mean()
    x = np.log(sizes) - center
    a, b, c = np.polyfit(x, losses, 2)
    if a <= 0:
        raise ValueError(f"budget {budget:.1e}: the losses have no lowest point over the sizes: widen them")
    at = float(np.clip(-b / (2 * a), x.min() - 9, x.max() + 9))  # a number, however flat
    lowest = x[losses.argmin()]
    inside = x.min() < at < x.max() and x.min() < lowest < x.max()
    best = Best(budget, math.exp(center + at), float(np.polyval((a, b, c), at)), bool(inside))
    return best, np.polyval((a, b, c), x)


def line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Straight line in log-log, by least squares. Raises ValueError for fewer than two points."""
    if len(x) < 2:
        raise ValueError("a power law needs two budgets or more")
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
    return Line(float(intercept), float(slope))


def law(points: Points) -> Law:
    """Parabola of each budget, then power laws through their lowest points."""
    best = tuple(parabola(budget, points[budget])[0] for budget in sorted(points))
    budgets = [each.budget for each in best]
    return Law(best, line(budgets, [each.loss for each in best]), line(budgets, [each.size for each in best]))


def resampled(points: Points, count: int, seed: int) -> list[Law]:
    """`count` laws of points drawn again: each parabola with normal noise.

    A bootstrap from the model (Davison & Hinkley 1997, section 6.2). The noise's variance is one for all budgets, whose
    parabolas leave n - 3 degrees of freedom each, and is itself drawn anew from what so many tell: with a few of them
    the residuals themselves, drawn again, give intervals that are too short. Where none is left, with three sizes a
    budget, there are no laws. Draws whose parabola opens downwards are drawn again.
    """
    rng = np.random.default_rng(seed)
    fits = {budget: (list(each), parabola(budget, each)[1]) for budget, each in points.items()}
    square = sum(float(np.sum((np.array(each)[:, 1] - fitted) ** 2)) for each, fitted in fits.values())
    freedom = sum(len(each) - 3 for each, _ in fits.values())
    laws: list[Law] = []
    for _ in range(20 * count if freedom else 0):
        if len(laws) == count:
            break
        noise = math.sqrt(square / rng.chisquare(freedom))
        drawn: dict[float, list[tuple[float, float]]] = {}
        for budget, (each, fitted) in fits.items():
            losses = fitted + noise * rng.standard_normal(len(each))
            drawn[budget] = [(size, float(value)) for (size, _), value in zip(each, losses, strict=True)]
        try:
            laws.append(law(drawn))
        except ValueError:
            continue
    return laws


def interval(numbers: Sequence[float]) -> tuple[float, float]:
    """95% interval of a number over bootstrapped laws."""
    low, high = np.percentile(numbers, [2.5, 97.5])
    return float(low), float(high)


def gap(mdm: Law, arm: Law) -> float:
    """How many times the ARM's compute an MDM needs for the same loss, where both were measured.

    The geometric mean over the losses that both reached. Raises ValueError where there are none: a gap outside is
    an extrapolation.
    """
    top = min(max(each.loss for each in kind.best) for kind in (mdm, arm))
    bottom = max(min(each.loss for each in kind.best) for kind in (mdm, arm))
    if bottom >= top:
        raise ValueError("no loss was reached by both kinds of models: their budgets do not meet")
    losses = np.geomspace(bottom, top, 9)
    factor = float(np.mean([mdm.loss.log_inverse(x) - arm.loss.log_inverse(x) for x in losses]))
    return math.exp(min(factor, 700.0))


def size_ratio(mdm: Law, arm: Law) -> float:
    """Best size of the MDM over that of the ARM at equal compute: geometric mean over the budgets of both.

    Raises ValueError where no budget lies within the range of both.
    """
    low = max(kind.best[0].budget for kind in (mdm, arm))
    high = min(kind.best[-1].budget for kind in (mdm, arm))
    if low > high:
        raise ValueError("the budgets of the two kinds of models do not meet")
    budgets = np.geomspace(low, high, 9)
    return float(np.exp(np.mean([math.log(mdm.size.at(x) / arm.size.at(x)) for x in budgets])))


@dataclass(frozen=True)
class Surface:
    """L(N, D) = floor + a / N^alpha + b / D^beta (Hoffmann et al., approach 3), in nats a token."""

    floor: float
    a: float
    alpha: float
    b: float
    beta: float

    def at(self, size: Float[np.ndarray, "*n"], tokens: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        return self.floor + self.a / size**self.alpha + self.b / tokens**self.beta


def surface(sizes: Sequence[float], tokens: Sequence[float], losses: Sequence[float], seed: int = 0) -> Surface:
    """The surface of least Huber loss of log L, the best of many starts. Raises ValueError for fewer than six runs."""
    if len(losses) < 6:
        raise ValueError(f"{len(losses)} runs do not fix the five constants of L(N, D): give at least six")
    n, d, log_loss = np.log(sizes), np.log(tokens), np.log(losses)
    n_0, d_0 = n.mean(), d.mean()

    def predicted(p: Float[np.ndarray, " 5"]) -> Float[np.ndarray, " runs"]:
        floor, a, alpha, b, beta = p
        return np.log(np.exp(floor) + np.exp(a - alpha * (n - n_0)) + np.exp(b - beta * (d - d_0)))

    rng = np.random.default_rng(seed)
    low, high = [-10, -10, 0.01, -10, 0.01], [5, 5, 3.0, 5, 3.0]
    found = []
    for _ in range(STARTS):
        share = rng.dirichlet([1, 1, 1]) * min(losses)
        start = [math.log(share[0]), math.log(share[1]), rng.uniform(0.1, 1), math.log(share[2]), rng.uniform(0.1, 1)]
        start = np.clip(start, np.add(low, 1e-3), np.subtract(high, 1e-3))
        fit = least_squares(lambda p: predicted(p) - log_loss, start, bounds=(low, high), loss="huber", f_scale=HUBER)
        found.append((fit.cost, tuple(fit.x)))
    floor, a, alpha, b, beta = min(found)[1]
    return Surface(math.exp(floor), math.exp(a + alpha * n_0), alpha, math.exp(b + beta * d_0), beta)
