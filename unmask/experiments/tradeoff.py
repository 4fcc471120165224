"""SMDM: what an answer costs at what quality, an MDM of several policies and steps against an ARM with its KV cache."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from matplotlib.figure import Figure

from unmask.checkpoint import load
from unmask.evaluate.ablation import paired, tradeoff_rows
from unmask.evaluate.answers import Asking
from unmask.experiments.asked import asked_of, learnt_from, prepared, sized, together, written
from unmask.experiments.averages import mean_error, said
from unmask.experiments.beginning import Beginning
from unmask.experiments.judged import judged_compared, judged_points, judged_rows, judged_table
from unmask.experiments.running import Cell, Finding, Held, Scale, Table
from unmask.files import Row
from unmask.objectives import AnyOrder, NextToken
from unmask.report.drawing import COLOURS, MARKERS, log_axis
from unmask.sampling import Confidence, Draw, LeftToRight, Policy, RandomOrder, Tweedie

KINDS = {"ARM": NextToken(), "MDM": AnyOrder(0.5)}
PUBLISHED = 1.4  # times faster than the ARM at equal quality, SMDM's abstract
MARGIN = 0.01  # equal quality: an exact match at most this much below the ARM's
USEFUL = 0.5  # an ARM that answers less than this has no quality to equal


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
        asked_of(source, self.questions)
        tokenizer = self.beginning.tokenizer(out)
        for count in self.together:
            file = None
            if count > 1:
                file = written(together(learnt_from(source), count), out / f"together-{count}.jsonl")
            prepared(source, scale, out / f"pairs-{count}", tokenizer, file)
        return out / f"pairs-{self.together[0]}"

    def plan(self, scale: Scale, data: str, rows: Sequence[Row]) -> list[Cell]:
        """The ARMs, then of each length and seed the MDM, which is measured beside its ARM in one run."""
        trained = {(row["together"], row["seed"]) for row in rows}
        cells = []
        for kind, objective in KINDS.items():
            for count in self.together:
                folder = Path(data).with_name(f"pairs-{count}")
                for seed in range(1 if scale == "tiny" else self.seeds):
                    if kind == "ARM" or (count, seed) in trained:
                        config = sized(scale, folder).config(str(folder), objective, seed=seed)
                        cell = Cell(f"{kind.lower()}-{count}-{seed}", config, {"together": count, "seed": seed})
                        cells.append(self.beginning(cell))
        return cells

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str) -> list[Row]:
        cost = {"trained": True, "parameters": cell.config.network.parameters()["total"], **cell.config.cost()}
        if cell.config.network.causal:
            return [{"model": "ARM", **cost}]
        count, seed, setting = cell.labels["together"], cell.config.seed, sized(scale, cell.config.data)
        questions = together(asked_of(source, self.questions), count)[: setting.sequences]
        asking = Asking(draw=Draw(temperature=0), block=setting.length, seed=seed, batch=self.batch)
        models = {"ARM": load(folder.with_name(f"arm-{count}-{seed}")), "MDM": load(folder)}
        ways = {"ARM": [LeftToRight()], "MDM": policies(setting.length)}
        asked = {name: [replace(asking, policy=policy) for policy in each] for name, each in ways.items()}
        rows = tradeoff_rows(models, questions, asked)
        few = {**asked, "MDM": [replace(asking, policy=policy) for policy in policies(setting.length, every=2)]}
        texts = [] if self.judge is None else judged_rows(models, questions, few, self.judge)
        return [{"model": "MDM", **cost}, *({**kept(row), **paired(row, rows[0])} for row in rows), *texts]

    def find(self, rows: Sequence[Row]) -> Finding:
        points = points_of(rows)
        told, verdicts, texts, shown = [], [], judged_points(rows), any(row.get("judged") for row in rows)
        for count in dict.fromkeys(point.together for point in points):
            sentence, verdict = compared([point for point in points if point.together == count], count)
            told.append(sentence)
            if shown:
                sentence, by_judge = judged_compared(texts, count)
                told.append(sentence)
                verdict = by_judge if verdict == "not shown at this scale" else verdict
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
                    "Exact match at temperature 0, its cost an answer, ± over seeds or over questions, the larger; "
                    f"each length and seed on one machine in one run; longest: {sizes}",
                    ("at once", "model", "policy", "exact match", "less the ARM's", "NFE", "seconds", "times faster"),
                    tuple(
                        (
                            str(point.together), point.model, point.policy, f"{point.right[0]:.3f}",
                            said(*point.less) if point.model == "MDM" else "", f"{point.nfe:.1f}",
                            f"{point.seconds:.4f}", said(*point.faster) if point.model == "MDM" else "",
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
                        [getattr(point, axis) for point in here], [point.right[0] for point in here],
                        [point.right[1] for point in here], label=family, marker=MARKERS[i % 6], color=COLOURS[i % 6],
                        capsize=2, markersize=4,
                    )  # fmt: skip
                label = {"nfe": "evaluations an answer", "seconds": "seconds an answer"}[axis]
                panel.set(xlabel=label, ylabel="exact match (share)", title=f"{count} at once")
                costs = [getattr(point, axis) for point in points if point.together == count]
                log_axis(panel.xaxis, "{:.3g}".format, max(costs) / min(costs))
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
        return figure


@dataclass(frozen=True)
class Point:
    """One way of answering at one length, a mean over seeds; pairs are (value, standard error)."""

    together: int
    model: str
    policy: str
    right: tuple[float, float]
    less: tuple[float, float]
    """Exact match less the ARM's on the same questions."""
    nfe: float
    seconds: float
    faster: tuple[float, float]
    """The ARM's seconds over these, seed by seed."""

    @property
    def family(self) -> str:
        return f"{self.model}, {self.policy.partition('(')[0]}"


