"""Protocols: from texts to the sequences that are scored, and what their tokens stand for.

Every text is followed by an end token; the texts make one stream, and the stream is cut into windows. Protocols
differ in what they drop, in the marks around a window and in the split that they score (`corpora`), which is enough
to make their numbers incomparable: a row names its protocol in full, and only rows of one protocol share a column.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.data import Split, Tokenizer, batch_indices

LONG = 10_000_000  # characters tokenised at once


@dataclass(frozen=True)
class Protocol:
    """How a stream of texts is cut."""

    name: str
    begin: bool = True
    """A begin token stands before each window, given, not scored; a causal network gets one in any case."""
    framed: bool = False
    """The first and last token of a window are a begin and an end token, scored with the rest."""
    shards: int = 1
    """Texts are dealt in so many contiguous parts, each cut for itself."""
    pack: int | None = None
    """Texts of a part that are cut together, what is left of a window's length dropped; None: all, nothing dropped."""


PACKED = Protocol("packed")
RADD = Protocol("radd")
# RADD's data.py maps batches of 1000 texts in 8 processes; MDLM's dataloader.py takes as many processes as the
# machine has cores, so that what it drops depends on the machine: here one.
RADD_PUBLISHED = Protocol("radd-published", begin=False, shards=8, pack=1000)
MDLM = Protocol("mdlm", begin=False, framed=True, pack=1000)
PROTOCOLS = (RADD, RADD_PUBLISHED, MDLM)


@dataclass(frozen=True, eq=False)
class Stream:
    """Tokens of texts, each followed by an end token, and what the texts are."""

    tokens: Int[np.ndarray, " T"]
    lengths: Int[np.ndarray, " N"]
    """Tokens of each text, its end token included."""
    documents: Int[np.ndarray, " N"]
    sizes: Float[np.ndarray, "N 3"]
    """UTF-8 bytes, characters and words of each text as it was before detokenisation; end tokens stand for none."""
    digest: str
    """Which texts these are, whatever the tokenizer."""

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Tokenizer, raw: Sequence[str], documents: Sequence[int]) -> "Stream":
        """Tokenise `texts`, whose originals are `raw`."""
        ids = [np.array([*row, tokenizer.end], dtype=np.int64) for row in _encoded(texts, tokenizer)]
        lengths = np.array([len(row) for row in ids])
        return cls(np.concatenate(ids), lengths, np.array(documents), _sizes(raw), digest(raw))

    @classmethod
    def of_split(cls, split: Split, tokenizer: Tokenizer) -> "Stream":
        """A prepared split: its documents are decoded to be measured."""
        raw = decoded(split, tokenizer)
        return cls(split.tokens, split.lengths, np.arange(len(split.lengths)), _sizes(raw), digest(raw))


@dataclass(frozen=True, eq=False)
class Windows:
    """Sequences to score, under a protocol stated in full."""

    x_0: Int[Tensor, "S W"]
    maskable: Bool[Tensor, "S W"]
    documents: Int[Tensor, " S"]
    """The document of each window's first scored token: the cluster of stderr_data."""
    sizes: tuple[float, float, float]
    """UTF-8 bytes, characters and words that the scored tokens stand for."""
    protocol: str


def cut(
    stream: Stream,
    protocol: Protocol,
    tokenizer: Tokenizer,
    *,
    length: int,
    stride: int | None = None,
    causal: bool = False,
    sequences: int | None = None,
    seed: int = 0,
) -> Windows:
    """The windows of a stream: `length` tokens each, begin token apart; all of them, or `sequences` drawn by the seed.

    With a `stride`, a window advances by so many tokens and only those it adds are scored, given the others. Where
    nothing is dropped the last window reaches back to be full, and what was scored before is given. A text cut by
    the edge of what is scored counts in proportion to its tokens. Raises ValueError for lengths, strides and numbers
    that are impossible.
    """
    inner = length - 2 * protocol.framed
    _possible(protocol, length, inner, stride, sequences)
    edges = np.cumsum([0, *stream.lengths])
    packs, drop = _packs(edges, protocol), protocol.pack is not None
    found = np.array([span for low, high in packs for span in spans(low, high, inner, stride or inner, drop=drop)])
    if not len(found):
        raise ValueError(f"the text has {edges[-1]} tokens and protocol {protocol.name} drops what fills no {length}")
    total = len(found)
    if sequences is not None:
        found = found[batch_indices(total, min(total, sequences), seed=seed, step=0)]
    start, first = found.T
    at = start[:, None] + np.arange(min(inner, edges[-1]))
    scored = at >= first[:, None]
    text = np.searchsorted(edges, at[scored], side="right") - 1
    share = np.bincount(text, minlength=len(stream.lengths)) / stream.lengths
    x_0, maskable = _marked(stream.tokens[at], scored, protocol, tokenizer, causal)
    documents = stream.documents[np.searchsorted(edges, first, side="right") - 1]
    in_words = _in_words(protocol, length, stride, len(found), total, seed)
    bytes_, characters, words = (share @ stream.sizes).tolist()
    return Windows(x_0, maskable, torch.from_numpy(documents), (bytes_, characters, words), in_words)


