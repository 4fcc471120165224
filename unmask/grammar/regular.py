"""Regular expressions in Python's syntax, and lists of choices, as automata over the bytes of UTF-8.

A pattern must fit the whole text, as with `re.fullmatch`. Python's own parser reads it and Python's own `re` says
which characters `\\w`, `[^a]` or `(?i)k` are, so that both mean what they mean everywhere else; what no automaton can
follow (backreferences, lookaround, word boundaries) is refused.
"""

import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache

import numpy as np

from unmask.sampling.automaton import DEAD, START, ByteAutomaton

# the parser of `re`, which has no public name; hypothesis and others read patterns through it too
parser = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
CATEGORIES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
CHARACTERS, REPEATS = ("LITERAL", "NOT_LITERAL", "ANY", "IN"), ("MAX_REPEAT", "MIN_REPEAT")
STEPS, STATES = 100_000, 20_000  # of the automata before and after they are made deterministic ...
FOLLOWED = 3_000_000  # ... and states that are followed without a byte on the way: seconds of work
SURROGATES = range(0xD800, 0xE000)  # no characters: UTF-8 has none of them


def regular(pattern: str) -> ByteAutomaton:
    """The automaton of the texts that a regular expression fits whole.

    Raises ValueError for a pattern that is not valid, not regular, or too large.
    """
    with _named(pattern):
        items, flags = _parsed(pattern)
        paths = Paths()
        start = paths.new()
        end = paths.all(items, start, flags)
        return determinised(paths, start, end)


def narrowed(pattern: str, sift: str) -> str:
    """A pattern of the texts that another fits whole by characters which `sift`, a lookahead, lets through.

    What `\\w` or `[^\\s]` fits is what it fits in ASCII and in Unicode. Raises ValueError as `regular` does.
    """
    with _named(pattern):
        return _all(*_parsed(pattern), sift)


@contextmanager
def _named(pattern: str) -> Iterator[None]:
    """Errors with the regular expression that they are of."""
    try:
        yield
    except RecursionError:
        raise ValueError(f"regular expression {_short(pattern)}: nested too deeply") from None
    except (ValueError, OverflowError, re.error) as error:
        raise ValueError(f"regular expression {_short(pattern)}: {error}") from None


def _parsed(pattern: str) -> tuple[list[tuple], int]:
    """What Python's parser makes of a regular expression, without anchors, and its flags."""
    tree = parser.parse(pattern)
    items = _unanchored(tree, 0, ("AT_BEGINNING", "AT_BEGINNING_STRING"))
    return _unanchored(items, -1, ("AT_END", "AT_END_STRING")), tree.state.flags


def choices(texts: Sequence[str]) -> ByteAutomaton:
    """The automaton of a list of texts: the tree of their beginnings. Raises ValueError for an empty list or text."""
    if not texts or not all(texts):
        raise ValueError(f"choices {list(texts)[:5]}: give at least one, and none of them empty")
    children: list[dict[int, int]] = [{}, {}]
    accepting = {DEAD: False}
    for text in texts:
        try:
            letters = text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"choice {_short(text)}: half a surrogate pair, which is no character") from None
        state = START
        for byte in letters:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
            state = children[state][byte]
        accepting[state] = True
    if len(children) > STATES:
        raise ValueError(f"choices: {len(children)} different beginnings, more than {STATES}: give fewer")
    used = sorted({byte for after in children for byte in after})
    kind = np.zeros(256, dtype=np.int64)
    kind[used] = np.arange(1, len(used) + 1)
    table = np.zeros((len(children), len(used) + 1), dtype=np.int32)
    for state, after in enumerate(children):
        table[state, kind[list(after)]] = list(after.values())
    ends = [accepting.get(state, False) for state in range(len(children))]
    return ByteAutomaton(table, kind, np.array(ends))


