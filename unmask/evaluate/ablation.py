"""Answers under several ways of asking, on the same questions: guidance by its weight, quality by its cost."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from unmask.checkpoint import Model
from unmask.evaluate.answers import Asking, Question, answered, answers, exact_match
from unmask.files import Row


def measured(
    model: Model,
    questions: Sequence[Question],
    asking: Asking,
    name: str,
    progress: Callable[[int, int], None] | None = None,
) -> Row:
    """Exact match, NFE and seconds an answer, of all questions asked in one way."""
    row = exact_match(questions, answered(model, questions, asking, progress), name)
    return {**row, "policy": repr(asking.policy), "guidance": asking.guidance, "seed": asking.seed}


def paired(row: Row, other: Row) -> Row:
    """row - other on the same questions: difference of exact match, and its standard error over questions."""
    gaps = [int(a) - int(b) for a, b in zip(row["values"]["right"], other["values"]["right"], strict=True)]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
    return {"difference": statistics.fmean(gaps), "difference_stderr": error}


def refuse_shared(development: Sequence[Question], test: Sequence[Question]) -> None:
    """Raises ValueError where a question is in both parts."""
    if both := {question.turns for question in development} & {question.turns for question in test}:
        raise ValueError(f"{next(iter(both))[0]!r} is a question of the development and of the test part: split anew")


def guided_rows(
    model: Model,
    development: Sequence[Question],
    test: Sequence[Question],
    asking: Asking,
    weights: Sequence[float],
    name: str,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Exact match by weight on a development part, then on the test part without guidance and with the best weight.

    The weight is chosen on the development part alone, the smallest of equals; rows say their `part`, and the
    difference to no guidance, paired by question. Raises ValueError where a question is in both parts.
    """
    refuse_shared(development, test)
    rows: list[Row] = []
    for part, questions in (("development", development), ("test", test)):
        none = measured(model, questions, replace(asking, guidance=0.0), name, progress)
        rows.append({**none, "part": part, "difference": 0.0, "difference_stderr": 0.0})
        for weight in sorted(weight for weight in weights if weight):
            row = measured(model, questions, replace(asking, guidance=weight), name, progress)
            rows.append({**row, "part": part, **paired(row, none)})
        if part == "development":
            best = max(rows, key=lambda row: (row["exact_match"], -row["guidance"]))["guidance"]
            weights = [best]
    return rows


def tradeoff_rows(
    models: Mapping[str, Model],
    questions: Sequence[Question],
    ways: Mapping[str, Sequence[Asking]],
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Exact match against NFE and seconds, of each model in each of its ways: one machine, one run, the same questions.

    Models take turns, one that has fewer ways with them anew, so that the rows of a `turn` are of one time whatever
    else the machine does. Each is asked a few questions first, so that none of them pays for a start.
    """
    rows = []
    for turn in range(max(map(len, ways.values()))):
        for name, model in models.items():
            asking = ways[name][turn % len(ways[name])]
            for _ in answers(model, questions[: asking.batch], asking):
                pass
            rows.append({**measured(model, questions, asking, name, progress), "turn": turn})
    return rows
