"""SMDM: what an answer costs at what quality, an MDM of several policies and steps against an ARM with its KV cache."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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
from unmask.evaluate.answers import Asking, Question
from unmask.experiments.asked import (
    SIZES,
    USEFUL,
    asked_of,
    bits,
    enough,
    learnt_questions,
    packed,
    prepared,
    sized,
    together,
    written,
)
from unmask.experiments.beginning import Beginning
from unmask.experiments.judged import judged_compared, judged_rows, judged_table, judged_ways
from unmask.experiments.running import Cell, Finding, Held, Scale, Table, at_least_one, keeping
from unmask.experiments.setting import KINDS
from unmask.experiments.ways import Measure, Way, by_half, compared, together_held, ways_of
from unmask.files import Row
from unmask.log import Report
from unmask.report.drawing import COLOURS, MARKERS, log_axis
from unmask.sampling import Confidence, Draw, EntropyBound, LeftToRight, Policy, RandomOrder, Threshold, Tweedie

PUBLISHED = 1.4  # times faster than the ARM at equal quality, SMDM's abstract
NEAR = 0.05
"""A way this little less right than the ARM is timed again, in so many ..."""
TURNS = 10
TIMED = 256
"""... of so many questions."""
NATS, SHARE = "nats a judge's token", "exact match (share)"
RIGHT = Measure(
    "as often right as the ARM (to 2 points)", 0.02,
    lambda way: f"is right in {way.quality.value:.1%} of the second ({way.gained * 100} points against the ARM)",
)  # fmt: skip


@dataclass(frozen=True)
class Tradeoff:
    """Exact match against seconds and evaluations: MDM and ARM of one size, data and training, at several lengths."""

    questions: str | None = None
    """Questions to ask; by default those of the built-in sums, or a twentieth of the source, held out."""
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

    def __post_init__(self) -> None:
        at_least_one(self, "together", "batch", "seeds")

    def corpus(self, scale: Scale, source: str, out: Path) -> Path:
        """A folder of pairs a length, beside each other; that of the first length."""
        for count in self.together:
            enough(self._asked(source, count), self.questions or source)
        if self.judge is not None:
            load_judge(self.judge)  # which is missed hours later otherwise
        tokenizer = self.beginning.tokenizer(out)
        for count in self.together:
            file = None
            if count > 1:
                learnt = learnt_questions(source, self.questions)
                learnt = together(learnt, count, source, passes=count)  # as many examples as questions
                file = written(learnt, out / f"together-{count}.jsonl")
            prepared(source, scale, out / f"pairs-{count}", tokenizer, file)
        return out / f"pairs-{self.together[0]}"

    def _asked(self, source: str, count: int) -> list[Question]:
        return together(asked_of(source, self.questions), count, self.questions or source)

    def plan(self, scale: Scale, data: str, rows: Sequence[Row]) -> list[Cell]:
        """The ARMs, then of each length and seed the MDM, which is measured beside its ARM in one run."""
        cells = []
        for kind, objective in reversed(KINDS.items()):
            for count in self.together:
                folder = Path(data).with_name(f"pairs-{count}")
                for seed in self.beginning.seeds(scale, self.seeds):
                    config = sized(folder, SIZES[scale]).config(str(folder), objective, seed=seed)
                    name, labels = f"{kind.lower()}-{count}-{seed}", {"together": count, "seed": seed}
                    needs = None if kind == "ARM" else f"arm-{count}-{seed}"
                    cells.append(self.beginning(Cell(name, config, labels, needs=needs)))
        return cells

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str, told: Report) -> list[Row]:
        cost = {"trained": True, "parameters": cell.config.network.parameters()["total"], **cell.config.cost()}
        if cell.config.network.causal:
            return [{"model": "ARM", **cost}]
        count, seed, setting = cell.labels["together"], cell.config.seed, sized(cell.config.data, SIZES[scale])
        questions = self._asked(source, count)[: setting.sequences]
        data = cell.config.data
        template = load_template(data, Tokenizer.load(data))
        asking = Asking(draw=Draw(0), block=setting.length, seed=seed, batch=self.batch, template=template)
        models = {"ARM": load(folder.with_name(f"arm-{count}-{seed}")), "MDM": load(folder)}
        arm, keep = replace(asking, policy=LeftToRight()), keeping(self, folder, source)
        every, few = (
            [replace(asking, policy=policy) for policy in policies(setting.length, every=each)] for each in (1, 2)
        )

        def turns(ways: Sequence[Asking], questions: Sequence[Question], first: int = 0) -> list[Row]:
            """Rows of a `turn` are of one time: the ARM is asked anew beside each way of the MDM."""
            rows = []
            for turn, way in enumerate(ways, first):
                pair = partial(tradeoff_rows, models, questions, {"ARM": arm, "MDM": way}, told)
                rows += [{**row, "turn": turn} for row in keep(f"turn-{turn}", pair)]
            return rows

        rows = turns(every, questions)
        later = turns(near(rows, every) * TURNS, questions[-TIMED:], len(every))
        texts = [] if self.judge is None else judged_rows(models, questions, arm, few, self.judge, told, keep)
        rows = [{**timed(row), "right": packed(row["values"]["right"])} for row in rows]
        return [{"model": "MDM", **cost}, *rows, *map(timed, later), *texts]

    def find(self, rows: Sequence[Row]) -> Finding:
        ways, judged = exact_ways(rows), judged_ways(rows)
        sentences, lengths, shown = [], [], any(row.get("judged") for row in rows)
        counts = list(dict.fromkeys(way.together for way in ways))
        tests = len(counts) * (1 + shown)
        for count in counts:
            told = [exact_compared(ways, count, tests)]
            told += [judged_compared(judged, count, tests)] if shown else []
            sentences += [sentence for sentence, _ in told]
            lengths.append([held for _, held in told])
        trained = sorted((row for row in rows if row.get("trained")), key=lambda row: row["flops_true"])
        costs = {row["model"]: row for row in trained}
        sizes = ", ".join(
            f"{name} {row['parameters']:,} parameters, {row['flops_6nd']:.2e} training FLOPs (6ND), "
            f"{row['flops_true']:.2e} true"
            for name, row in costs.items()
        )
        return Finding(
            f"Trained 16 times as long, an MDM is as good as an ARM with KV cache and {PUBLISHED} times as fast.",
            f"Trained on as many tokens: {' '.join(sentences)}",
            together_held(lengths),
            (
                Table(
                    "Exact match at temperature 0 on the second half of the questions, ± over seeds and questions; "
                    "cost an answer, times beside the ARM's of the same turn; each length and seed on one machine in "
                    f"one run; longest: {sizes}",
                    ("at once", "model", "policy", "exact match", "less the ARM's", "NFE", "seconds", "times faster"),
                    tuple(
                        (
                            str(way.together), way.model, way.policy, f"{way.quality.value:.3f}",
                            str(way.gained) if way.model == "MDM" else "", f"{way.nfe:.1f}",
                            f"{way.seconds:.4f}", str(way.faster) if way.model == "MDM" else "",
                        )
                        for way in ways
                    ),
                ),
                *([judged_table(rows, judged)] if shown else []),
            ),
        )  # fmt: skip

    def figure(self, rows: Sequence[Row]) -> Figure:
        panels = [
            (f"{count} at once", name, [way for way in ways if way.together == count])
            for name, ways in ((SHARE, exact_ways(rows)), (NATS, judged_ways(rows)))
            for count in dict.fromkeys(way.together for way in ways)
        ]
        figure = Figure(figsize=(8, 3 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), 2, squeeze=False)
        families = list(dict.fromkeys(family(way) for _, _, ways in panels for way in ways))
        for pair, (title, name, ways) in zip(grid, panels, strict=True):
            for panel, axis in zip(pair, ("nfe", "seconds"), strict=True):
                for i, each in enumerate(families):
                    here = [way for way in ways if family(way) == each]
                    here.sort(key=lambda way, axis=axis: getattr(way, axis))
                    panel.errorbar(
                        [getattr(way, axis) for way in here], [abs(way.quality.value) for way in here],
                        [way.quality.error for way in here], label=each, marker=MARKERS[i % 6],
                        color=COLOURS[i % 6], capsize=2, markersize=4,
                    )  # fmt: skip
                label = {"nfe": "evaluations an answer", "seconds": "seconds an answer"}[axis]
                panel.set(xlabel=label, ylabel=name, title=title)
                if name == SHARE:
                    panel.set_ylim(0, 1.02)
                costs = [getattr(way, axis) for way in ways]
                log_axis(panel.xaxis, "{:.3g}".format, max(costs) / min(costs))
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
        return figure


def family(way: Way) -> str:
    return f"{way.model}, {way.policy.partition('(')[0]}"


def exact_ways(rows: Sequence[Row]) -> list[Way]:
    """Every way of answering, by exact match."""
    here = [row for row in rows if not row.get("trained") and not row.get("judged")]
    return ways_of(here, lambda rows, half: np.array([bits(row)[half] for row in rows]))


def exact_compared(ways: Sequence[Way], count: int, tests: int) -> tuple[str, Held | None]:
    """The plain statement of one length, and whether the claim held there; None where a model has not learnt."""
    here = [way for way in ways if way.together == count]
    arm, mdm = ([way for way in here if way.model == name] for name in ("ARM", "MDM"))
    where = f"{count} at once:"
    for name, each in (("ARM", arm), ("MDM", mdm)):
        learnt = min(max(seed) for seed in zip(*(way.learnt for way in each), strict=True))
        if learnt < USEFUL:
            return f"{where} an {name} has not learnt to answer (right in {learnt:.1%}): nothing to compare.", None
    sentence, held = compared(mdm, RIGHT, tests)
    return f"{where} {sentence}", held


def near(rows: Sequence[Row], ways: Sequence[Asking]) -> list[Asking]:
    """The MDM's ways that may be as good as the ARM, and are worth timing again: none where either has not learnt."""
    arm, *_ = (row["exact_match"] for row in rows if row["model"] == "ARM")
    mine = [row["exact_match"] for row in rows if row["model"] == "MDM"]
    good = max(USEFUL, arm - NEAR)
    return [way for way, right in zip(ways, mine, strict=True) if right >= good] if arm >= USEFUL else []


def policies(length: int, every: int = 1) -> list[Policy]:
    """Families at falling cost, down to everything at once."""
    powers = [2**i for i in range(0, math.ceil(math.log2(length)) + 1, every)]
    return [
        *(Confidence(k) for k in powers),
        *(RandomOrder(k) for k in powers),
        *(Tweedie(steps) for steps in powers),
        *(Threshold(p) for p in (0.99, 0.97, 0.9, 0.7, 0.5)[::every]),
        *(EntropyBound(nats) for nats in (0.01, 0.03, 0.1, 0.3, 1.0)[::every]),
    ]


def timed(row: Row) -> Row:
    """What an experiment keeps of answers, but for which were right."""
    policy = row["policy"].replace(", schedule=LogLinear()", "")
    keep = {name: row[name] for name in ("model", "turn", "questions", "nfe")}
    return {**keep, "policy": policy, "seconds": by_half(row["values"]["seconds"])}
