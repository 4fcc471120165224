"""SMDM: the eight tasks of language understanding, by an MDM and its ARM twin through lm-evaluation-harness."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from matplotlib.figure import Figure

from unmask.checkpoint import load
from unmask.evaluate.tasks import TASKS, local_file
from unmask.experiments.averages import said
from unmask.experiments.beginning import Beginning
from unmask.experiments.running import Cell, Finding, Scale, Table
from unmask.experiments.setting import SETTINGS
from unmask.files import Row
from unmask.objectives import AnyOrder, NextToken
from unmask.report.drawing import COLOURS

KINDS = {"MDM": AnyOrder(0.5), "ARM": NextToken()}
CHANCE = {
    "arc_easy": 25.0, "boolq": 50.0, "hellaswag": 25.0, "openbookqa": 25.0, "piqa": 50.0, "race": 25.0,
    "social_iqa": 100 / 3, "lambada_openai": 0.0,
}  # fmt: skip
"""Accuracy of a guess in per cent. Of BoolQ's validation questions 62.2% are answered by yes."""
DRAWS: dict[Scale, int] = {"tiny": 2, "laptop": 32, "gpu": 128}


@dataclass(frozen=True)
class Understanding:
    """Zero-shot accuracy of an MDM and an ARM of one text and budget on the eight tasks, beside chance."""

    local: Path | None = None
    """Folder of local files in place of the hub, as `unmask evaluate tasks` reads them; tasks without one are left out.
    """
    limit: int = 200
    """Questions a task, the first ones; 3 at most at the tiny scale."""
    seeds: int = 3
    """Runs of each kind, which differ by their seed."""
    beginning: Annotated[Beginning, tyro.conf.OmitArgPrefixes] = field(default_factory=Beginning)

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
        setting = SETTINGS[scale]
        return [
            self.beginning(
                Cell(
                    f"{kind.lower()}-{seed}", setting.config(data, objective, seed=seed), {"model": kind, "seed": seed}
                )
            )
            for seed in range(1 if scale == "tiny" else self.seeds)
            for kind, objective in KINDS.items()
        ]

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str) -> list[Row]:
        """Accuracy on each task. All models are asked the same questions, under the same maskings."""
        from unmask.evaluate.harness import Harness, evaluate_tasks

        limit = min(self.limit, 3) if scale == "tiny" else self.limit
        rows = evaluate_tasks(Harness(load(folder), draws=DRAWS[scale]), self.tasks(), local=self.local, limit=limit)
        keep = (
            "task",
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
        return [{name: row[name] for name in keep} for row in rows if row["metric"] == "acc"]

    def find(self, rows: Sequence[Row]) -> Finding:
        names = list(dict.fromkeys(row["task"] for row in rows))
        gaps = {name: difference(rows, name) for name in names}
        table, informed, better, worse = [], [], [], []
        for name in names:
            shares = {kind: accuracy(rows, kind, name) for kind in KINDS}
            if any(share - CHANCE[name] > 2 * error for share, error in shares.values()):
                informed.append(name)
            gap, error = gaps[name]
            (better if gap > 2 * error else worse if gap < -2 * error else []).append(name)
            published = TASKS[name].published
            table.append((
                name, f"{CHANCE[name]:.1f}", *(said(*share) for share in shares.values()), said(gap, error),
                f"{published[0]:.1f}" if published else "", f"{questions(rows, name):,}", f"{cut(rows, name):.0%}",
            ))  # fmt: skip
        enough = 2 * len(informed) >= len(names)  # models that guess on most tasks cannot be told apart by them
        held = "not shown at this scale" if not enough else "yes" if 2 * len(better) >= len(names) else "no"
        return Finding(
            "A 1.1B MDM does better than an ARM of the same size and data on four of the eight tasks.",
            f"Above chance by two standard errors is either model on {len(informed)} of {len(names)} tasks; the MDM is "
            f"better by two on {len(better)} ({', '.join(better) or 'none'}), the ARM on {len(worse)} "
            f"({', '.join(worse) or 'none'}).",
            held,
            (
                Table(
                    f"Zero-shot accuracy in per cent, mean of {len({row['seed'] for row in rows})} seeds; ± over "
                    "questions, those of the difference as if unpaired: too wide, if anything",
                    ("task", "chance", *KINDS, "MDM − ARM", "SMDM, 220M", "questions", "contexts cut"),
                    tuple(table),
                ),
            ),
        )

    def figure(self, rows: Sequence[Row]) -> Figure:
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        axes, names = figure.subplots(), list(dict.fromkeys(row["task"] for row in rows))
        for i, kind in enumerate(KINDS):
            shares, errors = zip(*(accuracy(rows, kind, name) for name in names), strict=True)
            places = [j + 0.36 * (i - 0.5) for j in range(len(names))]
            axes.bar(places, shares, 0.34, yerr=errors, label=kind, color=COLOURS[i], capsize=2)
        for j, name in enumerate(names):
            axes.hlines(CHANCE[name], j - 0.45, j + 0.45, color="gray", ls="--", label="_" if j else "chance")
        axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
        axes.set_ylabel("accuracy (%)")
        axes.legend()
        return figure


def accuracy(rows: Sequence[Row], kind: str, task: str) -> tuple[float, float]:
    """(per cent, standard error over questions), means over seeds: all seeds are asked the same questions."""
    here = [row for row in rows if (row["model"], row["task"]) == (kind, task)]
    shares, errors = (
        [row["value"] for row in here],
        [math.nan if row["stderr"] is None else row["stderr"] for row in here],
    )
    return 100 * sum(shares) / len(shares), 100 * sum(errors) / len(errors)


def difference(rows: Sequence[Row], task: str) -> tuple[float, float]:
    """MDM less ARM in per cent, and an error that takes the two for independent."""
    (mdm, error), (arm, other) = (accuracy(rows, kind, task) for kind in KINDS)
    return mdm - arm, math.hypot(error, other)


def questions(rows: Sequence[Row], task: str) -> int:
    return next(row["documents"] for row in rows if row["task"] == task)


def cut(rows: Sequence[Row], task: str) -> float:
    """Share of the requests whose context did not fit."""
    row = next(row for row in rows if row["task"] == task)
    return row["cut"] / row["requests"]
