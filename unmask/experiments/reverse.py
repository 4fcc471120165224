"""SMDM: facts that were learnt in one direction are known in the other by an MDM, and are not by an ARM."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from unmask.checkpoint import Model, load
from unmask.data.pairs import prepare_pairs
from unmask.data.tokenizer import FILE
from unmask.evaluate.answers import Asking, answered
from unmask.experiments.averages import Contrast, contrast
from unmask.experiments.facts import KEYS, REVERSE, SAME, TO_DESCRIPTION, Facts, bleu, found, made_up, published
from unmask.experiments.running import Cell, Finding, Scale, Table, at_least_one, possible
from unmask.experiments.setting import KINDS, SETTINGS
from unmask.files import Row, atomic
from unmask.log import Report
from unmask.objectives import AnyOrder, NextToken
from unmask.report.drawing import COLOURS
from unmask.sampling import Confidence, Draw
from unmask.train import Optimiser, TrainConfig

FACTS = {"MDM": AnyOrder(), "ARM": NextToken()}
"""For these, all counts of masks as often: what ties a name to a description is learnt where all of either is masked.
"""
LEARNT = 0.1
"""What is known less in its own direction is not learnt. To name in reverse takes facts that were learnt by describing,
and the other way round, so that a model is judged where it has learnt both.
"""
LEARNING: dict[Scale, Callable[[TrainConfig], TrainConfig]] = {
    "laptop": lambda config: replace(
        config, steps=8000, batch=32, optimiser=Optimiser(rate=4e-3, warmup=100, muon=True)
    ),
}
"""Where fine-tuning is not as the pretraining: small networks learn by heart in many steps, and better by Muon."""
GUIDED = "MDM, guided"
PUBLISHED = {KEYS[0]: "97", KEYS[1]: "92", KEYS[2]: "49", KEYS[3]: "37"}
"""SMDM's exact match in per cent."""
MOST: dict[Scale, int] = {"tiny": 2, "laptop": 90, "gpu": 300}
"""Questions of each kind."""


@dataclass(frozen=True)
class Reverse:
    """Learn "name is description", ask for the name given the description: an MDM and an ARM of one pretraining."""

    local: Path | None = None
    """Folder of the reversal curse's files (Berglund et al.); without it facts that are made up here."""
    guidance: float = 0.8
    """Weight of the MDM's classifier-free guidance by the prompt, beside none; SMDM's is 0.8."""
    seeds: int = 3
    """Of fine-tuning; the pretraining has one."""

    def __post_init__(self) -> None:
        at_least_one(self, "seeds")
        possible("guidance", self.guidance)

    def corpus(self, scale: Scale, source: str, out: Path) -> tuple[str, str]:
        self.facts(scale)
        return source, SETTINGS[scale].tokenizer

    def facts(self, scale: Scale) -> Facts:
        return published(self.local) if self.local else made_up(2 if scale == "tiny" else 20)

    def plan(self, scale: Scale, data: str, rows: Sequence[Row]) -> list[Cell]:
        """Pretrained models; then, of each that is there, the fine-tuned ones."""
        setting, cells = SETTINGS[scale], []
        for kind, objective in KINDS.items():
            before = setting.config(data, objective)
            cells.append(Cell(f"{kind.lower()}-pretrained", before, {"model": kind}))
            folder = Path(data).parent / f"{kind.lower()}-pretrained"
            for row in (row for row in rows if (row["model"], row["kind"]) == (kind, "pretrained")):
                for seed in range(1 if scale == "tiny" else self.seeds):
                    config = setting.config(str(folder / "facts"), FACTS[kind], seed=seed)
                    config = replace(config, init=str(folder), length=row["length"])
                    config = LEARNING[scale](config) if scale in LEARNING else config
                    cells.append(Cell(f"{kind.lower()}-{seed}", config, {"model": kind, "seed": seed}))
        return cells

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str, told: Report) -> list[Row]:
        facts, model = self.facts(scale), load(folder)
        if cell.config.init is None:
            length = prepare_facts(facts, model, Path(cell.config.data), folder / "facts")
            return [{"kind": "pretrained", "facts": facts.name, "length": length}]
        weights = [0.0] if model.causal or not self.guidance else [0.0, self.guidance]
        return [
            {"kind": "answers", "facts": facts.name, "guidance": weight, "asked": key[0], "direction": key[1], **row}
            for weight in weights
            for key in KEYS
            for row in [asked(model, facts, key, MOST[scale], cell.config.length, weight, told)]
        ]

    def find(self, rows: Sequence[Row]) -> Finding:
        names = models(rows)
        table = []
        for key in KEYS:
            cells = [percent(rows, name, key, "right") for name in names]
            if key[0] == TO_DESCRIPTION:
                more = [percent(rows, name, key, "bleu") for name in names]
                cells = [f"{cell}; {bleu}" for cell, bleu in zip(cells, more, strict=True)]
            table.append((*key, *cells, str(difference(rows, [key]) * 100), PUBLISHED[key]))
        back, learnt = ([key for key in KEYS if key[1] == direction] for direction in (REVERSE, SAME))
        gained = difference(rows, back)
        known = {name: [float(net(rows, name, [key]).mean()) for key in learnt] for name in KINDS}
        first = next(row for row in rows if row["kind"] == "answers")
        seeds = len({row["seed"] for row in rows if row["kind"] == "answers"})
        held = "not shown at this scale"
        if min(min(each) for each in known.values()) > LEARNT:
            ours, theirs = (net(rows, name, back) for name in KINDS)
            sign = contrast(ours - theirs, -0.5 * net(rows, "MDM", learnt)).sign()
            held = "yes" if sign > 0 else "no" if sign < 0 else held
        return Finding(
            "Fine-tuned on facts in one direction, an MDM answers in the other one, right in 92% (names) and 37% "
            "(descriptions); GPT-3 175B and Llama-2 13B in 0%.",
            f"In reverse the MDM's exact match is {gained * 100} points above the ARM's (claimed: by half of what it "
            + "has in the direction learnt, where both models have learnt both kinds of facts); in the direction "
            + "learnt names and descriptions are right in "
            + ", ".join(f"{round(100 * a)}% and {round(100 * b)}% ({name})" for name, (a, b) in known.items())
            + ", each less what the same answers would be right about other facts"
            + f" (facts: {first['facts']}).",
            held,
            (
                Table(
                    f"Exact match in per cent, for descriptions with BLEU-4 (characters), {seeds} seeds of "
                    "fine-tuning; ± over facts and seeds; the difference with what is right by chance taken off",
                    ("asked", "direction", *names, "MDM − ARM, paired by fact", "SMDM, 1.1B"),
                    tuple(table),
                ),
            ),
        )

    def figure(self, rows: Sequence[Row]) -> Figure:
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        axes, names = figure.subplots(), models(rows)
        for i, name in enumerate(names):
            values = [contrast(by_fact(rows, name, [key], "right")) * 100 for key in KEYS]
            places = [j + 0.25 * (i - (len(names) - 1) / 2) for j in range(len(KEYS))]
            shares, errors = [each.value for each in values], [each.error for each in values]
            axes.bar(places, shares, 0.23, yerr=errors, label=name, color=COLOURS[i], capsize=2)
        axes.set_xticks(range(len(KEYS)), [f"{asked}\n{direction} direction" for asked, direction in KEYS], fontsize=8)
        axes.set_ylabel("exact match (%)")
        axes.legend()
        return figure


