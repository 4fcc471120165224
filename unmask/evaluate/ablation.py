"""Answers under several ways of asking, on the same questions: guidance by its weight, quality by its cost."""

from collections.abc import Callable, Mapping, Sequence

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


def by_weight(
    parts: Mapping[str, Sequence[Question]],
    weights: Sequence[float],
    measure: Callable[[Sequence[Question], float], Row],
) -> list[Row]:
    """What is measured of questions by weight of guidance: of the first part at none and at each of `weights`, of the
    others at none and at the one of the best `exact_match` there, the smallest of equals. Rows say `part` and
    `guidance`.
    """
    rows: list[Row] = []
    tried, chosen = {0.0, *weights}, None
    for part, questions in parts.items():
        rows += [{**measure(questions, weight), "part": part, "guidance": weight} for weight in sorted(tried)]
        chosen = chosen or max(rows, key=lambda row: (row["exact_match"], -row["guidance"]))
        tried = {0.0, chosen["guidance"]}
    return rows


def tradeoff_rows(
    models: Mapping[str, Model],
    questions: Sequence[Question],
    ways: Mapping[str, Asking],
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Exact match against NFE and seconds, of each model in its way, one right behind the other: the same questions,
    and one time, whatever else the machine does. Each is asked a few questions first, so that none of them pays for a
    start.
    """
    rows = []
    for name, model in models.items():
        for _ in answers(model, questions[: ways[name].batch], ways[name]):
            pass
        rows.append(measured(model, questions, ways[name], name, progress))
    return rows
