"""SMDM: guidance by the prompt without paired training (unsupervised) against standard guidance and none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from matplotlib.figure import Figure

from unmask.checkpoint import Model, load
from unmask.draws import KIND, keyed_uniforms
from unmask.evaluate.ablation import guided_rows
from unmask.evaluate.answers import Asking, Question
from unmask.evaluate.scoring import Answer, Scorer
from unmask.experiments.asked import asked_of, prepared, sized, together
from unmask.experiments.averages import mean_error, said
from unmask.experiments.beginning import Beginning
from unmask.experiments.running import Cell, Finding, Scale, Table
from unmask.experiments.setting import Setting
from unmask.files import Row
from unmask.objectives import AnyOrder
from unmask.report.drawing import COLOURS, MARKERS
from unmask.sampling import Draw

DROPPED = {"unsupervised": 0.0, "standard": 0.1}
"""Share of training examples without their prompt (SMDM: 0.1)."""
CHOICES = 4
PARTS = ("development", "test")


@dataclass(frozen=True)
class Guidance:
    """Answers and their likelihoods under guidance of two kinds and none: the weight chosen on a development part."""

    questions: str | None = None
    """Questions to ask, of which the first half chooses the weight; by default those of the built-in sums."""
    weights: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """Weights of guidance tried beside none."""
    temperatures: tuple[float, ...] = (1.0, 0.0)
    """Guidance sharpens, which a low temperature does as well."""
    seeds: int = 3
    """Runs of each kind, which differ by their seed."""
    beginning: Annotated[Beginning, tyro.conf.OmitArgPrefixes] = field(default_factory=Beginning)

    def corpus(self, scale: Scale, source: str, out: Path) -> Path:
        asked_of(source, self.questions)
        return prepared(source, scale, out / "pairs", self.beginning.tokenizer(out))

    def plan(self, scale: Scale, data: str, rows: Sequence[Row]) -> list[Cell]:
        setting = sized(scale, data)
        cells = []
        for seed in range(1 if scale == "tiny" else self.seeds):
            for kind, share in DROPPED.items():
                config = setting.config(data, AnyOrder(0.5), seed=seed, drop_prompt=share)
                cells.append(self.beginning(Cell(f"{kind}-{seed}", config, {"training": kind, "seed": seed})))
        return cells

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str) -> list[Row]:
        model, setting = load(folder), sized(scale, cell.config.data)
        questions = together(asked_of(source, self.questions), 1)[: setting.sequences]
        parts = questions[: len(questions) // 2], questions[len(questions) // 2 :]
        rows = []
        for temperature in self.temperatures:
            asking = Asking(draw=Draw(temperature), block=setting.length, seed=cell.config.seed)
            for row in guided_rows(model, *parts, asking, self.weights, cell.name):
                rows.append({"measure": f"answers, temperature {temperature:g}", **kept(row)})
        return [*rows, *scored_rows(model, *parts, self.weights, setting)]

    def find(self, rows: Sequence[Row]) -> Finding:
        measures = list(dict.fromkeys(row["measure"] for row in rows))
        table, gains = [], []
        for measure in measures:
            none = right(rows, measure, "unsupervised", guided=False)
            table.append((measure, "none", "0", said(*averaged(none)), ""))
            for kind in DROPPED:
                found = right(rows, measure, kind, guided=True)
                weights = [weight for _, weight in sorted(chosen(rows, measure, kind).items())]
                gain = averaged(found - none)
                gains.append((gain[0], gain[1], f"{kind}, {measure}"))
                told = ", ".join(f"{weight:g}" for weight in weights)
                table.append((measure, kind, told, said(*averaged(found)), said(*gain)))
                if kind == "standard":
                    bare = right(rows, measure, kind, guided=False)
                    table.append((measure, "prompts dropped in training, no guidance", "0", said(*averaged(bare)), ""))
        sure = [gain for gain in gains if gain[0] > 2 * gain[1]]
        losses = [gain for gain in gains if gain[0] < -2 * gain[1]]
        best = max(gains)
        unsupervised = any(name.startswith("unsupervised") for *_, name in sure)
        return Finding(
            "Guidance that needs no paired training improves conditional generation, as standard guidance does.",
            f"Of {len(gains)} comparisons with no guidance {len(sure)} gain and {len(losses)} lose by more than two "
            f"standard errors; the largest gain is {said(best[0], best[1])} ({best[2]}).",
            "yes" if unsupervised else "not shown at this scale" if not losses else "no",
            (
                Table(
                    "Exact match on the test part, at the weight that is best on the development part; ± over "
                    "questions or over seeds, the larger",
                    ("measure", "guidance", "weight by seed", "right", "less none, paired by question"),
                    tuple(table),
                ),
            ),
        )

    def figure(self, rows: Sequence[Row]) -> Figure:
        """The development part, where every weight is measured."""
        measures = list(dict.fromkeys(row["measure"] for row in rows))
        figure = Figure(figsize=(3.2 * len(measures), 3.2), layout="constrained")
        for panel, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
            for i, kind in enumerate(DROPPED):
                here = [
                    row
                    for row in rows
                    if (row["measure"], row["training"], row["part"]) == (measure, kind, "development")
                ]
                weights = sorted({row["guidance"] for row in here})
                values = [averaged(np.array([bits(r) for r in here if r["guidance"] == w])) for w in weights]
                panel.errorbar(
                    weights, [v for v, _ in values], [e for _, e in values],
                    label=kind, marker=MARKERS[i], color=COLOURS[i], capsize=2,
                )  # fmt: skip
            panel.set(title=measure, xlabel="guidance weight", ylabel="share right, development part")
            panel.legend()
        return figure


def scored_rows(
    model: Model, development: Sequence[Question], test: Sequence[Question], weights: Sequence[float], setting: Setting
) -> list[Row]:
    """Multiple choice by guided likelihood: the true answer among those of other questions of its part.

    The four share their maskings, so that their differences are surer than each of them. The weight is chosen on the
    development part alone, the smallest of equals.
    """
    rows: list[Row] = []
    tried = {0.0, *weights}
    for part, questions in zip(PARTS, (development, test), strict=True):
        for weight in sorted(tried):
            hits = preferred(model, questions, weight, setting)
            rows.append({
                "measure": "multiple choice by likelihood", "part": part, "guidance": weight,
                "exact_match": sum(hits) / len(hits), "questions": len(hits), "right": packed(hits),
            })  # fmt: skip
        tried = {0.0, max(rows, key=lambda row: (row["exact_match"], -row["guidance"]))["guidance"]}
    return rows


def preferred(model: Model, questions: Sequence[Question], weight: float, setting: Setting) -> list[bool]:
    """Whether each question's own answer is likelier than those of three others, drawn by its number; each with end
    tokens to the block, as in fine-tuning.
    """
    options, u = [], keyed_uniforms(0, range(len(questions)), (len(questions),), KIND).numpy()
    for i, question in enumerate(questions):
        own = question.references[-1]
        others = [questions[int(j)].references[-1] for j in np.argsort(u[i])]
        wrong = list(dict.fromkeys(other for other in others if other != own))[: CHOICES - 1]
        begun = [model.tokenizer.begin, *model.tokenizer.encode(question.turns[-1])]
        for text in (own, *wrong):
            answer = [*model.tokenizer.encode(text), model.tokenizer.end]
            answer += [model.tokenizer.end] * (1 + setting.length - len(begun) - len(answer))
            options.append((i, Answer([*begun, *answer], len(answer), i)))
    scores: dict[int, list[float]] = {}
    values = [0.0] * len(options)
    for which, found in Scorer(model, draws=2 * setting.gradients, guidance=weight)([answer for _, answer in options]):
        for place, score in zip(which, found, strict=True):
            values[place] = score.log_p
    for (i, _), value in zip(options, values, strict=True):
        scores.setdefault(i, []).append(value)
    return [each[0] > max(each[1:], default=-math.inf) for each in scores.values()]


def kept(row: Row) -> Row:
    """What an experiment keeps of answers; which of them were right as a text of digits."""
    keep = (
        "part",
        "guidance",
        "exact_match",
        "questions",
        "nfe",
        "seconds_per_answer",
        "difference",
        "difference_stderr",
    )
    return {**{name: row[name] for name in keep}, "right": packed(row["values"]["right"])}


def packed(hits: Sequence[bool]) -> str:
    return "".join("01"[hit] for hit in hits)


def bits(row: Row) -> list[int]:
    return [int(digit) for digit in row["right"]]


def part_of(rows: Sequence[Row], measure: str, kind: str, part: str) -> list[Row]:
    return [row for row in rows if (row["measure"], row["training"], row["part"]) == (measure, kind, part)]


def chosen(rows: Sequence[Row], measure: str, kind: str) -> dict[int, float]:
    """The weight of each seed: that of its one guided row of the test part, 0 where none was better."""
    here = part_of(rows, measure, kind, "test")
    return {seed: max(row["guidance"] for row in here if row["seed"] == seed) for seed in {row["seed"] for row in here}}


def right(rows: Sequence[Row], measure: str, kind: str, *, guided: bool) -> np.ndarray:
    """[seeds, questions] of the test part: whether each is right, at the chosen weight or at none."""
    found = []
    for seed, weight in sorted(chosen(rows, measure, kind).items()):
        wanted = (seed, weight if guided else 0.0)
        here = part_of(rows, measure, kind, "test")
        found.append(bits(next(row for row in here if (row["seed"], row["guidance"]) == wanted)))
    return np.array(found)


def averaged(values: np.ndarray) -> tuple[float, float]:
    """(mean, standard error) of [seeds, questions]: the error over questions or over seeds, the larger."""
    (mean, questions), (_, seeds) = mean_error(values.mean(0).tolist()), mean_error(values.mean(1).tolist())
    return mean, max(questions, 0.0 if math.isnan(seeds) else seeds)