def prepare_facts(facts: Facts, model: Model, data: Path, out: Path) -> int:
    """Write statements as texts that are learnt as a whole, for what is only given cannot be asked for.

    Returns the tokens of the longest text, learnt or asked, with its end token.
    """
    asked = [each for key in KEYS for _, each in facts.tests[key]]
    for name, examples in (("train", facts.train), ("asked", asked)):
        with atomic(out.with_name(f"{name}.jsonl"), "w") as file:
            for each in examples:
                file.write(json.dumps({"prompt": "", "completion": each.prompt + each.answer}) + "\n")
    train, held_out = (str(out.with_name(f"{name}.jsonl")) for name in ("train", "asked"))
    prepare_pairs(train, out, tokenizer=str(data / FILE), held_out=held_out)
    texts = [each.prompt + each.answer for each in (*facts.train, *asked)]
    return 1 + max(map(len, model.tokenizer.encode_batch(texts)))


def asked(
    model: Model, facts: Facts, key: tuple[str, str], most: int, length: int, guidance: float, told: Report
) -> Row:
    """Exact match and BLEU of greedy answers, and how often they would be right about the other facts, by fact."""
    questions, about = facts.questions(key, most)
    policy = None if model.causal else Confidence()
    asking = Asking(policy=policy, draw=Draw(0.0), block=length, guidance=guidance, batch=32)
    records = answered(model, questions, asking, told)
    theirs = {fact: question.references[0] for question, fact in zip(questions, about, strict=True)}
    scores: dict[int, list[tuple[float, ...]]] = {}
    for i, (question, fact) in enumerate(zip(questions, about, strict=True)):
        text, (reference,) = records[i]["choices"][0]["turns"][-1], question.references
        others = [found(text, other) for about, other in theirs.items() if about != fact]
        chance = sum(others) / max(1, len(others))
        scores.setdefault(fact, []).append((found(text, reference), chance, bleu(text, reference)))
    by = [[round(sum(each) / len(each), 4) for each in zip(*scores[fact], strict=True)] for fact in sorted(scores)]
    return {
        "questions": len(questions),
        **dict(zip(("right", "chance", "bleu"), map(list, zip(*by, strict=True)), strict=True)),
        "nfe": sum(record["nfe"] for record in records) / len(records),
    }


def models(rows: Sequence[Row]) -> list[str]:
    """What is compared: the guided MDM where it was asked."""
    guided = any(row.get("guidance") for row in rows)
    return ["MDM", *([GUIDED] if guided else []), "ARM"]


def by_fact(rows: Sequence[Row], name: str, keys: Sequence[tuple[str, str]], what: str) -> np.ndarray:
    """[seeds, facts] of a score."""
    parts = []
    for key in keys:
        here = [row for row in rows if row["kind"] == "answers" and (row["asked"], row["direction"]) == key]
        mine = [row for row in here if (GUIDED if row["guidance"] else row["model"]) == name]
        parts.append([row[what] for row in sorted(mine, key=lambda row: row["seed"])])
    return np.concatenate(parts, 1)


def net(rows: Sequence[Row], name: str, keys: Sequence[tuple[str, str]]) -> np.ndarray:
    """[seeds, facts]: exact match less what the answers would be right about other facts."""
    return by_fact(rows, name, keys, "right") - by_fact(rows, name, keys, "chance")


def difference(rows: Sequence[Row], keys: Sequence[tuple[str, str]]) -> Contrast:
    """Net exact match of the MDM without guidance less the ARM's, paired by fact."""
    return contrast(net(rows, "MDM", keys) - net(rows, "ARM", keys))


def percent(rows: Sequence[Row], name: str, key: tuple[str, str], what: str) -> str:
    return str(contrast(by_fact(rows, name, [key], what)) * 100)
