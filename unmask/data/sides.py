"""Which documents are held out: by a hash of each, so that a document keeps its side when others are added."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from unmask.data.reading import Part
from unmask.data.sources import Source

WINDOW = 1 << 21  # characters around the wanted place in which a single document is cut


@dataclass(frozen=True)
class Sides:
    """Divides the documents of some sources in training and validation.

    A document is held out if a hash of it, of a record's text or of a file's name, falls below `share`; `forced` gives
    a key the side that it would not have by itself, so that no side is empty. A single document is cut in two instead.
    """

    sources: Sequence[Source]
    share: float
    forced: tuple[str, bool] | None = None
    single: bool = False

    @classmethod
    def of(cls, sources: Sequence[Source], share: float) -> "Sides":
        """Looks at documents until each side has one."""
        if len(sources) == 1 and sources[0].single:
            return cls(sources, share, single=True)
        shares: dict[str, float] = {}
        for part in chain.from_iterable(source.read() for source in sources):
            shares[part.key or part.name] = _uniform(part.key or part.name)
            sides = {value < share for value in (min(shares.values()), max(shares.values()))}
            if len(sides) == 2:
                return cls(sources, share)
        if len(shares) == 1:
            return cls(sources, share, single=True)
        held_out = max(shares.values()) < share
        key = (max if held_out else min)(shares, key=shares.__getitem__)
        return cls(sources, share, forced=(key, not held_out))

    def parts(self) -> Iterator[tuple[bool, int, Part]]:
        """(held out, number of its source, part) of every document in order."""
        if self.single:
            number = next(i for i, source in enumerate(self.sources) if next(source.read(), None) is not None)
            for held_out, part in _in_two(self.sources[number].read, self.share):
                yield held_out, number, part
            return
        for number, source in enumerate(self.sources):
            for part in source.read():
                yield self._holds_out(part.key or part.name), number, part

    def _holds_out(self, key: str) -> bool:
        if self.forced is not None and key == self.forced[0]:
            return self.forced[1]
        return _uniform(key) < self.share


def _uniform(key: str) -> float:
    """A uniform in [0, 1) that is the key's own."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64


def _in_two(read: Callable[[], Iterator[Part]], share: float) -> Iterator[tuple[bool, Part]]:
    """A single document with its last `share` held out, holding no more than a window of it."""
    total = sum(len(part.text) for part in read())
    goal = round(total * (1 - share))
    low, high = (0, total) if total <= 2 * WINDOW else (goal - WINDOW, goal + WINDOW)
    window, start, done, cut = "", 0, 0, False
    for part in read():
        done += len(part.text)
        if cut:
            yield True, replace(part, name=f"{part.name} (end)")
        elif done <= low:
            yield False, replace(part, last=False)
            start = done
        else:
            window += part.text
            if done < high and not part.last:
                continue
            at = _paragraph(window, goal - start, share * total / 2, part.name)
            yield False, replace(part, text=window[:at], last=True)
            yield True, replace(part, name=f"{part.name} (end)", text=window[at:])
            cut, window = True, ""


def _paragraph(text: str, goal: int, reach: float, name: str) -> int:
    """Where to cut near `goal`: the nearest end of a paragraph, line or word, at most `reach` away."""
    for mark in ("\n\n", "\n", " "):
        ends = [at + len(mark) for at in (text.rfind(mark, 0, goal), text.find(mark, goal)) if at >= 0]
        near = [end for end in ends if abs(end - goal) <= reach]
        for end in sorted(near, key=lambda end: abs(end - goal)):
            if text[:end].strip() and text[end:].strip():
                return end
    if len(text) < 2:
        raise ValueError(f"{name} is too short to cut a validation text from: give more text")
    return min(max(goal, 1), len(text) - 1)
