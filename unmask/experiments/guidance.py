"""SMDM: guidance by the prompt without paired training (unsupervised) against standard guidance and none."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from matplotlib.figure import Figure

from unmask.checkpoint import Model, load
from unmask.data.pairs import Chat, Plain, Template, load_template, prompt_ids
from unmask.draws import KIND, keyed_uniforms
from unmask.evaluate.ablation import by_weight, measured
from unmask.evaluate.answers import Asking, Question
from unmask.evaluate.scoring import Answer, Scorer
from unmask.experiments.asked import SIZES, USEFUL, asked_of, bits, enough, packed, prepared, sized
from unmask.experiments.averages import contrast
from unmask.experiments.beginning import Beginning
from unmask.experiments.running import Cell, Finding, Scale, Table, above_zero, at_least_one, keeping, once
from unmask.experiments.setting import Setting
from unmask.files import Row
from unmask.log import Report
from unmask.objectives import AnyOrder
from unmask.report.drawing import COLOURS, MARKERS
from unmask.sampling import Confidence, Draw

DROPPED = {"unsupervised": 0.0, "standard": 0.1}
"""Share of training examples without their prompt (SMDM: 0.1)."""
CHOICES = 4
LIKELIHOOD = "multiple choice by likelihood"
FULL = 0.99  # right without guidance, which leaves nothing to gain


@dataclass(frozen=True)
class Guidance:
    """Answers and their likelihoods under guidance of two kinds and none: the weight chosen on a development part."""

    questions: str | None = None
    """Questions to ask, of which the first half chooses the weight; by default those of the built-in sums, or a
    twentieth of the source, held out."""
    limit: int = 1000
    """Questions asked at most, the first ones."""
    weights: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    """Weights of guidance tried beside none."""
    tokens: tuple[int, ...] = (1, 2)
    """Tokens a step, the most confident first: several at once are written without a look at each other, and leave more
    to gain."""
    temperatures: tuple[float, ...] = (1.0, 0.0)
    """Guidance sharpens, which a low temperature does as well: what it gains at 1 alone is no gain."""
    seeds: int = 3
    """Runs of each kind, which differ by their seed."""
    beginning: Annotated[Beginning, tyro.conf.OmitArgPrefixes] = field(default_factory=Beginning)

    def __post_init__(self) -> None:
        at_least_one(self, "limit", "seeds", "tokens")
        above_zero(self, "weights")
        once(self, "temperatures")
        for temperature in self.temperatures:
            Draw(temperature)  # which refuses what is none

    def corpus(self, scale: Scale, source: str, out: Path) -> Path:
        if self.beginning.steps == 0:
            raise ValueError("steps 0: standard guidance is learnt in training: give at least 1")
        refuse_shared(**self._parts(scale, source))
        return prepared(source, scale, out / "pairs", self.beginning.tokenizer(out))

    def _parts(self, scale: Scale, source: str) -> dict[str, list[Question]]:
        """The half that chooses the weight, and the half that is tested."""
        questions = asked_of(source, self.questions)[: min(self.limit, SIZES[scale].sequences)]
        enough(questions, f"limit {self.limit}, scale {scale}")
        half = len(questions) // 2
        return {"development": questions[:half], "test": questions[half:]}

    def plan(self, scale: Scale, data: str, rows: Sequence[Row]) -> list[Cell]:
        setting = sized(data, SIZES[scale])
        cells = []
        for seed in self.beginning.seeds(scale, self.seeds):
            for kind, share in DROPPED.items():
                config = setting.config(data, AnyOrder(0.5), seed=seed, drop_prompt=share)
                cells.append(self.beginning(Cell(f"{kind}-{seed}", config, {"training": kind, "seed": seed})))
        return cells

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str, told: Report) -> list[Row]:
        model, setting = load(folder), sized(cell.config.data, SIZES[scale])
        parts = self._parts(scale, source)
        template, rows = load_template(cell.config.data, model.tokenizer), []
        keep = keeping(self, folder, source)
        for tokens, temperature in itertools.product(self.tokens, self.temperatures):
            asking = Asking(
                Confidence(tokens), Draw(temperature), block=setting.length, seed=cell.config.seed, template=template
            )
            ask = partial(answered, model, asking, cell.name, told)
            found = keep(f"answers-{tokens}-{temperature:g}", partial(by_weight, parts, self.weights, ask))
            rows += [{"measure": f"{tokens} a step, temperature {temperature:g}", **row} for row in found]
        choose = partial(scored, model, setting, template, told)
        found = keep("choices", partial(by_weight, parts, self.weights, choose))
        return [*rows, *({"measure": LIKELIHOOD, **row} for row in found)]

    def find(self, rows: Sequence[Row]) -> Finding:
        measures = list(dict.fromkeys(row["measure"] for row in rows))
        table, gains = [], {}
        less = {
            measure: contrast(np.subtract(*(right(rows, measure, kind, guided=True) for kind in reversed(DROPPED))))
            for measure in measures
        }
        for measure in measures:
            for kind in DROPPED:
                none, found = (right(rows, measure, kind, guided=guided) for guided in (False, True))
                gains[kind, measure] = gain = contrast(found - none)
                cost = [evaluations(rows, measure, kind, guided=guided) for guided in (False, True)]
                weights = ", ".join(f"{weight:g}" for _, weight in sorted(chosen(rows, measure, kind).items()))
                without = "none" if kind == "unsupervised" else "none, prompts dropped in training"
                table.append((measure, without, "0", cost[0], str(contrast(none)), "", ""))
                apart = str(less[measure]) if kind == "standard" else ""
                table.append((measure, kind, weights, cost[1], str(contrast(found)), str(gain), apart))
        plain = {measure: right(rows, measure, "unsupervised", guided=False).mean() for measure in measures}
        sharp = [measure for measure in measures if measure == LIKELIHOOD or measure.endswith("temperature 0")]
        poor = unlearnt(rows)
        judged = [measure for measure in sharp if plain[measure] < FULL and measure not in poor]
        signs = {measure: gains["unsupervised", measure].sign(len(judged)) for measure in judged}
        won, lost = ([measure for measure in judged if signs[measure] == sign] for sign in (1, -1))
        told = "; ".join(f"{gains['unsupervised', measure]} ({measure})" for measure in measures)
        apart = "; ".join(f"{less[measure]} ({measure})" for measure in measures)
        beside = "; ".join(f"{gains['standard', measure]} ({measure})" for measure in measures)
        return Finding(
            "Guidance that needs no paired training improves conditional generation, as standard guidance does.",
            f"Share right that unsupervised guidance adds, at a weight chosen on other questions: {told}. Of the "
            f"{len(sharp)} measures in which sharper draws cannot be what gains, {len(judged)} had room (a model that "
            f"has learnt, and less than {FULL:.0%} right without); of these it surely gains in {len(won)} and loses in "
            f"{len(lost)}. Standard "
            f"guidance adds {beside}; less unsupervised guidance, its share right is {apart}."
            f"{_cheaper(rows, won)}{''.join(f' {said}' for said in dict.fromkeys(poor.values()))}",
            "not shown at this scale" if not (won or lost) else "no" if lost else "yes",
            (
                Table(
                    "Exact match on the test part, at the weight that is best on the development part; ± over "
                    "questions and seeds",
                    (
                        "measure",
                        "guidance",
                        "weight by seed",
                        "evaluations",
                        "right",
                        "gain, paired by question",
                        "less unsupervised",
                    ),
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
                here = part_of(rows, measure, kind, "development")
                weights = sorted({row["guidance"] for row in here})
                found = [contrast(np.array([bits(r) for r in here if r["guidance"] == w])) for w in weights]
                panel.errorbar(
                    weights, [each.value for each in found], [each.error for each in found],
                    label=kind, marker=MARKERS[i], color=COLOURS[i], capsize=2,
                )  # fmt: skip
            panel.set(title=measure, xlabel="guidance weight", ylabel="share right, development part")
            panel.legend()
        return figure


def refuse_shared(development: Sequence[Question], test: Sequence[Question]) -> None:
    """Raises ValueError where a question is in both parts."""
    if both := {question.turns for question in development} & {question.turns for question in test}:
        raise ValueError(f"{next(iter(both))[0]!r} is a question of the development and of the test part: split anew")


def answered(
    model: Model, asking: Asking, name: str, told: Report, questions: Sequence[Question], weight: float
) -> Row:
    """Which answers are right at a weight, as a text of digits, and their cost."""
    row = measured(model, questions, replace(asking, guidance=weight), name, told)
    keep = ("exact_match", "questions", "nfe", "seconds_per_answer")
    return {**{name: row[name] for name in keep}, "right": packed(row["values"]["right"])}


def scored(
    model: Model, setting: Setting, template: Template, told: Report, questions: Sequence[Question], weight: float
) -> Row:
    """Multiple choice by guided likelihood: the true answer among those of other questions of its part.

    The four share their maskings, so that their differences are surer than each of them.
    """
    hits = preferred(model, questions, weight, setting, template, told)
    chance = 1 / min(CHOICES, len({question.references[0] for question in questions}))
    return {"exact_match": sum(hits) / len(hits), "questions": len(hits), "right": packed(hits), "chance": chance}


def preferred(
    model: Model, questions: Sequence[Question], weight: float, setting: Setting, template: Template, told: Report
) -> list[bool]:
    """Whether each question's own answer is likelier than three of other questions, those most like it, of equals by
    its number; each with end tokens to the block, as in fine-tuning.
    """
    options, u = [], keyed_uniforms(0, range(len(questions)), (len(questions),), KIND).numpy()
    for i, question in enumerate(questions):
        own = question.references[0]
        others = dict.fromkeys(questions[int(j)].references[0] for j in np.argsort(u[i]))
        wrong = sorted((other for other in others if other != own), key=lambda other: -alike(own, other))[: CHOICES - 1]
        asked = Chat((("user", question.turns[0]),)) if question.chat else Plain(question.turns[0], "")
        begun = [model.tokenizer.begin, *prompt_ids(asked, model.tokenizer, template)]
        for text in (own, *wrong):
            answer = [*model.tokenizer.encode(text), model.tokenizer.end]
            answer += [model.tokenizer.end] * (1 + setting.length - len(begun) - len(answer))
            options.append((i, Answer([*begun, *answer], len(answer), i)))
    scores: dict[int, list[float]] = {}
    values, done = [0.0] * len(options), 0
    for which, found in Scorer(model, draws=2 * setting.gradients, guidance=weight)([answer for _, answer in options]):
        for place, score in zip(which, found, strict=True):
            values[place] = score.log_p
        done += len(which)
        told(done, len(options))
    for (i, _), value in zip(options, values, strict=True):
        scores.setdefault(i, []).append(value)
    return [each[0] > max(each[1:], default=-math.inf) for each in scores.values()]


def alike(one: str, other: str) -> float:
    """The share of two texts that matches, 0 to 1."""
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


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


def evaluations(rows: Sequence[Row], measure: str, kind: str, *, guided: bool) -> str:
    """Of the network an answer of the test part takes, mean over seeds; "" for what is not written."""
    weights = chosen(rows, measure, kind)
    here = [row for row in part_of(rows, measure, kind, "test") if "nfe" in row]
    here = [row for row in here if row["guidance"] == (weights[row["seed"]] if guided else 0.0)]
    return f"{statistics.fmean(row['nfe'] for row in here):.1f}" if here else ""


def _cheaper(rows: Sequence[Row], won: Sequence[str]) -> str:
    """What says that a gain can be had without guidance, for no more evaluations."""
    asked, told = list(dict.fromkeys(row["measure"] for row in rows if "nfe" in row)), []
    share, cost = partial(right, rows, kind="unsupervised"), partial(evaluations, rows, kind="unsupervised")
    for measure in (measure for measure in won if measure in asked):
        found, most = share(measure, guided=True).mean(), cost(measure, guided=True)
        other = max(asked, key=lambda other: share(other, guided=False).mean())
        plain, less = share(other, guided=False).mean(), cost(other, guided=False)
        if plain >= found and float(less) <= float(most):
            told.append(
                f" But without it {other} is right in {plain:.3f} for {less} evaluations, guided {measure} in "
                f"{found:.3f} for {most}."
            )
    return "".join(told)


def unlearnt(rows: Sequence[Row]) -> dict[str, str]:
    """Measures that tell nothing, for without guidance a model has not learnt what they ask for, and how that is known.

    A model that answers less than half of the questions in every way has not learnt to answer, and one whose choices
    are not surely better than guesses has not learnt to choose.
    """
    poor, plain, best = {}, [row for row in rows if row["part"] == "test" and not row["guidance"]], {}
    for row in (row for row in plain if row["measure"] != LIKELIHOOD):
        model, hits = (row["training"], row["seed"]), bits(row)
        best[model] = max(best.get(model, 0.0), sum(hits) / len(hits))
    if best and (least := min(best.values())) < USEFUL:
        told = f"A model has not learnt to answer: right in {least:.1%} at best."
        poor = {row["measure"]: told for row in plain if row["measure"] != LIKELIHOOD}
    if chances := [row["chance"] for row in plain if row["measure"] == LIKELIHOOD]:
        shares = {kind: right(rows, LIKELIHOOD, kind, guided=False) for kind in DROPPED}
        kind = min(shares, key=lambda kind: shares[kind].mean())
        if contrast(shares[kind] - max(chances)).sign() < 1:
            told = f"chooses the true answer in {shares[kind].mean():.1%}, where a guess does in {max(chances):.1%}"
            poor[LIKELIHOOD] = f"A model has not learnt to choose: it {told}."
    return poor
