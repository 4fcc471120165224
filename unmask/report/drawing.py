"""Figures as inline SVG: text in the page's own font and colour, data in Okabe-Ito colours."""

import io
import math
import re
import unicodedata
import warnings
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable, Sequence
from typing import Any, cast

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

# Okabe and Ito (2008), https://jfly.uni-koeln.de/color/, less black and yellow, which vanish on a dark or a light page
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
GLYPHS = ("●", "■", "▲", "◆", "▼", "✚")  # the same marks as text, for the legend in the page
INK, PAPER = "#010203", "#fdfcfb"  # stand-ins, replaced in the SVG by the page's text and background colour
OF_PAGE = dict.fromkeys((INK, "#000000"), "currentColor") | dict.fromkeys((PAPER, "#ffffff"), "var(--paper, #fff)")
SIZE = (5.0, 3.3)  # inches of 72 px: drawn small, so that its text stays readable at the width of a phone


def style(i: int) -> tuple[str, str, str]:
    """Colour, marker and the marker's glyph of the i-th run: 36 distinct pairs."""
    j = (i + i // len(COLOURS)) % len(MARKERS)
    return COLOURS[i % len(COLOURS)], MARKERS[j], GLYPHS[j]


def shorten(texts: Sequence[str]) -> list[str]:
    """Each text about 30 ordinary letters wide at most; different ones that come out the same are numbered."""
    texts = [" ".join(text.split()) or "–" for text in texts]
    short = {text: _shorter(text, 30) for text in texts}
    for each in set(short.values()):
        same = [text for text in short if short[text] == each]
        if len(same) > 1:
            short |= {text: f"{_shorter(text, 26)} ({number})" for number, text in enumerate(same, 1)}
    return [short[text] for text in texts]


def _shorter(text: str, most: float) -> str:
    """The text, or as much of its beginning, and its end, as are not wider than `most` letters."""
    cut = (f"{text[:left]}…{text[-8:]}" for left in range(min(len(text), 30), 0, -1))
    return text if _width(text) <= most else next(each for each in cut if _width(each) <= most)


def _width(text: str) -> float:
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide + 0.6 * sum(c in "mwMW@%" for c in text)


def panel(size: tuple[float, float]) -> tuple[Figure, Axes]:
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


def log_axis(axis: Axis, say: Callable[[float], str], ratio: float) -> None:
    """A logarithmic axis with about four labels, unless the ratio of its ends is beyond all measure."""
    decades = math.log10(max(ratio, 1.001))
    if decades > 12:
        return
    subs = (1.0,) if decades >= 2.2 else (1.0, 3.0) if decades >= 1.2 else (1.0, 2.0, 5.0)
    axes = cast(Axes, axis.axes)
    axes.set_xscale("log") if axis is axes.xaxis else axes.set_yscale("log")
    axis.set_major_locator(LogLocator(subs=subs, numticks=max(3, 6 if decades >= 2.2 else 99)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: say(x).removeprefix("1.00 × ").replace(".00 ×", " ×")))
    axis.set_minor_formatter(NullFormatter())
    if decades < 0.4:
        axis.set_major_locator(MaxNLocator(3))
        axis.set_minor_locator(NullLocator())


def svg_file(figure: Figure, **look: Any) -> bytes:
    """`figure` as an SVG file, its text as text; equal figures give equal files."""
    buffer = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "unmask"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # measured as a box here; the browser has it
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=False, metadata=nothing, **look)
    return buffer.getvalue()


def svg(figure: Figure, label: str) -> str:
    """`figure` as an <svg> for use inside HTML: no fixed size, no foreign ids, ink = currentColor, `label` read aloud.

    Colours INK and black become the page's text, PAPER and white its background. Equal figures give equal text.
    """
    root = ET.fromstring(svg_file(figure, facecolor="none"))
    _tidy(root)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"fill": "currentColor", "xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria-label": label}
    _distinct(root)
    return ET.tostring(root, encoding="unicode")


def _tidy(element: ET.Element) -> None:
    """Plain tag names and hrefs; no metadata, no style sheet (it would leak into the page), the page's colours."""
    element.tag = element.tag.rpartition("}")[2]
    element.attrib = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    if look := element.get("style"):
        look = re.sub(r"font: [^;]*?([\d.]+px)[^;]*", r"font-size: \1", look)
        for colour, of_page in OF_PAGE.items():
            look = look.replace(colour, of_page)
        element.set("style", look)
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