@dataclass
class Paths:
    """Thompson's automaton, built from left to right: each method goes on from a state and gives the one it ends in."""

    moves: list[list[tuple[int, int, int]]] = field(default_factory=list)
    """(first byte, last byte, next state) of each state."""
    free: list[list[int]] = field(default_factory=list)
    """States that follow without a byte."""

    def new(self) -> int:
        if len(self.moves) == STEPS:
            raise ValueError(f"more than {STEPS:,} steps: use smaller counts")
        self.moves.append([])
        self.free.append([])
        return len(self.moves) - 1

    def all(self, items: Iterable[tuple], here: int, flags: int) -> int:
        """One item of the parser's after the other."""
        for name, value in items:
            here = self.one(str(name), value, here, flags)
        return here

    def one(self, name: str, value, here: int, flags: int) -> int:
        if name in CHARACTERS:
            return self.characters(fitting(name, value, flags), here)
        if name == "BRANCH":
            return self.join([self.all(branch, here, flags) for branch in value[1]])
        if name == "SUBPATTERN":
            _, added, removed, items = value
            removed |= re.ASCII if added & re.UNICODE else 0
            return self.all(items, here, (flags | added) & ~removed)
        if name in REPEATS:
            least, most, items = value
            return self.repeat(least, most, items, here, flags)
        raise _irregular(name)

    def repeat(self, least: int, most: int, items, here: int, flags: int) -> int:
        for _ in range(least):
            states, here = len(self.moves), self.all(items, here, flags)
            if len(self.moves) == states:  # of nothing, however often
                return here
        if most is parser.MAXREPEAT:
            loop = self.join([here])
            self.free[self.all(items, loop, flags)].append(loop)
            return self.join([loop])
        ends = [here]
        for _ in range(most - least):
            states = len(self.moves)
            ends.append(self.all(items, ends[-1], flags))
            if len(self.moves) == states:
                break
        return self.join(ends)

    def join(self, ends: list[int]) -> int:
        """A new state that follows each of these: nothing that comes after can lead back into them."""
        joined = self.new()
        for end in ends:
            self.free[end].append(joined)
        return joined

    def characters(self, ranges: Iterable[tuple[int, int]], here: int) -> int:
        end = self.new()
        for low, high in ranges:
            for span in utf8(low, high):
                state = here
                for first, last in span[:-1]:
                    state, before = self.new(), state
                    self.moves[before].append((first, last, state))
                self.moves[state].append((*span[-1], end))
        return end


def determinised(paths: Paths, start: int, end: int) -> ByteAutomaton:
    """The subset construction, over kinds of bytes that no move tells apart."""
    cuts = sorted({0, 256, *(cut for moves in paths.moves for low, high, _ in moves for cut in (low, high + 1))})
    kind_of = {cut: i for i, cut in enumerate(cuts)}
    kind = np.repeat(np.arange(len(cuts) - 1), np.diff(cuts))

    followed = 0

    def count(states: int) -> None:
        nonlocal followed
        followed += states
        if followed > FOLLOWED:
            raise ValueError("too many ways to read the same text: use smaller counts")

    @cache
    def closure(state: int) -> frozenset[int]:
        """The states that follow without a byte and go on with one, or are the end."""
        seen, waiting = {state}, [state]
        while waiting:
            fresh = set(paths.free[waiting.pop()]) - seen
            seen |= fresh
            waiting += fresh
        count(len(seen))
        return frozenset(s for s in seen if paths.moves[s] or s == end)

    known = {frozenset(): DEAD, closure(start): START}
    rows, sets = [[DEAD] * (len(cuts) - 1)], [closure(start)]
    for states in sets:
        reached: list[set[int]] = [set() for _ in cuts[1:]]
        for state in states:
            for low, high, target in paths.moves[state]:
                for i in range(kind_of[low], kind_of[high + 1]):
                    reached[i].add(target)
        row = []
        for targets in reached:
            after = [closure(target) for target in targets]
            count(sum(map(len, after)))
            new = frozenset().union(*after)
            if new not in known:
                known[new] = len(known)
                sets.append(new)
                if len(known) > STATES:
                    raise ValueError(f"its automaton has more than {STATES:,} states: use smaller counts")
            row.append(known[new])
        rows.append(row)
    accepting = [False, *(end in states for states in sets)]
    return ByteAutomaton(np.array(rows, dtype=np.int32), kind, np.array(accepting))


def utf8(low: int, high: int) -> Iterator[list[tuple[int, int]]]:
    """Sequences of byte ranges that spell exactly the code points low..high, surrogates not among them."""
    for last in (0x7F, 0x7FF, 0xFFFF, 0x10FFFF):
        if low <= min(high, last):
            yield from between(chr(low).encode(), chr(min(high, last)).encode(), b"\x80", b"\xbf")
            low = last + 1


