"""Examples to tokens, and which of them are the answer."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from unmask.data.pairs.layouts import Between, Blanks, Chat, Example, Plain
from unmask.data.pairs.templates import Piece, Template
from unmask.data.tokenizer import Tokenizer

SPANS = 3  # blanks of a text at most
UNIFORMS = 1 + 3 * SPANS
ROOM = 16
"""Most end tokens behind an answer shorter than this; behind a longer one there are up to as many as it is long. A
blank of up to 1 + ROOM tokens tells nothing of how long its answer is."""


class Encoded(NamedTuple):
    """Tokens behind the begin token, and which are learnt: the answer and the end tokens."""

    ids: Int[np.ndarray, " n"]
    answer: Bool[np.ndarray, " n"]


def encode(example: Example, tokenizer: Tokenizer, template: Template, u: Float[np.ndarray, " UNIFORMS"]) -> Encoded:
    """The example's tokens, with one end token behind the last answer; behind one that a given text follows, as many
    as `ends` says. `u` are uniforms, for these and for `blanked`.
    """
    if isinstance(example, Blanks):
        return blanked(np.array(tokenizer.encode(example.text)), tokenizer.end, u)
    if isinstance(example, Chat):
        pieces = template(example.messages)
        while not pieces[-1].answer:
            pieces.pop()
    else:
        pieces = [Piece(example.prompt, False), Piece(example.answer, True)]
        pieces += [Piece(example.suffix, False)] if isinstance(example, Between) else []
    runs = tokens_of(pieces, tokenizer, template)
    if isinstance(example, Between):  # the blank may be longer than its answer, as in `blanked`
        at = next(i for i, (_, answer) in enumerate(runs) if answer)
        runs.insert(at + 1, ([tokenizer.end] * ends(len(runs[at][0]), u[-1]), True))
    elif runs[-1][0][-1:] != [tokenizer.end]:
        runs.append(([tokenizer.end], True))
    ids = np.concatenate([np.array(run, dtype=np.int64) for run, _ in runs])
    return Encoded(ids, np.repeat([answer for _, answer in runs], [len(run) for run, _ in runs]))


def prompt_ids(example: Plain | Chat, tokenizer: Tokenizer, template: Template) -> list[int]:
    """What a model is given to answer an example: the tokens that `encode` puts before the last answer."""
    if isinstance(example, Plain):
        return tokenizer.encode(example.prompt)
    messages = example.messages[: len(example.messages) - (example.messages[-1][0] == "assistant")]
    return [id for run, _ in tokens_of(template(messages, ask=True), tokenizer, template) for id in run]


def tokens_of(pieces: Sequence[Piece], tokenizer: Tokenizer, template: Template) -> list[tuple[list[int], bool]]:
    """Runs of tokens, each given or answered: what stands together of one kind is read together.

    An answer is read as the rest of the text before it, as it is written when the model is asked: a boundary of tokens.
    """
    names = {name: tokenizer.inner.token_to_id(name) for name in template.specials}
    split = re.compile("(" + "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) + ")")
    joined: list[tuple[str | int, bool]] = []
    for piece in pieces:
        for part in split.split(piece.text) if piece.special and names else [piece.text]:
            special = names.get(part) if piece.special else None
            if special is not None:
                joined.append((special, piece.answer))
            elif part and joined and joined[-1][1] == piece.answer and isinstance(joined[-1][0], str):
                joined[-1] = (joined[-1][0] + part, piece.answer)
            elif part:
                joined.append((part, piece.answer))
    runs: list[tuple[list[int], bool]] = []
    for part, answer in joined:
        rest = bool(runs) and tokenizer.rest is not None
        ids = [part] if isinstance(part, int) else tokenizer.arrays([part], cut=rest)[0].tolist()
        runs.append((ids, answer))
    return without_begin(runs, tokenizer)


def without_begin(runs: list[tuple[list[int], bool]], tokenizer: Tokenizer) -> list[tuple[list[int], bool]]:
    """Templates write the begin token themselves; every sequence has one here."""
    if runs and runs[0][0][:1] == [tokenizer.begin] and not runs[0][1]:
        return [(runs[0][0][1:], False), *runs[1:]]
    return runs


def ends(size: int, u: float) -> int:
    """End tokens behind an answer of so many tokens that a given text follows, by a uniform: 0 to ROOM, or to `size`
    where that is more. They teach a model to leave a blank early, so that it can be given one that is too long.
    """
    return int(u * (max(size, ROOM) + 1))


def blanked(ids: Int[np.ndarray, " n"], end: int, u: Float[np.ndarray, " UNIFORMS"]) -> Encoded:
    """A text with one to SPANS blanks of random place and length, each with end tokens behind it (`ends`).

    Raises ValueError for a text of fewer than 4 tokens.
    """
    if len(ids) < 4:
        raise ValueError(f"a text of {len(ids)} tokens is too short for a blank")
    count = min(1 + int(u[0] * SPANS), len(ids) // 4)
    edges = np.linspace(0, len(ids), count + 1).astype(int)
    parts: list[tuple[np.ndarray, bool]] = []
    for first, last, long, place, room in zip(edges[:-1], edges[1:], *u[1:].reshape(3, SPANS)[:, :count], strict=True):
        size = 1 + int(long**2 * (last - first - 1))
        start = first + int(place * (last - first - size + 1))
        parts += [(ids[first:start], False)]
        parts += [(np.append(ids[start : start + size], [end] * ends(size, room)), True)]
        parts += [(ids[start + size : last], False)]
    answer = np.repeat([answer for _, answer in parts], [len(part) for part, _ in parts])
    return Encoded(np.concatenate([part for part, _ in parts]).astype(np.int64), answer)
