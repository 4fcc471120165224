"""Blanks of unknown length: the length under which the text behind the blank is most probable.

p(n | text) is in proportion to p(n) p(what stands behind the blank | what stands before it, n tokens between that are
not seen): a masked model scores text beside hidden positions, so nothing need be written to choose n, and the same
tokens are scored under each n, so that long blanks are not at a disadvantage.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from unmask.checkpoint import Model
from unmask.data.pairs import rows_of
from unmask.files import Row
from unmask.likelihood import log_likelihood
from unmask.sampling import template
from unmask.sampling.canvas import BLANK


class Candidate(NamedTuple):
    """A length of a blank, -log p of the text behind it in nats, and its standard error from the maskings."""

    length: int
    nats: float
    stderr: float


def likely_lengths(
    model: Model,
    text: str,
    *,
    draws: int = 32,
    window: int = 16,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[str, list[list[Candidate]]]:
    """The template with each blank {{2..12}} at its most probable length, and the candidates of each.

    Up to `window` tokens behind a blank are scored. Blanks are settled from the left, those further right being as long
    as the middle of their range. A blank with no text behind it stays as it is: there is nothing to tell its length by.
    `progress(done, total)` counts lengths. Raises ValueError for a causal model, which does not read what stands
    behind, and for a text that with its longest blanks is longer than those the model was trained on.
    """
    if model.causal:
        raise ValueError("a causal model does not read what stands behind a blank: give its length")
    longest = len(model.canvas(BLANK.sub(_longest, text))) - 1
    if model.length is not None and longest > model.length:
        what = f"the longest has {longest} tokens, and the model was trained on {model.length}"
        raise ValueError(f"likely lengths of {text!r:.40}: {what}: give smaller ranges")
    found: list[list[Candidate]] = []
    settled, rest = "", text
    total = sum(len(_choices(blank, text[blank.end() :])) for blank in BLANK.finditer(text))
    while blank := BLANK.search(rest):
        before, behind = settled + rest[: blank.start()], rest[blank.end() :]
        right, candidates, length = BLANK.sub(_middle, behind), [], blank[0]
        for n in _choices(blank, behind):
            candidates.append(_scored(model, before, n, right, draws=draws, window=window, seed=seed))
            if progress is not None:
                progress(sum(map(len, found)) + len(candidates), total)
        if candidates:
            length = f"{{{{{min(candidates, key=lambda each: each.nats).length}}}}}"
            found.append(candidates)
        settled, rest = before + length, behind
    return settled + rest, found


def _choices(blank: re.Match, behind: str) -> range:
    """The lengths to choose from; none where one is given, or nothing stands behind to choose by."""
    least, most = int(blank[1]), int(blank[2] or blank[1])
    return range(least, most + 1) if least < most and BLANK.split(behind)[0] else range(0)


def _longest(blank: re.Match) -> str:
    return f"{{{{{blank[2] or blank[1]}}}}}"


def _middle(blank: re.Match) -> str:
    return f"{{{{{(int(blank[1]) + int(blank[2] or blank[1])) // 2}}}}}"


def _scored(model: Model, before: str, length: int, behind: str, *, draws: int, window: int, seed: int) -> Candidate:
    tokenizer = model.tokenizer

    def canvas(text: str, begin: list[int]) -> torch.Tensor:
        return template(text, tokenizer.encode, model.mask_id, begin=begin, seed=seed)

    left = canvas(f"{before}{{{{{length}}}}}", [tokenizer.begin])
    x_0 = torch.cat([left, canvas(behind, [])])
    maskable = torch.zeros_like(x_0, dtype=torch.bool)
    run = (x_0[len(left) :] == model.mask_id).nonzero().squeeze(-1)[:1].tolist()  # up to the next blank
    maskable[len(left) : len(left) + min([window, len(x_0) - len(left), *run])] = True
    # one number for all candidates: the same levels and, position by position, the same maskings
    estimate = log_likelihood(model, x_0[None], maskable[None], draws=draws, replicates=4, seed=seed, sequences=[0])
    return Candidate(length, estimate.nats, estimate.stderr_mc)


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
