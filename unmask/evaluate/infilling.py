"""Blanks of unknown length: how many tokens go there, before any is written.

By the text behind the blank: p(n | text) is in proportion to p(n) p(what stands behind the blank | what stands before
it, n tokens between that are not seen). A masked model scores text beside hidden positions, so nothing need be written
to choose n, and the same tokens are scored under each n, so that long blanks are not at a disadvantage.

By the end token, for a model that has learnt to leave blanks early (fine-tuned on texts, or on answers with text behind
them): where nothing of the longest blank is written, p(end token at place k) is p(n <= k), places counted from 0, for
all behind the answer are end tokens. So one evaluation tells the law of n, as far as such blanks were learnt from: no
more than `ROOM` tokens longer than their answers, or twice as long.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unmask.checkpoint import Model
from unmask.data.pairs import rows_of
from unmask.data.pairs.encoding import ROOM
from unmask.files import Row
from unmask.likelihood import log_likelihood
from unmask.network import at_rest
from unmask.objectives import token_nats
from unmask.sampling import template
from unmask.sampling.canvas import BLANK

By = Literal["text", "end"]


class Candidate(NamedTuple):
    """A length of a blank and -log p in nats: of the text behind the blank, with the standard error from the maskings;
    or, by the end token, of the length itself (of the least: that it is no longer), which has no such error.
    """

    length: int
    nats: float
    stderr: float


def likely_lengths(
    model: Model,
    text: str,
    *,
    by: By = "text",
    draws: int = 32,
    window: int = 16,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[str, list[list[Candidate]]]:
    """The template with each blank {{2..12}} at a likely length, and the candidates of each.

    By the text: the length under which up to `window` tokens behind the blank are most probable, from `draws` maskings;
    a blank with none behind it stays as it is. By the end token: the median of the length's law. Blanks are settled
    from the left, those further right being as long as the middle of their range. `progress(done, total)` counts
    lengths. Raises ValueError for a causal model, which does not read what stands behind, for a text that with its
    longest blanks is longer than those the model was trained on, and for a range too wide for the end token to tell.
    """
    if model.causal:
        raise ValueError("a causal model does not read what stands behind a blank: give its length")
    model.canvas(text)  # which refuses what is no template
    longest = len(model.canvas(BLANK.sub(_longest, text))) - 1
    if model.length is not None and longest > model.length:
        what = f"the longest has {longest} tokens, and the model was trained on {model.length}"
        raise ValueError(f"likely lengths of {text!r:.40}: {what}: give smaller ranges")
    blanks = [(blank, text[blank.end() :]) for blank in BLANK.finditer(text)]
    total = sum(len(_choices(blank, behind, by)) for blank, behind in blanks)
    found: list[list[Candidate]] = []
    settled, rest = "", text

    def told() -> None:
        if progress is not None:
            progress(sum(map(len, found)), total)

    while blank := BLANK.search(rest):
        before, behind = settled + rest[: blank.start()], rest[blank.end() :]
        right, length = BLANK.sub(_middle, behind), blank[0]
        if choices := _choices(blank, behind, by):
            found.append([])
            if by == "end":
                found[-1], chosen = _ended(model, before, choices, right, seed)
                told()
            else:
                for n in choices:
                    found[-1].append(_scored(model, before, n, right, draws=draws, window=window, seed=seed))
                    told()
                chosen = min(found[-1], key=lambda each: each.nats).length
            length = f"{{{{{chosen}}}}}"
        settled, rest = before + length, behind
    return settled + rest, found


def _choices(blank: re.Match, behind: str, by: By) -> range:
    """The lengths to choose from; none where one is given, or nothing stands behind to choose by."""
    least, most = int(blank[1]), int(blank[2] or blank[1])
    if least == most or (by == "text" and not BLANK.split(behind)[0]):
        return range(0)
    if by == "end" and most > (widest := least + max(least, ROOM)):
        what = f"the end token tells of blanks up to {ROOM} tokens longer than what stands there, or twice as long"
        raise ValueError(f"{blank[0]}: {what}: give at most {{{{{least}..{widest}}}}}")
    return range(least, most + 1)


def _longest(blank: re.Match) -> str:
    return f"{{{{{blank[2] or blank[1]}}}}}"


def _middle(blank: re.Match) -> str:
    return f"{{{{{(int(blank[1]) + int(blank[2] or blank[1])) // 2}}}}}"


def _sides(model: Model, before: str, length: int, behind: str, seed: int) -> tuple[Int[Tensor, " L"], int]:
    """The canvas with a blank of a length between two texts, and the place behind that blank."""
    tokenizer = model.tokenizer

    def canvas(text: str, begin: list[int]) -> Tensor:
        return template(text, tokenizer.encode, model.mask_id, begin=begin, seed=seed)

    left = canvas(f"{before}{{{{{length}}}}}", [tokenizer.begin])
    return torch.cat([left, canvas(behind, [])]), len(left)


def _scored(model: Model, before: str, length: int, behind: str, *, draws: int, window: int, seed: int) -> Candidate:
    x_0, first = _sides(model, before, length, behind, seed)
    maskable = torch.zeros_like(x_0, dtype=torch.bool)
    run = (x_0[first:] == model.mask_id).nonzero().squeeze(-1)[:1].tolist()  # up to the next blank
    maskable[first : first + min([window, len(x_0) - first, *run])] = True
    # one number for all candidates: the same levels and, position by position, the same maskings
    estimate = log_likelihood(model, x_0[None], maskable[None], draws=draws, replicates=4, seed=seed, sequences=[0])
    return Candidate(length, estimate.nats, estimate.stderr_mc)


def _ended(model: Model, before: str, lengths: range, behind: str, seed: int) -> tuple[list[Candidate], int]:
    """The law of the length among these by the end token, and its median."""
    canvas, last = _sides(model, before, lengths[-1], behind, seed)
    blank = torch.zeros_like(canvas, dtype=torch.bool)
    blank[last - lengths[-1] : last] = True
    ended, level = canvas.masked_fill(blank, model.tokenizer.end), torch.ones(1, dtype=torch.float64)
    with at_rest(model):
        _, surprisal = token_nats(model, ended[None], blank[None], canvas=canvas[None], level=level)
    up_to = [*(-surprisal.cpu()).exp().cummax(0).values.tolist(), 1.0]  # p(n <= k), which a law has in order
    shares = np.diff([0.0, *(up_to[n] for n in lengths)])
    nats = -np.log(np.maximum(shares, np.finfo(float).tiny))
    candidates = [Candidate(n, float(each), 0.0) for n, each in zip(lengths, nats, strict=True)]
    return candidates, next(n for n in lengths if up_to[n] >= 0.5)


def templates_of(path: Path, length: int = 64) -> list[str]:
    """The templates of a .jsonl with one each a row: {"template": …}, {"text": …} as in sets of pairs, or
    {"prompt": …, "suffix": …, "length": 8}.

    `length` is that of rows with a prompt and none of their own.
    Raises ValueError, naming the row, for one that holds none, or anything else.
    """
    texts = []
    for place, row in rows_of(str(path)):
        if not isinstance(row, dict):
            raise ValueError(str(row))
        try:
            texts.append(_template({name: value for name, value in row.items() if value is not None}, length))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    if not texts:
        raise ValueError(f"{path}: no templates: put some there")
    return texts


def _template(row: Row, length: int) -> str:
    whole = next((name for name in ("template", "text") if name in row), None)
    kinds = {"prompt": str, "suffix": str, "length": int} if whole is None else {whole: str}
    if whole is None and "prompt" not in row:
        raise ValueError('no "template", "text" or "prompt": give one of them')
    for name, value in row.items():
        if name not in kinds:
            raise ValueError(f'"{name}" does nothing beside {", ".join(kinds)}: correct it or leave it out')
        if type(value) is not kinds[name]:
            raise ValueError(f'"{name}" is a {type(value).__name__}: give a {kinds[name].__name__}')
    told: Row = {"length": length, **row}
    text = between(**told) if whole is None else row[whole]
    template(text, lambda _: [], 0)
    return text


def between(prompt: str, suffix: str = "", length: int = 64) -> str:
    """The template of one blank between plain texts. Raises ValueError for one that reads like a template itself."""
    if length < 1:
        raise ValueError(f"length {length} must be at least 1")
    if any(braces in text for braces in ("{{", "}}") for text in (prompt, suffix)):
        raise ValueError("prompt and suffix are plain text, without {{ or }}: use a template for blanks")
    return f"{prompt}{{{{{length}}}}}{suffix}"
