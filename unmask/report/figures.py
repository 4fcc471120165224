"""Figures as inline SVG: text in the page's own font and colour, data in Okabe-Ito colours."""

import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from unmask.report.read import Run
from unmask.report.units import count, finite, power

# Okabe and Ito (2008), https://jfly.uni-koeln.de/color/, less black and yellow, which vanish on a dark or a light page
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
GLYPHS = ("●", "■", "▲", "◆", "▼", "✚")  # the same marks as text, for the legend in the page
INK, PAPER = "#010203", "#fdfcfb"  # stand-ins, replaced in the SVG by the page's text and background colour
SIZE = (5.0, 3.3)  # inches of 72 px: drawn small, so that its text stays readable at the width of a phone
KINDS = {"exact": ("o", COLOURS[1]), "upper bound": ("<", COLOURS[0])}  # of a perplexity: marker and colour
BINS = 120  # of the smoothed training curve


def style(i: int) -> tuple[str, str, str]:
    """Colour, marker and the marker's glyph of the i-th run: 36 distinct pairs."""
    j = (i + i // len(COLOURS)) % len(MARKERS)
    return COLOURS[i % len(COLOURS)], MARKERS[j], GLYPHS[j]


def loss_figure(runs: Sequence[Run], against: str) -> str | None:
    """Training and validation loss of all runs against "flops" or "tokens"; None where no row has both.

    The first hundredth of each run is left out of the view: it would flatten all the rest.
    """
    figure, axes = _axes(SIZE)
    seen: list[tuple[float, float]] = []
    drawn = 0
    for i, run in enumerate(runs):
        colour, marker, _ = style(i)
        x, y = smooth(*_columns(run.train, against, "loss"))
        axes.plot(x, y, color=colour, linewidth=0.9, alpha=0.75)
        points = [row for row in run.validation if (finite(row.get(against)) or 0) > 0]
        points = [row for row in points if finite(row["nats_per_token"]) is not None]
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
    _log_axis(axes, say, right / left)
    axes.set_xlim(left / 1.1, right * 1.15)
    axes.set_ylim(low - pad, high + pad)


def _columns(rows: Sequence[dict[str, Any]], *keys: str) -> tuple[list[float], ...]:
    """The columns `keys` of the rows in which all of them are finite."""
    kept = [values for row in rows if None not in (values := [finite(row.get(key)) for key in keys])]
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
                yerr=[abs(finite(row.get("stderr")) or 0.0) for row in chosen],
                color=colour,
                marker=marker,
                markersize=4.5,
                markerfacecolor=colour if exact else PAPER,
                markeredgewidth=1.2,
                linestyle="none",
                elinewidth=1.2,
                capsize=2.5,
            )


def perplexity_figure(entries: Sequence[Mapping[str, Any]], label: str) -> str:
    """Dots of one corpus and protocol: `entries` hold label, text, perplexity, stderr_mc, stderr_data, bound.

    Thin bar with caps: the error of the texts; thick bar below it: of the maskings. Filled dot: exact; open arrow: the
    truth is there or to its left; open diamond: not stated.
    """
    figure, axes = _axes((SIZE[0], 0.75 + 0.38 * len(entries)))
    across = axes.get_yaxis_transform()
    for y, entry in enumerate(entries):
        x, (marker, colour) = entry["perplexity"], KINDS.get(str(entry["bound"]), ("D", INK))
        for error, at, width, cap in (("stderr_mc", y + 0.27, 4, 0), ("stderr_data", y, 1.1, 3)):
            if entry[error]:
                axes.errorbar(x, at, xerr=entry[error], color=colour, elinewidth=width, capsize=cap, fmt="none")
        face = colour if marker == "o" else PAPER
        axes.plot(x, y, marker=marker, markersize=6, color=colour, markerfacecolor=face, zorder=5)
        axes.text(1.02, y, entry["text"], transform=across, va="center", fontsize=10.5, color=INK)
    axes.set_yticks(range(len(entries)), [_label(entry["label"]) for entry in entries])
    for tick in axes.get_yticklabels():
        tick.set_parse_math(False)  # a "$" in a name is a dollar
    axes.set_ylim(len(entries) - 0.4, -0.5)
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("perplexity (per token)")
    spoken = "; ".join(f"{entry['label']} {entry['text'].replace('≤', 'at most')}" for entry in entries)
    return svg(figure, f"Perplexity per token, {label}: {spoken}")


