"""The trade-off of answers that are text: a judge's perplexity, where answers are as varied as the references."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import Float

from unmask.checkpoint import Model
from unmask.evaluate import load_judge
from unmask.evaluate.ablation import measured
from unmask.evaluate.answers import Asking, Question
from unmask.evaluate.matched import APART, judged, varied
from unmask.experiments.averages import rates, said
from unmask.experiments.running import Held, Keep, Table
from unmask.experiments.ways import UNKNOWN, Measure, Way, by_half, compared, ways_of
from unmask.files import Row
from unmask.log import Report

PROBABLE = Measure(
    "within 0.1 nats a judge's token of the ARM", 0.1,
    lambda way: f"has {way.gained * -1} nats a judge's token more than the ARM on the second",
)  # fmt: skip


def judged_rows(
    models: Mapping[str, Model],
    questions: Sequence[Question],
    way: Asking,
    ways: Sequence[Asking],
    judge: str,
    report: Report,
    keep: Keep,
) -> list[Row]:
    """A row for each of the MDM's `ways` of answering (see `unmask.evaluate.matched.judged`), each with one of the
    ARM's `way` beside it, which answers again so that both are timed in one `turn`.
    """
    referee = load_judge(judge)
    target = varied(referee, questions)

    def row(name: str, asking: Asking) -> Row:
        return judged(models[name], questions, asking, referee, target, name, report)

    def pair(asking: Asking) -> list[Row]:
        mdm, beside = row("MDM", asking), arm
        if arm["matched"]:
            seconds = measured(models["ARM"], questions, again, "ARM", report)["values"]["seconds"]
            beside = {**arm, "values": {**arm["values"], "seconds": seconds}}
        return [_kept(each) for each in (beside, mdm)]

    (arm,) = keep("judged-arm", lambda: [row("ARM", way)])
    again = replace(way, draw=replace(way.draw, temperature=arm["temperature"]))
    return [
        {"judged": True, "turn": turn, **each}
        for turn, asking in enumerate(ways)
        for each in keep(f"judged-{turn}", partial(pair, asking))
    ]


def _kept(row: Row) -> Row:
    keep = ("model", "policy", "judge", "target", "entropy", "matched", "temperature", "nfe")
    kept = {name: row[name] for name in keep if name in row}
    if not row["matched"]:
        return kept
    values = row["values"]
    numbers = {name: [round(x, 3) for x in values[name]] for name in ("nats", "tokens")}
    return {**kept, **numbers, "seconds": by_half(values["seconds"])}


def judged_ways(rows: Sequence[Row]) -> list[Way]:
    """Ways that came to the references' entropy in every seed, in the order of measurement; of a length whose ARM did
    not, none.
    """
    here = [row for row in rows if row.get("judged")]
    missed = {_way(row) for row in here if not row["matched"]}
    bare = {count for count, model, _ in missed if model == "ARM"}
    return ways_of([row for row in here if row["together"] not in bare and _way(row) not in missed], less_nats)


def _way(row: Row) -> tuple[int, str, str]:
    return row["together"], row["model"], row["policy"]


def less_nats(rows: Sequence[Row], half: slice) -> Float[np.ndarray, "seeds questions"]:
    """Minus nats a judge's token."""
    nats, tokens = (np.array([row[name][half] for row in rows], dtype=float) for name in ("nats", "tokens"))
    return -rates(nats, tokens)


def judged_compared(ways: Sequence[Way], count: int, tests: int) -> tuple[str, Held]:
    """The plain statement of one length, and whether an MDM is faster at equal quality there."""
    here = [way for way in ways if way.together == count]
    mdm = [way for way in here if way.model != "ARM"]
    where = f"{count} at once, by the judge:"
    if not mdm:
        who = "no MDM's answers come" if here else "the ARM's answers do not come"
        return f"{where} {who} to the references' entropy.", UNKNOWN
    sentence, held = compared(mdm, PROBABLE, tests)
    return f"{where} at the references' entropy {sentence}", held


def judged_table(rows: Sequence[Row], ways: Sequence[Way]) -> Table:
    here = [row for row in rows if row.get("judged")]
    asked, missed = {_way(row) for row in here}, {_way(row) for row in here if not row["matched"]}

    def row(way: Way) -> tuple[str, ...]:
        found = [row for row in here if _way(row) == (way.together, way.model, way.policy)]
        entropy, temperature = (statistics.fmean(row[name] for row in found) for name in ("entropy", "temperature"))
        perplexity = math.exp(-way.quality.value)
        beside = (str(way.gained * -1), str(way.faster)) if way.model != "ARM" else ("", "")
        quality = (said(perplexity, perplexity * way.quality.error), beside[0], f"{entropy:.3f}", f"{temperature:.2f}")
        return str(way.together), way.model, way.policy, *quality, f"{way.nfe:.1f}", f"{way.seconds:.4f}", beside[1]

    return Table(
        f"Perplexity of the answers to the second half of the questions, given these, to the judge {here[0]['judge']}, "
        f"at the references' unigram entropy, read between two temperatures at most {APART} nats apart, ± over seeds "
        f"and answers; {len(missed)} of {len(asked)} ways came to no such entropy; where it was the ARM's, "
        "no way of that length is shown",
        ("at once", "model", "policy", "perplexity", "nats a token less the ARM's", "entropy", "temperature", "NFE",
         "seconds", "times faster"),
        tuple(map(row, ways)),
    )  # fmt: skip
