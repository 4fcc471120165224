"""The replay of an unmasking: which token appeared when, how sure the network was of it, and what was erased."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex

from unmask.report.read import clean
from unmask.units import MISSING, count, duration, finite, plain

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
    past: str = ""  # what stood here before, as JSON: [frame, text or null where erased, title, colour, ink, certainty]
    told: str = ""  # the same in words


@dataclass(frozen=True)
class Replay:
    """A sample made ready for its template."""

    title: str
    text: str
    facts: list[tuple[str, str]]
    tokens: list[Token]
    steps: list[int]  # the distinct steps that revealed something, in order
    gradient: str
    erased: int = 0  # tokens that were written and erased again


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
    history = _past(sample, where, given, step)
    steps = sorted({s for s, g in zip(step, given, strict=True) if not g} | {s for past in history for s, *_ in past})
    frames = {s: i + 1 for i, s in enumerate(steps)}
    colours = {s: _colour(frame, len(steps)) for s, frame in frames.items()}
    tokens = [
        Token(
            piece,
            g,
            0 if g else frames[s],
            s,
            float(c),
            *(("", "") if g else colours[s]),
            *_told(past, frames, colours),
        )
        for piece, g, s, c, past in zip(pieces, given, step, confidence, history, strict=True)
    ]
    erased = sum(text is not None for past in history for _, text, _ in past)
    gradient = ", ".join(to_hex(SCALE(i / 8)) for i in range(9))
    return Replay(_text(sample.get("title")) or "sample", text, _facts(sample), tokens, steps, gradient, erased)


Past = list[tuple[int, str | None, float]]
"""(step, text or None where it was erased, confidence) of each change of a position but its last."""


def _past(sample: Mapping, where: str, given: Sequence[bool], step: Sequence[int]) -> list[Past]:
    """What each position held before it was written for good, from the sample's `history`."""
    past: list[Past] = [[] for _ in given]
    for event in _column(sample, where, "history", _is_event, "[step, position, text or null, number from 0 to 1]"):
        at, position, text, confidence = event
        if position >= len(given) or given[position]:
            raise ValueError(f"{where}: 'history' changes position {position}, which is given or not there")
        if at < step[position]:
            past[position].append((at, text, float(confidence)))
    return [sorted(changes, key=lambda change: change[0]) for changes in past]


def _is_event(value: Any) -> bool:
    if not (isinstance(value, list) and len(value) == 4):
        return False
    step, position, text, confidence = value
    counts = all(_is_int(count) and count >= 0 for count in (step, position))
    return counts and (text is None or isinstance(text, str)) and _is_share(confidence)


def _told(past: Past, frames: Mapping[int, int], colours: Mapping[int, tuple[str, str]]) -> tuple[str, str]:
    """A position's past for the script, and in words."""
    if not past:
        return "", ""
    events, words = [], []
    for step, text, sure in past:
        said = f"step {step}, probability {sure:.3g}"
        events.append([frames[step], text, f"{said}; later erased", *colours[step], f"{100 * sure:.0f}%"])
        words.append(f"erased at step {step}" if text is None else f"“{text}” at {said}")
    return json.dumps(events, ensure_ascii=False), "before: " + "; ".join(words)


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
