"""The trade-off of answers that are text: a judge's perplexity, where answers are as varied as the references."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unmask.checkpoint import Model
from unmask.evaluate import load_judge
from unmask.evaluate.answers import Asking, Question
from unmask.evaluate.matched import WITHIN, judged, varied
from unmask.experiments.averages import mean_error, paired, said
from unmask.experiments.running import Held, Table
from unmask.files import Row
from unmask.log import Report

MARGIN = 0.05  # equal quality: so many nats a judge's token above the ARM's at most


def judged_rows(
    models: Mapping[str, Model],
    questions: Sequence[Question],
    ways: Mapping[str, Sequence[Asking]],
    judge: str,
    told: Report,
) -> list[Row]:
    """A row a model and way of answering: see `unmask.evaluate.matched.judged`."""
    referee = load_judge(judge)
    target = varied(referee, questions)
    keep = ("model", "policy", "judge", "target", "entropy", "matched", "temperature", "nats", "tokens", "stderr")
    keep = (*keep, "generative_perplexity", "nfe", "seconds_per_answer")
    rows = [
        judged(model, questions, asking, referee, target, name, told)
        for name, model in models.items()
        for asking in ways[name]
    ]
    return [{"judged": True, **{name: row[name] for name in keep if name in row}} for row in rows]


@dataclass(frozen=True)
class Judged:
    """One way of answering at one length that came to the references' entropy in every seed."""

    together: int
    model: str
    policy: str
    nats: tuple[float, float]
    """A judge's token, and the error over seeds and answers."""
    less: tuple[float, float]
    """Those of the ARM taken away, seed by seed; the error over seeds and the answers of both."""
    entropy: float
    temperature: float
    nfe: float
    seconds: float
    faster: tuple[float, float]
    """The ARM's seconds over these, seed by seed."""


def judged_points(rows: Sequence[Row]) -> list[Judged]:
    """Ways that were matched in all seeds, in the order of measurement; of a length whose ARM was not, none."""
    here = [row for row in rows if row.get("judged")]
    points = []
    for count in dict.fromkeys(row["together"] for row in here):
        every = {}
        for row in (row for row in here if row["together"] == count):
            every.setdefault((row["model"], row["policy"]), []).append(row)
        arm = next(found for (model, _), found in every.items() if model == "ARM")
        ways = {way: found for way, found in every.items() if all(row["matched"] for row in found)}
        for (model, policy), found in ways.items() if all(row["matched"] for row in arm) else ():
            points.append(_point(count, model, policy, found, arm))
    return points


def _point(count: int, model: str, policy: str, found: Sequence[Row], arm: Sequence[Row]) -> Judged:
    rates, theirs = ([row["nats"] / row["tokens"] for row in each] for each in (found, arm))
    errors, other = (max(row["stderr"] / row["generative_perplexity"] for row in each) for each in (found, arm))
    both = 0.0 if model == "ARM" else math.hypot(errors, other)
    mean = {key: mean_error([row[key] for row in found])[0] for key in ("entropy", "temperature", "nfe")}
    seconds, others = ([row["seconds_per_answer"] for row in each] for each in (found, arm))
    return Judged(
        count,
        model,
        policy,
        _with(mean_error(rates), errors),
        _with(paired(rates, theirs), both),
        **mean,
        seconds=mean_error(seconds)[0],
        faster=mean_error([b / a for a, b in zip(seconds, others, strict=True)]),
    )


def _with(value: tuple[float, float], error: float) -> tuple[float, float]:
    """A mean over seeds with the error over answers as well."""
    return value[0], error if math.isnan(value[1]) else math.hypot(value[1], error)


def judged_compared(points: Sequence[Judged], count: int) -> tuple[str, Held]:
    """The plain statement of one length, and whether an MDM is faster at equal quality there."""
    here = [point for point in points if point.together == count]
    arm = next((point for point in here if point.model == "ARM"), None)
    mdm = [point for point in here if point.model != "ARM"]
    if arm is None or not mdm:
        who = "the ARM's" if arm is None else "no MDM's"
        verb = "do not come" if arm is None else "come"
        return f"{count} at once: {who} answers {verb} to the references' entropy.", "not shown at this scale"
    equal = [point for point in mdm if point.less[0] <= MARGIN]
    if not equal:
        best = min(mdm, key=lambda point: point.less[0])
        return (
            f"{count} at once: at the references' entropy no policy is as probable to the judge as the ARM; the best, "
            f"{best.policy}, has {said(*best.less)} nats a token more.",
            "no",
        )
    best = min(equal, key=lambda point: point.seconds)
    ratio, error = best.faster
    return (
        f"{count} at once: at the references' entropy and {said(*best.less)} nats a judge's token from the ARM the MDM "
        f"({best.policy}) is {said(ratio, error)} times as fast.",
        "yes" if ratio - (0.0 if math.isnan(error) else 2 * error) > 1 else "no",
    )


def judged_table(rows: Sequence[Row], points: Sequence[Judged]) -> Table:
    here = [row for row in rows if row.get("judged")]
    ways = len({(row["together"], row["model"], row["policy"]) for row in here})
    return Table(
        f"Perplexity of the answers, given their questions, to the judge {here[0]['judge']}, at temperatures at which "
        f"their unigram entropies are within {WITHIN} nats of each other; {ways - len(points)} of {ways} ways came to "
        "no such entropy",
        ("at once", "model", "policy", "perplexity", "nats a token less the ARM's", "entropy", "temperature", "NFE",
         "seconds", "times faster"),
        tuple(
            (
                str(point.together), point.model, point.policy,
                said(math.exp(point.nats[0]), math.exp(point.nats[0]) * point.nats[1]),
                said(*point.less) if point.model != "ARM" else "", f"{point.entropy:.3f}", f"{point.temperature:.2f}",
                f"{point.nfe:.1f}", f"{point.seconds:.4f}", said(*point.faster) if point.model != "ARM" else "",
            )
            for point in points
        ),
    )  # fmt: skip
