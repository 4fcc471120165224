"""SMDM's scaling law: the best loss and size at each budget, MDM against ARM, and how much more compute an MDM needs.

Budgets are C = 6ND as the paper counts, N without embedding and output layer; the true count, which includes them, is
fitted beside it. The learning rate of each kind is searched at two sizes of the least budget and one of the largest,
and is a power of width and budget between them. An optimum at the edge of the sizes tried is none: the sizes are
widened until it lies inside.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from unmask.checkpoint import load
from unmask.data import load_manifest
from unmask.evaluate import perplexity, prepared
from unmask.experiments.averages import bounded
from unmask.experiments.fitting import Law, gap, interval, law, line, parabola, resampled, size_ratio, surface
from unmask.experiments.running import Cell, Finding, Scale, Table, at_least_one
from unmask.experiments.setting import KINDS
from unmask.files import Row
from unmask.log import Report
from unmask.report.drawing import COLOURS, MARKERS, log_axis
from unmask.train import Optimiser, TrainConfig
from unmask.transformer import TransformerConfig
from unmask.units import count, power

DIVERGED = 99.0  # nats a token of a learning rate that is too large
WIDTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1280, 1536)


class Grid(NamedTuple):
    """What is tried at a scale."""

    vocab: int
    length: int
    batch: int
    """Of the largest budget; others have less, see `batch_at`."""
    budgets: dict[str, tuple[float, ...]]
    """6ND in FLOPs; the ARM's are a sixteenth of the MDM's, so that both are read at about the same losses: further
    down, towards the text's entropy, curves of one rate fall more slowly."""
    center: dict[str, tuple[int, int]]
    """Widths tried first around: an index of WIDTHS at the least and at the largest budget."""
    sizes: int
    """Widths tried at a budget before any widening."""
    searched: tuple[tuple[int, int], ...]
    """Where the learning rate is searched: at the least (0) or largest (1) budget, widths so far from its center."""
    rates: tuple[float, ...]
    sequences: int
    """Held-out sequences scored."""
    draws: int


