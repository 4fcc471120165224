"""SMDM: fine-tuned on one set of questions and answers, an MDM beside its ARM twin."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Int
from matplotlib.figure import Figure
from torch import Tensor

from unmask.checkpoint import Model, load
from unmask.data import Tokenizer
from unmask.data.pairs import Pairs, load_template
from unmask.evaluate.answers import Asking, Question, answered, exact_match, references
from unmask.experiments.asked import SIZES, asked_of, bits, packed, prepared, sized
from unmask.experiments.averages import Contrast, contrast, rates
from unmask.experiments.beginning import Beginning
from unmask.experiments.facts import bleu
from unmask.experiments.running import Cell, Finding, Scale, Table, at_least_one
from unmask.experiments.setting import KINDS, Setting
from unmask.files import Row
from unmask.likelihood import log_likelihood
from unmask.log import Report
from unmask.report.drawing import COLOURS
from unmask.sampling import Confidence, Draw, LeftToRight
from unmask.train import TrainConfig

TUNED: dict[Scale, Setting] = {
    **SIZES,
    "laptop": replace(SIZES["laptop"], length=384, batch=16, steps=450, rate=4e-3),
    "gpu": replace(SIZES["gpu"], batch=64, steps=2000, rate=1e-4),
}
"""How checkpoints are trained on; new weights are trained as in all experiments that ask questions."""
DRAWS: dict[Scale, int] = {"tiny": 2, "laptop": 16, "gpu": 64}
LEARNT = 0.1  # who is right less often has not learnt to answer
MARGIN = 0.02  # of the share right


@dataclass(frozen=True)
class Finetuning:
    """Learn to answer: how often an MDM and its ARM twin are right, and what the true answers cost them."""

    questions: str | None = None
    """Questions to ask; by default those of the built-in sums, or a twentieth of the source, held out."""
    limit: int = 256
    """Questions asked, the first ones, and true answers scored; 3 at most at the tiny scale."""
    tokens: int = 1
    """Tokens of an answer that the MDM writes a step, the most confident first."""
    seeds: int = 3
    """Runs of each kind, which differ by their seed."""
    beginning: Annotated[Beginning, tyro.conf.OmitArgPrefixes] = field(default_factory=Beginning)

    def __post_init__(self) -> None:
        at_least_one(self, "limit", "tokens", "seeds")

    def corpus(self, scale: Scale, source: str, out: Path) -> Path:
        asked_of(source, self.questions)
        return prepared(source, scale, out / "pairs", self.beginning.tokenizer(out), held_out=self.questions)

    def plan(self, scale: Scale, data: str, rows: Sequence[Row]) -> list[Cell]:
        setting = sized(data, (TUNED if self.beginning.init else SIZES)[scale])
        return self.beginning.twins(scale, data, setting, self.seeds)

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str, told: Report) -> list[Row]:
        model, config = load(folder), cell.config
        limit = min(self.limit, 3) if scale == "tiny" else self.limit
        policy = LeftToRight() if model.causal else Confidence(self.tokens)
        template = load_template(config.data, Tokenizer.load(config.data))
        asking = Asking(policy, Draw(0.0), block=config.length, seed=config.seed, template=template)
        return [
            {
                **likelihoods(model, config, limit, DRAWS[scale], told),
                **written(model, asked_of(source, self.questions)[:limit], asking, told),
            }
        ]

    def find(self, rows: Sequence[Row]) -> Finding:
        found = {kind: columns(rows, kind) for kind in KINDS}
        gaps = [contrast(mdm - arm) for mdm, arm in zip(*found.values(), strict=True)]
        true, tells, right, _ = gaps
        shares = {kind: float(each[2].mean()) for kind, each in found.items()}
        held, learnt = "not shown at this scale", min(shares.values()) >= LEARNT
        if learnt:
            low, high = (right.value + sign * right.half() for sign in (-1, 1))
            held = "yes" if low > -MARGIN else "no" if high < -MARGIN else held
        table = [(kind, *(str(contrast(each)) for each in found[kind]), cost(rows, kind)) for kind in KINDS]
        first, kinds = rows[0], {kind: of(rows, kind)[0]["bound"] for kind in KINDS}
        return Finding(
            "Fine-tuned on the same answers, an MDM answers as well as an ARM of its size (MT-Bench: the same score); "
            "with 1.1B parameters it is right in 58.5% of GSM8K.",
            f"Right are {' and '.join(f'{share:.1%} ({kind})' for kind, share in shares.items())} of "
            f"{len(bits(first))} answers{'' if learnt else ': too few to compare'}. A token of the true answer costs "
            f"the MDM, by its bound, {_more(true)} than the ARM; to see its question, and not another's, is worth "
            f"{_more(tells, 'nats a token')} to the MDM.",
            held,
            (
                Table(
                    f"{first['examples']:,} held-out answers that with their questions fit in {first['length']} tokens "
                    f"({first['left_out']:,} do not), by their likelihood "
                    f"({', '.join(f'{kind}: {bound}' for kind, bound in kinds.items())}), and "
                    f"{len(bits(first)):,} questions answered at "
                    "temperature 0, by the MDM the most confident tokens first; ± over answers and seeds",
                    ("model", "nats a token", "what the question tells, nats a token", "exact match",
                     "BLEU-4 (characters)", "NFE an answer"),
                    (*table, ("MDM − ARM, paired", *map(str, gaps), "")),
                ),
            ),
        )  # fmt: skip

    def figure(self, rows: Sequence[Row]) -> Figure:
        figure = Figure(figsize=(9, 3), layout="constrained")
        panels = figure.subplots(1, 3)
        names = ("nats a token of the true answer", "nats a token that the question tells", "share right")
        for i, (panel, name) in enumerate(zip(panels, names, strict=True)):
            for place, kind in enumerate(KINDS):
                each = contrast(columns(rows, kind)[i])
                panel.bar(place, each.value, yerr=each.error, color=COLOURS[place], capsize=3)
            panel.set_xticks(range(len(KINDS)), KINDS)
            panel.set_title(name, fontsize=9)
        panels[-1].set_ylim(bottom=0)
        return figure


def _more(gap: Contrast, unit: str = "nats") -> str:
    return f"{gap} {unit} more" if gap.value >= 0 else f"{gap * -1} {unit} less"


def of(rows: Sequence[Row], kind: str) -> list[Row]:
    return sorted((row for row in rows if row["model"] == kind), key=lambda row: row["seed"])


def columns(rows: Sequence[Row], kind: str) -> list[np.ndarray]:
    """[seeds, answers] each: nats a token, what the question tells, right, BLEU."""
    mine = of(rows, kind)
    nats, other = (np.array([row[name] for row in mine]) for name in ("nats", "other"))
    tokens = np.array(mine[0]["tokens"])
    texts = np.array([row["bleu"] for row in mine])
    return [rates(nats, tokens), rates(other - nats, tokens), np.array([bits(row) for row in mine]), texts]


def cost(rows: Sequence[Row], kind: str) -> str:
    return f"{np.mean([row['nfe'] for row in of(rows, kind)]):.1f}"


def likelihoods(model: Model, config: TrainConfig, limit: int, draws: int, told: Report) -> Row:
    """Nats of held-out answers, up to their end token and the filling behind it, as they are and each behind the
    question of the next.
    """
    _, held_out = config.sequences(model.tokenizer)
    assert isinstance(held_out, Pairs)
    count = min(limit, len(held_out))
    x_0, maskable, _ = held_out.take(range(count))
    sizes = 1 + torch.from_numpy(held_out.pairs.lengths[held_out.fitting[:count]])
    own = log_likelihood(model, x_0, maskable, draws=draws, progress=told)
    other = log_likelihood(model, *exchanged(x_0, maskable, sizes), draws=draws, progress=told)
    learnt = maskable & (torch.arange(x_0.shape[1]) < sizes[:, None])
    return {
        "examples": count,
        "left_out": held_out.left_out,
        "length": config.length,
        "bound": own.bound,
        "tokens": learnt.sum(1).tolist(),
        "nats": rounded(own.per_sequence),
        "other": rounded(other.per_sequence),
    }


def exchanged(
    x_0: Int[Tensor, "B S"], maskable: Bool[Tensor, "B S"], sizes: Int[Tensor, " B"]
) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"]]:
    """Each answer behind the question of the next row, whose beginning goes where the block has no room for it.

    Row b has `sizes[b]` positions and, behind them, the filling of its answer.
    """
    first = maskable.int().argmax(1)
    behind, scored = x_0[:, -1:].expand_as(x_0).clone(), maskable[:, -1:].expand_as(x_0).clone()
    for row in range(len(x_0)):
        other, answer = (row + 1) % len(x_0), slice(int(first[row]), int(sizes[row]))
        room = x_0.shape[1] - 1 - (answer.stop - answer.start)
        given = x_0[other, 1 : first[other]]
        given = given[max(0, len(given) - room) :]
        place = slice(1 + len(given), 1 + len(given) + answer.stop - answer.start)
        behind[row, 0], behind[row, 1 : place.start], behind[row, place] = x_0[row, 0], given, x_0[row, answer]
        scored[row, : place.start], scored[row, place] = False, maskable[row, answer]
    return behind, scored


def written(model: Model, questions: Sequence[Question], asking: Asking, told: Callable[[int, int], None]) -> Row:
    """Which greedy answers are right, and how alike each is to its reference."""
    records = answered(model, questions, asking, told)
    row = exact_match(questions, records, "model")
    texts = [record["choices"][0]["turns"][-1] for record in records]
    alike = [bleu(text, reference) for text, reference in zip(texts, references(questions), strict=True)]
    return {"right": packed(row["values"]["right"]), "bleu": [round(each, 3) for each in alike], "nfe": row["nfe"]}


def rounded(nats: Tensor) -> list[float]:
    return [round(each, 3) for each in nats.tolist()]
