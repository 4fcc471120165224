"""DiffuLLaMA: a masked diffusion model that begins as a trained causal one, against one from scratch at equal FLOPs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from unmask.checkpoint import load
from unmask.evaluate import perplexity, prepared
from unmask.experiments.averages import bounded, over_seeds
from unmask.experiments.running import Cell, Finding, Scale, Table, above_zero, at_least_one
from unmask.experiments.setting import SETTINGS
from unmask.files import Row, read_lines
from unmask.log import Report
from unmask.objectives import AnyOrder, NextToken
from unmask.report.drawing import COLOURS, MARKERS
from unmask.train.budget import steps_for
from unmask.units import power

SCRATCH, SHIFTED, IN_PLACE = "from scratch", "from the ARM", "from the ARM, read in place"
ARM = "the ARM"
FREE, PAID = "the ARM for free", "the ARM paid for"


@dataclass(frozen=True)
class Starting:
    """An MDM that begins as a trained ARM against one from scratch: at equal true FLOPs, the ARM's left out or counted.

    Budgets are shares of the true FLOPs of the scale's usual run.
    """

    arm: float = 0.25
    """What the ARM is trained for."""
    shares: tuple[float, ...] = (0.25, 0.5)
    """What the MDM that begins as one is trained for. From scratch it has as much, and as much with the ARM's."""
    seeds: int = 3
    """Pairs, and ARMs that they begin as."""

    def __post_init__(self) -> None:
        at_least_one(self, "seeds")
        above_zero(self, "shares")
        if not self.shares or not self.arm > 0:
            raise ValueError(f"arm {self.arm}, shares {self.shares}: budgets are one or more, all above 0")

    def corpus(self, scale: Scale, source: str, out: Path) -> tuple[str, str]:
        return source, SETTINGS[scale].tokenizer

    def plan(self, scale: Scale, data: str, rows: Sequence[Row]) -> list[Cell]:
        """ARMs and MDMs from scratch, then of each ARM the MDMs that begin as it.

        An ARM's seed is one of its own: what begins as it meets the texts in another order.
        """
        own = sorted({*self.shares, *(round(self.arm + share, 6) for share in self.shares)})
        cells = []
        for seed in range(2 if scale == "tiny" else self.seeds):
            arm = self._cell(scale, data, ARM, self.arm, seed)
            cells += [arm, *(self._cell(scale, data, SCRATCH, share, seed) for share in own)]
            begun = [(SHIFTED, share) for share in self.shares] + [(IN_PLACE, min(self.shares))]
            init = str(Path(data).with_name(arm.name))
            cells += [replace(self._cell(scale, data, *each, seed, init), needs=arm.name) for each in begun]
        return cells

    def _cell(self, scale: Scale, data: str, start: str, share: float, seed: int, init: str | None = None) -> Cell:
        setting, arm = SETTINGS[scale], start == ARM
        config = setting.config(data, NextToken() if arm else AnyOrder(0.5), seed=seed + 1000 * arm)
        usual = setting.config(data, AnyOrder(0.5)).cost()["flops_true"]
        steps = steps_for(config, true_flops=share * usual)
        network = replace(config.network, shifted=start == SHIFTED)
        setting = replace(setting, steps=steps)
        config = replace(setting.config(data, config.objective, seed=config.seed), network=network, init=init)
        slug = {ARM: "arm", SCRATCH: "scratch", SHIFTED: "begun", IN_PLACE: "in-place"}[start]
        return Cell(f"{slug}-{share:g}-{seed}", config, {"start": start, "share": share, "seed": seed})

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str, told: Report) -> list[Row]:
        """The held-out bound, and how the run's own validations, on fewer texts, came down to it."""
        setting, model = SETTINGS[scale], load(folder)
        held_out = prepared(Path(cell.config.data), model.tokenizer, length=setting.length, sequences=setting.sequences)
        curve = [
            (row["flops"], round(row["nats_per_token"], 4))
            for row in read_lines(folder / "metrics.jsonl")
            if row["kind"] == "validation"
        ]
        row = {**bounded(perplexity(model, held_out, draws=32, progress=told)), **cell.config.cost()}
        return [{**row, "steps": cell.config.steps, "curve": curve}]

    def find(self, rows: Sequence[Row]) -> Finding:
        """Paired by seed: both have one order of texts and one of maskings. Sure is what Student's t is at 95%."""
        arm = rows_of(rows, ARM)[0]["share"]
        table, told = [], []
        signs: dict[str, list[int]] = {FREE: [], PAID: []}
        for start, share in dict.fromkeys((r["start"], r["share"]) for r in rows if r["start"] in (SHIFTED, IN_PLACE)):
            begun = nats(rows, start, share)
            for counted, wanted in ((FREE, share), (PAID, arm + share)):  # to as many digits as a published file keeps
                budget = min((abs(row["share"] - wanted), row["share"]) for row in rows_of(rows, SCRATCH))[1]
                other = nats(rows, SCRATCH, budget)
                gain = over_seeds(np.subtract(begun, other))
                spent = rows_of(rows, SCRATCH, budget)[0]["flops_true"]
                table.append((
                    power(spent), counted, start, str(over_seeds(begun)), str(over_seeds(other)), str(gain),
                ))  # fmt: skip
                if start == SHIFTED:
                    signs[counted].append(gain.sign())
                    told.append(f"{gain} at {power(spent)} ({counted})")
        before = "; ".join(f"{each:.3f}" for each in nats(rows, ARM, arm))
        better, worse = (
            {counted: all(each == sign for each in found) for counted, found in signs.items()} for sign in (-1, 1)
        )
        return Finding(
            "A masked diffusion model adapted from a trained ARM is better than one trained from scratch on as much "
            "(DiffuLLaMA, arXiv 2410.17891).",
            "Held-out nats a token of the MDM that began as an ARM less those of the one from scratch, at equal true "
            f"FLOPs: {', '.join(told)}. {verdict(better, worse)}",
            "yes" if better[FREE] else "no" if worse[FREE] else "not shown at this scale",
            (
                Table(
                    f"Held-out bound in nats a token, ± over {len(nats(rows, ARM, arm))} seeds; the ARMs, trained for "
                    f"{power(rows_of(rows, ARM)[0]['flops_true'])} true FLOPs, stand at {before} (exact)",
                    ("true FLOPs", "counting", "begun", "nats a token", "from scratch", "difference, paired"),
                    tuple(table),
                ),
            ),
        )

    def figure(self, rows: Sequence[Row]) -> Figure:
        """Bounds against true FLOPs: large marks at the ends, small ones along the way, before the rate has fallen."""
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        panels = dict(zip((FREE, PAID), figure.subplots(1, 2, sharey=True), strict=True))
        spent = rows_of(rows, ARM)[0]["flops_true"]
        for counted, axes in panels.items():
            for i, start in enumerate((SCRATCH, SHIFTED, IN_PLACE)):
                before = spent if counted == PAID and start != SCRATCH else 0.0
                shares = list(dict.fromkeys(row["share"] for row in rows_of(rows, start)))
                for share in shares:
                    here = rows_of(rows, start, share)
                    flops = [before + point[0] for point in here[0]["curve"]]
                    along = [over_seeds([row["curve"][j][1] for row in here]).value for j in range(len(flops))]
                    axes.plot(flops, along, ".-", color=COLOURS[i], alpha=0.35, linewidth=0.8, markersize=3)
                ends = [over_seeds(nats(rows, start, share)) for share in shares]
                at = [before + rows_of(rows, start, share)[0]["flops_true"] for share in shares]
                axes.errorbar(
                    at, [end.value for end in ends], [end.error for end in ends],
                    fmt=MARKERS[i], color=COLOURS[i], label=start, capsize=2,
                )  # fmt: skip
            axes.set(xlabel="true FLOPs", title=counted)
        panels[FREE].set_ylabel("held-out nats a token")
        panels[FREE].legend(fontsize=8)
        return figure


def verdict(better: dict[str, bool], worse: dict[str, bool]) -> str:
    """Whether it pays to begin as an ARM, in words, by what is sure at every budget."""
    if better[PAID]:
        return "It pays even where the ARM has to be trained for it."
    if better[FREE]:
        counted = "it loses" if worse[PAID] else "it is not surely better at every budget"
        return f"It pays where the ARM is there anyway; with its training counted {counted}."
    return "It is not surely better at every budget, even where the ARM costs nothing."


def rows_of(rows: Sequence[Row], start: str, share: float | None = None) -> list[Row]:
    """By seed."""
    here = [row for row in rows if row["start"] == start and share in (None, row["share"])]
    return sorted(here, key=lambda row: (row["share"], row["seed"]))


def nats(rows: Sequence[Row], start: str, share: float) -> list[float]:
    """Held-out nats a token by seed."""
    return [row["nats_per_token"] for row in rows_of(rows, start, share)]
