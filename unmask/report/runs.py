"""Runs beside each other: how far each is, which settings differ, and losses at equal step, tokens and compute."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from unmask import files
from unmask.files import Row
from unmask.report.read import Run
from unmask.units import finite, number

RECENT = 100  # logged rows that a speed or a loss is the mean of


@dataclass(frozen=True)
class Progress:
    """How far a run is; None where its files do not tell."""

    name: str
    step: int
    steps: int | None
    tokens: float | None
    seconds: float | None
    loss: float | None
    """Mean training loss of the last rows, nats a token."""
    steps_per_second: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    validation: Row | None
    """The last row of validation."""


def progress_of(run: Run) -> Progress:
    """What metrics and configuration say of a run, finished or not."""
    rows = run.train
    last = rows[-1] if rows else {}
    training = run.config.get("training")
    steps = number(training.get("steps")) if isinstance(training, dict) else None
    losses = [loss for row in rows[-RECENT:] if (loss := finite(row.get("loss"))) is not None]
    step = int(finite(last.get("step")) or 0)
    speed = _speed(rows[-RECENT:], "step")
    left = (steps - step) / speed if steps is not None and speed else None
    return Progress(
        run.name,
        step,
        None if steps is None or not math.isfinite(steps) else int(steps),
        finite(last.get("tokens")),
        finite(last.get("seconds")),
        sum(losses) / len(losses) if losses else None,
        speed,
        _speed(rows[-RECENT:], "tokens"),
        max(0.0, left) if left is not None else None,
        run.validation[-1] if run.validation else None,
    )


def _speed(rows: Sequence[Row], key: str) -> float | None:
    """Growth of `key` a second, the pauses of an interrupted run left out."""
    points = [(finite(row.get("seconds")), finite(row.get(key))) for row in rows]
    known = [(time, size) for time, size in points if time is not None and size is not None]
    forward = [(after, before) for before, after in pairwise(known) if after[0] > before[0]]
    spent, grown = (sum(after[i] - before[i] for after, before in forward) for i in (0, 1))
    return grown / spent if spent > 0 and grown > 0 else None


def different(first: Run, second: Run) -> list[Row]:
    """The settings in which two runs differ: what was requested, where a run says it, else all of its config."""
    found = files.different(_requested(first.config), _requested(second.config))
    return [{"setting": key, "first": one, "second": two} for key, one, two in found]


def _requested(config: Row) -> Row:
    asked = config.get("requested")
    return {"precision": config.get("precision"), **asked} if isinstance(asked, dict) else config


def losses(first: Run, second: Run) -> list[Row]:
    """Training loss of both where both have been: at the last step, number of tokens and FLOPs that they share.

    A loss is the mean of the last twentieth of the rows up to there (2 to 100); its error is that mean's, of the
    batches' luck, not of the texts.
    """
    found = []
    for key in ("step", "tokens", "flops"):
        reached = [[at for row in run.train if (at := finite(row.get(key))) is not None] for run in (first, second)]
        ends = [max(each, default=0.0) for each in reached]
        if (end := min(ends)) > 0:
            (a, error_a), (b, error_b) = (_loss(run, key, end) for run in (first, second))
            found.append({
                "at": key, "value": end, "first": a, "first_stderr": error_a, "second": b, "second_stderr": error_b,
                "difference": a - b, "stderr": math.hypot(error_a, error_b),
            })  # fmt: skip
    return found


def _loss(run: Run, key: str, end: float) -> tuple[float, float]:
    rows = [row for row in run.train if (at := finite(row.get(key))) is not None and at <= end * (1 + 1e-9)]
    values = [loss for row in rows if (loss := finite(row.get("loss"))) is not None]
    values = values[-max(2, min(RECENT, len(values) // 20)) :]
    if not values:
        return math.nan, math.nan
    mean, count = sum(values) / len(values), len(values)
    spread = sum((value - mean) ** 2 for value in values) / (count - 1) if count > 1 else math.nan
    return mean, math.sqrt(spread / count)


def validations(first: Run, second: Run) -> list[Row]:
    """The last validation of both, with its error from the maskings. Both took the same sequences where data and
    settings agree, but rows of metrics hold no single sequences: the difference's error has that of the texts twice,
    and for a paired one compare result files.
    """
    if not (first.validation and second.validation):
        return []
    rows = (first.validation[-1], second.validation[-1])
    (a, b), errors = ([finite(row["nats_per_token"]) for row in rows], [finite(row.get("stderr")) for row in rows])
    if a is None or b is None:
        return []
    stderr = math.hypot(*(finite(row.get(name)) or 0.0 for row in rows for name in ("stderr", "stderr_texts")))
    return [{
        "first": a, "first_stderr": errors[0], "first_step": rows[0]["step"], "first_bound": rows[0].get("bound"),
        "second": b, "second_stderr": errors[1], "second_step": rows[1]["step"], "second_bound": rows[1].get("bound"),
        "difference": a - b, "stderr": stderr, "paired": "no",
    }]  # fmt: skip
