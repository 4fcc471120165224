"""SMDM: what an answer costs at what quality, an MDM of several policies and steps against an ARM with its KV cache."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from matplotlib.figure import Figure

from unmask.checkpoint import load
from unmask.data import Tokenizer
from unmask.data.pairs import load_template
from unmask.evaluate import load_judge
from unmask.evaluate.ablation import tradeoff_rows
from unmask.evaluate.answers import Asking
from unmask.experiments.asked import USEFUL, asked_of, bits, learnt_from, packed, prepared, sized, together, written
from unmask.experiments.averages import Contrast, contrast
from unmask.experiments.beginning import Beginning
from unmask.experiments.judged import judged_compared, judged_points, judged_rows, judged_table
from unmask.experiments.running import Cell, Finding, Held, Scale, Table
from unmask.experiments.setting import KINDS
from unmask.files import Row
from unmask.log import Report
from unmask.report.drawing import COLOURS, MARKERS, log_axis
from unmask.sampling import Confidence, Draw, LeftToRight, Policy, RandomOrder, Tweedie

PUBLISHED = 1.4  # times faster than the ARM at equal quality, SMDM's abstract
CLOSE, MARGIN = 0.01, 0.02
"""Equal quality: an exact match at most CLOSE below the ARM's where the policy is chosen, and surely, by its interval
of 95%, less than MARGIN below it where it is measured."""


@dataclass(frozen=True)
class Tradeoff:
    """Exact match against seconds and evaluations: MDM and ARM of one size, data and training, at several lengths."""

    questions: str | None = None
    """Questions to ask; by default those of the built-in sums."""
    together: tuple[int, ...] = (1, 4)
    """Questions asked at once, a length each."""
    judge: str | None = None
    """A causal model, as `unmask evaluate generation` takes it, that the answers are shown to as text: their perplexity
    is compared where they are as varied as the reference answers."""
    batch: int = 16
    """Answers written at once."""
    seeds: int = 3
    """Runs of each kind, which differ by their seed."""
    beginning: Annotated[Beginning, tyro.conf.OmitArgPrefixes] = field(default_factory=Beginning)

    def corpus(self, scale: Scale, source: str, out: Path) -> Path:
        """A folder of pairs a length, beside each other; that of the first length."""
        for count in self.together:
            together(asked_of(source, self.questions), count)
        if self.judge is not None:
            load_judge(self.judge)  # which is missed hours later otherwise
        tokenizer = self.beginning.tokenizer(out)
        for count in self.together:
            file = None
            if count > 1:
                learnt = together(learnt_from(source), count, passes=count)  # as many examples as questions
                file = written(learnt, out / f"together-{count}.jsonl")
            prepared(source, scale, out / f"pairs-{count}", tokenizer, file)
        return out / f"pairs-{self.together[0]}"

    def plan(self, scale: Scale, data: str, rows: Sequence[Row]) -> list[Cell]:
        """The ARMs, then of each length and seed the MDM, which is measured beside its ARM in one run."""
        trained = {(row["together"], row["seed"]) for row in rows}
        cells = []
        for kind, objective in reversed(KINDS.items()):
            for count in self.together:
                folder = Path(data).with_name(f"pairs-{count}")
                for seed in range(1 if scale == "tiny" else self.seeds):
                    if kind == "ARM" or (count, seed) in trained:
                        config = sized(scale, folder).config(str(folder), objective, seed=seed)
                        cell = Cell(f"{kind.lower()}-{count}-{seed}", config, {"together": count, "seed": seed})
                        cells.append(self.beginning(cell))
        return cells

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str, told: Report) -> list[Row]:
        cost = {"trained": True, "parameters": cell.config.network.parameters()["total"], **cell.config.cost()}
        if cell.config.network.causal:
            return [{"model": "ARM", **cost}]
        count, seed, setting = cell.labels["together"], cell.config.seed, sized(scale, cell.config.data)
        questions = together(asked_of(source, self.questions), count)[: setting.sequences]
        data = cell.config.data
        template = load_template(data, Tokenizer.load(data))
        asking = Asking(draw=Draw(0), block=setting.length, seed=seed, batch=self.batch, template=template)
        models = {"ARM": load(folder.with_name(f"arm-{count}-{seed}")), "MDM": load(folder)}
        ways = {"ARM": [LeftToRight()], "MDM": policies(setting.length)}
        asked = {name: [replace(asking, policy=policy) for policy in each] for name, each in ways.items()}
        rows = tradeoff_rows(models, questions, asked, told)
        few = {**asked, "MDM": [replace(asking, policy=policy) for policy in policies(setting.length, every=2)]}
        texts = [] if self.judge is None else judged_rows(models, questions, few, self.judge, told)
        return [{"model": "MDM", **cost}, *map(kept, rows), *texts]

    def find(self, rows: Sequence[Row]) -> Finding:
        points = points_of(rows)
        told, verdicts, texts, shown = [], [], judged_points(rows), any(row.get("judged") for row in rows)
        for count in dict.fromkeys(point.together for point in points):
            sentence, verdict = compared([point for point in points if point.together == count], count)
            told.append(sentence)
            if shown:
                sentence, by_judge = judged_compared(texts, count)
                told.append(sentence)
                verdict = either(verdict, by_judge)
            verdicts.append(verdict)
        costs = {row["model"]: row for row in rows if row.get("trained")}
        sizes = ", ".join(
            f"{name} {row['parameters']:,} parameters, {row['flops_6nd']:.2e} training FLOPs (6ND), "
            f"{row['flops_true']:.2e} true"
            for name, row in costs.items()
        )
        held = "no" if "no" in verdicts else "yes" if set(verdicts) == {"yes"} else "not shown at this scale"
        return Finding(
            f"An MDM answers {PUBLISHED} times faster than an ARM with KV cache at equal quality.",
            " ".join(told),
            held,
            (
                Table(
                    "Exact match at temperature 0 on the second half of the questions, ± over seeds and questions; "
                    "cost an answer, times beside the ARM's of the same turn; each length and seed on one machine in "
                    f"one run; longest: {sizes}",
                    ("at once", "model", "policy", "exact match", "less the ARM's", "NFE", "seconds", "times faster"),
                    tuple(
                        (
                            str(point.together), point.model, point.policy, f"{point.right.value:.3f}",
                            str(point.less) if point.model == "MDM" else "", f"{point.nfe:.1f}",
                            f"{point.seconds:.4f}", str(point.faster) if point.model == "MDM" else "",
                        )
                        for point in points
                    ),
                ),
                *([judged_table(rows, texts)] if shown else []),
            ),
        )  # fmt: skip

    def figure(self, rows: Sequence[Row]) -> Figure:
        points = points_of(rows)
        counts = list(dict.fromkeys(point.together for point in points))
        figure = Figure(figsize=(8, 3 * len(counts)), layout="constrained")
        grid = figure.subplots(len(counts), 2, squeeze=False)
        families = list(dict.fromkeys(point.family for point in points))
        for panels, count in zip(grid, counts, strict=True):
            for panel, axis in zip(panels, ("nfe", "seconds"), strict=True):
                for i, family in enumerate(families):
                    here = [point for point in points if (point.together, point.family) == (count, family)]
                    here.sort(key=lambda point, axis=axis: getattr(point, axis))
                    panel.errorbar(
                        [getattr(point, axis) for point in here], [point.right.value for point in here],
                        [point.right.error for point in here], label=family, marker=MARKERS[i % 6],
                        color=COLOURS[i % 6], capsize=2, markersize=4,
                    )  # fmt: skip
                label = {"nfe": "evaluations an answer", "seconds": "seconds an answer"}[axis]
                panel.set(xlabel=label, ylabel="exact match (share)", title=f"{count} at once")
                costs = [getattr(point, axis) for point in points if point.together == count]
                log_axis(panel.xaxis, "{:.3g}".format, max(costs) / min(costs))
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
        return figure


@dataclass(frozen=True)
class Point:
    """One way of answering at one length, over seeds.

    A policy is chosen on the first half of the questions and measured on the second.
    """

    together: int
    model: str
    policy: str
    learnt: list[float]
    """Exact match on the first half, by seed."""
    close: float
    """Exact match less the ARM's on the first half."""
    right: Contrast
    """Exact match on the second half."""
    less: Contrast
    """Exact match less the ARM's on the same questions of the second half."""
    nfe: float
    seconds: float
    faster: Contrast
    """The ARM's seconds, measured in the same turn, over these."""

    @property
    def family(self) -> str:
        return f"{self.model}, {self.policy.partition('(')[0]}"


