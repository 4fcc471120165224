"""Automata over tokens: which texts fit, asked of a canvas whose tokens are partly unknown.

A deterministic automaton over bytes is lifted to one over token ids: the column of a token says where each state goes
when it is read. Tokens with equal columns form a class, so that a vocabulary of 128,000 becomes a few hundred columns.

An unknown token leads from a state to a SET of states. Sets are Python integers, bit s for state s, and are stepped
only when they are met (the subset construction, done lazily).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Int

DEAD, START = 0, 1
OPEN = -1
"""In a list of classes: a token that is not known."""
CELLS = 1 << 28  # states times classes: 1 GB of table
Array = np.ndarray


@dataclass(frozen=True, eq=False)
class ByteAutomaton:
    """A deterministic automaton over bytes: from state s, byte b leads to table[s, kind[b]].

    State 0 is dead and state 1 the start.
    """

    table: Int[Array, "S K"]
    kind: Int[Array, "256"]
    accepting: Bool[Array, " S"]


@dataclass(frozen=True, eq=False)
class Automaton:
    """A deterministic automaton over tokens: from state s, token v leads to table[s, class_of[v]].

    State 0 is dead and state 1 the start; the tokens of class 0 fit nowhere. Every other state is reached from the
    start and reaches an accepting one.
    """

    table: Int[Array, "S C"]
    class_of: Int[Array, " V"]
    accepting: Bool[Array, " S"]
    edges: tuple[Int[Array, " E"], Int[Array, " E"]] = field(init=False, repr=False)
    """Pairs (from, to) of live states that some token joins."""
    order: Int[Array, " V"] = field(init=False, repr=False)
    """The tokens sorted by class: those of class c stand from bounds[c] up to bounds[c + 1]."""
    bounds: Int[Array, " C+1"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", _edges(self.table))
        object.__setattr__(self, "order", self.class_of.argsort(kind="stable"))
        counts = np.bincount(self.class_of, minlength=self.table.shape[1])
        object.__setattr__(self, "bounds", np.append(0, counts.cumsum()))
        # what was met before is met again: at the next position, evaluation or sequence
        for name in ("_step", "_before"):
            object.__setattr__(self, name, lru_cache(1 << 16)(getattr(self, name)))

    @property
    def start(self) -> int:
        """The set that holds the start alone."""
        return 1 << START

    @property
    def ends(self) -> int:
        """The set of accepting states."""
        return _set(self.accepting)

    def step(self, states: int, token: int) -> int:
        """The states reached from a set by a token of this class, or by some token (OPEN)."""
        return self._step(states, token) if states else 0

    def before(self, states: int, token: int) -> int:
        """The states from which a token of this class, or some token (OPEN), leads into the set."""
        return self._before(states, token) if states else 0

    def backward(self, tokens: Sequence[int]) -> list[int]:
        """For each gap of a sequence of classes, the states from which its rest can be accepted."""
        sets = [self.ends]
        for token in reversed(tokens):
            sets.append(self.before(sets[-1], token))
        return sets[::-1]

    def accepts(self, tokens: Sequence[int]) -> bool:
        """Whether some filling of the unknown tokens of a sequence of classes fits."""
        states = self.start
        for token in tokens:
            states = self.step(states, token)
        return bool(states & self.ends)

    def closed_by(self, token: int) -> bool:
        """Whether a text that fits can end with this token wherever it stands, and go on with nothing but the same."""
        kind = self.class_of[token]
        behind = np.setdiff1d(self.table[:, kind], [DEAD])
        only = np.arange(self.table.shape[1]) == kind
        follows = bool(((self.table[behind] != DEAD) == only).all()) and np.count_nonzero(self.class_of == kind) == 1
        return not len(behind) or (follows and bool(self.accepting[behind].all()))

    def lengths(self, most: int) -> list[int]:
        """How many tokens a text that fits can have, up to `most`."""
        states, found = self.start, []
        for length in range(most + 1):
            if states & self.ends:
                found.append(length)
            states = self.step(states, OPEN)
        return found

    def _step(self, states: int, token: int) -> int:
        if token == OPEN:
            source, target = self.edges
            reached = target[self._mask(states)[source]]
        else:
            reached = self.table[self._mask(states), token]
        return self._of(reached)

    def _before(self, states: int, token: int) -> int:
        mask = self._mask(states)
        if token == OPEN:
            source, target = self.edges
            return self._of(source[mask[target]])
        return self._of(np.flatnonzero(mask[self.table[:, token]]))

    def packed(self, sets: Sequence[int]) -> Int[Array, "K W"]:
        """Sets as rows of 64-bit words."""
        words = -(-len(self.table) // 64)
        data = b"".join(states.to_bytes(8 * words, "little") for states in sets)
        return np.frombuffer(data, dtype="<u8").reshape(-1, words)

    def unpacked(self, words: Int[Array, "K W"]) -> Bool[Array, "K S"]:
        """Whether each state is in each set."""
        bits = np.unpackbits(words.astype("<u8").view(np.uint8), axis=-1, count=len(self.table), bitorder="little")
        return bits.view(bool)

    def _mask(self, states: int) -> Bool[Array, " S"]:
        return self.unpacked(self.packed([states]))[0]

    def _of(self, states: Int[Array, " N"]) -> int:
        mask = np.zeros(len(self.table), dtype=bool)
        mask[states] = True
        return _set(mask)


def over_tokens(
    letters: ByteAutomaton, pieces: Sequence[bytes | None], *, vocab: int | None = None, end: int | None = None
) -> Automaton:
    """The automaton over tokens that accepts what `letters` accepts once the tokens' bytes are joined.

    pieces[v] are the bytes of token v, None where it has none and fits nowhere; ids from len(pieces) to `vocab` have
    none either. After a text that fits, any number of `end` tokens may follow. Every way to cut a text into tokens
    fits, not only the tokenizer's own. Raises ValueError where no text of these tokens fits.
    """
    letters = _merged(letters)
    columns, column_of = _columns(letters, pieces)
    class_of = np.zeros(vocab or len(pieces), dtype=np.int64)
    class_of[: len(pieces)] = column_of
    table, accepting = columns.T, letters.accepting
    if end is not None:
        # one state more, left by nothing, entered from every accepting one and itself by one class more
        last = len(table)
        table = np.pad(table, ((0, 1), (0, 1)))
        accepting = np.append(accepting, True)
        table[accepting, -1] = last
        class_of[end] = table.shape[1] - 1
    return _trimmed(table, class_of, accepting)


def _merged(letters: ByteAutomaton) -> ByteAutomaton:
    """States that go on alike made one, from the ends: the last bytes of characters, the common ends of choices."""
    table, accepting = letters.table, letters.accepting
    # dead and start keep their numbers: nothing else is marked so
    marks = np.concatenate([[2, 3], accepting[2:]])
    while True:
        first, which = distinct(np.column_stack([marks, table]))
        if len(first) == len(table):
            return ByteAutomaton(table, letters.kind, accepting)
        table, accepting, marks = which[table[first]], accepting[first], marks[first]


def _columns(letters: ByteAutomaton, pieces: Sequence[bytes | None]) -> tuple[Int[Array, "C S"], Int[Array, " V"]]:
    """Distinct columns, the dead one first, and each token's: the columns of prefixes, one byte longer each time.

    A prefix counts by its column alone, so that the work is that of distinct columns, not of tokens.
    """
    states, kinds = letters.table.shape
    # a token without bytes would hold a place and change nothing: it fits nowhere, like one that has none
    length = np.array([len(piece or b"") for piece in pieces])
    kind = letters.kind[np.frombuffer(b"".join(piece or b"" for piece in pieces), dtype=np.uint8)]
    first = length.cumsum() - length
    columns = [np.zeros(states, dtype=np.int32), np.arange(states, dtype=np.int32)]
    number = {column.tobytes(): i for i, column in enumerate(columns)}
    now = np.where(length > 0, 1, 0)
    for depth in range(int(length.max(initial=0))):
        longer = np.flatnonzero((length > depth) & (now > 0))
        keys, which = np.unique(now[longer] * kinds + kind[first[longer] + depth], return_inverse=True)
        found = np.empty(len(keys), dtype=np.int64)
        for i, (prefix, byte) in enumerate(zip(*divmod(keys, kinds), strict=True)):
            column = letters.table[columns[prefix], byte].astype(np.int32)
            found[i] = number.setdefault(column.tobytes(), len(columns))
            if found[i] == len(columns):
                columns.append(column)
            if len(columns) * states > CELLS:
                raise ValueError(f"the constraint is too large: {states} states; write a shorter one")
        now[longer] = found[which]
    used, class_of = np.unique(np.append(now, 0), return_inverse=True)
    return np.stack([columns[i] for i in used]), class_of[:-1]


def _trimmed(table: Int[Array, "S C"], class_of: Int[Array, " V"], accepting: Bool[Array, " S"]) -> Automaton:
    """Without the states that no text of tokens passes, and with classes that then are equal made one."""
    live = _reached(_edges(table), len(table), [START])
    live &= _reached(_edges(table)[::-1], len(table), np.flatnonzero(accepting & live).tolist())
    if not live[START]:
        raise ValueError("no text that the model's tokens can spell fits the constraint")
    order = np.concatenate([[DEAD, START], np.setdiff1d(np.flatnonzero(live), [START])])
    new = np.zeros(len(table), dtype=np.int32)
    new[order[1:]] = np.arange(1, len(order))
    kept = new[table[order]]
    kept[DEAD] = DEAD
    columns = np.pad(kept.T, ((1, 0), (0, 0)))  # the dead column first, if no token has it yet
    first, which = distinct(columns)
    return Automaton(np.ascontiguousarray(columns[first].T), which[1:][class_of], accepting[order])


def distinct(rows: Int[Array, "N *M"]) -> tuple[Int[Array, " D"], Int[Array, " N"]]:
    """(where each distinct row is met first, the number of each row among them), in the order they are met."""
    rows = np.ascontiguousarray(rows).reshape(len(rows), -1)
    # by a hash that is linear in pieces of 16 bits (in whole words the top bits would cancel), and checked
    pieces = rows.view(np.uint16).astype(np.uint64)
    _, first, which = np.unique(pieces @ _factors(pieces.shape[1]), return_index=True, return_inverse=True)
    if not np.array_equal(rows[first][which], rows):
        _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = first.argsort()
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[which.ravel()]


@lru_cache(64)
def _factors(count: int) -> Int[Array, " count"]:
    return np.random.default_rng(0).integers(2**63, 2**64, count, dtype=np.uint64) | np.uint64(1)


def _edges(table: Int[Array, "S C"]) -> tuple[Int[Array, " E"], Int[Array, " E"]]:
    states = len(table)
    rows = [np.unique(row) + states * i for i, row in enumerate(table)]
    source, target = np.divmod(np.concatenate(rows), states)
    live = (source != DEAD) & (target != DEAD)
    return source[live], target[live]


def _reached(edges: tuple[Array, Array], states: int, sources: list[int]) -> Bool[Array, " S"]:
    """States on a path from the sources, themselves included."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order

    source = np.concatenate([edges[0], np.full(len(sources), states)])
    target = np.concatenate([edges[1], np.array(sources, dtype=np.int64)])
    graph = csr_array((np.ones(len(source)), (source, target)), shape=(states + 1, states + 1))
    found = np.zeros(states + 1, dtype=bool)
    found[breadth_first_order(graph, states, return_predecessors=False)] = True
    return found[:-1]


def _set(mask: Bool[Array, " S"]) -> int:
    mask = mask.copy()
    mask[DEAD] = False
    return int.from_bytes(np.packbits(mask, bitorder="little").tobytes(), "little")
