"""Which documents are held out: by a hash of each, so that a document keeps its side when others are added."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from unmask.data.reading import Part
from unmask.data.sources import Source

WINDOW = 1 << 21  # characters around the wanted place in which a single document is cut


@dataclass(frozen=True)
class Sides:
    """Divides the documents of some sources in training and validation.

    A document is held out if a hash of it, of a record's text or of a file's name, falls below `share`; `forced` gives
    a key the side that it would not have by itself, so that no side is empty. A single document is cut in two instead.
    Where all are alike, copies of a record or files of one name, the key is their place: `placed`.
    """

    sources: Sequence[Source]
    share: float
    forced: tuple[str, bool] | None = None
    single: bool = False
    placed: bool = False

    @classmethod
    def of(cls, sources: Sequence[Source], share: float) -> "Sides":
        """Looks at documents until each side has one."""
        if len(sources) == 1 and sources[0].single:
            return cls(sources, share, single=True)
        ways = [cls(sources, share), cls(sources, share, placed=True)]
        ends: list[tuple[tuple[float, str], ...]] = [(), ()]  # of each way, the least and the greatest share
        for number, part in ways[0]._all():
            for i, way in enumerate(ways):
                key = way._key(number, part)
                found = (*ends[i], (_uniform(key), key))
                ends[i] = min(found), max(found)
            if ends[0][0][0] < share <= ends[0][1][0]:
                return ways[0]
        for way, (least, most) in zip(ways, ends, strict=True):
            if least[0] < share <= most[0]:
                return way
            if least != most:
                held_out = most[0] < share
                return replace(way, forced=((most if held_out else least)[1], not held_out))
        return cls(sources, share, single=True)

    def parts(self) -> Iterator[tuple[bool, int, Part]]:
        """(held out, number of its source, part) of every document in order."""
        if self.single:
            number = next(i for i, source in enumerate(self.sources) if next(source.read(), None) is not None)
            for held_out, part in _in_two(self.sources[number].read, self.share):
                yield held_out, number, part
            return
        for number, part in self._all():
            yield self._holds_out(self._key(number, part)), number, part

    def _all(self) -> Iterator[tuple[int, Part]]:
        return ((number, part) for number, source in enumerate(self.sources) for part in source.read())

    def _key(self, number: int, part: Part) -> str:
        return f"{number}/{part.name}" if self.placed else part.key or part.name

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
