"""What the page draws: losses, perplexities, texts against their cost, tasks, differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from unmask.report.drawing import COLOURS, INK, PAPER, SIZE, log_axis, panel, shorten, style, svg
from unmask.report.read import Run
from unmask.units import count, drawable, power

KINDS = {"exact": ("o", COLOURS[1]), "upper bound": ("<", COLOURS[0])}  # of a perplexity: marker and colour
BINS = 60  # of the smoothed training curve


def loss_figure(runs: Sequence[Run], against: str) -> str | None:
    """Training and validation loss of all runs against "flops" or "tokens"; None where no row has both.

    The first hundredth of each run is left out of the view: it would flatten all the rest.
    """
    figure, axes = panel(SIZE)
    seen: list[tuple[float, float]] = []
    drawn = 0
    for i, run in enumerate(runs):
        colour, marker, _ = style(i)
        x, y = smooth(*_columns(run.train, against, "loss"))
        axes.plot(x, y, color=colour, linewidth=1.0, alpha=0.6)
        points = [row for row in run.validation if (drawable(row.get(against)) or 0) > 0]
        points = [row for row in points if drawable(row["nats_per_token"]) is not None]
        _validation(axes, points, against, colour, marker)
        every = [*zip(x, y, strict=True), *((row[against], row["nats_per_token"]) for row in points)]
        seen += [point for point in every if point[0] >= max(every)[0] / 100]
        drawn += bool(every)
    if not seen:
        return None
    unit = "training compute (FLOPs)" if against == "flops" else "training tokens"
    _view(axes, seen, power if against == "flops" else count)
    axes.set_xlabel(unit)
    axes.set_ylabel("loss (nats per token)")
    return svg(figure, f"Training and validation loss in nats per token against {unit}; runs shown: {drawn}")


def _view(axes: Axes, seen: Sequence[tuple[float, float]], say: Callable[[float], str]) -> None:
    """The axes' limits around the points `seen`; x is logarithmic, its labels said by `say`."""
    (left, right), (low, high) = ((min(column), max(column)) for column in zip(*seen, strict=True))
    pad = 0.06 * (high - low) or 0.1
    log_axis(axes.xaxis, say, right / left)
    axes.set_xlim(left / 1.1, right * 1.15)
    axes.set_ylim(low - pad, high + pad)


def _columns(rows: Sequence[dict[str, Any]], *keys: str) -> tuple[list[float], ...]:
    """The columns `keys` of the rows in which all of them are finite."""
    kept = [values for row in rows if None not in (values := [drawable(row.get(key)) for key in keys])]
    return tuple(list(column) for column in zip(*kept, strict=True)) if kept else tuple([] for _ in keys)


