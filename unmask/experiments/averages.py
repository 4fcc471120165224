"""Means over seeds, paired differences, and what is kept of an evaluation."""

import math
from collections.abc import Sequence

from unmask.files import Row
from unmask.units import with_error


def bounded(row: Row) -> Row:
    """What an experiment keeps of a perplexity's row."""
    keep = ("corpus", "split", "protocol", "perplexity", "bound", "estimator", "draws", "tokens", "evaluations")
    rates = {f"{name}_per_token": row[name] / row["tokens"] for name in ("nats", "stderr_mc", "stderr_data")}
    rates["nats_per_token"] = rates.pop("nats_per_token")
    return {"kind": "bound", **{name: row[name] for name in keep}, **rates, "bits_per_byte": row["bits_per_byte"]}


def mean_error(values: Sequence[float]) -> tuple[float, float]:
    """(mean, its standard error over the values; NaN for a single one)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def paired(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """(mean difference seed by seed, its standard error)."""
    return mean_error([a - b for a, b in zip(values, others, strict=True)])


def said(value: float, error: float) -> str:
    """A number with its error, to the digits that the error leaves."""
    if math.isnan(error):
        return f"{value:.3f}"
    return " ± ".join(with_error(value, error))