GRIDS: dict[Scale, Grid] = {
    "tiny": Grid(
        300, 16, 4, {"MDM": (1e8, 2e8), "ARM": (1e8, 2e8)}, {"MDM": (3, 3), "ARM": (3, 3)}, 3, ((0, 0),),
        (3e-3,), 8, 4,
    ),
    "laptop": Grid(
        512, 128, 32,
        {"MDM": (3e12, 1e13, 3e13, 1e14), "ARM": (2e11, 6e11, 2e12, 6e12)},
        {"MDM": (4, 6), "ARM": (3, 5)}, 5, ((0, -1), (0, 2), (1, 0)), (2e-3, 4e-3, 8e-3), 512, 16,
    ),
    "gpu": Grid(
        1024, 256, 128,
        {"MDM": (1e16, 3e16, 1e17, 3e17, 1e18, 3e18), "ARM": (6e14, 2e15, 6e15, 2e16, 6e16, 2e17)},
        {"MDM": (6, 10), "ARM": (5, 9)}, 5, ((0, -1), (0, 3), (1, 0)), (1e-3, 2e-3, 4e-3), 1024, 16,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Scaling:
    """IsoFLOP curves of MDM and ARM: best loss and size at each budget, power laws, and the compute gap."""

    seeds: int = 1
    """Runs of each size and budget, which differ by their seed."""

    def __post_init__(self) -> None:
        at_least_one(self, "seeds")

    def corpus(self, scale: Scale, source: str, out: Path) -> tuple[str, str]:
        return source, f"bpe:{GRIDS[scale].vocab}"

    def plan(self, scale: Scale, data: str, rows: Sequence[Row]) -> list[Cell]:
        """The search of learning rates; then the grid; then what an optimum at its edge asks for."""
        grid, cells = GRIDS[scale], []
        for kind in KINDS:
            ends = grid.budgets[kind][0], grid.budgets[kind][-1]
            places = [(ends[end], WIDTHS[grid.center[kind][end] + off]) for end, off in grid.searched]
            search = [(*place, rate) for place in places for rate in grid.rates]
            found = [row for row in rows if (row["model"], row["stage"]) == (kind, "search")]
            if len(found) >= len(search):
                search += _widened_rates(grid, found)
            cells += [self._cell(scale, data, kind, *each, 0, "search") for each in search]
            if len(found) < len(search):
                continue
            for i, budget in enumerate(grid.budgets[kind]):
                here = [row for row in rows if (row["model"], row["stage"], row["budget"]) == (kind, "grid", budget)]
                for width in _widths(grid, grid.center[kind], i / max(1, len(grid.budgets[kind]) - 1), here):
                    cells += [
                        self._cell(scale, data, kind, budget, width, rate_at(found, budget, width), seed, "grid")
                        for seed in range(self.seeds)
                    ]
        return cells

    def _cell(
        self, scale: Scale, data: str, kind: str, budget: float, width: int, rate: float, seed: int, stage: str
    ) -> Cell:
        grid, objective = GRIDS[scale], KINDS[kind]
        layers, heads = max(2, width // 32), max(2, width // (32 if width < 512 else 64))
        network = TransformerConfig(grid.vocab, layers, heads, width, causal=kind == "ARM", neighbours=heads)
        size = network.parameters()["non_embedding"]
        batch = batch_at(grid, budget)
        steps = max(2, round(budget / (6 * size * batch * grid.length)))
        config = TrainConfig(
            network=network, data=data, objective=objective, length=grid.length, batch=batch, steps=steps,
            optimiser=Optimiser(rate=rate, warmup=max(1, steps // 20)), seed=seed,
            validate_every=max(1, steps // 4), validation_sequences=min(64, grid.sequences), save_every=250,
        )  # fmt: skip
        labels = {
            "model": kind,
            "stage": stage,
            "budget": budget,
            "width": width,
            "size": size,
            "rate": rate,
            "seed": seed,
        }
        diverged = {"nats_per_token": DIVERGED} if stage == "search" else None
        return Cell(f"{stage}-{kind.lower()}-{budget:.0e}-{width}-{rate:.2g}-{seed}", config, labels, diverged)

    def run(self, scale: Scale, cell: Cell, folder: Path, source: str, told: Report) -> list[Row]:
        grid, model = GRIDS[scale], load(folder)
        options = {"length": grid.length, "sequences": grid.sequences}
        held_out = prepared(Path(cell.config.data), model.tokenizer, **options)
        row = bounded(perplexity(model, held_out, draws=grid.draws, progress=told))
        config = cell.config
        cost = {**config.cost(), "steps": config.steps, "batch": config.batch}
        return [{**row, **cost, "epochs": cost["tokens"] / load_manifest(config.data)["splits"]["train"]["tokens"]}]

    def find(self, rows: Sequence[Row]) -> Finding:
        points = {kind: points_of(rows, kind) for kind in KINDS}
        fits = {kind: _law(points[kind]) for kind in KINDS}
        tables = [_best_table(fits), _runs_table(rows)]
        mdm, arm = fits["MDM"], fits["ARM"]
        if mdm is None or arm is None or not all(each.inside for each in (*mdm.best, *arm.best)):
            said = "Too few sizes, or a best size at the edge of those tried: no law is fitted."
            return Finding(CLAIM, said, "not shown at this scale", tuple(tables))
        drawn = {kind: resampled(points[kind], 400, seed=0) for kind in KINDS}
        pairs = [(mdm, arm), *zip(drawn["MDM"], drawn["ARM"], strict=False)]
        true = [(_true(rows, "MDM", a), _true(rows, "ARM", b)) for a, b in pairs]
        found = {
            RATE: measured(lambda a, b: a.loss.slope / b.loss.slope, pairs),
            GAP: measured(gap, pairs),
            f"{GAP} of true FLOPs": measured(gap, true),
            SIZE: measured(size_ratio, pairs),
        }
        tables.insert(0, _laws_table(rows, fits, drawn))
        wanted = {name: f" (claimed: {low:g} to {high:g})" for name, (low, high) in CLAIMED.items()}
        told = [
            f"{each} {name}{wanted.get(name, '')}" if isinstance(each, Interval) else f"{name}: {each}"
            for name, each in found.items()
        ]
        verdicts = [
            each.within(*CLAIMED[name]) if isinstance(each := found[name], Interval) else None for name in CLAIMED
        ]
        held = "no" if False in verdicts else "yes" if all(verdicts) else "not shown at this scale"
        return Finding(
            CLAIM,
            f"Best loss falls as C^{mdm.loss.slope:.3f} (MDM) and C^{arm.loss.slope:.3f} (ARM): {'; '.join(told)} (95% "
            f"intervals, bootstrap). Losses that both reached: {overlap(mdm, arm)}.",
            held,
            tuple(tables),
        )

    def figure(self, rows: Sequence[Row]) -> Figure:
        figure = Figure(figsize=(11, 3.8), layout="constrained")
        panels = dict(zip((*KINDS, "law"), figure.subplots(1, 3), strict=True))
        for kind, color, marker in zip(KINDS, COLOURS, MARKERS, strict=False):
            points = points_of(rows, kind)
            for i, (budget, each) in enumerate(sorted(points.items())):
                sizes, losses = zip(*sorted(each), strict=True)
                panels[kind].plot(
                    sizes, losses, MARKERS[i % 6], color=COLOURS[i % 6], label=f"{power(budget, 1)} FLOPs", markersize=4
                )
                if len(set(sizes)) >= 3:
                    _draw_parabola(panels[kind], budget, each, COLOURS[i % 6])
            panels[kind].set(xlabel="N (non-embedding parameters)", ylabel="held-out loss (nats a token)")
            panels[kind].set_title(f"{kind} (+: lowest point)")
            tried = [size for each in points.values() for size, _ in each]
            log_axis(panels[kind].xaxis, count, max(tried) / min(tried) if tried else 1.0)
            panels[kind].legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))
            fit = _law(points)
            if fit is not None:
                budgets = [each.budget for each in fit.best]
                panels["law"].plot(budgets, [each.loss for each in fit.best], marker, color=color, label=kind)
                panels["law"].plot(budgets, [fit.loss.at(c) for c in budgets], color=color)
        panels["law"].set(xscale="log", yscale="log", xlabel="C = 6ND (FLOPs)", ylabel="best loss (nats a token)")
        panels["law"].yaxis.set_major_formatter("{x:.2f}")
        panels["law"].yaxis.set_minor_formatter("{x:.2f}")
        if panels["law"].has_data():
            panels["law"].legend()
        return figure


CLAIM = (
    "MDMs scale at the rate of ARMs, with about 16 times the compute at equal loss, and their best size is about half "
    "the ARM's."
)
RATE, GAP, SIZE = (
    "times the ARM's exponent",
    "times the ARM's compute at equal loss",
    "times the ARM's best size at equal compute",
)
CLAIMED = {RATE: (0.75, 1.33), GAP: (8.0, 32.0), SIZE: (0.25, 1.0)}
"""What counts as the claim: the same exponent to a third, 16 and a half to a factor of two."""


class Interval(NamedTuple):
    """A number and its 95% interval."""

    value: float
    low: float
    high: float

    def within(self, low: float, high: float) -> bool | None:
        """Whether the interval lies within these bounds (True), outside (False), or on one of them (None)."""
        return True if low <= self.low and self.high <= high else False if self.high < low or self.low > high else None

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def measured(of: Callable[[Law, Law], float], pairs: Sequence[tuple[Law, Law]]) -> Interval | str:
    """A number of the fitted laws, which come first, over the bootstrapped ones; or why there is none."""
    try:
        value = of(*pairs[0])
    except ValueError as reason:
        return str(reason)
    drawn = [each for pair in pairs[1:] if math.isfinite(each := _or_nan(of, *pair))]
    if 2 * len(drawn) < len(pairs):
        return f"{value:.2f} without an interval: most bootstrapped laws have no such number"
    return Interval(value, *interval(drawn))


def rate_at(found: Sequence[Row], budget: float, width: int) -> float:
    """The best rates where they were searched, and a power of budget and width between; beyond, that of the nearest."""
    places = sorted({(row["budget"], row["width"]) for row in found})
    best = [best_rate([row for row in found if (row["budget"], row["width"]) == place]) for place in places]
    at = np.log(np.array(places, dtype=float))
    here = np.clip(np.log([budget, width]), at.min(0), at.max(0))
    plane = np.linalg.lstsq(np.column_stack([np.ones(len(at)), at - at.mean(0)]), np.log(best), rcond=None)[0]
    fitted = math.exp(plane @ [1.0, *(here - at.mean(0))])
    return float(f"{min(max(fitted, min(best)), max(best)):.2g}")


def best_rate(found: Sequence[Row]) -> float:
    """The lowest point of the parabola in log rate through the best rate and its neighbours; at an edge, the best."""
    loss = {row["rate"]: row["nats_per_token"] for row in found}
    rates = sorted(loss)
    i = min(range(len(rates)), key=lambda i: loss[rates[i]])
    near = rates[i - 1 : i + 2]
    if not 0 < i < len(rates) - 1 or max(loss[rate] for rate in near) >= DIVERGED:
        return rates[i]
    x = np.log(near) - math.log(rates[i])
    a, b, _ = np.polyfit(x, [loss[rate] for rate in near], 2)
    return rates[i] * math.exp(float(np.clip(-b / (2 * a), x[0], x[-1]))) if a > 0 else rates[i]


def _widened_rates(grid: Grid, found: Sequence[Row]) -> list[tuple[float, int, float]]:
    """(budget, width, rate) beyond the rates tried, for each place whose best one is the smallest or largest tried."""
    if len(grid.rates) < 3:
        return []
    wanted = []
    for place in {(row["budget"], row["width"]) for row in found}:
        rates = sorted(grid.rates)
        step = rates[1] / rates[0]
        here = {row["rate"]: row["nats_per_token"] for row in found if (row["budget"], row["width"]) == place}
        for _ in range(3):
            best = min((rate for rate in rates if rate in here), key=lambda rate: here[rate])
            more = [rates[0] / step] if best == rates[0] else [rates[-1] * step] if best == rates[-1] else []
            if not more:
                break
            rates = sorted([*rates, *more])
            wanted += [(*place, more[0])]
            if more[0] not in here:
                break
    return sorted(wanted)


def _widths(grid: Grid, ends: tuple[int, int], along: float, rows: Sequence[Row]) -> list[int]:
    """Widths to try at a budget: around its expected best, and beyond an edge where the best one stands."""
    center = round(ends[0] + along * (ends[1] - ends[0]))
    low = max(0, center - grid.sizes // 2)
    high = low + grid.sizes - 1
    loss = {row["width"]: row["nats_per_token"] for row in rows}
    while grid.sizes > 3:
        tried = [WIDTHS[i] for i in range(low, high + 1)]
        if any(width not in loss for width in tried):
            break
        best = min(tried, key=lambda width: loss[width])
        if best == tried[0] and low > 0:
            low -= 1
        elif best == tried[-1] and high < len(WIDTHS) - 1:
            high += 1
        else:
            break
    return [WIDTHS[i] for i in range(low, high + 1)]


def batch_at(grid: Grid, budget: float) -> int:
    """Sequences a step: C^(1/3) (DeepSeek-AI, arXiv 2401.02954, fit 0.33), to a power of two, so that small budgets
    are not spent in a few dozen steps.
    """
    top = max(max(budgets) for budgets in grid.budgets.values())
    return 2 ** round(math.log2(grid.batch * (budget / top) ** (1 / 3)))


def points_of(rows: Sequence[Row], kind: str) -> dict[float, list[tuple[float, float]]]:
    """(size, loss) of the grid's runs at each budget: those of the best size and of two on either side.

    Further away the curve is no parabola: it is steeper where a model is too large for its tokens.
    """
    points: dict[float, list[tuple[float, float]]] = {}
    for row in rows:
        if (row["model"], row["stage"]) == (kind, "grid"):
            points.setdefault(row["budget"], []).append((row["size"], row["nats_per_token"]))
    for budget, each in points.items():
        sizes = sorted({size for size, _ in each})
        best = sizes.index(min(each, key=lambda point: point[1])[0])
        near = sizes[max(0, best - 2) : best + 3]
        points[budget] = [point for point in each if point[0] in near]
    return points


def _law(points: dict[float, list[tuple[float, float]]]) -> Law | None:
    try:
        return law(points)
    except ValueError:
        return None


def _true(rows: Sequence[Row], kind: str, fit: Law) -> Law:
    """The same law against true FLOPs: those of the best size at each budget, interpolated between the sizes tried."""
    best = []
    for each in fit.best:
        here = sorted(
            (row["size"], row["flops_true"])
            for row in rows
            if (row["model"], row["stage"], row["budget"]) == (kind, "grid", each.budget)
        )
        sizes, flops = zip(*here, strict=True)
        true = math.exp(np.interp(math.log(each.size), np.log(sizes), np.log(flops)))
        best.append(replace(each, budget=true))
    budgets = [each.budget for each in best]
    return Law(tuple(best), line(budgets, [each.loss for each in best]), line(budgets, [each.size for each in best]))


def _or_nan(of: Callable[[Law, Law], float], mdm: Law, arm: Law) -> float:
    try:
        return of(mdm, arm)
    except ValueError:
        return math.nan


def overlap(mdm: Law, arm: Law) -> str:
    """The range of losses over which a gap in compute is measured."""
    top = min(max(each.loss for each in kind.best) for kind in (mdm, arm))
    bottom = max(min(each.loss for each in kind.best) for kind in (mdm, arm))
    return f"{bottom:.3f} to {top:.3f} nats a token" if bottom < top else "none"


def _laws_table(rows: Sequence[Row], fits: dict, drawn: dict) -> Table:
    body = []
    for kind, fit in fits.items():
        true = _true(rows, kind, fit)
        try:
            own = [row for row in rows if (row["model"], row["stage"]) == (kind, "grid")]
            sizes, tokens, losses = ([row[key] for row in own] for key in ("size", "tokens", "nats_per_token"))
            flat = surface(sizes, tokens, losses)
            said = f"{flat.floor:.2f} + {flat.a:.3g}/N^{flat.alpha:.2f} + {flat.b:.3g}/D^{flat.beta:.2f}"
        except ValueError:
            said = "too few runs"
        body.append((
            kind, _around(fit.loss.slope, [each.loss.slope for each in drawn[kind]], 4),
            _around(fit.size.slope, [each.size.slope for each in drawn[kind]], 3),
            _around(true.loss.slope, (), 4), _around(true.size.slope, (), 3), said,
        ))  # fmt: skip
    header = ("model", "slope of log L* in log C", "slope of log N*", "L*, true FLOPs", "N*, true FLOPs", "L(N, D)")
    title = "Power laws of the optima at equal 6ND, with 95% bootstrap intervals; against their true FLOPs as well"
    return Table(title, header, tuple(body))


def _around(value: float, drawn: Sequence[float], digits: int) -> str:
    """A number with its interval, where there is one."""
    said = [f"{each:.{digits}f}".replace("-", "−") for each in (value, *(interval(drawn) if drawn else ()))]
    return f"{said[0]} [{', '.join(said[1:])}]" if drawn else said[0]


def _best_table(fits: dict) -> Table:
    rows = []
    for kind, fit in fits.items():
        for each in fit.best if fit else ():
            where = "" if each.inside else ", at the edge: no optimum"
            rows.append((kind, power(each.budget, 1), f"{each.loss:.4f}", f"{count(each.size)}{where}"))
    return Table("Lowest point of each budget's parabola", ("model", "C = 6ND", "L* (nats a token)", "N*"), tuple(rows))


def _runs_table(rows: Sequence[Row]) -> Table:
    header = ("model", "stage", "C = 6ND", "true FLOPs", "N", "tokens", "epochs", "rate", "nats a token ± maskings")
    finished = [row for row in rows if row["nats_per_token"] < DIVERGED]
    return Table(
        "All runs",
        header,
        tuple(
            (
                row["model"], row["stage"], power(row["budget"], 1), power(row["flops_true"]), f"{row['size']:,}",
                f"{row['tokens']:,}", f"{row['epochs']:.2g}", f"{row['rate']:g}",
                f"{row['nats_per_token']:.4f} ± {row['stderr_mc_per_token']:.4f}",
            )
            for row in finished
        ),
    )  # fmt: skip


def _draw_parabola(axes, budget: float, points: list[tuple[float, float]], color: str) -> None:
    try:
        best, _ = parabola(budget, points)
    except ValueError:
        return
    sizes = np.geomspace(min(size for size, _ in points), max(size for size, _ in points), 50)
    x = np.log([size for size, _ in points])
    fit = np.polyfit(x - x.mean(), [loss for _, loss in points], 2)
    axes.plot(sizes, np.polyval(fit, np.log(sizes) - x.mean()), color=color, linewidth=0.9)
    axes.plot(best.size, best.loss, "+", color=color)
