"""Quality of answers as text: what a judge says of them where they are as varied as others.

A lower temperature lowers a judge's perplexity of anyone's texts, and their entropy with it. So two ways of answering
are compared at temperatures at which their texts have one entropy.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from unmask.checkpoint import Model
from unmask.evaluate.answers import Asking, Question, answered
from unmask.evaluate.generation import quality
from unmask.evaluate.judge import Judge, judge_texts
from unmask.files import Row

WITHIN = 0.05
"""Nats of unigram entropy, two of which are told apart."""
HOTTEST = 2.0


def at_entropy(
    measure: Callable[[float], Row], target: float, *, within: float = WITHIN, attempts: int = 8
) -> tuple[Row, bool]:
    """The row, measured at some temperature, whose `entropy` comes nearest to the target, and whether it is within.

    Bisection from temperature 1 between 0 and 2, entropy rising with the temperature.
    """
    low, high, at = 0.0, HOTTEST, 1.0
    rows = []
    for _ in range(attempts):
        rows.append({**measure(at), "temperature": at})
        off = rows[-1]["entropy"] - target
        if abs(off) <= within:
            break
        low, high = (low, at) if off > 0 else (at, high)
        at = (low + high) / 2
    best = min(rows, key=lambda row: abs(row["entropy"] - target))
    return best, abs(best["entropy"] - target) <= within


def varied(judge: Judge, questions: Sequence[Question]) -> float:
    """Mean unigram entropy of the reference answers, in the judge's tokens. Raises ValueError where one is missing."""
    if bare := [question.id for question in questions if not question.references]:
        raise ValueError(f"question {bare[0]!r} has no reference answer, whose entropy the answers are matched with")
    texts = [question.references[-1] for question in questions]
    return float(judge_texts(judge, texts, behind=_prompts(questions)).entropy.mean())


def judged(
    model: Model,
    questions: Sequence[Question],
    asking: Asking,
    judge: Judge,
    target: float,
    name: str,
    progress: Callable[[int, int], None] | None = None,
) -> Row:
    """A judge's perplexity of the answers given their questions, at the temperature at which they are so varied.

    Within half of `WITHIN`, so that two that are matched with one target are within it of each other. Answers that
    come to no such entropy have `matched` False and the row that comes nearest.
    """

    def measure(temperature: float) -> Row:
        warm = replace(asking, draw=replace(asking.draw, temperature=temperature))
        rows = answered(model, questions, warm, progress)
        texts = [row["choices"][0]["turns"][-1] for row in rows]
        if not any(texts):
            return {"entropy": 0.0}
        said = {"nfe": statistics.fmean(row["nfe"] for row in rows)}
        row = quality(judge, texts, said, behind=_prompts(questions), batch=asking.batch)
        return {**row, "values": {**row["values"], "seconds": [each["seconds"] for each in rows]}}

    row, matched = at_entropy(measure, target, within=WITHIN / 2)
    about = {"model": name, "policy": repr(asking.policy), "seed": asking.seed, "target": target, "matched": matched}
    return {**row, **about}


def _prompts(questions: Sequence[Question]) -> list[str]:
    return [question.turns[-1] for question in questions]
