"""Quality of answers as text: what a judge says of them where they are as varied as others.

A lower temperature lowers a judge's perplexity of anyone's texts, and their entropy with it: by up to eight nats a
token for one of entropy. So two ways of answering are compared at one entropy, read between two temperatures each.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from unmask.checkpoint import Model
from unmask.evaluate.answers import Asking, Question, answered, references
from unmask.evaluate.generation import quality
from unmask.evaluate.judge import Judge, judge_texts
from unmask.files import Row

APART = 0.1
"""Nats of unigram entropy between the two temperatures, at most."""
HOTTEST = 2.0


def around_entropy(measure: Callable[[float], Row], target: float, attempts: int = 8) -> tuple[Row, Row]:
    """The rows, measured at two temperatures, whose `entropy` is next to the target on either side; twice the nearest
    row where it is the target itself, or where there is none on one side.

    Bisection from temperature 1 between 0 and 2, entropy rising with the temperature, until they are so close.
    """
    low, high, at = 0.0, HOTTEST, 1.0
    below, above = None, None
    for _ in range(attempts):
        row = {**measure(at), "temperature": at}
        if row["entropy"] == target:
            return row, row
        if row["entropy"] < target:
            below, low = row, at
        else:
            above, high = row, at
        if below and above and above["entropy"] - below["entropy"] <= APART:
            break
        at = (low + high) / 2
    nearest = below or above
    assert nearest is not None
    return below or nearest, above or nearest


def varied(judge: Judge, questions: Sequence[Question]) -> float:
    """Mean unigram entropy of the reference answers, in the judge's tokens. Raises ValueError where one is missing."""
    return float(judge_texts(judge, references(questions), behind=_prompts(questions)).entropy.mean())


def judged(
    model: Model,
    questions: Sequence[Question],
    asking: Asking,
    judge: Judge,
    target: float,
    name: str,
    progress: Callable[[int, int], None] | None = None,
) -> Row:
    """A judge's perplexity of the answers given their questions, at the temperature at which they are so varied:
    between two that are `APART` at most.

    Each answer's `nats` are less what its entropy is above the target's, at the rate between the two temperatures, so
    that the error of the entropy is in theirs. Answers that come to no such entropy have `matched` False and the row
    that comes nearest.
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

    low, high = around_entropy(measure, target)
    matched = low["entropy"] <= target <= high["entropy"] <= low["entropy"] + APART
    matched = matched and "values" in low and "values" in high  # where some were answered
    row = between(low, high, target) if matched else min(low, high, key=lambda row: abs(row["entropy"] - target))
    about = {
        "model": name,
        "judge": judge.name,
        "policy": repr(asking.policy),
        "seed": asking.seed,
        "target": target,
        "matched": matched,
    }
    return {**row, **about}


def between(low: Row, high: Row, target: float) -> Row:
    """What lies between two rows of quality at an entropy between theirs: numbers and answers linearly."""
    width = high["entropy"] - low["entropy"]
    share = (target - low["entropy"]) / width if width else 0.0

    def mean(one: float, other: float) -> float:
        return (1 - share) * one + share * other

    values = {name: [*map(mean, one, high["values"][name])] for name, one in low["values"].items()}
    rates = [sum(row["values"]["nats"]) / sum(row["values"]["tokens"]) for row in (low, high)]
    slope = (rates[1] - rates[0]) / width * statistics.fmean(values["tokens"]) if width else 0.0
    values["nats"] = [
        nats - slope * (entropy - target) for nats, entropy in zip(values["nats"], values["entropy"], strict=True)
    ]
    rate = sum(values["nats"]) / sum(values["tokens"])
    told = {name: mean(low[name], high[name]) for name in ("temperature", "nfe", "entropy")}
    same = {name: low[name] for name in ("experiment", "texts")}
    return {**same, **told, "generative_perplexity": math.exp(min(700.0, rate)), "values": values}


def _prompts(questions: Sequence[Question]) -> list[str]:
    return [question.turns[-1] for question in questions]
