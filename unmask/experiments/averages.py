"""Means over seeds and over what they are asked, and what is kept of an evaluation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from unmask.files import Row
from unmask.units import unseen, with_error


def bounded(row: Row) -> Row:
    """What an experiment keeps of a perplexity's row."""
    keep = ("corpus", "split", "protocol", "perplexity", "bound", "estimator", "draws", "tokens", "evaluations")
    rates = {f"{name}_per_token": row[name] / row["tokens"] for name in ("nats", "stderr_mc", "stderr_data")}
    return {"kind": "bound", **{name: row[name] for name in keep}, **rates, "bits_per_byte": row["bits_per_byte"]}


@dataclass(frozen=True)
class Contrast:
    """A mean over seeds and items, or a sum of such means, with its standard error."""

    value: float
    error: float
    """NaN where there is one seed and one item."""
    freedom: float
    """Degrees of freedom of the error."""
    draws: int = 0
    """Items of the part that has the fewest, or seeds where these are more."""

    def half(self, comparisons: int = 1) -> float:
        """Half of the interval that holds the truth in 95 of 100 cases, in all of so many comparisons.

        Where all draws are equal, what no draw showed has a share (`unseen`), and is taken to lie as far on the other
        side of 0.
        """
        if self.error:
            return float(stdtrit(self.freedom, 1 - 0.025 / comparisons)) * self.error
        return 2 * abs(self.value) * unseen(self.draws, 0.05 / comparisons) if self.draws else math.inf

    def sign(self, comparisons: int = 1) -> int:
        """1 or -1 where the interval lies above or below 0, else 0."""
        half = self.half(comparisons)
        return int(self.value > half) - int(self.value < -half)

    def __str__(self) -> str:
        return said(self.value, self.error)

    def __mul__(self, factor: float) -> "Contrast":
        return Contrast(self.value * factor, self.error * abs(factor), self.freedom, self.draws)


def contrast(*parts: Float[np.ndarray, "seeds _"]) -> Contrast:
    """The sum of the parts' means. All have the same seeds, and each has items of its own.

    Seeds and items are both drawn: the variance is that of the seeds' sums over their number, and of each part's items,
    averaged over seeds, over theirs. What belongs to an item of one seed is in both, so that the error is rather too
    large. Its degrees of freedom are Welch's and Satterthwaite's; a part of the variance that one seed or one item
    cannot tell is left out.
    """
    sums = np.sum([part.mean(1) for part in parts], 0)
    draws = [sums, *(part.mean(0) for part in parts)]
    known = [(each.var(ddof=1) / len(each), len(each) - 1) for each in draws if len(each) > 1]
    total = sum(variance for variance, _ in known)
    spread = sum(variance**2 / freedom for variance, freedom in known)
    error = math.sqrt(total) if known else math.nan
    count = max(len(sums), min(part.shape[1] for part in parts))
    return Contrast(float(sums.mean()), error, total**2 / spread if spread else math.inf, count)


def over_seeds(values: Sequence[float] | Float[np.ndarray, "seeds"]) -> Contrast:
    """The mean of one number a seed."""
    return contrast(np.asarray(values)[:, None])


def rates(
    nats: Float[np.ndarray, "seeds items"], tokens: Float[np.ndarray, "items"] | Float[np.ndarray, "seeds items"]
) -> Float[np.ndarray, "seeds items"]:
    """Of each item a number, whose mean is nats over tokens, and whose deviations are that ratio's to first order."""
    tokens = np.broadcast_to(tokens, nats.shape)
    rate = nats.sum() / tokens.sum()
    return rate + (nats - rate * tokens) / tokens.mean()


def said(value: float, error: float) -> str:
    """A number with its error, to the digits that the error leaves."""
    if math.isnan(error):
        return f"{value:.3f}"
    return " ± ".join(with_error(value, error))