def points_of(rows: Sequence[Row]) -> list[Point]:
    """Every way of answering, in the order of measurement."""
    here = [row for row in rows if not row.get("trained") and not row.get("judged")]
    points = []
    for count in dict.fromkeys(row["together"] for row in here):
        length = [row for row in here if row["together"] == count]
        arm = {(row["seed"], row["turn"]): row for row in length if row["model"] == "ARM"}
        for model, policy in dict.fromkeys((row["model"], row["policy"]) for row in length):
            mine = [row for row in length if (row["model"], row["policy"]) == (model, policy)]
            beside = [arm[row["seed"], row["turn"]] for row in mine]
            first = [row for row in mine if row["turn"] == mine[0]["turn"]]  # answers do not depend on the turn
            hits = np.array([bits(row) for row in first])
            gaps = hits - np.array([bits(arm[row["seed"], row["turn"]]) for row in first])
            half = hits.shape[1] // 2
            points.append(
                Point(
                    count,
                    model,
                    policy,
                    hits[:, :half].mean(1).tolist(),
                    float(gaps[:, :half].mean()),
                    contrast(hits[:, half:]),
                    contrast(gaps[:, half:]),
                    statistics.fmean(row["nfe"] for row in first),
                    statistics.median(row["seconds_per_answer"] for row in mine),
                    _ratio([row["seed"] for row in mine], mine, beside),
                )
            )
    return points