def _label(text: str, width: int = 30) -> str:
    text = " ".join(text.split()) or "–"
    return text if len(text) <= width else f"{text[: width - 9]}…{text[-8:]}"


def _axes(size: tuple[float, float]) -> tuple[Figure, Axes]:
    """A figure of one panel, drawn in ink on nothing."""
    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.grid(color=INK, alpha=0.14, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=10.5, width=0.6, length=3)
    axes.tick_params(which="minor", width=0.4, length=2, color=INK)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set(color=INK, alpha=0.5, linewidth=0.6)
    axes.xaxis.label.set(color=INK, fontsize=11)
    axes.yaxis.label.set(color=INK, fontsize=11)
    return figure, axes


def _log_axis(axes: Axes, say: Callable[[float], str], ratio: float) -> None:
    """A logarithmic x axis, with about four labels whatever the ratio of its ends."""
    decades = math.log10(max(ratio, 1.001))
    subs = (1.0,) if decades >= 2.2 else (1.0, 3.0) if decades >= 1.2 else (1.0, 2.0, 5.0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=max(3, 6 if decades >= 2.2 else 99)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: say(x).removeprefix("1.00 × ").replace(".00 ×", " ×")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if decades < 0.4:
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_minor_locator(NullLocator())


def svg(figure: Figure, label: str) -> str:
    """`figure` as an <svg> for use inside HTML: no fixed size, no foreign ids, ink = currentColor, `label` read aloud.

    Colours INK and PAPER become the page's text and background. Equal figures give equal text.
    """
    buffer = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "unmask"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # measured as a box here; the browser has it
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=False, facecolor="none", metadata=nothing)
    root = ET.fromstring(buffer.getvalue())
    _tidy(root)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria-label": label}
    _distinct(root)
    return ET.tostring(root, encoding="unicode")


def _tidy(element: ET.Element) -> None:
    """Plain tag names and hrefs; no metadata, no style sheet (it would leak into the page), the page's colours."""
    element.tag = element.tag.rpartition("}")[2]
    element.attrib = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    if look := element.get("style"):
        look = re.sub(r"font: [^;]*?([\d.]+px)[^;]*", r"font-size: \1", look)
        element.set("style", look.replace(INK, "currentColor").replace(PAPER, "var(--paper, #fff)"))
    for child in list(element):
        _tidy(child)
        if child.tag in ("metadata", "style") or (child.tag == "defs" and not len(child)):
            element.remove(child)


def _distinct(root: ET.Element) -> None:
    """Ids that nothing points at dropped, the others made the figure's own by a digest of its text."""
    mark = f"f{zlib.crc32(ET.tostring(root)):08x}"
    pointer = re.compile(r"^#(.+)$|url\(#([^)]+)\)")
    elements = list(root.iter())
    looks = [value for element in elements for key, value in element.attrib.items() if key != "aria-label"]
    used = {match[1] or match[2] for value in looks for match in pointer.finditer(value)}
    for element in elements:
        name = element.attrib.pop("id", None)
        for key in ("href", "clip-path", "style"):
            if key in element.attrib:
                element.set(key, re.sub(r"^#|(?<=url\()#", f"#{mark}-", element.attrib[key]))
        if name in used:
            element.set("id", f"{mark}-{name}")


def keys(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """Legend of the loss figures: (colour, glyph, run's name)."""
    return [(style(i)[0], style(i)[2], run.name) for i, run in enumerate(runs)]