def between(low: bytes, high: bytes, least: bytes, most: bytes) -> Iterator[list[tuple[int, int]]]:
    """The same for two spellings of one length, where any byte but the first is from `least` to `most`."""
    if len(low) == 1:
        yield [(low[0], high[0])]
        return
    if low[0] == high[0]:
        yield from ([(low[0], low[0]), *rest] for rest in between(low[1:], high[1:], least, most))
        return
    rest = len(low) - 1
    first, last = low[0], high[0]
    if low[1:] != least * rest:
        yield from between(low, low[:1] + most * rest, least, most)
        first += 1
    if high[1:] != most * rest:
        yield from between(high[:1] + least * rest, high, least, most)
        last -= 1
    if first <= last:
        yield [(first, last)] + [(least[0], most[0])] * rest


def fitting(name: str, value, flags: int, sift: str = "") -> list[tuple[int, int]]:
    """Ranges of the code points that an item of the parser's for one character fits; for `sift` see `narrowed`."""
    if name == "LITERAL" and not flags & re.IGNORECASE:  # without a look at every character
        fits = value not in SURROGATES and re.match(sift, chr(value)) is not None
        return [(value, value)] * fits
    source = _source(name, value)
    source = f"{sift}(?=(?a:{source})){source}" if sift else source
    return code_points(source, flags & (re.IGNORECASE | re.DOTALL | re.ASCII))


def spelt(ranges: Sequence[tuple[int, int]]) -> str:
    """A pattern for one character of these."""
    ends = [[re.escape(chr(code)) for code in (low, high)[: 1 + (low < high)]] for low, high in ranges]
    if len(ends) == 1 and len(ends[0]) == 1:
        return ends[0][0]
    return f"[{''.join(map('-'.join, ends))}]" if ends else r"[^\x00-\U0010ffff]"


@lru_cache(1024)
def code_points(source: str, flags: int) -> list[tuple[int, int]]:
    """Ranges of the code points that a pattern for one character fits, as `re` itself finds them."""
    found = re.finditer(f"(?:{source})+", _every_character(), flags)
    ranges = [(match.start(), match.end() - 1) for match in found]
    below = [(low, min(high, SURROGATES.start - 1)) for low, high in ranges]
    above = [(max(low, SURROGATES.stop), high) for low, high in ranges]
    return [(low, high) for low, high in [*below, *above] if low <= high]


@cache
def _every_character() -> str:
    return "".join(map(chr, range(0x110000)))


def _source(name: str, value) -> str:
    """The pattern of one character again, from what the parser made of it."""
    if name == "ANY":
        return "."
    if name == "IN":
        parts = [(str(part), what) for part, what in value]
        negated = parts[0][0] == "NEGATE"
        return f"[{'^' * negated}{''.join(_part(part, what) for part, what in parts[negated:])}]"
    return f"[{'^' * (name == 'NOT_LITERAL')}{_part('LITERAL', value)}]"


def _part(name: str, value) -> str:
    if name == "CATEGORY":
        return CATEGORIES[str(value)]
    low, high = value if name == "RANGE" else (value, value)
    return f"\\U{low:08x}-\\U{high:08x}"


def _unanchored(tree: Iterable[tuple], end: int, anchors: tuple[str, ...]) -> list[tuple]:
    """Without anchors at an end (0: the beginning, -1) of any alternative, which say what holds anyway."""
    items = list(tree)
    while items and str(items[end][1]) in anchors:
        del items[end]
    if items:
        name, value = items[end]
        if str(name) == "BRANCH":
            items[end] = name, (None, [_unanchored(branch, end, anchors) for branch in value[1]])
        elif str(name) == "SUBPATTERN":
            items[end] = name, (*value[:3], _unanchored(value[3], end, anchors))
    return items


def _all(items: Iterable[tuple], flags: int, sift: str) -> str:
    return "".join(_one(str(name), value, flags, sift) for name, value in items)


def _one(name: str, value, flags: int, sift: str) -> str:
    """The pattern of one item of the parser's again; see `narrowed`."""
    if name in CHARACTERS:
        return spelt(fitting(name, value, flags, sift))
    if name == "BRANCH":
        return f"(?:{'|'.join(_all(branch, flags, sift) for branch in value[1])})"
    if name == "SUBPATTERN":
        _, added, removed, items = value
        return f"(?:{_all(items, (flags | added) & ~removed, sift)})"
    if name in REPEATS:
        least, most, items = value
        return f"(?:{_all(items, flags, sift)}){{{least},{'' if most is parser.MAXREPEAT else most}}}"
    raise _irregular(name)


def _irregular(name: str) -> ValueError:
    if name == "AT":
        return ValueError("'^', '$' and '\\b' cannot stand inside: the pattern fits the whole text anyway")
    return ValueError(f"{name.lower().replace('_', ' ')} is not regular: leave it out")


def _short(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else pattern[:57] + "…")