def smooth(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of (x, y) in BINS geometric bins of x; x <= 0, which a log axis lacks, is left out."""
    points = np.array([(u, v) for u, v in zip(x, y, strict=True) if u > 0], dtype=np.float64).reshape(-1, 2)
    if not len(points):
        return [], []
    position = np.log(points[:, 0])
    span = position.max() - position.min() or 1.0
    at = np.minimum((BINS * (position - position.min()) / span).astype(int), BINS - 1)
    weight = np.bincount(at, minlength=BINS)
    full = weight > 0
    means = [np.bincount(at, column, BINS)[full] / weight[full] for column in points.T]
    return means[0].tolist(), means[1].tolist()


def _validation(axes: Axes, points: Sequence[dict], against: str, colour: str, marker: str) -> None:
    """Points with error bars: filled where the value is exact, open where it is an upper bound."""
    for exact in (True, False):
        chosen = [row for row in points if (row.get("bound") == "exact") == exact]
        if chosen:
            axes.errorbar(
                [row[against] for row in chosen],
                [row["nats_per_token"] for row in chosen],
                yerr=[abs(drawable(row.get("stderr")) or 0.0) for row in chosen],
                color=colour,
                marker=marker,
                markersize=4.5,
                markerfacecolor=colour if exact else PAPER,
                markeredgewidth=1.2,
                linestyle="none",
                elinewidth=1.2,
                capsize=2.5,
            )


@dataclass(frozen=True)
class Dot:
    """A number on a line of its own, with two errors."""

    label: str
    text: str
    """The number in words, at the right."""
    x: float
    thin: float | None
    """Thin bar with caps."""
    thick: float | None = None
    """Thick bar below it."""
    colour: str = INK
    marker: str = "D"
    filled: bool = False


def perplexity_figure(entries: Sequence[Mapping[str, Any]], label: str) -> str:
    """Dots of one corpus and protocol: `entries` hold label, text, perplexity, stderr_mc, stderr_data, bound.

    Filled dot: exact; open arrow: the truth is there or to its left; open diamond: not stated.
    """
    dots = []
    for entry in entries:
        marker, colour = KINDS.get(str(entry["bound"]), ("D", INK))
        errors = entry["stderr_data"], entry["stderr_mc"]
        look = {"colour": colour, "marker": marker, "filled": marker == "o"}
        dots.append(Dot(entry["label"], entry["text"], entry["perplexity"], *errors, **look))
    spoken = "; ".join(f"{dot.label} {dot.text.replace('≤', 'at most')}" for dot in dots)
    return dots_figure(dots, "perplexity (per token)", f"Perplexity per token, {label}: {spoken}")


def dots_figure(dots: Sequence[Dot], unit: str, spoken: str, *, zero: bool = False) -> str:
    """A line a dot, its errors, and the number at the right; `zero` draws a line there."""
    figure, axes = panel((SIZE[0], 0.75 + 0.38 * len(dots)))
    across = axes.get_yaxis_transform()
    if zero:
        axes.axvline(0, color=INK, alpha=0.55, linewidth=0.9, linestyle=(0, (4, 3)))
    for y, dot in enumerate(dots):
        for error, at, width, cap in ((dot.thick, y + 0.27, 4, 0), (dot.thin, y, 1.1, 3)):
            if drawable(error):
                axes.errorbar(
                    dot.x, at, xerr=abs(error or 0.0), color=dot.colour, elinewidth=width, capsize=cap, fmt="none"
                )
        face = dot.colour if dot.filled else PAPER
        axes.plot(dot.x, y, marker=dot.marker, markersize=6, color=dot.colour, markerfacecolor=face, zorder=5)
        axes.text(1.02, y, dot.text, transform=across, va="center", fontsize=10.5, color=INK, parse_math=False)
    labels = shorten([dot.label for dot in dots])
    axes.set_yticks(range(len(dots)), ["" if i and labels[i - 1] == each else each for i, each in enumerate(labels)])
    for tick in axes.get_yticklabels():
        tick.set_parse_math(False)  # a "$" in a name is a dollar
    axes.set_ylim(len(dots) - 0.4, -0.5)
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    x = [dot.x for dot in dots]
    if not zero and min(x) > 0 and max(x) > 8 * min(x):
        log_axis(axes.xaxis, count, max(x) / min(x))
    axes.set_xlabel(unit, parse_math=False)
    return svg(figure, spoken)


@dataclass(frozen=True)
class Series:
    """Points (NFE, value, error) of one way of writing, in the i-th look."""

    name: str
    i: int
    points: list[tuple[float, float, float]]


def cost_figure(series: Sequence[Series], lines: Sequence[tuple[str, float, float]], unit: str, *, log: bool) -> str:
    """A value of written texts against their cost; `lines` (name, value, error) are people's texts, which cost none."""
    figure, axes = panel(SIZE)
    for each in series:
        colour, marker, _ = style(each.i)
        x, y, error = zip(*sorted(each.points), strict=True)
        axes.plot(x, y, color=colour, linewidth=1.0, alpha=0.7)
        look = {"color": colour, "marker": marker, "markersize": 5, "linestyle": "none"}
        axes.errorbar(x, y, yerr=error, **look, elinewidth=1.1, capsize=2.5)
    for _, value, error in lines:
        axes.axhline(value, color=INK, linewidth=1, linestyle=(0, (5, 3)))
        axes.axhspan(value - error, value + error, color=INK, alpha=0.12, linewidth=0)
    x = [point[0] for each in series for point in each.points]
    y = [point[1] for each in series for point in each.points] + [value for _, value, _ in lines]
    log_axis(axes.xaxis, count, max(x) / min(x))
    axes.set_xlim(min(x) / 1.25, max(x) * 1.25)
    if log and min(y) > 0:
        log_axis(axes.yaxis, count, max(y) / min(y))
        axes.set_ylim(min(y) / 1.2, max(y) * 1.2)
    axes.set_xlabel("network evaluations a text (NFE)")
    axes.set_ylabel(unit)
    names = ", ".join([each.name for each in series] + [f"{name} {value:.3g}" for name, value, _ in lines])
    return svg(figure, f"{unit} against network evaluations a text: {names}")


def keys(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """Legend of the loss figures: (colour, glyph, run's name)."""
    return [(style(i)[0], style(i)[2], run.name) for i, run in enumerate(runs)]
