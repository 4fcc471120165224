"""SMDM: the eight tasks of language understanding, by an MDM and its ARM twin through lm-evaluation-harness."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from matplotlib.figure import Figure

from unmask.checkpoint import load
from unmask.evaluate.tasks import TASKS, local_file
from unmask.experiments.asked import bits, packed
from unmask.experiments.averages import contrast
from unmask.experiments.beginning import Beginning
from unmask.experiments.running import Cell, Finding, Scale, Table, above_zero, at_least_one
from unmask.experiments.setting import KINDS, SETTINGS
from unmask.files import Row
from unmask.log import Report
from unmask.report.drawing import COLOURS

CHANCE = {
    "arc_easy": 25.0, "boolq": 62.2, "hellaswag": 25.0, "openbookqa": 25.0, "piqa": 50.0, "race": 25.0,
    "social_iqa": 100 / 3, "lambada_openai": 0.0,
}  # fmt: skip
"""Accuracy of a guess in per cent; BoolQ's is that of always yes."""
MARGIN = 2.0  # points of accuracy, on the mean of the tasks
DRAWS: dict[Scale, int] = {"tiny": 2, "laptop": 32, "gpu": 128}


@dataclass(frozen=True)
class Understanding:
    """Zero-shot accuracy of an MDM and an ARM of one text and budget on the eight tasks, beside chance."""

    local: Path | None = None
    """Folder of local files in place of the hub, as `unmask evaluate tasks` reads them; tasks without one are left out.
    """
    weights: tuple[float, ...] = (0.5,)
    """Weights of unsupervised guidance tried on the MDM's likelihoods beside none, which SMDM uses: chosen on the first
    half of a task's questions, tested on the second."""
    limit: int = 1000
    """Questions a task, the first ones; 3 at most at the tiny scale."""
    seeds: int = 3
    """Runs of each kind, which differ by their seed."""
    beginning: Annotated[Beginning, tyro.conf.OmitArgPrefixes] = field(default_factory=Beginning)

    def __post_init__(self) -> None:
        at_least_one(self, "limit", "seeds")
        above_zero(self, "weights")

    def corpus(self, scale: Scale, source: str, out: Path) -> tuple[str, str]:
        """Nothing is trained before it is known that the tasks can be asked."""
        try:
            from unmask.evaluate.harness import check_tasks
        except ModuleNotFoundError as error:
            raise ValueError(f'{error.name} is not installed: pip install "unmask[eval]"') from None
        check_tasks(self.tasks(), self.local)
        return source, str(self.beginning.tokenizer(out) or SETTINGS[scale].tokenizer)

    def tasks(self) -> list[str]:
        """Those that are at hand. Raises ValueError for a folder that has none."""
        names = [name for name in TASKS if self.local is None or local_file(name, self.local)]
        if not names:
            raise ValueError(
                f"{self.local}: no file of a known task: put NAME.jsonl there, NAME one of {', '.join(TASKS)}"
            )
        return names

    def plan(self, scale: Scale, data: str, rows: Sequence[Row]) -> list[Cell]:
        return self.beginning.twins(scale, data, SETTINGS[scale], self.seeds)

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str, told: Report) -> list[Row]:
        """Accuracy on each task. All models are asked the same questions, under the same maskings."""
        from unmask.evaluate.harness import Harness, evaluate_tasks

        limit, model = min(self.limit, 3) if scale == "tiny" else self.limit, load(folder)
        rows: list[Row] = []
        for weight in (0.0, *(() if model.causal else self.weights)):
            harness = Harness(model, draws=DRAWS[scale], guidance=weight, progress=told)
            rows += evaluate_tasks(harness, self.tasks(), local=self.local, limit=limit, cache=folder / "answers")
        keep = (
            "task",
            "guidance",
            "value",
            "stderr",
            "stderr_mc",
            "documents",
            "cut",
            "requests",
            "estimator",
            "bound",
            "protocol",
        )
        rows = [row for row in rows if row["metric"] == "acc"]
        return [{**{name: row[name] for name in keep}, "right": packed(row["values"]["score"])} for row in rows]

    def find(self, rows: Sequence[Row]) -> Finding:
        names = list(dict.fromkeys(row["task"] for row in rows))
        table, informed, better, worse, gaps = [], [], [], [], []
        for name in names:
            hits = {kind: 100.0 * right(rows, kind, name, 0.0) for kind in KINDS}
            above = [contrast(each - CHANCE[name]).sign(2 * len(names)) > 0 for each in hits.values()]
            if any(above):
                informed.append(name)
            gaps.append((hits["MDM"] - hits["ARM"]) / len(names))
            gap = contrast(len(names) * gaps[-1])
            {1: better, 0: [], -1: worse}[gap.sign(len(names))].append(name)
            published = TASKS[name].published
            table.append((
                name, f"{CHANCE[name]:.1f}", *(str(contrast(each)) for each in hits.values()), str(gap),
                f"{published[0]:.1f}" if published else "", f"{questions(rows, name):,}", f"{cut(rows, name):.0%}",
            ))  # fmt: skip
        held, overall = "not shown at this scale", contrast(*gaps)
        if 2 * len(informed) >= len(names):  # models that guess on most tasks cannot be told apart by them
            low, high = (overall.value + sign * overall.half() for sign in (-1, 1))
            held = "yes" if low > -MARGIN else "no" if high < -MARGIN else held
        guided, told = _guided(rows, names)
        return Finding(
            "An MDM understands language as well as an ARM of the same size and data (1.1B: better on four of the "
            "eight tasks).",
            f"Mean of {len(names)} tasks: {overall} points of the MDM against the ARM (as good: surely less "
            f"than {MARGIN:g} behind). Surely above chance is either model on {len(informed)} tasks; the MDM is surely "
            f"better on {len(better)} ({', '.join(better) or 'none'}), the ARM on {len(worse)} "
            f"({', '.join(worse) or 'none'}).{told}",
            held,
            (
                Table(
                    f"Zero-shot accuracy in per cent, seeds: {len({row['seed'] for row in rows})}; ± over questions "
                    "and seeds",
                    ("task", "chance", *KINDS, "MDM − ARM, paired", "SMDM, 220M", "questions", "contexts cut"),
                    tuple(table),
                ),
                *guided,
            ),
        )

    def figure(self, rows: Sequence[Row]) -> Figure:
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        axes, names = figure.subplots(), list(dict.fromkeys(row["task"] for row in rows))
        for i, kind in enumerate(KINDS):
            values = [contrast(100.0 * right(rows, kind, name, 0.0)) for name in names]
            shares, errors = [each.value for each in values], [each.error for each in values]
            places = [j + 0.36 * (i - 0.5) for j in range(len(names))]
            axes.bar(places, shares, 0.34, yerr=errors, label=kind, color=COLOURS[i], capsize=2)
        for j, name in enumerate(names):
            axes.hlines(CHANCE[name], j - 0.45, j + 0.45, color="gray", ls="--", label="_" if j else "chance")
        axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
        axes.set_ylabel("accuracy (%)")
        axes.legend()
        return figure