def points_of(rows: Sequence[Row]) -> list[Point]:
    """Every way of answering, in the order of measurement."""
    here = [row for row in rows if not row.get("trained") and not row.get("judged")]
    points = []
    for count, model, policy in dict.fromkeys((row["together"], row["model"], row["policy"]) for row in here):
        mine = [r for r in here if (r["together"], r["model"], r["policy"]) == (count, model, policy)]
        arm = {r["seed"]: r["seconds_per_answer"] for r in here if (r["together"], r["model"]) == (count, "ARM")}
        faster = mean_error([arm[row["seed"]] / row["seconds_per_answer"] for row in mine])
        nfe, seconds = (mean_error([row[name] for row in mine])[0] for name in ("nfe", "seconds_per_answer"))
        right, less = (over(mine, *names) for names in (("exact_match", "stderr"), ("difference", "difference_stderr")))
        points.append(Point(count, model, policy, right, less, nfe, seconds, faster))
    return points


def over(rows: Sequence[Row], name: str, error: str) -> tuple[float, float]:
    """(mean over seeds, standard error over seeds or over the questions of one seed, the larger)."""
    mean, seeds = mean_error([row[name] for row in rows])
    return mean, max([row[error] or 0.0 for row in rows] + ([] if math.isnan(seeds) else [seeds]))


def compared(points: Sequence[Point], count: int) -> tuple[str, Held]:
    """The plain statement of one length, and whether the claim held there."""
    (arm,) = (point for point in points if point.model == "ARM")
    mdm = [point for point in points if point.model == "MDM"]
    where = f"{count} at once:"
    if arm.right[0] < USEFUL:
        return f"{where} the ARM is right in {arm.right[0]:.1%}, too few to compare.", "not shown at this scale"
    equal = [point for point in mdm if point.less[0] >= -MARGIN]
    if not equal:
        best = max(mdm, key=lambda point: point.right[0])
        return (
            f"{where} no policy is as often right as the ARM ({arm.right[0]:.1%}); the best, {best.policy}, is in "
            f"{best.right[0]:.1%}.",
            "no",
        )
    best = min(equal, key=lambda point: point.seconds)
    ratio, error = best.faster
    pace = f"{said(ratio, error)} times as fast as"
    if ratio < 1:
        pace = f"slower than ({said(ratio, error)} times as fast as)"
    return (
        f"{where} the MDM ({best.policy}) is {pace} the ARM at equal quality ({best.right[0]:.1%} against "
        f"{arm.right[0]:.1%}, {best.nfe:.1f} evaluations against {arm.nfe:.1f}).",
        "yes" if ratio - (0.0 if math.isnan(error) else 2 * error) > 1 else "no",
    )


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
    keep = ("model", "policy", "exact_match", "stderr", "questions", "nfe", "seconds_per_answer")
    return {name: row[name] for name in keep} | {"policy": row["policy"].replace(", schedule=LogLinear()", "")}