def _encoded(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Tokens of each text, on all cores, holding few at once: many short ones together, long ones in pieces."""
    for i in range(0, len(texts), 1000):
        some = texts[i : i + 1000]
        if sum(len(text) for text in some) < LONG:
            yield from tokenizer.encode_batch(some)
        else:
            yield from ([id for piece in tokenizer.stream(text) for id in piece] for text in some)


def decoded(split: Split, tokenizer: Tokenizer) -> list[str]:
    """The texts of a prepared split."""
    spans = zip(split.starts.tolist(), split.lengths.tolist(), strict=True)
    return [tokenizer.decode(split.tokens[start : start + length - 1]) for start, length in spans]


def _possible(protocol: Protocol, length: int, inner: int, stride: int | None, sequences: int | None) -> None:
    if inner < 1:
        raise ValueError(f"a length of {length} holds no text under protocol {protocol.name}: give more")
    if stride is not None and protocol.pack is not None:
        raise ValueError(f"protocol {protocol.name} has no stride: its windows are blocks; leave --stride out")
    if stride is not None and not 1 <= stride <= length:
        raise ValueError(f"stride {stride} must be between 1 and the length of a window, {length}")
    if sequences is not None and sequences < 1:
        raise ValueError(f"sequences {sequences} must be at least 1")


def _packs(edges: Int[np.ndarray, " N+1"], protocol: Protocol) -> Iterator[tuple[int, int]]:
    """Token ranges that are cut each for itself: of contiguous parts, as equal as can be, `pack` texts each."""
    for part in np.array_split(np.arange(len(edges) - 1), min(protocol.shards, len(edges) - 1)):
        size = protocol.pack or len(part)
        for i in range(0, len(part), size):
            texts = part[i : i + size]
            yield int(edges[texts[0]]), int(edges[texts[-1] + 1])


def spans(low: int, high: int, length: int, stride: int, *, drop: bool = False) -> Iterator[tuple[int, int]]:
    """(start, first scored token) of the windows of tokens low..high-1, each of `length` tokens or of all there are.

    The first window is scored whole, the others where they go beyond the one before: `stride` tokens, or for the
    last what is left, unless `drop`.
    """
    length = length if drop else min(length, high - low)
    if low + length > high:
        return
    yield low, low
    done = low + length
    while done < high and not (drop and done + stride > high):
        end = min(done + stride, high)
        yield end - length, done
        done = end


def _marked(
    content: Int[np.ndarray, "S L"],
    scored: Bool[np.ndarray, "S L"],
    protocol: Protocol,
    tokenizer: Tokenizer,
    causal: bool,
) -> tuple[Int[Tensor, "S W"], Bool[Tensor, "S W"]]:
    """The windows with the protocol's marks around them, and which positions are scored."""
    left, right = protocol.framed or protocol.begin or causal, protocol.framed
    around = ((0, 0), (int(left), int(right)))
    x_0, maskable = np.pad(content.astype(np.int64), around), np.pad(scored, around, constant_values=protocol.framed)
    if left:
        x_0[:, 0] = tokenizer.begin
        maskable[:, 0] &= not causal  # nothing stands left of it to predict it from
    if right:
        x_0[:, -1] = tokenizer.end
    return torch.from_numpy(x_0), torch.from_numpy(maskable)


def _in_words(protocol: Protocol, length: int, stride: int | None, scored: int, total: int, seed: int) -> str:
    blocks = stride is None or stride == length
    words = f"blocks of {length} tokens" if blocks else f"windows of {length} tokens, the last {stride} scored"
    if protocol.begin:
        words += " after a begin token"
    if protocol.framed:
        words += ", first and last of them a begin and an end token, scored too (not the first by a causal network)"
    elif not protocol.begin:
        words += " (a causal network has a begin token before them)"
    if protocol.pack:
        parts = f" of {protocol.shards} parts" if protocol.shards > 1 else ""
        words += f", remainders of each {protocol.pack} texts{parts} dropped"
    sample = f", {scored} of {total} windows, drawn by seed {seed}" if scored < total else ""
    return f"{protocol.name}: {words}{sample}"


def digest(rows: Sequence[str]) -> str:
    """Which texts these are: 16 hexadecimal digits, the same from the hub as from files."""
    state = hashlib.blake2b(digest_size=8)
    for row in rows:
        text = row.encode()
        state.update(len(text).to_bytes(8, "little") + text)
    return state.hexdigest()


def _sizes(texts: Sequence[str]) -> Float[np.ndarray, "N 3"]:
    return np.array([(len(text.encode()), len(text), len(text.split())) for text in texts], dtype=np.float64)