def _guided(rows: Sequence[Row], names: Sequence[str]) -> tuple[list[Table], str]:
    """What guidance adds to the MDM's accuracy, as a table and a sentence; nothing where none was tried."""
    weights = sorted({row["guidance"] for row in rows if row["model"] == "MDM"})
    if len(weights) < 2:
        return [], ""
    table, signs = [], []
    for name in names:
        hits = [100.0 * right(rows, "MDM", name, weight) for weight in weights]
        half = hits[0].shape[1] // 2
        best = max(range(len(weights)), key=lambda i: (hits[i][:, :half].mean(), -i))
        gain = contrast((hits[best] - hits[0])[:, half:])
        signs.append(gain.sign(len(names)))
        table.append((
            name, f"{weights[best]:g}", str(contrast(hits[0][:, half:])), str(contrast(hits[best][:, half:])), str(gain)
        ))  # fmt: skip
    told = f" Unsupervised guidance surely gains on {signs.count(1)} and loses on {signs.count(-1)} of {len(names)}."
    title = "Guidance of the MDM's likelihoods, its weight the best on the first half of the questions; of the second"
    header = ("task", "weight", "none", "guided", "gain, paired by question")
    return [Table(f"{title}, in per cent", header, tuple(table))], told


def right(rows: Sequence[Row], kind: str, task: str, guidance: float) -> np.ndarray:
    """[seeds, questions]: all are asked the same ones."""
    here = [row for row in rows if (row["model"], row["task"], row["guidance"]) == (kind, task, guidance)]
    return np.array([bits(row) for row in sorted(here, key=lambda row: row["seed"])])


def questions(rows: Sequence[Row], task: str) -> int:
    return next(row["documents"] for row in rows if row["task"] == task)


def cut(rows: Sequence[Row], task: str) -> float:
    """Share of the requests whose context did not fit."""
    row = next(row for row in rows if row["task"] == task)
    return row["cut"] / row["requests"]
