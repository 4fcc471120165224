"""The replay of an unmasking: which token appeared when, and how sure the network was of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex

from unmask.report.read import clean
from unmask.report.units import MISSING, count, duration, finite, plain

SCALE = colormaps["viridis"]  # sequential, uniform in lightness, readable with colour-blind eyes and in grey


@dataclass(frozen=True)
class Token:
    """One piece of the final text."""

    text: str
    given: bool
    frame: int  # the network call, counted from 1, that wrote it; 0 where given
    step: int
    confidence: float
    colour: str
    ink: str  # black or white, whichever reads better on the colour


@dataclass(frozen=True)
class Replay:
    """A sample made ready for its template."""

    title: str
    text: str
    facts: list[tuple[str, str]]
    tokens: list[Token]
    steps: list[int]  # the distinct steps that revealed something, in order
    gradient: str


def prepare(sample: Mapping[str, Any]) -> Replay:
    """`sample` checked and coloured.

    Raises: ValueError that names the sample and the key where its lists differ in length or hold something else.
    """
    sample = clean(dict(sample))
    where = sample.get("where") or f"sample {sample.get('title', '')!r}"
    pieces = _column(sample, where, "pieces", lambda value: isinstance(value, str), "strings")
    text = sample.get("text", "".join(pieces))
    if not isinstance(text, str) or not ("text" in sample or "pieces" in sample):
        raise ValueError(f"{where}: needs a 'text' (a string) or 'pieces'")
    n = len(pieces)
    given = _column(sample, where, "given", lambda value: isinstance(value, bool), "true or false", n)
    step = _column(sample, where, "step", _is_int, "whole numbers", n)
    confidence = _column(sample, where, "confidence", _is_share, "numbers from 0 to 1", n)
    if any(s < 0 and not g for s, g in zip(step, given, strict=True)):
        raise ValueError(f"{where}: 'step' is negative at a token that was not given")
    steps = sorted({s for s, g in zip(step, given, strict=True) if not g})
    frames = {s: i + 1 for i, s in enumerate(steps)}
    tokens = [
        Token(piece, g, 0 if g else frames[s], s, float(c), *(("", "") if g else _colour(frames[s], len(steps))))
        for piece, g, s, c in zip(pieces, given, step, confidence, strict=True)
    ]
    gradient = ", ".join(to_hex(SCALE(i / 8)) for i in range(9))
    return Replay(_text(sample.get("title")) or "sample", text, _facts(sample), tokens, steps, gradient)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_share(value: Any) -> bool:
    found = finite(value)
    return found is not None and -1e-6 <= found <= 1 + 1e-6  # a probability may carry rounding


def _column(sample: Mapping, where: str, key: str, good: Any, what: str, n: int | None = None) -> Sequence:
    """The list `key` of the sample, of `n` good entries (any number where n is None)."""
    column = sample.get(key, [] if n in (None, 0) else None)
    if not isinstance(column, list) or not all(map(good, column)):
        raise ValueError(f"{where}: '{key}' must be a list of {what}")
    if n is not None and len(column) != n:
        raise ValueError(f"{where}: '{key}' has {len(column)} entries where 'pieces' has {n}")
    return column


def _colour(frame: int, frames: int) -> tuple[str, str]:
    """The colour of the frame-th of `frames` calls, and black or white on it (contrast at least 4.5, WCAG 2)."""
    colour = SCALE((frame - 1) / max(1, frames - 1))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return to_hex(colour), "#000" if luminance > 0.179 else "#fff"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else MISSING if value is None else str(value)


def _facts(sample: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of how the sample was drawn, missing keys left out."""
    named = (
        ("policy", "policy", _text),
        ("exact_for", "exact for", _text),
        ("nfe", "network calls", lambda value: plain(value)),
        ("seconds", "time", duration),
        ("seed", "seed", _text),
    )
    facts = [(label, say(sample[key])) for key, label, say in named if sample.get(key) is not None]
    if pieces := sample.get("pieces"):
        facts.append(("tokens", f"{count(len(pieces))}, {sum(sample.get('given', []))} of them given"))
    return facts