def _ratio(seeds: Sequence[int], rows: Sequence[Row], beside: Sequence[Row]) -> Contrast:
    """Seconds beside over seconds, the median of each seed's turns."""
    by: dict[int, list[float]] = {}
    for seed, row, other in zip(seeds, rows, beside, strict=True):
        by.setdefault(seed, []).append(other["seconds_per_answer"] / row["seconds_per_answer"])
    return contrast(np.array([[statistics.median(each)] for each in by.values()]))


def compared(points: Sequence[Point], count: int) -> tuple[str, Held]:
    """The plain statement of one length, and whether the claim held there."""
    (arm,) = (point for point in points if point.model == "ARM")
    mdm = [point for point in points if point.model == "MDM"]
    where = f"{count} at once:"
    best = {"ARM": arm.learnt, "MDM": [max(each) for each in zip(*(point.learnt for point in mdm), strict=True)]}
    for name, learnt in best.items():
        if min(learnt) < USEFUL:
            told = f"{where} an {name} has not learnt to answer (right in {min(learnt):.1%}): nothing to compare."
            return told, "not shown at this scale"
    equal = [point for point in mdm if point.close >= -CLOSE]
    if not equal:
        nearest = max(mdm, key=lambda point: point.close)
        return (
            f"{where} no policy is as often right as the ARM ({arm.right.value:.1%}); the best, {nearest.policy}, is "
            f"in {nearest.right.value:.1%}.",
            "no",
        )
    chosen = min(equal, key=lambda point: point.seconds)
    pace, gain = chosen.faster, replace(chosen.faster, value=chosen.faster.value - 1)
    surely = chosen.less.value - chosen.less.half() > -MARGIN
    told = (
        f"{where} the MDM ({chosen.policy}, the fastest of those as often right on the first half of the questions) is "
        f"{'slower than' if pace.value < 1 else 'faster than'} the ARM with its cache, {pace} times as fast, "
        f"{'at equal quality' if surely else 'at a quality that is not surely equal'} ({chosen.right.value:.1%} "
        f"against {arm.right.value:.1%}, {chosen.nfe:.1f} evaluations against {arm.nfe:.1f})."
    )
    if not surely or not gain.sign():
        return told, "not shown at this scale"
    return told, "yes" if gain.sign() > 0 else "no"


def either(verdict: Held, other: Held) -> Held:
    """Of two measures of one length: "no" where one says so, else what either shows."""
    return next((each for each in ("no", "yes") if each in (verdict, other)), "not shown at this scale")


def policies(length: int, every: int = 1) -> list[Policy]:
    """Families at falling cost, down to everything at once."""
    powers = [2**i for i in range(0, math.ceil(math.log2(length)) + 1, every)]
    return [
        *(Confidence(k) for k in powers),
        *(RandomOrder(k) for k in powers),
        *(Tweedie(steps) for steps in powers),
    ]


def kept(row: Row) -> Row:
    """What an experiment keeps of answers."""
    keep = ("model", "turn", "questions", "nfe", "seconds_per_answer")
    policy = row["policy"].replace(", schedule=LogLinear()", "")
    return {**{name: row[name] for name in keep}, "policy": policy, "right": packed(row["values"]["right"])}
